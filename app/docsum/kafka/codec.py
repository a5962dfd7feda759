"""The event: record bytes to a checked reference, and a new event to bytes.

Three encodings, told apart by the first bytes: Confluent framing (`00`), Avro single-object encoding
(`C3 01`) and JSON (`{`), which may also be an S3 event notification. A null value deletes the record's key.
What is wrong is said in one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from io import BytesIO
from random import Random
from types import TracebackType
from typing import Any
from uuid import UUID, uuid5

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

from docsum.errors import InvalidEvent, SchemaUnknown
from docsum.kafka import notifications
from docsum.kafka.schema_registry import SchemaRegistry
from docsum.models import Delivery, DocumentReference, Operation, event_version, from_ms, to_ms

SCHEMA_FILES = ("document_reference.v1.avsc",)  # oldest first; the last one is written
SCHEMES = ("file", "s3", "gs", "az", "https", "http")
LONGEST_ID = 512  # characters
LONGEST_URI = 8_192  # characters

_FRAMED = b"\x00"
_SINGLE_OBJECT = b"\xc3\x01"
_AHEAD_MS = timedelta(hours=24) // timedelta(milliseconds=1)
_LAST_MS = to_ms(datetime(9999, 12, 31, tzinfo=UTC))  # below 2**48, so it fits its part of the version
_LARGEST = 2**63 - 1  # Avro long
#: Ids need no secrecy, and to ask the system for each takes ten times as long.
_CHANCE = Random()  # noqa: S311
_EVENT_IDS = UUID("7c0c4b0e-5f0b-5d0e-9a44-0d8f3c1f6a27")  # name space of the derived event ids
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_URI = re.compile(rf"(?:{'|'.join(SCHEMES)}):.", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Event:
    """A checked announcement: a `DocumentReference` that no record has given a version yet."""

    event_id: str
    document_id: str
    uri: str
    occurred_at: datetime  # aware, whole milliseconds
    source_version: str
    media_type: str | None
    size_bytes: int | None
    title: str | None
    run_id: UUID | None
    operation: Operation
    force: bool
    attributes: Mapping[str, str]


def new_event(
    document_id: str,
    uri: str,
    *,
    occurred_at: datetime,
    event_id: str = "",
    source_version: str = "",
    media_type: str | None = None,
    size_bytes: int | None = None,
    title: str | None = None,
    run_id: UUID | None = None,
    operation: Operation = Operation.UPSERT,
    force: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> Event:
    """An event of our own, with a random id unless one is given.

    `occurred_at` must be aware. Raises InvalidEvent for whatever a worker would refuse later.
    """
    fields = {
        "event_id": event_id or str(UUID(int=_CHANCE.getrandbits(128), version=4)),
        "document_id": document_id,
        "uri": uri,
        "source_version": source_version,
        "media_type": media_type,
        "size_bytes": size_bytes,
        "title": title,
        "run_id": run_id,
        "operation": operation,
        "force": force,
        "attributes": attributes,
    }
    return Event(**_checked(fields, _milliseconds(occurred_at)))


class EventCodec:
    """Decodes every encoding; encodes Avro, framed by the registry when one is configured."""

    def __init__(self, registry_url: str = "") -> None:
        """Raises ConfigurationError for an address that is not http(s)."""
        self._contract = _contract()
        self._registry = SchemaRegistry(registry_url) if registry_url else None
        self._registered: dict[int, Any] = {}  # parsed schemas by their id, which never changes its meaning

    async def __aenter__(self) -> EventCodec:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._registry is not None:
            await self._registry.aclose()

    async def decode(self, delivery: Delivery) -> DocumentReference:
        """The same reference and version on every delivery of an event, retry and replay included.

        Raises InvalidEvent, SchemaUnknown or RegistryUnavailable.
        """
        value = delivery.value
        if value is None:
            fields = _deletion(delivery.key)
        elif value.startswith(_SINGLE_OBJECT):
            fields = self._single_object(value)
        elif value.startswith(_FRAMED):
            fields = await self._framed(value)
        elif value.startswith(b"{"):
            fields = _json(value)
            if notifications.is_notification(fields):
                fields = notifications.event_fields(fields)
        else:
            raise InvalidEvent(
                "The value is empty." if not value else "The value is neither Avro (00, C3 01) nor JSON ({)."
            )
        return _reference(fields, delivery)

    async def encode(self, event: Event, topic: str) -> bytes:
        """The record value for that topic.

        With a registry our schema must be registered under `<topic>-value`, as `docsum setup schemas` does.
        Raises SchemaUnknown or RegistryUnavailable.
        """
        stream = BytesIO()
        if self._registry is None:
            stream.write(self._contract.header)
        else:
            schema_id = await self._registry.id_of(f"{topic}-value", self._contract.text)
            stream.write(_FRAMED + schema_id.to_bytes(4, "big"))
        # strict: a field that the schema lacks is an error, not dropped.
        schemaless_writer(stream, self._contract.schema, _record(event), strict=True)
        return stream.getvalue()

    def _single_object(self, value: bytes) -> Mapping[str, object]:
        header = value[: len(self._contract.header)]
        if len(header) < len(self._contract.header):
            raise InvalidEvent("The value ends within the fingerprint of its schema.")
        writer = self._contract.writers.get(header)
        if writer is None:
            raise SchemaUnknown(f"This docsum knows no Avro schema with fingerprint {header[2:].hex()}.")
        reader = None if writer is self._contract.schema else self._contract.schema
        return _read(value, len(header), writer, reader)

    async def _framed(self, value: bytes) -> Mapping[str, object]:
        if self._registry is None:
            raise InvalidEvent(
                "The value needs a schema registry, but DOCSUM_KAFKA__SCHEMA_REGISTRY_URL is not set."
            )
        if len(value) < 5:
            raise InvalidEvent("The value ends within its schema id.")
        schema_id = int.from_bytes(value[1:5], "big")
        writer = self._registered.get(schema_id)
        if writer is None:
            text = await self._registry.text_of(schema_id)
            writer = self._registered[schema_id] = _parsed(text, schema_id)
        return _read(value, 5, writer, self._contract.schema)


@dataclass(frozen=True, slots=True)
class _Contract:
    text: str  # of the schema that we write
    schema: Any  # the same, parsed; Any: fastavro's own type for a schema
    header: bytes  # C3 01 and its fingerprint
    writers: Mapping[bytes, Any]  # every schema that we have published, by header


@cache
def _contract() -> _Contract:
    folder = files("docsum") / "schemas"
    texts = [(folder / name).read_text("utf-8") for name in SCHEMA_FILES]
    writers = {single_object_header(text): plain_schema(text) for text in texts}
    header = single_object_header(texts[-1])
    return _Contract(texts[-1], writers[header], header, writers)


def written_schema() -> str:
    """The text of the schema that we write events with."""
    return _contract().text


def single_object_header(text: str) -> bytes:
    """fastavro's fingerprint is hex in the byte order of the encoding, little-endian."""
    canonical = to_parsing_canonical_form(json.loads(text))
    return _SINGLE_OBJECT + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))


def plain_schema(text: str) -> Any:
    """The schema without logical types: our own checks say better what is wrong, and read no local time."""
    return parse_schema(
        json.loads(text, object_hook=lambda node: {key: node[key] for key in node if key != "logicalType"})
    )


def _parsed(text: str, schema_id: int) -> Any:
    """A producer's schema with its logical types, so that its unit of time is understood.

    One of another name would not fit either; but that its name is said tells of a registry that was emptied.
    """
    try:
        parsed: Any = parse_schema(json.loads(text))
    except Exception as error:  # fastavro documents no type of error here
        raise InvalidEvent(f"Schema {schema_id} of the registry is not an Avro schema.") from error
    name, ours = parsed["name"] if isinstance(parsed, dict) else str(parsed), _contract().schema["name"]
    if name.rpartition(".")[2] != ours.rpartition(".")[2]:
        raise InvalidEvent(f"Schema {schema_id} of the registry is {name}, not {ours}.")
    return parsed


def _read(value: bytes, start: int, writer: Any, reader: Any) -> Mapping[str, object]:
    stream = BytesIO(value)
    stream.seek(start)
    try:
        fields = schemaless_reader(stream, writer, reader)
    except (
        Exception
    ) as error:  # EOFError, ValueError, IndexError, SchemaResolutionError: fastavro promises none
        raise InvalidEvent(f"The value does not fit its Avro schema ({type(error).__name__}).") from error
    left = len(value) - stream.tell()
    if left:
        raise InvalidEvent(f"{left} bytes are left over after the Avro record.")
    if not isinstance(fields, dict):
        raise InvalidEvent("The Avro schema of the value is not a record.")
    return fields


def _json(value: bytes) -> Mapping[str, object]:
    try:
        fields = json.loads(value.decode("utf-8"))
        if b"\\u" in value:
            json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("The value is not valid JSON in UTF-8.") from error
    assert isinstance(fields, dict)  # it begins with a brace
    return fields


def _deletion(key: bytes | None) -> Mapping[str, object]:
    if key is None:
        raise InvalidEvent("A null value deletes the document of the record's key, but there is no key.")
    try:
        return {"document_id": key.decode("utf-8"), "operation": "DELETE"}
    except UnicodeDecodeError as error:
        raise InvalidEvent(
            "A null value deletes the document of the record's key, but it is not UTF-8."
        ) from error


def _reference(fields: Mapping[str, object], delivery: Delivery) -> DocumentReference:
    """What an encoding may leave out is taken from the original record, so that copies give the same."""
    published_ms = delivery.origin_timestamp_ms
    if not 0 <= published_ms <= _LAST_MS:
        raise InvalidEvent("The record has no timestamp in milliseconds.")
    if fields.get("event_id") in (None, ""):
        fields = {**fields, "event_id": str(uuid5(_EVENT_IDS, str(delivery.origin)))}
    if fields.get("occurred_at") is None:
        fields = {**fields, "occurred_at": published_ms}
    occurred_ms = _milliseconds(fields["occurred_at"])
    if occurred_ms > published_ms + _AHEAD_MS:
        raise InvalidEvent("occurred_at is more than 24 hours after the record was published.")
    checked = _checked(fields, occurred_ms)
    version = event_version(checked["occurred_at"], published_ms, checked["event_id"])
    return DocumentReference(version=version, **checked)


def _checked(fields: Mapping[str, object], occurred_ms: int) -> dict[str, Any]:
    """What an Event and a DocumentReference share; Any: each value was checked for its type here.

    Fields that the contract does not know are passed over: a later version may have added them.
    """
    if not 0 <= occurred_ms <= _LAST_MS:
        raise InvalidEvent(
            "occurred_at is before 1970." if occurred_ms < 0 else "occurred_at is after the year 9999."
        )
    operation = _operation(fields.get("operation"))
    return {
        "event_id": _identity(fields, "event_id"),
        "document_id": _identity(fields, "document_id"),
        "uri": _uri(fields, operation),
        "occurred_at": from_ms(occurred_ms),
        "source_version": _text(fields, "source_version") or "",
        "media_type": _text(fields, "media_type"),
        "size_bytes": _size(fields.get("size_bytes")),
        "title": _text(fields, "title"),
        "run_id": _run_id(fields.get("run_id")),
        "operation": operation,
        "force": _flag(fields, "force"),
        "attributes": _attributes(fields.get("attributes")),
    }


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidEvent(f"{name} is not text.")
    return value


def _identity(fields: Mapping[str, object], name: str) -> str:
    value = _text(fields, name)
    if not value:
        raise InvalidEvent(f"{name} is missing.")
    if len(value) > LONGEST_ID:
        raise InvalidEvent(f"{name} has {len(value)} characters; {LONGEST_ID} are allowed.")
    if _UNPRINTABLE.search(value):
        raise InvalidEvent(f"{name} holds a control character.")
    return value


def _uri(fields: Mapping[str, object], operation: Operation) -> str:
    value = _text(fields, "uri") or ""
    if not value and operation is Operation.DELETE:
        return ""  # what is gone has no address
    if not value:
        raise InvalidEvent("uri is missing.")
    if not _URI.match(value):
        raise InvalidEvent(f"uri must begin with one of {', '.join(f'{scheme}:' for scheme in SCHEMES)}.")
    if len(value) > LONGEST_URI:
        raise InvalidEvent(f"uri has {len(value)} characters; {LONGEST_URI} are allowed.")
    if _UNPRINTABLE.search(value):
        raise InvalidEvent("uri holds a control character.")
    return value


def _milliseconds(value: object) -> int:
    """Of milliseconds since 1970, an aware datetime, or ISO 8601 with an offset; rounded."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidEvent("occurred_at is not a time such as 2026-01-31T12:00:00Z.") from error
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InvalidEvent("occurred_at has no time zone.")
        return to_ms(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidEvent("occurred_at is not a time.")
    return value


def _size(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise InvalidEvent("size_bytes is not a number of bytes.")
    return value


def _run_id(value: object) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError as error:
        raise InvalidEvent("run_id is not a UUID.") from error


def _operation(value: object) -> Operation:
    """UNKNOWN is a symbol of a later contract: to guess what it means could store what should go."""
    if value is None:
        return Operation.UPSERT
    for operation in (Operation.UPSERT, Operation.DELETE):
        if value == operation:
            return operation
    raise InvalidEvent("operation is neither UPSERT nor DELETE.")


def _flag(fields: Mapping[str, object], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidEvent(f"{name} is neither true nor false.")
    return bool(value)


def _attributes(value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise InvalidEvent("attributes is not an object of texts.")
    return dict(value)


def _record(event: Event) -> Mapping[str, object]:
    return {
        "event_id": event.event_id,
        "document_id": event.document_id,
        "uri": event.uri,
        "source_version": event.source_version,
        "occurred_at": to_ms(event.occurred_at),
        "media_type": event.media_type,
        "size_bytes": event.size_bytes,
        "title": event.title,
        "run_id": None if event.run_id is None else str(event.run_id),
        "operation": event.operation.value,
        "force": event.force,
        "attributes": event.attributes,
    }
