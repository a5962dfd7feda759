"""Our headers: set and never appended, bounded, and harmless when somebody else wrote them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.kafka import headers as h
from docsum.models import Coordinates, Delivery, Failure, from_ms, to_ms
from tests.support.fakes import reference

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FAILURE = Failure("source_unavailable", "The source did not answer.", "fetch", "SourceUnavailable")
FOREIGN = (("traceparent", b"00-1"), ("x-tag", b"one"), ("ce_id", b"\xff\x00"), ("x-tag", b"two"))

foreign_headers = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=12).filter(lambda name: name not in h.LIMITS), st.binary(max_size=20)
    ),
    max_size=6,
)
own_garbage = st.lists(st.tuples(st.sampled_from(sorted(h.LIMITS)), st.binary(max_size=3000)), max_size=30)
texts = st.text(max_size=6000)


def consumed(headers: h.Headers = FOREIGN, *, topic: str = "docsum.documents", offset: int = 7) -> Delivery:
    return h.delivery_of(topic, 3, offset, b"doc-1", b"event", headers, to_ms(NOW))


def retry(delivery: Delivery, failure: Failure = FAILURE, now: datetime = NOW) -> h.Headers:
    return h.retry_headers(
        delivery, failure, now + timedelta(seconds=10), now, max_attempts=4, group="docsum-worker"
    )


def dead_letter(delivery: Delivery, failure: Failure = FAILURE, now: datetime = NOW) -> h.Headers:
    return h.dead_letter_headers(delivery, failure, now, max_attempts=4, group="docsum-worker")


def ours(headers: h.Headers) -> dict[str, str]:
    return {name: value.decode() for name, value in headers if name in h.LIMITS and value is not None}


def theirs(headers: h.Headers) -> list[tuple[str, bytes | None]]:
    return [(name, value) for name, value in headers if name not in h.LIMITS]


def test_a_first_record_is_its_own_origin() -> None:
    delivery = consumed()
    assert delivery.origin == delivery.at == Coordinates("docsum.documents", 3, 7)
    assert (delivery.origin_timestamp_ms, delivery.attempt, delivery.replay_count) == (to_ms(NOW), 1, 0)
    assert (delivery.not_before_ms, delivery.first_failed_ms, delivery.attempt_log) == (None, None, "")


def test_a_retry_copy_tells_its_whole_history() -> None:
    written = ours(retry(consumed()))
    now_ms = str(to_ms(NOW))
    assert written == {
        "docsum-orig-topic": "docsum.documents",
        "docsum-orig-partition": "3",
        "docsum-orig-offset": "7",
        "docsum-orig-timestamp": now_ms,
        "docsum-orig-group": "docsum-worker",
        "docsum-attempt": "2",
        "docsum-max-attempts": "4",
        "docsum-not-before-ms": str(to_ms(NOW) + 10_000),
        "docsum-first-failed-at": now_ms,
        "docsum-failed-at": now_ms,
        "docsum-reason": "source_unavailable",
        "docsum-error-class": "SourceUnavailable",
        "docsum-error-message": "The source did not answer.",
        "docsum-error-stage": "fetch",
        "docsum-attempt-log": "2026-11-23T12:00:00Z,fetch,source_unavailable,SourceUnavailable",
    }


def test_the_origin_and_the_first_failure_are_written_once() -> None:
    delivery = consumed()
    for number in range(3):
        headers = retry(delivery, now=NOW + timedelta(minutes=number))
        delivery = consumed(headers, topic="docsum.retry.10s", offset=100 + number)
    assert delivery.origin == Coordinates("docsum.documents", 3, 7)
    assert delivery.first_failed_ms == to_ms(NOW)
    assert delivery.attempt == 4
    assert len(delivery.attempt_log.split(";")) == 3
    last = dead_letter(delivery, now=NOW + timedelta(minutes=9))
    assert ours(last)["docsum-attempt"] == "4"
    assert "docsum-not-before-ms" not in ours(last)


def test_the_group_that_copied_first_stays() -> None:
    first = consumed(retry(consumed()))
    second = h.retry_headers(first, FAILURE, NOW, NOW, max_attempts=4, group="another-group")
    assert ours(second)["docsum-orig-group"] == "docsum-worker"


def test_not_before_is_never_early() -> None:
    moment = NOW + timedelta(microseconds=1)
    headers = h.retry_headers(consumed(), FAILURE, moment, NOW, max_attempts=4, group="g")
    not_before = consumed(headers).not_before_ms
    assert not_before is not None
    assert from_ms(not_before) >= moment


def test_the_document_and_the_run_are_named_when_they_are_known() -> None:
    run_id = UUID(int=5)
    headers = h.retry_headers(
        consumed(), FAILURE, NOW, NOW, max_attempts=4, group="g", reference=reference("doc-é", run_id=run_id)
    )
    assert ours(headers)["docsum-doc-id"] == "doc-é"
    assert ours(headers)["docsum-run-id"] == str(run_id)


def test_only_a_dead_letter_has_a_stack_trace_and_it_keeps_the_end() -> None:
    failure = Failure(
        "internal_error", "boom", "extract", "KeyError", "begin" + "x" * 9000 + "KeyError: the end"
    )
    stack = ours(dead_letter(consumed(), failure))["docsum-error-stacktrace"]
    assert stack.endswith("KeyError: the end")
    assert len(stack) == 4096
    assert "docsum-error-stacktrace" not in ours(retry(consumed(), failure))
    again = consumed(dead_letter(consumed(), failure))
    assert "docsum-error-stacktrace" not in ours(h.replay_headers(again, "r", "g"))
    assert "docsum-error-stacktrace" not in ours(h.held_headers(again, "g"))


def test_a_held_copy_spends_no_attempt() -> None:
    delivery = consumed(retry(consumed()), topic="docsum.retry.10s")
    back = consumed(h.held_headers(delivery, "docsum-worker"), topic="docsum.held")
    assert (back.attempt, back.origin) == (2, delivery.origin)
    assert (back.not_before_ms, back.first_failed_ms) == (None, None)
    assert back.attempt_log == delivery.attempt_log


def test_a_replay_begins_anew_and_remembers() -> None:
    dead = consumed(dead_letter(consumed(retry(consumed()))), topic="docsum.dlq", offset=55)
    headers = h.replay_headers(dead, "replay-1", "docsum-worker")
    replayed = consumed(headers, offset=900)
    assert (replayed.attempt, replayed.replay_count, replayed.origin) == (1, 1, dead.origin)
    assert replayed.first_failed_ms is None
    assert replayed.origin_timestamp_ms == dead.origin_timestamp_ms
    assert len(replayed.attempt_log.split(";")) == 2
    assert ours(headers)["docsum-replay-id"] == "replay-1"
    assert ours(headers)["docsum-replayed-from"] == "docsum.dlq[3]@55"
    assert "docsum-reason" not in ours(headers)
    again = consumed(h.replay_headers(consumed(dead_letter(replayed), topic="docsum.dlq"), "replay-2", "g"))
    assert again.replay_count == 2


def test_the_attempt_log_keeps_its_last_ten_entries_whole() -> None:
    delivery = consumed()
    for number in range(30):
        delivery = consumed(retry(delivery, now=NOW + timedelta(minutes=number)))
    entries = delivery.attempt_log.split(";")
    assert len(entries) == 10
    assert entries[-1].startswith("2026-11-23T12:29:00Z,")
    assert all(entry.count(",") == 3 for entry in entries)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("docsum-attempt", b"0"),
        ("docsum-attempt", b"-1"),
        ("docsum-attempt", b"2.5"),
        ("docsum-attempt", b"1_0"),
        ("docsum-attempt", b" 3"),
        ("docsum-attempt", "٣".encode()),
        ("docsum-attempt", b"9" * 5000),
        ("docsum-replay-count", b"many"),
        ("docsum-not-before-ms", b"tomorrow"),
        ("docsum-not-before-ms", b"99999999999999999"),
        ("docsum-first-failed-at", b""),
        ("docsum-orig-timestamp", b"-1"),
        ("docsum-attempt-log", b"\xff\xfe"),
        ("docsum-orig-topic", b"elsewhere"),  # without partition and offset
        ("docsum-orig-topic", b"\xff"),
    ],
)
def test_a_header_of_ours_that_makes_no_sense_counts_as_absent(name: str, value: bytes) -> None:
    delivery = consumed(((name, value),))
    assert delivery.headers == ((name, value),)
    plain = consumed(())
    assert (delivery.origin, delivery.attempt, delivery.replay_count) == (plain.origin, 1, 0)
    assert delivery.origin_timestamp_ms == plain.origin_timestamp_ms
    assert (delivery.not_before_ms, delivery.first_failed_ms, delivery.attempt_log) == (None, None, "")


def test_no_headers_and_empty_values_are_fine() -> None:
    assert h.delivery_of("t", 0, 0, None, None, None, -1).headers == ()
    assert h.delivery_of("t", 0, 0, None, None, [("x", None)], -1).headers == (("x", None),)


@given(foreign=foreign_headers, garbage=own_garbage, message=texts, stack=texts, log=texts)
def test_whatever_came_in_a_copy_is_bounded_and_has_one_value_a_name(
    foreign: list[tuple[str, bytes]], garbage: list[tuple[str, bytes]], message: str, stack: str, log: str
) -> None:
    came = (*garbage[:15], *foreign, *garbage[15:], (h.ATTEMPT_LOG, log.encode()))
    delivery = consumed(came)
    failure = Failure("internal_error", message, "fetch", "KeyError", stack)
    for copied in (
        retry(delivery, failure),
        dead_letter(delivery, failure),
        h.held_headers(delivery, "g"),
        h.replay_headers(delivery, "id", "g"),
    ):
        assert theirs(copied) == foreign  # untouched, in order, duplicates too
        added = [(name, value) for name, value in copied if name in h.LIMITS and value is not None]
        assert max(Counter(name for name, _ in added).values()) == 1
        assert sum(len(name) + len(value) for name, value in added) <= h.MOST_BYTES
        for _, value in added:
            value.decode()
        again = consumed(copied)
        assert (again.origin, again.origin_timestamp_ms) == (delivery.origin, delivery.origin_timestamp_ms)


@given(
    topic=st.text("abc.-_", min_size=1, max_size=249),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(0, to_ms(datetime(2999, 1, 1, tzinfo=UTC))),
    hops=st.integers(1, 6),
)
def test_coordinates_survive_any_number_of_copies(
    *, topic: str, partition: int, offset: int, timestamp: int, hops: int
) -> None:
    delivery = h.delivery_of(topic, partition, offset, b"k", b"v", FOREIGN, timestamp)
    for number in range(hops):
        copied = retry(delivery)
        delivery = h.delivery_of("docsum.retry.10s", 0, number, b"k", b"v", copied, timestamp + 5)
    assert delivery.origin == Coordinates(topic, partition, offset)
    assert delivery.origin_timestamp_ms == timestamp
    assert delivery.attempt == hops + 1
