"""The path of one event, on fakes: what is bought, what is written, what is waited out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docsum.errors import (
    BrokerUnavailable,
    DocsumError,
    Encrypted,
    InvalidEvent,
    ModelFaltered,
    ModelKeyRejected,
    ModelRateLimited,
    ModelRejectedDocument,
    ModelUnknown,
    ModelUnreachable,
    Scanned,
    SourceUnavailable,
    StoreUnavailable,
)
from docsum.kafka.worker import is_working
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Answer,
    Control,
    ControlState,
    DeadLettered,
    Document,
    DocumentReference,
    Held,
    Lane,
    Operation,
    Outcome,
    Recipe,
    Retried,
    Run,
    RunState,
    Skipped,
    SkipReason,
    Stored,
    Summary,
    Usage,
    to_ms,
)
from docsum.pipeline import MOST_SCANNED_PAGES, ByteBudget, Deferred, Pipeline, Trip
from docsum.ports import Later
from docsum.stores.memory import MemoryStore
from docsum.topics import Topology
from tests.support.fakes import (
    START,
    FakeClock,
    FakeCodec,
    FakeCopies,
    FakeExtractor,
    FakeFetcher,
    FakeObserver,
    FakePublisher,
    FakeResults,
    FakeSummariser,
    delivery,
    reference,
    summary,
)
from tests.support.waiting import eventually, within_turns

RECIPE = Recipe("local-extractive-1")


class House:
    """A pipeline with all its fakes in reach."""

    def __init__(self, results: FakeResults | None = None) -> None:
        self.codec, self.fetcher, self.extractor = FakeCodec(), FakeFetcher(), FakeExtractor()
        self.summariser, self.publisher = FakeSummariser(), FakePublisher()
        self.observer, self.clock, self.store = FakeObserver(), FakeClock(), MemoryStore()
        self.pipeline = Pipeline(
            codec=self.codec,
            fetcher=self.fetcher,
            extractor=self.extractor,
            summariser=self.summariser,
            store=self.store,
            publisher=self.publisher,
            observer=self.observer,
            clock=self.clock,
            topology=Topology(),
            recipe=RECIPE,
            copies=FakeCopies(),
            worker="test",
            results=results,
        )

    def trip(self, event: DocumentReference | Exception, attempt: int = 1) -> Trip:
        value = str(uuid4()).encode()
        self.codec.known[value] = event
        return Trip(delivery(value=value, attempt=attempt))

    async def process(self, event: DocumentReference | Exception, attempt: int = 1) -> Outcome:
        outcome = await self.pipeline.process(self.trip(event, attempt))
        assert not isinstance(outcome, Deferred)
        return outcome


@pytest.fixture
def house() -> House:
    return House()


async def test_a_new_document_is_summarised_once_and_stored(house: House) -> None:
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Stored)
    stored = await house.store.summary("a")
    assert stored is not None and stored.summary is not None
    assert stored.summary.summary == "Summary of a."
    assert house.summariser.calls == 1


async def test_what_is_set_aside_holds_no_text(house: House) -> None:
    """A traceback would: of every function on the way, with all that it knew."""
    house.summariser.errors.append(Later([asyncio.get_running_loop().create_future()]))
    outcome = await house.pipeline.process(house.trip(reference("a")))
    assert isinstance(outcome, Deferred)
    assert outcome.later.__traceback__ is None
    assert outcome.later.__context__ is None


async def test_a_redelivery_buys_nothing_and_writes_done_again(house: House) -> None:
    run = uuid4()
    event = reference("a", run_id=run)
    await house.process(event)
    outcome = await house.process(event)
    assert isinstance(outcome, Stored) and outcome.redelivered
    assert house.summariser.calls == house.fetcher.calls == 1
    assert (await house.store.progress(run)).done == 1


async def test_the_same_source_version_by_the_same_recipe_is_carried_to_the_new_version(house: House) -> None:
    run = uuid4()
    await house.process(reference("a"))
    later = reference("a", occurred_at=START + timedelta(hours=1), run_id=run)
    outcome = await house.process(later)
    assert isinstance(outcome, Skipped) and outcome.reason is SkipReason.UNCHANGED
    assert house.fetcher.calls == 1
    known = await house.store.known("a")
    assert known is not None and known.version == later.version
    redelivered = await house.process(later)
    assert isinstance(redelivered, Skipped)  # the run's row stays as it was
    assert (await house.store.progress(run)).skipped == 1


@pytest.mark.parametrize(
    "change",
    [{"source_version": "v2"}, {"source_version": ""}, {"force": True}],
    ids=["changed", "unknown", "forced"],
)
async def test_a_changed_unknown_or_forced_version_is_worked(house: House, change: dict[str, Any]) -> None:
    await house.process(reference("a"))
    outcome = await house.process(reference("a", occurred_at=START + timedelta(hours=1), **change))
    assert isinstance(outcome, Stored)
    assert house.fetcher.calls == 2


async def test_an_older_event_never_shows_over_a_newer_one_and_is_not_fetched(house: House) -> None:
    newer = reference("a", occurred_at=START + timedelta(hours=1))
    await house.process(newer)
    outcome = await house.process(reference("a", source_version="v0"))
    assert outcome == Skipped(SkipReason.SUPERSEDED)
    assert house.fetcher.calls == 1


async def test_another_recipe_of_the_run_makes_a_new_summary(house: House) -> None:
    await house.process(reference("a"))
    other = replace(RECIPE, words=50)
    run = Run(uuid4(), "again", "/documents", other, Lane.BACKFILL, RunState.PUBLISHED, START, START)
    await house.store.save_run(run)
    outcome = await house.process(reference("a", run_id=run.id, occurred_at=START + timedelta(hours=1)))
    assert isinstance(outcome, Stored)
    stored = await house.store.summary("a")
    assert stored is not None and stored.summary is not None and stored.summary.recipe == other.id


async def test_a_deletion_leaves_a_tombstone_and_a_later_event_brings_the_document_back(house: House) -> None:
    await house.process(reference("a"))
    gone = reference("a", occurred_at=START + timedelta(hours=1), operation=Operation.DELETE)
    assert await house.process(gone) == Skipped(SkipReason.DELETED)
    assert await house.store.summary("a") is None
    assert await house.process(gone) == Skipped(SkipReason.DELETED, redelivered=True)
    assert await house.process(reference("a", source_version="v0")) == Skipped(SkipReason.SUPERSEDED)
    back = await house.process(reference("a", occurred_at=START + timedelta(hours=2)))
    assert isinstance(back, Stored)


async def test_a_hopeless_document_is_dead_lettered_at_once(house: House) -> None:
    run = uuid4()
    house.extractor.errors = [Encrypted()]
    outcome = await house.process(reference("a", run_id=run))
    assert isinstance(outcome, DeadLettered) and outcome.failure.reason == "encrypted"
    assert [copy.topic for copy in house.publisher.copies] == ["docsum.dlq"]
    assert (await house.store.progress(run)).dead_lettered == 1


@pytest.mark.parametrize(
    ("recipe", "pages", "sent"),
    [
        (RECIPE, 3, False),
        (replace(RECIPE, scanned="send-pdf"), 3, True),
        (replace(RECIPE, scanned="send-pdf"), MOST_SCANNED_PAGES + 1, False),
    ],
)
async def test_scanned_pages_are_sent_only_where_the_recipe_says_so_and_they_fit(
    house: House, recipe: Recipe, pages: int, sent: bool
) -> None:
    house.pipeline.recipe = recipe
    house.extractor.errors = [Scanned("They are pictures.", pages=pages)]
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Stored if sent else DeadLettered)
    texts = [(text.pdf, text.pages) for text in house.summariser.texts]
    assert texts == ([(b"hello", pages)] if sent else [])


async def test_a_document_s_own_trouble_goes_through_every_retry_topic_and_then_to_the_dlq(
    house: House,
) -> None:
    topics = []
    for attempt in (1, 2, 3, 4):
        house.fetcher.errors = [SourceUnavailable("503")]
        await house.process(reference("a"), attempt=attempt)
        topics.append(house.publisher.copies[-1].topic)
    assert topics == ["docsum.retry.10s", "docsum.retry.30s", "docsum.retry.90s", "docsum.dlq"]


async def test_an_undecodable_record_is_dead_lettered_with_its_bytes(house: House) -> None:
    trip = house.trip(InvalidEvent("The value is empty."))
    outcome = await house.pipeline.process(trip)
    assert isinstance(outcome, DeadLettered) and outcome.failure.reason == "invalid_event"
    assert house.publisher.copies[0].value == trip.delivery.value


async def test_a_fault_of_our_own_is_retried_and_carries_its_stack(house: House) -> None:
    house.extractor.errors = [ZeroDivisionError("ours")]
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Retried) and outcome.failure.reason == "internal_error"
    assert "ZeroDivisionError" in outcome.failure.stacktrace


@pytest.mark.parametrize(
    "error",
    [ModelUnreachable(), ModelRateLimited(retry_after=timedelta(minutes=9)), ModelKeyRejected()],
    ids=lambda error: type(error).__name__,
)
async def test_an_outage_is_waited_out_at_the_step_and_spends_no_attempt(
    house: House, error: DocsumError
) -> None:
    house.summariser.errors = [error] * 30
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Stored)
    assert house.publisher.copies == []
    assert len(house.observer.held) >= 30
    assert house.clock.now() - START > timedelta(minutes=2)
    assert house.fetcher.calls > 1  # the text was let go of meanwhile


async def test_no_text_is_held_while_the_provider_asks_for_a_long_pause(house: House) -> None:
    house.summariser.errors = [ModelRateLimited(retry_after=timedelta(minutes=30))]
    assert isinstance(await house.process(reference("a")), Stored)
    assert house.fetcher.calls == 2  # let go of, and read again
    assert timedelta(minutes=30) <= house.clock.now() - START < timedelta(minutes=31)
    assert house.publisher.copies == []


async def test_a_short_hold_keeps_the_text(house: House) -> None:
    house.summariser.errors = [ModelUnreachable()] * 3
    await house.process(reference("a"))
    assert house.fetcher.calls == 1


async def test_a_provider_that_fails_on_one_document_only_is_this_document_s_trouble(house: House) -> None:
    house.summariser.errors = [ModelFaltered("500")] * 100
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Retried) and outcome.failure.reason == "model_faltered"
    assert timedelta(seconds=59) < house.clock.now() - START < timedelta(seconds=120)


async def test_what_fails_at_the_provider_while_others_get_through_is_this_document_s_trouble(
    house: House,
) -> None:
    class FailsForOne(FakeSummariser):
        async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
            if reference.document_id == "bad":
                raise ModelFaltered("500")
            return await super().summarise(reference, *rest)

    house.pipeline.summariser = FailsForOne()
    bad, *good = await asyncio.gather(*(house.process(reference(name)) for name in ("bad", "a", "b", "c")))
    assert isinstance(bad, Retried) and all(isinstance(outcome, Stored) for outcome in good)
    assert house.clock.now() - START < timedelta(seconds=59)


async def test_answers_to_calls_from_before_an_outage_do_not_make_it_one_document_s_trouble(
    house: House,
) -> None:
    class Outage(FakeSummariser):
        async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
            assert self.gate is not None
            if reference.document_id == "late":
                self.gate.set()
                self.step()
            return await super().summarise(reference, *rest)

    house.pipeline.summariser = model = Outage(gate=asyncio.Event())
    before = [asyncio.create_task(house.process(reference(name))) for name in ("a", "b", "c")]
    await eventually(lambda: model.calls == 3)
    model.errors = [ModelFaltered("529")] * 5
    late = await house.process(reference("late"))
    assert all(isinstance(outcome, Stored) for outcome in (late, *await asyncio.gather(*before)))


async def test_answers_that_are_used_again_say_nothing_of_the_provider(house: House) -> None:
    class Reuses(FakeSummariser):
        async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
            if reference.document_id.startswith("known"):
                return summary()
            return await super().summarise(reference, *rest)

    house.pipeline.summariser = Reuses([ModelFaltered("529")] * 5)
    names = ("new", "known-1", "known-2", "known-3")
    outcomes = await asyncio.gather(*(house.process(reference(name)) for name in names))
    assert all(isinstance(outcome, Stored) for outcome in outcomes)


async def test_an_outage_of_the_provider_opens_the_breaker_and_spends_no_attempt(house: House) -> None:
    class Down(FakeSummariser):
        until = START + timedelta(minutes=10)

        async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
            if house.clock.now() < self.until:
                self.calls += 1
                raise ModelFaltered("529")
            return await super().summarise(reference, *rest)

    house.pipeline.summariser = down = Down()
    documents = [house.process(reference(f"doc-{number}")) for number in range(30)]
    outcomes = await asyncio.wait_for(asyncio.gather(*documents), 30)
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert house.publisher.copies == []
    assert down.calls < 30 + 30 + 10 * 60 / 2  # each once or twice, then one probe at a time
    assert house.pipeline.breakers.troubles() == []


async def test_documents_of_a_host_that_is_down_wait_without_spending_attempts(house: House) -> None:
    class HostDown(FakeFetcher):
        async def fetch(self, reference: DocumentReference) -> Document:
            if "down" in reference.uri:
                self.calls += 1
                raise SourceUnavailable("It does not answer.")
            return await super().fetch(reference)

    house.pipeline.fetcher = fetcher = HostDown()
    outcomes = [
        await house.process(reference(f"doc-{number}", uri=f"https://down.example/{number}"))
        for number in range(30)
    ]
    assert all(isinstance(outcome, Retried) for outcome in outcomes)
    spent = [outcome.spent for outcome in outcomes if isinstance(outcome, Retried)]
    assert spent == [True] * 4 + [False] * 26
    assert {copy.topic for copy in house.publisher.copies[5:]} == {"docsum.retry.90s"}
    assert fetcher.calls == 5  # then nobody tries until the next probe
    assert isinstance(await house.process(reference("up", uri="https://up.example/1")), Stored)
    old = house.trip(reference("old", uri="https://down.example/old"))
    first_failed = to_ms(START - timedelta(hours=25))
    trip = Trip(replace(old.delivery, first_failed_ms=first_failed))
    assert isinstance(await house.pipeline.process(trip), DeadLettered)


async def test_a_store_that_is_down_before_the_call_costs_nothing_and_after_it_nothing_more(
    house: House,
) -> None:
    known, write = house.store.known, house.store.write
    failing = [StoreUnavailable()] * 3

    async def known_later(document_id: str) -> object:
        if failing:
            raise failing.pop()
        return await known(document_id)

    refusing = [StoreUnavailable()] * 3

    async def write_later(rows: object) -> None:
        if refusing:
            raise refusing.pop()
        await write(rows)  # type: ignore[arg-type]  # passes on what it was given

    house.store.known = known_later  # type: ignore[method-assign, assignment]  # a store in trouble
    house.store.write = write_later  # type: ignore[method-assign]  # the same
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Stored)
    assert house.summariser.calls == 1


async def test_a_copy_that_the_broker_refuses_is_waited_for_and_never_dropped(house: House) -> None:
    house.fetcher.errors = [SourceUnavailable()]
    house.publisher.errors = [BrokerUnavailable()] * 5
    outcome = await house.process(reference("a"))
    assert isinstance(outcome, Retried)
    assert len(house.publisher.copies) == 1


async def test_a_copy_is_acknowledged_before_the_rows_are_written(house: House) -> None:
    run = uuid4()
    house.fetcher.errors = [SourceUnavailable()]
    seen = []
    publish = house.publisher.publish

    async def watched(copy: object) -> object:
        seen.append((await house.store.progress(run)).total)
        return await publish(copy)  # type: ignore[arg-type]  # passes on what it was given

    house.publisher.publish = watched  # type: ignore[method-assign, assignment]  # looks, then publishes
    await house.process(reference("a", run_id=run))
    assert seen == [0]
    assert (await house.store.progress(run)).retrying == 1


async def test_events_of_a_cancelled_run_end_as_cancelled_without_a_call(house: House) -> None:
    run = Run(uuid4(), "over", "/documents", RECIPE, Lane.BACKFILL, RunState.PUBLISHED, START, START)
    await house.store.save_control(Control(run.id, ControlState.CANCELLED, changed_at=START))
    await house.store.save_run(run)
    assert await house.process(reference("a", run_id=run.id)) == Skipped(SkipReason.CANCELLED)
    assert house.fetcher.calls == 0
    assert (await house.store.progress(run.id)).cancelled == 1


async def test_two_deliveries_of_one_document_take_turns_and_one_is_bought(house: House) -> None:
    house.summariser.gate = asyncio.Event()
    first = asyncio.create_task(house.process(reference("a")))
    await eventually(lambda: house.summariser.calls == 1)
    second = asyncio.create_task(house.process(reference("a", occurred_at=START + timedelta(seconds=1))))
    await asyncio.sleep(0.02)
    assert house.fetcher.calls == 1
    house.summariser.gate.set()
    assert isinstance(await first, Stored)
    assert isinstance(await second, Skipped)
    assert house.summariser.calls == 1


async def test_who_waits_for_others_is_not_taken_for_stuck(house: House) -> None:
    """For another delivery of the same document, for room, for the model: it may last as long as it likes."""
    house.pipeline._texts = ByteBudget(5)  # one text
    house.summariser.gate = asyncio.Event()
    later = reference("a", occurred_at=START + timedelta(seconds=1))
    trips = [house.trip(event) for event in (reference("a"), later, reference("b"))]
    tasks = [asyncio.create_task(house.pipeline.process(trip)) for trip in trips]
    await within_turns(lambda: [trip.stage for trip in trips] == ["summarise", "turn", "room"])
    await within_turns(lambda: trips[0].paid)
    assert not any(map(is_working, trips))
    house.summariser.gate.set()
    await asyncio.gather(*tasks)


async def test_nothing_is_bought_once_the_partition_is_taken_away(house: House) -> None:
    house.summariser.turn = asyncio.Event()
    trip = house.trip(reference("a"))
    task = asyncio.create_task(house.pipeline.process(trip))
    await within_turns(lambda: house.summariser.calls == 1)
    trip.leaving = True
    house.summariser.turn.set()
    outcome = await task
    assert isinstance(outcome, Deferred) and not outcome.later.answers
    assert house.summariser.bought == 0
    assert house.observer.outcomes == []


async def test_what_is_let_go_of_is_unfinished_and_writes_nothing(house: House) -> None:
    house.summariser.gate = asyncio.Event()
    trip = house.trip(reference("a"))
    task = asyncio.create_task(house.pipeline.process(trip))
    await eventually(lambda: house.summariser.calls == 1)
    assert trip.paid and not trip.may_let_go
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.observer.outcomes == []
    assert await house.store.known("a") is None


@settings(max_examples=60)
@given(st.data())
def test_any_order_and_any_number_of_deliveries_ends_in_the_same_state(data: st.DataObject) -> None:
    runs = [uuid4(), uuid4()]
    events = [
        reference(
            "a",
            event_id=f"e{number}",
            occurred_at=START + timedelta(seconds=number),
            source_version=f"v{number % 2}",
            run_id=runs[number % 2],
        )
        for number in range(3)
    ]
    order = data.draw(st.lists(st.sampled_from(events), min_size=3, max_size=12)) + events

    async def deliver() -> House:
        house = House()
        for event in order:
            if data.draw(st.integers(0, 4)) == 0:
                house.fetcher.errors = [SourceUnavailable()]
            await house.process(event)
            house.fetcher.errors = []
        for event in events:  # a retry copy is delivered in the end
            await house.process(event)
        return house

    house = asyncio.run(deliver())
    known = asyncio.run(house.store.known("a"))
    assert known is not None and known.version == events[-1].version
    for run in runs:
        progress = asyncio.run(house.store.progress(run))
        assert (progress.total, progress.remaining) == (1, 0)


async def test_texts_wait_for_room_in_turn_and_a_larger_one_is_admitted_alone() -> None:
    budget, order = ByteBudget(100), list[str]()
    leave = asyncio.Event()

    async def hold(name: str, size: int) -> None:
        async with budget.room(size):
            order.append(name)
            await leave.wait()

    tasks = [asyncio.create_task(hold("first", 60))]
    await eventually(lambda: order == ["first"])
    tasks += [asyncio.create_task(hold("huge", 1_000)), asyncio.create_task(hold("small", 10))]
    await asyncio.sleep(0.02)
    assert order == ["first"]  # small would fit, but it is not its turn
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(hold("last", 20)))
    await eventually(lambda: order == ["first", "small", "last"])
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with budget.room(5_000):
        order.append("alone")
    assert order[-1] == "alone"


# -- what is wanted of runs ----------------------------------------------------------------------------------


async def a_run(house: House, recipe: Recipe = RECIPE) -> Run:
    run = Run(uuid4(), "all", "/documents", recipe, Lane.BACKFILL, RunState.PUBLISHED, START, START)
    await house.store.save_run(run)
    return run


async def test_deliveries_of_a_paused_run_rest_and_those_of_others_go_on(house: House) -> None:
    run, other = await a_run(house), await a_run(house)
    await house.store.save_control(Control(run.id, ControlState.PAUSED, "Lunch.", changed_at=START))
    assert await house.process(reference("a", run_id=run.id), attempt=3) == Held("Lunch.")
    assert [copy.topic for copy in house.publisher.copies] == ["docsum.held"]
    assert (await house.store.progress(run.id)).held == 1
    assert isinstance(await house.process(reference("b", run_id=other.id)), Stored)
    assert house.fetcher.calls == 1


@pytest.mark.parametrize("state", [ControlState.PAUSED, ControlState.CANCELLED])
async def test_what_waits_for_its_turn_at_the_model_is_not_bought_once_its_run_is_stopped(
    house: House, state: ControlState
) -> None:
    run = await a_run(house)
    house.summariser.turn = asyncio.Event()
    waiting = asyncio.create_task(house.process(reference("a", run_id=run.id)))
    await within_turns(lambda: house.summariser.calls == 1)
    await house.store.save_control(Control(run.id, state, "Lunch.", changed_at=START))
    house.summariser.turn.set()
    stopped = Held("Lunch.") if state is ControlState.PAUSED else Skipped(SkipReason.CANCELLED)
    assert await waiting == stopped
    assert house.summariser.bought == 0
    assert not house.pipeline.breakers.troubles()


async def test_what_waits_for_its_turn_at_the_model_waits_on_without_a_text_once_all_work_is_paused(
    house: House,
) -> None:
    house.summariser.turn = asyncio.Event()
    waiting = asyncio.create_task(house.process(reference("a")))
    await within_turns(lambda: house.summariser.calls == 1)
    await house.store.save_control(Control(ALL_WORK, ControlState.PAUSED, "Wait.", changed_at=START))
    house.summariser.turn.set()
    await within_turns(lambda: len(house.observer.held) > 2)
    assert house.summariser.bought == 0
    await house.store.save_control(Control(ALL_WORK, changed_at=house.clock.now()))
    assert isinstance(await waiting, Stored)
    assert (house.summariser.bought, house.fetcher.calls) == (1, 2)


async def test_a_run_stops_at_its_budget_and_says_so(house: House) -> None:
    run = await a_run(house)
    await house.store.save_control(Control(run.id, budget=Decimal("0.02"), changed_at=START))
    outcomes = []
    for number in range(5):
        outcomes.append(await house.process(reference(f"doc-{number}", run_id=run.id)))
        house.store.keep(an_answer(run.id, Decimal("0.01")))
        house.clock.advance(timedelta(seconds=1))
    assert [type(outcome) for outcome in outcomes] == [Stored, Stored, Held, Held, Held]
    control = await house.store.control(run.id)
    assert control.state is ControlState.PAUSED and "$0.02 is spent" in control.reason
    assert control.budget == Decimal("0.02")


async def test_all_work_and_live_events_are_paused_in_place(house: House) -> None:
    run = await a_run(house)
    for target in (ALL_WORK, LIVE_EVENTS):
        await house.store.save_control(Control(target, ControlState.PAUSED, "Wait.", changed_at=START))
    live = asyncio.create_task(house.process(reference("live")))
    of_run = asyncio.create_task(house.process(reference("of run", run_id=run.id)))
    await within_turns(lambda: len(house.observer.held) > 2)
    await house.store.save_control(Control(ALL_WORK, changed_at=house.clock.now()))
    assert isinstance(await of_run, Stored)
    assert not live.done()
    await house.store.save_control(Control(LIVE_EVENTS, changed_at=house.clock.now()))
    assert isinstance(await live, Stored)
    assert house.publisher.copies == []


async def test_the_day_s_budget_holds_everything_until_midnight_or_until_more_is_granted(
    house: House,
) -> None:
    house.pipeline.daily_budget = Decimal(1)
    house.clock.advance(timedelta(hours=11))
    house.store.keep(an_answer(None, Decimal(1), house.clock.now()))
    waiting = asyncio.create_task(house.process(reference("a")))
    await within_turns(lambda: len(house.observer.held) > 0)
    assert house.observer.held[0].reason == "daily_budget"
    await house.store.save_control(Control(ALL_WORK, budget=Decimal(2), changed_at=house.clock.now()))
    assert isinstance(await waiting, Stored)
    assert house.clock.now().day == START.day
    house.store.keep(an_answer(None, Decimal(1), house.clock.now()))
    assert isinstance(await house.process(reference("b")), Stored)
    assert house.clock.now().day == START.day + 1


@pytest.mark.parametrize("live", [False, True])
async def test_a_flood_of_failures_that_may_be_ours_pauses_its_run(house: House, live: bool) -> None:
    run = await a_run(house)
    run_id = None if live else run.id
    house.pipeline.summariser = FakeSummariser([ModelRejectedDocument("No such field.")] * 1_000)
    deliveries = [
        asyncio.create_task(house.process(reference(f"doc-{number}", run_id=run_id))) for number in range(120)
    ]
    target = LIVE_EVENTS if live else run.id
    if live:
        await within_turns(lambda: len(house.observer.held) > 0)
        for delivery in deliveries:
            delivery.cancel()
    await asyncio.gather(*deliveries, return_exceptions=True)
    control = await house.store.control(target)
    assert control.state is ControlState.PAUSED and "No such field." in control.reason
    command = "resume --all" if live else f"runs resume {str(run.id)[:8]} --accept-dead-letters"
    assert f"`docsum {command}` goes on" in control.reason
    dead = [copy for copy in house.publisher.copies if copy.topic == "docsum.dlq"]
    assert len(dead) < 50
    assert {failure.reason for failure in house.observer.guards} == {"model_rejected"}


async def test_a_flood_that_was_accepted_and_documents_own_faults_pause_nothing(house: House) -> None:
    run = await a_run(house)
    await house.store.save_control(Control(run.id, unguarded=True, changed_at=START))
    house.pipeline.summariser = FakeSummariser([ModelRejectedDocument("No.")] * 70)
    house.extractor.errors = [Scanned("Pictures.")] * 70
    for number in range(140):
        assert isinstance(await house.process(reference(f"doc-{number}", run_id=run.id)), DeadLettered)
    assert (await house.store.control(run.id)).state is ControlState.RUNNING


class FailsLate(FakeSummariser):
    """Fails at the end of every call, and not at its beginning."""

    async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
        assert self.gate is not None
        self.calls += 1
        await self.gate.wait()
        raise self.errors[0]


async def test_a_call_from_before_its_run_was_cancelled_does_not_undo_that(house: House) -> None:
    run = await a_run(house, replace(RECIPE, model="claude-nonesuch"))
    gate = asyncio.Event()
    house.pipeline.summariser = model = FailsLate([ModelUnknown("There is none.")], gate=gate)
    late = asyncio.create_task(house.process(reference("a", run_id=run.id)))
    await within_turns(lambda: model.calls == 1)
    cancelled = Control(run.id, ControlState.CANCELLED, "No more of it.", changed_at=START)
    await house.store.save_control(cancelled)
    gate.set()
    assert await late == Skipped(SkipReason.CANCELLED)
    assert await house.store.control(run.id) == cancelled
    assert house.observer.guards == []


async def test_a_flood_from_before_its_run_was_resumed_does_not_undo_that(house: House) -> None:
    run = await a_run(house)
    await house.store.save_control(Control(run.id, budget=Decimal(10), changed_at=START))
    gate = asyncio.Event()
    house.pipeline.summariser = model = FailsLate([ModelRejectedDocument("No.")], gate=gate)
    late = [asyncio.create_task(house.process(reference(f"doc-{n}", run_id=run.id))) for n in range(60)]
    await within_turns(lambda: model.calls == 60)
    at = START + timedelta(seconds=1)
    resumed = Control(run.id, budget=Decimal(20), unguarded=True, changed_at=at)
    await house.store.save_control(resumed)
    gate.set()
    assert {type(outcome) for outcome in await asyncio.gather(*late)} == {DeadLettered}
    assert await house.store.control(run.id) == resumed


async def test_live_events_that_are_resumed_are_counted_anew(house: House) -> None:
    house.summariser.errors = [ModelRejectedDocument("No.")] * 1_000
    for number in range(49):
        assert isinstance(await house.process(reference(f"doc-{number}")), DeadLettered)
    paused = asyncio.create_task(house.process(reference("doc-50")))
    await within_turns(lambda: len(house.observer.held) > 0)
    await house.store.save_control(Control(LIVE_EVENTS, changed_at=house.clock.now()))
    await paused
    again = asyncio.create_task(house.process(reference("doc-51")))
    await within_turns(again.done)
    assert isinstance(await again, DeadLettered)
    assert (await house.store.control(LIVE_EVENTS)).state is ControlState.RUNNING


class FromTheLedger(FakeSummariser):
    """Has an answer for everything."""

    async def summarise(self, reference: DocumentReference, *rest: Any, **named: Any) -> Summary:
        return summary()


def back(house: House, event: DocumentReference) -> Trip:
    """As a delivery comes back that was set aside for its answer."""
    trip = house.trip(event)
    trip.ordered = True
    return trip


async def test_what_was_ordered_within_the_budget_is_stored_once_that_is_spent(house: House) -> None:
    run, process = await a_run(house), house.pipeline.process
    await house.store.save_control(Control(run.id, budget=Decimal("0.02"), changed_at=START))
    house.store.keep(an_answer(run.id, Decimal("0.02")))
    assert isinstance(await house.process(reference("a", run_id=run.id)), Held)
    assert (await house.store.control(run.id)).state is ControlState.PAUSED

    house.pipeline.summariser = FromTheLedger()
    assert isinstance(await process(back(house, reference("b", run_id=run.id))), Stored)
    house.pipeline.summariser = model = FakeSummariser()
    assert isinstance(await process(back(house, reference("c", run_id=run.id))), Held)  # it has to be bought
    assert model.bought == 0

    at = START + timedelta(minutes=1)
    await house.store.save_control(Control(run.id, ControlState.PAUSED, "Lunch.", Decimal(1), changed_at=at))
    house.pipeline.summariser = FromTheLedger()
    assert await process(back(house, reference("d", run_id=run.id))) == Held("Lunch.")


async def test_what_is_in_a_batch_is_waited_for_though_the_budget_is_spent(house: House) -> None:
    """By the next owner of its partition, too, who has never set it aside."""

    class Ordered(FakeSummariser):
        async def pending(self, reference: DocumentReference, partition: int) -> Later:
            return Later([asyncio.get_running_loop().create_future()])

    run = await a_run(house)
    await house.store.save_control(Control(run.id, budget=Decimal("0.02"), changed_at=START))
    house.store.keep(an_answer(run.id, Decimal("0.02")))
    house.pipeline.summariser = Ordered()
    outcome = await house.pipeline.process(house.trip(reference("a", run_id=run.id)))
    assert isinstance(outcome, Deferred) and outcome.later.answers


async def test_what_was_ordered_does_not_wait_for_the_next_day_s_budget(house: House) -> None:
    house.pipeline.daily_budget = Decimal(1)
    house.store.keep(an_answer(None, Decimal(1), house.clock.now()))
    house.pipeline.summariser = FromTheLedger()
    assert isinstance(await house.pipeline.process(back(house, reference("a"))), Stored)
    assert house.observer.held == []


async def test_a_model_that_the_run_chose_and_that_does_not_exist_pauses_that_run_alone(house: House) -> None:
    run = await a_run(house, replace(RECIPE, model="claude-nonesuch"))
    house.summariser.errors = [ModelUnknown("There is no model claude-nonesuch.")]
    outcome = await house.process(reference("a", run_id=run.id))
    assert outcome == Held("There is no model claude-nonesuch.")
    assert isinstance(await house.process(reference("b")), Stored)


def an_answer(run_id: UUID | None, cost: Decimal, at: datetime = START) -> Answer:
    name = uuid4().hex
    return Answer(name, name, "m", "{}", Usage(), cost, "1", "ok", at, 1, "doc", run_id)
