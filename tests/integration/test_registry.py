"""A real schema registry: events framed by it, and what happens while it is away. `make registry` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from docsum.models import DeadLetterFilter
from tests.support.apicurio import Apicurio
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, stays, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]

COUNT = 20


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Apicurio]:
    found = Apicurio(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, engine: Engine, registry: Apicurio) -> Iterator[Fleet]:
    model = ModelServer(tmp_path / "model", "--fast")
    fleet = Fleet(tmp_path, broker, engine, model, registry=registry.url, summaries=True)
    yield fleet
    fleet.close()
    model.close()


def announce(fleet: Fleet, name: str, seed: int) -> str:
    write_documents(fleet.folder / name, COUNT, seed)
    return fleet.announce(str(fleet.folder / name))


def test_nothing_is_announced_before_the_schemas_are_registered(fleet: Fleet) -> None:
    write_documents(fleet.folder / "documents", 1)
    assert fleet.ends("setup", "schemas", "--check", ok=(78,)) == 78
    assert fleet.ends("run", str(fleet.folder / "documents"), "--no-wait", ok=(1, 4, 78)) != 0
    fleet.docsum("setup", "schemas")
    fleet.docsum("setup", "schemas", "--check")
    fleet.start_workers("worker-1")
    run_id = fleet.announce(str(fleet.folder / "documents"))
    until(lambda: fleet.remaining(run_id) == 0, 60, "it is done")


def test_events_are_framed_and_a_registry_that_is_away_is_waited_for(
    fleet: Fleet, registry: Apicurio
) -> None:
    fleet.docsum("setup", "schemas")
    run_id = announce(fleet, "before", 1)
    topics = fleet.topology
    assert {(message.value() or b"")[:1] for message in fleet.records(topics.backfill)} == {b"\x00"}
    registry.kill()
    fleet.start_workers("worker-1")
    until(lambda: any("registry" in hold for hold in fleet.holds()), 60, "the worker says that it waits")
    stays(lambda: fleet.counts(run_id) == {"queued": COUNT}, 10, "nothing fails meanwhile")
    registry.start()
    until(lambda: fleet.counts(run_id) == {"done": COUNT}, 120, "all are done")
    assert fleet.dead_letters() == []
    assert {(message.value() or b"")[:1] for message in fleet.records(topics.summaries)} == {b"\x00"}


def test_an_unknown_schema_is_tried_once_more_and_then_a_dead_letter(fleet: Fleet) -> None:
    fleet.docsum("setup", "schemas")
    producer = Producer({"bootstrap.servers": fleet.brokers})
    producer.produce(fleet.topology.documents, b"\x00\x00\x0f\x42\x3fxyz", b"stranger")
    assert producer.flush(20) == 0
    fleet.start_workers("worker-1")
    until(lambda: fleet.dead_letters() != [], 60, "it is a dead letter")
    until(fleet.has_caught_up, 20, "its row is durable")
    (row,) = fleet.ask(lambda store: store.newest_dead_letters(DeadLetterFilter(), 10))
    assert (row.reason, row.attempts) == ("schema_unknown", 2)
