"""`docsum cost`: since when, by what, and what a person and a program read."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from docsum.cli.cost import starting_from
from docsum.cli.output import Code, WrongUsage
from docsum.models import (
    EPOCH,
    Answer,
    Coordinates,
    Lane,
    Recipe,
    Rows,
    Run,
    RunState,
    State,
    SummaryRow,
    Usage,
)
from docsum.stores.memory import MemoryStore
from tests.support.commands import deployed, result
from tests.support.fakes import START, summary

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
RUN = Run(
    id=UUID("3f2a91c0-0000-4000-8000-000000000001"),
    name="letters",
    source="/data/letters",
    recipe=Recipe("claude-haiku-5-5"),
    lane=Lane.BACKFILL,
    state=RunState.PUBLISHED,
    created_at=START,
    updated_at=START,
)


def answer(number: int, cost: str, status: str = "ok", **fields: object) -> Answer:
    values: dict[str, object] = {
        "fingerprint": f"{number:064}",
        "request_id": f"msg_{number}",
        "model": "claude-haiku-5-5",
        "raw": "{}",
        "usage": Usage(1_000, 100),
        "cost": Decimal(cost),
        "price_version": "2026-10",
        "status": status,
        "answered_at": datetime.now(UTC) - timedelta(days=3),
        "latency_ms": 1,
        "document_id": f"{number}.pdf",
        **fields,
    }
    return Answer(**values)  # type: ignore[arg-type]  # a builder takes any field


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """Three calls of a run, one of them in vain, and a live event an hour ago by another model."""
    store = MemoryStore()
    monkeypatch.chdir(tmp_path)
    deployed(store, monkeypatch)
    await store.save_run(RUN)
    await store.write(
        Rows(
            answers=(
                answer(1, "1.5", run_id=RUN.id),
                answer(2, "0.25", "truncated", run_id=RUN.id),
                answer(3, "0.25", run_id=RUN.id, document_id="2.pdf"),
                answer(
                    4,
                    "10",
                    "lost",
                    model="claude-opus-5",
                    usage=Usage(5, 6, 7, 8),
                    answered_at=datetime.now(UTC) - timedelta(hours=1),
                ),
            ),
            summaries=(
                SummaryRow(
                    document_id="copy.pdf",
                    version=1,
                    state=State.DONE,
                    source_version="",
                    uri="file:///copy.pdf",
                    summary=replace(summary(), fingerprint=f"{1:064}", reused=True),
                    attributes={},
                    run_id=RUN.id,
                    origin=Coordinates("docsum.backfill", 0, 0),
                    occurred_at=START,
                    written_at=datetime.now(UTC),
                ),
            ),
        )
    )
    return store


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("12h", NOW - timedelta(hours=12)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:30", datetime(2026, 11, 1, 10, 30, tzinfo=UTC)),
        ("2026-11-01T10:30+02:00", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
        ("99999999999d", EPOCH),
        ("0001-01-01", EPOCH),
    ],
)
def test_a_person_says_since_when(text: str, moment: datetime) -> None:
    assert starting_from(text, NOW) == moment


@pytest.mark.parametrize("text", ["yesterday", "7 days", "-7d", "2026-13-01", "2026-11-24"])
def test_what_is_no_past_moment_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage):
        starting_from(text, NOW)


@pytest.mark.usefixtures("store")
def test_the_money_is_shown_by_model_with_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "cost")
    assert code == Code.OK
    lines = [line.split() for line in out.splitlines()]
    assert "claude-opus-5 1 1 lost 5 7 8 6 1 $10.00 $10.00".split() in lines
    assert "claude-haiku-5-5 3 1 truncated 3,000 0 0 300 2 $2.00 $1.00".split() in lines
    assert "total 4 1 lost, 1 truncated 3,005 7 8 306 3 $12.00 $4.00".split() in lines
    assert "Lost calls got no reply" in out
    assert "1 of the newest summaries are made of answers that were there already: at least $1.50" in out


@pytest.mark.usefixtures("store")
def test_the_money_is_shown_by_reason_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = result(capsys, "cost", "--by", "reason", "--run", "last")
    assert "truncated: the answer was cut at its token limit" in out
    assert "ok: a usable answer" in out
    assert "lost" not in out
    assert "cache read" not in out  # no such tokens in this run


@pytest.mark.usefixtures("store")
def test_the_money_is_shown_by_run_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = result(capsys, "cost", "--by", "run")
    assert "3f2a91c0 letters" in out
    assert "live events" in out


@pytest.mark.usefixtures("store")
def test_a_program_reads_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "cost", "--by", "run", "--json")
    assert code == Code.OK
    found = json.loads(out)
    assert [(line["run_id"], line["cost_usd"]) for line in found["lines"]] == [(None, 10), (str(RUN.id), 2)]
    assert found["total"]["statuses"] == {"ok": 2, "truncated": 1, "lost": 1}
    assert (found["reused_summaries"], found["saved_usd_at_least"]) == (1, 1.5)
    found = json.loads(result(capsys, "cost", "--since", "2d", "--by", "day", "--json")[1])
    assert [line["cost_usd"] for line in found["lines"]] == [10]
    assert found["lines"][0]["day"]


def test_nothing_paid_is_a_sentence_and_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(MemoryStore(), monkeypatch)
    code, out, err = result(capsys, "cost", "--since", "1h")
    assert (code, out) == (Code.OK, "")
    assert err.startswith("Nothing has been paid for since ")
    assert json.loads(result(capsys, "cost", "--json")[1])["total"]["cost_usd"] == 0


@pytest.mark.usefixtures("store")
def test_money_of_a_run_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = result(capsys, "cost", "--run", "ffff")
    assert code == Code.USAGE
    assert "There is no run ffff" in err
