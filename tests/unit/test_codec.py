"""Record bytes to checked references, in every encoding, and what is refused with which sentence."""

from __future__ import annotations

import asyncio
import json
import struct
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from io import BytesIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from confluent_kafka import schema_registry as registry
from confluent_kafka.schema_registry.error import SchemaRegistryError
from fastavro import parse_schema, schemaless_writer
from fastavro.schema import fingerprint
from fastavro.types import Schema
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import ConfigurationError, InvalidEvent, RegistryUnavailable, SchemaUnknown
from docsum.kafka.codec import LONGEST_ID, Event, EventCodec, new_event
from docsum.kafka.headers import LIMITS, Headers, delivery_of
from docsum.kafka.schema_registry import _translated
from docsum.models import Coordinates, Delivery, DocumentReference, Operation, event_version, to_ms

SCHEMAS = Path(__file__).parents[2] / "schemas"
V1 = (SCHEMAS / "document_reference.v1.avsc").read_text()
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MINIMAL: dict[str, object] = {"document_id": "doc-1", "uri": "file:///a.pdf"}


def record(
    value: bytes | None,
    *,
    key: bytes | None = b"doc-1",
    timestamp_ms: int = to_ms(NOW),
    origin: Coordinates = Coordinates("docsum.documents", 0, 7),  # noqa: B008 - frozen
) -> Delivery:
    return Delivery(origin, key, value, (), timestamp_ms, origin, timestamp_ms)


async def decode(value: bytes | None, **fields: object) -> DocumentReference:
    return await EventCodec().decode(record(value, **fields))  # type: ignore[arg-type]  # a builder


async def decode_json(**fields: object) -> DocumentReference:
    return await decode(json.dumps(MINIMAL | fields).encode())


def event(**fields: object) -> Event:
    values: dict[str, object] = {"document_id": "doc-1", "uri": "file:///a.pdf", "occurred_at": NOW, **fields}
    return new_event(**values)  # type: ignore[arg-type]  # a builder


full_event = event(
    event_id=str(uuid4()),
    source_version="etag-1",
    media_type="application/pdf",
    size_bytes=12,
    title="Título",
    run_id=uuid4(),
    operation=Operation.DELETE,
    force=True,
    attributes={"team": "legal"},
)


# -- the contract ------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_one_of_the_avro_specification() -> None:
    # From Apache Avro's own schema tests: "int" is 7275d51a3f395c8f, written in little-endian order.
    assert fingerprint('"int"', "CRC-64-AVRO") == "8f5c393f1ad57572"


async def test_the_published_schema_never_changes() -> None:
    """Every producer has this fingerprint in its records; a new schema is a new file."""
    assert (await EventCodec().encode(full_event, "t"))[:10].hex() == "c301" + "7469ac026b3a65e2"
    assert "7469ac026b3a65e2" in (SCHEMAS / "README.md").read_text()


def test_every_later_field_could_be_left_out() -> None:
    schema = json.loads(V1)
    required = [field["name"] for field in schema["fields"] if "default" not in field]
    assert required == ["event_id", "document_id", "uri", "occurred_at"]
    assert all(field["doc"] for field in schema["fields"])


EXAMPLES = sorted(path for path in (SCHEMAS / "examples").iterdir() if path.suffix in (".json", ".bin"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_decodes(path: Path) -> None:
    reference = asyncio.run(decode(path.read_bytes()))
    assert reference.document_id
    if path.suffix == ".bin":
        assert reference == asyncio.run(decode(path.with_suffix(".json").read_bytes()))


# -- what comes back ---------------------------------------------------------------------------------------


async def test_an_event_comes_back_as_it_was_published() -> None:
    reference = await decode(await EventCodec().encode(full_event, "docsum.documents"))
    for field in Event.__dataclass_fields__:
        assert getattr(reference, field) == getattr(full_event, field), field
    assert reference.version == event_version(NOW, to_ms(NOW), full_event.event_id)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=LONGEST_ID)


@given(
    document_id=names,
    event_id=names,
    path=names,
    version=texts,
    title=st.none() | texts,
    size=st.none() | st.integers(0, 2**63 - 1),
    run_id=st.none() | st.uuids(),
    occurred_ms=st.integers(0, to_ms(NOW) + 86_400_000),
    attributes=st.dictionaries(texts, texts, max_size=3),
    force=st.booleans(),
)
async def test_every_event_survives_avro_and_json_alike(
    *,
    document_id: str,
    event_id: str,
    path: str,
    version: str,
    title: str | None,
    size: int | None,
    run_id: UUID | None,
    occurred_ms: int,
    attributes: dict[str, str],
    force: bool,
) -> None:
    published = new_event(
        document_id,
        "s3:" + path,
        occurred_at=datetime.fromtimestamp(occurred_ms // 1000, UTC),
        event_id=event_id,
        source_version=version,
        title=title,
        size_bytes=size,
        run_id=run_id,
        force=force,
        attributes=attributes,
    )
    as_json = {name: getattr(published, name) for name in Event.__dataclass_fields__} | {
        "occurred_at": published.occurred_at.isoformat(),
        "run_id": None if run_id is None else str(run_id),
    }
    by_avro = await decode(await EventCodec().encode(published, "t"))
    by_json = await decode(json.dumps(as_json).encode())
    assert by_avro == by_json
    assert by_avro.document_id == document_id


async def test_what_json_leaves_out_comes_from_the_original_record() -> None:
    reference = await decode_json()
    assert reference.occurred_at == NOW
    assert UUID(reference.event_id).version == 5
    copy = Delivery(
        Coordinates("docsum.retry.10s", 0, 99),
        b"doc-1",
        json.dumps(MINIMAL).encode(),
        (),
        to_ms(NOW) + 10_000,
        Coordinates("docsum.documents", 0, 7),
        to_ms(NOW),
    )
    assert await EventCodec().decode(copy) == reference


async def test_null_in_json_is_the_same_as_nothing() -> None:
    nothing = dict.fromkeys(
        ["event_id", "occurred_at", "source_version", "title", "run_id", "operation", "force", "attributes"]
    )
    assert await decode_json(**nothing) == await decode_json()


async def test_unknown_json_fields_are_passed_over() -> None:
    assert await decode_json(priority="high") == await decode_json()


@pytest.mark.parametrize(
    "written",
    ["2026-11-23T12:00:00Z", "2026-11-23T13:00:00+01:00", "2026-11-23T12:00:00.0004+00:00", to_ms(NOW)],
)
async def test_a_json_time_has_an_offset_or_is_milliseconds(written: object) -> None:
    assert (await decode_json(occurred_at=written)).occurred_at == NOW


async def test_a_null_value_deletes_the_document_of_the_key() -> None:
    reference = await decode(None, key="vertrag-é".encode())
    assert (reference.document_id, reference.operation) == ("vertrag-é", Operation.DELETE)
    assert reference.occurred_at == NOW
    assert await decode(None, key="vertrag-é".encode()) == reference


async def test_what_is_deleted_needs_no_address() -> None:
    assert (await decode(b'{"document_id": "a", "operation": "DELETE"}')).uri == ""


async def test_a_key_that_differs_is_accepted() -> None:
    assert (await decode(json.dumps(MINIMAL).encode(), key=b"\xff")).document_id == "doc-1"


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"document_id": ""}, "document_id is missing."),
        ({"document_id": None}, "document_id is missing."),
        ({"document_id": 42}, "document_id is not text."),
        ({"document_id": "x" * 513}, "document_id has 513 characters; 512 are allowed."),
        ({"document_id": "a\nb"}, "document_id holds a control character."),
        ({"document_id": "a\u0085b"}, "document_id holds a control character."),
        ({"event_id": 7}, "event_id is not text."),
        ({"event_id": "e\x00"}, "event_id holds a control character."),
        ({"uri": ""}, "uri is missing."),
        ({"uri": "/srv/a.pdf"}, "uri must begin with one of file:, s3:, gs:, az:, https:, http:."),
        ({"uri": "ftp://host/a"}, "uri must begin with one of file:, s3:, gs:, az:, https:, http:."),
        ({"uri": "https:"}, "uri must begin with one of file:, s3:, gs:, az:, https:, http:."),
        ({"uri": "file:///a\r\nb"}, "uri holds a control character."),
        ({"uri": "s3:" + "x" * 8190}, "uri has 8193 characters; 8192 are allowed."),
        ({"run_id": "run-1"}, "run_id is not a UUID."),
        ({"run_id": 5}, "run_id is not a UUID."),
        ({"operation": "MERGE"}, "operation is neither UPSERT nor DELETE."),
        ({"operation": "UNKNOWN"}, "operation is neither UPSERT nor DELETE."),
        ({"operation": []}, "operation is neither UPSERT nor DELETE."),
        ({"force": "true"}, "force is neither true nor false."),
        ({"force": 1}, "force is neither true nor false."),
        ({"size_bytes": "12"}, "size_bytes is not a number of bytes."),
        ({"size_bytes": -1}, "size_bytes is not a number of bytes."),
        ({"size_bytes": True}, "size_bytes is not a number of bytes."),
        ({"size_bytes": 2**63}, "size_bytes is not a number of bytes."),
        ({"title": ["a"]}, "title is not text."),
        ({"attributes": {"a": 1}}, "attributes is not an object of texts."),
        ({"attributes": ["a"]}, "attributes is not an object of texts."),
        ({"occurred_at": "2026-11-23T12:00:00"}, "occurred_at has no time zone."),
        ({"occurred_at": "2026-11-23"}, "occurred_at has no time zone."),
        ({"occurred_at": "yesterday"}, "occurred_at is not a time such as 2026-01-31T12:00:00Z."),
        ({"occurred_at": 1.5}, "occurred_at is not a time."),
        ({"occurred_at": True}, "occurred_at is not a time."),
        ({"occurred_at": -1}, "occurred_at is before 1970."),
        (
            {"occurred_at": to_ms(NOW) + 86_400_001},
            "occurred_at is more than 24 hours after the record was published.",
        ),
    ],
)
async def test_a_wrong_field_gets_its_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await decode_json(**fields)
    assert str(caught.value) == sentence


async def test_a_fingerprint_that_is_not_known_may_be_that_of_a_later_docsum() -> None:
    with pytest.raises(SchemaUnknown, match="no Avro schema with fingerprint 0000000000000000"):
        await decode(b"\xc3\x01" + b"\x00" * 8)


async def test_exactly_24_hours_ahead_is_accepted() -> None:
    assert (await decode_json(occurred_at=to_ms(NOW) + 86_400_000)).occurred_at == NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"", "The value is empty."),
        (b"hello", "The value is neither Avro (00, C3 01) nor JSON ({)."),
        (b"Obj\x01", "The value is neither Avro (00, C3 01) nor JSON ({)."),
        (b"{", "The value is not valid JSON in UTF-8."),
        (b'{"document_id": "\xff"}', "The value is not valid JSON in UTF-8."),
        (b'{"document_id": "\\ud800", "uri": "file:///a"}', "The value is not valid JSON in UTF-8."),
        (b'{"a":' * 100_000, "The value is not valid JSON in UTF-8."),
        (b'{"a": 1} {"b": 2}', "The value is not valid JSON in UTF-8."),
        (b"\xc3\x01\x00", "The value ends within the fingerprint of its schema."),
        (
            b"\x00\x00\x00\x00\x01x",
            "The value needs a schema registry, but DOCSUM_KAFKA__SCHEMA_REGISTRY_URL is not set.",
        ),
    ],
)
async def test_bytes_that_are_no_event_get_their_sentence(value: bytes, sentence: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await decode(value)
    assert str(caught.value) == sentence


async def test_avro_is_neither_too_short_nor_too_long() -> None:
    value = await EventCodec().encode(full_event, "t")
    for length in range(10, len(value)):
        with pytest.raises(InvalidEvent, match="does not fit its Avro schema"):
            await decode(value[:length])
    with pytest.raises(InvalidEvent, match=r"^2 bytes are left over after the Avro record.$"):
        await decode(value + b"\x00\x00")


codec_of = cache(EventCodec)  # a client of a registry takes a while to be made
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
any_value = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from([bytes.fromhex("c3017469ac026b3a65e2"), b"{", b"", b"\x00", b"\x00\x00\x00\x00\x01"]),
        st.binary(max_size=200),
    ).map(b"".join),
    st.dictionaries(st.sampled_from(list(Event.__dataclass_fields__)), any_json).map(
        lambda fields: json.dumps(MINIMAL | fields).encode()
    ),
)
any_headers = st.lists(
    st.tuples(
        st.sampled_from(sorted(LIMITS)) | st.text(max_size=10),
        st.none() | st.binary(max_size=30) | st.integers().map(lambda number: str(number).encode()),
    ),
    max_size=8,
)


@given(
    key=st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode),
    value=any_value,
    headers=any_headers,
    timestamp_ms=st.integers(-1, 2**63 - 1) | st.integers(0, to_ms(NOW)),
    registry=st.sampled_from(["", "mock://nothing-is-registered"]),
)
async def test_any_record_is_an_event_or_has_a_reason(
    key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int, registry: str
) -> None:
    try:
        reference = await codec_of(registry).decode(delivery_of("t", 0, 7, key, value, headers, timestamp_ms))
    except (InvalidEvent, SchemaUnknown, RegistryUnavailable) as error:
        assert str(error).endswith((".", ")"))
    else:
        assert 1 <= len(reference.document_id) <= LONGEST_ID
        assert 0 <= reference.version < 2**128


@pytest.mark.parametrize("timestamp_ms", [-1, 2**48, to_ms(NOW) * 1000])
async def test_a_record_without_a_time_in_milliseconds_is_refused(timestamp_ms: int) -> None:
    with pytest.raises(InvalidEvent, match="The record has no timestamp in milliseconds"):
        await decode(json.dumps(MINIMAL).encode(), timestamp_ms=timestamp_ms)


@pytest.mark.parametrize(("key", "what"), [(None, "no key"), (b"\xff", "not UTF-8"), (b"", "missing")])
async def test_a_null_value_needs_a_key_that_is_an_id(key: bytes | None, what: str) -> None:
    with pytest.raises(InvalidEvent, match=what):
        await decode(None, key=key)


def test_a_naive_time_is_refused_before_it_is_published() -> None:
    with pytest.raises(InvalidEvent, match="occurred_at has no time zone"):
        event(occurred_at=datetime(2026, 11, 23))  # noqa: DTZ001 - that is the point


def test_a_publisher_cannot_send_what_a_worker_would_refuse() -> None:
    with pytest.raises(InvalidEvent, match="document_id has 600 characters"):
        event(document_id="x" * 600)
    with pytest.raises(TypeError):
        event(priority="high")


def test_another_time_zone_is_the_same_moment() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert event(occurred_at=NOW.astimezone(tokyo)).occurred_at == NOW


def test_an_event_gets_a_random_id_of_its_own() -> None:
    assert UUID(event().event_id).version == 4
    assert event().event_id != event().event_id


# -- with a registry (the client's own in-memory one) --------------------------------------------------------


async def test_an_event_survives_the_registry() -> None:
    async with EventCodec(f"mock://{uuid4()}") as codec:
        await header(codec, V1, subject="docsum.documents-value")
        value = await codec.encode(full_event, "docsum.documents")
        assert value[:1] == b"\x00"
        reference = await codec.decode(record(value))
        assert reference == await decode(await EventCodec().encode(full_event, "t"))


async def test_a_schema_that_is_not_registered_is_told_with_the_command() -> None:
    async with EventCodec(f"mock://{uuid4()}") as codec:
        with pytest.raises(SchemaUnknown, match=r"docsum\.documents-value; run `docsum setup schemas`"):
            await codec.encode(full_event, "docsum.documents")


async def test_records_of_a_later_schema_are_read() -> None:
    later = json.loads(V1)
    later["fields"].insert(2, {"name": "owner", "type": "string", "default": ""})
    later["fields"][10]["type"]["symbols"].append("MOVE")
    async with EventCodec(f"mock://{uuid4()}") as codec:
        reference = await codec.decode(record(await framed(codec, later, owner="me")))
        assert reference.document_id == "doc-1"
        assert reference.occurred_at == NOW
        moved = record(await framed(codec, later, owner="me", operation="MOVE"))
        with pytest.raises(InvalidEvent, match="operation is neither"):
            await codec.decode(moved)


async def test_a_producers_unit_of_time_is_understood() -> None:
    theirs = json.loads(V1)
    theirs["fields"][4]["type"]["logicalType"] = "timestamp-micros"
    async with EventCodec(f"mock://{uuid4()}") as codec:
        assert (await codec.decode(record(await framed(codec, theirs)))).occurred_at == NOW


async def test_a_local_time_without_a_zone_is_refused() -> None:
    theirs = json.loads(V1)
    theirs["fields"][4]["type"]["logicalType"] = "local-timestamp-millis"
    async with EventCodec(f"mock://{uuid4()}") as codec:
        with pytest.raises(InvalidEvent, match="occurred_at has no time zone"):
            await codec.decode(record(await framed(codec, theirs, occurred_at=to_ms(NOW))))


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        ({"type": "record", "name": "a.Other", "fields": []}, "is a.Other, not docsum.DocumentReference"),
        ("string", "of the registry is string, not docsum"),
    ],
)
async def test_records_of_another_schema_are_invalid(theirs: Schema, sentence: str) -> None:
    async with EventCodec(f"mock://{uuid4()}") as codec:
        with pytest.raises(InvalidEvent, match=sentence):
            await codec.decode(record(await header(codec, json.dumps(theirs)) + b"\x02a"))


async def test_an_unknown_schema_id_is_unknown_and_a_cut_one_is_invalid() -> None:
    async with EventCodec(f"mock://{uuid4()}") as codec:
        with pytest.raises(SchemaUnknown, match="does not know schema 77"):
            await codec.decode(record(struct.pack(">bI", 0, 77) + b"x"))
        with pytest.raises(InvalidEvent, match="ends within its schema id"):
            await codec.decode(record(b"\x00\x01"))


def test_a_registry_address_must_be_http() -> None:
    with pytest.raises(ConfigurationError, match="http://"):
        EventCodec("registry:8081")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, 40403, SchemaUnknown),
        (404, 40401, SchemaUnknown),
        (404, 404, RegistryUnavailable),  # a wrong path or a proxy
        (404, -1, RegistryUnavailable),
        (401, 401, RegistryUnavailable),
        (429, 42900, RegistryUnavailable),
        (500, 50001, RegistryUnavailable),
        (503, -1, RegistryUnavailable),
    ],
)
def test_only_the_registrys_own_word_makes_a_schema_unknown(
    status: int, code: int, expected: type[Exception]
) -> None:
    assert type(_translated(SchemaRegistryError(status, code, "..."), "schema 1")) is expected


def test_no_answer_at_all_is_an_unavailable_registry() -> None:
    assert isinstance(_translated(ConnectionError("refused"), "schema 1"), RegistryUnavailable)


async def header(codec: EventCodec, text: str, subject: str = "theirs-value") -> bytes:
    assert codec._registry is not None
    client = codec._registry._client
    number = await client.register_schema(subject, registry.Schema(text, "AVRO"))
    return struct.pack(">bI", 0, number)


async def framed(codec: EventCodec, schema: Schema, **fields: object) -> bytes:
    stream = BytesIO()
    values = {"event_id": "e-1", "document_id": "doc-1", "uri": "file:///a.pdf", "occurred_at": NOW, **fields}
    schemaless_writer(stream, parse_schema(schema), values)
    return await header(codec, json.dumps(schema)) + stream.getvalue()
