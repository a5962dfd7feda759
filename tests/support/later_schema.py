"""A later version of the event's schema, as a producer and a worker of a later docsum would have it.

Run as a module it is `docsum worker` of that docsum: it also knows the schema in its home, and reads with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from fastavro import parse_schema, schemaless_writer

from docsum import cli
from docsum.kafka import codec

FILE = "later.avsc"


def later_schema() -> str:
    """What may be done to a schema: a field with a default, and a symbol of an enum that has one."""
    schema = json.loads(codec.written_schema())
    schema["fields"].insert(
        3, {"name": "owner", "type": ["null", "string"], "default": None, "doc": "Who looks after it."}
    )
    (operation,) = (field for field in schema["fields"] if field["name"] == "operation")
    operation["type"]["symbols"].append("MOVE")
    return json.dumps(schema)


def encoded(text: str, fields: Mapping[str, object], schema_id: int | None = None) -> bytes:
    """An event as a producer with this schema writes it: framed where there is an id of the registry."""
    stream = BytesIO()
    head = codec.single_object_header(text) if schema_id is None else b"\x00" + schema_id.to_bytes(4, "big")
    stream.write(head)
    schemaless_writer(stream, parse_schema(json.loads(text)), fields, strict_allow_default=True)
    return stream.getvalue()


if __name__ == "__main__":
    # An absolute path stands for itself when it is joined to the folder of the others.
    codec.SCHEMA_FILES = (*codec.SCHEMA_FILES, str(Path(os.environ["DOCSUM_HOME"]).absolute() / FILE))  # type: ignore[assignment]  # one more
    cli.main()
