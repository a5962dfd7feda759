"""The path of one event, from record to durable outcome. Read this first.

    decode -> known? -> fetch -> extract -> summarise -> store          (Stored)
                |                                                       (Skipped: nothing was bought)
                +-- a failure that is this document's own ------------- (Retried, DeadLettered)

Every delivery leaves `process` with exactly one Outcome whose effects are durable: the copy acknowledged by
the broker, then the rows written. Whatever is everyone's trouble (the provider, the store, the broker) is
waited out at the step where it was met and spends no attempt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from random import uniform
from typing import TypeVar

from docsum.errors import Disposition, DocsumError, classify, row_of
from docsum.models import (
    Coordinates,
    DeadLettered,
    DeadLetterRow,
    Delivery,
    DocumentReference,
    Failure,
    FailureRow,
    Known,
    Operation,
    Outcome,
    Recipe,
    Retried,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    Skipped,
    SkipReason,
    State,
    Stored,
    Summary,
    SummaryRow,
    from_ms,
)
from docsum.ports import (
    Clock,
    Codec,
    Copies,
    Extractor,
    Fetcher,
    Observer,
    Publisher,
    Summariser,
    SummaryStore,
)
from docsum.retry import DeadLetter, decide
from docsum.topics import Topology

T = TypeVar("T")

#: A provider's own trouble is waited out this long before it counts as this document's.
PATIENCE = timedelta(seconds=60)
#: No hold with a document's text in memory lasts longer; after it the document is read again.
TEXT_PATIENCE = timedelta(seconds=60)
#: Waits between two tries of a held step grow from the first to the second.
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=0.5), timedelta(seconds=30)
#: Texts and small documents in memory at once in one worker; a larger single one is admitted alone.
TEXT_BYTES = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Trip:
    """One delivery on its way: what is known of it so far. The only mutable thing in the pipeline."""

    delivery: Delivery
    stage: str = "decode"
    reference: DocumentReference | None = None
    paid: bool = False  # a model call was made for it: on a rebalance it may finish
    held: Failure | None = None
    faltering_since: float | None = None  # monotonic; the first of a row of HOLD failures

    @property
    def may_let_go(self) -> bool:
        """True while giving it up costs no money and undoes no effect: another owner starts it afresh."""
        return not self.paid and self.stage not in ("publish", "store")


def judge(reference: DocumentReference, known: Known | None, recipe: Recipe) -> Stored | Skipped | None:
    """What the store's knowledge says of an event before anything is fetched; None: it must be worked.

    Pure, and the same for any order and any number of deliveries. `Skipped(UNCHANGED)` comes without the
    stored summary: the caller adds it.
    """
    mine = reference.version
    if known is not None and known.version > mine:
        return Skipped(SkipReason.SUPERSEDED)
    same = known is not None and known.version == mine
    if reference.operation is Operation.DELETE:
        return Skipped(SkipReason.DELETED, redelivered=same)
    if known is None or (known.deleted and not same):
        return None
    if same:
        skipped = known.state is State.SKIPPED
        return (
            Skipped(SkipReason.UNCHANGED, redelivered=True) if skipped else Stored(None, "", redelivered=True)
        )
    unchanged = bool(reference.source_version) and reference.source_version == known.source_version
    if unchanged and known.recipe == recipe.id and not reference.force:
        return Skipped(SkipReason.UNCHANGED)
    return None


class Pipeline:
    """Takes deliveries to their outcomes. Values are handed in; nothing here knows a library."""

    def __init__(
        self,
        *,
        codec: Codec,
        fetcher: Fetcher,
        extractor: Extractor,
        summariser: Summariser,
        store: SummaryStore,
        publisher: Publisher,
        observer: Observer,
        clock: Clock,
        topology: Topology,
        recipe: Recipe,
        copies: Copies,
        worker: str,
    ) -> None:
        self.codec = codec
        self.fetcher = fetcher
        self.extractor = extractor
        self.summariser = summariser
        self.store = store
        self.publisher = publisher
        self.observer = observer
        self.clock = clock
        self.topology = topology
        self.recipe = recipe  # of events without a run
        self.copies = copies
        self.worker = worker
        self._exclusion = Exclusion()
        self._texts = ByteBudget(TEXT_BYTES)

    async def process(self, trip: Trip) -> Outcome:
        """The outcome of a delivery, durable. Only cancellation leaves it unfinished."""
        self.observer.started(trip.delivery)
        try:
            trip.reference = await self._patiently(trip, "decode", self.codec.decode, trip.delivery)
        except Exception as error:
            outcome = await self._settle(trip, classify(error, trip.stage))
        else:
            async with self._exclusion.of(trip.reference.document_id):
                outcome = await self._work(trip, trip.reference)
        self.observer.finished(trip.delivery, outcome)
        return outcome

    async def _work(self, trip: Trip, reference: DocumentReference) -> Outcome:
        try:
            run = await self._run_of(trip, reference)
            recipe = run.recipe if run else self.recipe
            verdict = await self._verdict(trip, reference, recipe, run)
            if verdict is None:
                verdict = await self._patiently(
                    trip, "fetch", self._read_and_summarise, trip, reference, recipe
                )
            return await self._finish(trip, verdict)
        except Exception as error:
            return await self._settle(trip, classify(error, trip.stage))

    async def _run_of(self, trip: Trip, reference: DocumentReference) -> Run | None:
        if reference.run_id is None:
            return None
        return await self._patiently(trip, "lookup", self.store.run, reference.run_id)

    async def _verdict(
        self, trip: Trip, reference: DocumentReference, recipe: Recipe, run: Run | None
    ) -> Stored | Skipped | None:
        if run is not None and run.state is RunState.CANCELLED:
            return Skipped(SkipReason.CANCELLED)
        known = await self._patiently(trip, "lookup", self.store.known, reference.document_id)
        verdict = judge(reference, known, recipe)
        if (
            isinstance(verdict, Skipped)
            and verdict.reason is SkipReason.UNCHANGED
            and not verdict.redelivered
        ):
            stored = await self._patiently(trip, "lookup", self.store.summary, reference.document_id)
            return replace(verdict, summary=stored.summary) if stored else None
        return verdict

    async def _read_and_summarise(self, trip: Trip, reference: DocumentReference, recipe: Recipe) -> Stored:
        """Fetch, extract, ask. Raises a model's trouble that lasts: no text is held meanwhile."""
        trip.stage = "fetch"
        document = await self.fetcher.fetch(reference)
        try:
            async with self._texts.room(document.size):
                trip.stage = "extract"
                text = await self.extractor.extract(document)
                document.discard()
                lane = self.topology.lane_of(trip.delivery.origin.topic)

                def paid() -> None:
                    trip.paid = True

                summary = await self._patiently(
                    trip,
                    "summarise",
                    self.summariser.summarise,
                    reference,
                    text,
                    recipe,
                    lane,
                    paid,
                    at_most=TEXT_PATIENCE,
                )
        finally:
            document.discard()
        return Stored(summary, document.source_version or reference.source_version)

    # -- the end of every delivery ----------------------------------------------------------------------

    async def _settle(self, trip: Trip, failure: Failure) -> Outcome:
        """A failure's outcome: the next retry topic, or the dead-letter topic."""
        match decide(failure, trip.delivery, self.topology, self.clock.now()):
            case DeadLetter():
                return await self._finish(trip, DeadLettered(failure))
            case route:
                return await self._finish(trip, Retried(route.topic, route.not_before, failure))

    async def _finish(self, trip: Trip, outcome: Outcome) -> Outcome:
        """The one end: the copy acknowledged, then the rows durable. Waits as long as it takes.

        Raises RowRefused for a summary that the store refuses: that is this document's failure.
        """
        copy = self.copies.of(trip.delivery, trip.reference, outcome)
        at = None
        if copy is not None:
            at = await self._patiently(trip, "publish", self.publisher.publish, copy, forever=True)
        rows = self._rows(trip, outcome, at)
        forever = not isinstance(outcome, Stored)
        await self._patiently(trip, "store", self.store.write, rows, forever=forever)
        return outcome

    def _rows(self, trip: Trip, outcome: Outcome, at: Coordinates | None) -> Rows:
        match outcome:
            case Stored():
                fresh = () if outcome.redelivered else (self._summary_row(trip, outcome),)
                return Rows(summaries=fresh, run_documents=self._run_row(trip, State.DONE))
            case Skipped():
                carried = outcome.reason in (SkipReason.UNCHANGED, SkipReason.DELETED)
                fresh = (self._summary_row(trip, outcome),) if carried and not outcome.redelivered else ()
                state = State.CANCELLED if outcome.reason is SkipReason.CANCELLED else State.SKIPPED
                return Rows(summaries=fresh, run_documents=self._run_row(trip, state, outcome.reason))
            case Retried(failure=failure):
                row = self._run_row(trip, State.RETRYING, failure.reason, failure.message)
                return Rows(run_documents=row, failures=(self._failure_row(trip, failure, "retry"),))
            case DeadLettered(failure=failure):
                row = self._run_row(trip, State.DEAD_LETTERED, failure.reason, failure.message)
                return Rows(
                    run_documents=row,
                    dead_letters=(self._dead_letter_row(trip, failure, at),) if at else (),
                    failures=(self._failure_row(trip, failure, "dead_letter"),),
                )

    def _summary_row(self, trip: Trip, outcome: Stored | Skipped) -> SummaryRow:
        reference = trip.reference
        assert reference is not None  # an undecoded event has no summary
        fresh = isinstance(outcome, Stored)
        summary: Summary | None = outcome.summary
        if summary is not None and not fresh:
            summary = replace(summary, cost=Decimal(0), input_tokens=0, output_tokens=0, reused=True)
        return SummaryRow(
            document_id=reference.document_id,
            version=reference.version,
            state=State.DONE if fresh else State.SKIPPED,
            source_version=outcome.source_version
            if isinstance(outcome, Stored)
            else reference.source_version,
            uri=reference.uri,
            summary=summary,
            attributes=reference.attributes,
            run_id=reference.run_id,
            origin=trip.delivery.origin,
            occurred_at=reference.occurred_at,
            written_at=self.clock.now(),
        )

    def _run_row(
        self, trip: Trip, state: State, reason: str = "", message: str = ""
    ) -> tuple[RunDocumentRow, ...]:
        reference = trip.reference
        if reference is None or reference.run_id is None:
            return ()
        now = self.clock.now()
        return (
            RunDocumentRow(
                reference.run_id,
                reference.document_id,
                state,
                reference.uri,
                trip.delivery.attempt,
                str(reason),
                message,
                now,
            ),
        )

    def _failure_row(self, trip: Trip, failure: Failure, disposition: str) -> FailureRow:
        reference = trip.reference
        return FailureRow(
            failed_at=self.clock.now(),
            document_id=reference.document_id if reference else "",
            run_id=reference.run_id if reference else None,
            attempt=trip.delivery.attempt,
            reason=failure.reason,
            stage=failure.stage,
            disposition=disposition,
            message=failure.message,
            worker=self.worker,
        )

    def _dead_letter_row(self, trip: Trip, failure: Failure, at: Coordinates) -> DeadLetterRow:
        reference, delivery, now = trip.reference, trip.delivery, self.clock.now()
        return DeadLetterRow(
            origin=delivery.origin,
            dead_letter=at,
            document_id=reference.document_id if reference else "",
            document_version=reference.version if reference else 0,
            run_id=reference.run_id if reference else None,
            reason=failure.reason,
            message=failure.message,
            stage=failure.stage,
            attempts=delivery.attempt,
            first_failed_at=from_ms(delivery.first_failed_ms) if delivery.first_failed_ms else now,
            failed_at=now,
            replay_count=delivery.replay_count,
        )

    # -- patience ---------------------------------------------------------------------------------------

    async def _patiently(
        self,
        trip: Trip,
        stage: str,
        step: Callable[..., Awaitable[T]],
        *arguments: object,
        at_most: timedelta | None = None,
        forever: bool = False,
    ) -> T:
        """Run a step, and again while what fails is everyone's trouble; `forever`: whatever fails.

        Raises what is this document's own, a HOLD that has lasted PATIENCE, and, after `at_most`, anything.
        """
        started, wait = self.clock.monotonic(), FIRST_WAIT
        while True:
            trip.stage = stage
            try:
                result = await step(*arguments)
            except Exception as error:
                if not (forever or self._worth_waiting(trip, error)):
                    raise
                if stage == "summarise":
                    trip.paid = False  # that call is over; while it waits for the next it may be let go
                if at_most and self.clock.monotonic() - started > at_most.total_seconds():
                    raise
                failure = classify(error, trip.stage)
                asked = error.retry_after if isinstance(error, DocsumError) else None
            else:
                self._released(trip)
                return result
            pause = asked or wait * uniform(0.75, 1.0)  # noqa: S311  (jitter needs no secrecy)
            trip.held = failure
            self.observer.holding(trip.delivery, failure, pause)
            await self.clock.sleep(pause.total_seconds())
            wait = min(wait * 2, LONGEST_WAIT)

    def _worth_waiting(self, trip: Trip, error: Exception) -> bool:
        match row_of(error).disposition:
            case Disposition.PAUSE | Disposition.STOP:
                return True
            case Disposition.HOLD:
                now = self.clock.monotonic()
                trip.faltering_since = trip.faltering_since or now
                return now - trip.faltering_since < PATIENCE.total_seconds()
            case _:
                return False

    def _released(self, trip: Trip) -> None:
        if trip.held is not None:
            trip.held = None
            trip.faltering_since = None
            self.observer.released(trip.delivery)


class Exclusion:
    """One delivery of a document at a time in this worker; the others wait in the order they came."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, document_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(document_id) or (asyncio.Lock(), 0)
        self._locks[document_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(document_id)
            if users > 1:
                self._locks[document_id] = (lock, users - 1)


class ByteBudget:
    """Room for so many bytes at once, first come first served; more than all of it is admitted alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        wanted = min(size, self._capacity)
        if self._waiting or self._free < wanted:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, turn))
            try:
                await turn  # its bytes are taken when it is granted
            except asyncio.CancelledError:
                granted = turn.done() and not turn.cancelled()
                self._give_back(wanted if granted else 0)  # who stood behind may fit now
                raise
        else:
            self._free -= wanted
        try:
            yield
        finally:
            self._give_back(wanted)

    def _give_back(self, size: int) -> None:
        self._free += size
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= wanted
                turn.set_result(None)
