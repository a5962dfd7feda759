"""`schemas/asyncapi.yaml` beside what docsum really does. AsyncAPI's own parser took it, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from docsum.kafka import codec, results
from docsum.topics import Topology
from tests.support.evolution import families

SCHEMAS = Path(__file__).parents[2] / "schemas"
DOCUMENT: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
TOPICS = Topology(results=True)
NAMES = {"documents": TOPICS.documents, "summaries": TOPICS.summaries}


@pytest.mark.parametrize("name", NAMES)
def test_a_channel_is_the_topic_that_setup_makes(name: str) -> None:
    channel, topics = DOCUMENT["channels"][name], {topic.name: topic for topic in TOPICS.topics()}
    topic, bindings = topics[channel["address"]], channel["bindings"]["kafka"]
    assert channel["address"] == NAMES[name]
    assert bindings["partitions"] == topic.partitions
    policy = topic.config.get("cleanup.policy", "delete")
    assert bindings["topicConfiguration"]["cleanup.policy"] == policy.split(",")


@pytest.mark.parametrize(
    ("message", "family", "written"),
    [
        ("documentReference", "document_reference", codec.SCHEMA_FILES),
        ("summaryResult", "summary_result", results.SCHEMA_FILES),
    ],
)
def test_a_message_is_of_the_schema_that_is_written(
    message: str, family: str, written: tuple[str, ...]
) -> None:
    found = DOCUMENT["components"]["messages"][message]
    assert found["payload"]["schema"]["$ref"] == families(SCHEMAS)[family][-1].name == written[-1]
    assert f'"name": "{found["name"].rpartition(".")[2]}"' in (SCHEMAS / written[-1]).read_text()


def test_what_it_says_of_itself_leads_somewhere() -> None:
    def follow(node: Any) -> None:
        if isinstance(node, dict):
            if reference := node.get("$ref"):
                target: Any = DOCUMENT
                if reference.startswith("#/"):
                    for part in reference[2:].split("/"):
                        target = target[part]
                else:
                    assert (SCHEMAS / reference).is_file(), reference
            for each in node.values():
                follow(each)
        elif isinstance(node, list):
            for each in node:
                follow(each)

    follow(DOCUMENT)
    assert results.VERSION in DOCUMENT["components"]["messages"]["summaryResult"]["headers"]["required"]
