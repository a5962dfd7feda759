"""Topics, offsets and publishing on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from docsum.errors import BrokerUnavailable, ConfigurationError
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.producer import KafkaProducer
from docsum.local.loopback import HOST, free_port
from docsum.models import Coordinates, Lane, RecordCopy
from docsum.settings import Kafka
from docsum.topics import MAX_MESSAGE_BYTES, SPARE_BYTES, Topology
from tests.support.broker import Broker
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)


@contextmanager
def consumer(broker: Broker, group: str = "readers") -> Iterator[Any]:
    config = {"bootstrap.servers": broker.settings.bootstrap_servers, "group.id": group}
    opened = Consumer(config | {"enable.auto.commit": False})
    try:
        yield opened
    finally:
        opened.close()


def read(broker: Broker, at: Coordinates) -> Any:
    with consumer(broker) as opened:
        opened.assign([TopicPartition(at.topic, at.partition, at.offset)])
        message = opened.poll(20)
        assert message is not None
        assert message.error() is None
        return message


def copy(
    topic: str, *, partition: int | None = None, key: bytes = b"doc-1", value: bytes = b"v"
) -> RecordCopy:
    return RecordCopy(topic, partition, key, value, (("traceparent", b"00-1"), ("docsum-attempt", b"2")))


# -- topics ------------------------------------------------------------------------------------------------


async def test_setup_creates_every_topic_once_and_check_is_content(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    assert f"Topic {topology.documents} does not exist." in await admin.check(topology)

    done = await admin.setup(topology)

    assert done == [f"Created {topic.name} with 3 partitions." for topic in topology.topics()]
    assert await admin.check(topology) == []
    assert await admin.setup(topology) == []


async def test_setup_raises_all_topics_together_also_those_of_former_delays(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    former = Topology(prefix=topology.prefix, partitions=2, delays=(timedelta(seconds=7),))
    await admin.setup(former)

    wrong = await admin.check(topology)
    assert f"Topic {topology.documents} has 2 partitions instead of 3." in wrong
    assert f"Topic {former.prefix}.retry.7s has 2 partitions instead of 3." in wrong

    done = await admin.setup(topology)
    assert f"Raised {former.prefix}.retry.7s from 2 to 3 partitions." in done
    assert await admin.check(topology) == []
    assert await admin.setup(former) == []  # never made smaller
    expected = sorted([f"{former.prefix}.retry.7s", *topology.retries])
    assert list(await admin.existing_retry_topics(topology)) == expected


async def test_settings_that_lose_records_or_refuse_copies_are_found_and_repaired(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    small = {"retention.ms": "1000", "max.message.bytes": "1000", "cleanup.policy": "compact"}
    await _create(broker, topology, topology.held, small)
    await _create(broker, topology, topology.batch, {"retention.ms": "-1", "max.message.bytes": "9000000"})

    wrong = await admin.check(topology)
    assert f"Topic {topology.held} has cleanup.policy=compact instead of delete." in wrong
    assert f"Topic {topology.held} has retention.ms=1000 instead of 3888000000." in wrong
    assert any(line.startswith(f"Topic {topology.held} has max.message.bytes=1000 ") for line in wrong)
    assert not any(topology.batch in line for line in wrong)

    await admin.setup(topology)
    assert await admin.check(topology) == []


async def test_an_input_topic_of_others_is_missed_but_never_created(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    theirs = Topology(prefix=topology.prefix, partitions=3, inputs=(f"{topology.prefix}-theirs",))
    await admin.setup(theirs)
    assert await admin.check(theirs) == [f"Input topic {topology.prefix}-theirs does not exist."]


async def test_an_impossible_replication_factor_is_a_configuration_error(
    broker: Broker, topology: Topology
) -> None:
    with pytest.raises(ConfigurationError, match="refuses to create topics"):
        await KafkaAdmin(broker.settings).setup(topology, replication=3)


async def _create(broker: Broker, topology: Topology, name: str, config: dict[str, str]) -> None:
    with AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers}) as client:
        client.create_topics([NewTopic(name, 3, 1, config=config)])[name].result(20)

    async def visible() -> bool:
        return f"Topic {name} does not exist." not in await KafkaAdmin(broker.settings).check(topology)

    await eventually(visible, 20)


# -- lag ---------------------------------------------------------------------------------------------------


async def test_lag_counts_what_is_not_finished_per_lane(broker: Broker, topology: Topology) -> None:
    admin = KafkaAdmin(broker.settings)
    await admin.setup(topology)
    group = f"{topology.prefix}-group"
    async with KafkaProducer(broker.settings) as producer:
        for _ in range(5):
            await producer.publish(copy(topology.documents, partition=1))
        await producer.publish(copy(topology.batch, partition=0))
        await producer.publish(copy(topology.held, partition=0))
        await producer.publish(copy(topology.retries[0], partition=2))

    before = {(lag.topic, lag.partition): lag for lag in await admin.lag(group, topology)}
    assert before[topology.documents, 1].committed is None
    assert before[topology.documents, 1].lag == 5
    assert before[topology.retries[0], 2].lag == 1
    assert sum(lag.lag for lag in before.values()) == 6  # neither held nor batch

    _commit(broker, group, TopicPartition(topology.documents, 1, 3))
    after = {(lag.topic, lag.partition): lag for lag in await admin.lag(group, topology)}
    assert (after[topology.documents, 1].committed, after[topology.documents, 1].end) == (3, 5)
    assert after[topology.documents, 1].lag == 2

    batch = await admin.lag(group, topology, Lane.BATCH)
    assert {lag.topic for lag in batch} == {topology.batch}
    assert sum(lag.lag for lag in batch) == 1


async def test_the_retention_is_told_of_every_topic_with_work(broker: Broker, topology: Topology) -> None:
    admin = KafkaAdmin(broker.settings)
    await admin.setup(topology)
    kept = await admin.retention(topology)
    assert set(kept.values()) == {topology.retention}
    assert set(kept) == {
        topology.documents,
        topology.backfill,
        topology.batch,
        topology.held,
        *topology.retries,
    }


async def test_records_that_were_deleted_before_they_were_read_are_counted_as_lost(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    await admin.setup(topology)
    group = f"{topology.prefix}-group"
    async with KafkaProducer(broker.settings) as producer:
        for _ in range(5):
            await producer.publish(copy(topology.documents, partition=0))
    _commit(broker, group, TopicPartition(topology.documents, 0, 1))
    with AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers}) as client:
        for future in client.delete_records([TopicPartition(topology.documents, 0, 4)]).values():
            future.result(20)

    lags = await admin.lag(group, topology)
    found = next(lag for lag in lags if (lag.topic, lag.partition) == (topology.documents, 0))
    assert (found.start, found.lost, found.lag) == (4, 3, 1)


def _commit(broker: Broker, group: str, place: TopicPartition) -> None:
    with consumer(broker, group) as opened:
        opened.commit(offsets=[place], asynchronous=False)


# -- publishing --------------------------------------------------------------------------------------------


async def test_a_copy_keeps_its_key_bytes_headers_and_partition(broker: Broker, topology: Topology) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    sent = copy(topology.dead_letters, partition=2, value=b"\x00\xff")
    async with KafkaProducer(broker.settings) as producer:
        at = await producer.publish(sent)

    message = read(broker, at)
    assert (at.topic, at.partition) == (topology.dead_letters, 2)
    assert (message.key(), message.value()) == (sent.key, sent.value)
    assert tuple(message.headers()) == sent.headers


async def test_a_partition_beyond_the_target_wraps_until_the_target_grows(
    broker: Broker, topology: Topology
) -> None:
    admin = KafkaAdmin(broker.settings)
    await admin.setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        assert (await producer.publish(copy(topology.documents, partition=4))).partition == 1
        await admin.setup(Topology(prefix=topology.prefix, partitions=6))
        assert (await producer.publish(copy(topology.documents, partition=4))).partition == 4


async def test_keys_are_placed_where_the_java_client_places_them(broker: Broker, topology: Topology) -> None:
    # From Kafka's own UtilsTest.testMurmur2; the Java client takes the hash without its sign.
    hashes = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"abc": 479470107,
        b"a-little-bit-long-string": -985981536,
    }
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        for key, murmur2 in hashes.items():
            at = await producer.publish(copy(topology.documents, key=key))
            assert at.partition == (murmur2 & 0x7FFFFFFF) % topology.partitions


async def test_the_largest_record_still_fits_as_a_copy(broker: Broker, topology: Topology) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        largest = b"x" * (MAX_MESSAGE_BYTES - 1024)
        await producer.publish(copy(topology.documents, value=largest))
        await producer.publish(copy(topology.dead_letters, value=largest + b"y" * (SPARE_BYTES - 1024)))
        with pytest.raises(BrokerUnavailable, match="too large"):
            await producer.publish(copy(topology.documents, value=b"x" * (MAX_MESSAGE_BYTES + 2048)))


async def test_many_records_wait_for_room_and_keep_their_order(broker: Broker, topology: Topology) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        await producer.publish(copy(topology.backfill, partition=0))
        broker.freeze()
        try:
            submitting = asyncio.create_task(_submit(producer, topology.backfill, 25_000))
            await eventually(lambda: len(producer._in_flight) == 10_000, 20, "the queue is full")
            assert not submitting.done()  # the queue is full, and the caller waits
        finally:
            broker.thaw()
        places = [await future for future in await submitting]
    assert [place.offset for place in places] == list(range(1, 25_001))


async def _submit(producer: KafkaProducer, topic: str, count: int) -> list[asyncio.Future[Coordinates]]:
    return [await producer.submit(copy(topic, partition=0, value=b"%d" % number)) for number in range(count)]


async def test_large_records_fill_the_queue_by_bytes_and_none_fails(
    broker: Broker, topology: Topology
) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        value = b"x" * 1_000_000
        futures = [await producer.submit(copy(topology.backfill, value=value)) for _ in range(100)]
        await producer.flush()
        assert all(future.done() and future.exception() is None for future in futures)


async def test_the_record_has_the_timestamp_that_its_row_will_have(
    broker: Broker, topology: Topology
) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        at = await (await producer.submit(copy(topology.backfill), timestamp_ms=1_700_000_000_123))
    assert read(broker, at).timestamp()[1] == 1_700_000_000_123


async def test_a_missing_topic_is_told_at_once(broker: Broker, topology: Topology) -> None:
    async with KafkaProducer(broker.settings) as producer:
        with pytest.raises(BrokerUnavailable, match=r"no topic .* `docsum setup topics`"):
            await producer.publish(copy(topology.documents))


async def test_a_caller_that_gives_up_leaves_no_future_behind(broker: Broker, topology: Topology) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        await producer.publish(copy(topology.documents))
        broker.freeze()
        try:
            waiting = asyncio.create_task(producer.publish(copy(topology.documents)))
            await eventually(lambda: bool(producer._in_flight))
            waiting.cancel()
            await eventually(waiting.done)
        finally:
            broker.thaw()
        async with asyncio.timeout(20):
            await producer.flush()
    assert not producer._in_flight


async def test_an_outage_is_told_and_over_when_it_is_over(broker: Broker, topology: Topology) -> None:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings, deliver_within=timedelta(seconds=2)) as producer:
        await producer.publish(copy(topology.documents))
        broker.kill()
        try:
            with pytest.raises(BrokerUnavailable, match=f"{broker.port} did not acknowledge a record"):
                await producer.publish(copy(topology.documents))
            with pytest.raises(BrokerUnavailable, match="does not answer"):
                await KafkaAdmin(broker.settings, timedelta(seconds=1)).check(topology)
        finally:
            await broker.start()
        async with asyncio.timeout(30):
            while True:  # librdkafka reconnects after its own back-off
                try:
                    await producer.publish(copy(topology.documents))
                    break
                except BrokerUnavailable:
                    continue


async def test_nobody_at_the_address_is_one_sentence(topology: Topology) -> None:
    nobody = Kafka(bootstrap_servers=f"{HOST}:{free_port()}")
    with pytest.raises(BrokerUnavailable, match=f"^Kafka at {nobody.bootstrap_servers} does not answer.$"):
        await KafkaAdmin(nobody, timedelta(seconds=1)).setup(topology)


async def test_tls_to_a_plain_port_is_a_configuration_error(broker: Broker, topology: Topology) -> None:
    wrong = Kafka(bootstrap_servers=broker.settings.bootstrap_servers, security_protocol="SSL")
    with pytest.raises(ConfigurationError, match="TLS handshake"):
        await KafkaAdmin(wrong, timedelta(seconds=3)).check(topology)
