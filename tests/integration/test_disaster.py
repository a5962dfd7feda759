"""The drill of deploy/README.md: what is lost with the store or with Kafka, and how it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from docsum.stores.connection import connect
from tests.support.broker import Broker
from tests.support.deployment import ROOT, Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ModelServer]:
    made = ModelServer(tmp_path / "model", "--fast")
    yield made
    made.close()


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, engine: Engine, model: ModelServer) -> Iterator[Fleet]:
    made = Fleet(tmp_path, broker, engine, model)
    yield made
    made.close()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "kafka")
    made.data.mkdir()
    asyncio.run(made.start())
    yield made
    made.kill()


def store(fleet: Fleet, *arguments: str, ok: bool = True) -> str:
    """`deploy/store.sh` as an operator runs it."""
    done = subprocess.run(
        [ROOT / "deploy/store.sh", *arguments],
        env={"PATH": os.environ["PATH"], **fleet.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def drop_database(fleet: Fleet) -> None:
    async def drop() -> None:
        client = await connect(fleet.reached.clickhouse, database=None)
        await client.command(f"DROP DATABASE {fleet.reached.clickhouse.database}")
        await client.close()

    asyncio.run(drop())


def consumer(fleet: Fleet) -> Consumer:
    return Consumer({"bootstrap.servers": fleet.brokers, "group.id": fleet.settings.kafka.group_id})


def committed(fleet: Fleet) -> list[TopicPartition]:
    """What `kafka-consumer-groups.sh --describe` tells of the group."""
    topics = fleet.topology
    read = (topics.documents, topics.backfill, *topics.retries)
    places = [TopicPartition(topic, number) for topic in read for number in range(topics.partitions)]
    with closing(consumer(fleet)) as asking:
        return [place for place in asking.committed(places, timeout=20) if place.offset >= 0]


def is_back_at(fleet: Fleet, offsets: list[TopicPartition]) -> bool:
    """What `--reset-offsets --from-file` does. False while Kafka still keeps the place of a member."""
    with closing(consumer(fleet)) as committing, suppress(KafkaException):
        committing.commit(offsets=offsets, asynchronous=False)
        return True
    return False


def test_a_lost_store_comes_back_from_its_copy_and_only_what_came_later_is_bought_again(
    fleet: Fleet, model: ModelServer
) -> None:
    before, after, copy = (fleet.folder / name for name in ("before", "after", "copy"))
    write_documents(before, 6, seed=1)
    write_documents(after, 4, seed=2)
    fleet.start_workers("one")
    fleet.docsum("run", str(before))
    offsets = committed(fleet)  # first: what is committed is in the tables
    store(fleet, "backup", str(copy))
    fleet.docsum("run", str(after))
    assert "is not empty" in store(fleet, "restore", str(copy), ok=False)
    fleet.stop_worker("one")
    drop_database(fleet)
    fleet.docsum("setup", "store")
    told = store(fleet, "restore", str(copy))
    assert "answer_versions: 6 rows" in told and "summary_versions: 6 rows" in told
    until(lambda: is_back_at(fleet, offsets), 60, "the group is empty")
    fleet.start_workers("two")
    until(lambda: model.billed["accepted"] == 14, 60, "what came later is bought again")
    until(fleet.has_caught_up, 60, "nothing waits")
    assert is_summarised(fleet, after / "00003.txt")
    again = json.loads(fleet.docsum("run", str(before), "--json"))
    assert (again["skipped"], again["done"], model.billed["accepted"]) == (6, 0, 14)


def test_a_lost_kafka_costs_a_second_run_of_the_same_sources_and_no_money(
    tmp_path: Path, own_broker: Broker, engine: Engine, model: ModelServer
) -> None:
    fleet = Fleet(tmp_path, own_broker, engine, model)
    try:
        documents = tmp_path / "documents"
        documents.mkdir()
        write_documents(documents / "a", 4, seed=3)
        fleet.start_workers("one")
        fleet.docsum("run", str(documents))
        fleet.stop_worker("one")
        write_documents(documents / "b", 3, seed=4)
        waiting = fleet.announce(str(documents))
        assert fleet.remaining(waiting) == 7
        own_broker.kill()
        shutil.rmtree(own_broker.data)
        own_broker.data.mkdir()
        asyncio.run(own_broker.start())
        fleet.docsum("setup", "topics")
        fleet.start_workers("two")
        fleet.docsum("runs", "cancel", waiting)
        assert fleet.remaining(waiting) == 0
        again = json.loads(fleet.docsum("run", str(documents), "--json"))
        assert (again["total"], again["remaining"]) == (7, 0)
        assert again["done"] + again["skipped"] == 7
        assert model.billed["accepted"] == 7
    finally:
        fleet.close()


def is_summarised(fleet: Fleet, path: Path) -> bool:
    return bool(json.loads(fleet.docsum("documents", "show", str(path), "--json"))["summary"])
