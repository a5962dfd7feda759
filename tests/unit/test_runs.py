"""Publishing and following, on the store in memory and a publisher that records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from docsum.errors import (
    BrokerRefused,
    BrokerUnavailable,
    DocsumError,
    InvalidEvent,
    RegistryUnavailable,
    StoreUnavailable,
)
from docsum.models import (
    Control,
    ControlState,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
)
from docsum.runs import PATIENCE, Published, UnknownRun, follow, publish
from docsum.sources import Entry, Ignored, Listed, Unreadable
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock
from tests.support.waiting import eventually


def a_run(**fields: object) -> Run:
    run = Run(
        id=uuid4(),
        name="test",
        source="/data",
        recipe=Recipe("local-extractive-1"),
        lane=Lane.BACKFILL,
        state=RunState.PUBLISHING,
        created_at=START,
        updated_at=START,
    )
    return replace(run, **fields)  # type: ignore[arg-type]  # a builder


def documents(*names: str) -> Iterator[Entry]:
    return (Listed(name, f"file:///data/{name}", START) for name in names)


@dataclass
class Recorder:
    """Announces to a list; answers what was prepared for a document, once each."""

    clock: FakeClock
    seen: list[str] = field(default_factory=list)
    errors: dict[str, list[DocsumError]] = field(default_factory=dict)
    blocked: asyncio.Event | None = None
    published_at: datetime | None = None

    async def __call__(self, run: Run, listed: Sequence[Listed]) -> list[datetime | DocsumError]:
        if self.blocked is not None:
            await self.blocked.wait()
        return [self._announced(entry.document_id) for entry in listed]

    def _announced(self, document_id: str) -> datetime | DocsumError:
        if self.errors.get(document_id):
            return self.errors[document_id].pop(0)
        self.seen.append(document_id)
        return self.published_at or self.clock.now()


class FlakyStore(MemoryStore):
    """Fails as often as it is told to."""

    failures_left = 0

    def _fail(self) -> None:
        if self.failures_left:
            self.failures_left -= 1
            raise StoreUnavailable("ClickHouse is down.")

    async def run_documents(self, run_id: UUID, document_ids: object) -> frozenset[str]:
        self._fail()
        return await super().run_documents(run_id, document_ids)  # type: ignore[arg-type]  # passed on

    async def progress(self, run_id: UUID) -> RunProgress:
        self._fail()
        return await super().progress(run_id)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FlakyStore:
    return FlakyStore(clock.now)


@pytest.fixture
def recorder(clock: FakeClock) -> Recorder:
    return Recorder(clock)


async def finish(store: MemoryStore, run: Run, *names: str, state: State = State.DONE) -> None:
    rows = [RunDocumentRow(run.id, name, state, "", 1, "", "", START) for name in names]
    await store.write(Rows(run_documents=tuple(rows)))


# -- publishing --------------------------------------------------------------------------------------------


async def test_every_document_is_announced_and_expected(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = await publish(a_run(), documents("a", "b", "c"), store=store, announce=recorder, clock=clock)
    assert recorder.seen == ["a", "b", "c"]
    assert (await store.progress(run.id)).queued == 3
    assert run == await store.run(run.id)
    assert (run.state, run.listed) == (RunState.PUBLISHED, 3)


async def test_a_document_that_stands_twice_in_the_source_is_announced_once(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    counts: list[Published] = []
    run = await publish(
        a_run(), documents("a", "b", "a"), store=store, announce=recorder, clock=clock, tell=counts.append
    )
    assert recorder.seen == ["a", "b"]
    assert (await store.progress(run.id)).total == 2
    assert (counts[-1].listed, counts[-1].announced, counts[-1].already) == (3, 2, 1)


async def test_a_queued_row_that_comes_late_hides_nothing(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run, recorder.published_at = a_run(), START
    later = RunDocumentRow(run.id, "a", State.RETRYING, "", 1, "timeout", "", START + timedelta(seconds=1))

    async def worked_on_at_once(run: Run, listed: Sequence[Listed]) -> list[datetime | DocsumError]:
        await store.write(Rows(run_documents=(later,)))
        return await recorder(run, listed)

    await publish(run, documents("a"), store=store, announce=worked_on_at_once, clock=clock)
    assert [row async for row, _ in store.run_rows(run.id)] == [later]


async def test_resuming_announces_only_what_has_no_row(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = await publish(a_run(limit=2), documents("a", "b", "c"), store=store, announce=recorder, clock=clock)
    await finish(store, run, "a")
    again = replace(run, limit=None)
    await publish(again, documents("a", "b", "c"), store=store, announce=recorder, clock=clock)
    assert recorder.seen == ["a", "b", "c"]
    progress = await store.progress(run.id)
    assert (progress.done, progress.queued) == (1, 2)


async def test_a_limit_counts_the_documents_of_the_source(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    for _ in range(2):
        run = a_run(id=UUID(int=7), limit=2)
        await publish(run, documents("a", "b", "c"), store=store, announce=recorder, clock=clock)
    assert recorder.seen == ["a", "b"]


async def test_what_cannot_be_announced_is_told_and_the_rest_goes_on(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    told: list[Unreadable] = []
    recorder.errors["bad"] = [InvalidEvent("document_id holds a control character.")]
    entries: list[Entry] = [Unreadable("line 3", "no JSON"), Ignored("/data/.x", "hidden")]
    run = await publish(
        a_run(),
        iter([*documents("a", "bad"), *entries, *documents("b")]),
        store=store,
        announce=recorder,
        clock=clock,
        complain=told.append,
    )
    assert recorder.seen == ["a", "b"]
    assert {each.where for each in told} == {"line 3", "bad"}
    assert (run.state, run.listed, run.unreadable) == (RunState.PUBLISHED, 3, 2)


async def test_an_outage_is_waited_out(store: FlakyStore, recorder: Recorder, clock: FakeClock) -> None:
    counts: list[Published] = []
    store.failures_left = 3
    recorder.errors["a"] = [BrokerUnavailable("Kafka is down."), RegistryUnavailable("So is the registry.")]
    run = await publish(
        a_run(), documents("a"), store=store, announce=recorder, clock=clock, tell=counts.append
    )
    assert run.state is RunState.PUBLISHED
    waited = {"ClickHouse is down.", "Kafka is down.", "So is the registry."}
    assert waited <= {count.waiting for count in counts}


async def test_an_outage_that_does_not_end_leaves_a_run_that_can_be_resumed(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = a_run()
    recorder.errors["b"] = [BrokerUnavailable("Kafka is down.")] * 1_000
    with pytest.raises(BrokerUnavailable):
        await publish(run, documents("a", "b"), store=store, announce=recorder, clock=clock)
    assert clock.now() - START >= PATIENCE
    stored = await store.run(run.id)
    assert stored is not None
    assert stored.state is RunState.INTERRUPTED
    assert (await store.progress(run.id)).queued == 1  # what was acknowledged is expected


async def test_what_waiting_does_not_help_ends_at_once(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = a_run()
    recorder.errors["b"] = [BrokerRefused("The Kafka user lacks Write.")] * 1_000
    with pytest.raises(BrokerRefused):
        await publish(run, documents("a", "b"), store=store, announce=recorder, clock=clock)
    assert len(recorder.errors["b"]) == 999  # it was asked once
    assert (await store.progress(run.id)).queued == 1


async def test_an_interruption_is_written_down(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run, recorder.blocked = a_run(), asyncio.Event()

    class Patient(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    publishing = asyncio.create_task(
        publish(run, documents("a"), store=store, announce=recorder, clock=Patient())
    )
    await eventually(lambda: run.id in store._runs)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    stored = await store.run(run.id)
    assert stored is not None
    assert stored.state is RunState.INTERRUPTED


async def test_a_publisher_shows_that_it_lives(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run, recorder.blocked = a_run(), asyncio.Event()
    publishing = asyncio.create_task(
        publish(run, documents("a"), store=store, announce=recorder, clock=clock)
    )
    await eventually(lambda: clock.now() - START > timedelta(minutes=2))
    stored = await store.run(run.id)
    assert stored is not None
    assert stored.state is RunState.PUBLISHING
    assert clock.now() - stored.updated_at <= timedelta(seconds=10)
    recorder.blocked.set()
    assert (await publishing).state is RunState.PUBLISHED


async def test_a_publisher_waits_while_the_group_is_behind(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    behind, told = [25, 12, 9, 0, 0], list[str]()

    async def lag() -> int:
        return behind.pop(0) if behind else 0

    await publish(
        a_run(),
        documents(*(f"{number:02}" for number in range(30))),
        store=store,
        announce=recorder,
        clock=clock,
        lag=lag,
        max_lag=10,
        tell=lambda published: told.append(published.waiting),
    )
    assert len(recorder.seen) == 30
    assert [text for text in told if text] == [
        "25 events are waiting for the workers",
        "12 events are waiting for the workers",
    ]


async def test_memory_is_bounded_by_a_batch(
    store: FlakyStore, recorder: Recorder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read ahead than a batch, and no more is in flight."""
    monkeypatch.setattr("docsum.runs.AT_ONCE", 10)
    read, ahead = 0, 0

    def endless() -> Iterator[Entry]:
        nonlocal read, ahead
        for number in range(200):
            read += 1
            ahead = max(ahead, read - len(recorder.seen))
            yield Listed(f"{number}", "file:///data/x", START)

    await publish(a_run(), endless(), store=store, announce=recorder, clock=clock)
    assert len(recorder.seen) == 200
    assert ahead <= 31  # a batch in flight, one in the queue, one on its way between them


# -- following ---------------------------------------------------------------------------------------------


async def test_following_ends_when_everything_has_its_end(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = await publish(a_run(), documents("a", "b"), store=store, announce=recorder, clock=clock)
    looks = []
    async for snapshot in follow(run.id, store, clock):
        looks.append(snapshot.progress.remaining)
        await finish(store, run, "a" if len(looks) == 1 else "b")
    assert looks == [2, 1, 0]


async def test_following_does_not_end_before_everything_is_announced(
    store: FlakyStore, clock: FakeClock
) -> None:
    run = a_run()
    await store.save_run(run)
    looks = 0
    async for snapshot in follow(run.id, store, clock):
        looks += 1
        if looks == 3:
            assert not snapshot.finished
            await store.save_run(replace(run, state=RunState.PUBLISHED, updated_at=clock.now()))
    assert looks == 4


async def test_a_run_whose_publisher_is_gone_is_followed_to_the_end_of_what_it_announced(
    store: FlakyStore, clock: FakeClock
) -> None:
    run = a_run()
    await store.save_run(run)
    await finish(store, run, "a")
    clock.advance(timedelta(seconds=31))
    states = [snapshot.run.state async for snapshot in follow(run.id, store, clock)]
    assert states == [RunState.INTERRUPTED]


async def test_following_ends_when_a_paused_run_has_nothing_on_its_way_any_more(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    recorder.published_at = START - timedelta(seconds=1)
    run = await publish(a_run(), documents("a", "b", "c"), store=store, announce=recorder, clock=clock)
    await store.save_control(Control(run.id, ControlState.PAUSED, "Lunch.", changed_at=clock.now()))
    moves = [("a", State.HELD), ("b", State.DONE), ("c", State.HELD)]
    looks = []
    async for snapshot in follow(run.id, store, clock):
        looks.append((snapshot.progress.queued, snapshot.progress.held, snapshot.rests))
        if moves:
            name, state = moves.pop(0)
            await finish(store, run, name, state=state)
    assert looks == [(3, 0, False), (2, 1, False), (1, 1, False), (0, 2, True)]


@pytest.mark.parametrize(
    ("state", "document", "ends"),
    [
        (ControlState.PAUSED, State.RETRYING, False),
        (ControlState.PAUSED, State.DONE, True),  # finished before it was paused
        (ControlState.RUNNING, State.HELD, False),  # about to go back
        (ControlState.CANCELLED, State.HELD, False),  # about to be cancelled
        (ControlState.CANCELLED, State.CANCELLED, True),
    ],
)
async def test_what_is_on_its_way_is_followed(
    store: FlakyStore, clock: FakeClock, state: ControlState, document: State, ends: bool
) -> None:
    run = a_run(state=RunState.PUBLISHED)
    await store.save_run(run)
    await store.save_control(Control(run.id, state, changed_at=clock.now()))
    await finish(store, run, "a", state=document)
    looks = 0
    async for snapshot in follow(run.id, store, clock):
        looks += 1
        if looks > 3:
            break
        assert snapshot.stands_still is ends
    assert (looks == 1) is ends


async def test_an_outage_while_following_is_shown_and_waited_out(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run = await publish(a_run(), documents("a"), store=store, announce=recorder, clock=clock)
    troubles = []
    async for snapshot in follow(run.id, store, clock):
        troubles.append(snapshot.trouble)
        store.failures_left = 2 if len(troubles) == 1 else store.failures_left
        await finish(store, run, "a")
    assert troubles == ["", "ClickHouse is down.", "ClickHouse is down.", ""]


async def test_an_unknown_run_is_said_to_be_unknown(store: FlakyStore, clock: FakeClock) -> None:
    with pytest.raises(UnknownRun):
        async for _ in follow(uuid4(), store, clock):
            pass


async def test_a_paused_run_is_not_announced_until_it_is_resumed_and_a_cancelled_one_never(
    store: FlakyStore, recorder: Recorder, clock: FakeClock
) -> None:
    run, told = a_run(), list[str]()
    await store.save_control(Control(run.id, ControlState.PAUSED, "Lunch.", changed_at=clock.now()))

    def tell(published: Published) -> None:
        told.append(published.waiting)

    publishing = asyncio.create_task(
        publish(run, documents("a"), store=store, announce=recorder, clock=clock, tell=tell)
    )
    await eventually(lambda: "the run is paused: Lunch." in told)
    assert recorder.seen == []
    await store.save_control(Control(run.id, changed_at=clock.now()))
    assert (await publishing).state is RunState.PUBLISHED
    assert recorder.seen == ["a"]
    over = a_run(id=UUID(int=9))
    await store.save_control(Control(over.id, ControlState.CANCELLED, "Enough.", changed_at=clock.now()))
    await publish(over, documents("b"), store=store, announce=recorder, clock=clock)
    assert recorder.seen == ["a"]
