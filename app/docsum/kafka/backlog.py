"""What waits in Kafka, how old it is, and who is a member of the group: one look within a deadline.

By aiokafka, whose calls end when they are cancelled; librdkafka's request for a group's offsets ends the
process where the group has no coordinator (see `admin.py`). Nothing is committed and no group is joined.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    TopicAuthorizationFailedError,
)

from docsum.errors import BrokerUnavailable, ConfigurationError, RightMissing
from docsum.kafka.headers import delivery_of_record
from docsum.kafka.refusals import explained
from docsum.kafka.rights import Operation, lacks, positions_group
from docsum.kafka.security import aiokafka_security, identity
from docsum.models import Backlog, Delivery, Lane, Member, Position, Waiting, from_ms
from docsum.settings import Kafka
from docsum.topics import Topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Of the deadline, for the records that tell how old the work is: without them the counts still stand.
_HEADS = 0.5
_BYTES = 16 * 1024  # of each partition, or one record if that is larger
_LOOK = timedelta(milliseconds=200)
_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


async def look(kafka: Kafka, topology: Topology, patience: timedelta) -> Backlog:
    """Raises BrokerUnavailable or ConfigurationError, about when `patience` is over at the latest."""
    try:
        async with asyncio.timeout(patience.total_seconds()), _clients(kafka) as (admin, consumer):
            return await _look(kafka, topology, admin, consumer, patience * _HEADS)
    except (KafkaError, TimeoutError, OSError) as error:
        raise await explained(error, kafka, "tell what waits") from error


@asynccontextmanager
async def _clients(kafka: Kafka) -> AsyncIterator[tuple[Any, Any]]:  # Any: aiokafka is not typed
    options = {"bootstrap_servers": kafka.bootstrap_servers, **aiokafka_security(kafka)}
    admin = AIOKafkaAdminClient(**options)
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=10,  # what is asked for is there
        max_partition_fetch_bytes=_BYTES,
        **options,
    )
    try:
        await asyncio.gather(admin.start(), consumer.start())
        yield admin, consumer
    finally:
        await asyncio.gather(admin.close(), consumer.stop(), return_exceptions=True)


async def _look(  # Any: aiokafka is not typed
    kafka: Kafka, topology: Topology, admin: Any, consumer: Any, for_heads: timedelta
) -> Backlog:
    counts = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    known = (*(topic.name for topic in topology.topics()), *topology.inputs)
    looked_at = [name for name in known if name != topology.summaries]
    await _refuse_hidden(kafka, admin, [name for name in looked_at if name not in counts])
    if topology.documents not in counts:
        raise ConfigurationError(f"Topic {topology.documents} does not exist. Run `docsum setup topics`.")
    read = [name for name in counts if any(topology.is_read(name, lane) for lane in Lane)]
    aside = [name for name in (topology.held, topology.dead_letters) if name in counts]
    places = [TopicPartition(name, number) for name in (*read, *aside) for number in range(counts[name])]
    # Positions first, so that none is beyond its end.
    finished, batched, rested, members, batching = await asyncio.gather(
        _positions(admin, kafka.group_id),
        _positions(admin, kafka.batch_group_id),
        _positions(admin, positions_group(kafka.group_id)),
        _members(admin, kafka.group_id),
        _members(admin, kafka.batch_group_id),
    )
    finished |= batched
    consumer.assign(places)
    consumer.pause(*places)
    starts, ends = await asyncio.gather(consumer.beginning_offsets(places), consumer.end_offsets(places))
    at = {place: max(starts[place], (finished | rested).get(place, 0)) for place in places}
    left = {place: max(0, ends[place] - at[place]) for place in places}
    heads = await _heads(
        consumer,
        [place for place in places if place.topic != topology.dead_letters and left[place]],
        at,
        for_heads,
    )
    lost = {place: max(0, starts[place] - finished.get(place, starts[place])) for place in places}
    published = {(head.at.topic, head.at.partition): from_ms(head.timestamp_ms) for head in heads}
    return Backlog(
        tuple(_waiting(name, left, lost, heads) for name in sorted(read)),
        held=_sum(left, topology.held),
        dead_letters=_sum(left, topology.dead_letters),
        members=(*members, *batching),
        positions=tuple(
            Position(
                place.topic,
                place.partition,
                at[place],
                left[place],
                lost[place],
                published.get((place.topic, place.partition)),
            )
            for place in places
            if place.topic in read
        ),
        held_since=min((at for (topic, _), at in published.items() if topic == topology.held), default=None),
    )


async def _refuse_hidden(  # Any: aiokafka is not typed
    kafka: Kafka, admin: Any, topics: Sequence[str]
) -> None:
    """What one may not describe looks like what does not exist: its events would not be counted."""
    for topic in await admin.describe_topics(list(topics)) if topics else ():
        if topic["error_code"] == TopicAuthorizationFailedError.errno:
            raise RightMissing(lacks(identity(kafka), (Operation.DESCRIBE,), "topic", topic["topic"]))


def _waiting(
    name: str,
    left: Mapping[TopicPartition, int],
    lost: Mapping[TopicPartition, int],
    heads: Iterable[Delivery],
) -> Waiting:
    mine = [head for head in heads if head.at.topic == name]
    due = [head.not_before_ms for head in mine if head.not_before_ms is not None]
    return Waiting(
        name,
        _sum(left, name),
        _sum(lost, name),
        from_ms(min(head.origin_timestamp_ms for head in mine)) if mine else None,
        from_ms(min(due)) if due else None,
    )


def _sum(counts: Mapping[TopicPartition, int], topic: str) -> int:
    return sum(count for place, count in counts.items() if place.topic == topic)


async def _positions(admin: Any, group: str) -> dict[TopicPartition, int]:  # Any: aiokafka is not typed
    """Empty for a group that has never committed anything."""
    try:
        found = await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:  # nobody has ever used a group at this broker
        return {}
    except GroupAuthorizationFailedError as error:
        raise GroupAuthorizationFailedError(group) from error  # aiokafka does not say which
    return {place: position.offset for place, position in found.items()}


async def unowned(
    kafka: Kafka, group_id: str, topics: Collection[str], patience: timedelta = timedelta(seconds=10)
) -> frozenset[str]:
    """Partitions of these topics, as `topic[n]`, that no member of the group has; none while it rebalances.

    Raises BrokerUnavailable.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers, **aiokafka_security(kafka))
    try:
        async with asyncio.timeout(patience.total_seconds()):
            await admin.start()
            counts = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
            group = await _group(admin, group_id)
    except (KafkaError, TimeoutError, OSError) as error:
        raise BrokerUnavailable(f"Kafka at {kafka.bootstrap_servers} does not answer.") from error
    finally:
        await admin.close()
    if group is None or group["state"] != "Stable":
        return frozenset()
    there = {f"{topic}[{number}]" for topic in topics for number in range(counts.get(topic, 0))}
    return frozenset(there.difference(*(_member(member).partitions for member in group["members"])))


async def _group(admin: Any, group: str) -> Mapping[str, Any] | None:  # Any: as the protocol has it
    try:
        (answer,) = await admin.describe_consumer_groups([group])
    except GroupCoordinatorNotAvailableError:  # nobody has ever used a group at this broker
        return None
    except GroupAuthorizationFailedError as error:
        raise GroupAuthorizationFailedError(group) from error
    (found,) = answer.to_object()["groups"]
    return dict(found)


async def _members(admin: Any, group: str) -> tuple[Member, ...]:  # Any: aiokafka is not typed
    described = await _group(admin, group)
    members = map(_member, described["members"] if described else ())
    return tuple(sorted(members, key=lambda member: member.name))


def _member(described: Mapping[str, Any]) -> Member:  # Any: as the protocol has it
    assigned = described["member_assignment"]
    topics = ConsumerProtocolMemberAssignment.decode(assigned).assignment if assigned else ()
    return Member(
        _UUID.sub("", described["member_id"]),  # what is before it is the worker's name
        described["client_host"].lstrip("/"),
        tuple(sorted(f"{topic}[{number}]" for topic, numbers in topics for number in numbers)),
    )


async def _heads(  # Any: aiokafka is not typed
    consumer: Any,
    places: Sequence[TopicPartition],
    at: Mapping[TopicPartition, int],
    patience: timedelta,
) -> list[Delivery]:
    """The first unfinished record of each partition, as far as they come in time."""
    found: list[Delivery] = []
    missing = set(places)
    if not missing:
        return found
    consumer.assign(places)
    for place in places:
        consumer.seek(place, at[place])
    try:
        async with asyncio.timeout(patience.total_seconds()):
            while missing:
                milliseconds = _LOOK // timedelta(milliseconds=1)
                for place, records in (await consumer.getmany(timeout_ms=milliseconds)).items():
                    consumer.pause(place)
                    if place in missing:
                        missing.remove(place)
                        found.append(delivery_of_record(records[0]))
    except TopicAuthorizationFailedError:
        raise
    except (TimeoutError, KafkaError):
        pass  # the counts still stand
    return found
