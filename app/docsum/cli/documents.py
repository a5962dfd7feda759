"""`docsum documents`: what is known of one document, and how it is forgotten."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, WrongUsage, agreed, console, emit, finish, next_step, say, table
from docsum.documents import document_fields, tombstone
from docsum.errors import REASONS, DocsumError
from docsum.models import (
    Known,
    Rows,
    RunDocumentRow,
    State,
    Summary,
    SummaryRow,
    Traces,
)
from docsum.sources import UnusableSource, path_id
from docsum.words import clean, money

if TYPE_CHECKING:
    from docsum.ports import SummaryStore
    from docsum.settings import Settings


Name = Annotated[str, typer.Argument(metavar="ID|PATH", help="A document id, or the path of a file.")]


class UnknownDocument(DocsumError):
    """Nothing is stored of a document."""


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum documents ...`."""
    group = typer.Typer(help="Documents: show one, delete one.", rich_markup_mode=None, no_args_is_help=True)
    group.callback()(_group)
    group.command("show")(show)
    group.command("delete")(delete)
    app.add_typer(group, name=name)


def _group() -> None:
    """One document: its summary, what happened to it in which run, and how it is deleted."""


def show(document: Name, json: JsonObject = False) -> None:
    """The newest summary of a document, its state in every run, its attempts, and why it failed.

    \b
      docsum documents show contracts/lease.pdf
      docsum documents show invoice-4711 --json
    """
    finish(_show(document, json))


async def _show(text: str, json: bool) -> Code:
    from docsum.bootstrap import open_store

    async with open_store(reached()) as store:
        found = await _find(text, store)
    if found is None:
        raise WrongUsage(f"Nothing is known of {text!r}: give the id of a document, or the path of a file.")
    document_id, known, stored, states = found
    if json:
        emit(document_fields(document_id, known, stored, states))
        return Code.OK
    _print(document_id, known, stored, states)
    failed = states and states[0].state is State.DEAD_LETTERED
    next_step(f"`docsum dlq show {quote(clean(document_id))}`" if failed else "`docsum runs ls`")
    return Code.OK


_Found = tuple[str, Known | None, SummaryRow | None, Sequence[RunDocumentRow]]


async def _find(text: str, store: SummaryStore) -> _Found | None:
    for document_id in ids_of(text):
        known, stored = await store.known(document_id), await store.summary(document_id)
        states = await store.document_runs(document_id)
        if known or states:
            return document_id, known, stored, states
    return None


def ids_of(text: str) -> list[str]:
    """An id is taken as it is; a path is also an id in other words."""
    try:
        return [text, path_id(text)]
    except UnusableSource:
        return [text]


def _print(
    document_id: str, known: Known | None, stored: SummaryRow | None, states: Sequence[RunDocumentRow]
) -> None:
    out = console()
    out.print(document_id, soft_wrap=True)
    if stored is not None and stored.summary is not None:
        summary = stored.summary
        out.print(f"\n{summary.title}\n\n{summary.summary}\n")
        for point in summary.key_points:
            out.print(f"  - {point}")
        for warning in summary.warnings:
            out.print(f"  ! {warning}")
        out.print(
            f"\n{summary.document_type}, {summary.language}, by {summary.model}, {money(summary.cost)}"
            f"{' (a stored answer was used again)' if summary.reused else ''}, "
            f"{stored.written_at.astimezone():%Y-%m-%d %H:%M:%S}"
        )
        if reading := _reading(summary):
            out.print(reading)
        out.print(f"source version {stored.source_version or 'unknown'}, {stored.uri}", soft_wrap=True)
    elif known is not None and known.deleted:
        out.print("\nIt was deleted, at its source or by `docsum documents delete`.")
    else:
        out.print("\nThere is no summary.")
    history = table("run", "state", "attempt", "at", "reason", "what happened", right=("attempt",))
    for row in states:
        history.add_row(
            str(row.run_id)[:8],
            row.state.value,
            str(row.attempt),
            f"{row.written_at.astimezone():%Y-%m-%d %H:%M:%S}",
            row.reason,
            row.message,
        )
    if states:
        out.print(history)
    if states and states[0].reason in REASONS:
        out.print(REASONS[states[0].reason].hint)


def _reading(summary: Summary) -> str:
    """How a long text was read; empty for one that was read at once and whole."""
    share = int(summary.coverage * 100 + 1e-6)  # down: 99.9 % is not all
    parts = []
    if summary.chunks > 1:
        parts.append(f"in {summary.chunks:,} parts")
    if parts or share < 100:
        parts.append(f"{share} % of the text")
    if summary.truncated:
        parts.append("which was cut at a size limit" if parts else "the text was cut at a size limit")
    return f"read: {', '.join(parts)}" if parts else ""


# -- deleting ----------------------------------------------------------------------------------------------


def delete(
    document: Name,
    purge: Annotated[
        bool, typer.Option("--purge", help="Take its words out of every table, for good.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without asking.")] = False,
    json: JsonObject = False,
) -> None:
    """Delete the summary of a document; with --purge, its words in every table.

    Nothing happens at the source: the next run over it, or a later event, makes the
    summary anew. Events from before the deletion do not.

    --purge blanks titles, summaries, attributes, the model's answers and error messages.
    It needs the grants ALTER UPDATE and ALTER DELETE on the tables; workers need neither.
    What stays: the id and the location of the document, the money (calls, tokens, cost), an
    answer that the summary of another document stands on, copies of the events in Kafka
    until their retention ends, and your backups. A worker that has the document in hand at
    this moment may still store its answer: purge again then.

    \b
      docsum documents delete ~/Documents/contracts/lease.pdf
      docsum documents delete invoice-4711 --purge
      docsum documents delete invoice-4711 --purge --yes --json
    """
    if purge and not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise WrongUsage("A purge cannot be undone: add --yes where nobody can be asked.")
    finish(_delete(document, purge, yes, json))


async def _delete(text: str, purge: bool, yes: bool, json: bool) -> Code:
    from docsum.bootstrap import open_store

    settings = reached()
    async with open_store(settings) as store:
        document_id, traces = await _traced(text, store)
        if purge and not yes and not await agreed(f"{document_id}: {_told(traces)} go for good. Purge?"):
            say("Nothing was deleted.")
            return Code.OK
        row = tombstone(document_id, await store.known(document_id), datetime.now(UTC))
        await store.write(Rows(summaries=(row,)))
        if settings.topics.summaries:
            await _take_back(settings, row)
        if purge:
            await store.purge(document_id, row.version)
        on_its_way = [each for each in await store.document_runs(document_id) if not each.state.terminal]
    if json:
        emit(_deleted_fields(document_id, purge, traces, on_its_way))
        return Code.OK
    _say_deleted(document_id, purge, traces, on_its_way)
    next_step("delete it at its source too, or the next run over it makes the summary anew")
    return Code.OK


async def _take_back(settings: Settings, row: SummaryRow) -> None:
    """Upstreams hold what they were told of the document."""
    from docsum.bootstrap import open_producer
    from docsum.kafka.results import deletion

    async with open_producer(settings) as producer:
        await producer.publish(deletion(settings.topology().summaries, row.document_id, row.version))


async def _traced(text: str, store: SummaryStore) -> tuple[str, Traces]:
    """The id that is meant, and what is stored of it. Raises UnknownDocument."""
    for document_id in ids_of(text):
        traces = await store.traces(document_id)
        if (
            traces != Traces()
            or await store.known(document_id) is not None
            or await store.document_runs(document_id)
        ):
            return document_id, traces
    raise UnknownDocument(f"Nothing is stored of {text!r}: give the id of a document, or the path of a file.")


def _told(traces: Traces) -> str:
    versions, answers = _count(traces.summaries, "stored version"), _count(traces.answers, "answer")
    return f"{versions} of the summary, {answers} of the model and {_count(traces.messages, 'error message')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _say_deleted(document_id: str, purge: bool, traces: Traces, on_its_way: Sequence[RunDocumentRow]) -> None:
    if not purge:
        say(f"Deleted {document_id}: its summary shows no more.")
        return
    say(f"Purged {document_id}: {_told(traces)} are gone. The money that it cost stays in the ledger.")
    if traces.shared:
        say(f"{_count(traces.shared, 'answer')} stayed: the summary of another document stands on it.")
    for row in on_its_way:
        say(
            f"It is {row.state.value} in run {row.run_id}: a worker that has it in hand at this moment may "
            "still store its answer. Purge it again once it has ended there."
        )


def _deleted_fields(
    document_id: str, purge: bool, traces: Traces, on_its_way: Sequence[RunDocumentRow]
) -> dict[str, object]:
    gone = traces if purge else Traces()
    return {
        "document_id": document_id,
        "deleted": True,
        "purged": purge,
        "summaries_removed": gone.summaries,
        "answers_blanked": gone.answers,
        "answers_kept": traces.answers + traces.shared - gone.answers,
        "messages_blanked": gone.messages,
        "on_its_way_in_runs": [str(row.run_id) for row in on_its_way],
    }
