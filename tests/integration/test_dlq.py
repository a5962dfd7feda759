"""`docsum dlq` on a real stack: repaired, replayed, stopped, killed, parked, superseded, given up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest

from docsum.bootstrap import open_producer
from docsum.kafka.dead_letters import DeadLetterTopic
from docsum.models import (
    AuditRow,
    Coordinates,
    DeadLetterFilter,
    RecordCopy,
    Rows,
    State,
    SummaryRow,
    event_version,
    to_ms,
)
from docsum.stores.controls import AGE
from tests.support.deployment import Deployment, ModelServer, until
from tests.support.fakes import summary

pytestmark = pytest.mark.timeout(400)
T = TypeVar("T")


class House:
    """One stack for all tests here, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = ModelServer(folder / "model", "--fast")
        self.deployment = Deployment(
            folder,
            ANTHROPIC_API_KEY="a-key",
            ANTHROPIC_BASE_URL=self.model.url,
            DOCSUM_MODEL__NAME="local-extractive-1",
            DOCSUM_RETRY__DELAYS="1s",
            DOCSUM_FETCH__FILE_ROOTS=str(folder),
        )

    def blank(self, name: str, count: int) -> tuple[Path, str]:
        """A run over so many empty files: all of them are dead letters."""
        documents = self.folder / name
        documents.mkdir()
        for number in range(count):
            (documents / f"{number:05}.txt").touch()
        shown = json.loads(self.deployment.docsum("run", str(documents), "--json", ok=(3,)))
        assert shown["dead_lettered"] == count
        return documents, shown["run_id"]

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        out = self.deployment.docsum("dlq", "ls", "--json", *arguments)
        return [json.loads(line) for line in out.splitlines()]

    def replay(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
        out = self.deployment.docsum("dlq", "replay", *arguments, "--yes", "--json", ok=ok)
        found: dict[str, Any] = json.loads(out)
        return found

    def states(self, run_id: str) -> dict[str, int]:
        """By the store itself: a command takes a while, and some tests must be quick."""
        meant = DeadLetterFilter(states=(), run_id=UUID(run_id))
        groups = self.deployment.ask(lambda store: store.dead_letter_groups(meant))
        return {group.state: group.count for group in groups}

    def audits(self, run_id: str) -> list[AuditRow]:
        return [row for row in self.deployment.ask(lambda store: store.audits(1_000)) if run_id in row.detail]

    def published(self, topic: str) -> int:
        """Records that the topic has ever got."""

        async def count() -> int:
            async with DeadLetterTopic(self.deployment.reached.kafka, topic) as records:
                return sum(offsets.stop for offsets in (await records.offsets()).values())

        return asyncio.run(count())

    def close(self) -> None:
        self.deployment.close()
        self.model.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    made.deployment.docsum("up", "-d")
    yield made
    made.close()


def repair(documents: Path) -> None:
    """Every file gets a text of its own."""
    for path in documents.iterdir():
        path.write_text(
            f"The harbour {path.stem} of {documents.name} has been closed. Nobody repairs its wall.\n"
        )


def stopped(process: subprocess.Popen[str], how: signal.Signals) -> tuple[int, str]:
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_repaired_documents_are_replayed_to_their_summaries(house: House) -> None:
    documents, run_id = house.blank("repaired", 12)
    rows = house.listed("--run", run_id)
    assert {row["reason"] for row in rows} == {"empty"}
    shown = house.deployment.docsum("dlq", "show", str(documents / "00003.txt"))
    assert "There is no text in the document." in shown
    assert "docsum-orig-topic" in shown
    assert house.replay("--run", run_id, "--dry-run")["reasons"] == [
        {"reason": "empty", "replay": 12, "park": 0, "stay": 0}
    ]
    assert house.states(run_id) == {"open": 12}

    repair(documents)
    done = house.replay("--run", run_id)

    assert (done["replayed"], done["sample"]["helped"]) == (12, 10)
    until(lambda: house.deployment.run_of(run_id)["done"] == 12)
    assert house.states(run_id) == {"resolved": 12}
    (line,) = house.audits(run_id)
    assert (line.action, line.count) == ("dlq replay", 12)


def test_a_cause_that_is_not_fixed_stops_the_replay_and_poison_is_parked_in_the_end(house: House) -> None:
    _, run_id = house.blank("poison", 25)
    done = house.replay("--run", run_id, ok=(3,))
    assert (done["replayed"], done["sample"]["failed"]) == (10, 10)
    assert house.states(run_id) == {"open": 25}
    place = next(row["id"] for row in house.listed("--run", run_id) if row["replays"] == 1)
    document = json.loads(house.deployment.docsum("dlq", "show", place, "--json"))["document_id"]

    again = house.replay(document, ok=(3,))
    assert (again["replayed"], again["sample"]["failed"]) == (1, 1)
    third = house.replay(document)
    assert (third["replayed"], third["parked"]) == (0, 1)

    assert house.states(run_id) == {"open": 24, "parked": 1}
    (parked,) = house.listed("--run", run_id, "--state", "parked")
    assert (parked["document_id"], parked["replays"]) == (document, 2)
    told = json.loads(house.deployment.docsum("dlq", "show", document, "--json"))
    assert [entry["reason"] for entry in told["attempt_log"]] == ["empty"] * 3


def test_a_replay_that_is_killed_goes_on_and_loses_nothing(house: House) -> None:
    documents, run_id = house.blank("killed", 120)
    repair(documents)
    before = house.published("docsum.backfill")
    arguments = ("dlq", "replay", "--run", run_id, "--no-sample", "--yes", "--rate")

    process = house.deployment.start(*arguments, "10")
    until(lambda: house.states(run_id).get("open", 0) < 120)
    assert stopped(process, signal.SIGKILL)[0] == -signal.SIGKILL
    left = house.states(run_id)["open"]
    assert 0 < left < 120

    process = house.deployment.start(*arguments, "10")
    # What the killed one had copied without writing it down is resolved by the workers: ten at most.
    until(lambda: house.states(run_id)["open"] < left - 10)
    code, err = stopped(process, signal.SIGINT)
    assert code == 130
    assert "The same command goes on with those that are still open." in err
    (line,) = house.audits(run_id)
    assert line.detail.endswith("0 parked, interrupted")
    assert 0 < line.count < left

    house.deployment.docsum(*arguments, "200")
    until(lambda: house.states(run_id) == {"resolved": 120})
    assert house.deployment.run_of(run_id)["done"] == 120
    copies = house.published("docsum.backfill") - before
    assert 120 <= copies <= 130  # the batch that was in hand at the kill


def test_an_old_event_behind_a_newer_summary_is_superseded_for_free(house: House) -> None:
    documents, run_id = house.blank("superseded", 1)
    repair(documents)
    document = (documents / "00000.txt").as_uri()
    house.deployment.docsum("pause", "--all", "--reason", "a test")
    asked = time.monotonic()
    until(lambda: time.monotonic() - asked > AGE + 0.5)  # every worker has looked again
    house.deployment.docsum("dlq", "replay", "--run", run_id, "--yes", ok=(4,))  # a sample would not end
    assert house.replay("--run", run_id, "--no-sample")["replayed"] == 1
    now = datetime.now(UTC) + timedelta(seconds=1)
    newer = SummaryRow(
        document, event_version(now, to_ms(now), "newer"), State.DONE, "", document, summary("Newer."), {},
        UUID(run_id), Coordinates("docsum.backfill", 0, 0), now, now,
    )  # fmt: skip
    house.deployment.ask(lambda store: store.write(Rows(summaries=(newer,))))
    billed = house.model.billed["accepted"]

    house.deployment.docsum("resume", "--all")

    until(lambda: house.deployment.run_of(run_id)["skipped"] == 1)
    assert house.states(run_id) == {"resolved": 1}
    assert house.model.billed["accepted"] == billed
    shown = json.loads(house.deployment.docsum("documents", "show", document, "--json"))
    assert shown["summary"]["summary"] == "Newer."


def test_a_record_that_is_no_event_is_shown_and_given_up(house: House) -> None:
    value = b"\x1b]0;title\x07not an event" + os.urandom(100)

    async def publish() -> None:
        settings = house.deployment.reached
        async with open_producer(settings) as producer:
            await producer.publish(RecordCopy("docsum.documents", 2, b"key", value, (("evil", b"\x1b[2J"),)))

    asyncio.run(publish())
    until(lambda: len(house.listed("--reason", "invalid_event")) == 1)
    (row,) = house.listed("--reason", "invalid_event")
    assert (row["document_id"], row["run_id"], row["original"][:19]) == ("", None, "docsum.documents[2]")
    shown = house.deployment.docsum("dlq", "show", row["id"])
    assert "The event is not readable: The value is neither Avro" in shown
    assert "1b 5d 30 3b" in shown
    assert "\x1b" not in shown

    house.deployment.docsum("dlq", "discard", row["id"], "--reason", "a test", "--yes")

    assert house.listed("--reason", "invalid_event") == []
    (given_up,) = house.listed("--state", "discarded")
    assert given_up["id"] == row["id"]
    assert house.listed("--state", "discarded", "--groups")[0]["entries"] == 1
    raw = subprocess.run(
        [sys.executable, "-m", "docsum", "dlq", "show", row["id"], "--raw"],
        env=house.deployment.environment,
        capture_output=True,
        check=True,
    )
    assert raw.stdout == value
