"""What upstreams hear of their documents on a real deployment, also after a kill before they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from docsum.bootstrap import open_producer
from docsum.kafka.codec import EventCodec, new_event
from docsum.models import Operation, RecordCopy
from tests.chaos.laws import newest_results
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.results import read_result
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(300)


class House:
    """A fleet whose upstreams are told, and one document after the other."""

    def __init__(self, folder: Path, broker: Broker, engine: Engine) -> None:
        self.model = ModelServer(folder / "model", "--fast")
        self.fleet = Fleet(folder, broker, engine, self.model, summaries=True)
        self.folder = folder
        self.now = datetime.now(UTC) - timedelta(hours=1)

    def announce(self, name: str, **fields: Any) -> None:
        """A live event, newer than all before."""
        self.now += timedelta(seconds=1)
        uri = (self.folder / name).as_uri()
        event = new_event(name, uri, occurred_at=self.now, **fields)

        async def publish() -> None:
            topic = self.fleet.topology.documents
            async with EventCodec() as codec, open_producer(self.fleet.settings) as producer:
                value = await codec.encode(event, topic)
                await producer.publish(RecordCopy(topic, None, name.encode(), value, ()))

        asyncio.run(publish())

    def told(self, count: int) -> list[Message]:
        """All results, once there are so many; in the order of their partitions."""
        topic = self.fleet.topology.summaries
        until(lambda: self.fleet.size(topic) >= count, 60, f"{count} results")
        found = self.fleet.records(topic)
        assert len(found) == count
        return found

    def close(self) -> None:
        self.fleet.close()
        self.model.close()


@pytest.fixture
def house(tmp_path: Path, broker: Broker, engine: Engine) -> Iterator[House]:
    made = House(tmp_path, broker, engine)
    yield made
    made.close()


def fields(message: Message) -> dict[str, Any]:
    value = message.value()
    assert value is not None
    return read_result(value)


def test_a_worker_that_is_killed_before_it_tells_is_made_up_for(house: House) -> None:
    fleet = house.fleet
    (house.folder / "a.txt").write_text("The harbour is closed until the northern wall has been repaired.\n")
    fleet.start_worker("worker-1", "tests.support.untold_worker")
    house.announce("a.txt", source_version="v1")
    until(lambda: fleet.workers["worker-1"].poll() is not None, 60, "the worker has ended")
    stored = fleet.ask(lambda store: store.summary("a.txt"))
    assert stored is not None  # it was durable
    assert fleet.size(fleet.topology.summaries) == 0
    assert not fleet.has_caught_up()

    fleet.start_workers("worker-1")
    (message,) = house.told(1)
    until(fleet.has_caught_up, 30, "the event is committed")
    first = fields(message)
    assert (message.key(), first["outcome"]) == (b"a.txt", "done")
    assert first["source_version"] == stored.source_version
    assert "harbour" in first["summary"]
    assert house.model.billed["accepted"] == 1

    # The second time nothing has changed, the third time it is gone; a second document cannot be read.
    house.announce("a.txt", source_version=first["source_version"])
    unchanged = fields(house.told(2)[-1])
    assert (unchanged["outcome"], unchanged["reason"]) == ("skipped", "unchanged")
    assert unchanged["summary"] == first["summary"]
    assert unchanged["version"] > first["version"]
    house.announce("a.txt", operation=Operation.DELETE)
    gone = house.told(3)[-1]
    assert (gone.key(), gone.value(), gone.partition()) == (b"a.txt", None, message.partition())
    (house.folder / "b.txt").write_bytes(b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00" * 20)
    house.announce("b.txt")
    (failed,) = [fields(each) for each in house.told(4) if each.key() == b"b.txt"]
    assert (failed["outcome"], failed["reason"]) == ("dead_lettered", "not_a_document")
    assert failed["summary"] is None
    assert house.model.billed["accepted"] == 1


COUNT, EMPTY, KILLS = 80, 4, 3
WORKERS = ("worker-0", "worker-1")


@pytest.mark.long
def test_whoever_is_killed_upstreams_hear_of_every_document_whatever_became_of_it(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    """A run whose documents are summarised, and the same one again, whose documents have not changed."""
    documents = tmp_path / "documents"
    write_documents(documents, COUNT)
    for number in range(EMPTY):
        (documents / f"empty-{number}.txt").touch()
    with (
        closing(ModelServer(tmp_path / "model", "--fast", "--latency=0.3")) as model,
        closing(Fleet(tmp_path, broker, engine, model, in_flight=4, summaries=True)) as fleet,
    ):
        fleet.start_workers(*WORKERS)
        first = told_under_kills(fleet, documents)
        again = told_under_kills(fleet, documents)
    for name, result in first.items():
        outcome = ("dead_lettered", "empty") if "empty" in name else ("done", "")
        assert (result["outcome"], result["reason"]) == outcome
        assert bool(result["summary"]) == (outcome[0] == "done")
        outcome = ("dead_lettered", "empty") if "empty" in name else ("skipped", "unchanged")
        assert (again[name]["outcome"], again[name]["reason"]) == outcome
        assert again[name]["summary"] == result["summary"]
        assert again[name]["version"] > result["version"]


def told_under_kills(fleet: Fleet, documents: Path) -> dict[str, dict[str, Any]]:
    """The newest result of every document, once a run is over that met so many deaths."""
    topic = fleet.topology.summaries
    before = fleet.size(topic)
    run_id = fleet.announce(str(documents))
    for kill in range(1, KILLS + 1):
        goal = before + kill * COUNT // (KILLS + 2)
        until(lambda goal=goal: fleet.size(topic) >= goal, 60, f"{goal} results")  # type: ignore[misc]  # bound now
        name = WORKERS[kill % 2]
        fleet.workers[name].kill()
        fleet.workers[name].wait(20)
        fleet.start_worker(name)
    until(lambda: fleet.remaining(run_id) == 0, 120, "the run is over")
    until(fleet.has_caught_up, 60, "all is committed")
    results = newest_results(fleet.records(topic))
    assert len(results) == COUNT + EMPTY
    assert {str(each["run_id"]) for each in results.values()} == {run_id}
    return results
