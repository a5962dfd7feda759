"""Replays: what goes, what is parked, what stays; the sample; what a stop half-way leaves behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import BrokerUnavailable, InvalidEvent, StoreUnavailable, WorkPaused
from docsum.kafka.dead_letters import replay_copy
from docsum.kafka.headers import delivery_of
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Control,
    ControlState,
    Coordinates,
    DeadLetterFilter,
    DeadLetterRow,
    Delivery,
    Known,
    Lane,
    Recipe,
    RecordCopy,
    Rows,
    Run,
    RunState,
    State,
    SummaryRow,
)
from docsum.replay import (
    SAMPLE,
    Fate,
    Plan,
    Proof,
    Replay,
    Selection,
    discard,
    judge,
    sample_of,
    told,
)
from docsum.stores.memory import MemoryStore
from docsum.topics import Topology
from tests.support.fakes import START, FakeClock, FakeCodec, FakePublisher, delivery, reference, summary
from tests.support.waiting import within_turns

TOPOLOGY = Topology(inputs=("crm.documents",))
OPEN = DeadLetterFilter()
EVERYTHING = Selection(OPEN)


def letter(number: int, **fields: Any) -> DeadLetterRow:  # Any: a builder takes any field
    given_: dict[str, Any] = {
        "origin": Coordinates("docsum.documents", number % 3, 500 + number),
        "dead_letter": Coordinates("docsum.dlq", number % 3, number),
        "document_id": f"{number}.pdf",
        "document_version": 5,
        "run_id": None,
        "reason": "timeout",
        "message": "Too slow.",
        "stage": "extract",
        "attempts": 1,
        "first_failed_at": START,
        "failed_at": START + timedelta(seconds=number),
        **fields,
    }
    return DeadLetterRow(**given_)


def a_run(wanted: ControlState) -> Run:
    return Run(
        uuid4(), "letters", "/data", Recipe("m"), Lane.BACKFILL, RunState.PUBLISHED, START, START,
        control=Control(uuid4(), wanted),
    )  # fmt: skip


class Records:
    """The dead-letter topic in memory: the records of these entries."""

    def __init__(self) -> None:
        self.found: dict[Coordinates, Delivery | None] = {}
        self.until = 10_000
        self.error: Exception | None = None
        self.error_after = 0

    async def offsets(self) -> Mapping[int, range]:
        return dict.fromkeys(range(3), range(self.until))

    async def read(
        self, places: Collection[Coordinates]
    ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
        for number, place in enumerate(sorted(places)):
            if self.error is not None and number >= self.error_after:
                raise self.error
            yield place, self.found[place]


class Workers(FakePublisher):
    """Takes copies, and does at once what a worker would make of them."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.fails: Callable[[DeadLetterRow], bool] = lambda _row: False
        self.silent: Callable[[DeadLetterRow], bool] = lambda _row: False

    async def publish(self, copy: RecordCopy) -> Coordinates:
        at = await super().publish(copy)
        back = delivery_of(at.topic, at.partition, at.offset, copy.key, copy.value, copy.headers, 0)
        row = self.house.rows[back.origin]
        if self.silent(row):
            return at
        if self.fails(row):
            await self.house.came_back(row, back.replay_count)
        else:
            await self.house.stored(row.document_id or "late.pdf", row.document_version)
        return at


class House:
    """A replay over a store in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock.now)
        self.records = Records()
        self.codec = FakeCodec()
        self.workers = Workers(self)
        self.rows: dict[Coordinates, DeadLetterRow] = {}
        self.rate = 1_000

    async def dead(self, *rows: DeadLetterRow) -> None:
        for row in rows:
            self.rows[row.origin] = row
            self.records.found[row.dead_letter] = delivery(
                row.dead_letter.offset,
                topic="docsum.dlq",
                partition=row.dead_letter.partition,
                origin=row.origin,
                replay_count=row.replay_count,
                value=f"event {row.dead_letter}".encode(),
            )
        await self.store.write(Rows(dead_letters=rows))

    async def came_back(self, row: DeadLetterRow, replays: int) -> None:
        """Dead-lettered again, behind all that is in the topic."""
        self.records.until += 1
        place = replace(row.dead_letter, offset=self.records.until - 1)
        back = replace(row, dead_letter=place, replay_count=replays, failed_at=self.clock.now())
        await self.dead(back)

    async def stored(self, document_id: str, version: int) -> None:
        row = SummaryRow(
            document_id, version, State.DONE, "", "file:///a", summary(), {}, None,
            Coordinates("docsum.documents", 0, 0), START, START,
        )  # fmt: skip
        await self.store.write(Rows(summaries=(row,)))

    def replay(self) -> Replay:
        return Replay(
            store=self.store,
            records=self.records,
            publisher=self.workers,
            codec=self.codec,
            clock=self.clock,
            topology=TOPOLOGY,
            copy=lambda delivery: replay_copy(delivery, "replay-1", "docsum-worker"),
            rate=self.rate,
            random=Random(1),
        )

    async def carry_out(self, selection: Selection = EVERYTHING, *, sample: bool = True) -> Replay:
        replay = self.replay()
        await replay.carry_out(await replay.plan(selection), lambda _progress: None, sample=sample)
        return replay

    async def states(self) -> Counter[str]:
        rows = await self.store.dead_letters(DeadLetterFilter(states=()), None, 10_000)
        return Counter(row.state for row in rows)


@pytest.fixture
def house() -> House:
    return House()


# -- the verdict -------------------------------------------------------------------------------------------

THERE = {0: range(10, 20), 1: range(10, 20), 2: range(10, 20)}


@pytest.mark.parametrize("topic", ["docsum.documents", "docsum.backfill", "docsum.batch", "crm.documents"])
def test_an_entry_goes_back_to_any_topic_that_is_consumed(topic: str) -> None:
    row = letter(12, origin=Coordinates(topic, 0, 1))
    assert judge(row, TOPOLOGY, THERE, None).fate is Fate.REPLAY


@pytest.mark.parametrize(
    ("fields", "wanted", "words"),
    [
        ({"origin": Coordinates("docsum.retry.10s", 0, 1)}, None, "DOCSUM_TOPICS__INPUTS"),
        ({"origin": Coordinates("docsum.dlq", 0, 1)}, None, "is no input"),
        ({"origin": Coordinates("evil", 0, 1)}, None, "is no input"),
        ({"dead_letter": Coordinates("old.dlq", 0, 12)}, None, "in old.dlq"),
        ({"dead_letter": Coordinates("docsum.dlq", 0, 9)}, None, "deleted"),
        ({"dead_letter": Coordinates("docsum.dlq", 0, 20)}, None, "deleted"),
        ({"dead_letter": Coordinates("docsum.dlq", 7, 12)}, None, "deleted"),
        ({}, ControlState.CANCELLED, "cancelled, and that is final"),
        ({}, ControlState.PAUSED, "`docsum runs resume"),
    ],
)
def test_an_entry_that_cannot_go_stays_and_says_why(
    fields: dict[str, Any], wanted: ControlState | None, words: str
) -> None:
    verdict = judge(letter(12, **fields), TOPOLOGY, THERE, a_run(wanted) if wanted else None)
    assert verdict.fate is Fate.STAY
    assert words in verdict.why


def test_what_was_replayed_twice_is_parked_whatever_else_is_wrong_with_it() -> None:
    assert judge(letter(12, replay_count=1), TOPOLOGY, THERE, None).fate is Fate.REPLAY
    assert judge(letter(12, replay_count=2), TOPOLOGY, {}, None).fate is Fate.PARK


# -- the sample --------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abcdefghijklmno"), st.integers(1, 1_000)), st.integers(1, 12))
def test_a_sample_has_of_every_reason_if_it_can_and_is_as_large_as_it_can_be(
    counts: dict[str, int], size: int
) -> None:
    drawn = {
        reason: [letter(n, reason=reason) for n in range(min(count, size))]
        for reason, count in counts.items()
    }
    sample = sample_of(drawn, counts, size)
    assert len(sample) == min(size, sum(counts.values()))
    of_reason = Counter(row.reason for row in sample)
    assert len(of_reason) == min(size, len(counts))
    assert all(of_reason[reason] <= counts[reason] for reason in of_reason)


def test_a_sample_has_more_of_what_there_is_more_of() -> None:
    counts = {"timeout": 9_000, "empty": 900, "scanned": 100}
    drawn = {reason: [letter(n, reason=reason) for n in range(SAMPLE)] for reason in counts}
    assert Counter(row.reason for row in sample_of(drawn, counts)) == {"timeout": 8, "empty": 1, "scanned": 1}


@pytest.mark.parametrize(
    ("proof", "good", "cause_remains"),
    [
        (Proof(10, 5, 5), True, False),
        (Proof(10, 4, 6), False, True),
        (Proof(10, 0, 6), False, True),
        (Proof(10, 5, 0), True, False),
        (Proof(10, 4, 5), False, False),
        (Proof(1, 0, 1), False, True),
        (Proof(0, 0, 0), True, False),
    ],
)
def test_more_than_half_must_fail_to_stop_and_may_not_be_able_to_for_going_on(
    proof: Proof, good: bool, cause_remains: bool
) -> None:
    assert (proof.good, proof.cause_remains) == (good, cause_remains)


async def test_the_plan_counts_by_reason_and_changes_nothing(house: House) -> None:
    run = a_run(ControlState.PAUSED)
    await house.store.save_run(run)
    assert run.control is not None
    await house.store.save_control(replace(run.control, target=run.id))
    await house.dead(*(letter(n) for n in range(20)), letter(20, reason="empty", replay_count=2))
    await house.dead(letter(21, reason="empty", run_id=run.id), letter(22, state="discarded"))
    plan = await house.replay().plan(EVERYTHING)
    assert plan.tally == {"timeout": {Fate.REPLAY: 20}, "empty": {Fate.PARK: 1, Fate.STAY: 1}}
    assert (plan.moves, len(plan.sample)) == (21, SAMPLE)
    assert list(plan.stays.values()) == [1]
    assert house.workers.copies == []
    assert await house.states() == {"open": 22, "discarded": 1}


async def test_a_sample_that_succeeds_lets_the_rest_go(house: House) -> None:
    await house.dead(*(letter(n) for n in range(200)))
    replay = await house.carry_out()
    assert replay.progress.replayed == 200
    assert replay.progress.proof == Proof(SAMPLE, SAMPLE, 0)
    assert await house.states() == {"resolved": 200}


async def test_a_copy_keeps_key_value_and_partition_and_says_what_it_is(house: House) -> None:
    await house.dead(letter(4, replay_count=1))
    await house.carry_out()
    (copy,) = house.workers.copies
    assert (copy.topic, copy.partition, copy.key) == ("docsum.documents", 1, b"doc-1")
    assert copy.value == b"event docsum.dlq[1]@4"
    headers = dict(copy.headers)
    assert headers["docsum-replay-count"] == b"2"
    assert headers["docsum-replay-id"] == b"replay-1"
    assert headers["docsum-replayed-from"] == b"docsum.dlq[1]@4"


async def test_a_sample_that_fails_again_stops_the_rest(house: House) -> None:
    await house.dead(*(letter(n) for n in range(200)))
    house.workers.fails = lambda _row: True
    replay = await house.carry_out()
    assert replay.progress.proof is not None
    assert replay.progress.proof.cause_remains
    assert len(house.workers.copies) == replay.progress.replayed == SAMPLE
    assert await house.states() == {"open": 200}


async def test_half_of_a_sample_may_fail(house: House) -> None:
    await house.dead(*(letter(n, reason=("empty", "timeout")[n % 2]) for n in range(100)))
    house.workers.fails = lambda row: row.reason == "empty"
    replay = await house.carry_out()
    assert replay.progress.replayed == 100
    assert await house.states() == {"resolved": 50, "open": 50}


async def test_what_fails_again_meanwhile_is_not_sent_a_second_time(house: House) -> None:
    await house.dead(*(letter(n) for n in range(300)))
    house.workers.fails = lambda row: row.dead_letter.offset >= 10
    await house.carry_out(sample=False)
    assert len(house.workers.copies) == 300
    assert await house.states() == {"open": 290, "resolved": 10}


async def test_a_sample_without_end_stops_after_a_while(house: House) -> None:
    await house.dead(*(letter(n) for n in range(50)))
    house.workers.silent = lambda _row: True
    replay = await house.carry_out()
    assert replay.progress.proof == Proof(SAMPLE, 0, 0)
    assert len(house.workers.copies) == SAMPLE
    assert timedelta(minutes=5) <= house.clock.now() - START < timedelta(minutes=6)


async def test_all_are_waited_for_when_there_is_no_rest(house: House) -> None:
    await house.dead(*(letter(n) for n in range(4)))
    house.workers.silent = lambda row: row.document_id == "3.pdf"
    replay = await house.carry_out()
    assert replay.progress.proof == Proof(4, 3, 0)
    assert house.clock.now() - START >= timedelta(minutes=5)


async def test_a_store_that_is_away_while_the_sample_is_looked_at_is_waited_for(house: House) -> None:
    await house.dead(*(letter(n) for n in range(20)))
    real, away = house.store.known, [True, True]

    async def known(document_id: str) -> Known | None:
        if away:
            away.pop()
            raise StoreUnavailable("away")
        return await real(document_id)

    house.store.known = known  # type: ignore[method-assign]  # one look-up fails, as the real store's may
    replay = await house.carry_out()
    assert replay.progress.replayed == 20


@pytest.mark.parametrize("target", [ALL_WORK, LIVE_EVENTS])
async def test_no_sample_goes_while_nothing_would_take_it(house: House, target: Any) -> None:
    await house.dead(letter(1))
    await house.store.save_control(Control(target, ControlState.PAUSED, "A move.", changed_at=START))
    with pytest.raises(WorkPaused, match=r"paused \(A move\).*docsum resume --all"):
        await house.carry_out()
    assert house.workers.copies == []
    replay = await house.carry_out(sample=False)
    assert replay.progress.replayed == 1


# -- parking, limits, selections ---------------------------------------------------------------------------


async def test_poison_that_is_replayed_three_times_is_parked(house: House) -> None:
    await house.dead(letter(1))
    house.workers.fails = lambda _row: True
    for _ in range(2):
        await house.carry_out()
        assert await house.states() == {"open": 1}
    replay = await house.carry_out()
    assert (replay.progress.replayed, replay.progress.parked) == (0, 1)
    assert len(house.workers.copies) == 2
    assert await house.states() == {"parked": 1}
    assert (await house.replay().plan(EVERYTHING)).moves == 0


async def test_no_more_go_than_the_limit_the_sample_included(house: House) -> None:
    await house.dead(*(letter(n) for n in range(100)))
    replay = await house.carry_out(Selection(OPEN, limit=25))
    assert replay.progress.replayed == 25
    assert len(house.workers.copies) == 25
    gone = {delivery_of("", 0, 0, None, None, copy.headers, 0).origin for copy in house.workers.copies}
    in_order = sorted(house.rows.values(), key=lambda row: row.dead_letter)
    assert gone == {row.origin for row in in_order[:25]}


async def test_single_entries_and_documents_can_be_meant_together(house: House) -> None:
    await house.dead(*(letter(n) for n in range(10)))
    meant = DeadLetterFilter(documents=("7.pdf",))
    selection = Selection(meant, (letter(2).dead_letter, letter(3).dead_letter))
    await house.carry_out(selection)
    assert {copy.value for copy in house.workers.copies} == {
        b"event docsum.dlq[2]@2",
        b"event docsum.dlq[0]@3",
        b"event docsum.dlq[1]@7",
    }
    again = await house.carry_out(selection)
    assert again.progress.replayed == 0


async def test_records_that_cannot_be_read_are_counted_and_stay_open(house: House) -> None:
    await house.dead(*(letter(n) for n in range(30)))
    house.records.found[letter(4).dead_letter] = None
    other = house.records.found[letter(5).dead_letter]
    assert other is not None
    house.records.found[letter(5).dead_letter] = replace(
        other, origin=Coordinates("docsum.documents", 0, 99)
    )  # the topic was made anew
    replay = await house.carry_out(sample=False)
    assert (replay.progress.replayed, replay.progress.gone) == (28, 2)
    assert await house.states() == {"resolved": 28, "open": 2}


async def test_an_event_that_can_be_decoded_by_now_is_resolved_by_its_document(house: House) -> None:
    row = letter(1, document_id="", document_version=0, reason="invalid_event")
    await house.dead(row)
    house.codec.known[b"event docsum.dlq[1]@1"] = replace(reference("late.pdf"), version=0)
    replay = await house.carry_out()
    assert replay.progress.proof == Proof(1, 1, 0)
    assert await house.states() == {"resolved": 1}


async def test_an_event_that_still_cannot_be_decoded_is_seen_to_fail(house: House) -> None:
    row = letter(1, document_id="", document_version=0, reason="invalid_event")
    await house.dead(row)
    house.codec.known[b"event docsum.dlq[1]@1"] = InvalidEvent()
    house.workers.fails = lambda _row: True
    replay = await house.carry_out()
    assert replay.progress.proof == Proof(1, 0, 1)


async def test_the_rate_is_kept(house: House) -> None:
    await house.dead(*(letter(n) for n in range(500)))
    house.rate = 50
    await house.carry_out(sample=False)
    assert timedelta(seconds=9.5) < house.clock.now() - START < timedelta(seconds=10.5)


# -- stopped half-way --------------------------------------------------------------------------------------


async def test_a_broker_that_goes_away_leaves_what_has_gone_written_down(house: House) -> None:
    await house.dead(*(letter(n) for n in range(100)))
    house.rate = 20
    replay = house.replay()
    plan = await replay.plan(EVERYTHING)
    real, calls = house.workers.publish, [0]

    async def publish(copy: RecordCopy) -> Coordinates:
        calls[0] += 1
        if calls[0] > 50:
            raise BrokerUnavailable("away")
        return await real(copy)

    house.workers.publish = publish  # type: ignore[method-assign]  # the broker goes away half-way
    with pytest.raises(BrokerUnavailable):
        await replay.carry_out(plan, lambda _progress: None, sample=False)
    assert replay.progress.replayed == 50
    assert await house.states() == {"resolved": 50, "open": 50}
    house.workers.publish = real  # type: ignore[method-assign]  # and is back
    again = await house.carry_out(sample=False)
    assert again.progress.replayed == 50
    assert len(house.workers.copies) == 100


async def test_a_topic_that_cannot_be_read_any_more_leaves_what_has_gone_written_down(house: House) -> None:
    await house.dead(*(letter(n) for n in range(100)))
    house.records.error, house.records.error_after = BrokerUnavailable("away"), 30
    with pytest.raises(BrokerUnavailable):
        await house.carry_out(sample=False)
    assert await house.states() == {"resolved": 30, "open": 70}


async def test_an_interruption_lets_what_is_on_its_way_arrive_and_writes_it_down(house: House) -> None:
    await house.dead(*(letter(n) for n in range(100)))
    release, replay = asyncio.Event(), house.replay()
    real = house.workers.publish

    async def publish(copy: RecordCopy) -> Coordinates:
        await release.wait()
        return await real(copy)

    house.workers.publish = publish  # type: ignore[method-assign]  # acknowledgements are slow
    plan = await replay.plan(EVERYTHING)
    task = asyncio.create_task(replay.carry_out(plan, lambda _progress: None, sample=False))
    await within_turns(lambda: house.clock.now() > START + timedelta(milliseconds=50), 10_000)
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < replay.progress.replayed == len(house.workers.copies)
    assert (await house.states())["resolved"] == replay.progress.replayed
    house.workers.publish = real  # type: ignore[method-assign]  # as before
    await house.carry_out(sample=False)
    assert len(house.workers.copies) == 100
    assert await house.states() == {"resolved": 100}


@given(kill_after=st.integers(0, 45))
async def test_a_kill_at_any_moment_loses_nothing_and_repeats_a_batch_at_most(kill_after: int) -> None:
    """The store stops taking rows: whatever was copied after that is copied once more."""
    house = House()
    await house.dead(*(letter(n) for n in range(45)))
    house.rate = 10
    real, written = house.store.write, [0]

    async def write(rows: Rows) -> None:
        written[0] += sum(row.state == "replayed" for row in rows.dead_letters)
        if written[0] > kill_after:
            raise RuntimeError("killed")
        await real(rows)

    house.store.write = write  # type: ignore[method-assign]  # as if the process had died before it
    house.workers.silent = lambda _row: True
    if kill_after < 45:
        with pytest.raises(RuntimeError, match="killed"):
            await house.carry_out(sample=False)
    house.store.write = real  # type: ignore[method-assign]  # the next call
    await house.carry_out(sample=False)
    copied = Counter(copy.value for copy in house.workers.copies)
    assert set(copied) == {f"event {row.dead_letter}".encode() for row in house.rows.values()}
    assert sum(copied.values()) <= 45 + 10
    assert (await house.states())["replayed"] == 45


# -- discarding, and words ---------------------------------------------------------------------------------


async def test_discarded_entries_are_not_replayed_and_can_still_be_listed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.replay.AT_ONCE", 4)
    await house.dead(*(letter(n, reason="empty") for n in range(10)), letter(10))
    selection = Selection(DeadLetterFilter(reasons=("empty",)), (letter(10).dead_letter,))
    assert [count async for count in discard(house.store, selection, ("open",))] == [4, 4, 3]
    assert await house.states() == {"discarded": 11}
    assert (await house.replay().plan(EVERYTHING)).moves == 0


def test_a_selection_is_told_in_words() -> None:
    run = uuid4()
    meant = DeadLetterFilter(
        states=("open",), reasons=("timeout", "empty"), documents=("a.pdf",), run_id=run, since=START
    )
    assert told(meant) == (
        f"open entries that failed with timeout or empty of a.pdf of run {run} since 2026-11-23 12:00 UTC"
    )
    assert str(Selection(None, (Coordinates("docsum.dlq", 3, 17),), 5)) == "docsum.dlq[3]@17, at most 5"
    assert told(DeadLetterFilter(states=())) == "all entries"


def test_a_plan_of_nothing_moves_nothing() -> None:
    assert Plan(EVERYTHING, {}, {}, (), {}).moves == 0
