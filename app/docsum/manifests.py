"""Lists of documents: JSON lines, or CSV with a header. A bad line is told and the rest goes on.

A line has `document_id`, `uri` (an address, or a path from the manifest's folder) and, if known,
`source_version`, `media_type`, `size_bytes`, `title` and attributes: an object in JSON, columns named
`attributes.<name>` in CSV. An unknown field is an error, since it may be a misspelt one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO

from docsum.errors import DocsumError

LONGEST_LINE = 1_048_576  # bytes

_FIELDS = ("document_id", "uri", "source_version", "media_type", "size_bytes", "title")
_ATTRIBUTE = "attributes."  # before the name of an attribute that is a column
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_TOO_LONG = "\ud800"  # stands for a line that was cut; no decoder gives it


class NoManifest(DocsumError):
    """This is not a list of documents."""


@dataclass(frozen=True, slots=True)
class Line:
    """A document as its line names it."""

    document_id: str
    uri: str
    source_version: str
    media_type: str | None
    size_bytes: int | None
    title: str | None
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BadLine:
    """What is wrong with a line."""

    problem: str


@dataclass(frozen=True, slots=True)
class Head:
    """The first line that is not blank: what the manifest is written in."""

    number: int
    text: str
    columns: tuple[str, ...]  # of a CSV; empty for JSON lines
    delimiter: str = ","


class _Bad(Exception):
    """The line cannot be used; the message says why."""


_Row = Callable[[], Mapping[str, object]]  # the fields of a row; raises _Bad


def read_head(stream: BinaryIO, name: str) -> Head:
    """The head, the stream standing after it; an empty manifest is one too. Raises NoManifest."""
    lines = enumerate(_lines(stream, first=True), start=1)
    number, text = next(((number, text) for number, text in lines if text.strip()), (1, ""))
    if not text or text.lstrip().startswith("{"):
        return Head(number, text, ())
    delimiter = max(",;\t", key=text.count)
    columns = tuple(column.strip() for column in next(csv.reader([text], delimiter=delimiter)))
    if not {"document_id", "uri"} <= set(columns):
        raise NoManifest(
            f"{name} is no manifest: write JSON lines, or a CSV with the columns document_id and uri."
        )
    for column in columns:
        if column not in _FIELDS and not column.startswith(_ATTRIBUTE):
            known = ", ".join(_FIELDS)
            raise NoManifest(
                f"{name} has the column {column!r}: call it attributes.{column} or one of {known}."
            )
    return Head(number, text, columns, delimiter)


def read_lines(stream: BinaryIO, head: Head) -> Iterator[tuple[int, Line | BadLine]]:
    """Line numbers and documents, from a stream that stands after its head."""
    texts = chain([head.text], _lines(stream, first=False))
    rows = _csv_rows(texts, head) if head.columns else _json_rows(texts)
    for number, row in rows:
        try:
            yield head.number + number, _line(row())
        except _Bad as bad:
            yield head.number + number, BadLine(str(bad))


def _lines(stream: BinaryIO, first: bool) -> Iterator[str]:
    """A line that is not UTF-8 holds surrogates; of one that is too long nothing is kept."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield _TOO_LONG + "\n"
        else:
            yield line.decode("utf-8-sig" if first else "utf-8", errors="surrogateescape")
        first = False


def _json_rows(texts: Iterable[str]) -> Iterator[tuple[int, _Row]]:
    for number, text in enumerate(texts):
        if text.strip():
            yield number, partial(_json_fields, text)


def _json_fields(text: str) -> Mapping[str, object]:
    _check_text(text)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise _Bad("it is not valid JSON") from None
    if not isinstance(fields, dict):
        raise _Bad("it is not a JSON object")
    unknown = next((name for name in fields if name not in (*_FIELDS, "attributes")), None)
    if unknown is not None:
        raise _Bad(f"there is no field {unknown!r}; put it into attributes")
    return fields


def _csv_rows(texts: Iterable[str], head: Head) -> Iterator[tuple[int, _Row]]:
    """The number is that of the last line of a row: a cell may hold line breaks."""
    reader = csv.reader(texts, delimiter=head.delimiter)
    next(reader)  # the columns
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num - 1, partial(_csv_failed, str(error))
        else:
            if cells:
                yield reader.line_num - 1, partial(_csv_fields, cells, head.columns)


def _csv_failed(problem: str) -> Mapping[str, object]:
    raise _Bad(f"it is not valid CSV: {problem}")


def _csv_fields(cells: Sequence[str], columns: Sequence[str]) -> Mapping[str, object]:
    _check_text("".join(cells))
    if len(cells) != len(columns):
        raise _Bad(f"it has {len(cells)} cells, the header has {len(columns)}")
    filled = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
    given = {name: cell for name, cell in filled.items() if name.startswith(_ATTRIBUTE)}
    return {
        **{name: cell for name, cell in filled.items() if name in _FIELDS},
        "attributes": {name.removeprefix(_ATTRIBUTE): cell for name, cell in given.items()},
    }


def _check_text(text: str) -> None:
    if _TOO_LONG in text:
        raise _Bad(f"it is longer than {LONGEST_LINE} bytes")
    if not text.isascii() and _SURROGATE.search(text):
        raise _Bad("it is not UTF-8")


def _line(fields: Mapping[str, object]) -> Line:
    return Line(
        document_id=_needed(fields, "document_id"),
        uri=_needed(fields, "uri"),
        source_version=_text(fields, "source_version") or "",
        media_type=_text(fields, "media_type"),
        size_bytes=_size(fields.get("size_bytes")),
        title=_text(fields, "title"),
        attributes=_attributes(fields.get("attributes")),
    )


def _needed(fields: Mapping[str, object], name: str) -> str:
    text = _text(fields, name)
    if not text:
        raise _Bad(f"{name} is missing")
    return text


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Bad(f"{name} is not text")
    if not value.isascii() and _SURROGATE.search(value):  # JSON can spell half a pair
        raise _Bad(f"{name} is not valid Unicode")
    return value


def _size(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", str(value)):
        raise _Bad("size_bytes is not a number of bytes")
    return int(str(value))


def _attributes(value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Bad("attributes is not an object")
    return {name: _text(value, name) or "" for name in value}
