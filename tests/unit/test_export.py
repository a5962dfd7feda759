"""`docsum export`: the formats, and that no half file is ever left."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow.parquet as pq
import pytest

from docsum.cli.export import _ROW_GROUP, COLUMNS, fields
from docsum.cli.output import Code
from docsum.models import (
    Coordinates,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    State,
    SummaryRow,
)
from docsum.stores.memory import MemoryStore
from tests.support.commands import deployed, result
from tests.support.fakes import START, summary

RUN = Run(
    id=UUID("3f2a91c0-0000-4000-8000-000000000001"),
    name="letters",
    source="/data/letters",
    recipe=Recipe("local-extractive-1"),
    lane=Lane.BACKFILL,
    state=RunState.PUBLISHED,
    created_at=START,
    updated_at=START,
)
WRITTEN = START + timedelta(seconds=5, milliseconds=123)
STORED = SummaryRow(
    document_id="a.txt",
    version=1,
    state=State.DONE,
    source_version="etag-7",
    uri="file:///a.txt",
    summary=replace(
        summary("Größe \U0001f4c4"),
        key_points=("one", "zwei"),
        cost=Decimal("0.002712345"),
        chunks=20,
        coverage=0.5,
        truncated=True,
    ),
    attributes={"team": "law", "größe": "ü"},
    run_id=RUN.id,
    origin=Coordinates("docsum.backfill", 0, 0),
    occurred_at=START,
    written_at=WRITTEN,
)


def row(document_id: str, state: State, reason: str = "", message: str = "") -> RunDocumentRow:
    return RunDocumentRow(RUN.id, document_id, state, f"file:///{document_id}", 1, reason, message, WRITTEN)


class Endless(MemoryStore):
    """Its run has more documents than anybody waits for."""

    async def run_rows(self, run_id: UUID) -> AsyncIterator[tuple[RunDocumentRow, SummaryRow | None]]:
        yield row("a.txt", State.DONE), STORED
        raise asyncio.CancelledError  # as Ctrl-C does it, while the next page is read


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """One document done, one failed, one waiting."""
    store = MemoryStore()
    monkeypatch.chdir(tmp_path)
    deployed(store, monkeypatch)
    await store.save_run(RUN)
    rows = (
        row("a.txt", State.DONE),
        row("b.txt", State.DEAD_LETTERED, "encrypted", "It needs a password."),
        row("c.txt", State.QUEUED),
    )
    await store.write(Rows(summaries=(STORED,), run_documents=rows))
    return store


def test_every_field_has_a_column_and_every_column_a_field() -> None:
    assert set(fields(RUN, row("a.txt", State.DONE), STORED)) == set(COLUMNS)


@pytest.mark.usefixtures("store")
def test_parquet_has_typed_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = result(capsys, "export", "-o", "out.PARQUET")
    assert (code, out) == (Code.OK, "")
    assert "3 documents" in err
    table = pq.read_table(tmp_path / "out.PARQUET")
    types = {field.name: str(field.type) for field in table.schema}
    assert list(types) == list(COLUMNS)
    assert types["occurred_at"] == types["written_at"] == "timestamp[ms, tz=UTC]"
    assert types["cost_usd"] == "decimal128(18, 9)"
    assert types["key_points"].startswith("list<")
    assert types["attributes"].startswith("map<string, string")
    done, failed, waiting = table.to_pylist()
    assert done["cost_usd"] == Decimal("0.002712345")
    assert done["written_at"] == WRITTEN
    assert dict(done["attributes"]) == STORED.attributes
    assert (done["key_points"], done["summary"]) == (["one", "zwei"], "Größe \U0001f4c4")
    assert (done["chunks"], done["coverage"], done["truncated"]) == (20, 0.5, True)
    assert done["source_version"] == "etag-7"
    assert (failed["state"], failed["reason"], failed["summary"]) == ("dead_lettered", "encrypted", None)
    assert (waiting["state"], waiting["cost_usd"], waiting["attributes"]) == ("queued", None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.PARQUET"]


def test_parquet_is_written_row_group_by_row_group(
    capsys: pytest.CaptureFixture[str], store: MemoryStore, tmp_path: Path
) -> None:
    many = tuple(row(f"{number:06}.txt", State.QUEUED) for number in range(2 * _ROW_GROUP))
    asyncio.run(store.write(Rows(run_documents=many)))
    code, _, _ = result(capsys, "export", "-o", "out.parquet")
    assert code == Code.OK
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [_ROW_GROUP, _ROW_GROUP, 3]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_run_without_documents_is_an_empty_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    empty = MemoryStore()
    asyncio.run(empty.save_run(RUN))
    deployed(empty, monkeypatch)
    code, _, err = result(capsys, "export", "-o", str(tmp_path / f"out{suffix}"))
    assert code == Code.OK
    assert err.startswith("0 documents")
    assert (tmp_path / f"out{suffix}").exists()


@pytest.mark.usefixtures("store")
def test_how_a_long_text_was_read_is_in_every_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, out, _ = result(capsys, "export", "-o", "-")  # a dash is standard output
    first = json.loads(out.splitlines()[0])
    assert (first["chunks"], first["coverage"], first["truncated"]) == (20, 0.5, True)
    assert result(capsys, "export")[1] == out
    result(capsys, "export", "-o", "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = next(csv.DictReader(file))
    assert (cells["chunks"], cells["coverage"], cells["truncated"]) == ("20", "0.5", "True")


@pytest.mark.usefixtures("store")
def test_parquet_without_its_package_is_told_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, out, err = result(capsys, "export", "-o", "out.parquet")
    assert (code, out) == (Code.CONFIGURATION, "")
    assert err == "Error: Parquet needs one more package: `pip install '.[parquet]'` in the checkout.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("store")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_full_disk_is_one_sentence_and_no_half_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"out{suffix}").write_text("the last good export")
    (tmp_path / f".out{suffix}.{os.getpid()}").symlink_to("/dev/full")  # the draft
    code, out, err = result(capsys, "export", "-o", f"out{suffix}")
    assert (code, out) == (Code.FAILURE, "")
    assert err == f"Error: out{suffix} cannot be written: No space left on device.\n"
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]
    assert (tmp_path / f"out{suffix}").read_text() == "the last good export"


@pytest.mark.usefixtures("store")
def test_a_name_that_a_folder_has_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    code, _, err = result(capsys, "export", "-o", "out.csv")
    assert code == Code.FAILURE
    assert err == "Error: out.csv cannot be written: Is a directory.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_interrupted_export_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    store = Endless()
    asyncio.run(store.save_run(RUN))
    monkeypatch.chdir(tmp_path)
    deployed(store, monkeypatch)
    code, _, err = result(capsys, "export", "-o", f"out{suffix}")
    assert code == Code.INTERRUPTED
    assert err == f"Interrupted: out{suffix} was not written.\n"
    assert list(tmp_path.iterdir()) == []
