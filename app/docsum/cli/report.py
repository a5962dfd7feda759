"""How a run has ended: the numbers, what failed and why, what to do next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from docsum.cli.output import console, money, next_step, one_line, span, standing, table
from docsum.errors import REASONS
from docsum.models import Run, RunDocumentRow, State

if TYPE_CHECKING:
    from docsum.ports import SummaryStore
    from docsum.runs import Snapshot

FAILED_AT_MOST = 20  # rows of the table; `export` has all


async def report(snapshot: Snapshot, store: SummaryStore, seconds: float | None = None) -> None:
    """The end of a run, or where it is, for a person."""
    run, progress = snapshot.run, snapshot.progress
    numbers = table("state", "done", "skipped", "retrying", "failed", "waiting", "cost", "time")
    numbers.add_row(
        standing(run, progress),
        f"{progress.done:,}",
        f"{progress.skipped:,}",
        f"{progress.retrying:,}",
        f"{progress.dead_lettered:,}",
        f"{progress.queued + progress.held:,}",
        money(progress.cost),
        span(seconds if seconds is not None else (progress.as_of - run.created_at).total_seconds()),
    )
    console().print(numbers)
    if progress.dead_lettered:
        await report_failed(run, progress.dead_lettered, store)
    next_step(_next(snapshot))


async def report_failed(run: Run, count: int, store: SummaryStore) -> None:
    """The first failed documents of a run with reason, message and what to do."""
    failures = table("failed", "reason", "what happened", "what to do")
    async for row in failed(run, store):
        failures.add_row(
            short_name(run, row.document_id),
            row.reason,
            one_line(row.message, 200),
            REASONS[row.reason].hint if row.reason in REASONS else "",
        )
        if failures.row_count == FAILED_AT_MOST:
            break
    out = console()
    out.print(failures)
    if count > FAILED_AT_MOST:
        out.print(f"{count - FAILED_AT_MOST:,} more: `docsum export --run {run.id} -o run.csv` has all.")


async def failed(run: Run, store: SummaryStore) -> AsyncIterator[RunDocumentRow]:
    """The dead-lettered documents of a run."""
    async for row, _ in store.run_rows(run.id):
        if row.state is State.DEAD_LETTERED:
            yield row


def short_name(run: Run, document_id: str) -> str:
    """A file's path below the run's folder; any other id as it is."""
    return document_id.removeprefix(f"file://{run.source.rstrip('/')}/")


def _next(snapshot: Snapshot) -> str:
    run = snapshot.run
    if not snapshot.finished:
        return f"`docsum runs watch {run.id}`"
    if snapshot.progress.done or snapshot.progress.skipped:
        return f"`docsum export --run {run.id} -o summaries.csv`"
    return "`docsum runs ls`"
