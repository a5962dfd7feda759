"""The held topic on a real broker: what rests there comes back, rests on or is over; nothing is lost."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from structlog.testing import capture_logs

from docsum.errors import SchemaUnknown
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.copies import RecordCopies
from docsum.kafka.headers import delivery_of
from docsum.kafka.held import HeldTopic
from docsum.kafka.publisher import CopyPublisher
from docsum.models import (
    Control,
    ControlState,
    Coordinates,
    Delivery,
    DocumentReference,
    Held,
    RecordCopy,
    Rows,
    RunDocumentRow,
    State,
    to_ms,
)
from docsum.ports import SystemClock
from docsum.stores.memory import MemoryStore
from docsum.topics import Topology
from tests.support.broker import Broker
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)

GROUP = "docsum-worker"
ALL = frozenset(range(3))
FOREIGN = (("traceparent", b"00-1"), ("x-none", None), ("x-twice", b"1"), ("x-twice", b"2"))


@dataclass
class Rest:
    """A held topic with a store and a publisher of its own; its clock is the real one."""

    broker: Broker
    topology: Topology
    publisher: CopyPublisher
    codec: EventCodec
    store: MemoryStore = field(default_factory=MemoryStore)
    owned: frozenset[int] = ALL
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))

    def held(self, **parts: Any) -> HeldTopic:
        values: dict[str, Any] = {
            "topology": self.topology,
            "group": f"{self.topology.prefix}-{GROUP}",
            "codec": self.codec,
            "publisher": self.publisher,
            "store": self.store,
            "clock": SystemClock(),
            **parts,
        }
        return HeldTopic(self.broker.settings, **values)

    @asynccontextmanager
    async def watching(
        self, owned: Callable[[], frozenset[int]] | None = None, **parts: Any
    ) -> AsyncIterator[None]:
        task = asyncio.create_task(self.held(**parts).watch(owned or (lambda: self.owned)))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wish(self, run_id: UUID, state: ControlState, reason: str = "As the test wants.") -> None:
        self.moment += timedelta(milliseconds=1)
        await self.store.save_control(Control(run_id, state, reason, changed_at=self.moment))

    async def announce(self, run_id: UUID, name: str, partition: int = 0, attempt: int = 1) -> Delivery:
        """A delivery as a worker gets it: from the topic of runs, or from a retry topic."""
        event = new_event(name, f"file:///data/{name}", occurred_at=datetime.now(UTC), run_id=run_id)
        value = await self.codec.encode(event, self.topology.backfill)
        first = RecordCopy(self.topology.backfill, partition, name.encode(), value, FOREIGN)
        at = await self.publisher.publish(first)
        now = to_ms(datetime.now(UTC))
        delivery = delivery_of(at.topic, at.partition, at.offset, first.key, first.value, FOREIGN, now)
        return (
            delivery
            if attempt == 1
            else replace(delivery, at=Coordinates(self.topology.retries[0], partition, 0), attempt=attempt)
        )

    async def hold(self, delivery: Delivery) -> DocumentReference:
        """As the pipeline holds a delivery back."""
        reference = await self.codec.decode(delivery)
        copy = RecordCopies(self.topology, GROUP, SystemClock()).of(delivery, reference, Held("Paused."))
        assert copy is not None and reference.run_id is not None
        await self.publisher.publish(copy)
        row = RunDocumentRow(
            reference.run_id, reference.document_id, State.HELD, reference.uri, delivery.attempt, "held", "",
            datetime.now(UTC),
        )  # fmt: skip
        await self.store.write(Rows(run_documents=(row,)))
        return reference

    async def rest(self, run_id: UUID, count: int, partition: int = 0, prefix: str = "doc") -> None:
        names = [f"{prefix}-{number}" for number in range(count)]
        deliveries = await asyncio.gather(*(self.announce(run_id, name, partition) for name in names))
        await asyncio.gather(*map(self.hold, deliveries))

    async def records(self, topic: str) -> list[Any]:
        """All that the topic has now, partition by partition."""
        return await asyncio.to_thread(self._records, topic)

    def _records(self, topic: str) -> list[Any]:
        found = []
        config = {"bootstrap.servers": self.broker.settings.bootstrap_servers, "group.id": "reader"}
        consumer = Consumer(config | {"enable.auto.commit": False})
        try:
            for partition in range(self.topology.partitions):
                place = TopicPartition(topic, partition)
                low, high = consumer.get_watermark_offsets(place, timeout=20)
                if low == high:
                    continue
                consumer.assign([TopicPartition(topic, partition, low)])
                while True:
                    message = consumer.poll(20)
                    assert message is not None and message.error() is None
                    found.append(message)
                    if (message.offset() or 0) >= high - 1:
                        break
        finally:
            consumer.close()
        return found

    async def keys(self, topic: str) -> Counter[str]:
        return Counter(message.key().decode() for message in await self.records(topic))

    async def back(self) -> Counter[str]:
        """Copies in the topic of runs beyond the announcements."""
        return Counter(
            {key: count - 1 for key, count in (await self.keys(self.topology.backfill)).items() if count > 1}
        )

    async def states(self, run_id: UUID) -> dict[str, int]:
        """How many documents of the run are in which state."""
        progress = await self.store.progress(run_id)
        counts = {state.value: getattr(progress, state.value) for state in State}
        return {state: count for state, count in counts.items() if count}


@pytest.fixture
async def rest(broker: Broker, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rest]:
    monkeypatch.setattr("docsum.kafka.held.LOOK_EVERY", timedelta(seconds=0.05))
    await KafkaAdmin(broker.settings).setup(topology)
    async with (
        CopyPublisher(broker.settings) as publisher,
        EventCodec("") as codec,
    ):
        yield Rest(broker, topology, publisher, codec)


async def test_a_resumed_delivery_comes_back_as_it_was_to_where_it_was(rest: Rest) -> None:
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    delivery = await rest.announce(run, "report", partition=2, attempt=3)
    await rest.hold(delivery)
    async with rest.watching():
        await rest.wish(run, ControlState.RUNNING)
        await eventually(lambda: announced(rest, 2), 30)
    first, again = await rest.records(rest.topology.backfill)
    assert (again.partition(), again.key(), again.value()) == (2, b"report", first.value())
    assert [header for header in again.headers() if not header[0].startswith("docsum-")] == list(FOREIGN)
    assert len({name for name, _ in again.headers() if name.startswith("docsum-")}) == len(
        [name for name, _ in again.headers() if name.startswith("docsum-")]
    )
    back = delivery_of("t", 2, 9, again.key(), again.value(), again.headers(), again.timestamp()[1])
    assert (back.attempt, back.origin, back.not_before_ms) == (3, delivery.origin, None)
    assert back.origin_timestamp_ms == delivery.origin_timestamp_ms
    assert (await rest.codec.decode(back)).version == (await rest.codec.decode(delivery)).version
    # Retention counts from now on, however long it has rested.
    assert abs(again.timestamp()[1] - time.time() * 1000) < 60_000
    rows = [row async for row, _ in rest.store.run_rows(run)]
    assert [(row.state, row.attempt, row.uri) for row in rows] == [(State.QUEUED, 3, "file:///data/report")]


async def test_each_run_goes_its_own_way_and_what_stays_is_there_once(rest: Rest) -> None:
    resumed, cancelled, paused = uuid4(), uuid4(), uuid4()
    for run in (resumed, cancelled, paused):
        await rest.wish(run, ControlState.PAUSED)
        for partition in ALL:
            await rest.rest(run, 5, partition, prefix=f"{run}-{partition}")
    async with rest.watching():
        await rest.wish(resumed, ControlState.RUNNING)
        await rest.wish(cancelled, ControlState.CANCELLED, "Enough.")
        await eventually(lambda: has(rest, cancelled, {"cancelled": 15}), 30)
        await eventually(lambda: has(rest, resumed, {"queued": 15}), 30)
        await eventually(lambda: announced(rest, 60), 30)
        assert await rest.states(paused) == {"held": 15}
        assert all(key.startswith(str(resumed)) for key in await rest.back())
        await rest.wish(paused, ControlState.RUNNING)
        await eventually(lambda: has(rest, paused, {"queued": 15}), 30)
        await eventually(lambda: came_back(rest, 30), 30)
    assert set((await rest.back()).values()) == {1}


async def announced(rest: Rest, count: int) -> bool:
    """Whether the topic of runs has so many records, those that came back included."""
    try:
        return (await rest.keys(rest.topology.backfill)).total() == count
    except KafkaException:  # a broker that has just been started leads nothing yet
        return False


async def came_back(rest: Rest, count: int) -> bool:
    """Whether copies of so many documents are in the topic of runs: their rows are there before them."""
    return len(await rest.back()) == count


async def has(rest: Rest, run_id: UUID, states: dict[str, int]) -> bool:
    return await rest.states(run_id) == states


async def test_a_delivery_of_a_cancelled_run_that_was_announced_too_late_is_cancelled(rest: Rest) -> None:
    """Its row came after all others had been cancelled, from a worker that did not know yet."""
    run = uuid4()
    await rest.wish(run, ControlState.CANCELLED, "Enough.")
    await rest.rest(run, 3)
    async with rest.watching():
        await eventually(lambda: has(rest, run, {"cancelled": 3}), 30)
    rows = [row async for row, _ in rest.store.run_rows(run)]
    assert {(row.reason, row.message) for row in rows} == {("cancelled", "Enough.")}
    assert not await rest.back()


async def test_what_a_worker_with_an_older_view_holds_back_after_the_resume_comes_back_too(
    rest: Rest,
) -> None:
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    await rest.rest(run, 4, prefix="before")
    async with rest.watching():
        await rest.wish(run, ControlState.RUNNING)
        await eventually(lambda: has(rest, run, {"queued": 4}), 30)
        for late in range(3):
            await rest.rest(run, 2, prefix=f"late-{late}")
            count = 4 + 2 * (late + 1)
            await eventually(lambda count=count: has(rest, run, {"queued": count}), 30)  # type: ignore[misc]  # bound now
        await eventually(lambda: came_back(rest, 10), 30)
    assert set((await rest.back()).values()) == {1}


class Halting:
    """A publisher that stops answering for ever after so many copies."""

    def __init__(self, publisher: CopyPublisher, copies: int) -> None:
        self._publisher = publisher
        self._left = copies
        self.halted = asyncio.Event()

    async def publish(self, copy: RecordCopy) -> Coordinates:
        self._left -= 1
        if self._left < 0:
            self.halted.set()
            await asyncio.Event().wait()
        return await self._publisher.publish(copy)


@pytest.mark.parametrize("copies", [0, 3, 25])
async def test_a_sweep_that_dies_half_way_loses_nothing(
    rest: Rest, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.kafka.held._AT_ONCE", 10)
    resumed, paused = uuid4(), uuid4()
    for run in (resumed, paused):
        await rest.wish(run, ControlState.PAUSED)
        await rest.rest(run, 20, prefix=str(run))
    await rest.wish(resumed, ControlState.RUNNING)
    publisher = Halting(rest.publisher, copies)
    async with rest.watching(publisher=publisher):
        await asyncio.wait_for(publisher.halted.wait(), 30)
    async with rest.watching():
        await eventually(lambda: has(rest, resumed, {"queued": 20}), 30)
        await rest.wish(paused, ControlState.RUNNING)
        await eventually(lambda: has(rest, paused, {"queued": 20}), 30)
        await eventually(lambda: came_back(rest, 40), 30)
    assert (await rest.back()).total() <= 40 + 2 * 10  # what was in flight when it died, once more


async def test_partitions_that_change_hands_are_moved_by_their_new_owner(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.kafka.held._AT_ONCE", 5)
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    for partition in ALL:
        await rest.rest(run, 30, partition, prefix=f"p{partition}")
    owners = [ALL, frozenset[int]()]
    async with rest.watching(lambda: owners[0]), rest.watching(lambda: owners[1]):
        await rest.wish(run, ControlState.RUNNING)
        for _ in range(6):
            await asyncio.sleep(0.05)
            owners.reverse()
        owners[:] = [frozenset({0, 7}), frozenset({1, 2})]  # 7: a partition of somebody else's topic
        await eventually(lambda: has(rest, run, {"queued": 90}), 30)
        await eventually(lambda: came_back(rest, 90), 30)


async def test_nothing_is_asked_of_the_broker_before_anything_was_ever_paused(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0

    @asynccontextmanager
    async def counted(self: HeldTopic) -> AsyncIterator[Any]:
        nonlocal opened
        opened += 1
        async with consumer(self) as made:
            yield made

    consumer = HeldTopic._consumer
    monkeypatch.setattr(HeldTopic, "_consumer", counted)
    async with rest.watching():
        await asyncio.sleep(0.3)
        assert opened == 0
        await rest.wish(uuid4(), ControlState.PAUSED)
        await eventually(lambda: at(rest, 0), 30)
        before = opened
        await asyncio.sleep(0.3)
    assert opened == before, "an empty topic is looked at through one connection"
    assert await rest.records(rest.topology.held) == []


async def test_an_event_that_cannot_be_decoded_any_more_goes_back_to_its_worker(rest: Rest) -> None:
    class Forgetful(EventCodec):
        async def decode(self, delivery: Delivery) -> DocumentReference:
            raise SchemaUnknown

    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    await rest.rest(run, 2)
    await rest.wish(run, ControlState.RUNNING)
    async with Forgetful("") as codec, rest.watching(codec=codec):
        await eventually(lambda: announced(rest, 4), 30)


async def test_what_retention_has_deleted_is_told_and_the_rest_is_moved(rest: Rest) -> None:
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    await rest.rest(run, 10)
    async with rest.watching():
        await eventually(lambda: at(rest, 0), 30)
    admin = AdminClient({"bootstrap.servers": rest.broker.settings.bootstrap_servers})
    admin.delete_records([TopicPartition(rest.topology.held, 0, 4)])[  # as retention does
        TopicPartition(rest.topology.held, 0)
    ].result(20)
    with capture_logs() as logs:
        async with rest.watching():
            await rest.wish(run, ControlState.RUNNING)
            await eventually(lambda: has(rest, run, {"held": 4, "queued": 6}), 30)
    told = [line for line in logs if line.get("action") == "expired"]
    assert [(line["partition"], line["committed"], line["log_start"]) for line in told] == [(0, 0, 4)]


async def at(rest: Rest, offset: int) -> bool:
    return await position(rest) == offset


async def position(rest: Rest) -> int:
    """Stored for the first partition of the held topic; -1 where there is none."""
    return await asyncio.to_thread(_position, rest)


def _position(rest: Rest) -> int:
    config = {"bootstrap.servers": rest.broker.settings.bootstrap_servers}
    consumer = Consumer(config | {"group.id": f"{rest.topology.prefix}-{GROUP}-held"})
    try:
        return max(consumer.committed([TopicPartition(rest.topology.held, 0)], 20)[0].offset, -1)
    finally:
        consumer.close()


async def test_a_topic_that_was_made_anew_is_read_from_its_start(rest: Rest) -> None:
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    await rest.rest(run, 2)
    config = {"bootstrap.servers": rest.broker.settings.bootstrap_servers}
    old = Consumer(config | {"group.id": f"{rest.topology.prefix}-{GROUP}-held"})
    old.commit(offsets=[TopicPartition(rest.topology.held, 0, 500)], asynchronous=False)
    old.close()
    async with rest.watching():
        await rest.wish(run, ControlState.RUNNING)
        await eventually(lambda: has(rest, run, {"queued": 2}), 30)


async def test_a_broker_that_is_away_is_waited_for(rest: Rest) -> None:
    run = uuid4()
    await rest.wish(run, ControlState.PAUSED)
    await rest.rest(run, 3)
    async with rest.watching():
        await eventually(lambda: at(rest, 0), 30)
        rest.broker.kill()
        await rest.wish(run, ControlState.RUNNING)
        await asyncio.sleep(0.5)
        await rest.broker.start()
        await eventually(lambda: has(rest, run, {"queued": 3}), 60)
        await eventually(lambda: announced(rest, 6), 30)


@pytest.mark.timeout(600)
async def test_many_of_another_run_go_round_in_little_memory_while_others_are_served(
    rest: Rest, pytestconfig: pytest.Config
) -> None:
    count = int(pytestconfig.getoption("--held-documents"))
    paused, resumed = uuid4(), uuid4()
    for run in (paused, resumed):
        await rest.wish(run, ControlState.PAUSED)
    for lot in range(0, count, 1_000):
        await rest.rest(paused, 1_000, prefix=f"lot-{lot}")
    await rest.rest(resumed, 10, prefix="few")
    waits: Sequence[float] = []
    async with rest.watching():
        await asyncio.sleep(0.3)
        await rest.wish(resumed, ControlState.RUNNING)
        tracemalloc.start()
        waits = await own_deliveries(rest, lambda: has(rest, resumed, {"queued": 10}))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        end = count + 10
        await eventually(lambda: at(rest, end), 60)
    held = await rest.keys(rest.topology.held)
    assert held.total() == 2 * count + 10
    assert len([key for key in held if key.startswith("lot-")]) == count
    print(f"{count} went round; peak {peak / 1e6:.1f} MB; own deliveries took at most {max(waits):.3f} s")
    assert peak < 30_000_000
    assert sorted(waits)[len(waits) // 2] < 1.0


async def own_deliveries(rest: Rest, until: Callable[[], Any]) -> list[float]:
    """How long single copies of the worker's own took meanwhile, in seconds."""
    waits = []
    while not await until():
        began = time.monotonic()
        await rest.publisher.publish(RecordCopy(rest.topology.retries[0], 0, b"own", b"v", ()))
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    return waits
