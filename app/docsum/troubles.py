"""What is wrong with a deployment, the worst first: one sentence each, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from docsum.controls import larger_budget
from docsum.errors import REASONS, DocsumError, Row, row_of
from docsum.health import Health
from docsum.models import ALL_WORK, LIVE_EVENTS, ControlState, Lane, RunState
from docsum.runs import standing
from docsum.words import sentence, span

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is not as it should be."""

    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what} {self.do}"


def troubles(health: Health, *, about_runs: bool = True) -> list[Trouble]:
    """Empty when all is well."""
    parts = (
        _silent_parts,
        _stack,
        _controls,
        _nobody,
        _silent_workers,
        too_many_workers,
        _holds,
        _lost,
        _runs,
    )
    return [trouble for part in parts if about_runs or part is not _runs for trouble in part(health)]


def _silent_parts(health: Health) -> Iterator[Trouble]:
    for error in health.errors:
        yield Trouble(sentence(str(error)), _remedy(error, health))


def _remedy(error: DocsumError, health: Health) -> str:
    if "`docsum" in str(error):  # it says so itself
        return ""
    reason = row_of(error).reason
    name = {"broker_unavailable": "kafka", "store_unavailable": "clickhouse"}.get(reason, "")
    process = health.process(name)
    if process is None:
        return REASONS[reason].hint
    return f"Read {process.log}; `docsum down`, then `docsum up -d` starts it anew. Nothing is lost."


def _stack(health: Health) -> Iterator[Trouble]:
    for process in health.processes or ():
        if process.problem:
            yield Trouble(f"{process.name} is {process.state}: it {process.problem}.", f"Read {process.log}.")


def _controls(health: Health) -> Iterator[Trouble]:
    if control := health.paused(ALL_WORK):
        who = f" by {health.stored.paused_by}" if health.stored.paused_by else ""
        since = span((health.at - control.changed_at).total_seconds())
        yield Trouble(
            f"All work is paused{who}, for {since}: {sentence(control.reason)}",
            "`docsum resume --all` goes on.",
        )
    if control := health.paused(LIVE_EVENTS):
        since = span((health.at - control.changed_at).total_seconds())
        yield Trouble(
            f"The live events are paused, for {since}: {sentence(control.reason)}",
            "Look at `docsum dlq ls`; `docsum resume --all` goes on.",
        )
    if health.budget_is_spent:
        yield Trouble(
            f"${health.stored.spent_today:.2f} are spent of today's budget of ${health.budget_today:.2f}:"
            " nothing is begun until 00:00 UTC.",
            "`docsum resume --all` grants the same once more.",
        )


def _nobody(health: Health) -> Iterator[Trouble]:
    if health.nobody_works:
        start = "`docsum up -d` starts them." if health.processes else "Start one: `docsum worker`."
        yield Trouble(f"{health.waiting:,} events wait and no worker is there.", start)


def _silent_workers(health: Health) -> Iterator[Trouble]:
    """Those that should be there: a worker that is gone for good, its partitions taken over, is no news."""
    owned = {partition for worker in health.living for partition in worker.partitions}
    listed = {member.name: member.partitions for member in (health.backlog.members if health.backlog else ())}
    for worker in health.workers:
        left = {*worker.partitions, *listed.get(worker.worker, ())} - owned
        is_ours = health.process(worker.worker) is not None
        if health.is_silent(worker) and (left or is_ours):
            has = f"; nobody else has its partitions {compact(left)}" if left else ""
            yield Trouble(
                f"{worker.worker} on {worker.host} has been silent for"
                f" {span((health.at - worker.beat_at).total_seconds())}{has}.",
                f"If process {worker.pid} is stuck or dead, start it again; others take over in a minute.",
            )


def too_many_workers(health: Health) -> Iterator[Trouble]:
    """Of each lane. Partitions are shared out evenly: some have none only where the others have one each."""
    for lane in Lane:
        workers = [worker for worker in health.living if worker.lane is lane]
        useful = [share for worker in workers if (share := _numbers(worker.partitions))]
        if useful and len(useful) < len(workers) and all(len(share) == 1 for share in useful):
            yield Trouble(
                f"{len(workers)} workers of the {lane} lane share {len(useful)} partitions: at most"
                f" {len(useful)} of them are useful, the rest have nothing to do.",
                "End those, or raise DOCSUM_TOPICS__PARTITIONS and run `docsum setup topics`.",
            )


def _holds(health: Health) -> Iterator[Trouble]:
    """By reason: the sentence of one worker, and how many others say the same."""
    told = [
        (row.reason, said, worker)
        for worker in health.living
        for said in (*worker.breakers, *worker.holds)
        if (row := reason_in(said)) is not None and not _is_told(row.reason, health)
    ]
    told.sort(key=lambda each: each[0])
    for reason, group in groupby(told, key=lambda each: each[0]):
        same = list(group)
        names = {worker.worker for _, _, worker in same}
        others = f" ({len(names)} workers say so)" if len(names) > 1 else ""
        yield Trouble(f"{same[0][2].worker}: {sentence(same[0][1])}{others}", REASONS[reason].hint)


def _is_told(reason: str, health: Health) -> bool:
    """By `_controls`. Of a budget that is spent only together with what is on its way, workers alone know."""
    if reason == "daily_budget":
        return health.budget_is_spent
    return reason == "paused" and health.stored.controls is not None


def reason_in(said: str) -> Row | None:
    """The row of the failure table that the sentence of a hold or a breaker names."""
    return next((REASONS[word] for word in _WORD.findall(said) if word in REASONS), None)


def _lost(health: Health) -> Iterator[Trouble]:
    for topic in health.backlog.topics if health.backlog else ():
        if topic.lost:
            yield Trouble(
                f"Retention has deleted {topic.lost:,} events of {topic.topic} that were not finished.",
                "Announce them again, and raise DOCSUM_TOPICS__RETENTION.",
            )


def _runs(health: Health) -> Iterator[Trouble]:
    for run, progress in health.stored.runs or ():
        short = str(run.id)[:8]
        if run.wanted is ControlState.PAUSED and progress.remaining and run.control is not None:
            yield Trouble(
                f"The run {run.name} is paused: {sentence(run.control.reason)}",
                f"`docsum runs resume {short}{larger_budget(run, progress)}` goes on.",
            )
        elif standing(run, progress) == RunState.INTERRUPTED:
            yield Trouble(
                f"The run {run.name} was interrupted while it was announced.",
                f"`docsum runs resume {short}` goes on.",
            )


def compact(partitions: Iterable[str]) -> str:
    """`docsum.documents[0]`, `docsum.documents[1]`, ... as `0-1`: the numbers are the same of every topic."""
    ranges: list[list[int]] = []
    for number in sorted(_numbers(partitions)):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ",".join(str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in ranges)


def _numbers(partitions: Iterable[str]) -> set[int]:
    return {int(partition.rpartition("[")[2].rstrip("]")) for partition in partitions}


def next_command(found: Sequence[Trouble]) -> str:
    """The first command that a trouble names."""
    commands = (re.search(r"`docsum [^`]+`", str(trouble)) for trouble in found)
    return next((command[0] for command in commands if command), "`docsum doctor`")
