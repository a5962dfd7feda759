"""How values look on the page: the templates, and the filters that they use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from hashlib import sha256
from importlib.resources import files
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from docsum.words import clean, money, span

_JOINERS = "\u200c\u200d\u00ad\t"  # belong to the words of many languages
_CODE = re.compile(r"`([^`]+)`")
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}


@cache
def environment() -> Environment:
    """The templates. Whatever they print is made visible, then escaped."""
    found = Environment(
        loader=PackageLoader("docsum.api.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_visible,
    )
    found.filters.update(
        ago=ago,
        asset=asset,
        code=code,
        moment=moment,
        stretch=stretch,
        count=count,
        cut=cut,
        money=money,
        percent=percent,
        plural=plural,
        prose=prose,
        query=query,
        span=span,
        squeeze=squeeze,
        url=url,
        value=value,
        word=word,
    )
    return found


def has(template: str) -> bool:
    """Whether there is such a template."""
    return template in environment().list_templates()


def static(name: str) -> tuple[bytes, str] | None:
    """A file of the folder `static`, and its media type."""
    return _statics().get(name)


@cache
def _statics() -> Mapping[str, tuple[bytes, str]]:
    """All of them, by name: what is asked for by whoever comes is looked up, and never kept."""
    folder = files("docsum.api.pages") / "static"
    typed = ((file, _TYPES.get(file.name.rpartition(".")[2])) for file in folder.iterdir())
    return {file.name: (file.read_bytes(), media_type) for file, media_type in typed if media_type}


def asset(name: str) -> str:
    """The address of a file of ours; another one when its content is another."""
    found = static(name)
    digest = sha256(found[0]).hexdigest()[:12] if found else ""
    return f"/static/{name}?v={digest}"


def visible(text: str) -> str:
    """With escapes for what hides or turns other characters round; any kind of space is a space."""
    return clean("".join(" " if unicodedata.category(each) == "Zs" else each for each in text))


def _visible(printed: object) -> object:
    if isinstance(printed, Markup) or not isinstance(printed, str):
        return printed
    return visible(printed)


def prose(text: str) -> Markup:
    """A text to read: what joins letters in it is no trick."""
    return escape("".join(each if each in _JOINERS else visible(each) for each in text))


def value(text: str) -> Markup:
    """Inside a field of a form: what is sent back must be what it was."""
    return escape(text)


def code(sentence: str) -> Markup:
    """A sentence of ours, with its `commands` set apart."""
    parts = _CODE.split(visible(sentence))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(parts)
    )


def count(number: int) -> str:
    """With commas between thousands."""
    return f"{number:,}"


def plural(number: int, one: str, many: str = "") -> str:
    """`1 document`, `2,000 documents`."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def percent(share: float) -> str:
    """Of 1. Never 100 % before all is there, never 0 % once something is."""
    shown = round(share * 100)
    if shown == 100 and share < 1:
        shown = 99
    return "<1 %" if shown == 0 and share > 0 else f"{shown} %"


def cut(text: str, most: int) -> str:
    """The beginning of a text that is too long for its place."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def squeeze(text: str, most: int) -> str:
    """Both ends of a name that is too long for its place: of an address the end tells the most."""
    head = most // 3
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def word(name: str) -> str:
    """A state or reason, as one reads it."""
    return name.replace("_", "-")


def url(text: str) -> str:
    """As a part of an address."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def query(values: Mapping[str, str | int | None]) -> str:
    """The end of an address; what is empty is left out."""
    kept = {
        name: str(each).encode("utf-8", "surrogatepass") for name, each in values.items() if each is not None
    }
    text = urlencode({name: each for name, each in kept.items() if each})
    return f"?{text}" if text else ""


@pass_context
def ago(context: Context, at: datetime) -> Markup:
    """`5 min ago`, with the exact time in UTC behind it."""
    now: datetime = context["now"]
    exact = at.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact, moment(at), distance((now - at).total_seconds())
    )


def moment(at: datetime) -> str:
    """The exact time."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def stretch(step: timedelta) -> str:
    """Of a whole number of some unit."""
    return distance(-step.total_seconds()).removeprefix("in ")


def distance(seconds: float) -> str:
    """How far from now, in one unit."""
    away = abs(seconds)
    if away < 1:
        return "just now"
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if away >= (2 * size if size == 86_400 else size):
            return f"{away // size:.0f} {name} ago" if seconds > 0 else f"in {away // size:.0f} {name}"
    return f"{away:.0f} s ago" if seconds > 0 else f"in {away:.0f} s"


def dollars(amount: Decimal | float) -> str:
    """For a field of a form."""
    return f"{Decimal(str(amount)).normalize():f}"
