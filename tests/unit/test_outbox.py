"""Records as Debezium's outbox event router makes them of the rows of schemas/OUTBOX.md.

With its default columns: the key is `aggregateid`, the value is `payload` as it stands in the row, the
one header is the row's `id`, the timestamp is that of the connector (debezium-core, EventRouterDelegate).
Debezium itself is not run.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from docsum.errors import InvalidEvent
from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.copies import RecordCopies
from docsum.kafka.headers import delivery_of
from docsum.models import Delivery, Failure, Operation, Retried, to_ms
from docsum.topics import Topology
from tests.support.fakes import START, FakeClock

PAGE = (Path(__file__).parents[2] / "schemas" / "OUTBOX.md").read_text()
ROW = str(uuid4())  # the id of a row
FAILURE = Failure("source_unavailable", "The source did not answer.", "fetch", "SourceUnavailable")


def payload(**fields: object) -> bytes:
    """What `json_build_object` of the page writes, with the spaces that PostgreSQL puts between."""
    (call,) = re.findall(r"json_build_object\((.+?)\)::text", PAGE, re.DOTALL)
    names = re.findall(r"^ *'(\w+)', ", call, re.MULTILINE)
    values = {
        "event_id": ROW,
        "document_id": "invoice-42",
        "uri": "s3://invoices/42.pdf",
        "source_version": "etag-2",
        "occurred_at": to_ms(START),
    }
    assert names == list(values)
    return json.dumps(values | fields, separators=(", ", " : ")).encode()


def published(value: bytes | None, offset: int = 0) -> Delivery:
    """By a connector that came to the row some seconds later."""
    later = to_ms(START) + 5_000 + offset
    return delivery_of("docsum.documents", 3, offset, b"invoice-42", value, [("id", ROW.encode())], later)


async def test_a_row_is_an_event_and_the_same_one_when_it_is_published_twice() -> None:
    first, second = [await EventCodec().decode(published(payload(), offset)) for offset in (0, 1)]
    assert (first.event_id, first.document_id, first.occurred_at) == (ROW, "invoice-42", START)
    assert (first.uri, first.source_version) == ("s3://invoices/42.pdf", "etag-2")
    assert first.operation is Operation.UPSERT
    assert second == replace(first, version=second.version)
    assert second.version > first.version  # by the record's timestamp; its source version makes it free


async def test_what_is_gone_says_so_in_the_payload_or_has_none() -> None:
    said = await EventCodec().decode(published(payload(uri="", operation="DELETE")))
    assert (said.operation, said.event_id, said.occurred_at) == (Operation.DELETE, ROW, START)
    empty = await EventCodec().decode(published(None))
    assert (empty.operation, empty.document_id) == (Operation.DELETE, "invoice-42")
    assert empty.occurred_at == START + timedelta(seconds=5)


async def test_avro_from_a_binary_column_passes_as_it_is() -> None:
    event = new_event("invoice-42", "s3://invoices/42.pdf", occurred_at=START, event_id=ROW)
    value = await EventCodec().encode(event, "docsum.documents")
    assert (await EventCodec().decode(published(value))).event_id == ROW


async def test_json_that_a_converter_has_put_into_quotes_is_refused_as_the_page_says() -> None:
    with pytest.raises(InvalidEvent) as caught:
        await EventCodec().decode(published(json.dumps(payload().decode()).encode()))
    sentence = "neither Avro (00, C3 01) nor JSON ({)"
    assert sentence in str(caught.value)
    assert sentence in PAGE


def test_the_id_of_the_row_is_carried_to_copies() -> None:
    topology = Topology()
    retried = Retried(topology.retries[0], START, FAILURE)
    copy = RecordCopies(topology, "docsum-worker", FakeClock()).of(published(payload()), None, retried)
    assert copy is not None
    assert copy.value == payload()
    assert ("id", ROW.encode()) in copy.headers
