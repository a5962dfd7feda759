"""What upstreams are told: when, what, and what not."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.cli.output import Code
from docsum.errors import (
    BrokerUnavailable,
    Encrypted,
    InvalidEvent,
    SchemaUnknown,
    SourceUnavailable,
)
from docsum.kafka.results import ResultRecords, deletion, version_text
from docsum.models import (
    Control,
    ControlState,
    Delivery,
    Document,
    ExtractedText,
    Failure,
    Lane,
    Operation,
    RecordCopy,
    Result,
    Retried,
    Run,
    RunState,
    Skipped,
    SkipReason,
    State,
    Stored,
    event_version,
    to_ms,
)
from docsum.topics import Topology
from tests.support.commands import deployed, result
from tests.support.fakes import START, FakeExtractor, FakeObserver, FakeResults, delivery, reference, summary
from tests.support.results import FINGERPRINT, SCHEMAS, read_result
from tests.support.waiting import within_turns
from tests.unit.test_pipeline import RECIPE, House

LATER = START + timedelta(hours=1)


class Told(House):
    """A pipeline whose upstreams are told."""

    def __init__(self) -> None:
        self.results = FakeResults()
        super().__init__(self.results)

    @property
    def sent(self) -> list[RecordCopy]:
        """Results that the broker has acknowledged."""
        return [copy for copy in self.publisher.copies if copy.topic == "docsum.summaries"]

    @property
    def last(self) -> Result:
        assert len(self.sent) == len(self.results.told), "what was made was sent"
        return self.results.told[-1]


@pytest.fixture
def house() -> Told:
    return Told()


# -- what is told ------------------------------------------------------------------------------------------


async def test_a_summary_is_told_with_all_that_its_reader_needs(house: Told) -> None:
    event = reference("a", run_id=uuid4())
    await house.process(event)
    told = house.last
    assert (told.document_id, told.version, told.state) == ("a", event.version, State.DONE)
    assert (told.run_id, told.source_version, told.reason) == (event.run_id, "v1", "")
    assert told.summary is not None and told.summary.summary == "Summary of a."
    assert [copy.key for copy in house.sent] == [b"a"]


async def test_nothing_is_told_before_the_rows_are_durable(house: Told) -> None:
    house.results.errors.append(SchemaUnknown("Run `docsum setup schemas`."))
    house.publisher.errors += [BrokerUnavailable("Kafka is away."), BrokerUnavailable("Kafka is away.")]
    seen: list[tuple[str, bool, int]] = []

    class Looking(FakeObserver):
        def holding(self, delivery: Delivery, failure: Failure, wait: timedelta) -> None:
            seen.append((failure.stage, "a" in house.store._summaries, len(house.sent)))

    house.pipeline.observer = Looking()
    assert isinstance(await house.process(reference("a")), Stored)
    assert seen == [("publish", True, 0)] * 3
    assert len(house.sent) == 1
    assert len(house.results.told) == 1  # the same record is handed in again: it may be under way
    assert house.summariser.bought == 1


async def test_a_worker_that_ended_in_between_is_made_up_for_by_the_redelivery(house: Told) -> None:
    event = reference("a")
    house.publisher.errors += [BrokerUnavailable("Kafka is away.")] * 100_000
    first = asyncio.ensure_future(house.process(event))
    await within_turns(lambda: house.publisher.calls > 0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert house.sent == []
    house.publisher.errors.clear()
    house.results.told.clear()
    again = await house.process(event)
    assert isinstance(again, Stored) and again.redelivered
    assert house.last.state is State.DONE
    assert house.last.source_version == "v1"
    assert house.last.summary is not None and house.last.summary.summary == "Summary of a."
    assert house.summariser.bought == 1


async def test_what_is_unchanged_is_told_with_the_stored_summary_also_the_second_time(house: Told) -> None:
    await house.process(reference("a"))
    later = reference("a", occurred_at=LATER)
    for number in (2, 3):
        assert isinstance(await house.process(later), Skipped)
        assert len(house.sent) == number
        assert (house.last.state, house.last.reason) == (State.SKIPPED, "unchanged")
        assert house.last.version == later.version
        assert house.last.summary is not None and house.last.summary.summary == "Summary of a."


async def test_a_dead_letter_is_told_with_the_newest_stored_summary_or_none(house: Told) -> None:
    house.extractor.errors = [Encrypted("The PDF needs a password.")]
    await house.process(reference("a"))
    assert (house.last.state, house.last.reason, house.last.summary) == (
        State.DEAD_LETTERED,
        "encrypted",
        None,
    )
    await house.process(reference("b"))
    house.extractor.errors = [Encrypted("The PDF needs a password.")]
    await house.process(reference("b", source_version="v2", occurred_at=LATER))
    assert house.last.state is State.DEAD_LETTERED
    assert house.last.source_version == "v2"
    assert house.last.summary is not None and house.last.summary.summary == "Summary of b."


async def test_a_deletion_takes_back_what_was_told(house: Told) -> None:
    await house.process(reference("a"))
    gone = reference("a", occurred_at=LATER, operation=Operation.DELETE)
    for _ in range(2):
        await house.process(gone)
        assert house.last.deleted and house.last.version == gone.version
        assert house.sent[-1].value is None and house.sent[-1].key == b"a"


async def test_what_is_superseded_says_nothing(house: Told) -> None:
    await house.process(reference("a", occurred_at=LATER))
    assert await house.process(reference("a", source_version="v0")) == Skipped(SkipReason.SUPERSEDED)
    assert len(house.sent) == 1


async def test_a_dead_letter_says_nothing_over_a_newer_version(house: Told) -> None:
    other = Told()
    other.pipeline.store = house.store

    class Overtaken(FakeExtractor):
        """Another worker is faster."""

        async def extract(self, document: Document) -> ExtractedText:
            await other.process(reference("a", occurred_at=LATER))
            raise Encrypted("The PDF needs a password.")

    house.pipeline.extractor = Overtaken()
    await house.process(reference("a"))
    assert len(other.sent) == 1
    assert house.publisher.copies[-1].topic == "docsum.dlq"
    assert house.sent == []


async def test_what_is_not_over_says_nothing(house: Told) -> None:
    house.fetcher.errors = [SourceUnavailable("It does not answer.")]
    assert isinstance(await house.process(reference("a")), Retried)
    run = Run(uuid4(), "r", "/documents", RECIPE, Lane.BACKFILL, RunState.PUBLISHED, START, START)
    await house.store.save_run(run)
    for state in (ControlState.PAUSED, ControlState.CANCELLED):
        await house.store.save_control(Control(run.id, state, "wait", changed_at=house.clock.now()))
        await house.process(reference("b", run_id=run.id))
        house.clock.advance(timedelta(seconds=1))
    await house.process(InvalidEvent("The value is empty."))  # nobody knows of which document
    assert house.results.told == []


async def test_upstreams_are_told_nothing_unless_somebody_wants_it() -> None:
    silent = House()
    await silent.process(reference("a"))
    assert silent.publisher.copies == []


# -- how it is told ----------------------------------------------------------------------------------------


def made(**fields: Any) -> Result:
    values: dict[str, Any] = {
        "document_id": "doc-1",
        "version": event_version(START, to_ms(START), "e"),
        "state": State.DONE,
        "reason": "",
        "run_id": None,
        "source_version": "v1",
        "occurred_at": START,
        "written_at": LATER,
        "summary": summary(),
        **fields,
    }
    return Result(**values)


@pytest.mark.parametrize("state", [State.DONE, State.SKIPPED, State.DEAD_LETTERED])
@pytest.mark.parametrize("run_id", [None, uuid4()], ids=["live", "run"])
async def test_a_result_reads_back(state: State, run_id: UUID | None) -> None:
    event = delivery(headers=(("traceparent", b"00-1"), ("docsum-attempt", b"2"), ("other", b"x")))
    async with ResultRecords("docsum.summaries") as records:
        record = await records.of(event, made(state=state, reason="unchanged", run_id=run_id))
    assert (record.topic, record.partition, record.key) == ("docsum.summaries", None, b"doc-1")
    assert record.headers == (
        ("docsum-version", version_text(made().version).encode()),
        ("traceparent", b"00-1"),
    )
    assert record.value is not None
    assert read_result(record.value) == {
        "document_id": "doc-1",
        "version": version_text(made().version),
        "outcome": state.value,
        "reason": "unchanged",
        "run_id": run_id,
        "source_version": "v1",
        "occurred_at": START,
        "written_at": LATER,
        "title": "A title",
        "summary": "A summary.",
        "key_points": ["a point"],
        "language": "en",
        "document_type": "letter",
        "warnings": [],
        "model": "local-extractive-1",
    }


EXAMPLES = sorted((SCHEMAS / "examples" / "results").glob("*.bin"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_decodes_to_what_is_printed_beside_it(path: Path) -> None:
    found = read_result(path.read_bytes())
    printed = json.loads(path.with_suffix(".json").read_text())
    plain = {
        name: to_ms(value)
        if isinstance(value, datetime)
        else (str(value) if isinstance(value, UUID) else value)
        for name, value in found.items()
    }
    assert plain == printed


async def test_the_published_schema_never_changes() -> None:
    """Every reader has this fingerprint; a new schema is a new file."""
    record = await ResultRecords("t").of(delivery(), made())
    assert record.value is not None and record.value[:10] == FINGERPRINT
    assert FINGERPRINT[2:].hex() in (SCHEMAS / "README.md").read_text()


async def test_without_a_summary_its_fields_are_null() -> None:
    record = await ResultRecords("t").of(delivery(), made(state=State.DEAD_LETTERED, summary=None))
    assert record.value is not None
    found = read_result(record.value)
    names = ("title", "summary", "key_points", "language", "document_type", "warnings", "model")
    assert [found[name] for name in names] == [None] * 7


async def test_a_deletion_has_its_version_in_a_header_for_its_value_is_null() -> None:
    record = await ResultRecords("t").of(delivery(), made(deleted=True, summary=None))
    assert record == deletion("t", "doc-1", made().version)
    assert (record.value, record.key) == (None, b"doc-1")


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_versions_compare_as_texts_as_they_do_as_numbers(one: int, other: int) -> None:
    assert (version_text(one) < version_text(other)) == (one < other)
    assert int(version_text(one), 16) == one


# -- the topic ---------------------------------------------------------------------------------------------


def test_the_topic_of_results_is_compacted_and_made_only_where_it_is_wanted() -> None:
    assert "docsum.summaries" not in {topic.name for topic in Topology().topics()}
    (topic,) = [topic for topic in Topology(results=True).topics() if topic.name == "docsum.summaries"]
    assert topic.partitions == 12
    assert topic.config["cleanup.policy"] == "compact"
    assert topic.config["delete.retention.ms"] == str(45 * 86_400_000)


# -- what people delete ------------------------------------------------------------------------------------


def test_what_a_person_deletes_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Else the words would stay where the topic is read, purge or not."""
    monkeypatch.chdir(tmp_path)
    house = House()
    asyncio.run(house.process(reference("a")))
    deployed(house.store, monkeypatch)

    class Opened:
        async def __aenter__(self) -> Any:
            return house.publisher

        async def __aexit__(self, *_: object) -> None: ...

    monkeypatch.setattr("docsum.bootstrap.open_producer", lambda _: Opened())
    arguments = ("documents", "delete", "a", "--purge", "--yes")
    assert result(capsys, *arguments)[0] == Code.OK
    assert house.publisher.copies == []
    monkeypatch.setenv("DOCSUM_TOPICS__SUMMARIES", "true")
    assert result(capsys, *arguments)[0] == Code.OK
    known = asyncio.run(house.store.known("a"))
    assert known is not None
    assert house.publisher.copies == [deletion("docsum.summaries", "a", known.version)]
