"""`docsum export`: every document of a run with its state, its reason and its summary."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, finish, next_step, plain, say
from docsum.models import Run, RunDocumentRow, SummaryRow

_FORMATS = (".jsonl", ".csv")
_COLUMNS = (
    "document_id", "uri", "state", "reason", "message", "attempt", "title", "summary", "key_points",
    "language", "document_type", "warnings", "model", "input_tokens", "output_tokens", "cost_usd", "reused",
    "source_version", "occurred_at", "written_at", "attributes", "run_id",
)  # fmt: skip

_Write = Callable[[dict[str, object]], object]


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum export`."""
    app.command(name)(export)


def export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file, .jsonl or .csv; else JSON lines on stdout.")
    ] = None,
    run: Annotated[str, typer.Option("--run", help="The id of a run, or how it begins.")] = "last",
) -> None:
    """Every document of a run, the last one unless --run names another: state, reason, summary, cost.

    \b
      docsum export -o summaries.csv
      docsum export --run 3f2a91c0 | jq -r 'select(.state == "dead_lettered") | .document_id'
    """
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise WrongUsage(f"{output.name} must end with {' or '.join(_FORMATS)}: that chooses the format.")
    if output is not None and not output.absolute().parent.is_dir():
        raise WrongUsage(f"There is no folder {output.absolute().parent}.")
    finish(_export(output, run))


async def _export(output: Path | None, run_id: str) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.runs import find

    count = 0
    async with open_store(reached()) as store:
        run = await find(run_id, store)
        with _writer(output) as write:
            async for row, stored in store.run_rows(run.id):
                write(fields(run, row, stored))
                count += 1
    say(f"{count:,} documents of run {run.id} ({run.name}){f' in {output}' if output else ''}.")
    next_step(f"`docsum runs show {str(run.id)[:8]}`")
    return Code.OK


def fields(run: Run, row: RunDocumentRow, stored: SummaryRow | None) -> dict[str, object]:
    """One document; what has no summary has only the fields of its state."""
    from docsum.cli.documents import summary_fields

    found: dict[str, object] = {
        "document_id": row.document_id,
        "uri": row.uri,
        "state": row.state.value,
        "reason": row.reason,
        "message": row.message,
        "attempt": row.attempt,
        "written_at": row.written_at,
        "run_id": str(run.id),
    }
    return found | (summary_fields(stored) if stored is not None and stored.summary is not None else {})


@contextmanager
def _writer(output: Path | None) -> Iterator[_Write]:
    """A file appears under its name when it is whole."""
    if output is None:
        yield lambda row: sys.stdout.write(_json(row))
        sys.stdout.flush()
        return
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            yield _csv_writer(file) if output.suffix.lower() == ".csv" else lambda row: file.write(_json(row))
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def _csv_writer(file: IO[str]) -> _Write:
    writer: csv.DictWriter[str] = csv.DictWriter(file, _COLUMNS, restval="")
    writer.writeheader()
    return lambda row: writer.writerow({name: _cell(value) for name, value in row.items()})


def _json(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, default=plain) + "\n"


def _cell(value: object) -> Any:  # Any: what csv takes
    """Text that a spreadsheet would take for a formula is disarmed by a quote in front."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return value if isinstance(value, int | float) else plain(value)
