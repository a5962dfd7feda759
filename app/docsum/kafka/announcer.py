"""Announces documents: one event each, in the topic of its lane."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from docsum.errors import DocsumError, InvalidEvent
from docsum.kafka.codec import Event, EventCodec, new_event
from docsum.kafka.producer import KafkaProducer
from docsum.models import Coordinates, Operation, RecordCopy, Run, from_ms, to_ms
from docsum.ports import Clock
from docsum.sources import Listed
from docsum.topics import Topology


@dataclass(frozen=True, slots=True)
class Announcer:
    """Implements `runs.Announcer`, and announces single events."""

    producer: KafkaProducer
    codec: EventCodec
    topology: Topology
    clock: Clock

    async def __call__(self, run: Run, listed: Sequence[Listed]) -> Sequence[datetime | DocsumError]:
        """All are handed over before the first is waited for; no task for each, which would take as long.

        What is everyone's trouble is met once: the rest of them is not tried.
        """
        topic, published_ms = self.topology.lane_topic(run.lane), to_ms(self.clock.now())
        sent: list[asyncio.Future[Coordinates] | DocsumError] = []
        for entry in listed:
            try:
                sent.append(
                    await self._submit(_event(entry, run_id=run.id, force=run.force), topic, published_ms)
                )
            except InvalidEvent as error:
                sent.append(error)
            except DocsumError as error:
                sent += [error] * (len(listed) - len(sent))
                break
        moment = from_ms(published_ms)
        return [each if isinstance(each, DocsumError) else await _acknowledged(each, moment) for each in sent]

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        """The event's id and where it is, once acknowledged. Raises InvalidEvent or BrokerUnavailable."""
        event = _event(listed, operation=operation, force=force)
        return event.event_id, await self._send(event, self.topology.documents, to_ms(self.clock.now()))

    async def _send(self, event: Event, topic: str, published_ms: int) -> Coordinates:
        return await (await self._submit(event, topic, published_ms))

    async def _submit(self, event: Event, topic: str, published_ms: int) -> asyncio.Future[Coordinates]:
        value = await self.codec.encode(event, topic)
        record = RecordCopy(topic, None, event.document_id.encode(), value, ())
        return await self.producer.submit(record, timestamp_ms=published_ms)


async def _acknowledged(record: asyncio.Future[Coordinates], moment: datetime) -> datetime | DocsumError:
    try:
        await record
    except DocsumError as error:
        return error
    return moment


def _event(
    listed: Listed, *, run_id: UUID | None = None, operation: Operation = Operation.UPSERT, force: bool
) -> Event:
    return new_event(
        listed.document_id,
        listed.uri,
        occurred_at=listed.occurred_at,
        source_version=listed.source_version,
        media_type=listed.media_type,
        size_bytes=listed.size_bytes,
        title=listed.title,
        run_id=run_id,
        operation=operation,
        force=force,
        attributes=listed.attributes,
    )
