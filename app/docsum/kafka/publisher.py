"""The worker's own producer: retry and dead-letter copies, idempotent, acknowledged by all replicas."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from docsum.errors import BrokerUnavailable
from docsum.models import Coordinates, RecordCopy
from docsum.topics import MAX_MESSAGE_BYTES, SPARE_BYTES


class CopyPublisher:
    """Publishes copies of records; an async context manager."""

    def __init__(self, bootstrap_servers: str, security: dict[str, Any]) -> None:  # Any: aiokafka's arguments
        self._arguments: dict[str, Any] = {
            "bootstrap_servers": bootstrap_servers,
            "acks": "all",
            "enable_idempotence": True,
            "max_request_size": MAX_MESSAGE_BYTES
            + 2 * SPARE_BYTES,  # aiokafka's own 1,000,000 refuses copies
            "request_timeout_ms": 30_000,
            "metadata_max_age_ms": 10_000,
            **security,
        }
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(**self._arguments)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._producer is not None
        await self._producer.stop()

    async def publish(self, copy: RecordCopy) -> Coordinates:
        """Returns when the broker has acknowledged. Raises BrokerUnavailable."""
        assert self._producer is not None
        partition = copy.partition
        try:
            if partition is not None:
                known = await self._producer.partitions_for(copy.topic)
                partition %= len(known) or 1
            # aiokafka refuses a record without key and value; an empty key says the same.
            key = b"" if copy.key is None and copy.value is None else copy.key
            done = await self._producer.send_and_wait(
                copy.topic, copy.value, key=key, partition=partition, headers=list(copy.headers)
            )
        except KafkaError as error:
            raise BrokerUnavailable(f"Kafka did not take a record for {copy.topic}: {error!r}") from error
        return Coordinates(done.topic, done.partition, done.offset)
