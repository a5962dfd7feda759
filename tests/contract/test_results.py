"""Results on a real broker and over HTTP to a registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from docsum.errors import RegistryUnavailable, SchemaUnknown
from docsum.kafka.admin import KafkaAdmin, render
from docsum.kafka.producer import KafkaProducer
from docsum.kafka.publisher import CopyPublisher
from docsum.kafka.results import ResultRecords, deletion
from docsum.local.loopback import HOST, free_port
from docsum.models import Result, State
from docsum.topics import Topology
from tests.support.broker import Broker
from tests.support.deployment import read_topic
from tests.support.fakes import START, delivery, summary
from tests.support.registry import Registry, register, schema_registry
from tests.support.results import read_body, read_result


@pytest.fixture
def registry() -> Iterator[type[Registry]]:
    with schema_registry() as served:
        yield served


def result(document_id: str = "doc-1") -> Result:
    return Result(document_id, 7, State.DONE, "", None, "v1", START, START, summary())


async def test_setup_makes_a_compacted_topic_and_corrects_another_one(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    told = Topology(prefix=topology.prefix, partitions=3, results=True)
    await admin.setup(topology)
    assert await admin.check(told) == [f"Topic {told.summaries} does not exist."]
    assert await admin.setup(told) == [f"Created {told.summaries} with 3 partitions."]
    assert await admin.check(told) == await admin.setup(told) == []

    name, days = told.summaries, timedelta(days=60)
    longer = Topology(prefix=topology.prefix, partitions=3, results=True, retention=days)
    assert any(name in line and "delete.retention.ms" in line for line in await admin.setup(longer))
    assert f"--topic {name} --partitions 3 --config cleanup.policy=compact" in render("kafka", told)


async def test_a_result_and_its_deletion_land_in_the_same_partition_from_every_client(
    broker: Broker, topology: Topology
) -> None:
    told = Topology(prefix=topology.prefix, partitions=3, results=True)
    await KafkaAdmin(broker.settings).setup(told)
    servers, ids = broker.settings.bootstrap_servers, [f"doc-{number} ä" for number in range(12)]
    async with (
        ResultRecords(told.summaries) as records,
        CopyPublisher(broker.settings) as publisher,
        KafkaProducer(broker.settings) as producer,
    ):
        for document_id in ids:
            await publisher.publish(await records.of(delivery(), result(document_id)))
            await producer.publish(deletion(told.summaries, document_id, 8))
    places: dict[str, set[int | None]] = {}
    for message in read_topic(servers, told.summaries, 3):
        key, value = message.key(), message.value()
        assert key is not None
        places.setdefault(key.decode(), set()).add(message.partition())
        assert value is None or read_result(value)["document_id"] == key.decode()
    assert sorted(places) == sorted(ids)
    assert all(len(partitions) == 1 for partitions in places.values())
    assert {number for partitions in places.values() for number in partitions} == {0, 1, 2}


async def test_a_registered_schema_frames_results(registry: Any) -> None:
    async with ResultRecords("docsum.summaries", registry.url) as records:
        with pytest.raises(SchemaUnknown, match="docsum setup schemas"):
            await records.of(delivery(), result())
        await register(registry.url, Topology(results=True))
        record = await records.of(delivery(), result())
    assert record.value is not None
    (number,) = [number for (subject, _), number in registry.schemas.items() if "summaries" in subject]
    assert record.value[:5] == b"\x00" + number.to_bytes(4)
    assert read_body(record.value[5:])["outcome"] == "done"


async def test_a_registry_that_is_away_is_waited_for_and_a_deletion_needs_none() -> None:
    async with ResultRecords("t", f"http://{HOST}:{free_port()}") as records:
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            await records.of(delivery(), result())
        gone = await records.of(delivery(), replace(result(), summary=None, deleted=True))
        assert gone == deletion("t", "doc-1", 7)
