"""Results as an upstream system reads them: the schema file and the bytes, nothing of docsum's own code."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader

SCHEMAS = Path(__file__).parents[2] / "schemas"
RESULT = parse_schema(json.loads((SCHEMAS / "summary_result.v1.avsc").read_text()))
FINGERPRINT = bytes.fromhex("c3014019c911e808ba91")


def read_result(value: bytes) -> dict[str, Any]:
    """The fields of a result in single-object encoding; no byte may be left over."""
    assert value[:10] == FINGERPRINT, value[:10].hex()
    return read_body(value[10:])


def read_body(body: bytes) -> dict[str, Any]:
    """The same of what stands behind a header."""
    stream = BytesIO(body)
    found: dict[str, Any] = schemaless_reader(stream, RESULT, None)  # type: ignore[assignment]  # a record
    assert not stream.read()
    return found
