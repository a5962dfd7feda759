"""Publishing outside a worker: runs, replays and the API, by librdkafka and a thread that polls it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from docsum.errors import BrokerRefused, BrokerUnavailable
from docsum.kafka.reaching import unreachable
from docsum.kafka.rights import Operation, lacks
from docsum.kafka.security import client_config, identity
from docsum.models import Coordinates, RecordCopy
from docsum.settings import Kafka
from docsum.topics import MAX_MESSAGE_BYTES, SPARE_BYTES

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

#: What has become of a record: its place, or its topic and the error.
Report = tuple[asyncio.Future[Coordinates], "Coordinates | tuple[str, KafkaError]"]

#: Codes, as confluent-kafka names them, by which Kafka says no until a person changes something there.
REFUSALS = frozenset(
    {
        "CLUSTER_AUTHORIZATION_FAILED",
        "DELEGATION_TOKEN_AUTHORIZATION_FAILED",
        "DELEGATION_TOKEN_AUTH_DISABLED",
        "DELEGATION_TOKEN_EXPIRED",
        "DELEGATION_TOKEN_NOT_FOUND",
        "DELEGATION_TOKEN_OWNER_MISMATCH",
        "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED",
        "ILLEGAL_SASL_STATE",
        "INVALID_CONFIG",
        "INVALID_PRINCIPAL_TYPE",
        "INVALID_RECORD",
        "INVALID_REQUIRED_ACKS",
        "INVALID_TIMESTAMP",
        "MSG_SIZE_TOO_LARGE",
        "POLICY_VIOLATION",
        "RECORD_LIST_TOO_LARGE",
        "SASL_AUTHENTICATION_FAILED",
        "SECURITY_DISABLED",
        "TOPIC_AUTHORIZATION_FAILED",
        "TOPIC_EXCEPTION",  # no name for a topic
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "UNACCEPTABLE_CREDENTIAL",
        "UNSUPPORTED_COMPRESSION_TYPE",
        "UNSUPPORTED_FOR_MESSAGE_FORMAT",
        "UNSUPPORTED_SASL_MECHANISM",
        "UNSUPPORTED_VERSION",
        "_AUTHENTICATION",
        "_INVALID_ARG",
        "_NOT_CONFIGURED",
        "_NOT_IMPLEMENTED",
        "_SSL",
        "_UNSUPPORTED_FEATURE",
    }
)

_POLL = 0.1  # seconds; the longest time that closing waits for the thread
_METADATA = timedelta(seconds=10)
_TRYING = timedelta(seconds=5)  # by hand, to learn why nobody answers
_BY_KEY = -1  # librdkafka's PARTITION_UA

#: librdkafka itself counts what is in flight: this much, and `submit` waits.
_QUEUE = {"queue.buffering.max.messages": 10_000, "queue.buffering.max.kbytes": 65_536}


class KafkaProducer:
    """Idempotent, acknowledged by all replicas, keys placed like the Java client; an async context manager.

    Implements `ports.Publisher`. Leaving the context waits for what is in flight.
    """

    def __init__(self, kafka: Kafka, deliver_within: timedelta = timedelta(seconds=30)) -> None:
        """Raises ConfigurationError. `deliver_within`: a record that took longer has failed."""
        self._kafka = kafka
        self._deliver_within = deliver_within
        self._config = client_config(kafka) | {
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "message.timeout.ms": deliver_within // timedelta(milliseconds=1),
            # A copy may be larger than its source; batches stay under what input topics take (1,000,000).
            "message.max.bytes": MAX_MESSAGE_BYTES + SPARE_BYTES,
            "topic.metadata.refresh.interval.ms": 10_000,  # the default needs 5 minutes for new partitions
            **_QUEUE,
        }
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._counts: dict[str, int] = {}  # partitions by topic
        self._fatal: KafkaError | None = None  # why librdkafka has given up for good
        self._given_up = asyncio.Event()  # the same, in the event loop
        self._reports: deque[Report] = deque()  # from librdkafka's callbacks to the event loop
        self._in_flight: set[asyncio.Future[Coordinates]] = set()
        self._turn = asyncio.Lock()  # waiting records keep their order
        self._progress = asyncio.Event()

    async def __aenter__(self) -> Self:
        from confluent_kafka import Producer

        self._producer = Producer(self._config, logger=logging.getLogger("librdkafka"))
        self._thread = threading.Thread(
            target=self._poll,
            args=(self._producer, asyncio.get_running_loop()),
            name="kafka-producer",
            daemon=True,
        )
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.flush()
        finally:
            self._closing.set()
            self._producer = None  # so that its last reference, and its slow end, are the thread's
            if self._thread is not None:
                await asyncio.to_thread(self._thread.join)
            for future in self._in_flight:  # only when the flush was cancelled
                future.cancel()

    async def publish(self, copy: RecordCopy) -> Coordinates:
        """Returns when the broker has acknowledged. Raises BrokerUnavailable."""
        return await (await self.submit(copy))

    async def submit(
        self, copy: RecordCopy, *, timestamp_ms: int | None = None
    ) -> asyncio.Future[Coordinates]:
        """The future of the record's acknowledgement. Waits first while too much is in flight.

        Raises BrokerUnavailable, and so does the future. `timestamp_ms` is the record's own, None = now.
        """
        future: asyncio.Future[Coordinates] = asyncio.get_running_loop().create_future()
        known = copy.partition is None and copy.topic in self._counts
        if known and not self._turn.locked() and self._produce(copy, _BY_KEY, timestamp_ms, future):
            return future  # the usual way: nobody waits before us
        async with self._turn:
            partition = await self._partition(copy)
            while not self._produce(copy, partition, timestamp_ms, future):
                await self._progress.wait()
        return future

    async def flush(self) -> None:
        """Waits until everything in flight is acknowledged or has failed: its futures tell which."""
        while self._in_flight:
            self._progress.clear()
            await self._progress.wait()

    async def given_up(self) -> BrokerUnavailable:
        """Returns when nothing more can be published, and why; only another producer helps."""
        await self._given_up.wait()
        assert self._fatal is not None
        return BrokerUnavailable(f"Kafka's client has given up: {self._fatal.str()}.")

    async def _partition(self, copy: RecordCopy) -> int:
        """The copy's own number, modulo the partitions of a topic that has fewer."""
        wanted = _BY_KEY if copy.partition is None else copy.partition
        count = self._counts.get(copy.topic, 0)
        if wanted >= count or count == 0:  # asked again, for the topic may have grown
            count = self._counts[copy.topic] = await asyncio.to_thread(self._count, copy.topic)
        return wanted if wanted == _BY_KEY else wanted % count

    def _count(self, topic: str) -> int:
        """Blocks. Asking also shows librdkafka the partitions that a topic has got since."""
        from confluent_kafka import KafkaError, KafkaException

        assert self._producer is not None
        try:
            found = self._producer.list_topics(topic, timeout=_METADATA.total_seconds()).topics[topic]
        except KafkaException as error:
            raise unreachable(self._kafka, _TRYING) from error
        if found.error is not None and found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise translate(topic, found.error, self._kafka)
        if found.error is not None or not found.partitions:
            raise BrokerUnavailable(f"Kafka has no topic {topic} for us; run `docsum setup topics`.")
        return len(found.partitions)

    def _produce(
        self,
        copy: RecordCopy,
        partition: int,
        timestamp_ms: int | None,
        future: asyncio.Future[Coordinates],
    ) -> bool:
        """False when librdkafka's queue is full; `_progress` is set when there is room again."""
        from confluent_kafka import KafkaException

        assert self._producer is not None
        self._progress.clear()
        try:
            self._producer.produce(
                copy.topic,
                copy.value,
                copy.key,
                partition,
                on_delivery=partial(self._report, future),
                timestamp=0 if timestamp_ms is None else timestamp_ms,
                headers=list(copy.headers),
            )
        except BufferError:
            return False
        except KafkaException as error:
            raise translate(copy.topic, self._fatal or error.args[0], self._kafka) from error
        self._in_flight.add(future)
        return True

    def _report(
        self, future: asyncio.Future[Coordinates], error: KafkaError | None, message: Message
    ) -> None:
        """In the polling thread."""
        topic = message.topic() or ""
        if error is not None:
            self._reports.append((future, (topic, error)))  # why is known when the poll is over, see `_fatal`
        else:
            place = Coordinates(topic, message.partition() or 0, message.offset() or 0)
            self._reports.append((future, place))

    def _poll(self, producer: Producer, loop: asyncio.AbstractEventLoop) -> None:
        """One call into the event loop for all reports of a poll: by then librdkafka has freed their room."""
        from confluent_kafka import KafkaException

        while not self._closing.is_set():
            try:
                polled = producer.poll(_POLL)
            except KafkaException as error:  # a fatal one; the same poll may have reported what was in flight
                self._fatal, polled = error.args[0], 1
            if polled:
                loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        while self._reports:
            future, result = self._reports.popleft()
            self._in_flight.discard(future)
            if future.done():  # whoever waited has been cancelled
                continue
            if isinstance(result, Coordinates):
                future.set_result(result)
            else:
                topic, error = result
                future.set_exception(translate(topic, self._fatal or error, self._kafka))
        self._progress.set()
        if self._fatal is not None:
            self._given_up.set()


def translate(topic: str, error: KafkaError, kafka: Kafka) -> BrokerUnavailable:
    """What has become of a record, in our terms."""
    from confluent_kafka import KafkaError as Code

    if error.code() in (Code.TOPIC_AUTHORIZATION_FAILED, Code.CLUSTER_AUTHORIZATION_FAILED):
        return BrokerRefused(lacks(identity(kafka), (Operation.WRITE,), "topic", topic))
    servers = kafka.bootstrap_servers
    if error.code() == Code._MSG_TIMED_OUT:
        return BrokerUnavailable(f"Kafka at {servers} did not acknowledge a record for {topic} in time.")
    if error.code() == Code._FATAL or error.fatal():
        return BrokerUnavailable(f"Kafka's client has given up: {error.str()}. Run the command again.")
    if error.code() in {getattr(Code, name, None) for name in REFUSALS}:
        return BrokerRefused(f"Kafka refuses a record for {topic}: {error.str()}.")
    return BrokerUnavailable(f"Kafka did not take a record for {topic}: {error.str()}.")
