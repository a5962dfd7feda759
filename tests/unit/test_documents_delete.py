"""`docsum documents delete`: what goes, what stays, who is asked, and what may bring a document back."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from docsum.cli.documents import _reading
from docsum.cli.output import Code
from docsum.documents import tombstone
from docsum.models import (
    Answer,
    Coordinates,
    CostBy,
    Known,
    Recipe,
    Rows,
    RunDocumentRow,
    Skipped,
    SkipReason,
    State,
    SummaryRow,
    Traces,
    Usage,
)
from docsum.pipeline import judge
from docsum.stores.memory import MemoryStore
from tests.support.commands import deployed, result
from tests.support.fakes import START, reference, summary

RUN_ID = UUID("3f2a91c0-0000-4000-8000-000000000001")
ID = "file:///data/letters/a.txt"
PRINT = "1" * 64


def stored(document_id: str = ID, version: int = 1) -> SummaryRow:
    return SummaryRow(
        document_id=document_id,
        version=version,
        state=State.DONE,
        source_version="v1",
        uri=document_id,
        summary=replace(summary(), fingerprint=PRINT),
        attributes={"team": "law"},
        run_id=RUN_ID,
        origin=Coordinates("docsum.backfill", 0, 0),
        occurred_at=START,
        written_at=START,
    )


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """One document with its answer, and a retry that told why."""
    store = MemoryStore()
    monkeypatch.chdir(tmp_path)
    deployed(store, monkeypatch)
    paid = Answer(
        fingerprint=PRINT,
        request_id="msg_1",
        model="claude-haiku-5-5",
        raw='{"title": "secret"}',
        usage=Usage(10, 5),
        cost=Decimal("0.01"),
        price_version="1",
        status="ok",
        answered_at=START,
        latency_ms=1,
        document_id=ID,
        run_id=RUN_ID,
    )
    state = RunDocumentRow(RUN_ID, ID, State.DONE, ID, 2, "", "It said: secret.", START)
    await store.write(Rows(answers=(paid,), summaries=(stored(),), run_documents=(state,)))
    return store


def read(store: MemoryStore) -> tuple[SummaryRow | None, Traces, Decimal]:
    async def ask() -> tuple[SummaryRow | None, Traces, Decimal]:
        costs = await store.costs(CostBy.RUN)
        return await store.summary(ID), await store.traces(ID), costs.total.cost

    return asyncio.run(ask())


# -- the tombstone -----------------------------------------------------------------------------------------


def known(row: SummaryRow) -> Known:
    return Known(row.version, row.state, row.source_version, "", deleted=row.summary is None)


def test_an_older_event_does_not_bring_it_back_and_a_later_one_does() -> None:
    deleted = known(tombstone(ID, known(stored()), START))
    recipe = Recipe("local-extractive-1")
    before = reference(ID, occurred_at=START - timedelta(milliseconds=1))
    assert judge(before, deleted, recipe) == Skipped(SkipReason.SUPERSEDED)
    after = reference(ID, occurred_at=START + timedelta(milliseconds=1))
    assert judge(after, deleted, recipe) is None  # to be worked, even with the same source version


def test_a_tombstone_is_above_an_event_from_ahead_of_our_clock() -> None:
    ahead = reference(ID, occurred_at=START + timedelta(hours=3))
    assert tombstone(ID, known(stored(version=ahead.version)), START).version == ahead.version + 1
    assert tombstone(ID, known(stored(version=1)), START).version > 1


def test_a_tombstone_of_what_is_only_on_its_way_comes_before_its_event() -> None:
    on_its_way = reference(ID, occurred_at=START)
    assert tombstone(ID, None, START + timedelta(seconds=1)).version > on_its_way.version


# -- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ID, "/data/letters/a.txt", "/data/letters/../letters/a.txt"])
def test_a_deleted_document_shows_no_more_and_keeps_its_words(
    capsys: pytest.CaptureFixture[str], store: MemoryStore, name: str
) -> None:
    code, out, err = result(capsys, "documents", "delete", name)
    assert (code, out) == (Code.OK, "")
    assert err == f"Deleted {ID}: its summary shows no more.\n"
    assert read(store) == (None, Traces(summaries=1, answers=1, messages=1), Decimal("0.01"))
    code, out, _ = result(capsys, "documents", "show", ID)
    assert code == Code.OK
    assert "It was deleted" in out


def test_a_purge_takes_the_words_and_leaves_the_money(
    capsys: pytest.CaptureFixture[str], store: MemoryStore
) -> None:
    code, out, err = result(capsys, "documents", "delete", ID, "--purge", "--yes")
    assert (code, out) == (Code.OK, "")
    assert "1 stored version of the summary, 1 answer of the model and 1 error message are gone" in err
    assert read(store) == (None, Traces(), Decimal("0.01"))
    code, _, err = result(capsys, "documents", "delete", ID, "--purge", "--yes")  # once more
    assert code == Code.OK
    assert "0 stored versions" in err


def test_a_program_reads_what_went_and_what_stayed(
    capsys: pytest.CaptureFixture[str], store: MemoryStore
) -> None:
    asyncio.run(store.write(Rows(summaries=(stored("b.txt"),))))  # stands on the same answer
    code, out, err = result(capsys, "documents", "delete", ID, "--purge", "--yes", "--json")
    assert (code, err) == (Code.OK, "")
    assert json.loads(out) == {
        "document_id": ID,
        "deleted": True,
        "purged": True,
        "summaries_removed": 1,
        "answers_blanked": 0,
        "answers_kept": 1,
        "messages_blanked": 1,
        "on_its_way_in_runs": [],
    }


def test_a_purge_of_what_is_on_its_way_says_that_it_may_come_back(
    capsys: pytest.CaptureFixture[str], store: MemoryStore
) -> None:
    waiting = RunDocumentRow(UUID(int=7), ID, State.RETRYING, ID, 2, "", "", START)
    asyncio.run(store.write(Rows(run_documents=(waiting,))))
    _, _, err = result(capsys, "documents", "delete", ID, "--purge", "--yes")
    assert f"It is retrying in run {UUID(int=7)}" in err
    assert "Purge it again" in err


@pytest.mark.usefixtures("store")
def test_an_unknown_document_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ((), ("--purge", "--yes")):
        code, out, err = result(capsys, "documents", "delete", "unheard-of", *options)
        assert (code, out) == (Code.FAILURE, "")
        assert err.startswith("Error: Nothing is stored of 'unheard-of'")
        assert err.count("\n") == 1


@contextmanager
def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal at which a person types this."""
    person, terminal = pty.openpty()
    os.write(person, text.encode())
    with os.fdopen(terminal) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        yield
    os.close(person)


@pytest.mark.parametrize(("text", "gone"), [("y\n", True), ("YES\n", True), ("\n", False), ("\x04", False)])
def test_a_person_is_asked_before_anything_is_deleted(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    store: MemoryStore,
    text: str,
    gone: bool,
) -> None:
    with typed(text, monkeypatch):
        code, _, err = result(capsys, "documents", "delete", ID, "--purge")
    assert code == Code.OK
    assert "1 answer of the model and 1 error message go for good. Purge? [y/N]" in err
    assert (read(store)[0] is None) == gone
    assert ("Nothing was deleted." in err) != gone


# -- how a long text was read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "coverage", "truncated", "text"),
    [
        (1, 1.0, False, ""),
        (20, 1.0, False, "read: in 20 parts, 100 % of the text"),
        (1_200, 0.9999, False, "read: in 1,200 parts, 99 % of the text"),
        (1, 0.29, False, "read: 29 % of the text"),
        (1, 1.0, True, "read: the text was cut at a size limit"),
        (3, 1.0, True, "read: in 3 parts, 100 % of the text, which was cut at a size limit"),
    ],
)
def test_it_is_told_how_a_long_text_was_read(
    chunks: int, coverage: float, truncated: bool, text: str
) -> None:
    assert _reading(replace(summary(), chunks=chunks, coverage=coverage, truncated=truncated)) == text
