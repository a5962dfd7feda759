"""Replays of dead letters in the background: those that run, and the last ones that have ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

import structlog

from docsum.errors import DocsumError
from docsum.models import AuditRow
from docsum.ports import Clock, SummaryStore
from docsum.replay import Plan, Progress, Replay, Selection

log = structlog.get_logger(__name__)

#: A replay by this id, of so many a second, with what it stands on.
OpenReplay = Callable[[str, int], AbstractAsyncContextManager[Replay]]
_REMEMBERED = 100  # replays that can still be asked for


@dataclass
class Job:
    """One replay."""

    replay_id: str
    selection: Selection
    state: Literal["dry_run", "running", "done", "stopped", "failed"] = "running"
    plan: Plan | None = None
    progress: Progress = field(default_factory=Progress)
    problem: str = ""


class Replays:
    """The replays of this process: those that run, and the last ones that have ended."""

    def __init__(self, store: SummaryStore, clock: Clock, opened: OpenReplay) -> None:
        self._store = store
        self._clock = clock
        self._opened = opened
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, replay_id: str) -> Job | None:
        return self._jobs.get(replay_id)

    @property
    def newest(self) -> Sequence[Job]:
        return list(reversed(self._jobs.values()))

    async def plan(self, job: Job) -> None:
        """Looks, and changes nothing."""
        async with self._opened(job.replay_id, 1) as work:
            job.plan, job.state = await work.plan(job.selection), "dry_run"

    async def begin(self, job: Job, who: str, rate: int, *, sample: bool) -> None:
        """Returns when its plan is made; what it finds in its way later is its problem."""
        planned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._work(job, who, rate, planned, sample=sample))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await planned
        self._jobs[job.replay_id] = job
        while len(self._jobs) > _REMEMBERED:
            self._jobs.popitem(last=False)

    async def close(self) -> None:
        """Stops those that run; what they have moved is written down."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)

    async def _work(
        self, job: Job, who: str, rate: int, planned: asyncio.Future[None], *, sample: bool
    ) -> None:
        try:
            async with self._opened(job.replay_id, rate) as work:
                job.plan = await work.plan(job.selection)
                planned.set_result(None)
                await self._carry_out(job, work, who, sample=sample)
        except Exception as error:  # told to whoever asks, and never raised into the loop
            if not planned.done():
                planned.set_exception(error)
                return
            known = isinstance(error, DocsumError)
            job.state, job.problem = "failed", str(error) if known else f"It failed: {type(error).__name__}."
            log.warning("replay failed", action="replay", replay_id=job.replay_id, message=str(error))

    async def _carry_out(self, job: Job, work: Replay, who: str, *, sample: bool) -> None:
        assert job.plan is not None

        def tell(progress: Progress) -> None:
            job.progress = progress

        try:
            proof = await work.carry_out(job.plan, tell, sample=sample)
            job.state = "done" if proof is None or proof.good else "stopped"
        finally:
            done = job.progress = work.progress
            if done.replayed or done.parked:
                how = {"done": "", "stopped": ", stopped by the sample"}.get(job.state, ", interrupted")
                detail = f"{job.selection}: {done.replayed:,} replayed, {done.parked:,} parked{how}"
                moved = done.replayed + done.parked
                await self._store.audit(AuditRow(self._clock.now(), who, "dlq replay", detail, moved))
