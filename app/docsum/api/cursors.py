"""Where a page ended, as text that a client hands back. It holds nothing that the page did not show."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

from docsum.api.problems import Refused
from docsum.models import Coordinates, from_ms, to_ms


def after_text(text: str) -> str:
    """The cursor after an entry that is ordered by this text."""
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def text(cursor: str | None) -> str:
    """What `after_text` was given; empty without a cursor. Raises 422 for what is none."""
    if not cursor:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return base64.b64decode(padded, b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise _unknown() from error


def after_run(created_at: datetime, run_id: UUID) -> str:
    """The cursor after a run."""
    return after_text(f"{to_ms(created_at)} {run_id}")


def run(cursor: str | None) -> tuple[datetime, UUID] | None:
    """What `after_run` was given. Raises 422."""
    if not cursor:
        return None
    moment, _, run_id = text(cursor).partition(" ")
    try:
        return from_ms(int(moment)), UUID(run_id)
    except (ValueError, OverflowError) as error:
        raise _unknown() from error


def after_place(place: Coordinates) -> str:
    """The cursor after a record."""
    return after_text(f"{place.topic} {place.partition} {place.offset}")


def place(cursor: str | None) -> Coordinates | None:
    """What `after_place` was given. Raises 422."""
    if not cursor:
        return None
    parts = text(cursor).split(" ")
    try:
        topic, partition, offset = parts
        found = Coordinates(topic, int(partition), int(offset))
    except ValueError as error:
        raise _unknown() from error
    if not (0 <= found.partition < 2**31 and 0 <= found.offset < 2**63):
        raise _unknown()
    return found


def _unknown() -> Refused:
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "cursor: it is none of ours; leave it out to begin anew.")
