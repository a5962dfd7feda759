"""Is it a document that ends workers? Then it must not end them all, one after the other.

What is decoded or extracted right now is told in every heartbeat. Work that was in the last heartbeats of two
workers that ended without a word is done alone from then on, and the heartbeat says so before it begins: if
that worker ends too, this is the cause, and the delivery is a dead letter.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from docsum.errors import WorkerCrashed
from docsum.models import AtRisk, Coordinates, Death

#: Of so many deaths nobody is the cause by chance: the next time it is alone.
SUSPECTED = 2


async def _untold() -> None:
    """Nobody is told: a pipeline without heartbeats."""


class CrashGuard:
    """Counts deaths by the work that was going on, and gives suspected work the worker for itself."""

    def __init__(self) -> None:
        #: Returns when a heartbeat that tells of the present work is stored; raises StoreError.
        self.announced: Callable[[], Awaitable[None]] = _untold
        self.careful = False  # a worker has died lately: whatever begins is told first
        self.alone = False
        self._at_work: set[AtRisk] = set()
        self._deaths: Counter[AtRisk] = Counter()
        self._guilty: frozenset[AtRisk] = frozenset()
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def at_risk(self) -> tuple[AtRisk, ...]:
        """What is going on: for the heartbeat."""
        return tuple(sorted(self._at_work))

    def learn(self, deaths: Iterable[Death]) -> None:
        """All deaths of late, in place of those that were known."""
        deaths = list(deaths)
        self._deaths = Counter(death.work for death in deaths)
        self._guilty = frozenset(death.work for death in deaths if death.alone)

    @asynccontextmanager
    async def step(self, stage: str, at: Coordinates) -> AsyncIterator[None]:
        """The time in which a delivery may end the worker.

        Raises WorkerCrashed for one that has done so, or what `announced` raises.
        """
        work = AtRisk(stage, at)
        if work in self._guilty:
            raise WorkerCrashed(
                f"{self._deaths[work]} workers ended without a word during `{stage}` of this document, "
                "the last one when nothing else went on."
            )
        if self._deaths[work] >= SUSPECTED:
            async with self._alone(work):
                yield
        else:
            async with self._turn:  # somebody may be alone
                self._enter(work)
            try:
                if self.careful:
                    await self.announced()
                yield
            finally:
                self._leave(work)

    @asynccontextmanager
    async def _alone(self, work: AtRisk) -> AsyncIterator[None]:
        async with self._turn:
            await self._idle.wait()
            self._enter(work)
            self.alone = True
            try:
                await self.announced()
                yield
            finally:
                self.alone = False
                self._leave(work)
            await self.announced()  # what ends the worker from now on was not this

    def _enter(self, work: AtRisk) -> None:
        self._at_work.add(work)
        self._idle.clear()

    def _leave(self, work: AtRisk) -> None:
        self._at_work.discard(work)
        if not self._at_work:
            self._idle.set()
