"""`docsum documents`: what is known of one document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, WrongUsage, console, emit, finish, money, next_step, table
from docsum.errors import REASONS
from docsum.models import Known, RunDocumentRow, State, SummaryRow
from docsum.sources import UnusableSource, path_id

if TYPE_CHECKING:
    from docsum.ports import SummaryStore


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum documents ...`."""
    group = typer.Typer(help="Documents: show one.", rich_markup_mode=None, no_args_is_help=True)
    group.callback()(_group)
    group.command("show")(show)
    app.add_typer(group, name=name)


def _group() -> None:
    """One document: its summary, and what happened to it in which run."""


def show(
    document: Annotated[str, typer.Argument(metavar="ID|PATH", help="A document id, or the path of a file.")],
    json: JsonObject = False,
) -> None:
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
        emit(_fields(document_id, known, stored, states))
        return Code.OK
    _print(document_id, known, stored, states)
    failed = states and states[0].state is State.DEAD_LETTERED
    next_step("`docsum run` on its folder, once it is repaired" if failed else "`docsum runs ls`")
    return Code.OK


_Found = tuple[str, Known | None, SummaryRow | None, Sequence[RunDocumentRow]]


async def _find(text: str, store: SummaryStore) -> _Found | None:
    for document_id in _ids(text):
        known, stored = await store.known(document_id), await store.summary(document_id)
        states = await store.document_runs(document_id)
        if known or states:
            return document_id, known, stored, states
    return None


def _ids(text: str) -> list[str]:
    """An id is taken as it is; a path is also an id in other words."""
    try:
        return [text, path_id(text)]
    except UnusableSource:
        return [text]


def _fields(
    document_id: str, known: Known | None, stored: SummaryRow | None, states: Sequence[RunDocumentRow]
) -> dict[str, object]:
    summary = stored.summary if stored else None
    return {
        "document_id": document_id,
        "deleted": bool(known and known.deleted),
        "summary": summary_fields(stored) if stored and summary else None,
        "runs": [
            {
                "run_id": str(row.run_id),
                "state": row.state.value,
                "attempt": row.attempt,
                "reason": row.reason,
                "message": row.message,
                "written_at": row.written_at,
            }
            for row in states
        ],
    }


def summary_fields(stored: SummaryRow) -> dict[str, object]:
    """A stored summary as a program reads it."""
    summary = stored.summary
    assert summary is not None
    return {
        "title": summary.title,
        "summary": summary.summary,
        "key_points": list(summary.key_points),
        "language": summary.language,
        "document_type": summary.document_type,
        "warnings": list(summary.warnings),
        "model": summary.model,
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "cost_usd": summary.cost,
        "reused": summary.reused,
        "source_version": stored.source_version,
        "occurred_at": stored.occurred_at,
        "written_at": stored.written_at,
        "attributes": dict(stored.attributes),
    }


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
        out.print(f"source version {stored.source_version or 'unknown'}, {stored.uri}", soft_wrap=True)
    elif known is not None and known.deleted:
        out.print("\nThe source has deleted it.")
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
