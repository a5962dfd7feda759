"""Names, delays, partitions and configs of the topics."""

from __future__ import annotations

from datetime import timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import ConfigurationError
from docsum.kafka.admin import PartitionLag, render
from docsum.models import Lane
from docsum.settings import Settings
from docsum.topics import (
    MAX_MESSAGE_BYTES,
    SPARE_BYTES,
    Topology,
    duration_name,
    parse_duration,
)


def test_the_default_topics_are_the_documented_ones() -> None:
    assert [topic.name for topic in Topology().topics()] == [
        "docsum.documents",
        "docsum.backfill",
        "docsum.batch",
        "docsum.retry.10s",
        "docsum.retry.30s",
        "docsum.retry.90s",
        "docsum.held",
        "docsum.dlq",
    ]


def test_all_topics_have_the_same_number_of_partitions() -> None:
    assert {topic.partitions for topic in Topology(partitions=7).topics()} == {7}


def config(topology: Topology, key: str) -> dict[str, int]:
    """A topic's setting, by its name."""
    return {topic.name: int(topic.config[key]) for topic in topology.topics()}


def test_a_copy_of_the_largest_record_fits_where_copies_go() -> None:
    topology = Topology()
    sizes = config(topology, "max.message.bytes")
    for name in (topology.documents, topology.backfill, topology.batch):
        assert sizes.pop(name) == MAX_MESSAGE_BYTES
    assert set(sizes.values()) == {MAX_MESSAGE_BYTES + SPARE_BYTES}


def test_nothing_is_deleted_while_it_may_still_be_wanted() -> None:
    topology, day = Topology(), 86_400_000
    kept = config(topology, "retention.ms")
    assert kept.pop(topology.dead_letters) == 365 * day
    assert set(kept.values()) == {45 * day}


def test_one_more_attempt_than_delays() -> None:
    assert Topology().max_attempts == 4
    assert Topology(delays=()).max_attempts == 1


def test_retry_topics_of_former_delays_are_still_retry_topics() -> None:
    topology = Topology(prefix="acme")
    assert topology.is_retry("acme.retry.5m")
    assert not topology.is_retry("acme.documents")
    assert not topology.is_retry("docsum.retry.10s")


def test_every_lane_has_its_topic_and_topics_of_others_are_live() -> None:
    topology = Topology(inputs=("crm.documents",))
    for lane in Lane:
        assert topology.lane_of(topology.lane_topic(lane)) is lane
    assert topology.lane_of("crm.documents") is Lane.LIVE


@pytest.mark.parametrize("delays", [(30, 10), (10, 10)])
def test_delays_that_do_not_grow_are_refused(delays: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_RETRY__DELAYS must grow"):
        Topology(delays=tuple(timedelta(seconds=delay) for delay in delays))


def test_the_settings_make_the_topology() -> None:
    assert Settings(_env_file=None).topology() == Topology()


@given(st.integers(1, 10**9))
def test_a_duration_has_one_name_that_reads_back(milliseconds: int) -> None:
    delay = timedelta(milliseconds=milliseconds)
    assert parse_duration(duration_name(delay)) == delay


@pytest.mark.parametrize(
    ("delay", "name"), [("90s", "90s"), ("300s", "5m"), ("3600s", "1h"), ("24h", "1d"), ("250ms", "250ms")]
)
def test_a_duration_has_its_shortest_name(delay: str, name: str) -> None:
    assert duration_name(parse_duration(delay)) == name


@pytest.mark.parametrize("text", ["", "10", "s", "-5s", "1.5h", "5 weeks"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


# -- printed for other tools -------------------------------------------------------------------------------


def test_commands_create_every_topic() -> None:
    commands = render("kafka", Topology(partitions=3), replication=2).splitlines()
    assert len(commands) == len(Topology().topics())
    assert commands[0] == (
        'kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" --create --if-not-exists'
        " --topic docsum.documents --partitions 3 --replication-factor 2"
        " --config retention.ms=3888000000 --config max.message.bytes=1048576"
    )
    assert "--replication-factor" not in render("kafka", Topology())


def test_strimzi_resources_are_yaml_with_every_topic() -> None:
    topology = Topology(prefix="Acme_Docs")
    resources = list(yaml.safe_load_all(render("strimzi", topology, replication=3)))
    assert [resource["spec"]["topicName"] for resource in resources] == [t.name for t in topology.topics()]
    first = resources[0]
    assert first["metadata"]["name"] == "acme-docs.documents"  # RFC 1123
    assert (first["spec"]["partitions"], first["spec"]["replicas"]) == (12, 3)
    assert first["spec"]["config"]["max.message.bytes"] == "1048576"
    assert "replicas" not in next(yaml.safe_load_all(render("strimzi", Topology())))["spec"]


# -- lag ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "start", "end", "lag", "lost"),
    [(None, 0, 5, 5, 0), (None, 3, 5, 2, 0), (5, 0, 5, 0, 0), (2, 0, 5, 3, 0), (1, 4, 5, 1, 3)],
)
def test_lag_is_what_is_there_and_lost_is_what_is_gone(
    *, committed: int | None, start: int, end: int, lag: int, lost: int
) -> None:
    found = PartitionLag("docsum.documents", 0, committed, start, end)
    assert (found.lag, found.lost) == (lag, lost)
