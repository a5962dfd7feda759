"""The real broker: what it stored survives its being killed, wherever it starts again."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from docsum.local.jars import cache_folder, ensure_jars
from docsum.local.kafka import kafka_ready, kafka_spec
from docsum.local.loopback import free_port
from docsum.local.process import ProcessSpec

pytestmark = pytest.mark.timeout(300)  # the first run on a machine fetches 45 MB


@pytest.fixture(scope="module")
def jars() -> list[Path]:
    return ensure_jars(cache_folder(os.environ))


async def test_records_survive_a_killed_broker_on_the_same_ports_and_on_others(
    jars: list[Path], tmp_path: Path
) -> None:
    data = tmp_path / "dö c,s %41" / "kafka"  # Java reads some of these characters in its own way
    spec = kafka_spec(data, jars, free_port(), free_port())
    async with broker(spec) as process:
        await asyncio.to_thread(create_topic, spec)
        await asyncio.to_thread(produce, spec, [b"first"])
        assert written_outside(process.pid, data) == {data.parent / "kafka.log"}
        process.kill()
    async with broker(spec) as process:
        assert await asyncio.to_thread(consume, spec, 1) == [b"first"]
        await asyncio.to_thread(produce, spec, [b"second"])
        process.kill()
    moved = kafka_spec(data, jars, free_port(), free_port())
    async with broker(moved) as process:
        assert await asyncio.to_thread(consume, moved, 2) == [b"first", b"second"]
        process.terminate()
        assert process.wait(spec.stop_timeout.total_seconds()) == 128 + 15
    assert (data.parent / "kafka.log").read_text().count("Kafka Server started") == 3
    assert {path.name for path in data.iterdir()} == {"log", "tmp", "server.properties", "log4j2.properties"}


async def test_nobody_at_the_port_is_not_ready() -> None:
    assert not await kafka_ready(free_port())()


@asynccontextmanager
async def broker(spec: ProcessSpec) -> AsyncIterator[subprocess.Popen[bytes]]:
    assert spec.prepare is not None
    await spec.prepare()
    with start(spec) as process:
        try:
            async with asyncio.timeout(spec.ready_timeout.total_seconds()):
                while not await spec.ready():
                    assert process.poll() is None
                    await asyncio.sleep(0.1)
            yield process
        finally:
            process.kill()


def start(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    with (spec.cwd.parent / "kafka.log").open("ab") as log:
        return subprocess.Popen(spec.argv, env=spec.env, cwd=spec.cwd, stdout=log, stderr=log)


def create_topic(spec: ProcessSpec) -> None:
    admin = AdminClient(bootstrap(spec))
    topic = NewTopic("documents", num_partitions=3, replication_factor=-1)
    admin.create_topics([topic])["documents"].result(30)


def produce(spec: ProcessSpec, values: list[bytes]) -> None:
    stored: list[bytes | None] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is None
        stored.append(message.value())

    producer = Producer(bootstrap(spec))
    for value in values:
        producer.produce("documents", value, partition=2, on_delivery=delivered)
    producer.flush(30)
    assert stored == values


def consume(spec: ProcessSpec, count: int) -> list[bytes]:
    consumer = Consumer({**bootstrap(spec), "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition("documents", 2, 0)])
    try:
        messages = consumer.consume(count, timeout=30)
        return [value for message in messages if (value := message.value()) is not None]
    finally:
        consumer.close()


def bootstrap(spec: ProcessSpec) -> dict[str, str | int | float | bool]:
    return {"bootstrap.servers": f"127.0.0.1:{spec.port}"}


def written_outside(pid: int, data: Path) -> set[Path]:
    """Files that the process has open for writing outside its data folder."""
    files = [Path(file.path) for file in psutil.Process(pid).open_files() if set(file.mode) & set("wa+")]
    return {file for file in files if not file.is_relative_to(data)}
