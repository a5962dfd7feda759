"""`docsum dlq`: what has failed for good and why, and how it gets another chance."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.dlq_selection import Documents, Filters, Reasons, Run, Since, Until, age
from docsum.cli.options import JsonLines
from docsum.cli.output import Code, console, emit, finish, next_step, say, table
from docsum.errors import REASONS
from docsum.models import DeadLetterFilter, DeadLetterGroup, DeadLetterRow
from docsum.replay import entries
from docsum.triage import entry_fields, replays_of
from docsum.words import clean, one_line

if TYPE_CHECKING:
    from docsum.ports import SummaryStore

_NEWEST = 20  # entries of the list, unless --limit says otherwise


class State(enum.StrEnum):
    """What `--state` takes."""

    OPEN = "open"
    REPLAYED = "replayed"
    PARKED = "parked"
    DISCARDED = "discarded"
    RESOLVED = "resolved"
    ALL = "all"

    @property
    def states(self) -> tuple[str, ...]:
        return () if self is State.ALL else (self.value,)


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum dlq ...`."""
    from docsum.cli.dlq_discard import discard
    from docsum.cli.dlq_replay import replay
    from docsum.cli.dlq_show import show

    group = typer.Typer(
        help="Dead letters: what failed for good; list, show, replay, discard.",
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    group.command("ls")(list_)
    group.command("show")(show)
    group.command("replay")(replay)
    group.command("discard")(discard)
    app.add_typer(group, name=name)


def list_(
    *,
    reason: Reasons = None,
    run: Run = "",
    since: Since = "",
    until: Until = "",
    document: Documents = None,
    state: Annotated[State, typer.Option(help="Only in this state.")] = State.OPEN,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10_000, help=f"The newest so many; {_NEWEST} unless told.")
    ] = None,
    groups: Annotated[bool, typer.Option("--groups", help="Only the counts by reason.")] = False,
    json: JsonLines = False,
) -> None:
    """What has failed for good: by reason, then the newest entries.

    An entry is open until it is replayed (sent back), parked (it failed after two replays),
    discarded (given up), or resolved: its document was stored by a later event.

    With --json and without --limit, every entry, in the order of the topic.

    \b
      docsum dlq ls
      docsum dlq ls --reason timeout --reason scanned --since 7d
      docsum dlq ls --run last --state all --json | jq -r .document_id
      docsum dlq ls --groups --json
    """
    finish(_list(Filters(reason, run, since, until, document), state, limit, groups, json))


async def _list(filters: Filters, state: State, limit: int | None, groups: bool, json: bool) -> Code:
    from docsum.bootstrap import open_store

    now = datetime.now(UTC)
    async with open_store(reached()) as store:
        meant = await filters.of(store, state.states)
        if json and not groups:
            await _emit_entries(store, meant, limit)
            return Code.OK
        found = await store.dead_letter_groups(meant)
        newest = [] if groups else await store.newest_dead_letters(meant, limit or _NEWEST)
    if json:
        for group in found:
            emit(_group_fields(group))
        return Code.OK
    if not found:
        _say_empty(filters, state)
        return Code.OK
    _print_groups(found, now)
    if newest:
        _print_entries(newest, sum(group.count for group in found), now)
        next_step(f"`docsum dlq show '{newest[0].dead_letter}'`")
    else:
        next_step(f"`docsum dlq replay --reason {found[0].reason} --dry-run`")
    return Code.OK


def _say_empty(filters: Filters, state: State) -> None:
    which = "dead letters" if state is State.ALL else f"{state.value} dead letters"
    say(f"There are no {which}{' that match' if filters else ''}.")
    next_step("`docsum status`" if state is State.ALL else "`docsum dlq ls --state all`")


async def _emit_entries(store: SummaryStore, meant: DeadLetterFilter, limit: int | None) -> None:
    if limit is not None:
        for row in await store.newest_dead_letters(meant, limit):
            emit(entry_fields(row))
        return
    async with aclosing(entries(store, meant)) as found:
        async for row in found:
            emit(entry_fields(row))


def _print_groups(groups: Sequence[DeadLetterGroup], now: datetime) -> None:
    found = table(
        "reason", "state", "entries", "documents", "oldest", "newest", "what happened", "what to do",
        right=("entries", "documents"),
    )  # fmt: skip
    for group in groups:
        row = REASONS.get(group.reason)
        found.add_row(
            clean(group.reason),
            group.state,
            f"{group.count:,}",
            f"{group.documents:,}",
            age(group.oldest, now),
            age(group.newest, now),
            row.sentence if row else one_line(clean(group.sample), 100),
            row.hint if row else "",
        )
    console().print(found)


def _print_entries(rows: Sequence[DeadLetterRow], count: int, now: datetime) -> None:
    found = table(
        "newest", "document", "reason", "attempts", "replays", "failed", "message",
        right=("attempts", "replays"),
    )  # fmt: skip
    for row in rows:
        found.add_row(
            str(row.dead_letter),
            clean(row.document_id) or "(not decoded)",
            clean(row.reason),
            str(row.attempts),
            str(replays_of(row)),
            f"{age(row.failed_at, now)} ago",
            one_line(clean(row.message), 120),
        )
    out = console()
    out.print(found)
    if count > len(rows):
        out.print(f"{count - len(rows):,} more: --limit shows more of them, --json all.")


def _group_fields(group: DeadLetterGroup) -> dict[str, object]:
    row = REASONS.get(group.reason)
    return {
        "reason": group.reason,
        "state": group.state,
        "entries": group.count,
        "documents": group.documents,
        "oldest": group.oldest,
        "newest": group.newest,
        "sentence": row.sentence if row else "",
        "hint": row.hint if row else "",
        "sample": group.sample,
    }
