"""The held topic: deliveries of paused runs rest there until their run is resumed or cancelled.

It belongs to no group's assignment. The owner of a partition number looks at what is new in its partition and
remembers whose deliveries rest there. Once one of those runs is paused no longer it moves everything, up to
the end that the partition has then: deliveries of running runs go back to where they came from, those of
cancelled ones are finished, all others go to the end of the topic, so that the position can move on. What
dies half-way is done again from the last position, which makes copies that are superfluous and nothing worse.
Positions are stored under a group of their own, which has no members.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from docsum.errors import BrokerUnavailable, DocsumError, InvalidEvent, SchemaUnknown
from docsum.kafka.headers import RUN_ID, Headers, delivery_of_record, held_headers
from docsum.kafka.refusals import right_missing
from docsum.kafka.rights import positions_group
from docsum.kafka.security import aiokafka_security, identity
from docsum.models import (
    Control,
    ControlState,
    Delivery,
    RecordCopy,
    Rows,
    RunDocumentRow,
    State,
)
from docsum.ports import Clock, Codec, Publisher, SummaryStore
from docsum.settings import Kafka
from docsum.topics import Topology

log = structlog.get_logger(__name__)

LOOK_EVERY = timedelta(seconds=2)
#: Positions are stored again before Kafka forgets them: its own default is seven days.
REFRESH = timedelta(days=1)
_AT_ONCE = 200  # copies in flight: a worker's own deliveries get their turn between two lots

Owned = Callable[[], frozenset[int]]


@dataclass(slots=True)
class _Shelf:
    """What rests in one partition, as far as this worker has looked."""

    start: int  # before it everything has been moved
    seen: int  # from here on nothing has been looked at
    runs: set[UUID | None] = field(default_factory=set)  # whose deliveries lie between


class HeldTopic:
    """Moves what rests in the held topic, on behalf of one worker."""

    def __init__(
        self,
        kafka: Kafka,
        *,
        topology: Topology,
        group: str,
        codec: Codec,
        publisher: Publisher,
        store: SummaryStore,
        clock: Clock,
    ) -> None:
        self._arguments = {"bootstrap_servers": kafka.bootstrap_servers, **aiokafka_security(kafka)}
        self._who = identity(kafka)
        self._topology = topology
        self._group = group
        self._codec = codec
        self._publisher = publisher
        self._store = store
        self._clock = clock

    async def watch(self, owned: Owned) -> None:
        """For as long as this runs. Troubles are told and waited out.

        `owned` are the partition numbers of this worker.
        """
        told = ""
        while True:
            try:
                await self._follow(owned)
                told = ""
            except Exception as error:  # whatever it is: what rests must not rest for ever
                if str(error) != told:
                    told = str(error)
                    stack = None if isinstance(error, DocsumError) else error
                    log.warning("the held topic cannot be read", action="held", message=told, exc_info=stack)
            await self._clock.sleep(LOOK_EVERY.total_seconds())

    async def _follow(self, owned: Owned) -> None:
        """Looks again and again, for a day. Raises BrokerUnavailable or a StoreError."""
        if not await self._store.controls():
            return  # nobody has ever paused anything: nothing rests
        async with self._consumer() as consumer:
            shelves: dict[TopicPartition, _Shelf] = {}
            until = self._clock.monotonic() + REFRESH.total_seconds()
            while self._clock.monotonic() < until:
                await self._look(consumer, shelves, owned)
                await self._clock.sleep(LOOK_EVERY.total_seconds())

    async def _look(self, consumer: Any, shelves: dict[TopicPartition, _Shelf], owned: Owned) -> None:
        places = await self._places(consumer, owned())
        if consumer.assignment() != set(places):
            consumer.assign(places)
            consumer.pause(*places)  # nothing is fetched but what is asked for
        for lost in shelves.keys() - set(places):
            del shelves[lost]
        for place, end in (await consumer.end_offsets(places)).items():
            if place not in shelves:
                start = await _start(consumer, place, end)
                shelves[place] = _Shelf(start, start)
            shelf = shelves[place]
            async for records, position in _read(consumer, place, shelf.seen, end, owned):
                shelf.runs.update(_run_id(record.headers) for record in records)
                shelf.seen = position
            if await self._is_wanted(shelf):
                await self._move_all(consumer, place, shelf, owned)

    async def _places(self, consumer: Any, owned: Iterable[int]) -> list[TopicPartition]:
        """Those of these partitions that the held topic has."""
        topic = self._topology.held
        await consumer.end_offsets([TopicPartition(topic, 0)])  # now the client knows the topic
        there = consumer.partitions_for_topic(topic) or set()
        return [TopicPartition(topic, number) for number in sorted(there.intersection(owned))]

    async def _is_wanted(self, shelf: _Shelf) -> bool:
        """Whether a run whose deliveries rest here is paused no longer."""
        controls = [await self._control(run_id) for run_id in shelf.runs]
        return any(control.state is not ControlState.PAUSED for control in controls)

    async def _control(self, run_id: UUID | None) -> Control:
        """An event without a run rests by mistake: it goes back."""
        return await self._store.control(run_id) if run_id else Control(UUID(int=0))

    async def _move_all(self, consumer: Any, place: TopicPartition, shelf: _Shelf, owned: Owned) -> None:
        moved: Counter[ControlState] = Counter()
        async for records, position in _read(consumer, place, shelf.start, shelf.seen, owned):
            moved += await self._move([delivery_of_record(record) for record in records])
            await consumer.commit({place: position})
            shelf.start = position
        if shelf.start == shelf.seen:
            shelf.runs.clear()
        log.info(
            "held deliveries moved",
            action="held",
            partition=place.partition,
            resumed=moved[ControlState.RUNNING],
            cancelled=moved[ControlState.CANCELLED],
            still_held=moved[ControlState.PAUSED],
        )

    async def _move(self, deliveries: Sequence[Delivery]) -> Counter[ControlState]:
        controls = [await self._control(_run_id(delivery.headers)) for delivery in deliveries]
        whole = list(zip(deliveries, controls, strict=True))
        rows = [row for each in whole if (row := await self._row(*each)) is not None]
        if rows:  # before the copies: what a worker writes of those must not look older
            await self._store.write(Rows(run_documents=tuple(rows)))
        await asyncio.gather(*(self._copy(*each) for each in whole))
        return Counter(control.state for control in controls)

    async def _row(self, delivery: Delivery, control: Control) -> RunDocumentRow | None:
        if control.state is ControlState.PAUSED:
            return None
        try:
            reference = await self._codec.decode(delivery)
        except (InvalidEvent, SchemaUnknown):  # it was readable once; its worker says what it is now
            return None
        if reference.run_id is None:
            return None
        over = control.state is ControlState.CANCELLED
        return RunDocumentRow(
            reference.run_id,
            reference.document_id,
            State.CANCELLED if over else State.QUEUED,
            reference.uri,
            delivery.attempt,
            "cancelled" if over else "",
            control.reason if over else "",
            self._clock.now(),
        )

    async def _copy(self, delivery: Delivery, control: Control) -> None:
        match control.state:
            case ControlState.PAUSED:
                topic, partition = self._topology.held, delivery.at.partition
            case ControlState.RUNNING:
                topic, partition = self._home(delivery), delivery.origin.partition
            case ControlState.CANCELLED:
                return
        headers = held_headers(delivery, self._group)
        await self._publisher.publish(RecordCopy(topic, partition, delivery.key, delivery.value, headers))

    def _home(self, delivery: Delivery) -> str:
        """Where it came from; an input that is none any more is replaced by the topic of runs."""
        topology, topic = self._topology, delivery.origin.topic
        known = (topology.documents, topology.backfill, topology.batch, *topology.inputs)
        return topic if topic in known else topology.backfill

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[Any]:  # Any: aiokafka is not typed
        consumer = AIOKafkaConsumer(
            group_id=positions_group(self._group),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=10,  # what is asked for is there: waiting would delay the next partition
            **self._arguments,
        )
        try:
            await consumer.start()
            yield consumer
        except KafkaError as error:
            missing = right_missing(error, self._who, group=positions_group(self._group))
            raise missing or BrokerUnavailable(f"The held topic cannot be read: {error!r}") from error
        finally:
            await consumer.stop()


async def _start(consumer: Any, place: TopicPartition, end: int) -> int:
    """Where to begin; stored again, so that Kafka does not forget it."""
    beginning: int = (await consumer.beginning_offsets([place]))[place]
    committed: int | None = await consumer.committed(place)
    if committed is not None and committed < beginning:
        log.error(
            "held deliveries were deleted by retention",
            action="expired",
            topic=place.topic,
            partition=place.partition,
            committed=committed,
            log_start=beginning,
        )
    # One behind the end is of a topic that was made anew.
    start = committed if committed is not None and beginning <= committed <= end else beginning
    await consumer.commit({place: start})
    return start


async def _read(
    consumer: Any, place: TopicPartition, start: int, end: int, owned: Owned
) -> AsyncIterator[tuple[Sequence[Any], int]]:
    """The records of a partition in lots, each with the position behind it, for as long as it is ours."""
    position = start
    if position < end:
        consumer.seek(place, position)
        consumer.resume(place)
    while position < end and place.partition in owned():
        found = await consumer.getmany(place, timeout_ms=1_000, max_records=_AT_ONCE)
        position = min(await consumer.position(place), end)
        yield [record for record in found.get(place, ()) if record.offset < end], position
    consumer.pause(place)


def _run_id(headers: Headers) -> UUID | None:
    """Of a copy of ours; the last one counts, as everywhere."""
    text = next((value for name, value in reversed(headers) if name == RUN_ID), None)
    try:
        return UUID(text.decode()) if text else None
    except ValueError:
        return None
