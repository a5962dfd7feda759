"""`docsum status`: what runs, what waits, what holds; says which part does not answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.options import JsonObject
from docsum.cli.output import (
    Code,
    console,
    emit,
    finish,
    money,
    next_step,
    run_fields,
    span,
    standing,
    table,
)
from docsum.errors import DocsumError
from docsum.models import Run, RunProgress, WorkerStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

    from docsum.kafka.admin import PartitionLag
    from docsum.local.stack_state import StackState
    from docsum.settings import Settings

_PATIENCE = timedelta(seconds=5)  # for each part
_EVERY = 2.0  # seconds between two looks
_RUNS = 5
_SILENT = timedelta(seconds=20)  # a worker beats every 5 s
_FORGOTTEN = timedelta(hours=1)  # a worker that was stopped or killed is shown no longer


@dataclass(frozen=True, slots=True)
class Health:
    """What could be learned in one look."""

    stack: StackState | None
    lag: Sequence[PartitionLag]
    workers: Sequence[WorkerStatus]
    runs: Sequence[tuple[Run, RunProgress]]
    troubles: Sequence[str]  # one sentence for each part that does not answer


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum status`."""
    app.command(name)(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    json: JsonObject = False,
) -> None:
    """What runs, how much waits, what the workers do, how far the last runs are.

    \b
      docsum status
      docsum status --watch
      docsum status --json | jq .lag

    Ends with 4 when a part does not answer.
    """
    finish(_status(watch, json))


async def _status(watch: bool, json: bool) -> Code:
    from docsum.settings import load

    settings, local = reached(), not load().explicit
    if not watch:
        health = await look(settings, local=local)
        _show(health, settings, json)
        return Code.UNREACHABLE if health.troubles else Code.OK
    if json or not sys.stdout.isatty():
        while True:
            _show(await look(settings, local=local), settings, json)
            await asyncio.sleep(_EVERY)
    from rich.console import Group
    from rich.live import Live

    with Live(console=console(), screen=True) as live:
        while True:
            live.update(Group(*_picture(await look(settings, local=local), settings)))
            await asyncio.sleep(_EVERY)


async def look(settings: Settings, *, local: bool) -> Health:
    """Asks every part at the same time; a part that is down does not hide the others."""
    from docsum.local.stack_state import find

    stack = find(settings.home) if local else None
    (lag, no_broker), (stored, no_store) = await asyncio.gather(_broker(settings), _store(settings))
    workers, runs = stored
    return Health(stack, lag, workers, runs, [trouble for trouble in (no_broker, no_store) if trouble])


async def _broker(settings: Settings) -> tuple[Sequence[PartitionLag], str]:
    from docsum.kafka.admin import KafkaAdmin

    try:
        admin = KafkaAdmin(settings.kafka, _PATIENCE)
        return await admin.lag(settings.kafka.group_id, settings.topology()), ""
    except DocsumError as error:
        return (), str(error)


_Stored = tuple[Sequence[WorkerStatus], Sequence[tuple[Run, RunProgress]]]


async def _store(settings: Settings) -> tuple[_Stored, str]:
    from docsum.bootstrap import open_store

    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()), open_store(settings) as store:
            runs = [(run, await store.progress(run.id)) for run in await store.runs(_RUNS)]
            return (await store.workers(), runs), ""
    except TimeoutError:
        return ((), ()), f"ClickHouse at {settings.clickhouse.url} does not answer."
    except DocsumError as error:
        return ((), ()), str(error)


# -- showing -----------------------------------------------------------------------------------------------


def _show(health: Health, settings: Settings, json: bool) -> None:
    if json:
        emit(fields(health, settings))
        return
    for part in _picture(health, settings):
        console().print(part)
    if health.troubles:
        next_step("`docsum doctor`")
    elif health.runs:
        next_step(f"`docsum runs show {str(health.runs[0][0].id)[:8]}`")
    else:
        next_step("`docsum run FOLDER`")


def fields(health: Health, settings: Settings) -> dict[str, object]:
    """The same as a program reads it."""
    return {
        "home": str(settings.home),
        "troubles": list(health.troubles),
        "processes": [
            {
                "name": process.name,
                "state": process.state.value,
                "pid": process.pid,
                "port": process.port,
                "restarts": process.restarts,
                "problem": process.problem,
                "log": process.log,
            }
            for process in (health.stack.processes if health.stack else ())
        ],
        "lag": [
            {"topic": topic, "lane": lane, "lag": lag, "lost": lost}
            for topic, lane, lag, lost in by_topic(health.lag, settings)
        ],
        "workers": [{**asdict(worker), "lane": worker.lane.value} for worker in _current(health.workers)],
        "runs": [run_fields(run, progress) for run, progress in health.runs],
    }


def by_topic(lags: Sequence[PartitionLag], settings: Settings) -> list[tuple[str, str, int, int]]:
    """Topic, lane (or `retry`), events that wait, events that were deleted unread."""
    topology = settings.topology()
    found: dict[str, list[PartitionLag]] = {}
    for each in lags:
        found.setdefault(each.topic, []).append(each)
    return [
        (
            topic,
            "retry" if topology.is_retry(topic) else topology.lane_of(topic).value,
            sum(each.lag for each in partitions),
            sum(each.lost for each in partitions),
        )
        for topic, partitions in sorted(found.items())
    ]


def _current(workers: Sequence[WorkerStatus]) -> list[WorkerStatus]:
    now = datetime.now(UTC)
    return [worker for worker in workers if now - worker.beat_at < _FORGOTTEN]


def _picture(health: Health, settings: Settings) -> list[RenderableType]:
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"Trouble: {trouble}", style="red") for trouble in health.troubles]
    if health.stack is not None:
        from docsum.cli.stack import processes

        parts.append(processes(health.stack))
    if health.lag:
        parts.append(_topics(health.lag, settings))
    if workers := _current(health.workers):
        parts.append(_workers(workers))
    if health.runs:
        parts.append(_runs(health.runs))
    return parts


def _topics(lags: Sequence[PartitionLag], settings: Settings) -> RenderableType:
    found = table("topic", "lane", "waiting", "lost", right=("waiting", "lost"))
    for topic, lane, lag, lost in by_topic(lags, settings):
        found.add_row(topic, lane, f"{lag:,}", f"{lost:,}" if lost else "")
    return found


def _workers(workers: Sequence[WorkerStatus]) -> RenderableType:
    now = datetime.now(UTC)
    found = table("worker", "state", "partitions", "in flight", "holds", right=("partitions", "in flight"))
    for worker in workers:
        silent = now - worker.beat_at
        if worker.stopped:
            state = "stopped"
        elif silent > _SILENT:
            state = f"silent for {span(silent.total_seconds())}"
        else:
            state = "working" if worker.in_flight else "waiting"
        found.add_row(
            worker.worker, state, str(len(worker.partitions)), str(worker.in_flight), "\n".join(worker.holds)
        )
    return found


def _runs(runs: Sequence[tuple[Run, RunProgress]]) -> RenderableType:
    found = table(
        "run", "name", "state", "done", "skipped", "retrying", "failed", "waiting", "cost",
        right=("done", "skipped", "retrying", "failed", "waiting", "cost"),
    )  # fmt: skip
    for run, progress in runs:
        found.add_row(
            str(run.id)[:8],
            run.name,
            standing(run, progress),
            f"{progress.done:,}",
            f"{progress.skipped:,}",
            f"{progress.retrying:,}",
            f"{progress.dead_lettered:,}",
            f"{progress.queued + progress.held:,}",
            money(progress.cost),
        )
    return found
