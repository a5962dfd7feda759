"""A real Prometheus scrapes two real workers and the API during a run with faults.

Every panel has an answer, every rule is healthy, names are clean, the number of series does not depend on the
number of documents, and lag and age are the broker's own figures.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import yaml  # it ships no types
from confluent_kafka import TopicPartition
from deploy.grafana.dashboards import CLICKHOUSE, PAGES

from docsum.kafka.admin import KafkaAdmin
from docsum.local.loopback import HOST, free_port
from docsum.stores.connection import connect
from docsum.telemetry.metrics import DEPLOYMENT
from tests.support.api_process import ApiProcess
from tests.support.broker import Broker
from tests.support.deployment import ROOT, Fleet, ModelServer, consumer_of, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="the Debian package prometheus is not installed: see .ci/need-prometheus",
    ),
]

WORKERS = ("worker-1", "worker-2")
RULES = ROOT / "deploy" / "prometheus"
FEW, MANY = 15, 150
FAULTS = (
    {"match": {}, "status": 429, "error_type": "rate_limit_error", "retry_after": 1, "times": 4},
    {"match": {}, "status": 529, "error_type": "overloaded_error", "times": 4},
    {"match": {}, "kind": "reset", "times": 2},
)

#: All of these are there once broker, store and the retention of topics have been looked at.
KNOWN_TO_THE_API = {metric.name for metric in DEPLOYMENT}


class House:
    """The deployment, and its Prometheus; the tests follow each other in the order of the file."""

    def __init__(self, folder: Path, broker: Broker, engine: Engine) -> None:
        self.folder = folder
        self.model = ModelServer(folder / "model", "--fast")
        self.fleet = Fleet(folder, broker, engine, self.model, delays=(1, 2), partitions=4)
        self.fleet.environment["DOCSUM_BUDGET__DAILY_USD"] = "1000"
        self.api = ApiProcess(folder, self.fleet.environment)
        self.api.start()
        self.fleet.start_workers(*WORKERS)
        self.pages = {name: self.fleet.page(name) for name in WORKERS}
        self.pages["api"] = f"{HOST}:{self.api.port}"
        self.prometheus = Prometheus(folder / "prometheus", self.pages)

    def documents(self, name: str, count: int) -> str:
        write_documents(self.folder / name, count, seed=count)
        return str(self.folder / name)

    def run(self, folder: str) -> str:
        """Its id, once nothing remains."""
        run_id = self.fleet.announce(folder)
        until(lambda: self.fleet.remaining(run_id) == 0, 90, f"{folder} is finished")
        return run_id

    def scraped(self, name: str) -> str:
        """What a process answers to Prometheus."""
        with urllib.request.urlopen(f"http://{self.pages[name]}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def series(self) -> dict[str, int]:
        """How many each process has."""
        return {
            name: sum(not line.startswith("#") for line in self.scraped(name).splitlines())
            for name in self.pages
        }

    def told_by_the_api(self) -> set[str]:
        """Names."""
        return set(re.findall(r"^docsum_[a-z_]+", self.scraped("api"), re.MULTILINE))

    def close(self) -> None:
        self.prometheus.close()
        with suppress(AssertionError):
            self.api.kill()
        self.fleet.close()
        self.model.close()


class Prometheus:
    """Debian's, with our configuration but for the addresses, every second."""

    def __init__(self, home: Path, pages: dict[str, str]) -> None:
        home.mkdir()
        config = yaml.safe_load((RULES / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES / "alerts.yml")]
        for job in config["scrape_configs"]:
            is_api = job["job_name"] == "docsum-api"
            mine = [address for name, address in pages.items() if (name == "api") == is_api]
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": mine}]
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._address = f"{HOST}:{free_port()}"
        options = {
            "config.file": home / "prometheus.yml",
            "storage.tsdb.path": home / "data",
            "web.listen-address": self._address,
        }
        self._log = home / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", *(f"--{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, 30, f"Prometheus is ready: {self._log.read_text()[-2000:]}")
        until(
            lambda: self.values("sum(up)") == [len(pages)], 30, "everybody is scraped"
        )  # 5 s after its start

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        with suppress(OSError):
            urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5).read()
            return True
        return False

    def ask(self, path: str, **parameters: str) -> Any:  # Any: JSON
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str, *labels: str) -> dict[tuple[str, ...], float]:
        """By the values of these labels."""
        return {
            tuple(one["metric"][label] for label in labels): float(one["value"][1])
            for one in self.ask("query", query=expression)["result"]
        }

    def values(self, expression: str) -> list[float]:
        """Of every series."""
        return [float(one["value"][1]) for one in self.ask("query", query=expression)["result"]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, broker: Broker, engine: Engine) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"), broker, engine)
    yield made
    made.close()


@pytest.fixture(scope="module")
def run_id(house: House) -> str:
    """A run whose provider fails at first, with two documents that are none; live events beside it."""
    house.model.fail(*FAULTS)
    source = Path(house.documents("few", FEW))
    (source / "empty.txt").write_text("")
    (source / "program.txt").write_bytes(b"MZ\x90\x00" + bytes(range(256)) * 40)
    house.fleet.docsum("ingest", house.documents("live", 5))
    return house.run(str(source))


def test_ten_times_the_documents_make_no_more_series(house: House, run_id: str) -> None:
    until(lambda: house.told_by_the_api() >= KNOWN_TO_THE_API, 30, "the API has seen everything")
    before = house.series()
    house.run(house.documents("many", MANY))
    until(lambda: house.series() == before, 10, f"as many as before, {before}")


def test_the_log_lines_of_a_failure_say_which_delivery_it_was(house: House, run_id: str) -> None:
    lines = [json.loads(line) for line in house.fleet.said(*WORKERS).splitlines() if line.startswith("{")]
    failed = [line for line in lines if line["event"] == "a document failed"]
    assert {line["reason"] for line in failed} == {"empty", "not_a_document"}
    for line in failed:
        assert (line["run"], line["topic"], line["attempt"]) == (run_id, house.fleet.topology.backfill, 1)
        assert line["document"].endswith(".txt")
        assert line["partition"] >= 0 and line["offset"] >= 0


def has_numbers(house: House, query: str) -> bool:
    """Not only series, but values in them."""
    return any(map(isfinite, house.prometheus.values(query)))


def in_prometheus(query: str) -> str:
    """As Grafana sends it, for a time that has all that was done here."""
    return query.replace("$__rate_interval", "5m").replace("$__range", "5m").replace("$instance", ".*")


def test_every_panel_that_asks_prometheus_has_an_answer(house: House, run_id: str) -> None:
    queries = [
        in_prometheus(query)
        for page in PAGES
        if page.source != CLICKHOUSE
        for panel in page.panels
        for query in panel.queries.values()
    ]
    missing = set(queries)

    def answered() -> bool:
        missing.difference_update([query for query in missing if has_numbers(house, query)])
        return not missing

    with suppress(AssertionError):
        until(answered, 20, "every query has series")
    assert not missing
    assert house.prometheus.values('sum(docsum_end_to_end_seconds_count{lane="live"})') == [5]
    failed = house.prometheus.query(
        'sum by (reason) (docsum_failures_total{outcome="dead_lettered"}) > 0', "reason"
    )
    assert failed == {("empty",): 1, ("not_a_document",): 1}
    assert house.prometheus.values('sum(docsum_model_requests_total{outcome="rate_limited"})') == [4]


def test_what_the_metrics_say_of_calls_is_what_the_provider_says(house: House, run_id: str) -> None:
    bill, ok = house.model.billed["accepted"], 'sum(docsum_model_requests_total{outcome="ok"})'
    until(lambda: house.prometheus.values(ok) == [bill], 15, f"{bill} as were billed")


def test_every_rule_is_healthy_and_nobody_is_paged(house: House, run_id: str) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in house.prometheus.ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] == "ok" for rule in rules()), 15, "every rule was evaluated")
    firing = [rule["name"] for rule in rules() if rule.get("state") == "firing"]
    assert len(rules()) > 20
    assert firing == []


@pytest.mark.parametrize("name", ["worker-1", "api"])
def test_promtool_finds_nothing_to_say(house: House, run_id: str, name: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=house.scraped(name),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_every_panel_that_asks_clickhouse_has_rows(house: House, run_id: str) -> None:
    def in_clickhouse(query: str) -> str:
        """As Grafana's plugin sends it."""
        query = re.sub(r"\$__timeFilter_ms\((\w+)\)", r"\1 >= now64(3) - INTERVAL 1 HOUR", query)
        interval = r"toStartOfInterval(toDateTime64(\1, 3), INTERVAL 10000 MILLISECOND)"
        return re.sub(r"\$__timeInterval_ms\((\w+)\)", interval, query).replace("$run", run_id)

    settings = house.fleet.reached.clickhouse
    client = await connect(settings, database=settings.database)
    try:
        for page in PAGES:
            if page.source == CLICKHOUSE:
                queries = [query for panel in page.panels for query in panel.queries.values()]
                for query in (*queries, *(page.variables or {}).values()):
                    found = await client.query(in_clickhouse(query))
                    assert found.result_rows, query
                    assert not [name for name in found.column_names if "(" in name], query
    finally:
        await client.close()


def test_the_rules_do_what_their_tests_say() -> None:
    for arguments in (
        ("test", "rules", "alerts.test.yml"),
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
    ):
        done = subprocess.run(
            ["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_lag_and_age_are_the_brokers_own_figures(house: House, run_id: str) -> None:
    """With the workers stopped, so that what waits stays as it is."""
    for name in WORKERS:
        house.fleet.stop_worker(name)
    house.fleet.docsum("ingest", house.documents("waiting", 9))
    kafka, topology = house.fleet.settings.kafka, house.fleet.topology
    told = asyncio.run(KafkaAdmin(kafka).lag(kafka.group_id, topology))
    lag = {(one.topic, str(one.partition)): one.lag for one in told}
    assert sum(lag.values()) == 9

    def in_prometheus(metric: str) -> dict[tuple[str, ...], float]:
        expression = f'max by (topic, partition) ({metric}{{lane!="batch"}})'
        return house.prometheus.query(expression, "topic", "partition")

    until(lambda: in_prometheus("docsum_consumer_lag_messages") == lag, 20, f"Prometheus has {lag}")
    first = {
        (one.topic, str(one.partition)): timestamp(house, one.topic, one.partition, one.committed or 0)
        for one in told
        if one.lag
    }
    ages = in_prometheus("docsum_oldest_unprocessed_timestamp_seconds")
    assert {place: ages[place] for place in first} == first
    assert min(at for place, at in ages.items() if place not in first) > max(first.values())


def timestamp(house: House, topic: str, partition: int, offset: int) -> float:
    """Seconds, of one record."""
    with closing(consumer_of(house.fleet.brokers)) as consumer:
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(20)
        assert message is not None and message.error() is None and message.offset() == offset
        return float(message.timestamp()[1]) / 1000
