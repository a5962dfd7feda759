"""The path of one event, from record to durable outcome. Read this first.

    decode -> known? -> fetch -> extract -> summarise -> store          (Stored)
                |                                                       (Skipped: nothing was bought)
                +-- its run is paused, or over its budget ------------- (Held)
                +-- a failure that is this document's own ------------- (Retried, DeadLettered)

A delivery leaves `process` with exactly one Outcome whose effects are durable: the copy acknowledged by the
broker, then the rows written, then the result acknowledged, where upstreams are told of one. Or it leaves as
Deferred, without an end yet: it is worked anew when a batch has brought its answer or when its retry in the
batch lane is due, or by the next owner of its partition where that was taken away in the middle of it.
Whatever is everyone's trouble (the provider, the store, the broker) is waited out at the step where it was
met and spends no attempt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from random import uniform
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from docsum.breakers import Breaker, Breakers
from docsum.crashes import CrashGuard
from docsum.errors import (
    DailyBudgetSpent,
    Disposition,
    DocsumError,
    ModelRateLimited,
    Scanned,
    SourceDown,
    SourceUnavailable,
    StoreError,
    WorkPaused,
    classify,
    row_of,
)
from docsum.flood import SUSPICIOUS, FloodGuard
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Control,
    ControlState,
    Coordinates,
    DeadLettered,
    DeadLetterRow,
    Delivery,
    Document,
    DocumentReference,
    ExtractedText,
    Failure,
    FailureRow,
    Held,
    Known,
    Lane,
    Operation,
    Outcome,
    Recipe,
    RecordCopy,
    Retried,
    Rows,
    Run,
    RunDocumentRow,
    Skipped,
    SkipReason,
    State,
    Stored,
    Summary,
    SummaryRow,
    from_ms,
    midnight,
    to_ms,
)
from docsum.ports import (
    Clock,
    Codec,
    Copies,
    Extractor,
    Fetcher,
    Later,
    Observer,
    Publisher,
    Results,
    Summariser,
    SummaryStore,
)
from docsum.results import result_of
from docsum.retry import DeadLetter, decide
from docsum.topics import Topology

T = TypeVar("T")
#: Failures at the model that are no document's own.
_SHARED = (Disposition.HOLD, Disposition.PAUSE, Disposition.STOP)

#: A provider's own trouble is waited out this long before it counts as this document's.
PATIENCE = timedelta(seconds=60)
#: A pause is looked at again this often.
LOOK_AGAIN = timedelta(seconds=2)
#: After so many other documents have got through, a fault is this document's own.
OTHERS = 3
#: No hold with a document's text in memory lasts longer; after it the document is read again.
TEXT_PATIENCE = timedelta(seconds=60)
#: What one request of the Messages API takes: 32 MB in base64, 100 pages with the smaller models.
MOST_SCANNED_BYTES, MOST_SCANNED_PAGES = 22_000_000, 100
#: Waits between two tries of a held step grow from the first to the second.
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=0.5), timedelta(seconds=30)
#: Texts and small documents in memory at once in one worker; a larger single one is admitted alone.
TEXT_BYTES = 64 * 1024 * 1024
#: So the reason of a pause begins that no person wished, but a run's budget.
_OVER_BUDGET = "Its budget of $"


@dataclass(slots=True, eq=False)
class Trip:
    """One delivery on its way: what is known of it so far.

    It is the delivery's own; breakers, the flood guard, turns and the room for texts are all deliveries'.
    """

    delivery: Delivery
    ordered: bool = False  # it was set aside and comes back, perhaps for an answer that is paid for
    stage: str = "decode"
    reference: DocumentReference | None = None
    run: Run | None = None
    control: Control | None = None  # its run's or the live events', as it was when the delivery was looked at
    paid: bool = False  # a model call was made for it: on a rebalance it may finish
    leaving: bool = False  # its partition is taken away: no more calls are made for it
    held: Failure | None = None
    faltering: tuple[float, int] | None = None  # first of a row of HOLD failures: when, at which success

    @property
    def document_id(self) -> str:
        return self.reference.document_id if self.reference else ""

    @property
    def may_let_go(self) -> bool:
        """True while giving it up costs no money and undoes no effect: another owner starts it afresh."""
        return not self.paid and self.stage not in ("publish", "store")


@dataclass(frozen=True, slots=True)
class Deferred:
    """No end yet: the delivery is to be worked again, as it is here, when what it waits for is there."""

    delivery: Delivery
    later: Later


class _Unwanted(Exception):
    """What was about to be bought is not wanted any more, or not now: the delivery is looked at afresh."""


def source_of(uri: str) -> str | None:
    """What may be out of order as a whole: the host or bucket of an address; None for files."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc and parts.scheme != "file" else None


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
        max_age: timedelta = timedelta(hours=24),
        daily_budget: Decimal | None = None,
        crashes: CrashGuard | None = None,
        results: Results | None = None,
    ) -> None:
        """`max_age`: how long a document waits for a source that is out of order; the budget: US dollars."""
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
        self.max_age = max_age
        self.daily_budget = daily_budget
        self.breakers = Breakers(clock)
        self._crashes = crashes or CrashGuard()
        self._results = results  # None: upstreams are told nothing
        self._flood = FloodGuard()
        self._exclusion = Exclusion()
        self._texts = ByteBudget(TEXT_BYTES)

    async def process(self, trip: Trip) -> Outcome | Deferred:
        """The outcome of a delivery, durable; Deferred while a batch is to bring its answer.

        Only cancellation leaves it without either.
        """
        self.observer.started(trip.delivery)
        try:
            trip.reference = await self._patiently(trip, "decode", self._decode, trip.delivery)
        except Exception as error:
            outcome = await self._settle(trip, classify(error, trip.stage))
        else:
            self.observer.decoded(trip.reference)
            trip.stage = "turn"
            async with self._exclusion.of(trip.reference.document_id):
                outcome = await self._work(trip, trip.reference)
        if not isinstance(outcome, Deferred):
            self.observer.finished(trip.delivery, outcome)
        return outcome

    async def _decode(self, delivery: Delivery) -> DocumentReference:
        async with self._crashes.step("decode", delivery.at):
            return await self.codec.decode(delivery)

    async def _work(self, trip: Trip, reference: DocumentReference) -> Outcome | Deferred:
        while True:
            with suppress(_Unwanted):
                return await self._once(trip, reference)
            trip.paid = trip.ordered = False

    async def _once(self, trip: Trip, reference: DocumentReference) -> Outcome | Deferred:
        """Raises _Unwanted where it is to be looked at afresh."""
        try:
            return await self._finish(trip, await self._outcome(trip, reference))
        except _Unwanted:
            raise
        except Later as later:
            # A fresh one: the traceback of this one holds the text.
            return Deferred(trip.delivery, Later(later.answers))
        except Exception as error:
            failure = classify(error, trip.stage)
        return await self._settle(trip, failure)  # may take hours: the error and what it holds are gone

    async def _outcome(self, trip: Trip, reference: DocumentReference) -> Outcome:
        await self._patiently(trip, "admit", self._admit, reference, trip.ordered)
        run = trip.run = await self._run_of(trip, reference)
        trip.control = await self._patiently(trip, "lookup", self._control_of, run)
        trip.stage = "turn"
        if later := await self.summariser.pending(reference, trip.delivery.at.partition):
            trip.ordered = True
        if run is not None:
            reason = await self._patiently(trip, "lookup", self._held_back, run, trip.ordered)
            if reason:
                return Held(reason)
        recipe = run.recipe if run else self.recipe
        verdict = await self._verdict(trip, reference, recipe, run)
        if verdict is not None:
            return verdict
        if later:
            raise later
        model = self.breakers.of(f"model {recipe.model}")
        return await self._patiently(
            trip, "fetch", self._read_and_summarise, trip, reference, recipe, model, breaker=model
        )

    async def _run_of(self, trip: Trip, reference: DocumentReference) -> Run | None:
        if reference.run_id is None:
            return None
        return await self._patiently(trip, "lookup", self.store.run, reference.run_id)

    async def _control_of(self, run: Run | None) -> Control:
        if run is None:
            return await self.store.control(LIVE_EVENTS)
        return run.control or Control(run.id)

    async def _admit(self, reference: DocumentReference, ordered: bool = False) -> None:
        """Raises WorkPaused or DailyBudgetSpent while nothing may start.

        `ordered`: what it waited for was within the budget, so that no budget is in its way.
        """
        everything = await self.store.control(ALL_WORK)
        live = await self.store.control(LIVE_EVENTS) if reference.run_id is None else everything
        for control in (everything, live):
            if control.state is ControlState.PAUSED:
                raise WorkPaused(control.reason, retry_after=LOOK_AGAIN)
        if self.daily_budget is not None and not ordered:
            now = self.clock.now()
            granted = everything.budget if everything.changed_at >= midnight(now) else None
            budget = max(self.daily_budget, granted or self.daily_budget)
            spent = await self.store.spent(None, midnight(now))
            committed = self.summariser.committed(None)
            if spent + committed >= budget:
                more = f", about ${committed:.2f} are on their way" if committed else ""
                sentence = (
                    f"${spent:.2f} are spent today{more}, DOCSUM_BUDGET__DAILY_USD allows ${budget:.2f}."
                )
                raise DailyBudgetSpent(sentence, retry_after=LOOK_AGAIN)

    async def _refuse_unwanted(self, reference: DocumentReference) -> None:
        """Right before a call: much may have been asked for while the delivery waited for its turn."""
        try:
            await self._admit(reference)
        except (WorkPaused, DailyBudgetSpent):
            raise _Unwanted from None
        run = await self.store.run(reference.run_id) if reference.run_id else None
        if run and (run.wanted is ControlState.CANCELLED or await self._held_back(run)):
            raise _Unwanted

    async def still_wants(self, run_id: UUID | None) -> bool:
        """Whether what was ordered for a run, or for live events, may be bought now.

        A budget is no reason not to: what was ordered was within it.
        """
        target = await self.store.run(run_id) if run_id else None
        control = target.control if target else await self.store.control(LIVE_EVENTS)
        if (await self.store.control(ALL_WORK)).state is ControlState.PAUSED:
            return False
        if control is None or control.state is ControlState.RUNNING:
            return True
        return (
            control.state is ControlState.PAUSED
            and run_id is not None
            and control.budget is not None
            and await self.store.spent(run_id) + self.summariser.committed(run_id) >= control.budget
        )

    async def _held_back(self, run: Run, ordered: bool = False) -> str:
        """Why the deliveries of a run rest; empty where they go on. `ordered`: as for `_admit`.

        Raises _Unwanted where something else has been asked for meanwhile.
        """
        control = run.control
        if control is None or control.state is ControlState.CANCELLED:
            return ""
        if control.state is ControlState.PAUSED:
            return "" if ordered and control.reason.startswith(_OVER_BUDGET) else control.reason
        if control.budget is None or ordered:
            return ""
        spent, committed = await self.store.spent(run.id), self.summariser.committed(run.id)
        if spent + committed < control.budget:
            return ""
        more = f", and about ${committed:.4f} are on their way" if committed else ""
        reason = f"{_OVER_BUDGET}{control.budget} is spent: ${spent:.4f}{more}."
        if not await self._pause(control, reason):
            raise _Unwanted
        return reason

    async def _pause(self, judged: Control, reason: str) -> bool:
        """False, and nothing is written, where somebody has asked for something else since."""
        now = await self.store.control(judged.target, fresh=True)
        if now.changed_at > judged.changed_at:
            return False
        at = max(self.clock.now(), judged.changed_at + timedelta(milliseconds=1))  # whatever the clocks say
        await self.store.save_control(
            replace(judged, state=ControlState.PAUSED, reason=reason, changed_at=at)
        )
        return True

    async def _verdict(
        self, trip: Trip, reference: DocumentReference, recipe: Recipe, run: Run | None
    ) -> Stored | Skipped | None:
        if run is not None and run.wanted is ControlState.CANCELLED:
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

    async def _read_and_summarise(
        self, trip: Trip, reference: DocumentReference, recipe: Recipe, model: Breaker
    ) -> Stored:
        """Fetch, extract, ask. Raises a model's trouble that lasts: no text is held meanwhile."""
        was_open = model.is_open
        probe = await model.turn(partial(self._held, trip))
        if was_open:
            self._released(trip)
        try:
            return await self._read_and_ask(trip, reference, recipe, model)
        finally:
            if probe:
                model.give_up()

    async def _read_and_ask(
        self, trip: Trip, reference: DocumentReference, recipe: Recipe, model: Breaker
    ) -> Stored:
        trip.stage = "fetch"
        document = await self._fetch(reference)
        try:
            trip.stage = "room"
            async with self._texts.room(document.size):
                trip.stage = "extract"
                async with self._crashes.step("extract", trip.delivery.at):
                    text = await self._text_of(document, recipe)
                document.discard()
                lane = self.topology.lane_of(trip.delivery.origin.topic)

                async def before_paying() -> None:
                    await self._refuse_unwanted(reference)
                    if trip.leaving:
                        raise Later(())  # never here: who has the partition next would buy it too
                    trip.paid = True

                async def ask() -> Summary:
                    with self._telling(model, trip):
                        return await self.summariser.summarise(
                            reference,
                            text,
                            recipe,
                            lane,
                            before_paying,
                            partition=trip.delivery.at.partition,
                        )

                summary = await self._patiently(trip, "summarise", ask, at_most=TEXT_PATIENCE, breaker=model)
        finally:
            document.discard()
        return Stored(summary, document.source_version or reference.source_version)

    async def _fetch(self, reference: DocumentReference) -> Document:
        """Raises SourceDown, without trying, while nothing comes from the document's host or bucket."""
        source = source_of(reference.uri)
        if source is None:
            return await self.fetcher.fetch(reference)
        breaker = self.breakers.of(source)
        if not breaker.may_probe():
            raise SourceDown(str(breaker.trouble()))
        was_open, begun = breaker.is_open, breaker.mark
        try:
            document = await self.fetcher.fetch(reference)
        except SourceUnavailable as error:
            breaker.failed(reference.document_id, classify(error, "fetch"))
            if breaker.is_open:
                raise SourceDown(str(error)) from error
            raise
        except Exception:
            breaker.succeeded(reference.document_id, begun)  # it has answered
            raise
        except BaseException:
            if was_open:
                breaker.give_up()
            raise
        breaker.succeeded(reference.document_id, begun)
        return document

    @contextmanager
    def _telling(self, model: Breaker, trip: Trip) -> Iterator[None]:
        """Tells the breaker of the model how a call went; an answer that was there needed none."""
        begun = model.mark
        try:
            yield
        except (ModelRateLimited, StoreError, _Unwanted, Later):
            raise  # says nothing of the provider's health; the gate keeps to its limits
        except Exception as error:
            if row_of(error).disposition in _SHARED:
                model.failed(trip.document_id, classify(error, "summarise"))
            elif trip.paid:
                model.succeeded(trip.document_id, begun)
            raise
        if trip.paid:
            model.succeeded(trip.document_id, begun)

    async def _text_of(self, document: Document, recipe: Recipe) -> ExtractedText:
        """Its text, or the document itself where its pages are pictures and the recipe sends them."""
        try:
            return await self.extractor.extract(document)
        except Scanned as scanned:
            pages = scanned.pages or MOST_SCANNED_PAGES
            if recipe.scanned != "send-pdf":
                raise
            if document.size > MOST_SCANNED_BYTES or pages > MOST_SCANNED_PAGES:
                raise Scanned(
                    f"{scanned} It is too large to be sent as it is: at most {MOST_SCANNED_PAGES} pages and "
                    f"{MOST_SCANNED_BYTES // 1_000_000} MB go.",
                    pages=scanned.pages,
                ) from scanned
            content = await asyncio.to_thread(document.read)
            return ExtractedText("", "application/pdf", pages=pages, pdf=content)

    # -- the end of every delivery ----------------------------------------------------------------------

    async def _settle(self, trip: Trip, failure: Failure) -> Outcome | Deferred:
        """A failure's outcome: the next retry topic, the dead-letter topic, or a rest with its whole run.

        Raises _Unwanted where something else has been asked of the run, or of the live events, meanwhile.
        """
        control = trip.control
        if control is not None and (reason := self._reason_to_pause(trip, control, failure)):
            if not await self._patiently(trip, "store", self._pause, control, reason, forever=True):
                raise _Unwanted
            self.observer.guarded(trip.delivery, failure)
            if trip.run is not None:
                return await self._finish(trip, Held(reason))
            await self._patiently(trip, "admit", self._admit, trip.reference)
        match decide(failure, trip.delivery, self.topology, self.clock.now(), self.max_age):
            case DeadLetter(failure=last):
                return await self._finish(trip, DeadLettered(last))
            case route:
                retried = Retried(route.topic, route.not_before, failure, route.spent)
                if self.topology.lane_of(trip.delivery.origin.topic) is Lane.BATCH:
                    return await self._retry_in_place(trip, retried)
                return await self._finish(trip, retried)

    async def _retry_in_place(self, trip: Trip, retried: Retried) -> Deferred:
        """Retry topics are read by the live lane, which would pay the full price."""
        await self._patiently(trip, "store", self.store.write, self._rows(trip, retried, None), forever=True)
        self.observer.finished(trip.delivery, retried)
        now, delivery = self.clock.now(), trip.delivery
        again = replace(
            delivery,
            attempt=delivery.attempt + retried.spent,
            first_failed_ms=to_ms(now) if delivery.first_failed_ms is None else delivery.first_failed_ms,
        )
        wait = self.clock.sleep((retried.not_before - now).total_seconds())
        return Deferred(again, Later([asyncio.ensure_future(wait)]))

    def _reason_to_pause(self, trip: Trip, control: Control, failure: Failure) -> str:
        """Why not this document but its run, or all live events, must stop; empty where they need not."""
        if self._is_the_runs_own(trip, failure.reason):
            return failure.message
        if failure.reason not in SUSPICIOUS or trip.delivery.replay_count or control.unguarded:
            return ""
        if not self._flood.failed(self._flood_key(trip)):
            return ""
        run = trip.run
        go_on = f"runs resume {str(run.id)[:8]} --accept-dead-letters" if run else "resume --all"
        return (
            f"More than half of the last documents failed with {failure.reason}: {failure.message} "
            f"`docsum {go_on}` goes on all the same."
        )

    def _is_the_runs_own(self, trip: Trip, reason: str) -> bool:
        """A model that does not exist is the run's fault where the run has chosen it."""
        return reason == "model_unknown" and bool(trip.run and trip.run.recipe.model != self.recipe.model)

    def _flood_key(self, trip: Trip) -> tuple[UUID, datetime]:
        control = trip.control or Control(LIVE_EVENTS)
        return (control.target, control.changed_at)

    async def _finish(self, trip: Trip, outcome: Outcome) -> Outcome:
        """The one end: the copy acknowledged, the rows durable, then the result acknowledged.

        Waits as long as it takes.

        Raises RowRefused for a summary that the store refuses: that is this document's failure.
        """
        copy = self.copies.of(trip.delivery, trip.reference, outcome)
        at = None
        if copy is not None:
            at = await self._patiently(trip, "publish", self.publisher.publish, copy, forever=True)
        rows = self._rows(trip, outcome, at)
        forever = not isinstance(outcome, Stored)
        await self._patiently(trip, "store", self.store.write, rows, forever=forever)
        if isinstance(outcome, Stored) or (
            isinstance(outcome, DeadLettered) and outcome.failure.reason not in SUSPICIOUS
        ):
            self._flood.passed(self._flood_key(trip))
        if self._results is not None:
            # Made once: the publisher knows a record that is under way when it is handed in again.
            told = await self._patiently(
                trip, "publish", self._result_record, trip, outcome, self._results, forever=True
            )
            if told is not None:
                await self._patiently(trip, "publish", self.publisher.publish, told, forever=True)
        return outcome

    async def _result_record(self, trip: Trip, outcome: Outcome, results: Results) -> RecordCopy | None:
        result = await result_of(trip.reference, outcome, self.store, self.clock.now())
        return None if result is None else await results.of(trip.delivery, result)

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
            case Held(reason=reason):
                return Rows(run_documents=self._run_row(trip, State.HELD, "held", reason))
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
        breaker: Breaker | None = None,
    ) -> T:
        """Run a step, and again while what fails is everyone's trouble; `forever`: whatever fails.

        Raises what is this document's own, a HOLD that counts as that, and anything that would go on after
        `at_most` or, where there is such a bound, while the `breaker` of the dependency is open: then it is
        waited for elsewhere.
        """
        started, wait = self.clock.monotonic(), FIRST_WAIT
        while True:
            trip.stage = stage
            try:
                result = await step(*arguments)
            except Exception as error:
                if self._is_the_runs_own(trip, row_of(error).reason):
                    raise
                if not (forever or self._worth_waiting(trip, error, breaker)):
                    raise
                if stage == "summarise":
                    trip.paid = False  # that call is over; while it waits for the next it may be let go
                is_open = breaker is not None and breaker.is_open
                if is_open:
                    wait = FIRST_WAIT  # the breaker gives turns
                asked = error.retry_after if isinstance(error, DocsumError) else None
                pause = asked or wait * uniform(0.75, 1.0)  # noqa: S311  (jitter needs no secrecy)
                waited = timedelta(seconds=self.clock.monotonic() - started)
                if at_most and (is_open or waited + pause > at_most):
                    raise
                failure = classify(error, trip.stage)
            else:
                self._released(trip)
                return result
            self._held(trip, failure, pause)
            await self.clock.sleep(pause.total_seconds())
            wait = min(wait * 2, LONGEST_WAIT)

    def _worth_waiting(self, trip: Trip, error: Exception, breaker: Breaker | None) -> bool:
        match row_of(error).disposition:
            case Disposition.PAUSE | Disposition.STOP:
                return True
            case Disposition.HOLD:
                return breaker is None or self._is_everyones(trip, breaker)
            case _:
                return False

    def _is_everyones(self, trip: Trip, breaker: Breaker) -> bool:
        """Whether a dependency's fault may still be more than this document's.

        Not once other documents have got through meanwhile, nor when it lasts though the breaker is closed.
        """
        if breaker.is_open:
            trip.faltering = None
            return True
        now = self.clock.monotonic()
        trip.faltering = trip.faltering or (now, breaker.mark)
        since, mark = trip.faltering
        others = breaker.others_succeeded(trip.document_id, mark)
        return others < OTHERS and now - since < PATIENCE.total_seconds()

    def _held(self, trip: Trip, failure: Failure, wait: timedelta) -> None:
        trip.held = failure
        self.observer.holding(trip.delivery, failure, wait)

    def _released(self, trip: Trip) -> None:
        if trip.held is not None:
            trip.held = None
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
