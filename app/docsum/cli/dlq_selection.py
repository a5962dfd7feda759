"""Which dead letters a command means, and what the commands of `docsum dlq` share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.cost import starting_from
from docsum.cli.documents import ids_of
from docsum.cli.output import WrongUsage, say
from docsum.errors import REASONS
from docsum.models import Coordinates, DeadLetterFilter
from docsum.replay import Selection, entry_at
from docsum.triage import place_of
from docsum.words import clean, span

if TYPE_CHECKING:
    from docsum.ports import SummaryStore

ASKS_ABOVE = 100  # entries that are replayed or discarded without a question, on a terminal

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Document ids, paths, or coordinates such as 'docsum.dlq[3]@17'."),
]
_WHY = "Only those that failed for this reason; repeatable."
Reasons = Annotated[list[str] | None, typer.Option("--reason", metavar="REASON", help=_WHY)]
Failures = Annotated[list[str] | None, typer.Option("--failure", metavar="REASON", help=_WHY)]
Run = Annotated[str, typer.Option("--run", metavar="ID", help="Only of one run: its id, or `last`.")]
Since = Annotated[str, typer.Option(metavar="7d|2026-11-01", help="Only what failed since.")]
Until = Annotated[str, typer.Option(metavar="2h|2026-11-01", help="Only what failed before.")]
Documents = Annotated[
    list[str] | None, typer.Option("--document", metavar="ID|PATH", help="Only of this document; repeatable.")
]
All = Annotated[bool, typer.Option("--all", help="Everything open.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a command line."""

    reasons: Sequence[str] | None
    run: str
    since: str
    until: str
    documents: Sequence[str] | None

    def __bool__(self) -> bool:
        return bool(self.reasons or self.run or self.since or self.until or self.documents)

    async def of(self, store: SummaryStore, states: tuple[str, ...]) -> DeadLetterFilter:
        """Raises WrongUsage or UnknownRun."""
        from docsum.cli.runs import find

        for reason in self.reasons or ():
            if reason not in REASONS:
                raise WrongUsage(
                    f"There is no reason {reason!r}: `docsum dlq ls` shows those that there are."
                )
        now = datetime.now(UTC)
        return DeadLetterFilter(
            states=states,
            reasons=tuple(self.reasons or ()),
            documents=tuple([await _document(text, store) for text in self.documents or ()]),
            run_id=(await find(self.run, store)).id if self.run else None,
            since=starting_from(self.since, now) if self.since else None,
            until=_ending_at(self.until, now) if self.until else None,
        )


def _ending_at(text: str, now: datetime) -> datetime:
    try:
        return starting_from(text, now)
    except WrongUsage as error:
        raise WrongUsage(str(error).replace("--since", "--until")) from error


async def _document(text: str, store: SummaryStore) -> str:
    """The id that is meant: the one that has an entry."""
    for name in ids_of(text):
        if await store.dead_letter_groups(DeadLetterFilter(states=(), documents=(name,))):
            return name
    return text


def unknown(text: str) -> WrongUsage:
    return WrongUsage(f"There is no dead letter {clean(text)}: `docsum dlq ls` shows those that there are.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command is to work on."""

    ids: Sequence[str] | None
    filters: Filters
    everything: bool
    state: str = ""

    def refuse_unclear(self, verb: str) -> None:
        """Raises WrongUsage."""
        filter_ = "--reason timeout" if verb == "replay" else "--failure empty"
        if not (self.ids or self.filters or self.everything or self.state):
            raise WrongUsage(
                f"Say which: `docsum dlq {verb} ID`, filters such as {filter_} or --run last, or --all for "
                "everything open. `docsum dlq ls` shows what there is."
            )
        if self.ids and (self.filters or self.everything or self.state):
            raise WrongUsage("Give ids or filters, not both: --document is the filter by document.")
        if self.everything and self.filters:
            raise WrongUsage("--all takes everything open: leave it out to choose by filters.")

    async def selection(
        self, store: SummaryStore, states: tuple[str, ...], limit: int | None = None
    ) -> Selection:
        """The entries in these states. Raises WrongUsage for an id that is no dead letter."""
        if not self.ids:
            return Selection(await self.filters.of(store, states), limit=limit)
        places: list[Coordinates] = []
        documents: list[str] = []
        for text in self.ids:
            if place := place_of(text):
                row = await entry_at(store, place)
                places.append(place)
                there = {row.state} if row else set()
            else:
                documents.append(await _document(text, store))
                meant = DeadLetterFilter(states=(), documents=(documents[-1],))
                there = {group.state for group in await store.dead_letter_groups(meant)}
            if not there:
                raise unknown(text)
            if there.isdisjoint(states):
                say(f"{clean(text)} is {' and '.join(sorted(there))}: it is left alone.")
        of_documents = DeadLetterFilter(states=states, documents=tuple(documents)) if documents else None
        return Selection(of_documents, tuple(places), limit)


# -- what the commands share -------------------------------------------------------------------------------


def need_somebody(agreed: bool) -> None:
    if not agreed and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise WrongUsage("Add --yes where nobody can be asked; --dry-run shows what would happen.")


def age(moment: datetime, now: datetime) -> str:
    return span(max(0.0, (now - moment).total_seconds()))
