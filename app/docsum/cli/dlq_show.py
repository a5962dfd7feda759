"""`docsum dlq show`: all that is known of one dead letter."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.dlq_selection import age, unknown
from docsum.cli.documents import ids_of
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, WrongUsage, console, emit, finish, next_step, say, table
from docsum.errors import REASONS
from docsum.models import (
    DeadLetterRow,
    Delivery,
    from_ms,
)
from docsum.triage import (
    FIRST_BYTES,
    Entry,
    attempts_of,
    entry_of,
    event_fields,
    place_of,
    readable,
    replays_of,
    shown_fields,
)
from docsum.words import clean, money, plain

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A document id, a path, or coordinates: 'docsum.dlq[3]@17'.")
]


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
    from docsum.kafka.codec import EventCodec
    from docsum.kafka.dead_letters import DeadLetterTopic

    settings, place = reached(), place_of(text)
    topic = settings.topology().dead_letters
    async with (
        open_store(settings) as store,
        DeadLetterTopic(settings.kafka, topic) as records,
        EventCodec(settings.kafka.schema_registry_url) as codec,
    ):
        names = () if place else ids_of(text)
        found = await entry_of(store, records, codec, topic, place=place, document_ids=names)
    if found is None:
        raise unknown(text)
    if raw:
        return _write_raw(found)
    if json:
        emit(shown_fields(found))
        return Code.OK
    _print_entry(found, datetime.now(UTC))
    next_step(_next(found))
    return Code.OK


def _write_raw(found: Entry) -> Code:
    if found.delivery is None:
        raise WrongUsage(f"Kafka has deleted the record {found.at}: only `docsum dlq show` without --raw.")
    if found.delivery.value is None:
        say("The record has no value: it deletes the document of its key.")
    sys.stdout.buffer.write(found.delivery.value or b"")
    sys.stdout.buffer.flush()
    return Code.OK


def _print_entry(found: Entry, now: datetime) -> None:
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
            headers.add_row(clean(name), readable(value))
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


def _print_event(found: Entry) -> None:
    out = console()
    if found.event is not None:
        event = table("event", "")
        for name, value in event_fields(found.event).items():
            if value not in (None, "", {}, False):
                event.add_row(name, clean(str(plain(value)) if not isinstance(value, str) else value))
        out.print(event)
        return
    out.print(f"\nThe event is not readable: {clean(found.trouble)}", soft_wrap=True)
    value = (found.delivery.value if found.delivery else None) or b""
    for start in range(0, min(len(value), FIRST_BYTES), 16):
        part = value[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        out.print(f"  {start:04x}  {part.hex(' '):<47}  {text}")
    if len(value) > FIRST_BYTES:
        out.print(f"  {len(value):,} bytes in all: --raw writes them.")


def _print_attempts(delivery: Delivery) -> None:
    attempts = table("failed at", "stage", "reason", "error")
    for entry in attempts_of(delivery):
        attempts.add_row(*(clean(value) for value in entry.values()))
    if attempts.row_count:
        console().print(attempts)


def _next(found: Entry) -> str:
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
