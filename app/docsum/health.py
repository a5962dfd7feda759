"""What is known of a whole deployment at one moment, and what follows from it. `troubles.py` judges it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from docsum.controls import PAUSE
from docsum.errors import DocsumError
from docsum.heartbeat import SILENCE
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Backlog,
    Control,
    ControlState,
    DeadLetterFilter,
    DeadLetterGroup,
    OpenBatches,
    Run,
    RunProgress,
    RunState,
    WorkerStatus,
    midnight,
)
from docsum.ports import Clock, SummaryStore
from docsum.words import span

_NEWEST_RUNS = 12
_FINISHED_RUNS = 3
_FORGOTTEN = timedelta(hours=1)  # a worker that was killed is shown no longer
_GOODBYE = timedelta(minutes=2)  # nor one that was stopped in order


@dataclass(slots=True)
class Stored:
    """What ClickHouse has told in time; None where it has not."""

    workers: Sequence[WorkerStatus] | None = None
    controls: Sequence[Control] | None = None
    paused_by: str = ""  # who has paused all work
    runs: Sequence[tuple[Run, RunProgress]] | None = None
    spent_today: Decimal | None = None
    dead_letters: Sequence[DeadLetterGroup] | None = None  # open ones
    batches: Sequence[OpenBatches] | None = None

    @property
    def is_empty(self) -> bool:
        return all(part is None for part in (*self._parts, self.runs))

    @property
    def is_whole(self) -> bool:
        """Whether all could be asked; the runs apart, which are not always asked for."""
        return all(part is not None for part in self._parts)

    @property
    def _parts(self) -> tuple[object, ...]:
        return (self.workers, self.controls, self.spent_today, self.dead_letters, self.batches)


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """A process of the local stack, as its supervisor sees it."""

    name: str
    state: str
    log: str
    pid: int | None = None
    port: int | None = None
    restarts: int = 0
    problem: str = ""  # why it does not run


@dataclass(frozen=True, slots=True)
class Health:
    """What could be learned."""

    at: datetime
    processes: Sequence[LocalProcess] | None = None  # of the local stack; None: it is none
    backlog: Backlog | None = None
    stored: Stored = field(default_factory=Stored)
    pages: Sequence[WorkerStatus] = ()  # what workers of this machine say themselves
    errors: Sequence[DocsumError] = ()  # one for each part that does not answer
    daily_budget: Decimal | None = None

    @property
    def workers(self) -> list[WorkerStatus]:
        """Those of late: by their own word where they were asked, else by their last heartbeat."""
        found = {worker.worker: worker for worker in self.stored.workers or ()}
        found |= {worker.worker: worker for worker in self.pages}
        return [worker for _, worker in sorted(found.items()) if self._is_recent(worker)]

    def _is_recent(self, worker: WorkerStatus) -> bool:
        return self.at - worker.beat_at < (_GOODBYE if worker.stopped else _FORGOTTEN)

    @property
    def living(self) -> list[WorkerStatus]:
        return [worker for worker in self.workers if not worker.stopped and not self.is_silent(worker)]

    def is_silent(self, worker: WorkerStatus) -> bool:
        return worker.ended_silently(self.at, SILENCE)

    def process(self, name: str) -> LocalProcess | None:
        """The process of this name."""
        return next((process for process in self.processes or () if process.name == name), None)

    @property
    def waiting(self) -> int:
        """Events that the workers have not finished, in all topics that they read."""
        return sum(topic.events for topic in self.backlog.topics) if self.backlog else 0

    @property
    def nobody_works(self) -> bool:
        """Whether something waits and neither heartbeat, page nor broker knows a worker."""
        return bool(self.backlog and self.waiting and not self.living and not self.backlog.members)

    def paused(self, target: UUID) -> Control | None:
        """The control of all work, of the live events or of a run, where it is paused."""
        for control in self.stored.controls or ():
            if control.target == target and control.state is ControlState.PAUSED:
                return control
        return None

    @property
    def budget_today(self) -> Decimal | None:
        """What may be spent today: DOCSUM_BUDGET__DAILY_USD, or what a person has granted since midnight."""
        if self.daily_budget is None:
            return None
        granted = [
            control.budget
            for control in self.stored.controls or ()
            if control.target == ALL_WORK and control.budget and control.changed_at >= midnight(self.at)
        ]
        return max([self.daily_budget, *granted])

    @property
    def budget_is_spent(self) -> bool:
        budget, spent = self.budget_today, self.stored.spent_today
        return budget is not None and spent is not None and spent >= budget

    @property
    def rests(self) -> bool:
        """Whether nothing new is begun anywhere."""
        return self.paused(ALL_WORK) is not None or self.budget_is_spent

    @property
    def cost_in_flight(self) -> Decimal:
        return sum((worker.cost_in_flight for worker in self.living), Decimal(0))


async def ask(store: SummaryStore, clock: Clock, stored: Stored, *, with_runs: bool = True) -> None:
    """Asks the store everything at once. What it has told stays in `stored`, whatever comes of the rest.

    The progress of large runs takes a while: `with_runs` is for those who show it. Raises a StoreError.
    """

    async def workers() -> None:
        stored.workers = await store.workers()

    async def controls() -> None:
        found = await store.controls()
        if any(control.target == ALL_WORK and control.state is ControlState.PAUSED for control in found):
            audits = [row for row in await store.audits() if row.action == PAUSE]
            stored.paused_by = audits[0].who if audits else ""
        stored.controls = found

    async def runs() -> None:
        stored.runs = await _runs(store)

    async def spent() -> None:
        stored.spent_today = await store.spent(None, midnight(clock.now()))

    async def dead_letters() -> None:
        stored.dead_letters = await store.dead_letter_groups(DeadLetterFilter())

    async def batches() -> None:
        stored.batches = await store.open_batch_counts()

    questions = [workers(), controls(), spent(), dead_letters(), batches()]
    if with_runs:
        questions.append(runs())
    for result in await asyncio.gather(*questions, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _runs(store: SummaryStore) -> list[tuple[Run, RunProgress]]:
    """New ones that are under way, all that are paused, however old, and a few that are over."""
    runs = {run.id: run for run in await store.runs(_NEWEST_RUNS)}
    for control in await store.controls():
        is_run = control.target not in (ALL_WORK, LIVE_EVENTS)
        if is_run and control.state is ControlState.PAUSED and control.target not in runs:
            run = await store.run(control.target)
            if run is not None:
                runs[run.id] = run
    progress = await asyncio.gather(*map(store.progress, runs))
    found = sorted(
        zip(runs.values(), progress, strict=True), key=lambda each: each[0].created_at, reverse=True
    )
    over = [run.id for run, counts in found if is_over(run, counts)][_FINISHED_RUNS:]
    return [(run, counts) for run, counts in found if run.id not in over]


def is_over(run: Run, progress: RunProgress) -> bool:
    """Whether nothing of it is left to do."""
    if run.wanted is ControlState.CANCELLED:
        return True
    return run.state is RunState.PUBLISHED and not progress.remaining


def state_of(worker: WorkerStatus, health: Health) -> str:
    """In a few words."""
    if worker.stopped:
        return "stopped"
    if health.is_silent(worker):
        return f"silent for {span(max(0.0, (health.at - worker.beat_at).total_seconds()))}"
    if worker.holds or worker.breakers:
        return "holds"
    return "works" if worker.in_flight else "idle"
