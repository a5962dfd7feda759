"""`docsum dlq show`: all that is known of one dead letter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.dlq_selection import age, entry_fields, place_of, replays_of, unknown
from docsum.cli.documents import ids_of
from docsum.cli.options import JsonObject
from docsum.cli.output import (
    Code,
    WrongUsage,
    clean,
    console,
    emit,
    finish,
    money,
    next_step,
    plain,
    say,
    table,
)
from docsum.errors import REASONS, BrokerError, InvalidEvent
from docsum.models import (
    Coordinates,
    DeadLetterFilter,
    DeadLetterRow,
    Delivery,
    DocumentReference,
    from_ms,
)
from docsum.replay import PAGE, entry_at

if TYPE_CHECKING:
    from docsum.ports import SummaryStore
    from docsum.settings import Settings

_FIRST_BYTES = 64  # shown of a value that cannot be decoded

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A document id, a path, or coordinates: 'docsum.dlq[3]@17'.")
]


@dataclass(frozen=True, slots=True)
class _Entry:
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


def show(
    entry: Id,
    raw: Annotated[bool, typer.Option("--raw", help="Only the bytes of the record's value.")] = False,
    json: JsonObject = False,
) -> None:
    """One dead letter: the event, why it failed, every attempt, its headers, and what to do.

    Of a document with several entries, the newest.

    \b
      docsum dlq show contracts/lease.pdf
      docsum dlq show 'docsum.dlq[3]@17'
      docsum dlq show 'docsum.dlq[3]@17' --json | jq .headers
      docsum dlq show 'docsum.dlq[3]@17' --raw | xxd | head
    """
    if raw and sys.stdout.isatty():
        raise WrongUsage("The bytes could upset the terminal: send --raw to a file, or pipe it into `xxd`.")
    finish(_show(entry, raw, json))


async def _show(text: str, raw: bool, json: bool) -> Code:
    from docsum.bootstrap import open_store

    settings = reached()
    async with open_store(settings) as store:
        found = await _find(text, store, settings)
    if raw:
        return _write_raw(found)
    if json:
        emit(_shown_fields(found))
        return Code.OK
    _print_entry(found, datetime.now(UTC))
    next_step(_next(found))
    return Code.OK


async def _find(text: str, store: SummaryStore, settings: Settings) -> _Entry:
    """Raises WrongUsage where there is nothing."""
    place, everything = place_of(text), DeadLetterFilter(states=())
    rows: Sequence[DeadLetterRow] = ()
    if place is None:
        meant = replace(everything, documents=tuple(ids_of(text)))
        rows = await store.newest_dead_letters(meant, PAGE)
    elif row := await entry_at(store, place):
        rows = (row,)
    at = rows[0].dead_letter if rows else place
    delivery = await _record(at, settings) if at else None
    if at is None or not (rows or delivery):
        raise unknown(text)
    event, trouble = await _decoded(delivery, settings)
    if event and delivery and not rows:  # it came back since, and its entry is of the newer record
        meant = replace(everything, documents=(event.document_id,))
        found = await store.newest_dead_letters(meant, PAGE)
        rows = [row for row in found if row.origin == delivery.origin]
    run_id = rows[0].run_id if rows else event.run_id if event else None
    document_id = rows[0].document_id if rows else event.document_id if event else ""
    return _Entry(
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


async def _record(at: Coordinates, settings: Settings) -> Delivery | None:
    from docsum.kafka.dead_letters import DeadLetterTopic

    topic = settings.topology().dead_letters
    if at.topic != topic:
        return None
    async with DeadLetterTopic(settings.kafka, topic) as records, aclosing(records.read([at])) as found:
        return (await anext(found))[1]


async def _decoded(delivery: Delivery | None, settings: Settings) -> tuple[DocumentReference | None, str]:
    """The event, or why there is none."""
    from docsum.kafka.codec import EventCodec

    if delivery is None:
        return None, "Kafka has deleted the record."
    async with EventCodec(settings.kafka.schema_registry_url) as codec:
        try:
            return await codec.decode(delivery), ""
        except (InvalidEvent, BrokerError) as error:
            return None, str(error)


def _write_raw(found: _Entry) -> Code:
    if found.delivery is None:
        raise WrongUsage(f"Kafka has deleted the record {found.at}: only `docsum dlq show` without --raw.")
    if found.delivery.value is None:
        say("The record has no value: it deletes the document of its key.")
    sys.stdout.buffer.write(found.delivery.value or b"")
    sys.stdout.buffer.flush()
    return Code.OK


def _print_entry(found: _Entry, now: datetime) -> None:
    out, row = console(), found.row
    out.print(clean(found.document_id) or "(an event that cannot be decoded)", soft_wrap=True)
    if row is not None:
        out.print(f"{row.dead_letter}, {row.state}, {_standing(row)}, failed {age(row.failed_at, now)} ago")
        if row.dead_letter != found.at:
            out.print(f"{found.at}, which is shown here, is its record from before the last replay.")
        known = REASONS.get(row.reason)
        out.print(f"\n{clean(row.reason)}: {known.sentence if known else ''}", soft_wrap=True)
        out.print(clean(row.message), soft_wrap=True)
        if known:
            out.print(f"What to do: {known.hint}", soft_wrap=True)
    else:
        out.print(
            f"{found.at}: the store has no entry for this record; replayed, it may have come back since."
        )
    _print_event(found)
    if found.delivery is not None:
        _print_attempts(found.delivery)
        headers = table("header", "value")
        for name, value in found.delivery.headers:
            headers.add_row(clean(name), _readable(value))
        out.print(headers)
        origin, published = found.delivery.origin, from_ms(max(0, found.delivery.origin_timestamp_ms))
        out.print(f"First published at {clean(str(origin))}, {published:%Y-%m-%d %H:%M:%S} UTC.")
    if found.paid is not None:
        out.print(f"The document has cost {money(found.paid)} so far.")
    if found.spent is not None:
        out.print(f"Its run has cost {money(found.spent)} so far.")
    if found.others:
        out.print(
            f"The document has {found.others:,} older entries: `docsum dlq ls --state all --document ID`."
        )


def _standing(row: DeadLetterRow) -> str:
    attempts = f"{row.attempts} attempt{'' if row.attempts == 1 else 's'}"
    replays = replays_of(row)
    return f"{attempts}, replayed {replays} time{'' if replays == 1 else 's'}" if replays else attempts


def _print_event(found: _Entry) -> None:
    out = console()
    if found.event is not None:
        event = table("event", "")
        for name, value in _event_fields(found.event).items():
            if value not in (None, "", {}, False):
                event.add_row(name, clean(str(plain(value)) if not isinstance(value, str) else value))
        out.print(event)
        return
    out.print(f"\nThe event is not readable: {clean(found.trouble)}", soft_wrap=True)
    value = (found.delivery.value if found.delivery else None) or b""
    for start in range(0, min(len(value), _FIRST_BYTES), 16):
        part = value[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        out.print(f"  {start:04x}  {part.hex(' '):<47}  {text}")
    if len(value) > _FIRST_BYTES:
        out.print(f"  {len(value):,} bytes in all: --raw writes them.")


def _print_attempts(delivery: Delivery) -> None:
    attempts = table("failed at", "stage", "reason", "error")
    for entry in _attempts(delivery):
        attempts.add_row(*(clean(value) for value in entry.values()))
    if attempts.row_count:
        console().print(attempts)


def _attempts(delivery: Delivery) -> list[dict[str, str]]:
    """The attempt log of its headers; the last ten."""
    names = ("failed_at", "stage", "reason", "error")
    parts = (entry.split(",", 3) for entry in delivery.attempt_log.split(";"))
    return [dict(zip(names, part, strict=True)) for part in parts if len(part) == len(names)]


def _next(found: _Entry) -> str:
    row = found.row
    if row is None or found.delivery is None:
        return "`docsum dlq ls`"
    match row.state:
        case "open":
            return f"`docsum dlq replay '{row.dead_letter}'`, once the cause is fixed"
        case "replayed":
            return "`docsum status`: it is on its way"
        case "parked":
            return "`docsum run` on its folder once it is repaired, or `docsum dlq discard`"
        case _:
            return "`docsum dlq ls`"


def _event_fields(event: DocumentReference) -> dict[str, object]:
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


def _shown_fields(found: _Entry) -> dict[str, object]:
    row, delivery = found.row, found.delivery
    known = REASONS.get(row.reason) if row else None
    value = delivery.value if delivery else None
    return {
        **(entry_fields(row) if row else {"id": str(found.at), "state": None}),
        "sentence": known.sentence if known else "",
        "hint": known.hint if known else "",
        "event": _event_fields(found.event) if found.event else None,
        "trouble": found.trouble,
        "first_bytes": value[:_FIRST_BYTES].hex() if value is not None and not found.event else None,
        "value_bytes": len(value) if value is not None else None,
        "key": _readable(delivery.key) if delivery else None,
        "headers": {name: _readable(each) for name, each in delivery.headers} if delivery else None,
        "attempt_log": _attempts(delivery) if delivery else None,
        "cost_usd": found.paid,
        "run_cost_usd": found.spent,
    }


def _readable(value: bytes | None) -> str:
    """The text of a header or key; hex where it is no UTF-8."""
    if value is None:
        return ""
    try:
        return clean(value.decode())
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
