"""Schemas change by adding: every published version reads every other one, and none is edited."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from docsum.kafka import codec, results
from tests.support.evolution import breaks, families

SCHEMAS = Path(__file__).parents[2] / "schemas"
FAMILIES = families(SCHEMAS)
PUBLISHED = SCHEMAS / "published.sha256"
Schema = dict[str, Any]  # Any: a schema in JSON


@pytest.mark.parametrize("name", FAMILIES)
def test_every_published_version_reads_every_other_one(name: str) -> None:
    assert breaks([path.read_text() for path in FAMILIES[name]]) == []


def test_a_published_file_never_changes() -> None:
    """The list is what `sha256sum schemas/*.avsc` prints; a new version is a new line."""
    lines = [line.split("  ") for line in PUBLISHED.read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in SCHEMAS.glob("*.avsc")}
    assert there == listed


def test_the_code_knows_every_published_version_in_order() -> None:
    assert {name: [path.name for path in paths] for name, paths in FAMILIES.items()} == {
        "document_reference": list(codec.SCHEMA_FILES),
        "summary_result": list(results.SCHEMA_FILES),
    }


# -- the test itself: a breaking change is one that it finds -----------------------------------------------


def field(schema: Schema, name: str) -> Schema:
    found: Schema = next(each for each in schema["fields"] if each["name"] == name)
    return found


def changed(name: str, change: Callable[[Schema], object]) -> list[str]:
    """The newest published version, and one after it with this change."""
    old = FAMILIES[name][-1].read_text()
    new = copy.deepcopy(json.loads(old))
    change(new)
    return [old, json.dumps(new)]


BREAKING: dict[str, tuple[str, Callable[[Schema], object], str]] = {
    "a field removed": (
        "document_reference",
        lambda new: new["fields"].remove(field(new, "title")),
        "v2.title is gone.",
    ),
    "a field renamed": (
        "summary_result",
        lambda new: field(new, "summary").update(name="text"),
        "v2.summary is gone.",
    ),
    "a field added without a default": (
        "document_reference",
        lambda new: new["fields"].append({"name": "owner", "type": "string", "doc": "Who."}),
        "v2.owner was added without a default.",
    ),
    "a required field that got a default": (
        "document_reference",
        lambda new: field(new, "uri").update(default=""),
        "v2.uri has another default.",
    ),
    "another default": (
        "document_reference",
        lambda new: field(new, "operation").update(default="DELETE"),
        "v2.operation has another default.",
    ),
    "another logical type": (
        "document_reference",
        lambda new: field(new, "occurred_at")["type"].update(logicalType="timestamp-micros"),
        "v2.occurred_at has another logicalType.",
    ),
    "a logical type that is gone": (
        "summary_result",
        lambda new: field(new, "written_at").update(type="long"),
        'v2.written_at was {"type": "long", "logicalType": "timestamp-millis"} and is "long".',
    ),
    "a logical type inside a union": (
        "summary_result",
        lambda new: field(new, "run_id")["type"][1].pop("logicalType"),
        "v2.run_id[1] has another logicalType.",
    ),
    "another type": (
        "document_reference",
        lambda new: field(new, "force").update(type="int", default=0),
        'v2.force was "boolean" and is "int".',
    ),
    "a null that is gone": (
        "document_reference",
        lambda new: field(new, "size_bytes").update(type="long", default=0),
        'v2.size_bytes was ["null", "long"] and is "long".',
    ),
    "other elements": (
        "summary_result",
        lambda new: field(new, "key_points")["type"][1].update(items="bytes"),
        'v2.key_points[1].items was "string" and is "bytes".',
    ),
    "an enum without a default": (
        "summary_result",
        lambda new: field(new, "outcome")["type"].pop("default"),
        "the enum SummaryResult.outcome.Outcome has no default.",
    ),
    "a symbol that is gone": (
        "summary_result",
        lambda new: field(new, "outcome")["type"]["symbols"].remove("skipped"),
        "v2.outcome has lost the symbol skipped.",
    ),
    "another name": ("document_reference", lambda new: new.update(name="Reference"), "v2 has another name."),
    "another namespace": (
        "document_reference",
        lambda new: new.update(namespace="com.example"),
        "v2 has another namespace.",
    ),
    "an enum of another name": (
        "document_reference",
        lambda new: field(new, "operation")["type"].update(name="Kind"),
        "v2.operation has another name.",
    ),
    "a field without a word": (
        "summary_result",
        lambda new: new["fields"].append({"name": "cost", "type": "string", "default": ""}),
        "v2: SummaryResult.cost is not documented.",
    ),
}


@pytest.mark.parametrize("case", BREAKING)
def test_a_breaking_change_is_found(case: str) -> None:
    name, change, sentence = BREAKING[case]
    found = breaks(changed(name, change))
    assert any(sentence in each for each in found), found


def widened(new: Schema) -> None:
    """What may be done: a field with a default, a symbol, another explanation."""
    new["fields"].append(
        {"name": "owner", "type": ["null", "string"], "default": None, "doc": "Who looks after it."}
    )
    for each in new["fields"]:
        if isinstance(each["type"], dict) and each["type"]["type"] == "enum":
            each["type"]["symbols"].append("LATER")
    new["doc"] = "Explained better."


@pytest.mark.parametrize("name", FAMILIES)
def test_an_addition_is_not(name: str) -> None:
    assert breaks(changed(name, widened)) == []


def test_an_old_reader_makes_unknown_of_a_later_symbol_and_passes_over_a_later_field() -> None:
    old, new = (parse_schema(json.loads(text)) for text in changed("summary_result", widened))
    later = {"document_id": "a", "version": "0", "outcome": "LATER", "occurred_at": 1, "written_at": 2}
    stream = BytesIO()
    schemaless_writer(stream, new, later | {"owner": "legal"})
    stream.seek(0)
    found = schemaless_reader(stream, new, old)
    assert isinstance(found, dict)
    assert (found["outcome"], "owner" in found) == ("UNKNOWN", False)
