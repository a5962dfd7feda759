"""Events over HTTP to a registry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from docsum.errors import InvalidEvent, RegistryUnavailable, SchemaUnknown
from docsum.kafka.announcer import Announcer
from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.headers import delivery_of
from docsum.kafka.producer import KafkaProducer
from docsum.local.loopback import HOST, free_port
from docsum.models import Delivery, Lane, Recipe, Run, RunState, from_ms
from docsum.ports import SystemClock
from docsum.settings import Kafka
from docsum.sources import Listed
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


async def test_whoever_asks_the_same_at_once_asks_together(registry: Any) -> None:
    await register(registry.url, Topology())
    registry.questions = 0
    async with EventCodec(registry.url) as codec:
        values = await asyncio.gather(*(codec.encode(EVENT, "docsum.documents") for _ in range(50)))
        await asyncio.gather(*(codec.decode(record(value)) for value in values))
        assert registry.questions == 2  # for the id, and for the schema
        unknown = (codec.decode(record(b"\x00\x00\x00\x00\x4dx")) for _ in range(50))
        found = await asyncio.gather(*unknown, return_exceptions=True)
        assert {type(each) for each in found} == {SchemaUnknown}
        assert registry.questions == 3
        with pytest.raises(SchemaUnknown):
            await codec.decode(record(b"\x00\x00\x00\x00\x4dx"))
        assert registry.questions == 4  # it is asked again, later


async def test_who_is_cancelled_takes_the_answer_from_nobody(registry: Any) -> None:
    await register(registry.url, Topology())
    async with EventCodec(registry.url) as codec:
        value = b"\x00\x00\x00\x00\x01" + (await EventCodec().encode(EVENT, "docsum.documents"))[10:]
        first, second = (asyncio.create_task(codec.decode(record(value))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).event_id == EVENT.event_id
        with pytest.raises(asyncio.CancelledError):
            await first


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


async def test_a_batch_of_documents_asks_a_registry_that_is_away_once(registry: Any) -> None:
    registry.failure = (503, {})
    recipe = Recipe(model="local-extractive-1")
    nowhere = Kafka(bootstrap_servers=f"{HOST}:{free_port()}")
    run = Run(uuid4(), "a", "/a", recipe, Lane.BACKFILL, RunState.PUBLISHING, from_ms(0), from_ms(0))
    listed = [
        Listed("", "file:///a.txt", from_ms(0)),
        *(Listed(f"{number}", "file:///a.txt", from_ms(0)) for number in range(30)),
    ]
    async with EventCodec(registry.url) as codec:
        announce = Announcer(KafkaProducer(nowhere), codec, Topology(), SystemClock())
        invalid, *found = await announce(run, listed)
    assert isinstance(invalid, InvalidEvent)
    assert [type(each) for each in found] == [RegistryUnavailable] * 30
    assert registry.questions == 2  # its client tries a second time


async def test_a_registry_that_is_not_there_is_unavailable() -> None:
    async with EventCodec(f"http://{HOST}:{free_port()}") as codec:
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            await codec.decode(record(b"\x00\x00\x00\x00\x05x"))
