"""Where a failed delivery goes. Pure: a decision is a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from docsum.errors import REASONS, Disposition
from docsum.models import Delivery, Failure, from_ms
from docsum.topics import Topology


@dataclass(frozen=True, slots=True)
class Retry:
    """Copy to this retry topic; do not look at the copy before that moment."""

    topic: str
    not_before: datetime
    spent: bool = True  # false: the attempt does not count


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Copy to the dead-letter topic now, with this failure."""

    failure: Failure


def decide(
    failure: Failure,
    delivery: Delivery,
    topology: Topology,
    now: datetime,
    max_age: timedelta = timedelta(hours=24),
) -> Retry | DeadLetter:
    """The next retry topic while attempts are left, else the dead-letter topic.

    A failure that holds or pauses reaches this only when waiting has not helped: it counts as RETRY. One that
    is deferred waits in the longest retry topic until its first failure is `max_age` ago, and then counts as
    this document's own.
    """
    row = REASONS[failure.reason]
    disposition, most = row.disposition, min(row.attempts or topology.max_attempts, topology.max_attempts)
    if disposition is Disposition.DEFER and topology.delays:
        since = now if delivery.first_failed_ms is None else from_ms(delivery.first_failed_ms)
        if now - since >= max_age:
            return DeadLetter(replace(failure, reason="source_unavailable"))
        delay = topology.delays[-1]
        return Retry(topology.retry(delay), now + delay, spent=False)
    if disposition is Disposition.DEAD_LETTER or delivery.attempt >= most:
        return DeadLetter(failure)
    delay = topology.delays[delivery.attempt - 1]
    return Retry(topology.retry(delay), now + delay)
