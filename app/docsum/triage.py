"""All that is known of one dead letter, for whoever sorts through them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from decimal import Decimal

from docsum.errors import REASONS, BrokerError, InvalidEvent
from docsum.models import Coordinates, DeadLetterFilter, DeadLetterRow, Delivery, DocumentReference
from docsum.ports import Codec, SummaryStore
from docsum.replay import PAGE, DeadLetterRecords, entry_at
from docsum.words import clean

FIRST_BYTES = 64  # shown of a value that cannot be decoded
_PLACE = re.compile(r"(?P<topic>\S+)\[(?P<partition>\d{1,9})\]@(?P<offset>\d{1,18})")


@dataclass(frozen=True, slots=True)
class Entry:
    """All that is known of one dead letter."""

    at: Coordinates
    document_id: str  # empty where the event cannot be decoded
    row: DeadLetterRow | None  # None: the store knows nothing of this record
    others: int  # further entries of the document
    delivery: Delivery | None  # None: Kafka has deleted the record
    event: DocumentReference | None
    trouble: str  # why there is no event
    paid: Decimal | None  # for the document, ever
    spent: Decimal | None  # by its run


async def entry_of(
    store: SummaryStore,
    records: DeadLetterRecords,
    codec: Codec,
    topic: str,
    *,
    place: Coordinates | None,
    document_ids: Sequence[str] = (),
) -> Entry | None:
    """The entry at a place of the dead-letter `topic`, or the newest of a document; None: there is none.

    Raises BrokerUnavailable or a StoreError.
    """
    everything = DeadLetterFilter(states=())
    rows: Sequence[DeadLetterRow] = ()
    if place is None:
        meant = replace(everything, documents=tuple(document_ids))
        rows = await store.newest_dead_letters(meant, PAGE)
    elif row := await entry_at(store, place):
        rows = (row,)
    at = rows[0].dead_letter if rows else place
    delivery = await _record(at, records) if at and at.topic == topic else None
    if at is None or not (rows or delivery):
        return None
    event, trouble = await _decoded(delivery, codec)
    if event and delivery and not rows:  # it came back since, and its entry is of the newer record
        meant = replace(everything, documents=(event.document_id,))
        found = await store.newest_dead_letters(meant, PAGE)
        rows = [row for row in found if row.origin == delivery.origin]
    run_id = rows[0].run_id if rows else event.run_id if event else None
    document_id = rows[0].document_id if rows else event.document_id if event else ""
    return Entry(
        at=at,
        document_id=document_id,
        row=rows[0] if rows else None,
        others=max(0, len(rows) - 1),
        delivery=delivery,
        event=event,
        trouble=trouble,
        paid=await store.paid_for(document_id) if document_id else None,
        spent=await store.spent(run_id) if run_id else None,
    )


async def _record(at: Coordinates, records: DeadLetterRecords) -> Delivery | None:
    async with aclosing(records.read([at])) as found:
        return (await anext(found))[1]


async def _decoded(delivery: Delivery | None, codec: Codec) -> tuple[DocumentReference | None, str]:
    """The event, or why there is none."""
    if delivery is None:
        return None, "Kafka has deleted the record."
    try:
        return await codec.decode(delivery), ""
    except (InvalidEvent, BrokerError) as error:
        return None, str(error)


def place_of(text: str) -> Coordinates | None:
    match = _PLACE.fullmatch(text)
    return Coordinates(match["topic"], int(match["partition"]), int(match["offset"])) if match else None


def replays_of(row: DeadLetterRow) -> int:
    """How often it was sent back; the row itself counts only those before it arrived."""
    return row.replay_count + (row.state == "replayed")


# -- as a program reads it -----------------------------------------------------------------------------------


def entry_fields(row: DeadLetterRow) -> dict[str, object]:
    return {
        "id": str(row.dead_letter),
        "document_id": row.document_id,
        "run_id": str(row.run_id) if row.run_id else None,
        "state": row.state,
        "reason": row.reason,
        "stage": row.stage,
        "message": row.message,
        "attempts": row.attempts,
        "replays": replays_of(row),
        "first_failed_at": row.first_failed_at,
        "failed_at": row.failed_at,
        "original": str(row.origin),
    }


def event_fields(event: DocumentReference) -> dict[str, object]:
    """An event as a program reads it."""
    return {
        "event_id": event.event_id,
        "document_id": event.document_id,
        "uri": event.uri,
        "source_version": event.source_version,
        "occurred_at": event.occurred_at,
        "media_type": event.media_type,
        "size_bytes": event.size_bytes,
        "title": event.title,
        "run_id": str(event.run_id) if event.run_id else None,
        "operation": event.operation.value,
        "force": event.force,
        "attributes": dict(event.attributes),
    }


def shown_fields(found: Entry) -> dict[str, object]:
    row, delivery = found.row, found.delivery
    known = REASONS.get(row.reason) if row else None
    value = delivery.value if delivery else None
    return {
        **(entry_fields(row) if row else {"id": str(found.at), "state": None}),
        "sentence": known.sentence if known else "",
        "hint": known.hint if known else "",
        "event": event_fields(found.event) if found.event else None,
        "trouble": found.trouble,
        "first_bytes": value[:FIRST_BYTES].hex() if value is not None and not found.event else None,
        "value_bytes": len(value) if value is not None else None,
        "key": readable(delivery.key) if delivery else None,
        "headers": {name: readable(each) for name, each in delivery.headers} if delivery else None,
        "attempt_log": attempts_of(delivery) if delivery else None,
        "cost_usd": found.paid,
        "run_cost_usd": found.spent,
    }


def attempts_of(delivery: Delivery) -> list[dict[str, str]]:
    """The attempt log of its headers; the last ten."""
    names = ("failed_at", "stage", "reason", "error")
    parts = (entry.split(",", 3) for entry in delivery.attempt_log.split(";"))
    return [dict(zip(names, part, strict=True)) for part in parts if len(part) == len(names)]


def readable(value: bytes | None) -> str:
    """The text of a header or key; hex where it is no UTF-8."""
    if value is None:
        return ""
    try:
        return clean(value.decode())
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
