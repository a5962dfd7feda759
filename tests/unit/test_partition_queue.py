"""What waits, what runs, and what is let go in one partition."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from docsum.kafka.partition_queue import Doors, PartitionQueue, QueueState
from docsum.models import Outcome, Stored, to_ms
from docsum.pipeline import Deferred, Trip
from docsum.ports import Later
from tests.support.fakes import START, FakeClock, delivery, summary
from tests.support.waiting import eventually


class Desk:
    """Does the work of deliveries when a test says so, and remembers what the queue asked for."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.asked: list[str] = []
        self.crashes: list[BaseException] = []
        self.errors: dict[int, Exception] = {}

    async def work(self, trip: Trip) -> Outcome | Deferred:
        offset = trip.delivery.at.offset
        self.started.append(offset)
        if offset in self.errors:
            raise self.errors[offset]
        await self.gates.setdefault(offset, asyncio.Event()).wait()
        return Stored(summary(), "v1")

    def let_finish(self, *offsets: int) -> None:
        for offset in offsets:
            self.gates.setdefault(offset, asyncio.Event()).set()


def queue_for(
    desk: Desk, clock: FakeClock | None = None, slots: int = 2, high: int = 4, *, delays: bool = True
) -> PartitionQueue:
    doors = Doors(
        desk.work,
        lambda topic, n: desk.asked.append(f"full {topic} {n}"),
        lambda topic, n: desk.asked.append(f"room {topic} {n}"),
        desk.crashes.append,
    )
    return PartitionQueue("t", 3, 1, slots, high, high // 2, doors, clock or FakeClock(), delays)


async def test_no_more_than_the_slots_run_and_they_start_in_offset_order() -> None:
    desk = Desk()
    queue = queue_for(desk)
    for offset in range(4):
        queue.put(delivery(offset))
    await eventually(lambda: desk.started == [0, 1])
    desk.let_finish(1)
    await eventually(lambda: desk.started == [0, 1, 2])
    assert queue.uncommitted is None  # 0 is unfinished
    desk.let_finish(0)
    await eventually(lambda: queue.uncommitted == 2)
    desk.let_finish(2, 3)
    await eventually(lambda: queue.uncommitted == 4 and not queue.running)


async def test_it_asks_for_no_more_at_the_high_mark_and_for_more_at_the_low_one() -> None:
    desk = Desk()
    queue = queue_for(desk)
    for offset in range(4):
        queue.put(delivery(offset))
    assert desk.asked == ["full t 3"]
    desk.let_finish(0, 1)
    await eventually(lambda: desk.asked == ["full t 3", "room t 3"])
    desk.let_finish(2, 3)
    await eventually(lambda: not queue.running)


async def test_a_retry_copy_is_never_early_and_takes_no_slot_while_it_waits() -> None:
    desk, clock = Desk(), FakeClock()
    queue = queue_for(desk, clock)
    due = START + timedelta(milliseconds=30)
    queue.put(delivery(0, not_before_ms=to_ms(due)))
    await asyncio.sleep(0.1)  # three times the delay of the real clock; the fake one stands still
    assert desk.started == []
    assert not queue.running
    clock.advance(timedelta(milliseconds=31))
    desk.let_finish(0)
    await eventually(lambda: queue.uncommitted == 1)


async def test_a_retry_copy_is_not_early_by_half_a_millisecond_either() -> None:
    desk, clock = Desk(), FakeClock()
    queue = queue_for(desk, clock)
    queue.put(delivery(0, not_before_ms=to_ms(START) + 1))
    clock.advance(timedelta(microseconds=900))
    queue.start_due()
    assert not queue.running


async def test_a_wish_to_wait_counts_in_retry_topics_only() -> None:
    desk = Desk()
    queue = queue_for(desk, delays=False)
    queue.put(delivery(0, not_before_ms=to_ms(START + timedelta(days=36_000))))
    await eventually(lambda: desk.started == [0])
    desk.let_finish(0)
    await eventually(lambda: queue.uncommitted == 1)


async def test_a_delivery_that_raises_stops_the_worker_and_is_never_committed() -> None:
    desk = Desk()
    desk.errors[0] = RuntimeError("a fault of ours")
    queue = queue_for(desk)
    queue.put(delivery(0))
    queue.put(delivery(1))
    desk.let_finish(1)
    await eventually(lambda: bool(desk.crashes))
    await eventually(lambda: not queue.running)
    assert queue.uncommitted is None


async def test_a_drain_lets_go_of_what_is_free_and_waits_for_what_was_paid() -> None:
    desk = Desk()
    queue = queue_for(desk)
    for offset in range(3):
        queue.put(delivery(offset))
    await eventually(lambda: desk.started == [0, 1])
    paid = next(trip for trip in queue.running.values() if trip.delivery.at.offset == 0)
    paid.paid = True
    queue.drain()
    await eventually(lambda: [trip.delivery.at.offset for trip in queue.running.values()] == [0])
    desk.let_finish(0)
    await eventually(lambda: queue.uncommitted == 1)
    assert desk.started == [0, 1]  # 2 was never started


@pytest.mark.parametrize("paid", [True, False])
async def test_what_finishes_after_the_partition_has_gone_is_not_committed(paid: bool) -> None:
    desk = Desk()
    queue = queue_for(desk)
    queue.put(delivery(0))
    await eventually(lambda: desk.started == [0])
    for trip in queue.running.values():
        trip.paid = paid
    queue.die()
    desk.let_finish(0)
    await eventually(lambda: not queue.running)
    assert queue.state is QueueState.DEAD
    assert queue.uncommitted is None


async def test_a_call_that_fails_while_its_partition_is_taken_away_is_not_made_again() -> None:
    desk = Desk()
    queue = queue_for(desk)
    queue.put(delivery(0))
    await eventually(lambda: desk.started == [0])
    [trip] = queue.running.values()
    trip.paid = True
    queue.drain()
    assert trip.leaving
    trip.paid = False  # as while it waits for its next try
    queue.die()
    await eventually(lambda: not queue.running)


async def test_what_was_set_aside_says_so_when_it_comes_back() -> None:
    there: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Orders(Desk):
        async def work(self, trip: Trip) -> Outcome | Deferred:
            return await super().work(trip) if trip.ordered else Deferred(trip.delivery, Later([there]))

    desk = Orders()
    queue = queue_for(desk)
    queue.put(delivery(0))
    await eventually(lambda: not queue.running)
    there.set_result(None)
    desk.let_finish(0)
    await eventually(lambda: queue.uncommitted == 1)
