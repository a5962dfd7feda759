"""`docsum setup schemas`: our schemas in a registry that knows none, some, or others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from docsum.cli.doctor import ask_registry
from docsum.errors import ConfigurationError, RegistryUnavailable
from docsum.kafka import schemas
from docsum.kafka.schema_registry import COMPATIBILITY, SchemaRegistry
from docsum.settings import Kafka, Settings
from docsum.topics import Topology
from tests.support.registry import schema_registry

TOPICS = Topology(results=True)
SUBJECTS = ["docsum.backfill-value", "docsum.batch-value", "docsum.documents-value", "docsum.summaries-value"]


@pytest.fixture
def registry() -> Iterator[Any]:  # Any: a class made for the test
    with schema_registry() as made:
        yield made


async def test_an_empty_registry_gets_every_schema_once(registry: Any) -> None:
    async with aclosing(SchemaRegistry(registry.url)) as ours:
        assert len(await schemas.check(ours, TOPICS)) == len(SUBJECTS)
        done = await schemas.setup(ours, TOPICS)
        assert (len(done), sorted(subject for subject, _ in registry.schemas)) == (5, SUBJECTS)
        assert registry.level == COMPATIBILITY
        assert registry.compatibility == dict.fromkeys(SUBJECTS, COMPATIBILITY)
        assert await schemas.check(ours, TOPICS) == []
        assert await schemas.setup(ours, TOPICS) == []


async def test_a_level_that_others_have_chosen_for_everything_is_left_alone(registry: Any) -> None:
    registry.level = "BACKWARD"
    async with aclosing(SchemaRegistry(registry.url)) as ours:
        await schemas.setup(ours, TOPICS)
    assert registry.level == "BACKWARD"


async def test_a_subject_that_may_change_as_it_likes_is_told_and_mended(registry: Any) -> None:
    async with aclosing(SchemaRegistry(registry.url)) as ours:
        await schemas.setup(ours, TOPICS)
        registry.compatibility["docsum.batch-value"] = "NONE"
        assert await schemas.check(ours, TOPICS) == [
            "docsum.batch-value has compatibility NONE, not FULL_TRANSITIVE."
        ]
        assert await schemas.setup(ours, TOPICS) == ["Registered docsum.batch-value, FULL_TRANSITIVE."]
        assert await schemas.check(ours, TOPICS) == []


async def test_a_registry_that_refuses_or_is_down_is_told_apart(registry: Any) -> None:
    async with aclosing(SchemaRegistry(registry.url)) as ours:
        registry.failure = (500, {"error_code": 50001, "message": "broken"})
        with pytest.raises(RegistryUnavailable):
            await schemas.setup(ours, TOPICS)
        registry.failure = (409, {"error_code": 409, "message": "incompatible"})
        with pytest.raises(ConfigurationError, match="refuses our schema under docsum"):
            await ours.register("docsum.documents-value", "{}")


def test_without_results_their_topic_has_no_subject() -> None:
    assert sorted(schemas.subjects(Topology())) == SUBJECTS[:3]


async def test_the_doctor_says_what_is_wrong_with_the_registry(registry: Any) -> None:
    place = registry.url.replace("http://", "http://us:secret@")
    settings = Settings(kafka=Kafka(schema_registry_url=place))
    found = await ask_registry(settings)
    assert found.is_so.startswith("Our schema is not registered under docsum.documents-value.")
    assert found.remedy == "Run `docsum setup schemas`."
    async with aclosing(SchemaRegistry(registry.url)) as ours:
        await schemas.setup(ours, settings.topology())
    found = await ask_registry(settings)
    assert (found.is_so, found.remedy) == (
        f"{place.replace('secret', '********')} has our schemas",
        "",
    )
    registry.failure = (500, {"error_code": 50001, "message": "broken"})
    found = await ask_registry(settings)
    assert found.is_so == "The schema registry answers with HTTP 500."
    assert found.remedy
