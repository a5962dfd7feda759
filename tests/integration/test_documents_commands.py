"""`docsum cost`, `export` and `documents delete` as processes on a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pyarrow.parquet as pq
import pytest

from docsum.models import (
    Answer,
    Coordinates,
    CostBy,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    State,
    Summary,
    SummaryRow,
    Traces,
    Usage,
)
from docsum.settings import ClickHouse, load
from docsum.stores import migrate
from docsum.stores.clickhouse import ClickHouseStore
from tests.support.deployment import ROOT
from tests.support.engine import Engine

DOCUMENTS = 20_000
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Filled:
    """A database with one large run, and the environment in which commands find it."""

    settings: ClickHouse
    run_id: UUID
    environment: dict[str, str]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "docsum", *arguments],
            env=self.environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def docsum(self, *arguments: str) -> str:
        process = self.start(*arguments, stdout=subprocess.PIPE)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        return out


def bought(document_id: str, run_id: UUID) -> Rows:
    """A summary, and the answer that was paid for it."""
    fingerprint, recipe = document_id.rjust(64, "1"), Recipe("claude-haiku-5-5")
    summary = Summary(
        title="Title",
        summary="A summary.",
        key_points=("one",),
        language="en",
        document_type="letter",
        warnings=(),
        model=recipe.model,
        recipe=recipe.id,
        fingerprint=fingerprint,
        cost=Decimal("0.25"),
        chunks=3,
    )
    paid = Answer(
        fingerprint=fingerprint,
        request_id=f"msg_{document_id}",
        model=recipe.model,
        raw="{}",
        usage=Usage(1_000, 100),
        cost=Decimal("0.25"),
        price_version="1",
        status="ok",
        answered_at=NOW,
        latency_ms=1,
        document_id=document_id,
        run_id=run_id,
    )
    row = SummaryRow(
        document_id=document_id,
        version=1,
        state=State.DONE,
        source_version="etag-1",
        uri="file:///a",
        summary=summary,
        attributes={"team": "law"},
        run_id=run_id,
        origin=Coordinates("docsum.backfill", 0, 0),
        occurred_at=NOW,
        written_at=NOW,
    )
    return Rows(answers=(paid,), summaries=(row,))


async def fill(settings: ClickHouse, run_id: UUID) -> None:
    """20,000 documents: all done, the first with a summary and an answer that was paid for."""
    await migrate.setup(settings)
    run = Run(
        run_id, "many", "/data", Recipe("claude-haiku-5-5"), Lane.BACKFILL, RunState.PUBLISHED, NOW, NOW
    )
    states = tuple(
        RunDocumentRow(run_id, f"{number:05}.txt", State.DONE, "file:///x", 1, "", "", NOW)
        for number in range(DOCUMENTS)
    )
    async with ClickHouseStore(settings, load().store.flush_interval) as store:
        await store.save_run(run)
        await store.write(replace(bought("00000.txt", run_id), run_documents=states))


@pytest.fixture(scope="module")
def filled(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """For all tests here: none may change what others look at."""
    settings, run_id = engine.settings, uuid4()
    asyncio.run(fill(settings, run_id))
    environment = {
        "PATH": os.environ["PATH"],
        "DOCSUM_HOME": str(tmp_path_factory.mktemp("home")),
        "DOCSUM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "DOCSUM_CLICKHOUSE__URL": settings.url,
        "DOCSUM_CLICKHOUSE__DATABASE": settings.database,
        "DOCSUM_CLICKHOUSE__PASSWORD": settings.password.get_secret_value(),
    }
    return Filled(settings, run_id, environment)


def test_a_large_run_is_exported_and_its_money_counted(filled: Filled, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    assert filled.docsum("export", "-o", str(target)) == ""
    table = pq.read_table(target)
    assert table.num_rows == DOCUMENTS
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["document_id"], first["chunks"], first["cost_usd"]) == ("00000.txt", 3, Decimal("0.25"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    costs = json.loads(filled.docsum("cost", "--run", str(filled.run_id)[:8], "--by", "reason", "--json"))
    assert [(line["reason"], line["cost_usd"]) for line in costs["lines"]] == [("ok", 0.25)]
    shown = filled.docsum("documents", "show", "00000.txt")
    assert "read: in 3 parts, 100 % of the text" in shown


def test_a_reader_that_has_enough_ends_the_export_in_silence(filled: Filled) -> None:
    export = filled.start("export", stdout=subprocess.PIPE)
    assert export.stdout is not None and export.stderr is not None
    assert json.loads(export.stdout.readline())["document_id"] == "00000.txt"
    export.stdout.close()
    with export.stderr as said:
        assert (said.read(), export.wait(60)) == ("", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_behind_standard_output_is_one_sentence(filled: Filled) -> None:
    with Path("/dev/full").open("w") as full:
        export = filled.start("export", stdout=full)
        _, err = export.communicate(timeout=60)
    assert export.returncode == 1
    assert err == "Error: Standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ctrl_c_leaves_no_half_file(filled: Filled, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    export = filled.start("export", "-o", str(target), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):  # the draft
        assert time.monotonic() < deadline
        assert export.poll() is None
        time.sleep(0.005)
    export.send_signal(signal.SIGINT)
    _, err = export.communicate(timeout=60)
    assert export.returncode == 130
    assert err == f"Interrupted: {target} was not written.\n"
    assert list(tmp_path.iterdir()) == []


async def test_a_purge_on_a_real_engine(filled: Filled) -> None:
    async with ClickHouseStore(filled.settings, load().store.flush_interval) as store:
        await store.write(bought("secret.txt", uuid4()))
        before = (await store.costs(CostBy.MODEL)).total.cost
        found = json.loads(filled.docsum("documents", "delete", "secret.txt", "--purge", "--yes", "--json"))
        assert (found["summaries_removed"], found["answers_blanked"]) == (1, 1)
        assert await store.traces("secret.txt") == Traces()
        assert (await store.costs(CostBy.MODEL)).total.cost == before >= Decimal("0.25")
