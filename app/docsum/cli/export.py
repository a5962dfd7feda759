"""`docsum export`: every document of a run with its state, its reason and its summary."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, console, finish, next_step, say
from docsum.errors import ConfigurationError, DocsumError
from docsum.models import Run, RunDocumentRow, SummaryRow
from docsum.words import plain

if TYPE_CHECKING:
    import pyarrow as pa

#: Column -> its type in a Parquet file.
COLUMNS = {
    "document_id": "text", "uri": "text", "state": "text", "reason": "text", "message": "text",
    "attempt": "integer", "title": "text", "summary": "text", "key_points": "texts", "language": "text",
    "document_type": "text", "warnings": "texts", "model": "text", "recipe": "text",
    "input_tokens": "integer", "output_tokens": "integer", "cost_usd": "money", "reused": "flag",
    "chunks": "integer", "coverage": "share", "truncated": "flag", "source_version": "text",
    "occurred_at": "moment", "written_at": "moment", "attributes": "names", "run_id": "text",
}  # fmt: skip
_ROW_GROUP = 5_000  # documents in memory at once
_TELL_EVERY = 500  # documents between two moves of the bar

_Row = dict[str, object]
_Write = Callable[[_Row], object]


class NotWritten(DocsumError):
    """The export cannot be written to where it should go."""


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum export`."""
    app.command(name)(export)


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="A file, .jsonl, .csv or .parquet; else, or for -, JSON lines on stdout."
        ),
    ] = None,
    run: Annotated[str, typer.Option("--run", help="The id of a run, or how it begins.")] = "last",
) -> None:
    """Every document of a run, the last one unless --run names another: state, reason, summary, cost.

    The summary is the newest one of the document, whichever run made it; a document without one
    (failed, waiting, deleted since) comes with its state alone. Times are UTC. The file appears
    when it is whole. Parquet, with typed columns, needs `pip install '.[parquet]'` in the checkout.

    \b
      docsum export -o summaries.csv
      docsum export --run 3f2a91c0 -o summaries.parquet
      docsum export --run 3f2a91c0 | jq -r 'select(.state == "dead_lettered") | .document_id'
    """
    file = None if output == Path("-") else output
    if file is not None:
        _refuse_unusable(file)
    finish(_export(file, run))


def _refuse_unusable(file: Path) -> None:
    """What can be told before anything is read."""
    suffix = file.suffix.lower()
    if suffix not in _WRITERS:
        raise WrongUsage(f"{file.name} must end with .jsonl, .csv or .parquet: that chooses the format.")
    if not file.absolute().parent.is_dir():
        raise WrongUsage(f"There is no folder {file.absolute().parent}.")
    if suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  (is it there? it is used when the first row comes)
        except ImportError as error:
            raise ConfigurationError(
                "Parquet needs one more package: `pip install '.[parquet]'` in the checkout."
            ) from error


async def _export(output: Path | None, run_id: str) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.runs import find

    count = 0
    bar = sys.stderr.isatty() and not (output is None and sys.stdout.isatty())
    try:
        async with open_store(reached()) as store:
            run = await find(run_id, store)
            total = (await store.progress(run.id)).total if bar else 0
            with _progress(total, shown=bar) as tell, _writer(output) as write:
                async for row, stored in store.run_rows(run.id):
                    write(fields(run, row, stored))
                    count += 1
                    if count % _TELL_EVERY == 0:
                        tell(count)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        return Code.OK
    except asyncio.CancelledError:
        say(
            f"Interrupted: {output} was not written." if output else f"Interrupted after {count:,} documents."
        )
        raise
    say(f"{count:,} documents of run {run.id} ({run.name}){f' in {output}' if output else ''}.")
    next_step(f"`docsum runs show {str(run.id)[:8]}`")
    return Code.OK


def fields(run: Run, row: RunDocumentRow, stored: SummaryRow | None) -> _Row:
    """One document; what has no summary has only the fields of its state."""
    from docsum.documents import summary_fields

    found: _Row = {
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
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """How far a long export is, for a person; nothing of it stays on the screen."""
    if not shown:
        yield lambda _count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("export", total=total)
        yield lambda count: bar.update(task, completed=count)


# -- where it goes -----------------------------------------------------------------------------------------


@contextmanager
def _writer(output: Path | None) -> Iterator[_Write]:
    """A file appears under its name when it is whole, or not at all. Raises NotWritten."""
    try:
        if output is None:
            with _stdout() as write:
                yield write
            return
        draft = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            with _WRITERS[output.suffix.lower()](draft) as write:
                yield write
            draft.replace(output)
        finally:
            draft.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise NotWritten(f"{output or 'Standard output'} cannot be written: {why}.") from error


@contextmanager
def _stdout() -> Iterator[_Write]:
    try:
        yield lambda row: sys.stdout.write(_json(row))
        sys.stdout.flush()
    except OSError:
        # What is still in the buffer has nowhere to go: Python would try again, and complain, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def _json_lines(path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield lambda row: file.write(_json(row))


def _json(row: _Row) -> str:
    return json.dumps(row, ensure_ascii=False, default=plain) + "\n"


@contextmanager
def _csv_rows(path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        yield lambda row: writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: object) -> Any:  # Any: what csv takes
    """Text that a spreadsheet would take for a formula is disarmed by a quote in front."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return value if isinstance(value, int | float) else plain(value)


@contextmanager
def _parquet_rows(path: Path) -> Iterator[_Write]:
    """Row group by row group: no more documents than one holds are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows: list[_Row] = []
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            rows.clear()

        def write(row: _Row) -> None:
            rows.append(row)
            if len(rows) == _ROW_GROUP:
                flush()

        yield write
        if rows:
            flush()


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "names": pa.map_(pa.string(), pa.string()),
        "integer": pa.int64(),
        "money": pa.decimal128(18, 9),
        "flag": pa.bool_(),
        "share": pa.float32(),
        "moment": pa.timestamp("ms", tz="UTC"),
    }
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])


_WRITERS = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
