"""`docsum ingest --check`: an event in a file, decoded as a worker would decode it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from docsum.cli.output import Code, WrongUsage, console, emit, next_step, say, table
from docsum.errors import InvalidEvent, SchemaUnknown, row_of
from docsum.models import Coordinates, Delivery, DocumentReference, to_ms
from docsum.sources import STDIN
from docsum.triage import event_fields

if TYPE_CHECKING:
    from docsum.settings import Settings


async def check_file(name: str, settings: Settings, as_json: bool) -> Code:
    """FAILURE when one of the events would be refused. Raises RegistryUnavailable."""
    from docsum.kafka.codec import EventCodec

    topic, found, refused = settings.topology().documents, 0, 0
    async with EventCodec(settings.kafka.schema_registry_url) as codec:
        for number, value in values(_content(name)):
            found += 1
            try:
                reference = await codec.decode(_delivery(value, topic))
            except (InvalidEvent, SchemaUnknown) as error:
                refused += 1
                problem, where = str(error), f"line {number}: " if number else ""
                if as_json:
                    emit({"ok": False, "line": number, "reason": row_of(error).reason, "problem": problem})
                else:
                    say(f"{where}It would be refused: {problem}")
                continue
            if as_json:
                emit({"ok": True, "line": number, "event": event_fields(reference)})
            else:
                _print(reference)
    if not found:
        raise WrongUsage(f"{name} is empty: it should hold the value of one record, or a JSON event a line.")
    if not refused:
        next_step("`docsum documents show ID` once it was published")
    return Code.FAILURE if refused else Code.OK


def values(content: bytes) -> Iterator[tuple[int | None, bytes]]:
    """The values in a file, with line numbers where every line is one."""
    if not content.strip():
        return
    lines = content.split(b"\n")
    begun = [line for line in lines if line.strip()]
    if len(begun) < 2 or not all(line.lstrip().startswith(b"{") for line in begun) or _is_json(content):
        text = content.strip()
        yield None, text if text.startswith(b"{") else content  # JSON in a file ends with a line break
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line.strip()


def _content(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == STDIN else Path(name).expanduser().read_bytes()
    except OSError as error:
        raise WrongUsage(f"{name} cannot be read: {error.strerror}.") from None


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _delivery(value: bytes, topic: str) -> Delivery:
    """As if it had been published just now."""
    at, now = Coordinates(topic, 0, 0), to_ms(datetime.now(UTC))
    return Delivery(at, None, value, (), now, at, now)


def _print(reference: DocumentReference) -> None:
    cells = table("field", "value")
    for name, value in event_fields(reference).items():
        cells.add_row(name, "" if value is None else str(value))
    console().print(cells)
