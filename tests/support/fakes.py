"""Fakes of the ports, and builders with defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from docsum.models import (
    Coordinates,
    DeadLettered,
    Delivery,
    Document,
    DocumentReference,
    ExtractedText,
    Failure,
    Held,
    Lane,
    Outcome,
    Recipe,
    RecordCopy,
    Result,
    Retried,
    Summary,
    event_version,
    to_ms,
)
from docsum.ports import Later

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """Time that moves only when somebody sleeps or a test says so."""

    def __init__(self, now: datetime = START) -> None:
        self.start = self.moment = now

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return (self.moment - self.start).total_seconds() + 1.0

    def advance(self, by: timedelta) -> None:
        self.moment += by

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        await asyncio.sleep(0)


def delivery(
    offset: int = 0, *, topic: str = "docsum.documents", partition: int = 0, **fields: object
) -> Delivery:
    at = Coordinates(topic, partition, offset)
    values: dict[str, object] = {
        "at": at,
        "key": b"doc-1",
        "value": b"event",
        "headers": (),
        "timestamp_ms": to_ms(START),
        "origin": at,
        "origin_timestamp_ms": to_ms(START),
        **fields,
    }
    return Delivery(**values)  # type: ignore[arg-type]  # a builder: the dataclass checks nothing anyway


def reference(document_id: str = "doc-1", *, published_ms: int = 0, **fields: object) -> DocumentReference:
    occurred_at = fields.get("occurred_at", START)
    event_id = fields.get("event_id") or str(uuid4())
    assert isinstance(occurred_at, datetime)
    values: dict[str, object] = {
        "event_id": event_id,
        "document_id": document_id,
        "uri": f"file:///documents/{document_id}.txt",
        "occurred_at": occurred_at,
        "version": event_version(occurred_at, published_ms or to_ms(START), str(event_id)),
        "source_version": "v1",
        **fields,
    }
    return DocumentReference(**values)  # type: ignore[arg-type]  # as above


def summary(text: str = "A summary.", recipe: Recipe | None = None) -> Summary:
    return Summary(
        title="A title",
        summary=text,
        key_points=("a point",),
        language="en",
        document_type="letter",
        warnings=(),
        model="local-extractive-1",
        recipe=(recipe or Recipe("local-extractive-1")).id,
        cost=Decimal("0.01"),
        input_tokens=10,
        output_tokens=5,
    )


class FakeCodec:
    """Gives the reference that a test has prepared for a record, or raises what it has prepared."""

    def __init__(self) -> None:
        self.known: dict[bytes, DocumentReference | Exception] = {}

    async def decode(self, delivery: Delivery) -> DocumentReference:
        found = self.known[delivery.value or b""]
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class Scripted:
    """Raises the prepared errors one after the other, then works."""

    errors: list[Exception] = field(default_factory=list)
    calls: int = 0

    def step(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


class FakeFetcher(Scripted):
    async def fetch(self, reference: DocumentReference) -> Document:
        self.step()
        return Document(size=5, source_version=reference.source_version, content=b"hello")


class FakeExtractor(Scripted):
    async def extract(self, document: Document) -> ExtractedText:
        self.step()
        return ExtractedText("hello", "text/plain")


@dataclass
class FakeSummariser(Scripted):
    """Counts calls; `turn` is waited for before one is paid, `gate` after that, where they are set."""

    turn: asyncio.Event | None = None
    gate: asyncio.Event | None = None
    bought: int = 0
    on_their_way: Decimal = Decimal(0)  # US dollars
    texts: list[ExtractedText] = field(default_factory=list)

    async def summarise(
        self,
        reference: DocumentReference,
        text: ExtractedText,
        recipe: Recipe,
        lane: Lane,
        before_paying: Callable[[], Awaitable[None]],
        *,
        partition: int = 0,
    ) -> Summary:
        self.step()
        self.texts.append(text)
        if self.turn is not None:
            await self.turn.wait()
        await before_paying()
        self.bought += 1
        if self.gate is not None:
            await self.gate.wait()
        return summary(f"Summary of {reference.document_id}.", recipe)

    async def pending(self, reference: DocumentReference, partition: int) -> Later | None:
        return None

    def committed(self, run_id: UUID | None) -> Decimal:
        return self.on_their_way


class FakePublisher(Scripted):
    """Keeps what was published."""

    def __init__(self, errors: Sequence[Exception] = ()) -> None:
        super().__init__(list(errors))
        self.copies: list[RecordCopy] = []

    async def publish(self, copy: RecordCopy) -> Coordinates:
        self.step()
        self.copies.append(copy)
        return Coordinates(copy.topic, copy.partition or 0, len(self.copies) - 1)


class FakeCopies:
    """The shape of a copy without its headers."""

    def of(
        self, delivery: Delivery, reference: DocumentReference | None, outcome: Outcome
    ) -> RecordCopy | None:
        match outcome:
            case Retried(topic=topic):
                return RecordCopy(topic, delivery.at.partition, delivery.key, delivery.value, ())
            case DeadLettered():
                return RecordCopy("docsum.dlq", delivery.at.partition, delivery.key, delivery.value, ())
            case Held():
                return RecordCopy("docsum.held", delivery.at.partition, delivery.key, delivery.value, ())
            case _:
                return None


class FakeResults(Scripted):
    """Keeps what upstreams are to be told; the record's value is the outcome's state."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Result] = []

    async def of(self, delivery: Delivery, result: Result) -> RecordCopy:
        self.step()
        self.told.append(result)
        value = None if result.deleted else result.state.value.encode()
        return RecordCopy("docsum.summaries", None, result.document_id.encode(), value, ())


class FakeObserver:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.held: list[Failure] = []
        self.guards: list[Failure] = []

    def started(self, delivery: Delivery) -> None: ...

    def decoded(self, reference: DocumentReference) -> None: ...

    def finished(self, delivery: Delivery, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def holding(self, delivery: Delivery, failure: Failure, wait: timedelta) -> None:
        self.held.append(failure)

    def released(self, delivery: Delivery) -> None: ...

    def guarded(self, delivery: Delivery, failure: Failure) -> None:
        self.guards.append(failure)
