"""What the pipeline needs of the outside world. Each port has an in-memory form beside the real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from docsum.models import (
    EPOCH,
    Answer,
    AuditRow,
    Batch,
    BatchItem,
    Control,
    Coordinates,
    CostBy,
    Costs,
    Cursor,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterRow,
    Death,
    Delivery,
    DeliveryState,
    Document,
    DocumentCost,
    DocumentReference,
    ExtractedText,
    Failure,
    Known,
    Lane,
    OpenBatches,
    Outcome,
    Recipe,
    RecordCopy,
    Result,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    State,
    Summary,
    SummaryRow,
    Throughput,
    Token,
    Traces,
    WebhookDelivery,
    WorkerStatus,
)


class Codec(Protocol):
    """Record bytes to a checked reference."""

    async def decode(self, delivery: Delivery) -> DocumentReference:
        """Raises InvalidEvent, SchemaUnknown or RegistryUnavailable."""


class Fetcher(Protocol):
    """Brings a document's bytes here, within limits."""

    async def fetch(self, reference: DocumentReference) -> Document:
        """Raises a FetchError. The caller discards the document."""


class Extractor(Protocol):
    """Takes the text out of a document, hostile or not."""

    async def extract(self, document: Document) -> ExtractedText:
        """Raises an ExtractError."""


class Later(Exception):
    """The answer is not there yet: whoever gets this lets go of the text, and asks again `then`.

    Without answers to wait for nobody asks again here: the next owner of the partition does.
    """

    def __init__(self, answers: Sequence[asyncio.Future[None]]) -> None:
        super().__init__(f"{len(answers)} answers are on their way")
        self.answers = answers

    def then(self, go_on: Callable[[], None]) -> None:
        """Calls it once, when all of them are there."""
        left = len(self.answers)

        def one_less(_: asyncio.Future[None]) -> None:
            nonlocal left
            left -= 1
            if not left:
                go_on()

        for answer in self.answers:
            answer.add_done_callback(one_less)


class Summariser(Protocol):
    """Asks the model. Every paid answer is handed to the store before anything else happens with it."""

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
        """Awaits `before_paying` right before each request is sent: what it raises stops that, and is raised.

        A Later of its own, without answers, stops what was not sent and is raised when the rest is answered.
        `partition` is the delivery's own. Raises a ModelError or StoreError, in the batch lane Later.
        """

    async def pending(self, reference: DocumentReference, partition: int) -> Later | None:
        """What was ordered for this event before; None where nothing is, as always in the live lane."""

    def committed(self, run_id: UUID | None) -> Decimal:
        """US dollars, estimated, of what was ordered and is not answered yet; None: for everything."""


class Ledger(Protocol):
    """What was paid for."""

    @property
    def unavailable_since(self) -> datetime | None:
        """Since when nothing can be stored; None while all is well."""

    async def answers(self, fingerprint: str) -> Sequence[Answer]:
        """Every paid answer with this fingerprint, oldest first."""

    def keep(self, answer: Answer) -> None:
        """Hand over a paid answer without waiting: it is durable no later than any write that follows."""


class BatchStore(Protocol):
    """What the batch lane asks of the tables."""

    async def add_batch(self, batch: Batch, items: Sequence[BatchItem]) -> None:
        """Write down what is about to be bought: the items, then the batch."""

    async def save_batch(self, batch: Batch) -> None:
        """Upsert; a later state always shows over an earlier one."""

    async def open_batches(
        self, partitions: Collection[int], known: Collection[str] = ()
    ) -> Sequence[tuple[Batch, Sequence[BatchItem]]]:
        """Those of these partitions that are not done with, oldest first, without the known intents."""

    async def provider_batches(self, since: datetime) -> Mapping[str, str]:
        """The provider's ids of the batches that were begun since then, and our ids of them."""

    async def run(self, run_id: UUID) -> Run | None:
        """What was asked, None for an unknown run."""

    async def write(self, rows: Rows) -> None:
        """Returns when durable, in the order of `Rows`; waits while the store is down. Raises RowRefused."""


class SummaryStore(Ledger, BatchStore, Protocol):
    """The tables. A write returns when its rows are durable; look-ups of many callers share a query."""

    async def known(self, document_id: str) -> Known | None:
        """The newest stored version of a document, tombstones included."""

    async def summary(self, document_id: str) -> SummaryRow | None:
        """The newest stored summary, None when there is none or it was deleted."""

    async def save_run(self, run: Run) -> None:
        """Upsert, newest `updated_at` wins."""

    async def runs(self, limit: int = 50) -> Sequence[Run]:
        """Newest first."""

    async def control(self, target: UUID, *, fresh: bool = False) -> Control:
        """What is wanted of a run, of all work or of the live events; at most 2 seconds old, `fresh`: now."""

    async def controls(self) -> Sequence[Control]:
        """Every wish that was ever uttered, the newest of each target; at most 2 seconds old."""

    async def save_control(self, control: Control) -> None:
        """Upsert, newest `changed_at` wins."""

    async def spent(self, run_id: UUID | None, since: datetime = EPOCH) -> Decimal:
        """US dollars of a run, or of everything, from that moment on; at most 2 seconds old."""

    async def paid_for(self, document_id: str, run_id: UUID | None = None) -> Decimal:
        """US dollars for one document, in one run or ever."""

    async def cancel_rest(self, run_id: UUID, reason: str, at: datetime) -> None:
        """Every document of the run that has no end yet is cancelled, at once."""

    async def progress(self, run_id: UUID) -> RunProgress:
        """Exact counts at this moment."""

    async def run_documents(self, run_id: UUID, document_ids: Sequence[str]) -> frozenset[str]:
        """Which of these ids have a row in the run."""

    def run_rows(self, run_id: UUID) -> AsyncIterator[tuple[RunDocumentRow, SummaryRow | None]]:
        """Every document of a run with its state, and its stored summary if any; streamed."""

    async def document_runs(self, document_id: str) -> Sequence[RunDocumentRow]:
        """The document's state in every run it was part of, newest first."""

    async def costs(self, by: CostBy, since: datetime | None = None, run_id: UUID | None = None) -> Costs:
        """The ledger, counted up by the store; of all time and all runs unless told otherwise."""

    async def traces(self, document_id: str) -> Traces:
        """What is stored of a document's content."""

    async def purge(self, document_id: str, version: int) -> None:
        """Take the content of a document away, of all its versions before this one: its tombstone's.

        Returns when it is gone from the tables. Counts, tokens and costs stay. Safe to run again.
        """

    async def dead_letter_groups(self, meant: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        """By reason and state, the largest first."""

    async def newest_dead_letters(self, meant: DeadLetterFilter, limit: int) -> Sequence[DeadLetterRow]:
        """The newest first."""

    async def dead_letters(
        self, meant: DeadLetterFilter, after: Coordinates | None, limit: int
    ) -> Sequence[DeadLetterRow]:
        """A page, in the order of the dead-letter topic."""

    async def audit(self, row: AuditRow) -> None:
        """Write down what a person did."""

    async def audits(self, limit: int = 50) -> Sequence[AuditRow]:
        """The newest first."""

    async def beat(self, status: WorkerStatus) -> None:
        """Upsert a worker's heartbeat."""

    async def workers(self) -> Sequence[WorkerStatus]:
        """The newest heartbeat of every worker."""

    async def batches(self, run_id: UUID | None = None, limit: int = 50) -> Sequence[Batch]:
        """The newest first; those with a request of that run."""

    async def open_batch_counts(self) -> Sequence[OpenBatches]:
        """By state, those without any left out."""

    async def bury(self, deaths: Sequence[Death]) -> None:
        """Write down what was at work in workers that ended without a word; each death counts once."""

    async def deaths(self, since: datetime) -> Sequence[Death]:
        """Those of that time."""


class ServiceStore(SummaryStore, Protocol):
    """What the API asks of the tables besides."""

    async def runs_before(self, before: tuple[datetime, UUID] | None, limit: int) -> Sequence[Run]:
        """The newest first; `before`: creation and id of the last one of the page before."""

    async def unpublished(self, publisher: str) -> Sequence[Run]:
        """Runs of that publisher that are not announced to their end, without those that it has given up."""

    async def runs_to_tell(self) -> Sequence[Run]:
        """Runs with a webhook that has not been told that they are finished."""

    async def documents_of(
        self,
        run_id: UUID,
        states: Collection[State] = (),
        *,
        text: str = "",
        after: str = "",
        limit: int = 100,
    ) -> Sequence[RunDocumentRow]:
        """A page of a run's documents, by id, in these states (all without), with `text` in their id."""

    async def summaries_with(self, text: str, after: str, limit: int) -> Sequence[SummaryRow]:
        """A page of the newest summaries, by document id, with `text` in id or title."""

    async def throughput(self, run_id: UUID, since: datetime, step: timedelta) -> Sequence[Throughput]:
        """How many documents had their end in each stretch since then; those without any are left out."""

    async def expensive(self, run_id: UUID, limit: int, *, slowest: bool) -> Sequence[DocumentCost]:
        """The dearest documents of a run, or those whose calls took longest."""

    async def tokens(self) -> Sequence[Token]:
        """All that were ever made, by name; at most 2 seconds old."""

    async def save_token(self, token: Token) -> None:
        """Upsert by name, newest `changed_at` wins."""

    async def webhook_deliveries(
        self, run_id: UUID | None = None, states: Collection[DeliveryState] = (), limit: int = 100
    ) -> Sequence[WebhookDelivery]:
        """Messages in these states (all without), the newest first."""

    async def webhooks_due(self, now: datetime, limit: int, to_one_host: int) -> Sequence[WebhookDelivery]:
        """Pending messages that may be sent, the longest due first; to one host at most so many."""

    async def save_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        """Upsert, newest `changed_at` wins."""


class CursorStore(Protocol):
    """What `docsum ingest` remembers of the sources that it has announced."""

    async def cursors(self, source: str, document_ids: Sequence[str]) -> Mapping[str, Cursor]:
        """The rows of these documents, those that are gone included."""

    async def save_cursors(self, rows: Sequence[Cursor]) -> None:
        """Upsert by source and document, the latest scan wins; returns when durable."""

    async def count_cursors(self, source: str, before: int | None = None, *, within: str = "") -> int:
        """Documents that are not gone; `before`: no scan from this one on has seen them.

        `within`: only the document of that id, and those whose ids go on with a slash after it.
        """

    async def cursors_before(
        self, source: str, before: int, after: str, limit: int, *, within: str = ""
    ) -> Sequence[Cursor]:
        """A page of those, by document id."""


class Publisher(Protocol):
    """Writes copies of records."""

    async def publish(self, copy: RecordCopy) -> Coordinates:
        """Returns when the broker has acknowledged. Raises BrokerUnavailable."""


class Copies(Protocol):
    """What goes back to Kafka for an outcome: the same key and bytes, our own headers set."""

    def of(
        self, delivery: Delivery, reference: DocumentReference | None, outcome: Outcome
    ) -> RecordCopy | None:
        """None where the outcome needs no copy."""


class Results(Protocol):
    """What goes to Kafka for upstreams, once an outcome is durable."""

    async def of(self, delivery: Delivery, result: Result) -> RecordCopy:
        """Its record. Raises SchemaUnknown or RegistryUnavailable."""


class Clock(Protocol):
    """Time, and waiting for it."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real time: too small for a module of its own."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Observer(Protocol):
    """Is told what happens, for metrics, logs and heartbeats. Must not raise."""

    def started(self, delivery: Delivery) -> None: ...

    def decoded(self, reference: DocumentReference) -> None:
        """The delivery that was started in this task is of this document."""

    def finished(self, delivery: Delivery, outcome: Outcome) -> None: ...

    def holding(self, delivery: Delivery, failure: Failure, wait: timedelta) -> None:
        """The delivery stays at its step and tries again after `wait`."""

    def released(self, delivery: Delivery) -> None:
        """The step that was held has worked."""

    def guarded(self, delivery: Delivery, failure: Failure) -> None:
        """In place of this failure the delivery's run, or the live events, are paused."""
