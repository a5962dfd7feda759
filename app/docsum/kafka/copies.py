"""What goes back to Kafka for an outcome: same bytes, same partition, our own headers set."""

from __future__ import annotations

from docsum.kafka.headers import dead_letter_headers, held_headers, retry_headers
from docsum.models import DeadLettered, Delivery, DocumentReference, Held, Outcome, RecordCopy, Retried
from docsum.ports import Clock
from docsum.topics import Topology


class RecordCopies:
    """Implements `ports.Copies`."""

    def __init__(self, topology: Topology, group: str, clock: Clock) -> None:
        self._topology = topology
        self._group = group
        self._clock = clock

    def of(
        self, delivery: Delivery, reference: DocumentReference | None, outcome: Outcome
    ) -> RecordCopy | None:
        """None where the outcome needs no copy."""
        now, most = self._clock.now(), self._topology.max_attempts
        match outcome:
            case Retried():
                topic = outcome.topic
                headers = retry_headers(
                    delivery,
                    outcome.failure,
                    outcome.not_before,
                    now,
                    max_attempts=most,
                    group=self._group,
                    reference=reference,
                    spent=outcome.spent,
                )
            case DeadLettered():
                topic = self._topology.dead_letters
                headers = dead_letter_headers(
                    delivery, outcome.failure, now, max_attempts=most, group=self._group, reference=reference
                )
            case Held():
                topic = self._topology.held
                headers = held_headers(delivery, self._group, reference)
            case _:
                return None
        return RecordCopy(topic, delivery.at.partition, delivery.key, delivery.value, headers)
