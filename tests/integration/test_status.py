"""`docsum status` on a real deployment while its parts refuse, hang and come back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from docsum.cli.looking import look
from docsum.health import Health
from docsum.stores.controls import AGE
from docsum.troubles import troubles
from tests.support.deployment import Fleet, ModelServer, ProxiedBroker, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(300)

PATIENT = 30.0  # seconds for a command that takes six on a machine of its own
WORKERS = ("worker-1", "worker-2")


class House:
    """One fleet for all tests here, behind proxies; they follow each other in the order of the file."""

    def __init__(self, folder: Path, broker: ProxiedBroker, engine: Engine) -> None:
        self.folder = folder
        self.broker = broker
        self.model = ModelServer(folder / "model", "--fast")
        self.fleet = Fleet(folder, broker, engine, self.model, delays=(30, 60))

    def seen(self, *, ok: int = 0) -> dict[str, Any]:
        """What a program reads; the command must end with this code, and soon."""
        begun = time.monotonic()
        found: dict[str, Any] = json.loads(self.fleet.docsum("status", "--json", ok=(ok,)))
        assert time.monotonic() - begun < PATIENT
        return found

    def troubles(self, *, ok: int = 0) -> str:
        return " ".join(f"{trouble['what']} {trouble['do']}" for trouble in self.seen(ok=ok)["troubles"])

    def health(self) -> Health:
        """The same look without the command around it: for those who look again and again."""
        return asyncio.run(look(self.fleet.settings, local=False))

    def held(self) -> int | None:
        backlog = self.health().backlog
        return backlog.held if backlog else None

    def documents(self, name: str, count: int) -> str:
        """Texts that no other folder has: nothing of theirs is known."""
        write_documents(self.folder / name, count, seed=len(name))
        return str(self.folder / name)

    def retrying(self) -> int:
        backlog = self.health().backlog
        topics = backlog.topics if backlog else ()
        return sum(topic.events for topic in topics if self.fleet.topology.is_retry(topic.topic))

    def close(self) -> None:
        self.fleet.close()
        self.model.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[House]:
    """With a broker of its own, so that nobody has ever used a consumer group there."""
    folder = tmp_path_factory.mktemp("house")
    broker = ProxiedBroker(folder / "kafka")
    with broker.proxy:
        asyncio.run(broker.start())
        house = House(folder, broker, engine)
        try:
            yield house
        finally:
            house.close()
            broker.kill()


def lane(seen: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [lane for lane in seen["lanes"] if lane["lane"] == name]
    return dict(found)


@contextmanager
def during(fault: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    fault()
    try:
        yield
    finally:
        end()


def test_a_broker_without_any_group_tells_how_much_waits_and_how_long(house: House) -> None:
    assert house.seen()["troubles"] == []
    begun = datetime.now(UTC)
    house.fleet.announce(house.documents("first", 30))

    seen = house.seen(ok=4)

    backfill = lane(seen, "backfill")
    assert backfill["waiting"] == 30
    assert begun - timedelta(seconds=1) < datetime.fromisoformat(backfill["oldest_at"]) < datetime.now(UTC)
    assert (lane(seen, "live")["waiting"], lane(seen, "live")["oldest_at"]) == (0, None)
    assert seen["troubles"][0]["what"] == "30 events wait and no worker is there."


def test_workers_are_shown_and_a_finished_run_leaves_nothing_behind(house: House) -> None:
    house.fleet.start_workers(*WORKERS)
    until(lambda: house.health().waiting == 0, 60, "all offsets are committed")

    seen = house.seen()

    assert [worker["worker"] for worker in seen["workers"]] == list(WORKERS)
    assert {member["name"] for member in seen["members"]} == set(WORKERS)
    assert sum(len(member["partitions"]) for member in seen["members"]) == 4 * 6
    assert seen["runs"][0]["state"] == "finished"
    assert (seen["troubles"], seen["spent_today_usd"]) == ([], 0)


def test_a_paused_run_rests_in_the_held_topic_and_says_what_it_waits_for(house: House) -> None:
    fleet, begun = house.fleet, datetime.now(UTC)
    fleet.docsum("pause", "--all", "--reason", "new prices")
    asked = time.monotonic()
    until(lambda: time.monotonic() - asked > AGE + 0.5, 10, "every worker has looked again")
    run_id = fleet.announce(house.documents("paused", 20))
    paused = house.seen(ok=6)
    assert paused["rests"]
    (control,) = paused["controls"]
    assert (control["reason"], bool(control["by"])) == ("new prices", True)

    fleet.docsum("runs", "pause", run_id, "--reason", "wrong folder")
    fleet.docsum("resume", "--all")

    until(lambda: house.held() == 20, 60, "all its documents rest")
    backlog = house.health().backlog
    assert backlog is not None and backlog.held_since is not None
    assert begun <= backlog.held_since <= datetime.now(UTC)
    assert f"wrong folder. `docsum runs resume {run_id[:8]}` goes on." in house.troubles()
    fleet.docsum("runs", "resume", run_id)
    until(lambda: house.held() == 0, 60, "nothing rests")


def test_a_document_in_a_retry_topic_is_due_at_a_known_moment(house: House) -> None:
    line = {
        "document_id": "early",
        "uri": (house.folder / "first" / "00000.txt").as_uri(),
        "source_version": f"{time.time_ns() + 10**15}:1:1",
    }
    (house.folder / "early.jsonl").write_text(json.dumps(line) + "\n")
    house.fleet.announce(str(house.folder / "early.jsonl"))
    until(lambda: house.retrying() == 1, 60, "it waits for another try")
    retry = lane(house.seen(), "retry")
    due, oldest = (datetime.fromisoformat(retry[name]) for name in ("next_due_at", "oldest_at"))
    assert timedelta(seconds=30) <= due - oldest < timedelta(seconds=90)


def test_a_model_that_is_out_of_reach_is_told_with_reason_since_and_next_try(house: House) -> None:
    with during(house.model.stop, house.model.start):
        house.fleet.announce(house.documents("unreachable", 8))
        until(lambda: bool(troubles(house.health())), 60, "a heartbeat tells it")
        told = house.troubles()
    assert all(part in told for part in ("model_unreachable", " since ", ", next ")), told
    until(lambda: not troubles(house.health()), 90, "work goes on by itself")


@pytest.mark.parametrize("manner", ["refuses", "hangs"])
def test_without_a_store_the_broker_tells_lanes_and_workers(house: House, manner: str) -> None:
    proxy = house.fleet.store_proxy
    with during(getattr(proxy, manner), proxy.passes):
        seen = house.seen(ok=4)
        text = house.fleet.docsum("status", ok=(4,))
    (trouble,) = seen["troubles"]
    assert "ClickHouse" in trouble["what"]
    assert {member["name"] for member in seen["members"]} == set(WORKERS)
    assert lane(seen, "live")["waiting"] == 0
    assert (seen["runs"], seen["spent_today_usd"], seen["controls"]) == (None, None, None)
    assert "worker, says Kafka" in text


@pytest.mark.parametrize("manner", ["refuses", "hangs"])
def test_without_a_broker_the_store_tells_workers_and_runs(house: House, manner: str) -> None:
    proxy = house.broker.proxy
    with during(getattr(proxy, manner), proxy.passes):
        seen = house.seen(ok=4)
    assert "Kafka" in seen["troubles"][0]["what"]
    assert (seen["lag"], seen["lanes"], seen["held"]) == (None, None, None)
    assert [worker["worker"] for worker in seen["workers"]] == list(WORKERS)
    assert seen["runs"]


def test_with_both_frozen_it_ends_and_says_so(house: House) -> None:
    store = house.fleet.store_proxy
    with during(house.broker.freeze, house.broker.thaw), during(store.hangs, store.passes):
        seen = house.seen(ok=4)
    assert ["Kafka" in seen["troubles"][0]["what"], "ClickHouse" in seen["troubles"][1]["what"]] == [True] * 2
    until(lambda: not house.health().errors, 60, "all is well again")
