"""Records that nobody should have published, among good ones: each ends in a state that has a name.

All are published at once; then every test looks at one of them. The worker never stops over any.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as Batch
from confluent_kafka import KafkaError, Message, Producer

from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.headers import LIMITS, Headers
from docsum.models import DeadLetterFilter, Known, State, from_ms
from docsum.stores.clickhouse import ClickHouseStore
from docsum.topics import MAX_MESSAGE_BYTES
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.registry import Registry, register, schema_registry

pytestmark = pytest.mark.timeout(300)

IN_2099 = 4_070_908_800_000
CASE = "case"  # a header that every record here has: the name of its case


@dataclass(frozen=True)
class Bad:
    """A record as a producer sends it, and the reason that its dead letter must have."""

    value: bytes | None
    reason: str = "invalid_event"
    key: bytes | None = b"a-key"
    headers: Headers = ()
    compression: str = "none"
    timestamp_ms: int = 0  # now
    by_hand: bool = False


def event(**fields: object) -> bytes:
    """JSON with a good value for whatever is not said."""
    return json.dumps({"document_id": "doc-1", "uri": "file:///a.txt", **fields}).encode()


def avro(**fields: Any) -> bytes:
    values: dict[str, Any] = {"document_id": "doc-1", "uri": "file:///a.txt", "occurred_at": from_ms(0)}
    return asyncio.run(EventCodec().encode(new_event(**values | fields), "any"))


def exactly(size: int, start: bytes, key: bytes, headers: Headers, end: bytes = b"") -> bytes:
    """A value that makes the whole record batch so many bytes."""

    def batch(length: int) -> int:
        builder = Batch(2, 0, 0, -1, -1, -1, 1)
        return 61 + int(builder.size_in_bytes(0, 0, key, b"x" * length, headers))

    length = size - 1_000  # of the same order, so that the lengths in front take as many bytes
    length += size - batch(length)
    assert batch(length) == size
    return start + b"x" * (length - len(start) - len(end)) + end


class Latin1(str):
    """The name of a header as a careless producer sends it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return super().encode("latin-1")


WRONG_FIELDS: dict[str, object] = {
    "event_id": 1,
    "document_id": 42,
    "uri": ["file:///a.txt"],
    "source_version": 3,
    "occurred_at": "yesterday",
    "media_type": {},
    "size_bytes": "12",
    "title": False,
    "run_id": "run-1",
    "operation": "MERGE",
    "force": "yes",
    "attributes": {"pages": 4},
}
OURS: Headers = (
    ("docsum-orig-topic", b"t" * 249),
    ("docsum-orig-partition", b"2147483647"),
    ("docsum-orig-offset", b"9223372036854775807"),
    ("docsum-first-failed-at", b"253402300799000"),
    ("docsum-replay-count", b"1000"),
    ("docsum-attempt-log", b";" * 300_000),
)
BAD: dict[str, Bad] = {
    "garbage": Bad(b"\x93NUMPY\x01\x00 not an event"),
    "an empty value": Bad(b""),
    "Avro that ends early": Bad(avro()[:-3]),
    "Avro with bytes left over": Bad(avro() + b"\x00"),
    "Avro of another schema": Bad(b"\xc3\x01" + b"\x07" * 8 + b"x", "schema_unknown"),
    "a text of 2**60 bytes": Bad(avro()[:10] + b"\x80\x80\x80\x80\x80\x80\x80\x80\x20"),
    "framed without a registry": Bad(b"\x00\x00\x00\x00\x4dx"),
    "framed and cut in its id": Bad(b"\x00\x00"),
    "neither key nor value": Bad(None, key=None),
    "a deletion of no text": Bad(None, key=b"\xff\xfe"),
    "a deletion of an empty key": Bad(None, key=b""),
    "no UTF-8": Bad(b'{"document_id": "\xe9"}'),
    "half a character": Bad(b'{"document_id": "\\ud83d", "uri": "file:///a.txt"}'),
    "cut JSON": Bad(event()[:-1]),
    "deep JSON": Bad(b'{"a":' * 150_000),
    "a number of a million digits": Bad(b'{"document_id": ' + b"9" * 1_000_000 + b"}"),
    "NaN for a size": Bad(b'{"document_id": "doc-1", "uri": "file:///a.txt", "size_bytes": NaN}'),
    "a duplicate key that is wrong": Bad(b'{"document_id": "doc-1", "uri": "file:///a.txt", "uri": 4}'),
    "a date in 2099": Bad(event(occurred_at=IN_2099)),
    "an Avro date in 2099": Bad(avro(occurred_at=from_ms(IN_2099))),
    "a negative date": Bad(event(occurred_at=-1)),
    "a year of 16 digits": Bad(event(occurred_at=10**18)),
    "an id with a control character": Bad(event(document_id="a\x00b")),
    "an empty id": Bad(event(document_id="")),
    "an id of 513 characters": Bad(event(document_id="x" * 513)),
    "an unknown scheme": Bad(event(uri="gopher://host/a")),
    "an operation of later": Bad(event(operation="UNKNOWN")),
    "1 MB of headers": Bad(b"no event", headers=(("large", b"h" * 1_000_000), ("large", b"again"))),
    "10,000 headers": Bad(b"no event", headers=tuple((f"h{n}", b"%d" % n) for n in range(10_000))),
    "headers without a value": Bad(b"no event", headers=(("none", None), ("empty", b""), ("", b"nameless"))),
    "a key of 1 MB": Bad(b"no event", key=b"k" * 1_000_000),
    "20 MB that were packed": Bad(b"no event" + bytes(20_000_000), compression="gzip"),
    "headers like ours": Bad(b"no event", headers=OURS),
    "headers in Latin-1": Bad(b"no event", headers=((Latin1("caf\xe9"), b"1"),), by_hand=True),
    "no timestamp": Bad(event(), timestamp_ms=-1),
    "headers like ours, and a date": Bad(
        event(occurred_at="2026-01-01T00:00:00Z"), headers=(("docsum-orig-timestamp", b"0"),)
    ),
    "a file that is not there": Bad(event(uri="file:///nowhere/a.txt"), "source_not_allowed"),
    "a host that is not allowed": Bad(event(uri="https://host.example/a"), "source_not_allowed"),
    **{f"a wrong {name}": Bad(event(**{name: value})) for name, value in WRONG_FIELDS.items()},
    "a whole record of garbage": Bad(
        exactly(MAX_MESSAGE_BYTES, b"no event", b"a-key", ((CASE, b"a whole record of garbage"),))
    ),
}

#: Odd, and all the same events: from an id and an address to the record.
Make = Callable[[str, str], Bad]


def like_ours(name: str, value: bytes) -> Make:
    return lambda document, uri: Bad(
        event(document_id=document, uri=uri), headers=((name, value), (name, value))
    )


def with_attributes(document: str, uri: str) -> Bad:
    start = event(document_id=document, uri=uri, attributes={"notes": ""})[:-3]
    case = ((CASE, document.encode()),)
    return Bad(exactly(MAX_MESSAGE_BYTES, start, b"a-key", case, b'"}}'))


ODD: dict[str, Make] = {
    "a foreign key": lambda document, uri: Bad(event(document_id=document, uri=uri), key=b"\xff"),
    "no key": lambda document, uri: Bad(event(document_id=document, uri=uri), key=None),
    "unknown fields": lambda document, uri: Bad(
        event(document_id=document, uri=uri, priority=[{"a": float("nan")}] * 100)
    ),
    "a duplicate key": lambda document, uri: Bad(
        b'{"document_id": 4, "document_id": "%s", "uri": "%s"}' % (document.encode(), uri.encode())
    ),
    "an unknown run": lambda document, uri: Bad(event(document_id=document, uri=uri, run_id=str(uuid4()))),
    "headers of 900 KB": lambda document, uri: Bad(
        event(document_id=document, uri=uri), headers=(("large", b"h" * 900_000),)
    ),
    "a whole record of attributes": with_attributes,
    "a header in Latin-1": lambda document, uri: Bad(
        event(document_id=document, uri=uri), headers=((Latin1("\xe9"), b"1"),), by_hand=True
    ),
    "an attempt that is no number": like_ours("docsum-attempt", b"abc"),
    "an attempt of 1000": like_ours("docsum-attempt", b"1000"),
    "not before 2099": like_ours("docsum-not-before-ms", b"%d" % IN_2099),
    "published at no time": like_ours("docsum-orig-timestamp", b"\xffsoon"),
    "published in 9999": like_ours("docsum-orig-timestamp", b"253370764800000"),
    "a million replays": like_ours("docsum-replay-count", b"1000000"),
    "a reason in advance": like_ours("docsum-reason", b"x" * 100_000),
    **{
        f"packed by {kind}": lambda document, uri, kind=kind: Bad(  # type: ignore[misc]  # bound now
            event(document_id=document, uri=uri, attributes={"notes": "x" * 5_000}), compression=kind
        )
        for kind in ("gzip", "snappy", "lz4", "zstd")
    },
}


class Publisher:
    """Sends each record to the next partition, in a batch of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self._brokers = fleet.brokers
        self._topic = fleet.topology.documents
        self._partitions = fleet.topology.partitions
        self._numbers = count()

    def publish(self, case: str, bad: Bad) -> KafkaError | None:
        """Why the broker has refused it."""
        headers = ((CASE, case.encode()), *bad.headers)
        partition = next(self._numbers) % self._partitions
        if bad.by_hand:
            asyncio.run(self._by_hand(bad, headers, partition))
            return None
        said: list[KafkaError | None] = []
        producer = Producer(
            {
                "bootstrap.servers": self._brokers,
                "compression.type": bad.compression,
                "message.max.bytes": 30_000_000,
            }
        )
        producer.produce(
            self._topic, bad.value, bad.key, partition, timestamp=bad.timestamp_ms, headers=list(headers),
            on_delivery=lambda error, _: said.append(error),
        )  # fmt: skip
        assert producer.flush(30) == 0
        return said[0]

    async def _by_hand(self, bad: Bad, headers: Headers, partition: int) -> None:
        """No producer's checks are in its way."""
        async with AIOKafkaProducer(bootstrap_servers=self._brokers) as producer:
            batch = producer.create_batch()
            batch._builder = Batch(2, 0, 0, -1, -1, -1, 1_000_000)
            assert batch.append(timestamp=None, key=bad.key, value=bad.value, headers=list(headers))
            await (await producer.send_batch(batch, self._topic, partition=partition))


@dataclass
class Story:
    """What was published, and what became of it."""

    fleet: Fleet
    pid: int
    copies: dict[str, list[Message]]  # dead letters by case
    known: dict[str, Known | None]  # documents, by their id


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    headers: Any = message.headers()  # Any: the stubs know two shapes, a list is what comes
    return list(headers)


def case_of(message: Message) -> str:
    name = dict(headers_of(message))[CASE]
    assert name is not None
    return name.decode()


def known(fleet: Fleet, documents: list[str]) -> dict[str, Known | None]:
    async def ask(store: ClickHouseStore) -> list[Known | None]:
        return await asyncio.gather(*map(store.known, documents))

    return dict(zip(documents, fleet.ask(ask), strict=True))


def written(folder: Path, name: str) -> str:
    """The address of a small document."""
    path = folder / f"{name}.txt"
    path.write_text(f"The harbour {name} is closed on Monday. Nobody repairs its wall.\n")
    return path.as_uri()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    served = ModelServer(tmp_path_factory.mktemp("model"), "--fast")
    yield served
    served.close()


@pytest.fixture(scope="module")
def story(
    broker: Broker, engine: Engine, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("bad-events")
    fleet = Fleet(folder, broker, engine, model, delays=(0.5,), partitions=3)
    try:
        fleet.start_workers("only")
        pid = fleet.workers["only"].pid
        publisher = Publisher(fleet)
        for number, (case, bad) in enumerate(BAD.items()):
            name = f"good {number}"
            assert publisher.publish(case, bad) is None
            publisher.publish(name, Bad(avro(document_id=name, uri=written(folder, name))))
        for case, make in ODD.items():
            assert publisher.publish(case, make(case, written(folder, case))) is None
        publisher.publish("a deletion", Bad(None, key=GONE.encode()))
        until(fleet.has_caught_up, 120, "everything is committed")
        copies: dict[str, list[Message]] = {}
        for message in fleet.dead_letters():
            copies.setdefault(case_of(message), []).append(message)
        yield Story(fleet, pid, copies, known(fleet, [*GOOD, *ODD, GONE]))
    finally:
        fleet.close()


GONE, *GOOD = (f"good {number}" for number in range(len(BAD)))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_event_is_a_dead_letter_with_all_that_it_had(story: Story, case: str) -> None:
    (copy,) = story.copies[case]
    bad = BAD[case]
    ours = {name: value or b"" for name, value in headers_of(copy) if name in LIMITS}
    theirs = [(name, value) for name, value in headers_of(copy) if name not in LIMITS]
    assert ours["docsum-reason"].decode() == bad.reason, ours["docsum-error-message"]
    assert copy.value() == bad.value
    # aiokafka takes no record without both: an empty key says the same.
    assert copy.key() == (b"" if bad.key is None and bad.value is None else bad.key)
    foreign = [
        (name.encode().decode("utf-8", "backslashreplace"), value)
        for name, value in bad.headers
        if name not in LIMITS
    ]
    assert theirs == [(CASE, case.encode()), *foreign]


def test_no_other_event_is_a_dead_letter_and_each_is_in_the_index(story: Story) -> None:
    assert set(story.copies) == set(BAD)
    groups = story.fleet.ask(lambda store: store.dead_letter_groups(DeadLetterFilter()))
    reasons = Counter(bad.reason for bad in BAD.values())
    assert {group.reason: group.count for group in groups} == reasons


@pytest.mark.parametrize("case", ODD)
def test_an_odd_event_is_done(story: Story, case: str) -> None:
    found = story.known[case]
    assert found is not None
    assert found.state is State.DONE


def test_all_good_events_between_are_done(story: Story) -> None:
    assert {found and found.state for name, found in story.known.items() if name in GOOD} == {State.DONE}


def test_a_record_without_a_value_deletes_the_document_of_its_key(story: Story) -> None:
    found = story.known[GONE]
    assert found is not None
    assert found.deleted


def test_the_worker_never_stopped_and_paid_nothing_twice(story: Story) -> None:
    assert story.fleet.is_member("only")
    assert story.fleet.workers["only"].pid == story.pid
    assert '"crash"' not in story.fleet.said("only")
    assert story.fleet.model.paid_again == {}


def test_the_whole_records_were_the_largest_that_the_topic_takes(story: Story) -> None:
    larger = exactly(MAX_MESSAGE_BYTES + 1, b"", b"a-key", ((CASE, b"larger"),))
    refused = Publisher(story.fleet).publish("larger", Bad(larger))
    assert refused is not None
    assert refused.code() == KafkaError.MSG_SIZE_TOO_LARGE


# -- with a schema registry ----------------------------------------------------------------------------------


@dataclass
class Registered:
    fleet: Fleet
    publisher: Publisher
    registry: type[Registry]
    folder: Path

    def publish(self, name: str, schema_id: int) -> None:
        """An event that says it is written by that schema."""
        value = avro(document_id=name, uri=written(self.folder, name))[10:]
        self.publisher.publish(name, Bad(b"\x00" + schema_id.to_bytes(4, "big") + value))

    def is_done(self, name: str) -> bool:
        found = known(self.fleet, [name])[name]
        return found is not None and found.state is State.DONE


@pytest.fixture(scope="module")
def registered(
    broker: Broker, engine: Engine, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registered]:
    folder = tmp_path_factory.mktemp("registered")
    with schema_registry() as registry:
        fleet = Fleet(folder, broker, engine, model, delays=(0.5,), partitions=1, registry=registry.url)
        asyncio.run(register(registry.url, fleet.topology))
        try:
            fleet.start_workers("only")
            yield Registered(fleet, Publisher(fleet), registry, folder)
        finally:
            fleet.close()


def test_a_schema_that_the_registry_does_not_know_is_tried_once_more_and_named(
    registered: Registered,
) -> None:
    registered.publish("of an unknown schema", 77)
    registered.publish("of ours", 1)
    until(lambda: registered.is_done("of ours"), 60, "what is behind it is done")
    until(lambda: registered.fleet.size(registered.fleet.topology.dead_letters) == 1, 60, "it has come back")
    (copy,) = registered.fleet.dead_letters()
    said = dict(headers_of(copy))
    assert (said["docsum-reason"], said["docsum-attempt"]) == (b"schema_unknown", b"2")
    assert case_of(copy) == "of an unknown schema"
    assert registered.registry.reads.count(77) == 2


def test_a_registry_that_is_down_is_waited_for(registered: Registered) -> None:
    registered.registry.failure = (503, {})
    registered.publish("meanwhile", 2)  # not read before, so the registry must be asked
    until(lambda: any("registry_unavailable" in hold for hold in registered.fleet.holds()), 60, "it waits")
    assert not registered.fleet.has_caught_up()
    registered.registry.schemas["another", next(text for _, text in registered.registry.schemas)] = 2
    registered.registry.failure = None
    until(lambda: registered.is_done("meanwhile"), 90, "it goes on")
    until(registered.fleet.has_caught_up, 30, "everything is committed")
    assert registered.fleet.size(registered.fleet.topology.dead_letters) == 1
    assert '"crash"' not in registered.fleet.said("only")
