"""Producers and workers of two versions of the event's schema, through retry, dead letters and replay.

The later version has one more field and one more symbol. Every document here is announced as newer than its
file is, so that its event is retried and becomes a dead letter; then the file is mended and all are replayed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from docsum.kafka.codec import written_schema
from docsum.kafka.headers import LIMITS
from docsum.kafka.schema_registry import SchemaRegistry
from docsum.models import DeadLetterFilter, State
from tests.integration.test_bad_events import headers_of, known
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.later_schema import FILE, encoded, later_schema
from tests.support.registry import register, schema_registry

pytestmark = pytest.mark.timeout(300)

OLD, NEW = "docsum", "tests.support.later_schema"  # what a worker of each version runs
SCHEMAS = {"old": written_schema(), "new": later_schema()}
#: Of producers by version and by whether they use the registry.
NAMES = [f"{version} {how}" for version in SCHEMAS for how in ("framed", "alone")]
STRANGE = "new alone"  # to an old worker: nobody tells it what that fingerprint stands for
HEADERS: list[tuple[str, str | bytes | None]] = [
    ("traceparent", b"00-4bf9-01"),
    ("twice", b"\x00\xff"),
    ("twice", None),
]


class House:
    """One worker at a time, of either version, and an event from each producer."""

    def __init__(
        self, folder: Path, broker: Broker, engine: Engine, model: ModelServer, registry: Any
    ) -> None:
        self.folder = folder
        self.fleet = Fleet(folder, broker, engine, model, delays=(0.5,), partitions=2, registry=registry.url)
        (self.fleet.home / FILE).write_text(SCHEMAS["new"])
        topic = self.topic = self.fleet.topology.documents
        asyncio.run(register(registry.url, self.fleet.topology))
        asyncio.run(_register(registry.url, f"{topic}-value", SCHEMAS["new"]))
        self.ids = {name: registry.schemas[f"{topic}-value", text] for name, text in SCHEMAS.items()}
        self.sent: dict[str, bytes] = {}

    def work(self, module: str) -> None:
        """By a worker of this version alone, from now on; of one name, so that it takes over at once."""
        if "only" in self.fleet.workers:
            self.fleet.stop_worker("only")
        self.fleet.start_worker("only", module)
        until(lambda: self.fleet.is_member("only"), 60, "it is a member")

    def announce(self, name: str, **fields: object) -> None:
        version, how = name.split()[:2]
        path = self.folder / f"{name}.txt"
        path.write_text(f"The harbour of {name} is closed. Nobody repairs its wall.\n")
        newer = path.stat().st_mtime_ns + 3_600_000_000_000
        event = {
            "event_id": f"event of {name}",
            "document_id": name,
            "uri": path.as_uri(),
            "source_version": f"{newer}:1:1",
            "occurred_at": datetime.now(UTC),
            "attributes": {"of": name},
        }
        event |= {"owner": "legal"} if version == "new" else {}
        schema_id = self.ids[version] if how == "framed" else None
        self.sent[name] = encoded(SCHEMAS[version], event | fields, schema_id)
        producer = Producer({"bootstrap.servers": self.fleet.brokers})
        producer.produce(self.topic, self.sent[name], name.encode(), headers=HEADERS)
        assert producer.flush(30) == 0

    def mend(self) -> None:
        """Every file becomes as new as was announced."""
        for name in self.sent:
            path = self.folder / f"{name}.txt"
            newer = path.stat().st_mtime_ns + 7_200_000_000_000
            os.utime(path, ns=(newer, newer))

    def replay(self, *arguments: str) -> dict[str, Any]:
        words = ("dlq", "replay", *arguments, "--no-sample", "--yes", "--json")
        found: dict[str, Any] = json.loads(self.fleet.docsum(*words))
        return found

    def failed(self) -> dict[str, str]:
        """Documents of open dead letters, and why: the index has no id of an event that nobody could read."""
        rows = self.fleet.ask(lambda store: store.newest_dead_letters(DeadLetterFilter(), 100))
        keys = {(each.partition(), each.offset()): each.key() for each in self.fleet.dead_letters()}
        places = ((row.dead_letter.partition, row.dead_letter.offset) for row in rows)
        return {(keys[at] or b"").decode(): row.reason for at, row in zip(places, rows, strict=True)}

    def done(self) -> set[str]:
        found = known(self.fleet, list(self.sent))
        return {name for name, each in found.items() if each is not None and each.state is State.DONE}

    def copies(self, topic: str) -> dict[str, list[Message]]:
        found: dict[str, list[Message]] = {}
        for message in self.fleet.records(topic):
            found.setdefault((message.key() or b"").decode(), []).append(message)
        return found

    def close(self) -> None:
        self.fleet.close()


async def _register(url: str, subject: str, text: str) -> None:
    async with aclosing(SchemaRegistry(url)) as registry:
        await registry.register(subject, text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    served = ModelServer(tmp_path_factory.mktemp("model"), "--fast")
    yield served
    served.close()


@pytest.fixture
def house(tmp_path: Path, broker: Broker, engine: Engine, model: ModelServer) -> Iterator[House]:
    with schema_registry() as registry:
        made = House(tmp_path, broker, engine, model, registry)
        try:
            yield made
        finally:
            made.close()


def as_sent(house: House, name: str, copies: Sequence[Message]) -> bool:
    """Byte by byte: the value, the key and what its producer had put into the headers."""
    return all(
        (copy.value(), copy.key(), theirs(copy)) == (house.sent[name], name.encode(), HEADERS)
        for copy in copies
    )


def theirs(message: Message) -> list[tuple[str, bytes | None]]:
    return [(name, value) for name, value in headers_of(message) if name not in LIMITS]


def test_workers_are_updated_after_their_producers(house: House) -> None:
    """The wrong order: the one event that an old worker cannot read waits for the update as a dead letter."""
    house.work(OLD)
    for name in NAMES:
        house.announce(name)
    house.announce("new framed move", operation="MOVE")
    outdated = dict.fromkeys(NAMES, "source_outdated")
    expected = outdated | {STRANGE: "schema_unknown", "new framed move": "invalid_event"}
    until(lambda: house.failed() == expected, 60, "all have failed")
    letters = house.copies(house.fleet.topology.dead_letters)
    (retries,) = map(house.copies, house.fleet.topology.retries)
    for name in NAMES:
        assert [len(copies[name]) for copies in (letters, retries)] == [1, 1], name
        assert as_sent(house, name, [*letters[name], *retries[name]])
    (strange,) = letters[STRANGE]
    said, fingerprint = dict(headers_of(strange)), house.sent[STRANGE][2:10].hex()
    assert said["docsum-attempt"] == b"2"
    assert said["docsum-error-message"] == (
        f"This docsum knows no Avro schema with fingerprint {fingerprint}.".encode()
    )

    house.mend()
    house.work(NEW)
    assert house.replay("--reason", "source_outdated", "--reason", "schema_unknown")["replayed"] == len(NAMES)
    until(lambda: house.done() == set(NAMES), 60, "all are done")
    until(lambda: set(house.failed()) == {"new framed move"}, 30, "nothing else is open")
    events = house.copies(house.topic)
    assert {name: len(events[name]) for name in NAMES} == dict.fromkeys(NAMES, 2)
    assert all(as_sent(house, name, events[name]) for name in NAMES)


def test_workers_are_set_back_behind_their_producers(house: House) -> None:
    house.work(NEW)
    for name in NAMES:
        house.announce(name)
    until(lambda: house.failed() == dict.fromkeys(NAMES, "source_outdated"), 60, "all have failed")
    letters = house.copies(house.fleet.topology.dead_letters)
    (retries,) = map(house.copies, house.fleet.topology.retries)
    assert all(as_sent(house, name, [*letters[name], *retries[name]]) for name in NAMES)

    house.mend()
    house.work(OLD)
    assert house.replay("--all")["replayed"] == len(NAMES)
    until(lambda: house.done() == {*NAMES} - {STRANGE}, 60, "what an old worker can read is done")
    until(lambda: house.failed() == {STRANGE: "schema_unknown"}, 60, "the other one is told")
    events = house.copies(house.topic)
    assert all(len(events[name]) == 2 and as_sent(house, name, events[name]) for name in NAMES)
    (_, again) = house.copies(house.fleet.topology.dead_letters)[STRANGE]
    assert as_sent(house, STRANGE, [again])
