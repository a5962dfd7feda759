"""The API as a process, on a real broker and engine: what it has accepted is done, whatever kills it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_process import ApiProcess
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine

TEXT = "The harbour wall {number} is closed. It was repaired in {number} days, and the council paid for it.\n"


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, engine: Engine) -> Iterator[Fleet]:
    model = ModelServer(tmp_path / "model", "--fast")
    fleet = Fleet(tmp_path, broker, engine, model)
    yield fleet
    fleet.close()
    model.close()


@pytest.fixture
def api(tmp_path: Path, fleet: Fleet) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path, fleet.environment)
    process.start()
    yield process
    process.kill()


def folder_of(fleet: Fleet, count: int) -> Path:
    folder = fleet.folder / "documents"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(TEXT.format(number=number))
    return folder


def counts(api: ApiProcess, run_id: str) -> tuple[str, int, int]:
    run = api.get(f"/v1/runs/{run_id}")
    return run["state"], run["total"], run["done"]


def begin(api: ApiProcess, body: dict[str, object]) -> str:
    status, answer = api.ask("POST", "/v1/runs", body)
    assert status == 202, answer
    run_id: str = answer["run_id"]
    return run_id


@pytest.mark.timeout(240)
def test_what_was_accepted_is_published_though_the_api_was_killed_at_once(
    fleet: Fleet, api: ApiProcess
) -> None:
    folder = folder_of(fleet, 200)
    run_id = begin(api, {"source": str(folder)})
    api.kill()
    fleet.start_workers("worker-1")
    api.start()
    until(lambda: counts(api, run_id) == ("finished", 200, 200), 120, "all are done")
    assert fleet.model.paid_again == {}


@pytest.mark.timeout(240)
def test_a_kill_while_it_publishes_loses_nothing_and_pays_for_nothing_twice(
    tmp_path: Path, fleet: Fleet
) -> None:
    """It has announced as much as may wait, and waits for a worker."""
    api = ApiProcess(tmp_path, fleet.environment | {"DOCSUM_API__MAX_LAG": "300"})
    api.start()
    try:
        run_id = begin(api, {"source": str(folder_of(fleet, 1_000))})
        until(lambda: 300 <= counts(api, run_id)[1] < 700, 60, "a part is announced")
        api.kill()
        fleet.start_workers("worker-1")
        api.start()
        until(lambda: counts(api, run_id) == ("finished", 1_000, 1_000), 150, "all are done")
        assert fleet.model.paid_again == {}
    finally:
        api.kill()


@pytest.mark.timeout(180)
def test_a_list_is_sent_twice_and_the_counts_are_those_of_the_tables(fleet: Fleet, api: ApiProcess) -> None:
    folder = folder_of(fleet, 300)
    uris = [(folder / f"{number}.txt").as_uri() for number in range(300)]
    lines = "".join(json.dumps({"document_id": uri, "uri": uri}) + "\n" for uri in uris).encode()
    run_id = begin(api, {"name": "sent"})
    path = f"/v1/runs/{run_id}/documents"
    assert api.ask("POST", f"{path}?more=true", lines)[1]["total"] == 300
    assert api.ask("POST", path, lines)[1]["state"] == "running"
    fleet.start_workers("worker-1")
    until(lambda: counts(api, run_id) == ("finished", 300, 300), 90, "all are done")
    assert fleet.counts(run_id) == {"done": 300}
    found = [each for page in pages(api, f"{path}?limit=130") for each in page["documents"]]
    assert sorted(each["document_id"] for each in found) == sorted(uris)
    assert {each["state"] for each in found} == {"done"}
    assert api.get(f"/v1/documents/{uris[0]}")["summary"]["model"] == fleet.settings.model.name


def pages(api: ApiProcess, path: str) -> Iterator[dict[str, list[dict[str, str]]]]:
    cursor = ""
    while True:
        page = api.get(path + (f"&cursor={cursor}" if cursor else ""))
        yield page
        cursor = page["next_cursor"]
        if not cursor:
            return


@pytest.mark.timeout(120)
def test_tokens_of_the_command_line_open_the_api_and_revoked_ones_do_not(
    tmp_path: Path, fleet: Fleet
) -> None:
    api = ApiProcess(tmp_path, fleet.environment, is_open=False)
    api.start()
    try:
        assert api.ask("GET", "/v1/runs")[0] == 401
        token = fleet.docsum("tokens", "create", "team", "--scope", "read").strip()
        header = {"Authorization": f"Bearer {token}"}

        def answers(status: int, method: str = "GET") -> bool:
            return api.ask(method, "/v1/runs", {} if method == "POST" else None, header)[0] == status

        until(lambda: answers(200), 10, "the new token is known")
        assert answers(403, "POST")
        fleet.docsum("tokens", "revoke", "team")
        until(lambda: answers(401), 10, "it is revoked")
        assert token not in api.said()
        assert api.stop() == 0
    finally:
        api.kill()


@pytest.mark.timeout(120)
def test_a_source_that_is_gone_when_it_is_listed_is_told(fleet: Fleet, api: ApiProcess) -> None:
    folder = folder_of(fleet, 1)
    (folder / "list.jsonl").write_text('{"document_id": "a", "uri": "a.txt"}\n')
    (folder / "broken.csv").write_text("name,place\n1,2\n")
    status, answer = api.ask("POST", "/v1/runs", {"source": str(folder / "broken.csv")})
    assert (status, "no manifest" in answer["detail"]) == (422, True)
    status, answer = api.ask("POST", "/v1/runs", {"source": str(folder / "nothing")})
    assert (status, "There is no file or folder" in answer["detail"]) == (422, True)
    assert api.ask("POST", "/v1/runs", {"source": "/etc"})[0] == 422
