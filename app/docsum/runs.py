"""Runs: announce what a source lists, and watch until every document has its end. Values and ports come in.

A document's `queued` row is written after the broker has acknowledged its event, so the rows of a run are
what it expects; a publisher that was killed announces again, at most, what it had announced without a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar
from uuid import UUID

from docsum.errors import (
    BrokerRefused,
    BrokerUnavailable,
    DocsumError,
    InvalidEvent,
    RegistryUnavailable,
    StoreUnavailable,
)
from docsum.models import (
    ControlState,
    DeliveryState,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
    WebhookDelivery,
)
from docsum.ports import Clock, SummaryStore
from docsum.reading_ahead import batches
from docsum.sources import Entry, Listed, Unreadable, limited

T = TypeVar("T")

AT_ONCE = 1_000  # deliveries in flight, and rows in one write
REFRESH = timedelta(seconds=5)  # the store takes 30 s of silence for an interruption
LAG_PAUSE = timedelta(seconds=2)
#: What a publisher waits for; an outage that lasts longer than its patience ends it.
OUTAGES = (BrokerUnavailable, RegistryUnavailable, StoreUnavailable)
PATIENCE, PAUSE = timedelta(minutes=5), timedelta(seconds=1)
SAVE_WITHIN = timedelta(seconds=5)


class UnknownRun(DocsumError):
    """There is no run with this id."""


class Announcer(Protocol):
    """Publishes documents of a run."""

    async def __call__(self, run: Run, listed: Sequence[Listed]) -> Sequence[datetime | DocsumError]:
        """For each the record's own timestamp, once it is acknowledged, or why it was not published."""


@dataclass(frozen=True, slots=True)
class Published:
    """How far a publisher has come."""

    listed: int = 0
    announced: int = 0
    already: int = 0  # had a row in the run, or stand twice in the source
    ignored: int = 0
    unreadable: int = 0
    waiting: str = ""  # for what, in one sentence


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    run: Run
    progress: RunProgress
    trouble: str = ""  # why this is an old one

    @property
    def finished(self) -> bool:
        return self.run.state is RunState.PUBLISHED and not self.progress.remaining

    @property
    def rests(self) -> bool:
        """It is paused, and what was on its way has come to its end or is held."""
        progress = self.progress
        return self.run.wanted is ControlState.PAUSED and 0 < progress.held == progress.remaining

    @property
    def stands_still(self) -> bool:
        """Nothing more will happen to it by itself."""
        over = self.run.state is RunState.INTERRUPTED or self.run.wanted is ControlState.CANCELLED
        return self.finished or self.rests or (over and not self.progress.remaining)


def standing(run: Run, progress: RunProgress) -> str:
    """The state of a run in a word; finished is derived, never stored."""
    if run.wanted is not ControlState.RUNNING and progress.remaining:
        return run.wanted.value
    if run.wanted is ControlState.CANCELLED:
        return run.wanted.value
    if run.state is RunState.PUBLISHED:
        return "running" if progress.remaining else "finished"
    return run.state.value


def run_fields(run: Run, progress: RunProgress) -> dict[str, object]:
    """A run as a program reads it."""
    return {
        "run_id": str(run.id),
        "name": run.name,
        "source": run.source,
        "lane": run.lane.value,
        "model": run.recipe.model,
        "state": standing(run, progress),
        "why": run.control.reason if run.control else "",
        "budget_usd": run.control.budget if run.control else None,
        "created_at": run.created_at,
        "listed": run.listed,
        "unreadable": run.unreadable,
        "by": run.by,
        "total": progress.total,
        "queued": progress.queued,
        "retrying": progress.retrying,
        "held": progress.held,
        "done": progress.done,
        "skipped": progress.skipped,
        "dead_lettered": progress.dead_lettered,
        "cancelled": progress.cancelled,
        "remaining": progress.remaining,
        "cost_usd": progress.cost,
        "as_of": progress.as_of,
    }


def webhook_fields(delivery: WebhookDelivery) -> dict[str, object]:
    """A message to a run's webhook as a program reads it."""
    waits = delivery.state is DeliveryState.PENDING
    return {
        "message_id": delivery.message_id,
        "run_id": str(delivery.run_id),
        "event": delivery.event,
        "url": delivery.url,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "answer": delivery.answer,
        "created_at": delivery.created_at,
        "next_attempt_at": delivery.next_attempt_at if waits else None,
    }


async def publish(
    run: Run,
    entries: Iterator[Entry],
    *,
    store: SummaryStore,
    announce: Announcer,
    clock: Clock,
    lag: Callable[[], Awaitable[int]] | None = None,
    max_lag: int = 0,
    tell: Callable[[Published], None] = lambda _published: None,
    complain: Callable[[Unreadable], None] = lambda _unreadable: None,
    ends: bool = True,
    is_new: bool = False,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> Run:
    """Announces every entry that has no row in this run yet; returns the published run.

    Unless it `ends`: then more will follow, and the run is still being published. `is_new`: it has just been
    saved, and nobody has announced anything of it. `turn`: entered for each thousand; publishers share it.

    `tell` hears how far it has come, for the first time when the run is saved.
    Cancelled or failed, it leaves the run `publishing-interrupted`: publishing it again goes on. Waits while
    the group is `max_lag` events behind, where `lag` can tell (the batch lane is not asked: what waits there
    for its batch is behind nobody), and for PATIENCE while the broker or the store is down. Raises
    BrokerUnavailable or StoreError, the latter at once where the run cannot even be saved.
    """
    publisher = _Publisher(
        run, store=store, announce=announce, clock=clock, tell=tell, complain=complain, is_new=is_new
    )
    if not is_new:
        await publisher.save(RunState.PUBLISHING)
    tell(Published())
    refresh = asyncio.create_task(publisher.refresh())
    try:
        size = min(AT_ONCE, max_lag) if lag else AT_ONCE
        async with aclosing(batches(limited(entries, run.limit), size)) as listing:
            async for batch in listing:
                if not await publisher.is_wanted():
                    break
                if lag:
                    await publisher.wait_for_room(lag, max_lag)
                async with turn or nullcontext():
                    await publisher.take(batch)
        refresh.cancel()
        return await publisher.finish(RunState.PUBLISHED if ends else RunState.PUBLISHING)
    except BaseException:
        refresh.cancel()
        with suppress(DocsumError, TimeoutError):
            async with asyncio.timeout(SAVE_WITHIN.total_seconds()):
                await publisher.save(RunState.INTERRUPTED)
        raise


def following(run: Run, state: RunState, now: datetime, problem: str = "") -> Run:
    """The run's next row. Never with the same time twice: the newest shows."""
    later = max(now, run.updated_at + timedelta(milliseconds=1))
    return replace(run, state=state, problem=problem, updated_at=later)


async def follow(run_id: UUID, store: SummaryStore, clock: Clock) -> AsyncIterator[Snapshot]:
    """A run again and again until nothing more will happen to it; an outage of the store is waited out.

    Raises UnknownRun, and StoreUnavailable when the store is down from the start.
    """
    last: Snapshot | None = None
    while True:
        try:
            run = await store.run(run_id)  # before the counts: of a published run they are complete
            if run is None:
                raise UnknownRun(f"There is no run {run_id}: `docsum runs ls` shows those that there are.")
            last = Snapshot(run, await store.progress(run_id))
        except StoreUnavailable as error:
            if last is None:
                raise
            last = replace(last, trouble=str(error))
        yield last
        if last.stands_still and not last.trouble:
            return
        await clock.sleep(0.5 if last.progress.total < 1_000 else 2.0)


class _Publisher:
    """The publisher of one run: its counts and its row."""

    def __init__(
        self,
        run: Run,
        *,
        store: SummaryStore,
        announce: Announcer,
        clock: Clock,
        tell: Callable[[Published], None],
        complain: Callable[[Unreadable], None],
        is_new: bool,
    ) -> None:
        self._run = run
        self._has_rows = not is_new
        self._store = store
        self._announce = announce
        self._clock = clock
        self._tell = tell
        self._complain = complain
        self._count = Published()
        self._behind: int | None = None  # at most so many events; None = not looked yet

    async def save(self, state: RunState) -> Run:
        count = self._count
        row = replace(self._run, listed=count.listed, unreadable=count.unreadable)
        self._run = following(row, state, self._clock.now())
        await self._store.save_run(self._run)
        return self._run

    async def finish(self, state: RunState) -> Run:
        """Every row is durable."""
        return await self._patiently(lambda: self.save(state))

    async def refresh(self) -> None:
        """Shows that somebody is publishing, for as long as that is so."""
        while True:
            await self._clock.sleep(REFRESH.total_seconds())
            with suppress(DocsumError):  # the next write meets the same trouble and says it
                await self.save(RunState.PUBLISHING)

    async def is_wanted(self) -> bool:
        """Waits while the run is paused; false once it is cancelled."""
        while True:
            wish = await self._patiently(lambda: self._store.control(self._run.id))
            if wish.state is not ControlState.PAUSED:
                return wish.state is ControlState.RUNNING
            self._tell(replace(self._count, waiting=f"the run is paused: {wish.reason}"))
            await self._clock.sleep(LAG_PAUSE.total_seconds())

    async def wait_for_room(self, lag: Callable[[], Awaitable[int]], max_lag: int) -> None:
        """Looks only when what was announced since the last look could have filled the room."""
        while self._behind is None or self._behind >= max_lag:
            self._behind = await self._patiently(lag)
            if self._behind < max_lag:
                break
            self._tell(replace(self._count, waiting=f"{self._behind:,} events are waiting for the workers"))
            await self._clock.sleep(LAG_PAUSE.total_seconds())

    async def take(self, batch: Sequence[Entry]) -> None:
        """Announces a batch; returns when its rows are durable."""
        listed = unreadable = 0
        fresh: dict[str, Listed] = {}  # of two in one source the first is announced
        for entry in batch:
            if isinstance(entry, Listed):
                listed += 1
                fresh.setdefault(entry.document_id, entry)
            elif isinstance(entry, Unreadable):
                unreadable += 1
                self._complain(entry)
        known = await self._patiently(lambda: self._rows_of(list(fresh)))
        count = self._count
        self._count = replace(
            count,
            listed=count.listed + listed,
            unreadable=count.unreadable + unreadable,
            ignored=count.ignored + len(batch) - listed - unreadable,
            already=count.already + listed - len(fresh) + len(known),
        )
        await self._queue([entry for name, entry in fresh.items() if name not in known])
        self._tell(self._count)

    async def _rows_of(self, document_ids: Sequence[str]) -> frozenset[str]:
        if not (document_ids and self._has_rows):
            self._has_rows = True
            return frozenset()
        return await self._store.run_documents(self._run.id, document_ids)

    async def _queue(self, listed: Sequence[Listed]) -> None:
        rows: list[RunDocumentRow] = []
        trouble, left, begun = None, listed, self._clock.monotonic()
        while left:
            results = zip(left, await self._announce(self._run, left), strict=True)
            left, trouble = [], None
            for entry, result in results:
                if isinstance(result, datetime):
                    rows.append(_queued(self._run.id, entry, result))
                elif isinstance(result, InvalidEvent):
                    self._count = replace(self._count, unreadable=self._count.unreadable + 1)
                    self._complain(Unreadable(entry.document_id, str(result)))
                else:
                    left.append(entry)
                    trouble = result
            if trouble is not None:
                tired = self._clock.monotonic() - begun > PATIENCE.total_seconds()
                if tired or not _passes(trouble):
                    break
                self._tell(replace(self._count, waiting=str(trouble)))
                await self._clock.sleep(PAUSE.total_seconds())
        if rows:
            await self._store.write(Rows(run_documents=tuple(rows)))
        self._behind = (self._behind or 0) + len(rows)
        self._count = replace(self._count, announced=self._count.announced + len(rows))
        if trouble is not None:
            raise trouble

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        return await patiently(step, self._clock, lambda why: self._tell(replace(self._count, waiting=why)))


async def patiently(
    step: Callable[[], Awaitable[T]],
    clock: Clock,
    tell: Callable[[str], None],
    patience: timedelta = PATIENCE,
) -> T:
    """Does the step again while what it needs is away, for so long; `tell`: why it waits."""
    started = clock.monotonic()
    while True:
        try:
            return await step()
        except OUTAGES as error:
            if not _passes(error) or clock.monotonic() - started > patience.total_seconds():
                raise
            tell(str(error))
        await clock.sleep(PAUSE.total_seconds())


def _passes(trouble: object) -> bool:
    """Whether waiting may help: a right that is missing, or a limit of the broker, needs a person."""
    return isinstance(trouble, OUTAGES) and not isinstance(trouble, BrokerRefused)


def _queued(run_id: UUID, listed: Listed, published_at: datetime) -> RunDocumentRow:
    """Dated by the record itself, so that a late one hides nothing that happened since."""
    return RunDocumentRow(run_id, listed.document_id, State.QUEUED, listed.uri, 1, "", "", published_at)
