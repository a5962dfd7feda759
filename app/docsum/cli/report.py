"""How a run has ended: the numbers, what failed and why, what to do next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING

from docsum.cli.output import console, count_cells, next_step, table
from docsum.errors import REASONS
from docsum.models import Run, RunDocumentRow, State
from docsum.runs import standing
from docsum.words import money, one_line, span

if TYPE_CHECKING:
    from docsum.cli.quoting import Priced
    from docsum.cli.sampling import Projection
    from docsum.ports import SummaryStore
    from docsum.quote import Estimate
    from docsum.runs import Snapshot

FAILED_AT_MOST = 20  # rows of the table; `export` has all
_SUMMARIES_AT_MOST = 20  # the same


async def report(snapshot: Snapshot, store: SummaryStore, seconds: float | None = None) -> None:
    """The end of a run, or where it is, for a person."""
    run, progress = snapshot.run, snapshot.progress
    numbers = table("state", "done", "skipped", "retrying", "failed", "waiting", "cost", "time")
    numbers.add_row(
        standing(run, progress),
        *count_cells(progress),
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


async def report_summaries(run: Run, store: SummaryStore) -> None:
    """The first summaries of a run."""
    found = table("document", "title", "summary", "cost", right=("cost",))
    async for row, stored in store.run_rows(run.id):
        if row.state.terminal and stored is not None and stored.summary is not None:
            summary = stored.summary
            found.add_row(
                short_name(run, row.document_id),
                one_line(summary.title, 60),
                one_line(summary.summary, 120),
                money(summary.cost),
            )
        if found.row_count == _SUMMARIES_AT_MOST:
            break
    if found.row_count:
        console().print(found)


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
    steps = []
    if snapshot.progress.dead_lettered:
        steps.append(f"`docsum dlq ls --run {run.id}`")
    if snapshot.progress.done or snapshot.progress.skipped:
        steps.append(f"`docsum export --run {run.id} -o summaries.csv`")
    return ", ".join(steps) or "`docsum runs ls`"


# -- prices --------------------------------------------------------------------------------------------------


def quote_fields(priced: Priced, command: str, notes: Sequence[str]) -> dict[str, object]:
    """A price as a program reads it."""
    quoted = priced.quote
    fields: dict[str, object] = {
        "model": priced.model,
        "documents": quoted.documents + priced.unchanged,
        "unchanged": priced.unchanged,
        "passed_over": priced.passed_over,
        "read": quoted.read,
        "summarised": _rounded(quoted.summarised),
        "unreadable": {
            reason: {**_rounded(count), "hint": REASONS[reason].hint}
            for reason, count in quoted.unreadable.items()
        },
        "calls": _rounded(quoted.calls),
        "input_tokens": _rounded(quoted.input_tokens),
        "output_tokens": _rounded(quoted.output_tokens),
        "live_usd": asdict(quoted.live),
        "batch_usd": asdict(quoted.batch),
        "seconds": round(priced.time[0]) if priced.time else None,
        "notes": notes,
        "command": command,
    }
    if priced.instead:
        model, other = priced.instead
        fields["instead"] = {"model": model, "live_usd": asdict(other.live), "batch_usd": asdict(other.batch)}
    return fields


def _rounded(estimate: Estimate) -> dict[str, int]:
    return {name: round(value) for name, value in asdict(estimate).items()}


def report_quote(priced: Priced, command: str, notes: Sequence[str]) -> None:
    """A price for a person."""
    quoted, out = priced.quote, console()
    right = ("about", "95 % interval")
    numbers = table("what", *right, right=right)
    numbers.add_row("documents", f"{quoted.documents + priced.unchanged:,}")
    if priced.passed_over:
        numbers.add_row("  besides, entries that cannot be announced", f"{priced.passed_over:,}")
    if priced.unchanged:
        numbers.add_row("  unchanged: nothing to pay", f"{priced.unchanged:,}")
    numbers.add_row("  to summarise", *_counts(quoted.summarised))
    if quoted.unreadable:
        numbers.add_row("  unreadable", f"{quoted.documents - round(quoted.summarised.value):,}")
    numbers.add_row("tokens in", *_counts(quoted.input_tokens))
    numbers.add_row("tokens out", *_counts(quoted.output_tokens))
    for lane, cost in (("live", quoted.live), ("batch", quoted.batch)):
        price = ("free", "") if priced.instead else (dollars(cost.value), _between(cost, dollars))
        numbers.add_row(f"price on the {lane} lane", *price)
    numbers.add_row("time, at least", span(priced.time[0]) if priced.time else "unknown")
    out.print(numbers)
    if quoted.unreadable:
        failures = table(
            "unreadable", "about", "95 % interval", "what to do", right=("about", "95 % interval")
        )
        for reason, count in quoted.unreadable.items():
            failures.add_row(reason, *_counts(count), REASONS[reason].hint)
        out.print(failures)
    for note in notes:
        out.print(note, soft_wrap=True)
    out.print(f"To run it: {command}", soft_wrap=True)


def quote_notes(priced: Priced) -> list[str]:
    """What a price stands on, a sentence each."""
    quoted = priced.quote
    notes = [f"Read {quoted.read:,} of {quoted.documents:,} documents for this, in {span(priced.seconds)}."]
    if priced.counted:
        notes.append(f"The tokens of {priced.counted} requests were counted by the provider.")
    else:
        notes.append("No provider could count tokens from here, so the tokens in are known less well.")
    if priced.answers:
        notes.append(f"The length of the answers is that of {priced.answers:,} earlier ones.")
    else:
        notes.append("There are no earlier answers of this model to tell the length of the next from.")
    if priced.time is None:
        notes.append("The time is unknown: no limit is set (DOCSUM_LIMITS__...), and no call was measured.")
    else:
        notes.append(f"The time is that {priced.time[1]}.")
    if priced.instead:
        model, other = priced.instead
        live, batch = dollars(other.live.value), dollars(other.batch.value)
        notes.append(
            f"{priced.model} is free. With --model {model} it would cost about {live} live or {batch} batch."
        )
    return notes


def projection_fields(found: Projection, command: str) -> dict[str, object]:
    """What a sample says of the whole, as a program reads it."""
    return {
        "documents": found.documents,
        "model": found.model,
        "live_usd": asdict(found.live),
        "batch_usd": asdict(found.batch),
        "command": command,
    }


def report_projection(found: Projection, model: str, command: str) -> None:
    """What a sample says of the whole, for a person."""
    live, batch, out = found.live, found.batch, console()
    if found.model != model:
        out.print(f"{model} is free.")
    out.print(
        f"All {found.documents:,} documents with {found.model}: about {dollars(live.value)} live "
        f"({_between(live, dollars) or 'exactly'}) or {dollars(batch.value)} batch.",
        soft_wrap=True,
    )
    out.print(f"To run all: {command}", soft_wrap=True)


def _counts(estimate: Estimate) -> tuple[str, str]:
    return _three_digits(estimate.value), _between(estimate, _three_digits)


def _between(estimate: Estimate, shown: Callable[[float], str]) -> str:
    low, high = shown(estimate.low), shown(estimate.high)
    return "" if low == high else f"{low} to {high}"


def _three_digits(count: float) -> str:
    """Large counts are not known better than that."""
    return f"{round(count):,}" if count < 10_000 else f"{float(f'{count:.3g}'):,.0f}"


def dollars(amount: float) -> str:
    """An estimate: cents, of less than ten cents two digits."""
    return f"${amount:,.2f}" if amount >= 0.1 or not amount else f"${Decimal(f'{amount:.2g}'):f}"
