"""`docsum dlq discard`: dead letters are given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.audit import audit
from docsum.cli.deployment import reached
from docsum.cli.dlq_selection import (
    ASKS_ABOVE,
    All,
    Documents,
    DryRun,
    Failures,
    Filters,
    Ids,
    Run,
    Since,
    Until,
    Wanted,
    Yes,
    need_somebody,
)
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, WrongUsage, agreed, console, emit, finish, next_step, say, table
from docsum.errors import REASONS
from docsum.replay import DISCARDABLE, Selection, Unsettled, chosen
from docsum.replay import discard as discarded
from docsum.words import clean

if TYPE_CHECKING:
    from docsum.ports import SummaryStore


def discard(
    ids: Ids = None,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: the audit keeps it.")] = "",
    failure: Failures = None,
    run: Run = "",
    since: Since = "",
    until: Until = "",
    document: Documents = None,
    state: Annotated[
        Unsettled | None, typer.Option(help="Only in this state; open unless told.", show_default=False)
    ] = None,
    all_: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: JsonObject = False,
) -> None:
    """Give dead letters up: they count as settled and are not replayed any more.

    Nothing is deleted: the records stay in Kafka until their retention ends, and
    `docsum dlq ls --state discarded` shows them.

    \b
      docsum dlq discard --failure empty --reason 'blank pages, agreed with the records office'
      docsum dlq discard 'docsum.dlq[3]@17' --reason 'a test'
      docsum dlq discard --state parked --run last --reason 'typed in by hand' --yes
    """
    if not reason.strip():
        raise WrongUsage("Say why with --reason TEXT: whoever looks for them later is told.")
    if reason in REASONS and not failure:
        raise WrongUsage(
            f"--reason says why you give them up; --failure {reason} chooses those that failed so."
        )
    wanted = Wanted(ids, Filters(failure, run, since, until, document), all_, state.value if state else "")
    wanted.refuse_unclear("discard")
    need_somebody(yes or dry_run)
    finish(_discard(wanted, reason.strip(), dry_run, yes, json))


async def _discard(wanted: Wanted, why: str, dry_run: bool, yes: bool, json: bool) -> Code:
    from docsum.bootstrap import open_store

    states = DISCARDABLE if wanted.ids else (wanted.state or "open",)
    async with open_store(reached()) as store:
        selection = (await wanted.selection(store, states)).before(datetime.now(UTC))
        tally = await _tally(store, selection, states)
        count = tally.total()
        if not count:
            say("There is nothing to discard.")
        elif not dry_run:
            asking = count > ASKS_ABOVE and not yes
            if asking and not await agreed(f"Discard {count:,} dead letters?"):
                say("Nothing was discarded.")
                return Code.OK
            count = await _given_up(store, selection, states, why)
    if json:
        emit(
            {"selection": str(selection), "dry_run": dry_run, "discarded": 0 if dry_run else count}
            | {"reasons": [{"reason": reason, "entries": entries} for reason, entries in tally.items()]}
        )
        return Code.OK
    if count and dry_run:
        found = table("reason", "entries", right=("entries",))
        for reason, entries_ in tally.most_common():
            found.add_row(clean(reason), f"{entries_:,}")
        console().print(found)
        say(f"It would discard {count:,} dead letters; nothing was done.")
    elif count:
        say(f"Discarded {count:,} dead letters.")
    next_step("the same without --dry-run" if count and dry_run else "`docsum dlq ls --state discarded`")
    return Code.OK


async def _tally(store: SummaryStore, selection: Selection, states: Sequence[str]) -> Counter[str]:
    """Entries by reason."""
    tally: Counter[str] = Counter()
    if selection.meant is not None:
        for group in await store.dead_letter_groups(selection.meant):
            tally[group.reason] += group.count
    async with aclosing(chosen(store, replace(selection, meant=None), states)) as found:
        async for row in found:
            tally[row.reason] += 1
    return tally


async def _given_up(store: SummaryStore, selection: Selection, states: Sequence[str], why: str) -> int:
    """How many; the audit has as many, however it ends."""
    count, how = 0, ", interrupted"
    try:
        async with aclosing(discarded(store, selection, states)) as pages:
            async for page in pages:
                count += page
        how = ""
    finally:
        if how:
            say(f"{count:,} were discarded; the same command goes on.")
        if count:
            await audit(store, "dlq discard", f"{selection}: {why}{how}", count)
    return count
