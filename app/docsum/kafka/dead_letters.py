"""Single records of the dead-letter topic, read at their coordinates; and the copy of one that goes back.

Nothing is committed and no group is joined: whoever looks at dead letters disturbs nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from docsum.errors import BrokerUnavailable
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.headers import delivery_of_record, replay_headers
from docsum.kafka.refusals import explained
from docsum.kafka.rights import Operation, Right
from docsum.kafka.security import aiokafka_security
from docsum.models import Coordinates, Delivery, RecordCopy
from docsum.settings import Kafka
from docsum.topics import MAX_MESSAGE_BYTES

#: A silence of the broker that is longer than this is an outage.
PATIENCE = timedelta(seconds=30)
_LOOK = timedelta(seconds=1)
_AT_ONCE = 500  # records that one call takes out of what was fetched
_FAR = 1_000  # records between two wanted ones that are cheaper to jump over than to read


class DeadLetterTopic:
    """Reads the dead-letter topic; an async context manager. Implements `replay.DeadLetterRecords`."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        """Raises ConfigurationError."""
        self._servers = kafka.bootstrap_servers
        self._kafka = kafka
        self._topic = topic
        self._arguments: dict[str, Any] = {  # Any: aiokafka's arguments
            "bootstrap_servers": kafka.bootstrap_servers,
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "max_partition_fetch_bytes": MAX_MESSAGE_BYTES,  # one record at least, whatever its size
            **aiokafka_security(kafka),
        }
        self._consumer: Any = None  # Any: aiokafka is not typed

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(**self._arguments)
        try:
            async with self._asking():
                await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def offsets(self) -> Mapping[int, range]:
        """Partition -> the offsets that it has at this moment. Raises BrokerUnavailable."""
        async with self._asking():
            if self._topic not in await self._consumer.topics():
                await KafkaAdmin(self._kafka).prove((Right(Operation.READ, "topic", self._topic),))
                raise BrokerUnavailable(
                    f"Kafka has no topic {self._topic} for us; run `docsum setup topics`."
                )
            first = TopicPartition(self._topic, 0)
            self._consumer.assign([first])
            await self._consumer.beginning_offsets([first])  # after that all partitions are known
            return await self._ranges(self._consumer.partitions_for_topic(self._topic))

    async def read(
        self, places: Collection[Coordinates]
    ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
        """Each of these records of the topic, once, in its order; None for one that Kafka has deleted.

        Memory holds about one fetch, however many there are. Raises BrokerUnavailable.
        """
        known = await self.offsets() if places else {}
        for number, group in groupby(sorted(set(places)), key=lambda place: place.partition):
            wanted = deque(place.offset for place in group)
            if number not in known:
                for offset in wanted:
                    yield Coordinates(self._topic, number, offset), None
                continue
            async for offset, delivery in self._read(number, wanted, known[number]):
                yield Coordinates(self._topic, number, offset), delivery

    async def _read(
        self, number: int, wanted: deque[int], there: range
    ) -> AsyncIterator[tuple[int, Delivery | None]]:
        place, position, heard = TopicPartition(self._topic, number), -_FAR, time.monotonic()
        self._consumer.assign([place])
        while wanted:
            if wanted[0] not in there:
                yield wanted.popleft(), None
                continue
            if not 0 <= wanted[0] - position < _FAR:
                position = wanted[0]
                self._consumer.seek(place, position)
            records = await self._fetch(place)
            for record in records:
                while wanted and wanted[0] < record.offset:  # deleted, or never visible
                    yield wanted.popleft(), None
                if wanted and wanted[0] == record.offset:
                    yield wanted.popleft(), delivery_of_record(record)
                position = record.offset + 1
            if records:
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE.total_seconds():
                raise BrokerUnavailable(f"Kafka at {self._servers} does not answer.")
            else:
                there = await self._still_there(place, there)

    async def _fetch(self, place: TopicPartition) -> list[Any]:
        async with self._asking():
            milliseconds = _LOOK // timedelta(milliseconds=1)
            found = await self._consumer.getmany(place, timeout_ms=milliseconds, max_records=_AT_ONCE)
            records: list[Any] = found.get(place, [])
            return records

    async def _still_there(self, place: TopicPartition, before: range) -> range:
        """Without what retention has taken meanwhile, and without a tail that holds no visible records."""
        async with self._asking():
            now = (await self._ranges([place.partition]))[place.partition]
            position = await self._consumer.position(place)
        return range(max(before.start, now.start, position), now.stop)

    async def _ranges(self, numbers: Collection[int]) -> dict[int, range]:
        places = [TopicPartition(self._topic, number) for number in numbers]
        first = await self._consumer.beginning_offsets(places)
        end = await self._consumer.end_offsets(places)
        return {place.partition: range(first[place], end[place]) for place in places}

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                yield
        except TimeoutError as error:
            raise BrokerUnavailable(f"Kafka at {self._servers} does not answer.") from error
        except KafkaError as error:
            raise await explained(error, self._kafka, f"give {self._topic}") from error


def replay_copy(delivery: Delivery, replay_id: str, group: str) -> RecordCopy:
    """The copy of a dead letter for the topic and the partition where its event was published first."""
    origin = delivery.origin
    headers = replay_headers(delivery, replay_id, group)
    return RecordCopy(origin.topic, origin.partition, delivery.key, delivery.value, headers)
