"""Partitions that were added while no worker could notice are read all the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from confluent_kafka import Producer

from docsum.kafka.admin import KafkaAdmin
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
        more = Topology(prefix=fleet.topology.prefix, partitions=7, delays=fleet.topology.delays)
        asyncio.run(KafkaAdmin(fleet.settings.kafka).setup(more))
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
