"""Runs that the API publishes, in the background: what a killed one left is taken up by the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import structlog

from docsum.errors import Disposition, DocsumError, row_of
from docsum.manifests import NoManifest
from docsum.models import API, ControlState, Lane, Run, RunState
from docsum.ports import Clock, ServiceStore
from docsum.runs import Announcer, Published, following, publish
from docsum.sources import Entry, Source, UnusableSource

log = structlog.get_logger(__name__)

LOOK_EVERY = timedelta(seconds=5)  # for runs whose publisher has died
AGAIN_AFTER = timedelta(seconds=30)  # where a source or Kafka does not answer
GOODBYE = timedelta(seconds=10)
#: Background publishers that announce a thousand documents at the same moment: requests come before them.
AT_ONCE = 2
_MAY_PASS = (Disposition.RETRY, Disposition.PAUSE, Disposition.HOLD)


@dataclass(frozen=True, slots=True)
class Announced:
    """What came of a list."""

    run: Run
    count: int  # documents that were announced now
    passed_over: list[str]  # one sentence each


@dataclass
class BackgroundPublisher:
    """Lists and announces the sources of runs. `run` looks after them for as long as the API lives."""

    store: ServiceStore
    clock: Clock
    announce: Announcer
    lag: Callable[[Lane], Awaitable[int]]
    max_lag: int
    open_source: Callable[[str], Source]
    _tasks: dict[UUID, asyncio.Task[None]] = field(default_factory=dict)
    _uploads: set[UUID] = field(default_factory=set)
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def begin(self, run: Run, *, is_new: bool = True) -> None:
        """The run is durable when this returns; its source is announced from now on."""
        await self.store.save_run(run)
        self._start(run, is_new=is_new)

    async def announce_now(
        self, run: Run, entries: Iterator[Entry], *, ends: bool, is_new: bool = False
    ) -> Announced:
        """`is_new`: the run has just been saved.


        Raises BrokerUnavailable or StoreError; the run is `publishing-interrupted` then.
        """
        passed_over: list[str] = []
        count = Published()

        def tell(so_far: Published) -> None:
            nonlocal count
            count = so_far

        self._uploads.add(run.id)
        try:
            published = await publish(
                run,
                entries,
                store=self.store,
                announce=self.announce,
                clock=self.clock,
                tell=tell,
                complain=lambda entry: passed_over.append(f"{entry.where}: {entry.problem}"),
                ends=ends,
                is_new=is_new,
            )
        finally:
            self._uploads.discard(run.id)
        return Announced(published, count.announced, passed_over)

    def is_busy_with(self, run_id: UUID) -> bool:
        """Whether a list of this run is being announced right now."""
        return run_id in self._uploads or run_id in self._tasks

    async def run(self) -> None:
        """Takes up what nobody publishes any more, again and again; when it is cancelled, all stops."""
        try:
            while True:
                try:
                    await self._take_up()
                except DocsumError as error:  # the next look asks again
                    log.warning("publishing waits", action="publish", message=str(error))
                except Exception:  # whatever it is, it must not end the loop unseen
                    log.exception("publishing failed", action="publish")
                await self.clock.sleep(LOOK_EVERY.total_seconds())
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=GOODBYE.total_seconds())

    async def _take_up(self) -> None:
        for run in await self.store.unpublished(API):
            if run.state is RunState.INTERRUPTED and run.wanted is not ControlState.CANCELLED:
                self._start(run)

    def _start(self, run: Run, *, is_new: bool = False) -> None:
        if run.id in self._tasks:
            return
        task = asyncio.create_task(self._publish(run, is_new), name=f"publish-{run.id}")
        self._tasks[run.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(run.id, None))

    async def _publish(self, run: Run, is_new: bool) -> None:
        """To its end, or until it is plain that there will be none."""
        log.info("publishing begins", action="publish", run_id=str(run.id))
        while True:
            try:
                source = await asyncio.to_thread(self.open_source, run.source)
                published = await publish(
                    run,
                    source.entries(),
                    store=self.store,
                    announce=self.announce,
                    clock=self.clock,
                    lag=None if run.lane is Lane.BATCH else lambda: self.lag(run.lane),
                    max_lag=self.max_lag,
                    is_new=is_new,
                    turn=self._turn,
                )
            except Exception as error:  # whatever a source raises is told; it never ends the API
                log.warning("publishing failed", action="publish", run_id=str(run.id), message=str(error))
                if not _may_pass(error):
                    await self._give_up(run, error)
                    return
            else:
                log.info("published", action="publish", run_id=str(run.id), listed=published.listed)
                return
            is_new = False
            await self.clock.sleep(AGAIN_AFTER.total_seconds())

    async def _give_up(self, run: Run, error: Exception) -> None:
        known = isinstance(error, DocsumError)
        problem = str(error) if known else f"docsum failed unexpectedly: {type(error).__name__}."
        with suppress(DocsumError):  # then the next look takes it up, and it fails again
            stored = await self.store.run(run.id) or run
            row = following(stored, RunState.INTERRUPTED, self.clock.now(), problem)
            await self.store.save_run(row)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, UnusableSource | NoManifest) or not isinstance(error, DocsumError):
        return False
    return row_of(error).disposition in _MAY_PASS
