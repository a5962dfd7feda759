"""What of a Word document's styles and lists matters for its text, and the names of WordprocessingML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_MAIN = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",  # the strict form
)
_PREFIXES = {
    **dict.fromkeys(_MAIN, ""),
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc:",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m:",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m:",
}

_HEADING = re.compile(r"heading ?([1-9])")
_BODY = 9  # the outline level of what is no heading
_BASES = 20  # styles that one may stand on

Attributes = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Style:
    """What of a paragraph or character style matters for the text; None: as in the style it stands on."""

    heading: int | None = None  # 1 to 9, 0: none
    hidden: bool | None = None
    number_id: str | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a list."""

    ordered: bool = False
    marked: bool = True
    start: int = 1


@dataclass(frozen=True, slots=True)
class Sheet:
    """Styles by their id, list levels by number id and depth."""

    styles: Mapping[str, Style] = field(default_factory=dict)
    levels: Mapping[tuple[str, int], Level] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)  # number id -> the list that it counts in


def read_styles(root: Any | None) -> dict[str, Style]:  # Any: an untyped library's element
    """The styles of `styles.xml`, each with what it takes from those that it stands on."""
    found: dict[str, tuple[Style, str]] = {}
    for element in _all(root, "style"):
        name = _value(_first(element, "name")).lower()
        outline = number_of(_value(_first(element, "pPr", "outlineLvl")))
        numbering = _first(element, "pPr", "numPr")
        style = Style(
            heading=heading_of(name, outline),
            hidden=is_on(vanish.attrib) if (vanish := _first(element, "rPr", "vanish")) is not None else None,
            number_id=_value(_first(numbering, "numId")) or None,
            level=number_of(_value(_first(numbering, "ilvl"))),
        )
        found[attribute(element.attrib, "styleId")] = (style, _value(_first(element, "basedOn")))
    return {identity: _inherited(found, identity) for identity in found}


def heading_of(name: str, outline: int | None) -> int | None:
    """Depth of the heading that a style's name in lower case or an outline level (from 0) makes; 0: none."""
    if outline is not None:
        return 0 if outline >= _BODY else outline + 1
    match = _HEADING.fullmatch(name)
    return int(match[1]) if match else 1 if name == "title" else None


def _inherited(found: Mapping[str, tuple[Style, str]], identity: str) -> Style:
    heading = hidden = number_id = level = None
    for _ in range(_BASES):
        if identity not in found:
            break
        style, identity = found[identity]
        heading = style.heading if heading is None else heading
        hidden = style.hidden if hidden is None else hidden
        number_id = style.number_id if number_id is None else number_id
        level = style.level if level is None else level
    return Style(heading, hidden, number_id, level)


def read_numbering(
    root: Any | None,
) -> tuple[dict[tuple[str, int], Level], dict[str, str]]:  # Any: as above
    """The levels and lists of `numbering.xml`: see `Sheet`."""
    abstract = {
        attribute(element.attrib, "abstractNumId"): {
            number_of(attribute(level.attrib, "ilvl")) or 0: _level(level) for level in _all(element, "lvl")
        }
        for element in _all(root, "abstractNum")
    }
    levels: dict[tuple[str, int], Level] = {}
    lists: dict[str, str] = {}
    for element in _all(root, "num"):
        number_id = attribute(element.attrib, "numId")
        base = _value(_first(element, "abstractNumId"))
        for depth, level in abstract.get(base, {}).items():
            levels[number_id, depth] = level
        restarts = _first(element, "lvlOverride", "startOverride") is not None
        lists[number_id] = f"{base}/{number_id}" if restarts else base
    return levels, lists


def _level(element: Any) -> Level:  # Any: as above
    form = _value(_first(element, "numFmt")) or "decimal"
    start = number_of(_value(_first(element, "start")))
    return Level(form not in ("bullet", "none"), form != "none", 1 if start is None else start)


def _all(root: Any | None, name: str) -> list[Any]:  # Any: as above
    return [] if root is None else [child for child in root if short_name(child.tag) == name]


def _first(element: Any | None, *path: str) -> Any | None:  # Any: as above
    for name in path:
        element = next(iter(_all(element, name)), None)
    return element


def _value(element: Any | None) -> str:  # Any: as above
    return "" if element is None else attribute(element.attrib, "val")


# -- names ---------------------------------------------------------------------------------------------------


@lru_cache(4096)
def short_name(tag: Any) -> str:  # Any: a name, or lxml's mark for a comment
    """The local name of an element that we know, with a prefix for those of other namespaces than Word's."""
    if not isinstance(tag, str) or not tag.startswith("{"):
        return "?"
    namespace, _, name = tag[1:].partition("}")
    prefix = _PREFIXES.get(namespace)
    return "?" if prefix is None else prefix + name


def attribute(attributes: Attributes, name: str) -> str:
    found = (attributes.get(f"{{{namespace}}}{name}") for namespace in _MAIN)
    return next((value for value in found if value is not None), "")


def is_on(attributes: Attributes) -> bool:
    return attribute(attributes, "val") not in ("0", "false", "off")


def number_of(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
