"""The version of an event: newer at the source wins, and a redelivery never looks new."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.headers import dead_letter_headers, delivery_of, held_headers, replay_headers, retry_headers
from docsum.models import Delivery, DocumentReference, Failure, event_version, from_ms, to_ms

CODEC = EventCodec()
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FAILURE = Failure("source_unavailable", "The source did not answer.", "fetch", "SourceUnavailable")

moments = st.integers(0, to_ms(datetime(2999, 1, 1, tzinfo=UTC)))
ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=64)


def decode(delivery: Delivery) -> DocumentReference:
    return asyncio.run(CODEC.decode(delivery))


def record(value: bytes | None, *, offset: int = 7, timestamp_ms: int = to_ms(NOW)) -> Delivery:
    return delivery_of("docsum.documents", 3, offset, b"doc-1", value, (), timestamp_ms)


def moved(delivery: Delivery, topic: str, headers: tuple[tuple[str, bytes | None], ...]) -> Delivery:
    """The copy as it is consumed from another topic, later, elsewhere."""
    later = delivery.timestamp_ms + 12_345
    return delivery_of(topic, 0, delivery.at.offset + 100, delivery.key, delivery.value, headers, later)


hops = st.lists(st.sampled_from(["retry", "dead_letter", "held", "replay"]), max_size=6)


def hop(delivery: Delivery, kind: str) -> Delivery:
    match kind:
        case "retry":
            headers = retry_headers(delivery, FAILURE, NOW, NOW, max_attempts=4, group="docsum-worker")
        case "dead_letter":
            headers = dead_letter_headers(delivery, FAILURE, NOW, max_attempts=4, group="docsum-worker")
        case "held":
            headers = held_headers(delivery, "docsum-worker")
        case _:
            headers = replay_headers(delivery, str(uuid4()), "docsum-worker")
    return moved(delivery, f"docsum.{kind}", headers)


@given(hops=hops, encoding=st.sampled_from(["avro", "json", "bare", "null"]), published=moments)
def test_a_redelivery_over_retries_and_replays_is_the_same_event(
    hops: list[str], encoding: str, published: int
) -> None:
    event = new_event("doc-1", "file:///a", occurred_at=from_ms(published), event_id="e-1")
    values = {
        "avro": asyncio.run(CODEC.encode(event, "docsum.documents")),
        "json": b'{"document_id": "doc-1", "uri": "file:///a", "event_id": "e-1"}',
        "bare": b'{"document_id": "doc-1", "uri": "file:///a"}',
        "null": None,
    }
    first = record(values[encoding], timestamp_ms=published)
    last = first
    for kind in hops:
        last = hop(last, kind)
    assert decode(last) == decode(first)


@given(older=moments, newer=moments, first=moments, second=moments, one=ids, other=ids)
def test_the_newer_at_the_source_wins_whenever_it_was_published(
    *, older: int, newer: int, first: int, second: int, one: str, other: str
) -> None:
    older, newer = sorted((older, newer + (older == newer)))
    assert event_version(from_ms(older), first, one) < event_version(from_ms(newer), second, other)


@given(occurred=moments, first=moments, later=st.integers(1, 10**9), one=ids, other=ids)
def test_of_the_same_moment_the_one_published_later_wins(
    occurred: int, first: int, later: int, one: str, other: str
) -> None:
    moment = from_ms(occurred)
    assert event_version(moment, first, one) < event_version(moment, first + later, other)


@given(occurred=moments, published=moments, event_id=ids)
def test_a_version_is_a_uint128_and_its_parts_can_be_read_back(
    occurred: int, published: int, event_id: str
) -> None:
    version = event_version(from_ms(occurred), published, event_id)
    assert 0 <= version < 2**128
    assert (version >> 80, version >> 32 & 2**48 - 1) == (occurred, published)


@given(published=moments)
def test_a_float_of_seconds_gives_back_its_millisecond(published: int) -> None:
    assert round(published / 1000 * 1000) == published
    assert to_ms(from_ms(published)) == published


@given(microseconds=st.integers(-499, 499), occurred=st.integers(1, 10**12))
def test_a_moment_is_rounded_to_its_nearest_millisecond(microseconds: int, occurred: int) -> None:
    assert to_ms(from_ms(occurred) + timedelta(microseconds=microseconds)) == occurred


def test_the_same_content_at_other_coordinates_is_another_event_when_it_names_none() -> None:
    bare = b'{"document_id": "doc-1", "uri": "file:///a"}'
    one, other = decode(record(bare, offset=1)), decode(record(bare, offset=2))
    assert one.event_id != other.event_id
    assert one.version != other.version
