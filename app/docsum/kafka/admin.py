"""Topics and offsets as an administrator sees them: create, check, print, lag.

librdkafka's admin client blocks, so every call runs in a thread, and every one has a deadline.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from docsum.errors import BrokerUnavailable, ConfigurationError, DocsumError, RightMissing
from docsum.kafka.reaching import login_refused, unreachable
from docsum.kafka.rights import Kind, Operation, Right, Role, lacks, missing, rights_of
from docsum.kafka.security import client_config, identity
from docsum.models import Lane
from docsum.settings import Kafka
from docsum.topics import Topic, Topology

if TYPE_CHECKING:
    from concurrent.futures import Future
    from enum import Enum

    from confluent_kafka import KafkaError
    from confluent_kafka.admin import AdminClient

T = TypeVar("T")

#: By name, what may be done; None where not even describing may.
Allowed = dict[str, frozenset[Operation] | None]

_SETTLED_WITHIN = timedelta(seconds=30)  # a change is known to every broker by then
_DELETE = "delete"  # Kafka's default cleanup policy


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Where a group is in one partition."""

    topic: str
    partition: int
    committed: int | None  # None: nothing has been committed
    start: int  # of the log: what was before it has been deleted
    end: int

    @property
    def lag(self) -> int:
        """Records that are there and not finished."""
        return self.end - max(self.start, self.committed or 0)

    @property
    def lost(self) -> int:
        """Records that were deleted before the group had finished them."""
        return 0 if self.committed is None else max(0, self.start - self.committed)


class KafkaAdmin:
    """Raises BrokerUnavailable when Kafka does not answer, ConfigurationError when it refuses."""

    def __init__(self, kafka: Kafka, timeout: timedelta = timedelta(seconds=15)) -> None:
        """Raises ConfigurationError. `timeout` is of one request."""
        self._config = client_config(kafka)
        self._kafka = kafka
        self._timeout = timeout.total_seconds()

    async def reach(self) -> None:
        """Raises BrokerUnavailable or ConfigurationError, which say why not."""
        await self._run(lambda session: session.partition_counts())

    async def setup(self, topology: Topology, replication: int = -1) -> list[str]:
        """Creates what is missing and raises what is too small; returns what was done, one sentence each.

        All our topics get the same number of partitions, the largest that one of them has: partition n of
        every topic belongs to one worker. Nothing is ever made smaller.
        """
        rights = rights_of(Role.SETUP, topology, self._kafka)

        def work(session: _Session) -> list[str]:
            if lacking := _missing(session, rights, topology):
                raise RightMissing(_first(lacking))
            return _setup(session, topology, replication)

        return await self._run(work)

    async def check(self, topology: Topology) -> list[str]:
        """What is wrong with the topics, one sentence each; empty when all is well."""
        return await self._run(lambda session: _check(session, topology))

    async def prove(self, rights: Sequence[Right], topology: Topology | None = None) -> None:
        """Raises RightMissing where this user lacks one of these rights."""
        if lacking := await self.missing(rights, topology):
            raise RightMissing(_first(lacking))

    async def missing(self, rights: Sequence[Right], topology: Topology | None = None) -> list[str]:
        """Where this user lacks one of these rights, one sentence for each topic and group.

        A broker that does not tell what a user may do is believed to allow all of it. What may be done with a
        topic that does not exist is not known either. `topology`: whose topics the rights to prefixes mean.
        """
        return await self._run(lambda session: _missing(session, rights, topology))

    async def missing_of_roles(self, topology: Topology) -> dict[Role, list[str]]:
        """What this user lacks of each role, as `missing` says it."""
        roles = {role: rights_of(role, topology, self._kafka) for role in Role}
        return await self._run(
            lambda session: {role: _missing(session, rights, topology) for role, rights in roles.items()}
        )

    async def lag(self, group: str, topology: Topology, lane: Lane = Lane.LIVE) -> list[PartitionLag]:
        """Of every partition that the group of this lane reads; held and dead-letter topics are none of them.

        BATCH is the batch topic alone; LIVE and BACKFILL share a group, so both give all the others.
        """
        return await self._run(lambda session: _lag(session, group, topology, lane))

    async def waiting(self, topology: Topology, lane: Lane = Lane.LIVE) -> int:
        """The sum of that: events that are not finished yet."""
        return sum(each.lag for each in await self.lag(self._kafka.group_of(lane), topology, lane))

    async def retention(self, topology: Topology) -> dict[str, timedelta | None]:
        """How long the broker keeps the records of each topic with work, held ones too; None: for ever."""
        return await self._run(lambda session: _retention(session, topology))

    async def existing_retry_topics(self, topology: Topology) -> tuple[str, ...]:
        """Those of former delays too: the worker empties every one that exists."""
        counts = await self._run(lambda session: session.partition_counts())
        return tuple(sorted(name for name in counts if topology.is_retry(name)))

    async def _run(self, work: Callable[[_Session], T]) -> T:
        return await asyncio.to_thread(self._in_session, work)

    def _in_session(self, work: Callable[[_Session], T]) -> T:
        """A client for this work alone: none is left behind with its threads."""
        # log_level: else librdkafka tells on standard error what we raise as a sentence.
        errors: list[KafkaError] = []
        config = self._config | {"error_cb": errors.append, "log_level": 0}
        with _api().AdminClient(config) as client:
            return work(_Session(client, config, self._timeout, errors, self._kafka))


class _Session:
    """Blocking calls with deadlines, and errors as ours."""

    def __init__(
        self,
        client: AdminClient,
        config: Mapping[str, Any],
        timeout: float,
        errors: list[KafkaError],
        kafka: Kafka,
    ) -> None:
        self._client = client
        self._kafka = kafka
        self._config = dict(config)
        self._servers = config["bootstrap.servers"]
        self._timeout = timeout
        self._errors = errors  # what the connections met, in words

    @property
    def who(self) -> str:
        return identity(self._kafka)

    def partition_counts(self) -> dict[str, int]:
        """Of every topic that there is."""
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + self._timeout
        while True:
            try:
                topics = self._client.list_topics(timeout=min(1.0, self._timeout)).topics
                break
            except KafkaException as error:  # which says only that a broker is away
                self._client.poll(0.1)  # fills `_errors`
                if refused := login_refused(self._kafka, self._errors):
                    raise refused from error
                if time.monotonic() > deadline or any("SSL" in each.str() for each in self._errors):
                    raise self._away(error.args[0]) from error
        return {name: len(topic.partitions) for name, topic in topics.items() if topic.error is None}

    def _away(self, error: KafkaError) -> DocsumError:
        if _is_away(error):
            return unreachable(self._kafka, timedelta(seconds=self._timeout))
        return self._translated(error, "list its topics")

    def allowed_topics(self, names: Sequence[str]) -> Allowed:
        from confluent_kafka import TopicCollection

        return self._allowed(
            "describe topics",
            lambda: self._client.describe_topics(
                TopicCollection(list(names)),
                include_authorized_operations=True,
                request_timeout=self._timeout,
            ),
        )

    def allowed_groups(self, names: Sequence[str]) -> Allowed:
        return self._allowed(
            "describe groups",
            lambda: self._client.describe_consumer_groups(
                list(names), include_authorized_operations=True, request_timeout=self._timeout
            ),
        )

    def lacking(self, rights: Sequence[Right], kind: Kind, allowed: Allowed) -> list[str]:
        return [
            lacks(self.who, operations, kind, name) for name, operations in missing(rights, kind, allowed)
        ]

    def _allowed(self, what: str, ask: Callable[[], Mapping[str, Future[Any]]]) -> Allowed:
        """Without those of which the broker does not tell."""
        from confluent_kafka import KafkaError as Code
        from confluent_kafka import KafkaException

        def results() -> Allowed:
            found: Allowed = {}
            for name, future in ask().items():
                try:
                    told = future.result(timeout=2 * self._timeout).authorized_operations
                except KafkaException as error:
                    code = error.args[0].code()
                    if code in (Code.TOPIC_AUTHORIZATION_FAILED, Code.GROUP_AUTHORIZATION_FAILED):
                        found[name] = None
                    elif code not in (Code.UNKNOWN_TOPIC_OR_PART, Code._UNSUPPORTED_FEATURE):
                        raise
                else:
                    if told is not None:
                        found[name] = frozenset(filter(None, map(_operation, told)))
            return found

        return self._again(what, results)

    def create(self, topics: Sequence[Topic], count: int, replication: int) -> None:
        from confluent_kafka import KafkaError as Code

        new = [_api().NewTopic(topic.name, count, replication, config=dict(topic.config)) for topic in topics]
        self._ask(
            "create topics",
            Operation.CREATE,
            lambda: self._client.create_topics(new, request_timeout=self._timeout) if new else {},
            passing=(Code.TOPIC_ALREADY_EXISTS,),  # another `setup` was faster
        )

    def raise_partitions(self, names: Sequence[str], count: int) -> None:
        new = [_api().NewPartitions(name, count) for name in names]
        self._ask(
            "raise the partitions of topics",
            Operation.ALTER,
            lambda: self._client.create_partitions(new, request_timeout=self._timeout) if new else {},
        )

    def configure(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        api = _api()
        resources = [
            api.ConfigResource(
                api.ConfigResource.Type.TOPIC,
                name,
                incremental_configs=[
                    api.ConfigEntry(key, value, incremental_operation=api.AlterConfigOpType.SET)
                    for key, value in change.items()
                ],
            )
            for name, change in changes.items()
        ]
        self._ask(
            "configure topics",
            Operation.ALTER_CONFIGS,
            lambda: (
                self._client.incremental_alter_configs(resources, request_timeout=self._timeout)
                if resources
                else {}
            ),
        )

    def configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        kind = _api().ConfigResource
        resources = [kind(kind.Type.TOPIC, name) for name in names]
        found = self._ask(
            "describe topics",
            Operation.DESCRIBE_CONFIGS,
            lambda: (
                self._client.describe_configs(resources, request_timeout=self._timeout) if resources else {}
            ),
        )
        return {
            resource.name: {entry.name: entry.value or "" for entry in entries.values()}
            for resource, entries in found.items()
        }

    def offsets(self, places: Sequence[Any], spec: Any) -> dict[tuple[str, int], int]:
        """Any: TopicPartition and OffsetSpec, which mypy does not see."""
        found = self._ask(
            "tell the offsets of topics",
            Operation.DESCRIBE,
            lambda: self._client.list_offsets(dict.fromkeys(places, spec), request_timeout=self._timeout),
        )
        return {(place.topic, place.partition): info.offset for place, info in found.items()}

    def committed(self, group: str, places: Sequence[Any]) -> dict[tuple[str, int], int]:
        """Without the partitions where the group has committed nothing; does not join the group.

        By a consumer: the admin client's own request ends the process with a segmentation fault when the
        group has no coordinator yet or just gets a new one (librdkafka issue 5040, seen with 2.16.0).
        """
        from confluent_kafka import Consumer, KafkaError, KafkaException

        consumer = Consumer(self._config | {"group.id": group, "enable.auto.commit": False})
        what = f"tell the offsets of group {group}"

        def ask() -> list[Any]:  # Any: TopicPartition
            try:
                return list(consumer.committed(list(places), timeout=self._timeout))
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    raise self._right_missing(Operation.DESCRIBE, "group", group) from error
                raise

        try:
            found = self._again(what, ask)
        finally:
            consumer.close()
        for place in found:
            if place.error is not None:
                if place.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise self._right_missing(Operation.DESCRIBE, "topic", place.topic)
                raise self._translated(place.error, what)
        # Below zero is librdkafka's sign for none.
        return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Changes reach the brokers one by one. Raises BrokerUnavailable."""
        deadline = time.monotonic() + _SETTLED_WITHIN.total_seconds()
        while not ready():
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"Kafka at {self._servers} has not finished: {what}.")
            time.sleep(0.1)

    def _ask(
        self,
        what: str,
        needed: Operation,
        ask: Callable[[], Mapping[Any, Future[Any]]],
        passing: tuple[int, ...] = (),
    ) -> dict[Any, Any]:  # Any: librdkafka's results, by what was asked for
        """All that worked; an error that may not pass is raised as ours."""
        return self._again(what, lambda: self._results(ask(), needed, passing))

    def _results(
        self, futures: Mapping[Any, Future[Any]], needed: Operation, passing: tuple[int, ...]
    ) -> dict[Any, Any]:
        from confluent_kafka import KafkaError as Code
        from confluent_kafka import KafkaException

        found = {}
        for key, future in futures.items():
            try:
                found[key] = future.result(timeout=2 * self._timeout)
            except KafkaException as error:
                code = error.args[0].code()
                if code == Code.TOPIC_AUTHORIZATION_FAILED:
                    raise self._right_missing(needed, "topic", _name(key)) from error
                if code not in passing:
                    raise
        return found

    def _right_missing(self, needed: Operation, kind: Kind, name: str) -> RightMissing:
        return RightMissing(lacks(self.who, (needed,), kind, name))

    def _again(self, what: str, ask: Callable[[], T]) -> T:
        """Asks again while the broker is not ready for the question."""
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + _SETTLED_WITHIN.total_seconds()
        while True:
            try:
                return ask()
            except KafkaException as error:
                if not _may_pass(error.args[0]) or time.monotonic() > deadline:
                    raise self._translated(error.args[0], what) from error
            except TimeoutError as error:
                raise BrokerUnavailable(f"Kafka at {self._servers} does not answer.") from error
            time.sleep(0.1)

    def _translated(self, error: KafkaError, what: str) -> DocsumError:
        from confluent_kafka import KafkaError as Code

        refusals = (
            Code.TOPIC_AUTHORIZATION_FAILED,
            Code.GROUP_AUTHORIZATION_FAILED,
            Code.CLUSTER_AUTHORIZATION_FAILED,
            Code.INVALID_REPLICATION_FACTOR,
            Code.INVALID_PARTITIONS,
            Code.INVALID_CONFIG,
            Code.TOPIC_EXCEPTION,
            Code.POLICY_VIOLATION,
        )
        if error.code() in refusals:
            return ConfigurationError(f"Kafka refuses to {what}: {error.str().rstrip('.')}.")
        if _is_away(error):
            return BrokerUnavailable(f"Kafka at {self._servers} does not answer.")
        return BrokerUnavailable(f"Kafka could not {what}: {error.str().rstrip('.')}.")


def _setup(session: _Session, topology: Topology, replication: int) -> list[str]:
    wanted = {topic.name: topic for topic in topology.topics()}
    there = _ours(session.partition_counts(), topology)
    count = max([topology.partitions, *there.values()])
    missing = [topic for name, topic in wanted.items() if name not in there]
    narrow = [name for name, partitions in there.items() if partitions < count]
    session.create(missing, count, replication)
    session.raise_partitions(narrow, count)
    session.wait_until(lambda: _all_have(session.partition_counts(), {*wanted, *there}, count), "topics")
    changes = _changes(session, wanted)
    session.configure(changes)
    session.wait_until(lambda: not changes or not _changes(session, wanted), "the settings of topics")
    return [
        *(f"Created {topic.name} with {count} partitions." for topic in missing),
        *(f"Raised {name} from {there[name]} to {count} partitions." for name in narrow),
        *(f"Set {_pairs(change)} on {name}." for name, change in changes.items()),
    ]


def _check(session: _Session, topology: Topology) -> list[str]:
    counts = session.partition_counts()
    wanted = {topic.name: topic for topic in topology.topics()}
    there = _ours(counts, topology)
    count = max([topology.partitions, *there.values()])
    unseen = [name for name in (*wanted, *topology.inputs) if name not in counts]
    hidden = (
        [name for name, allowed in session.allowed_topics(unseen).items() if allowed is None]
        if unseen
        else []
    )
    if hidden:
        raise RightMissing(lacks(session.who, (Operation.DESCRIBE,), "topic", hidden[0]))
    found = [f"Topic {name} does not exist." for name in wanted if name not in there]
    found += [f"Input topic {name} does not exist." for name in topology.inputs if name not in counts]
    found += [
        f"Topic {name} has {partitions} partitions instead of {count}."
        for name, partitions in there.items()
        if partitions < count
    ]
    configs = session.configs(name for name in wanted if name in there)
    for name, config in configs.items():
        for key, value in _shortfalls(wanted[name], config).items():
            found.append(f"Topic {name} has {key}={config.get(key, '')} instead of {value}.")
    return found


def _retention(session: _Session, topology: Topology) -> dict[str, timedelta | None]:
    names = [
        name
        for name in session.partition_counts()
        if name == topology.held or any(topology.is_read(name, lane) for lane in Lane)
    ]
    kept = {name: int(config["retention.ms"]) for name, config in session.configs(names).items()}
    return {name: None if ms < 0 else timedelta(milliseconds=ms) for name, ms in sorted(kept.items())}


def _missing(session: _Session, rights: Sequence[Right], topology: Topology | None) -> list[str]:
    counts = session.partition_counts()
    topics = {right.name for right in rights if right.kind == "topic" and not right.prefixed}
    if topology is not None:
        ours = {*(topic.name for topic in topology.topics()), *_ours(counts, topology)}
        prefixed = [right for right in rights if right.kind == "topic" and right.prefixed]
        topics |= {name for name in ours if any(right.covers(name) for right in prefixed)}
    groups = {right.name for right in rights if right.kind == "group" and not right.prefixed}
    return [
        *session.lacking(rights, "topic", session.allowed_topics(sorted(topics)) if topics else {}),
        *session.lacking(rights, "group", session.allowed_groups(sorted(groups)) if groups else {}),
    ]


def _lag(session: _Session, group: str, topology: Topology, lane: Lane) -> list[PartitionLag]:
    from confluent_kafka import TopicPartition

    counts = session.partition_counts()
    topics = sorted(name for name in counts if topology.is_read(name, lane))
    places = [TopicPartition(name, number) for name in topics for number in range(counts[name])]
    if not places:
        return []
    committed = session.committed(group, places)  # first, so that it is never beyond the end
    starts = session.offsets(places, _api().OffsetSpec.earliest())
    ends = session.offsets(places, _api().OffsetSpec.latest())
    return [
        PartitionLag(*place, committed=committed.get(place), start=starts[place], end=end)
        for place, end in ends.items()
    ]


def _all_have(counts: Mapping[str, int], names: Iterable[str], count: int) -> bool:
    return all(counts.get(name, 0) >= count for name in names)


def _changes(session: _Session, wanted: Mapping[str, Topic]) -> dict[str, dict[str, str]]:
    """By topic, the settings that must change."""
    configs = session.configs(wanted)
    found = {name: _shortfalls(topic, configs[name]) for name, topic in wanted.items()}
    return {name: change for name, change in found.items() if change}


def _api() -> Any:
    """confluent-kafka's admin module: its types are not declared as exported, so mypy would not see them."""
    import confluent_kafka.admin

    return confluent_kafka.admin


def _may_pass(error: KafkaError) -> bool:
    """What a broker says of a new topic, of a group's first offsets, or while it starts."""
    from confluent_kafka import KafkaError as Code

    # "Fenced": no broker has joined yet, which has the code of a wish for too many replicas.
    return "fenced" in error.str() or error.code() in (
        Code.UNKNOWN_TOPIC_OR_PART,
        Code.LEADER_NOT_AVAILABLE,
        Code.NOT_LEADER_FOR_PARTITION,
        Code.COORDINATOR_LOAD_IN_PROGRESS,
        Code.COORDINATOR_NOT_AVAILABLE,
        Code.NOT_COORDINATOR,
    )


def _operation(told: Enum) -> Operation | None:
    """`DESCRIBE_CONFIGS` is `DescribeConfigs`; None for one that no role of ours needs."""
    name = "".join(part.capitalize() for part in told.name.split("_"))
    return Operation(name) if name in set(Operation) else None


def _name(asked: Any) -> str:
    """Of the topic that a question was about: a name, or what has one."""
    return str(getattr(asked, "topic", None) or getattr(asked, "name", asked))


def _first(lacking: Sequence[str]) -> str:
    more = f" {len(lacking) - 1} more are missing: see `docsum doctor`." if len(lacking) > 1 else ""
    return f"{lacking[0]}{more}"


def _is_away(error: KafkaError) -> bool:
    from confluent_kafka import KafkaError as Code

    return error.code() in (Code._TRANSPORT, Code._TIMED_OUT, Code._ALL_BROKERS_DOWN, Code._RESOLVE)


def render(form: Literal["kafka", "strimzi"], topology: Topology, replication: int = -1) -> str:
    """The topics as text for a team's own tooling: commands for `kafka-topics.sh`, or Strimzi resources."""
    one = _kafka_command if form == "kafka" else _strimzi_resource
    return "".join(one(topic, replication) for topic in topology.topics())


def _kafka_command(topic: Topic, replication: int) -> str:
    replicas = ["--replication-factor", str(replication)] if replication > 0 else []
    words = ["--create", "--if-not-exists", "--topic", topic.name, "--partitions", str(topic.partitions)]
    configs = [word for key, value in topic.config.items() for word in ("--config", f"{key}={value}")]
    options = shlex.join([*words, *replicas, *configs])
    return f'kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" {options}\n'


def _strimzi_resource(topic: Topic, replication: int) -> str:
    """API version v1: Strimzi 0.49 and later; 1.0 knows no other."""
    # A resource's name knows fewer characters than a topic's.
    resource = re.sub(r"[^a-z0-9.-]", "-", topic.name.lower()).strip("-.")
    lines = [
        "---",
        "apiVersion: kafka.strimzi.io/v1",
        "kind: KafkaTopic",
        "metadata:",
        f"  name: {resource}",
        "  labels:",
        "    strimzi.io/cluster: my-cluster  # the name of your Kafka resource",
        "spec:",
        f"  topicName: {topic.name}",
        f"  partitions: {topic.partitions}",
        *([f"  replicas: {replication}"] if replication > 0 else []),
        "  config:",
        *(f'    {key}: "{value}"' for key, value in topic.config.items()),
    ]
    return "\n".join(lines) + "\n"


def _ours(counts: Mapping[str, int], topology: Topology) -> dict[str, int]:
    """Our topics that exist, retry topics of former delays included, with their partitions."""
    names = {topic.name for topic in topology.topics()}
    return {name: count for name, count in counts.items() if name in names or topology.is_retry(name)}


def _shortfalls(topic: Topic, config: Mapping[str, str]) -> dict[str, str]:
    """The settings that lose records or refuse copies, with the values that we need."""
    wanted = {"cleanup.policy": _DELETE, **topic.config}
    return {key: value for key, value in wanted.items() if not _suffices(key, config.get(key, ""), value)}


def _suffices(key: str, value: str, wanted: str) -> bool:
    if key == "cleanup.policy":
        return value == wanted
    if key == "retention.ms" and value == "-1":
        return True  # for ever
    return value.isdigit() and int(value) >= int(wanted)


def _pairs(config: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items())
