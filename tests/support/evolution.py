"""What may not happen to a published schema: Avro's own check, and a lint for what that lets pass.

`avro.compatibility` sees neither another logical type (milliseconds that become microseconds) nor another
namespace, and takes a promotion (int to long) for harmless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

Node = Any  # of a schema in JSON: text, object or list
_FILE = re.compile(r"(\w+)\.v(\d+)\.avsc")


def families(folder: Path) -> dict[str, list[Path]]:
    """The versions of every schema, oldest first."""
    found: dict[str, dict[int, Path]] = {}
    for path in folder.glob("*.avsc"):
        match = _FILE.fullmatch(path.name)
        assert match, f"{path.name} is not NAME.vN.avsc"
        found.setdefault(match[1], {})[int(match[2])] = path
    for name, versions in found.items():
        assert sorted(versions) == list(range(1, len(versions) + 1)), (
            f"{name} has versions {sorted(versions)}"
        )
    return {name: [path for _, path in sorted(versions.items())] for name, versions in found.items()}


def breaks(versions: Sequence[str]) -> list[str]:
    """What is wrong with these versions of one schema, oldest first; one sentence each."""
    return [
        *(fault for number, text in enumerate(versions, 1) for fault in _faults(number, json.loads(text))),
        *(
            fault
            for one, other in permutations(enumerate(versions, 1), 2)
            for fault in _unreadable(one, other)
        ),
        *(
            fault
            for number, (old, new) in enumerate(pairwise(versions), 2)
            for fault in _changes(f"v{number}", json.loads(old), json.loads(new))
        ),
    ]


def _faults(number: int, schema: Node) -> Iterator[str]:
    """Of a version by itself."""
    for where, node in _nodes("", schema):
        if node.get("type") == "enum" and node.get("default") not in node["symbols"]:
            yield f"v{number}: the enum {where} has no default."
        for field in node.get("fields", ()):
            if not field.get("doc"):
                yield f"v{number}: {where}.{field['name']} is not documented."


def _unreadable(reader: tuple[int, str], writer: tuple[int, str]) -> Iterator[str]:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # avro's own has no types
    result = checker.get_compatibility(parse(reader[1]), parse(writer[1]))
    if result.compatibility is not SchemaCompatibilityType.compatible:
        why = ", ".join(sorted(result.messages))
        yield f"A reader of v{reader[0]} cannot read what v{writer[0]} writes: {why}"


def _changes(where: str, old: Node, new: Node) -> Iterator[str]:
    """What differs, but for what may: an added field with a default, an added symbol, another doc."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{where}[{number}]", *pair)
        return
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new:
            yield f"{where} was {json.dumps(old)} and is {json.dumps(new)}."
        return
    for key in ("name", "namespace", "logicalType", "default", "aliases", "order", "size"):
        if (old.get(key, ...), key in old) != (new.get(key, ...), key in new):
            yield f"{where} has another {key}."
    for key in ("type", "items", "values"):
        yield from _changes(where if key == "type" else f"{where}.{key}", old.get(key), new.get(key))
    if lost := [symbol for symbol in old.get("symbols", ()) if symbol not in new.get("symbols", ())]:
        yield f"{where} has lost the symbol {lost[0]}."
    yield from _field_changes(where, _by_name(old), _by_name(new))


def _field_changes(where: str, old: Mapping[str, Node], new: Mapping[str, Node]) -> Iterator[str]:
    for name, field in old.items():
        if name in new:
            yield from _changes(f"{where}.{name}", field, new[name])
        else:
            yield f"{where}.{name} is gone."
    for name in new.keys() - old.keys():
        if "default" not in new[name]:
            yield f"{where}.{name} was added without a default."


def _by_name(node: Mapping[str, Node]) -> dict[str, Node]:
    return {field["name"]: field for field in node.get("fields", ())}


def _nodes(where: str, node: Node) -> Iterator[tuple[str, Mapping[str, Node]]]:
    """Every object of a schema that is a type, with the path to it."""
    if isinstance(node, list):
        for branch in node:
            yield from _nodes(where, branch)
    elif isinstance(node, dict):
        if "type" in node and not isinstance(node["type"], str):
            yield from _nodes(where, node["type"])
            return
        here = f"{where}.{node['name']}".lstrip(".") if "name" in node else where
        yield here, node
        for field in node.get("fields", ()):
            yield from _nodes(f"{here}.{field['name']}", field["type"])
        for key in ("items", "values"):
            yield from _nodes(where, node.get(key))
