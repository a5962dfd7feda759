"""`docsum cost`: what was paid, for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from docsum.cli.deployment import reached
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, WrongUsage, console, emit, finish, next_step, say, table
from docsum.models import EPOCH, CostBy, CostLine, Costs, Usage
from docsum.topics import parse_duration
from docsum.words import ANSWERED, money

if TYPE_CHECKING:
    from docsum.ports import SummaryStore


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum cost`."""
    app.command(name)(cost)


def cost(
    run: Annotated[
        str, typer.Option("--run", metavar="ID", help="One run: its id, how it begins, or `last`.")
    ] = "",
    since: Annotated[
        str, typer.Option(metavar="7d|2026-11-01", help="Only what was paid since; else since the beginning.")
    ] = "",
    by: Annotated[CostBy, typer.Option(help="A line for each of these.")] = CostBy.MODEL,
    json: JsonObject = False,
) -> None:
    """What was paid: calls, tokens, dollars, dollars per document.

    Every call that was paid for counts, also one whose answer was no use: `--by reason`
    shows what the money went for. A stored answer that is used again costs nothing and
    is no call. Days are UTC.

    \b
      docsum cost
      docsum cost --since 7d --by day
      docsum cost --run last --by reason
      docsum cost --by run --json | jq '.lines[] | {run_id, cost_usd}'
    """
    moment = starting_from(since, datetime.now(UTC)) if since else None
    finish(_cost(run, moment, by, json))


def starting_from(text: str, now: datetime) -> datetime:
    """The moment that a person means by `7d` or `2026-11-01`. Raises WrongUsage."""
    try:
        moment = now - parse_duration(text)
    except OverflowError:
        moment = EPOCH
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise WrongUsage(
                f"{text!r} is no time to count from: write 7d, 12h or a day such as 2026-11-01."
            ) from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > now:
        raise WrongUsage(f"{text} lies ahead: --since takes a time that is past.")
    return max(moment, EPOCH)


async def _cost(run_id: str, since: datetime | None, by: CostBy, json: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.runs import find

    async with open_store(reached()) as store:
        run = await find(run_id, store) if run_id else None
        costs = await store.costs(by, since, run.id if run else None)
        names = await _names(costs, store) if by is CostBy.RUN else {}
    if json:
        emit(fields(costs, by, since, run.id if run else None, names))
        return Code.OK
    if costs.total.calls:
        _print(costs, by, names)
    else:
        of_run = f" by run {run.id}" if run else ""
        say(f"Nothing has been paid for{of_run}{f' since {since:%Y-%m-%d %H:%M} UTC' if since else ''}.")
    _print_saved(costs)
    next_step("`docsum cost --by run`" if by is CostBy.REASON else "`docsum cost --by reason`")
    return Code.OK


async def _names(costs: Costs, store: SummaryStore) -> Mapping[str, str]:
    """Run id -> its name; a run that nobody recorded has none."""
    runs = await asyncio.gather(*(store.run(UUID(line.key)) for line in costs.lines if line.key))
    return {str(run.id): run.name for run in runs if run}


def fields(
    costs: Costs, by: CostBy, since: datetime | None, run_id: UUID | None, names: Mapping[str, str]
) -> dict[str, object]:
    """The money as a program reads it; amounts are US dollars."""

    def key(line: CostLine) -> dict[str, object]:
        if by is CostBy.RUN:
            return {"run_id": line.key or None, "name": names.get(line.key, "")}
        return {by.value: line.key}

    return {
        "by": by.value,
        "since": since,
        "run_id": str(run_id) if run_id else None,
        "lines": [key(line) | _numbers(line) for line in costs.lines],
        "total": _numbers(costs.total),
        "reused_summaries": costs.reused,
        "saved_usd_at_least": costs.saved,
    }


def _numbers(line: CostLine) -> dict[str, object]:
    usage = line.usage
    return {
        "calls": line.calls,
        "usable": line.calls - line.unusable,
        "unusable": line.unusable,
        "statuses": dict(line.statuses),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cost_usd": line.cost,
        "documents": line.documents,
        "cost_per_document_usd": line.per_document,
    }


def _print(costs: Costs, by: CostBy, names: Mapping[str, str]) -> None:
    columns = _columns(costs.total.usage, by)
    found = table(by.value, *columns, right=tuple(columns))
    for line in costs.lines:
        found.add_row(_key(line.key, by, names), *(show(line) for show in columns.values()))
    found.add_section()
    found.add_row("total", *(show(costs.total) for show in columns.values()))
    out = console()
    out.print(found)
    if costs.total.statuses.get("lost") and by is not CostBy.REASON:
        out.print("Lost calls got no reply: they are counted as if served, at an estimated price.")


def _columns(total: Usage, by: CostBy) -> Mapping[str, Callable[[CostLine], str]]:
    """Those that say something: by reason all calls of a line are alike, and a cache is seldom used."""
    columns: dict[str, Callable[[CostLine], str]] = {"calls": lambda line: f"{line.calls:,}"}
    if by is not CostBy.REASON:
        columns["unusable"] = _unusable
    columns["tokens in"] = lambda line: f"{line.usage.input_tokens:,}"
    if total.cache_read_tokens or total.cache_write_tokens:
        columns["cache read"] = lambda line: f"{line.usage.cache_read_tokens:,}"
        columns["cache written"] = lambda line: f"{line.usage.cache_write_tokens:,}"
    return columns | {
        "tokens out": lambda line: f"{line.usage.output_tokens:,}",
        "documents": lambda line: f"{line.documents:,}",
        "cost": lambda line: money(line.cost),
        "per document": lambda line: money(line.per_document),
    }


def _unusable(line: CostLine) -> str:
    parts = [f"{count:,} {status}" for status, count in sorted(line.statuses.items()) if status != "ok"]
    return ", ".join(parts) or "0"


def _key(key: str, by: CostBy, names: Mapping[str, str]) -> str:
    match by:
        case CostBy.RUN:
            return f"{key[:8]} {names.get(key, '')}".strip() if key else "live events"
        case CostBy.REASON:
            return f"{key}: {ANSWERED[key]}" if key in ANSWERED else key
        case _:
            return key


def _print_saved(costs: Costs) -> None:
    if costs.reused:
        console().print(
            f"{costs.reused:,} of the newest summaries are made of answers that were there already: "
            f"at least {money(costs.saved)} was not paid again."
        )
