"""The whole thing as a user runs it: real commands on a real stack, the model server judges the money."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docsum.local.compose import attach
from docsum.settings import ClickHouse, load
from docsum.stores.connection import connect
from tests.support.deployment import Deployment, ModelServer, until
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(400)


class House:
    """One stack for all tests here: starting it takes most of the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = ModelServer(folder / "model", "--fast", "--latency=0.2")
        self.deployment = Deployment(
            folder,
            ANTHROPIC_API_KEY="a-key",
            ANTHROPIC_BASE_URL=self.model.url,
            DOCSUM_MODEL__NAME="local-extractive-1",
            DOCSUM_RETRY__DELAYS="10s,20s",
            DOCSUM_FETCH__FILE_ROOTS=str(folder),
        )

    def run(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.docsum("run", *arguments, "--json", ok=ok))
        return found

    def summary(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = self.show(path)["summary"]
        return found

    def show(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.docsum("documents", "show", str(path), "--json"))
        return found

    def accepted(self) -> int:
        return int(self.model.billed["accepted"])

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.deployment.docsum("export", "--run", run_id).splitlines()]

    def close(self) -> None:
        self.deployment.close()
        self.model.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    yield made
    made.close()


def test_the_same_folder_submitted_twice_at_once_is_bought_once(house: House) -> None:
    documents = house.folder / "twice"
    write_documents(documents, 60, seed=1)
    house.deployment.docsum("up", "-d")
    before = house.accepted()
    runs = [house.deployment.start("run", str(documents), "--json") for _ in range(2)]
    shown = [json.loads(run.communicate(timeout=180)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert house.accepted() - before == 60
    for one in shown:
        assert one["done"] + one["skipped"] == one["total"] == 60


def test_another_model_and_a_changed_file_show_the_new_summary(house: House) -> None:
    documents = house.folder / "again"
    write_documents(documents, 5, seed=2)
    first = house.run(str(documents))
    assert first["done"] == 5
    assert house.run(str(documents))["skipped"] == 5
    other = house.run(str(documents), "--model", "claude-haiku-5-5")
    assert other["done"] == 5
    assert float(other["cost_usd"]) > 0
    path = documents / "00003.txt"
    assert house.summary(path)["model"] == "claude-haiku-5-5"
    path.write_text("The harbour has been closed for good. Nobody will repair the northern wall.\n")
    changed = house.run(str(documents), "--model", "claude-haiku-5-5")
    assert (changed["done"], changed["skipped"]) == (1, 4)
    assert "closed for good" in house.summary(path)["summary"]


def test_an_event_that_comes_back_from_a_retry_topic_does_not_show_over_a_newer_one(house: House) -> None:
    documents = house.folder / "retried"
    write_documents(documents, 1, seed=3)
    path = documents / "00000.txt"
    later = path.stat().st_mtime_ns + 3_600 * 1_000_000_000
    status = path.stat()
    line = {
        "document_id": path.as_uri(),
        "uri": path.as_uri(),
        "source_version": f"{later}:{status.st_size}:{status.st_ino}",
    }
    manifest = house.folder / "announced-too-early.jsonl"
    manifest.write_text(json.dumps(line) + "\n")
    early = house.run(str(manifest), "--no-wait")
    until(lambda: house.deployment.run_of(early["run_id"])["retrying"] == 1)
    newer = house.run(str(documents), "--model", "claude-haiku-5-5")
    assert newer["done"] == 1
    os.utime(path, ns=(later, later))  # now the source has what was announced
    until(lambda: house.deployment.run_of(early["run_id"])["remaining"] == 0)
    assert house.deployment.run_of(early["run_id"])["skipped"] == 1
    assert house.summary(path)["model"] == "claude-haiku-5-5"


def test_rate_limits_and_a_failing_provider_spend_no_attempts(house: House) -> None:
    documents = house.folder / "limited"
    write_documents(documents, 40, seed=4)
    house.model.put(
        "/_faults",
        [
            {"match": {}, "status": 429, "error_type": "rate_limit_error", "retry_after": 1, "times": 20},
            {"match": {}, "status": 529, "error_type": "overloaded_error", "times": 10},
            {"match": {}, "kind": "reset", "times": 10},
        ],
    )
    before = house.accepted()
    shown = house.run(str(documents))
    assert (shown["done"], shown["dead_lettered"]) == (40, 0)
    assert {row["attempt"] for row in house.rows(shown["run_id"])} == {1}
    assert house.accepted() - before == 40


def test_a_model_server_that_is_away_is_waited_for(house: House) -> None:
    documents = house.folder / "away"
    write_documents(documents, 10, seed=5)
    house.model.stop()
    run = house.run(str(documents), "--no-wait")
    until(lambda: "model_unreachable" in house.deployment.docsum("status"), 60)
    house.model.start()
    house.deployment.docsum("runs", "watch", run["run_id"])
    assert {row["attempt"] for row in house.rows(run["run_id"])} == {1}


def test_hopeless_documents_end_with_their_reason_and_exit_code_three(house: House) -> None:
    documents = house.folder / "hopeless"
    write_documents(documents, 2, seed=6)
    (documents / "empty.txt").write_text("")
    (documents / "program.txt").write_bytes(b"MZ\x90\x00" + bytes(range(256)) * 40)
    shown = house.run(str(documents), ok=(3,))
    assert (shown["done"], shown["dead_lettered"]) == (2, 2)
    reasons = {Path(row["document_id"]).name: row["reason"] for row in house.rows(shown["run_id"])}
    assert reasons["empty.txt"] == "empty"
    assert reasons["program.txt"] == "not_a_document"


MARKER = "Marzipankartoffel"


async def test_a_deleted_document_stays_away_until_its_source_is_read_again(house: House) -> None:
    folder = house.folder / "letters"
    folder.mkdir()
    secret, other = folder / "secret.txt", folder / "other.txt"
    secret.write_text(f"About the {MARKER}\n\nThe {MARKER} is made of almonds. Nobody may know of it.\n")
    other.write_text("About the harbour\n\nThe northern wall is repaired before the autumn storms.\n")
    assert house.run(str(folder))["done"] == 2
    assert MARKER in house.summary(secret)["summary"]

    house.deployment.docsum("documents", "delete", str(secret))
    assert house.show(secret)["deleted"]
    assert house.show(secret)["summary"] is None
    again = house.run(str(folder))
    assert (again["done"], again["skipped"]) == (1, 1)
    assert house.summary(secret)["reused"]  # its answer was still there

    settings = attach(load(home=house.deployment.home))
    assert settings is not None
    assert await tables_that_hold(MARKER, settings.clickhouse)
    calls = json.loads(house.deployment.docsum("cost", "--json"))["total"]
    house.deployment.docsum("documents", "delete", str(secret), "--purge", "--yes")
    assert await tables_that_hold(MARKER, settings.clickhouse) == set()
    assert json.loads(house.deployment.docsum("cost", "--json"))["total"] == calls
    assert house.summary(other) is not None

    assert house.run(str(folder))["done"] == 1  # it is still in the folder
    assert MARKER in house.summary(secret)["summary"]


async def tables_that_hold(text: str, settings: ClickHouse) -> set[str]:
    """Every table with a row that has the text in it, merged or not."""
    client = await connect(settings, database=settings.database)
    try:
        tables = await client.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        )
        held = set()
        for (name,) in tables.result_rows:
            found = await client.query(
                f"SELECT count() FROM {name} WHERE position(toString(tuple(*)), '{text}') > 0"
            )
            if found.result_rows[0][0]:
                held.add(str(name))
        return held
    finally:
        await client.close()


def test_while_kafka_and_the_engine_are_frozen_the_workers_tell_of_themselves(house: House) -> None:
    frozen = ("kafka", "clickhouse")
    for name in frozen:
        house.deployment.kill(name, signal.SIGSTOP)
    try:
        shown = json.loads(house.deployment.docsum("status", "--json", within=30, ok=(4,)))
    finally:
        for name in frozen:
            house.deployment.kill(name, signal.SIGCONT)
    assert [worker["worker"] for worker in shown["workers"]] == ["worker-1", "worker-2"]
    assert all(worker["partitions"] and worker["state"] != "stopped" for worker in shown["workers"])
    assert [trouble["what"].split()[0] for trouble in shown["troubles"][:2]] == ["Kafka", "ClickHouse"]
    assert all("logs" in trouble["do"] for trouble in shown["troubles"][:2])
    assert {process["name"] for process in shown["processes"]} > set(frozen)
