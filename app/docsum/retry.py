"""Where a failed delivery goes. Pure: a decision is a value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from docsum.errors import REASONS, Disposition
from docsum.models import Delivery, Failure
from docsum.topics import Topology


@dataclass(frozen=True, slots=True)
class Retry:
    """Copy to this retry topic; do not look at the copy before that moment."""

    topic: str
    not_before: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Copy to the dead-letter topic now."""


def decide(failure: Failure, delivery: Delivery, topology: Topology, now: datetime) -> Retry | DeadLetter:
    """The next retry topic while attempts are left, else the dead-letter topic.

    A failure that holds or pauses reaches this only when waiting has not helped: it counts as RETRY.
    """
    hopeless = REASONS[failure.reason].disposition is Disposition.DEAD_LETTER
    if hopeless or delivery.attempt >= topology.max_attempts:
        return DeadLetter()
    delay = topology.delays[delivery.attempt - 1]
    return Retry(topology.retry(delay), now + delay)
