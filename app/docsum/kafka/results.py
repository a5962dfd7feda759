"""Results for upstreams: what has become of a document, as a record of the compacted topic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from io import BytesIO
from types import TracebackType
from typing import Any

from fastavro import schemaless_writer

from docsum.kafka.codec import plain_schema, single_object_header
from docsum.kafka.schema_registry import SchemaRegistry
from docsum.models import Delivery, RecordCopy, Result, to_ms

SCHEMA_FILES = ("summary_result.v1.avsc",)  # oldest first; the last one is written
VERSION = "docsum-version"  # header of every result, deletions included: their value is null
CARRIED = frozenset({"traceparent", "tracestate"})  # headers of the event that its result has too


class ResultRecords:
    """Implements `ports.Results`: Avro, framed by the registry when one is configured."""

    def __init__(self, topic: str, registry_url: str = "") -> None:
        """Raises ConfigurationError for an address that is not http(s)."""
        self._topic = topic
        self._registry = SchemaRegistry(registry_url) if registry_url else None

    async def __aenter__(self) -> ResultRecords:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._registry is not None:
            await self._registry.aclose()

    async def of(self, delivery: Delivery, result: Result) -> RecordCopy:
        """By the document's id, whatever key the event had. Raises SchemaUnknown or RegistryUnavailable."""
        record = deletion(self._topic, result.document_id, result.version)
        carried = tuple((name, value) for name, value in delivery.headers if name in CARRIED)
        value = None if result.deleted else await self._encoded(result)
        return replace(record, value=value, headers=(*record.headers, *carried))

    async def _encoded(self, result: Result) -> bytes:
        text = _texts()[-1]
        if self._registry is None:
            header = _written()[1]
        else:
            header = b"\x00" + (await self._registry.id_of(f"{self._topic}-value", text)).to_bytes(4, "big")
        stream = BytesIO()
        stream.write(header)
        schemaless_writer(stream, _written()[0], _fields(result), strict=True)
        return stream.getvalue()


def deletion(topic: str, document_id: str, version: int) -> RecordCopy:
    """The record that takes back all that was told of a document."""
    return RecordCopy(topic, None, document_id.encode(), None, ((VERSION, version_text(version).encode()),))


def version_text(version: int) -> str:
    """UInt128 as text of one length, so that texts compare as the numbers do."""
    return f"{version:032x}"


def _fields(result: Result) -> Mapping[str, object]:
    summary = result.summary
    return {
        "document_id": result.document_id,
        "version": version_text(result.version),
        "outcome": result.state.value,
        "reason": result.reason,
        "run_id": None if result.run_id is None else str(result.run_id),
        "source_version": result.source_version,
        "occurred_at": to_ms(result.occurred_at),
        "written_at": to_ms(result.written_at),
        "title": summary and summary.title,
        "summary": summary and summary.summary,
        "key_points": summary and list(summary.key_points),
        "language": summary and summary.language,
        "document_type": summary and summary.document_type,
        "warnings": summary and list(summary.warnings),
        "model": summary and summary.model,
    }


def written_schema() -> str:
    """The text of the schema that we write results with."""
    return _texts()[-1]


@cache
def _texts() -> tuple[str, ...]:
    folder = files("docsum") / "schemas"
    return tuple((folder / name).read_text("utf-8") for name in SCHEMA_FILES)


@cache
def _written() -> tuple[Any, bytes]:  # Any: fastavro's own type for a schema
    """The schema that we write, and the header of its single-object encoding."""
    return plain_schema(_texts()[-1]), single_object_header(_texts()[-1])
