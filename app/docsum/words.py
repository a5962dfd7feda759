"""How amounts, times and texts are written, for people and for programs."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from unicodedata import east_asian_width

#: The status of a paid answer -> what the money went for.
ANSWERED = {
    "ok": "a usable answer",
    "refused": "the model declined",
    "truncated": "the answer was cut at its token limit",
    "invalid": "the answer was not in the form that was asked for",
    "lost": "the reply never came: counted as if served, at an estimated price",
}


def money(cost: Decimal) -> str:
    """US dollars, with as many digits as a small amount needs."""
    if not cost:
        return "$0"
    return f"${cost:.2f}" if cost >= 1 else f"${cost:.6f}".rstrip("0")


def span(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def clean(text: str) -> str:
    """With escapes for whatever could steer a terminal; lines stay lines."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def one_line(text: str, width: int) -> str:
    """The first line of a text, printable, cut with an ellipsis to so many columns of a terminal."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    clean = "".join(character if character.isprintable() else " " for character in first).strip()
    columns = list(accumulate(2 if east_asian_width(character) in "WF" else 1 for character in clean))
    if not columns or columns[-1] <= width:
        return clean
    return f"{clean[: bisect_left(columns, width)].rstrip()}…"


def sentence(text: str) -> str:
    """With its full stop: a person's reason may have none."""
    text = text.strip()
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat(timespec="milliseconds")
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return float(value)
        case _:
            return str(value)
