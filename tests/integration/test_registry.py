"""A real schema registry: events framed by it, and what happens while it is away. `make registry` runs it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer

from docsum.errors import ConfigurationError
from docsum.kafka.codec import written_schema
from docsum.kafka.schema_registry import SchemaRegistry
from docsum.models import DeadLetterFilter, DeadLetterRow, State
from tests.integration.test_bad_events import known
from tests.integration.test_producers import results_java
from tests.support.apicurio import Apicurio
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, stays, until
from tests.support.engine import Engine
from tests.support.fault_proxy import FaultProxy
from tests.support.later_schema import encoded, later_schema
from tests.support.texts import write_documents

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]

COUNT = 20
LIMIT = 5  # seconds that the client gives the registry for an answer
STRANGER = json.dumps({"type": "record", "name": "Order", "namespace": "shop", "fields": []})


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Apicurio]:
    found = Apicurio(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def way(registry: Apicurio) -> Iterator[FaultProxy]:
    """To the registry."""
    with FaultProxy(registry.port) as proxy:
        yield proxy


@pytest.fixture
def fleet(
    tmp_path: Path, broker: Broker, engine: Engine, registry: Apicurio, way: FaultProxy
) -> Iterator[Fleet]:
    model = ModelServer(tmp_path / "model", "--fast")
    url = registry.url.replace(f":{registry.port}/", f":{way.port}/")
    fleet = Fleet(tmp_path, broker, engine, model, registry=url, summaries=True)
    yield fleet
    fleet.close()
    model.close()


def announce(fleet: Fleet, name: str, seed: int) -> str:
    write_documents(fleet.folder / name, COUNT, seed)
    return fleet.announce(str(fleet.folder / name))


def send(fleet: Fleet, name: str, schema_id: int | None, text: str = "") -> None:
    """A live event of a program that knows the id of its schema already; None: JSON."""
    path = fleet.folder / f"{name}.txt"
    path.write_text(f"The harbour of {name} is closed. Nobody repairs its wall.\n")
    fields = {"event_id": name, "document_id": name, "uri": path.as_uri(), "occurred_at": datetime.now(UTC)}
    value = (
        json.dumps({"document_id": name, "uri": path.as_uri()}).encode()
        if schema_id is None
        else encoded(text or written_schema(), fields, schema_id)
    )
    producer = Producer({"bootstrap.servers": fleet.brokers})
    producer.produce(fleet.topology.documents, value, name.encode())
    assert producer.flush(20) == 0


def is_done(fleet: Fleet, *names: str) -> bool:
    return all(each and each.state is State.DONE for each in known(fleet, list(names)).values())


def told(fleet: Fleet) -> dict[str, bytes]:
    """Key and head of every result."""
    records = fleet.records(fleet.topology.summaries)
    return {(each.key() or b"").decode(): (each.value() or b"")[:5] for each in records}


def open_letters(fleet: Fleet) -> list[DeadLetterRow]:
    return list(fleet.ask(lambda store: store.newest_dead_letters(DeadLetterFilter(), 10)))


def waits(fleet: Fleet, reason: str, *words: str) -> None:
    until(
        lambda: any(reason in hold and all(word in hold for word in words) for hold in fleet.holds()),
        60,
        f"the worker says that it waits: {reason}",
    )


def register(registry: Apicurio, subject: str, text: str) -> int:
    async def answer() -> int:
        async with aclosing(SchemaRegistry(registry.url)) as client:
            await client.register(subject, text)
            return await client.id_of(subject, text)

    return asyncio.run(answer())


def test_nothing_is_announced_before_the_schemas_are_registered(fleet: Fleet) -> None:
    write_documents(fleet.folder / "documents", 1)
    assert fleet.ends("setup", "schemas", "--check", ok=(78,)) == 78
    assert fleet.ends("run", str(fleet.folder / "documents"), "--no-wait", ok=(1, 4, 78)) != 0
    fleet.docsum("setup", "schemas")
    fleet.docsum("setup", "schemas", "--check")
    fleet.start_workers("worker-1")
    run_id = fleet.announce(str(fleet.folder / "documents"))
    until(lambda: fleet.remaining(run_id) == 0, 60, "it is done")


@pytest.mark.timeout(900)
def test_events_are_framed_and_a_registry_that_is_away_is_waited_for(
    fleet: Fleet, registry: Apicurio, request: pytest.FixtureRequest
) -> None:
    """For 10 seconds; `--outage-seconds 300` is the full length."""
    seconds = float(request.config.getoption("--outage-seconds") or 10)
    fleet.docsum("setup", "schemas")
    run_id = announce(fleet, "before", 1)
    topics = fleet.topology
    assert {(message.value() or b"")[:1] for message in fleet.records(topics.backfill)} == {b"\x00"}
    registry.kill()
    fleet.start_workers("worker-1")
    waits(fleet, "registry_unavailable", f"{COUNT} held at decode")
    stays(lambda: fleet.counts(run_id) == {"queued": COUNT}, seconds, "nothing fails meanwhile")
    waits(fleet, "registry_unavailable", f"{COUNT} held at decode")
    assert fleet.model.billed["accepted"] == 0
    assert [fleet.size(topic) for topic in topics.retries] == [0, 0]
    registry.start()
    until(lambda: fleet.counts(run_id) == {"done": COUNT}, 120, "all are done")
    assert fleet.dead_letters() == []

    # What a worker has read of the registry lasts: it needs it no more, for results neither.
    head = (fleet.records(topics.backfill)[0].value() or b"")[:5]
    registry.kill()
    write_documents(fleet.folder / "meanwhile", COUNT, 9)
    publisher = fleet.start("run", str(fleet.folder / "meanwhile"), "--no-wait", "--json")
    send(fleet, "without it", int.from_bytes(head[1:], "big"))
    until(lambda: "without it" in told(fleet), 60, "it is done and told")
    assert is_done(fleet, "without it")
    stays(lambda: publisher.poll() is None, 10, "who announces waits for it")
    registry.start()
    out, err = publisher.communicate(timeout=90)
    assert publisher.returncode == 0, err
    until(lambda: fleet.counts(json.loads(out)["run_id"]) == {"done": COUNT}, 60, "all are done")
    assert {head[:1] for head in told(fleet).values()} == {b"\x00"}
    until(fleet.has_caught_up, 30, "all is committed")


def test_a_java_program_reads_the_results_by_way_of_the_registry(fleet: Fleet, registry: Apicurio) -> None:
    command = results_java()
    fleet.docsum("setup", "schemas")
    fleet.start_workers("worker-1")
    run_id = announce(fleet, "told", 2)
    until(lambda: fleet.remaining(run_id) == 0, 60, "all are done")
    until(lambda: len(told(fleet)) == COUNT, 30, "all are told")
    assert {head[:1] for head in told(fleet).values()} == {b"\x00"}
    names = {"SERVERS": fleet.brokers, "TOPIC": fleet.topology.summaries}
    words = [names.get(word, word) for word in (*command, registry.url)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert sorted(row[0] for row in rows) == sorted(told(fleet))
    assert all(row[1:3] == ["done", ""] and row[3] for row in rows), rows


def test_a_registry_that_is_slower_than_the_patience_of_its_client_is_waited_for(
    fleet: Fleet, way: FaultProxy
) -> None:
    fleet.docsum("setup", "schemas")
    run_id = announce(fleet, "slow", 3)
    way.delays(LIMIT + 1)
    fleet.start_workers("worker-1")
    waits(fleet, "registry_unavailable", "Timeout")
    stays(lambda: fleet.counts(run_id) == {"queued": COUNT}, 3 * LIMIT, "nothing fails meanwhile")
    way.delays(LIMIT / 10)  # still slow: it is there again
    until(lambda: fleet.counts(run_id) == {"done": COUNT}, 120, "all are done")
    assert fleet.dead_letters() == []
    until(lambda: len(told(fleet)) == COUNT, 60, "all are told")


def test_an_unknown_schema_is_tried_once_more_and_then_a_dead_letter(fleet: Fleet) -> None:
    fleet.docsum("setup", "schemas")
    producer = Producer({"bootstrap.servers": fleet.brokers})
    producer.produce(fleet.topology.documents, b"\x00\x00\x0f\x42\x3fxyz", b"stranger")
    assert producer.flush(20) == 0
    fleet.start_workers("worker-1")
    until(lambda: fleet.dead_letters() != [], 60, "it is a dead letter")
    until(fleet.has_caught_up, 20, "its row is durable")
    (row,) = open_letters(fleet)
    assert (row.reason, row.attempts) == ("schema_unknown", 2)


def test_a_registry_that_has_lost_everything_is_set_up_again(fleet: Fleet, registry: Apicurio) -> None:
    fleet.docsum("setup", "schemas")
    ours = register(registry, f"{fleet.topology.documents}-value", written_schema())
    fleet.start_workers("worker-1")
    send(fleet, "before", ours)
    until(lambda: "before" in told(fleet), 60, "it is done and told")
    registry.kill()
    registry.forget()
    registry.start()

    # A worker that has read the schemas before does not notice.
    send(fleet, "read before", ours)
    until(lambda: "read before" in told(fleet), 60, "it is done and told")
    assert is_done(fleet, "before", "read before")

    # One that begins now knows no id, and has none for what it tells.
    fleet.stop_worker("worker-1")
    fleet.start_workers("worker-1")
    send(fleet, "not known", ours)
    until(lambda: open_letters(fleet) != [], 60, "it is a dead letter")
    (row,) = open_letters(fleet)
    assert (row.reason, row.attempts) == ("schema_unknown", 2)
    shown = fleet.docsum("dlq", "show", str(row.dead_letter))
    assert "What to do: Register the producer's schema" in shown
    send(fleet, "not told", None)
    waits(fleet, "schema_unknown", "docsum setup schemas")
    assert is_done(fleet, "not told")
    assert "not told" not in told(fleet)

    fleet.docsum("setup", "schemas")
    assert register(registry, f"{fleet.topology.documents}-value", written_schema()) == ours
    until(lambda: "not told" in told(fleet), 60, "it goes on by itself")
    fleet.docsum("dlq", "replay", "--all", "--yes")
    until(lambda: "not known" in told(fleet), 60, "it is done and told")
    assert is_done(fleet, "not known")
    assert open_letters(fleet) == []
    assert len(fleet.dead_letters()) == 1


def test_an_id_that_has_become_somebody_elses_is_named(fleet: Fleet, registry: Apicurio) -> None:
    fleet.docsum("setup", "schemas")
    subject = f"{fleet.topology.documents}-value"
    ours = register(registry, subject, written_schema())
    registry.kill()
    registry.forget()
    registry.start()
    assert register(registry, "orders-value", STRANGER) == ours
    fleet.docsum("setup", "schemas")
    now = register(registry, subject, written_schema())
    assert now != ours
    fleet.start_workers("worker-1")
    send(fleet, "of before", ours)
    send(fleet, "of now", now)
    until(lambda: open_letters(fleet) != [], 60, "it is a dead letter")
    (row,) = open_letters(fleet)
    sentence = f"Schema {ours} of the registry is shop.Order, not docsum.DocumentReference."
    assert (row.reason, row.message) == ("invalid_event", sentence)
    until(lambda: is_done(fleet, "of now"), 60, "the other one is done")


def test_a_later_schema_is_registered_and_read_and_a_breaking_one_is_refused(
    fleet: Fleet, registry: Apicurio
) -> None:
    fleet.docsum("setup", "schemas")
    subject = f"{fleet.topology.documents}-value"
    later = register(registry, subject, later_schema())
    breaking = json.loads(later_schema())
    breaking["fields"].append({"name": "region", "type": "string", "doc": "It has no default."})
    with pytest.raises(ConfigurationError, match="refuses"):
        register(registry, subject, json.dumps(breaking))
    fleet.start_workers("worker-1")
    send(fleet, "later", later, later_schema())
    until(lambda: is_done(fleet, "later"), 60, "it is done")
    fleet.docsum("setup", "schemas", "--check")  # ours is still there, behind a later one
