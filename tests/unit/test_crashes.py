"""Work that ends workers is told apart from work that was only there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from docsum.crashes import CrashGuard
from docsum.errors import StoreUnavailable, WorkerCrashed
from docsum.heartbeat import CAREFUL, SILENCE, Heart
from docsum.models import AtRisk, Coordinates, Death, Lane, WorkerStatus
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock
from tests.support.waiting import within_turns

POISON = AtRisk("extract", Coordinates("docsum.backfill", 1, 7))
OTHER = AtRisk("extract", Coordinates("docsum.backfill", 2, 8))


def death(number: int = 0, work: AtRisk = POISON, *, alone: bool = False) -> Death:
    return Death(f"w-{number}", START, START, work, alone)


async def do(guard: CrashGuard, work: AtRisk, done: asyncio.Event | None = None) -> None:
    async with guard.step(work.stage, work.at):
        if done:
            await done.wait()


async def test_what_was_never_suspected_goes_on_side_by_side_and_is_not_announced() -> None:
    guard, done = CrashGuard(), asyncio.Event()
    guard.learn([death()])
    both = asyncio.gather(do(guard, POISON, done), do(guard, OTHER, done))
    await within_turns(lambda: guard.at_risk == (POISON, OTHER))
    assert not guard.alone
    done.set()
    await both
    assert guard.at_risk == ()


async def test_after_two_deaths_it_is_alone_and_that_is_told_before_and_after() -> None:
    guard, others, done = CrashGuard(), asyncio.Event(), asyncio.Event()
    told: list[tuple[bool, tuple[AtRisk, ...]]] = []

    async def announced() -> None:
        told.append((guard.alone, guard.at_risk))

    guard.announced = announced
    guard.learn([death(1), death(2)])
    before = asyncio.create_task(do(guard, OTHER, others))
    await within_turns(lambda: guard.at_risk == (OTHER,))
    suspected = asyncio.create_task(do(guard, POISON, done))
    after = asyncio.create_task(do(guard, OTHER))
    await asyncio.sleep(0)
    assert guard.at_risk == (OTHER,)  # it waits for what goes on, and others wait for it
    others.set()
    await within_turns(lambda: guard.alone)
    assert guard.at_risk == (POISON,)
    done.set()
    await asyncio.gather(before, suspected, after)
    assert told == [(True, (POISON,)), (False, ())]


async def test_what_ended_a_worker_alone_is_not_tried_again() -> None:
    guard = CrashGuard()
    guard.learn([death(1), death(2), death(3, alone=True)])
    with pytest.raises(WorkerCrashed, match="3 workers ended"):
        await do(guard, POISON)
    await do(guard, replace(POISON, stage="decode"))  # what it is about can still be told
    await do(guard, OTHER)


async def test_a_heartbeat_that_cannot_be_stored_leaves_the_work_undone() -> None:
    guard = CrashGuard()
    guard.careful = True

    async def announced() -> None:
        raise StoreUnavailable

    guard.announced = announced
    for deaths in ([], [death(1), death(2)]):
        guard.learn(deaths)
        with pytest.raises(StoreUnavailable):
            await do(guard, POISON)
        assert guard.at_risk == ()
        assert not guard.alone


class Life:
    """One life of a worker, with a heart that beats when a test says so."""

    def __init__(self, store: MemoryStore, clock: FakeClock, name: str = "w-1") -> None:
        self.guard = CrashGuard()
        self.born = WorkerStatus(name, "host", 1, Lane.LIVE, clock.now(), clock.now())
        self.heart = Heart(store, self.guard, clock, self.status)

    def status(self, now: datetime, stopped: bool) -> WorkerStatus:
        return replace(self.born, beat_at=now, stopped=stopped)


async def test_the_next_life_of_a_worker_that_said_goodbye_knows_of_no_death() -> None:
    store, clock = MemoryStore(), FakeClock()
    first = Life(store, clock)
    async with first.guard.step(POISON.stage, POISON.at):
        await first.heart.beat(stopped=True)
    clock.advance(timedelta(seconds=1))
    second = Life(store, clock)
    await second.heart.wake()
    assert list(await store.deaths(START)) == []
    assert not second.guard.careful


async def test_a_document_that_ends_every_worker_is_found_out_and_nothing_beside_it() -> None:
    """The first death tells nothing; the next two tell of both, then each is alone, then it is refused."""
    store, clock = MemoryStore(), FakeClock()
    await Life(store, clock).heart.beat()  # it died before a heartbeat could tell of anything
    finished = []
    for _ in range(3):
        clock.advance(timedelta(seconds=1))
        life, ended = Life(store, clock), asyncio.Event()
        await life.heart.wake()
        assert life.guard.careful

        async def innocent(guard: CrashGuard = life.guard) -> None:
            await do(guard, OTHER)
            finished.append(guard)

        async def poison(guard: CrashGuard = life.guard, ended: asyncio.Event = ended) -> None:
            async with guard.step(POISON.stage, POISON.at):
                ended.set()
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(work()) for work in (innocent, poison)]
        await asyncio.sleep(0)
        while not ended.is_set():
            await life.heart.beat()
            await within_turns(lambda ended=ended, heart=life.heart: ended.is_set() or heart.is_asked)  # type: ignore[misc]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    clock.advance(timedelta(seconds=1))
    last = Life(store, clock)
    await last.heart.wake()
    with pytest.raises(WorkerCrashed):
        await do(last.guard, POISON)
    assert len(finished) == 3


async def test_another_worker_notices_a_silence_only_after_it_could_have_heard() -> None:
    store, clock = MemoryStore(), FakeClock()
    gone, here = Life(store, clock, "w-1"), Life(store, clock, "w-2")
    async with gone.guard.step(POISON.stage, POISON.at):
        await gone.heart.beat()
    await here.heart.look()
    clock.advance(SILENCE * 2)  # the store was away for everybody
    await here.heart.beat()
    await here.heart.look()
    assert list(await store.deaths(START)) == []
    clock.advance(CAREFUL)
    await here.heart.look()
    (found,) = await store.deaths(START)
    assert (found.worker, found.work) == ("w-1", POISON)
    assert not here.guard.careful  # that was long ago


async def test_whoever_asked_hears_of_the_next_heartbeat_and_how_it_went() -> None:
    store, clock = MemoryStore(), FakeClock()
    life = Life(store, clock)
    asked = [asyncio.create_task(life.heart.announced()) for _ in range(2)]
    await asyncio.sleep(0)
    asked[1].cancel()
    await asyncio.sleep(0)
    await life.heart.beat()
    await asked[0]

    async def down(status: WorkerStatus) -> None:
        raise StoreUnavailable

    store.beat = down  # type: ignore[method-assign]  # a store that is away for one table
    again = asyncio.create_task(life.heart.announced())
    await asyncio.sleep(0)
    await life.heart.beat()
    with pytest.raises(StoreUnavailable):
        await again
