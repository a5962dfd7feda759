"""The worker's own producer: retry and dead-letter copies, idempotent, acknowledged by all replicas."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer, errors
from aiokafka.errors import KafkaError

from docsum.errors import BrokerRefused, BrokerUnavailable
from docsum.kafka.refusals import right_missing
from docsum.kafka.rights import Operation
from docsum.kafka.security import aiokafka_security, identity
from docsum.models import Coordinates, RecordCopy
from docsum.settings import Kafka

#: Kafka has understood and says no: a person has to change something there. All else may pass.
REFUSALS: frozenset[type[KafkaError]] = frozenset(
    {
        errors.AuthenticationFailedError,
        errors.AuthenticationMethodNotSupported,
        errors.ClusterAuthorizationFailedError,
        errors.DelegationTokenAuthDisabled,
        errors.DelegationTokenAuthorizationFailed,
        errors.DelegationTokenExpired,
        errors.DelegationTokenNotFound,
        errors.DelegationTokenOwnerMismatch,
        errors.DelegationTokenRequestNotAllowed,
        errors.IllegalSaslStateError,
        errors.IncompatibleBrokerVersion,
        errors.InvalidConfigurationError,
        errors.InvalidPrincipalType,
        errors.InvalidRequiredAcksError,
        errors.InvalidTimestampError,
        errors.InvalidTopicError,
        errors.KafkaConfigurationError,
        errors.MessageSizeTooLargeError,
        errors.PolicyViolationError,
        errors.RecordListTooLargeError,
        errors.RecordTooLargeError,
        errors.SaslAuthenticationFailed,
        errors.SecurityDisabled,
        errors.TopicAuthorizationFailedError,
        errors.TransactionalIdAuthorizationFailed,
        errors.UnrecognizedBrokerVersion,
        errors.UnsupportedCodecError,
        errors.UnsupportedForMessageFormatError,
        errors.UnsupportedSaslMechanismError,
        errors.UnsupportedVersionError,
    }
)
#: aiokafka 0.14 never gets over these: a record that was refused has left a gap in the numbers of an
#: idempotent producer, or its sender has ended, which shows as a plain KafkaError.
BROKEN: frozenset[type[KafkaError]] = frozenset(
    {
        KafkaError,
        errors.IllegalStateError,
        errors.InvalidProducerEpoch,
        errors.InvalidProducerIdMapping,
        errors.OutOfOrderSequenceNumber,
        errors.ProducerClosed,
        errors.ProducerFenced,
        errors.UnknownProducerId,
    }
)
#: A record that a producer has compressed may be far larger here than the topic takes: the copy is compressed
#: too, and its size is the broker's to judge.
_NO_LIMIT = 2**31 - 1
_CLOSE = timedelta(seconds=5)  # for what is not acknowledged at the end: its offsets are not committed


class CopyPublisher:
    """Publishes copies of records; an async context manager."""

    def __init__(
        self,
        kafka: Kafka,
        patience: timedelta = timedelta(seconds=10),
    ) -> None:
        """`patience`: a record that is not acknowledged by then is told of, and still sent.

        Raises ConfigurationError.
        """
        self._who = identity(kafka)
        self._arguments: dict[str, Any] = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": "gzip",
            "max_request_size": _NO_LIMIT,
            "request_timeout_ms": 30_000,
            "metadata_max_age_ms": 10_000,
            **aiokafka_security(kafka),
        }
        self._patience = patience.total_seconds()
        self._producer: Any = None  # Any: aiokafka is not typed
        self._renewal = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()  # the ends of producers that were replaced
        self._sending: dict[RecordCopy, asyncio.Task[Coordinates]] = {}

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable."""
        try:
            self._producer = await self._started()
        except KafkaError as error:
            raise translate(error, "a connection", self._who) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = {*self._sending.values(), *self._leaving}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._producer.stop(), _CLOSE.total_seconds())

    async def publish(self, copy: RecordCopy) -> Coordinates:
        """Returns when the broker has acknowledged. Raises BrokerUnavailable.

        aiokafka sends an idempotent record for as long as it takes. So after a failure the same copy may be
        handed in again: it waits on for the record that is under way, and nothing is written twice.
        """
        sending = self._sending.get(copy)
        if sending is None:
            sending = self._sending[copy] = asyncio.create_task(self._send(copy))
        try:
            done, _ = await asyncio.wait({sending}, timeout=self._patience)
        except asyncio.CancelledError:
            self._sending.pop(copy, None)
            sending.cancel()
            raise
        if not done:
            raise BrokerUnavailable(
                f"Kafka has not acknowledged a record for {copy.topic} within {self._patience:g} seconds."
            )
        self._sending.pop(copy, None)
        return sending.result()

    async def _send(self, copy: RecordCopy) -> Coordinates:
        while True:
            producer = self._producer
            try:
                return await _send(producer, copy)
            except KafkaError as error:
                if type(error) not in BROKEN or not await self._renew(producer):
                    raise translate(error, f"a record for {copy.topic}", self._who, copy.topic) from error
            except Exception as error:  # such as its AssertionError when a topic goes while it is looked at
                raise translate(error, f"a record for {copy.topic}", self._who, copy.topic) from error

    async def _renew(self, broken: Any) -> bool:
        """Puts a new producer in its place; false when that cannot be made now."""
        async with self._renewal:
            if self._producer is not broken:
                return True  # somebody was faster
            try:
                self._producer = await self._started()
            except KafkaError:
                return False
            leave = asyncio.create_task(broken.stop())
            self._leaving.add(leave)
            leave.add_done_callback(self._leaving.discard)
            return True

    async def _started(self) -> Any:
        producer = AIOKafkaProducer(**self._arguments)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer


async def _send(producer: Any, copy: RecordCopy) -> Coordinates:
    partition = copy.partition
    if partition is not None:
        known = await producer.partitions_for(copy.topic)
        partition %= len(known) or 1
    # aiokafka refuses a record without key and value; an empty key says the same.
    key = b"" if copy.key is None and copy.value is None else copy.key
    done = await producer.send_and_wait(
        copy.topic, copy.value, key=key, partition=partition, headers=list(copy.headers)
    )
    return Coordinates(done.topic, done.partition, done.offset)


def translate(error: Exception, what: str, who: str = "user", topic: str = "") -> BrokerUnavailable:
    """What has failed in our terms. A record is never given up: both kinds are waited out and told.

    `who` is of `security.identity`; `topic`: where the record was to go.
    """
    if isinstance(error, errors.TopicAuthorizationFailedError | errors.ClusterAuthorizationFailedError):
        return BrokerRefused(str(right_missing(error, who, topic=topic, needed=Operation.WRITE)))
    said = str(error) if isinstance(error, KafkaError) else f"{type(error).__name__}: {error}"
    if type(error) in REFUSALS:
        return BrokerRefused(f"Kafka refuses {what}: {said}.")
    return BrokerUnavailable(f"Kafka did not take {what}: {said}.")
