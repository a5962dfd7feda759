"""Partitions that were added later: all are read, and nobody takes more of the limits than its part."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest
from confluent_kafka import Producer

from docsum.kafka.admin import KafkaAdmin
from docsum.settings import Limits
from docsum.topics import Topology
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine


@pytest.mark.timeout(300)
def test_partitions_that_came_while_a_static_member_was_away_are_read(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    """The broker gives a static member its old assignment back, and nobody looks at the topics again."""
    model = ModelServer(tmp_path / "model", "--fast")
    fleet = Fleet(tmp_path, broker, engine, model)
    try:
        fleet.start_workers("worker-1")
        until(lambda: fleet.ask(lambda store: store.workers())[0].partitions != (), 60, "it owns partitions")
        fleet.workers["worker-1"].kill()
        fleet.workers["worker-1"].wait(20)
        grow(fleet, 7)
        path = tmp_path / "new.txt"
        path.write_text("The harbour has been closed for good. Nobody repairs its wall.\n")
        producer = Producer({"bootstrap.servers": fleet.brokers})
        event = json.dumps({"document_id": "new", "uri": path.as_uri()})
        producer.produce(fleet.topology.documents, event, "new", partition=6)
        assert producer.flush(20) == 0
        fleet.start_workers("worker-1")
        until(lambda: fleet.ask(lambda store: store.summary("new")) is not None, 120, "it is summarised")
    finally:
        fleet.close()
        model.close()


@pytest.mark.timeout(300)
def test_workers_that_run_share_the_limits_anew(tmp_path: Path, broker: Broker, engine: Engine) -> None:
    """With the number of partitions that they were started with, both would take more than a half."""
    model = ModelServer(tmp_path / "model", "--fast")
    fleet = Fleet(tmp_path, broker, engine, model, limits=Limits(requests_per_minute=960), partitions=2)
    try:
        fleet.start_workers("worker-1", "worker-2")
        until(lambda: limits(fleet) == [480, 480], 60, "each has a half of two partitions")
        grow(fleet, 6)
        until(lambda: owned(fleet) == [3, 3], 60, "each has a half of six")
        until(lambda: limits(fleet) == [480, 480], 30, "and of the limits")
    finally:
        fleet.close()
        model.close()


def grow(fleet: Fleet, partitions: int) -> None:
    more = Topology(prefix=fleet.topology.prefix, partitions=partitions, delays=fleet.topology.delays)
    asyncio.run(KafkaAdmin(fleet.settings.kafka).setup(more))


def limits(fleet: Fleet) -> list[float]:
    """Requests a minute that each worker allows itself."""
    return [told(fleet, name, 'docsum_model_limit_per_minute{unit="requests"} ') for name in fleet.workers]


def owned(fleet: Fleet) -> list[int]:
    """How many partitions each worker has of a topic."""
    numbers = [
        {place.partition("[")[2] for place in each.partitions}
        for each in fleet.ask(lambda store: store.workers())
    ]
    return [len(each) for each in numbers]


def told(fleet: Fleet, name: str, begins: str) -> float:
    """The value of a metric's line."""
    with urllib.request.urlopen(f"http://{fleet.page(name)}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.removeprefix(begins)) for line in lines if line.startswith(begins))
