"""The heartbeat of a worker: what it does, told to the store every five seconds, and who is heard of no more.

Whoever has not said goodbye and is silent has died. What it decoded or extracted is written down, once,
by whoever finds it first: its own next life before it takes anything, or another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from docsum.crashes import CrashGuard
from docsum.errors import DocsumError
from docsum.models import Death, WorkerStatus
from docsum.ports import Clock, SummaryStore

EVERY = timedelta(seconds=5)
#: Between two heartbeats, however many are asked for.
SOONEST = timedelta(seconds=0.25)
#: A worker that is not heard of for so long has died.
SILENCE = timedelta(seconds=20)
#: After a death, whatever is decoded or extracted is told before it begins, for so long.
CAREFUL = timedelta(minutes=1)
#: Deaths that are remembered: a document that ended workers yesterday may have been replayed since.
MEMORY = timedelta(days=1)


class Heart:
    """Beats for one worker. `status` gives what it does at a moment, and whether it says goodbye."""

    def __init__(
        self,
        store: SummaryStore,
        guard: CrashGuard,
        clock: Clock,
        status: Callable[[datetime, bool], WorkerStatus],
    ) -> None:
        self._store = store
        self._guard = guard
        self._clock = clock
        self._status = status
        self._beaten_since: datetime | None = None  # without a failure
        self._careful_until = clock.now()
        self._asked: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        guard.announced = self.announced

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for the next heartbeat."""
        return bool(self._asked)

    async def wake(self) -> None:
        """Learn of earlier lives and of others, before anything is taken. Raises StoreError."""
        now = self._clock.now()
        me = self._status(now, False)
        workers = await self._store.workers()
        mine = [one for one in workers if one.worker == me.worker and one.started_at < me.started_at]
        died = [one for one in mine if not one.stopped]
        await self._bury(died)
        if died or any(one.ended_silently(now, EVERY * 2) and _lately(one, now) for one in workers):
            self._be_careful(now)
        self._guard.learn(await self._store.deaths(now - MEMORY))

    async def run(self) -> None:
        """Beats until it is cancelled. A store that is down misses heartbeats and that is all."""
        looked = self._clock.monotonic()
        while True:
            self._wanted.clear()
            await self.beat()
            if self._clock.monotonic() - looked >= EVERY.total_seconds() * 3:
                looked = self._clock.monotonic()
                with suppress(DocsumError):
                    await self.look()
            if self._clock.now() >= self._careful_until:
                self._guard.careful = False
            await self._clock.sleep(SOONEST.total_seconds())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), (EVERY - SOONEST).total_seconds())

    async def beat(self, *, stopped: bool = False) -> None:
        """One heartbeat; whoever waits for one hears how it went."""
        asked, self._asked = self._asked, []
        now = self._clock.now()
        try:
            await self._store.beat(self.told(now, stopped=stopped))
        except DocsumError as error:
            self._beaten_since = None
            for one in asked:
                if not one.done():
                    one.set_exception(error)
        else:
            self._beaten_since = self._beaten_since or now
            for one in asked:
                if not one.done():
                    one.set_result(None)

    def told(self, now: datetime, *, stopped: bool = False) -> WorkerStatus:
        """What a heartbeat says at this moment."""
        return replace(self._status(now, stopped), at_risk=self._guard.at_risk, alone=self._guard.alone)

    async def announced(self) -> None:
        """Returns when a heartbeat is stored that began after this call. Raises what the store raises."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(done)
        self._wanted.set()
        await done

    async def look(self) -> None:
        """Who has died, as far as this worker can tell, and what all deaths of late tell of the documents."""
        now = self._clock.now()
        # While nobody could write everybody seems silent.
        hears = self._beaten_since is not None and now - self._beaten_since > SILENCE
        workers = await self._store.workers() if hears else ()
        died = [one for one in workers if one.ended_silently(now, SILENCE) and now - one.beat_at < MEMORY]
        await self._bury(died)
        if any(_lately(one, now) for one in died):
            self._be_careful(now)
        self._guard.learn(await self._store.deaths(now - MEMORY))

    async def _bury(self, died: Iterable[WorkerStatus]) -> None:
        await self._store.bury(
            [
                Death(one.worker, one.started_at, one.beat_at, work, one.alone)
                for one in died
                for work in one.at_risk
            ]
        )

    def _be_careful(self, now: datetime) -> None:
        self._guard.careful = True
        self._careful_until = now + CAREFUL


def _lately(worker: WorkerStatus, now: datetime) -> bool:
    return now - worker.beat_at < CAREFUL
