"""After a rebalance a partition is read from its committed offset, whatever was fetched meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer
from confluent_kafka import TopicPartition as Kept
from confluent_kafka.admin import AdminClient

from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.worker import seek_to_committed
from docsum.topics import Topology
from tests.support.broker import Broker

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def consumer(broker: Broker, topology: Topology) -> AsyncIterator[AIOKafkaConsumer]:
    """One that has taken the first of three records."""
    await KafkaAdmin(broker.settings).setup(topology)
    producer = Producer({"bootstrap.servers": broker.settings.bootstrap_servers})
    for number in range(3):
        producer.produce(topology.documents, b"%d" % number, b"doc", partition=1)
    assert producer.flush(20) == 0
    opened = AIOKafkaConsumer(
        topology.documents,
        bootstrap_servers=broker.settings.bootstrap_servers,
        group_id=topology.documents,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await opened.start()
    assert (await opened.getone()).value == b"0"
    yield opened
    await opened.stop()


@pytest.mark.parametrize("committed", [None, 0, 2])
async def test_what_was_taken_and_not_committed_is_read_again(
    consumer: AIOKafkaConsumer, topology: Topology, committed: int | None
) -> None:
    at = TopicPartition(topology.documents, 1)
    if committed is not None:
        await consumer.commit({at: committed})

    offsets = await seek_to_committed(consumer)

    assert offsets == {tp: committed if tp == at else None for tp in consumer.assignment()}
    assert (await consumer.getone()).offset == (committed or 0)


async def test_a_log_that_begins_later_is_read_from_there(
    consumer: AIOKafkaConsumer, broker: Broker, topology: Topology
) -> None:
    client = AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers})
    for future in client.delete_records([Kept(topology.documents, 1, 2)]).values():
        future.result(20)

    await seek_to_committed(consumer)

    assert (await consumer.getone()).offset == 2
