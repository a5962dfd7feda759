"""Sources, store and dead-letter topic out of order: told, waited out, nothing lost, nothing bought again.

Scaled down; `--outage-documents=3000 --outage-seconds=60` is the full size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from confluent_kafka import admin

from docsum.models import RunDocumentRow, State
from docsum.settings import Fetch
from tests.support.deployment import Fleet, stays, until
from tests.support.documents import scanned_pdf
from tests.support.fault_proxy import FaultProxy
from tests.support.outages import WORKERS, Outage, Prepare
from tests.support.texts import write_documents
from tests.support.web_server import WebServer, in_a_thread, reply

pytestmark = pytest.mark.timeout(2400)

# -- sources -----------------------------------------------------------------------------------------------


class Web:
    """Three hosts, each behind a proxy; the first one goes down."""

    def __init__(self, server: WebServer, hosts: Sequence[FaultProxy]) -> None:
        self.server = server
        self.hosts = hosts
        self.sick = hosts[0]

    def manifest(self, folder: Path, name: str, count: int) -> Path:
        """So many documents of every host, in turns."""
        path = folder / f"{name}.jsonl"
        with path.open("w") as lines:
            for number in range(count):
                for host in self.hosts:
                    place = f"/{name}/{host.port}/{number}.txt"
                    text = f"Report {place}. The harbour has agreed to repair the wall before the storms.\n"
                    self.server.answers[place] = reply(text.encode(), Content_Type="text/plain")
                    lines.write(json.dumps({"document_id": place, "uri": host.url + place}) + "\n")
        return path

    def of_the_sick(self, row: RunDocumentRow) -> bool:
        return row.uri.startswith(self.sick.url)


@pytest.fixture
def web() -> Iterator[Web]:
    with ExitStack() as stack:
        server = stack.enter_context(in_a_thread(WebServer()))
        yield Web(server, [stack.enter_context(FaultProxy(server.port)) for _ in range(3)])


def healthy_done(fleet: Fleet, web: Web, run_id: str, count: int) -> float:
    """Waits for so many documents of the healthy hosts; returns the seconds from the first to the last."""

    def done() -> list[RunDocumentRow]:
        rows = fleet.rows(run_id)
        return [row for row in rows if row.state is State.DONE and not web.of_the_sick(row)]

    until(lambda: len(done()) == count, 600, "the healthy hosts' documents are done")
    moments = [row.written_at for row in done()]
    return (max(moments) - min(moments)).total_seconds()


@pytest.mark.parametrize("how", [pytest.param("refuses", marks=pytest.mark.long), "hangs"])
def test_a_source_host_that_is_down_makes_only_its_own_documents_wait(
    prepared: Prepare, web: Web, how: str
) -> None:
    hosts = tuple(host.address for host in web.hosts)
    fetch = Fetch(hosts=hosts, private_hosts=hosts, timeout=timedelta(seconds=2))
    house = prepared("--latency=0.2", fetch=fetch, delays=(2, 4, 6))
    fleet, count = house.fleet, house.documents(240) // 3
    healthy, runs = [], []
    for number in range(3 if house.full_size else 1):
        took = {}
        for state in ("up", "down"):
            manifest = web.manifest(fleet.folder, f"{state}-{number}", count)
            if state == "down":
                getattr(web.sick, how)()
            runs.append(fleet.announce(str(manifest)))
            took[state] = healthy_done(fleet, web, runs[-1], 2 * count)
        assert not any(row.state is State.DONE and web.of_the_sick(row) for row in fleet.rows(runs[-1]))
        web.sick.passes()
        until(lambda: fleet.counts(runs[-1]) == {"done": 3 * count}, 120, "its documents are done too")
        healthy.append(took)
    print(f"{how}: {count} documents a host, seconds of the healthy ones while one is {healthy}")
    assert fleet.dead_letters() == []
    rows = [row for run in runs for row in fleet.rows(run)]
    assert {row.attempt for row in rows if not web.of_the_sick(row)} == {1}
    # Until its breaker opens, after 16 failures in each worker, a failure may be the document's own.
    assert sum(row.attempt - 1 for row in rows) <= 16 * len(WORKERS) * len(healthy)
    if house.full_size:
        assert median(took["up"] / took["down"] for took in healthy) >= 0.9
    else:  # so few that the first time-outs, before its breaker opens, weigh more
        assert healthy[0]["down"] <= 1.5 * healthy[0]["up"] + 6


# -- the store ---------------------------------------------------------------------------------------------

#: What happens to ClickHouse, and whether reading works meanwhile.
FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "refuses": FaultProxy.refuses,
    "hangs": FaultProxy.hangs,
    "memory": lambda proxy: proxy.answers(241, "MEMORY_LIMIT_EXCEEDED"),
    "parts": lambda proxy: proxy.answers(252, "TOO_MANY_PARTS", only="INSERT"),
    "disk full": lambda proxy: proxy.answers(243, "NOT_ENOUGH_SPACE", only="INSERT"),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=pytest.mark.long if name in ("refuses", "memory", "parts") else ())
        for name in FAULTS
    ],
)
def test_a_store_that_is_down_after_paid_answers_costs_no_call_twice(prepared: Prepare, fault: str) -> None:
    house = prepared("--latency=0.2")
    count, seconds = house.documents(200), house.seconds(5)
    run_id = house.run(count)
    house.reaches(count // 5)

    FAULTS[fault](house.fleet.store_proxy)
    until(lambda: "store_unavailable" in house.fleet.said("one"), 60, "the log tells of the store")
    until(lambda: told(house), 60, "`docsum status` tells of the store")
    stays(house.nothing_spent, seconds, "nothing is spent")
    house.fleet.store_proxy.passes()

    house.finishes(run_id, count, 180)
    assert house.accepted == count
    assert house.model.paid_again == {}


def told(house: Outage) -> bool:
    """The store does not answer, or its workers cannot write their heartbeats."""
    shown = house.fleet.docsum("status", ok=(0, 4))
    return "ClickHouse" in shown or "silent for" in shown


# -- the dead-letter topic ---------------------------------------------------------------------------------


class DeadLetterTopic:
    """What a person with too many rights does to it."""

    def __init__(self, fleet: Fleet) -> None:
        self.name = fleet.topology.dead_letters
        self._fleet = fleet
        self._admin = admin.AdminClient({"bootstrap.servers": fleet.brokers})

    def takes(self, size: int) -> None:
        api: Any = admin  # Any: the module exports these without saying so
        entry = api.ConfigEntry(
            "max.message.bytes", str(size), incremental_operation=api.AlterConfigOpType.SET
        )
        topic = api.ConfigResource(api.ConfigResource.Type.TOPIC, self.name, incremental_configs=[entry])
        self._admin.incremental_alter_configs([topic])[topic].result(20)

    def delete(self) -> None:
        self._admin.delete_topics([self.name])[self.name].result(20)

    def create(self) -> None:
        self._fleet.docsum("setup", "topics")


@pytest.mark.parametrize("how", ["too small", "deleted"])
def test_a_dead_letter_topic_that_takes_nothing_blocks_and_loses_nothing(prepared: Prepare, how: str) -> None:
    house = prepared()
    fleet, count, hopeless = house.fleet, house.documents(60), 12
    topic = DeadLetterTopic(fleet)
    topic.takes(10) if how == "too small" else topic.delete()
    write_documents(fleet.folder / "documents", count)
    for number in range(hopeless):
        (fleet.folder / "documents" / f"empty-{number}.txt").touch()
    run_id = fleet.announce(str(fleet.folder / "documents"))

    reason = "broker_refused" if how == "too small" else "broker_unavailable"
    until(lambda: fleet.counts(run_id).get("done") == count, 120, "the others are done")
    until(lambda: house.tells(reason), 60, "`docsum status` tells of the topic")
    assert house.logged(reason)
    stays(lambda: blocked(house), house.seconds(3), "the partitions are blocked")
    topic.takes(1_000_000) if how == "too small" else topic.create()

    until(lambda: fleet.counts(run_id) == {"dead_lettered": hopeless, "done": count}, 120, "all have ended")
    keys = [letter.key() for letter in fleet.dead_letters()]
    assert len(keys) == len(set(keys)) == hopeless
    until(lambda: not blocked(house), 30, "everything is committed")


def blocked(house: Outage) -> bool:
    """Whether events of runs are not committed."""
    return any(
        each["topic"] == house.fleet.topology.backfill and each["lag"] for each in house.status()["lag"]
    )


def test_a_folder_of_scans_pauses_nothing(prepared: Prepare) -> None:
    house = prepared()
    count = house.documents(150)
    folder = house.fleet.folder / "documents"
    write_documents(folder, count * 4 // 10)
    for number in range(count * 6 // 10):
        (folder / f"scan-{number:05}.pdf").write_bytes(scanned_pdf(1, stamp=str(number)))
    run_id = house.fleet.announce(str(folder))
    expected = {"dead_lettered": count * 6 // 10, "done": count * 4 // 10}
    until(lambda: house.fleet.counts(run_id) == expected, 240, "all have ended")
    assert {row.reason for row in house.fleet.rows(run_id) if row.state is State.DEAD_LETTERED} == {"scanned"}
