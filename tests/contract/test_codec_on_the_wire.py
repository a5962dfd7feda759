"""Events over HTTP to a registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from docsum.errors import RegistryUnavailable, SchemaUnknown
from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.headers import delivery_of
from docsum.local.loopback import HOST, free_port
from docsum.models import Delivery, from_ms
from docsum.topics import Topology
from tests.support.registry import Registry, register, schema_registry

PUBLISHED_MS = 1_790_000_000_000
EVENT = new_event("doc-1", "file:///a.pdf", occurred_at=from_ms(PUBLISHED_MS))


@pytest.fixture
def registry() -> Iterator[type[Registry]]:
    with schema_registry() as served:
        yield served


def record(value: bytes) -> Delivery:
    return delivery_of("docsum.documents", 0, 0, b"doc-1", value, (), PUBLISHED_MS)


async def test_a_registered_schema_frames_events_and_is_read_once(registry: Any) -> None:
    async with EventCodec(registry.url) as codec:
        with pytest.raises(SchemaUnknown, match="docsum setup schemas"):
            await codec.encode(EVENT, "docsum.documents")
        await register(registry.url, Topology())
        value = await codec.encode(EVENT, "docsum.documents")
    async with EventCodec(registry.url) as reader:
        for _ in range(3):
            assert (await reader.decode(record(value))).event_id == EVENT.event_id
    assert registry.reads == [1]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error_code": 40403, "message": "no"}, SchemaUnknown),
        (404, {"error_code": 404, "message": "HTTP 404 Not Found"}, RegistryUnavailable),
        (404, [], RegistryUnavailable),
        (401, {"message": "who?"}, RegistryUnavailable),
        (429, {"error_code": 42900}, RegistryUnavailable),
        (503, {}, RegistryUnavailable),
        (200, {}, RegistryUnavailable),
    ],
)
async def test_only_its_own_word_makes_a_schema_unknown(
    registry: Any, status: int, body: Any, error: type[Exception]
) -> None:
    registry.failure = (status, body)
    async with EventCodec(registry.url) as codec:
        with pytest.raises(error):
            await codec.decode(record(b"\x00\x00\x00\x00\x05x"))
        if error is not SchemaUnknown:
            registry.failure = None  # it recovers, and so do we
            await register(registry.url, Topology())
            assert await codec.encode(EVENT, "docsum.documents")


async def test_a_registry_that_is_not_there_is_unavailable() -> None:
    async with EventCodec(f"http://{HOST}:{free_port()}") as codec:
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            await codec.decode(record(b"\x00\x00\x00\x00\x05x"))
