"""Where a failed delivery goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from docsum.errors import REASONS, Disposition
from docsum.kafka import headers as h
from docsum.models import Delivery, Failure, to_ms
from docsum.retry import DeadLetter, Retry, decide
from docsum.topics import Topology
from tests.support.fakes import delivery

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TOPOLOGY = Topology()


def failure(reason: str) -> Failure:
    return Failure(reason, "It failed.", "fetch", "FetchError")


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (1, Retry("docsum.retry.10s", NOW + timedelta(seconds=10))),
        (2, Retry("docsum.retry.30s", NOW + timedelta(seconds=30))),
        (3, Retry("docsum.retry.90s", NOW + timedelta(seconds=90))),
        (4, None),
        (99, None),
    ],
)
def test_delays_grow_until_no_attempt_is_left(attempt: int, expected: Retry | None) -> None:
    failed = failure("source_unavailable")
    decision = decide(failed, delivery(attempt=attempt), TOPOLOGY, NOW)
    assert decision == (expected or DeadLetter(failed))


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_what_will_never_work_wastes_no_attempt(reason: str) -> None:
    decision = decide(failure(reason), delivery(attempt=1), TOPOLOGY, NOW)
    hopeless = REASONS[reason].disposition is Disposition.DEAD_LETTER
    assert isinstance(decision, DeadLetter) is hopeless


def test_a_source_that_is_down_is_waited_for_in_the_longest_topic_until_its_event_is_too_old() -> None:
    down = failure("source_down")
    last = Retry("docsum.retry.90s", NOW + timedelta(seconds=90), spent=False)
    assert decide(down, delivery(attempt=4), TOPOLOGY, NOW) == last
    yesterday = delivery(first_failed_ms=to_ms(NOW - timedelta(hours=24)))
    assert decide(down, yesterday, TOPOLOGY, NOW) == DeadLetter(failure("source_unavailable"))


def test_after_a_replay_and_after_a_hold_a_source_is_waited_for_anew() -> None:
    """Its breaker may still be open in a worker that had nothing to try since."""
    down, days_ago = failure("source_down"), NOW - timedelta(days=3)
    consumed = partial(h.delivery_of, "docsum.documents", 0, 7, b"doc-1", b"event", timestamp_ms=to_ms(NOW))

    def waits(event: Delivery) -> bool:
        return isinstance(decide(down, event, TOPOLOGY, NOW), Retry)

    dead = consumed(h.dead_letter_headers(delivery(), down, days_ago, max_attempts=4, group="g"))
    assert not waits(dead)
    assert waits(consumed(h.replay_headers(dead, "replay-1", "g")))
    retried = consumed(h.retry_headers(delivery(), down, days_ago, days_ago, max_attempts=4, group="g"))
    assert not waits(retried)
    held = consumed(h.held_headers(retried, "g"))
    assert waits(consumed(h.held_headers(held, "g")))


def test_an_unknown_schema_is_tried_once_more() -> None:
    """Its producer may be about to register it; later it is a mistake."""
    unknown = failure("schema_unknown")
    assert isinstance(decide(unknown, delivery(attempt=1), TOPOLOGY, NOW), Retry)
    assert decide(unknown, delivery(attempt=2), TOPOLOGY, NOW) == DeadLetter(unknown)


def test_without_delays_everything_is_tried_once() -> None:
    once = Topology(delays=())
    assert isinstance(decide(failure("source_unavailable"), delivery(), once, NOW), DeadLetter)


def test_an_attempt_beyond_shortened_delays_is_the_last() -> None:
    shortened = Topology(delays=(timedelta(seconds=10),))
    failed = failure("source_unavailable")
    assert decide(failed, delivery(attempt=3), shortened, NOW) == DeadLetter(failed)
