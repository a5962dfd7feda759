"""Our record headers: what a copy tells of its history.

Text is UTF-8, numbers and moments (milliseconds since 1970) are decimal. One value a name: ours are set,
never appended. Every other header of a record is carried along untouched, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from docsum.models import EPOCH, Coordinates, Delivery, DocumentReference, Failure, from_ms, to_ms

Headers = tuple[tuple[str, bytes | None], ...]

ORIGINAL_TOPIC = "docsum-orig-topic"
ORIGINAL_PARTITION = "docsum-orig-partition"
ORIGINAL_OFFSET = "docsum-orig-offset"
ORIGINAL_TIMESTAMP = "docsum-orig-timestamp"
ORIGINAL_GROUP = "docsum-orig-group"
ATTEMPT = "docsum-attempt"
MAX_ATTEMPTS = "docsum-max-attempts"
NOT_BEFORE = "docsum-not-before-ms"
FIRST_FAILED_AT = "docsum-first-failed-at"  # since the last replay or rest
FAILED_AT = "docsum-failed-at"
REASON = "docsum-reason"
ERROR_CLASS = "docsum-error-class"
ERROR_MESSAGE = "docsum-error-message"
ERROR_STAGE = "docsum-error-stage"
ERROR_STACKTRACE = "docsum-error-stacktrace"
ATTEMPT_LOG = "docsum-attempt-log"
REPLAY_COUNT = "docsum-replay-count"
REPLAY_ID = "docsum-replay-id"
REPLAYED_FROM = "docsum-replayed-from"
RUN_ID = "docsum-run-id"
DOCUMENT_ID = "docsum-doc-id"

MOST_BYTES = 8 * 1024  # of all our headers of one record, names included

#: Our names and the most bytes of each one's value. Together they stay below `MOST_BYTES`; the stack trace
#: has no room of its own, it gets what the others leave.
LIMITS: Mapping[str, int] = {
    ORIGINAL_TOPIC: 256,
    ORIGINAL_PARTITION: 20,
    ORIGINAL_OFFSET: 20,
    ORIGINAL_TIMESTAMP: 20,
    ORIGINAL_GROUP: 256,
    ATTEMPT: 20,
    MAX_ATTEMPTS: 20,
    NOT_BEFORE: 20,
    FIRST_FAILED_AT: 20,
    FAILED_AT: 20,
    REASON: 128,
    ERROR_CLASS: 256,
    ERROR_MESSAGE: 1024,
    ERROR_STAGE: 64,
    ERROR_STACKTRACE: 0,
    ATTEMPT_LOG: 2048,
    REPLAY_COUNT: 20,
    REPLAY_ID: 256,
    REPLAYED_FROM: 320,
    RUN_ID: 64,
    DOCUMENT_ID: 2048,  # 512 characters of four bytes: a shortened id would be another one
}
_STACK_BYTES = 4 * 1024
_LOG_ENTRIES = 10

_LAST_PARTITION = 2**31 - 1
_LAST_OFFSET = 2**63 - 1
_LAST_MS = 253_402_300_799_000  # the year 9999
_MOST_ATTEMPTS = 1_000


def delivery_of_record(record: Any) -> Delivery:  # Any: aiokafka is not typed
    """What aiokafka's consumer gives, as a delivery."""
    place = (record.topic, record.partition, record.offset)
    return delivery_of(*place, record.key, record.value, record.headers, record.timestamp)


def delivery_of(  # noqa: PLR0917 - the parts of a consumed record, in Kafka's own order
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] | None,
    timestamp_ms: int,
) -> Delivery:
    """A consumed record as a delivery. A header of ours that makes no sense counts as absent."""
    carried = tuple(headers or ())
    ours = _ours(carried)
    at = Coordinates(topic, partition, offset)
    published_ms = _number(ours, ORIGINAL_TIMESTAMP, 0, _LAST_MS)
    return Delivery(
        at=at,
        key=key,
        value=value,
        headers=carried,
        timestamp_ms=timestamp_ms,
        origin=_origin(ours) or at,
        origin_timestamp_ms=timestamp_ms if published_ms is None else published_ms,
        attempt=_number(ours, ATTEMPT, 1, _MOST_ATTEMPTS) or 1,
        not_before_ms=_number(ours, NOT_BEFORE, 0, _LAST_MS),
        first_failed_ms=_number(ours, FIRST_FAILED_AT, 0, _LAST_MS),
        attempt_log=_last_entries(_text(ours, ATTEMPT_LOG) or ""),
        replay_count=_number(ours, REPLAY_COUNT, 0, _MOST_ATTEMPTS) or 0,
    )


def retry_headers(
    delivery: Delivery,
    failure: Failure,
    not_before: datetime,
    now: datetime,
    *,
    max_attempts: int,
    group: str,
    reference: DocumentReference | None = None,
    spent: bool = True,
) -> Headers:
    """Of the copy for a retry topic: the next attempt, not to be looked at before that moment.

    The same attempt again where this one was not `spent`.
    """
    ours = _failed(delivery, failure, now, max_attempts=max_attempts, group=group, reference=reference)
    next_attempt = {ATTEMPT: str(delivery.attempt + spent), NOT_BEFORE: str(_ceiling_ms(not_before))}
    return _replaced(delivery, ours | next_attempt)


def dead_letter_headers(
    delivery: Delivery,
    failure: Failure,
    now: datetime,
    *,
    max_attempts: int,
    group: str,
    reference: DocumentReference | None = None,
) -> Headers:
    """Of the copy for the dead-letter topic, the only one with a stack trace."""
    ours = _failed(delivery, failure, now, max_attempts=max_attempts, group=group, reference=reference)
    return _replaced(delivery, ours, failure.stacktrace)


def held_headers(delivery: Delivery, group: str, reference: DocumentReference | None = None) -> Headers:
    """Of the copy for the held topic, and back from it: nothing failed, so the attempt stays.

    Since when its source has failed is left out: the time at rest must not count as that.
    """
    kept = {
        name: text for name, text in _texts(delivery).items() if name not in (NOT_BEFORE, FIRST_FAILED_AT)
    }
    ours = kept | _original(delivery, group) | {ATTEMPT: str(delivery.attempt)}
    return _replaced(delivery, ours | _identity(reference))


def replay_headers(delivery: Delivery, replay_id: str, group: str) -> Headers:
    """Of the copy from the dead-letter topic to the original one: attempts begin anew, the history stays.

    So does the time that it may wait for a source that is down: of earlier failures its log tells.
    """
    kept = _texts(delivery)
    history = {name: kept[name] for name in (ATTEMPT_LOG, RUN_ID, DOCUMENT_ID) if name in kept}
    replay = {
        REPLAY_COUNT: str(delivery.replay_count + 1),
        REPLAY_ID: replay_id,
        REPLAYED_FROM: str(delivery.at),
    }
    return _replaced(delivery, history | _original(delivery, group) | replay)


def _failed(
    delivery: Delivery,
    failure: Failure,
    now: datetime,
    *,
    max_attempts: int,
    group: str,
    reference: DocumentReference | None,
) -> dict[str, str]:
    kept = _texts(delivery)
    now_ms = to_ms(now)
    ours = {name: kept[name] for name in (REPLAY_COUNT, REPLAY_ID, REPLAYED_FROM) if name in kept}
    ours |= _original(delivery, group) | {
        ATTEMPT: str(delivery.attempt),
        MAX_ATTEMPTS: str(max_attempts),
        FIRST_FAILED_AT: str(now_ms if delivery.first_failed_ms is None else delivery.first_failed_ms),
        FAILED_AT: str(now_ms),
        REASON: failure.reason,
        ERROR_CLASS: failure.error_class,
        ERROR_MESSAGE: failure.message,
        ERROR_STAGE: failure.stage,
        ATTEMPT_LOG: _last_entries(f"{delivery.attempt_log};{_entry(failure, now_ms)}"),
    }
    return ours | _identity(reference)


def _identity(reference: DocumentReference | None) -> dict[str, str]:
    if reference is None:
        return {}
    run = {} if reference.run_id is None else {RUN_ID: str(reference.run_id)}
    return {DOCUMENT_ID: reference.document_id} | run


def _original(delivery: Delivery, group: str) -> dict[str, str]:
    """Written with the first copy and the same ever after; the group is the one that copied first."""
    return {
        ORIGINAL_TOPIC: delivery.origin.topic,
        ORIGINAL_PARTITION: str(delivery.origin.partition),
        ORIGINAL_OFFSET: str(delivery.origin.offset),
        ORIGINAL_TIMESTAMP: str(delivery.origin_timestamp_ms),
        ORIGINAL_GROUP: _texts(delivery).get(ORIGINAL_GROUP, group),
    }


def _replaced(delivery: Delivery, ours: Mapping[str, str], stacktrace: str = "") -> Headers:
    """The record's headers with ours in place of all that had their names."""
    foreign = [(name, value) for name, value in delivery.headers if name not in LIMITS]
    written = [(name, _head(text, LIMITS[name])) for name, text in ours.items() if LIMITS[name]]
    if stacktrace:
        room = MOST_BYTES - sum(len(name) + len(value) for name, value in written) - len(ERROR_STACKTRACE)
        written.append((ERROR_STACKTRACE, _tail(stacktrace, min(_STACK_BYTES, room))))
    return (*foreign, *written)


def _entry(failure: Failure, now_ms: int) -> str:
    """`time,stage,reason,class`: names of ours, so they hold neither comma nor semicolon."""
    moment = from_ms(now_ms).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{moment},{failure.stage},{failure.reason},{failure.error_class}"


def _last_entries(log: str) -> str:
    """The newest ten, and of those as many whole ones as fit."""
    entries = [entry for entry in log.split(";") if entry][-_LOG_ENTRIES:]
    while len(";".join(entries).encode("utf-8", "replace")) > LIMITS[ATTEMPT_LOG]:
        del entries[0]
    return ";".join(entries)


def _ours(headers: Headers) -> dict[str, bytes]:
    """Where a name is there twice the last one counts, as in Kafka's own clients."""
    return {name: value for name, value in headers if name in LIMITS and value is not None}


def _texts(delivery: Delivery) -> dict[str, str]:
    ours = _ours(delivery.headers)
    return {name: text for name in ours if (text := _text(ours, name)) is not None}


def _text(ours: Mapping[str, bytes], name: str) -> str | None:
    try:
        return ours[name].decode() if name in ours else None
    except UnicodeDecodeError:
        return None


def _number(ours: Mapping[str, bytes], name: str, least: int, most: int) -> int | None:
    digits = ours.get(name, b"")
    if not digits.isdigit() or len(digits) > 20:
        return None
    number = int(digits)
    return number if least <= number <= most else None


def _origin(ours: Mapping[str, bytes]) -> Coordinates | None:
    topic = _text(ours, ORIGINAL_TOPIC)
    partition = _number(ours, ORIGINAL_PARTITION, 0, _LAST_PARTITION)
    offset = _number(ours, ORIGINAL_OFFSET, 0, _LAST_OFFSET)
    if not topic or len(topic) > LIMITS[ORIGINAL_TOPIC] or partition is None or offset is None:
        return None
    return Coordinates(topic, partition, offset)


def _head(text: str, most: int) -> bytes:
    """The first bytes of a text, without half a character."""
    encoded = text.encode("utf-8", "replace")
    return encoded if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore").encode()


def _tail(text: str, most: int) -> bytes:
    """The last bytes of a text, without half a character: what failed is at the end of a stack."""
    return text.encode("utf-8", "replace")[-most:].decode("utf-8", "ignore").encode()


def _ceiling_ms(moment: datetime) -> int:
    """Rounded up: a copy that is looked at a fraction of a millisecond early is early."""
    return -((EPOCH - moment) // timedelta(milliseconds=1))
