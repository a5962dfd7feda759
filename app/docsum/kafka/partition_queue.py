"""The deliveries of one partition in this worker: what waits, what runs, what may be committed."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from docsum.kafka.offsets import OffsetTracker
from docsum.models import EPOCH, Delivery, Outcome
from docsum.pipeline import Deferred, Trip
from docsum.ports import Clock


class QueueState(enum.Enum):
    OPEN = "open"
    DRAINING = "draining"  # starts nothing, still counts what finishes
    DEAD = "dead"  # belongs to somebody else by now: what finishes here is not committed


@dataclass(frozen=True, slots=True)
class Doors:
    """What a partition queue may do to the world: all hand-ins, so that it needs neither Faust nor Kafka."""

    work: Callable[[Trip], Awaitable[Outcome | Deferred]]
    full: Callable[[str, int], None]  # stop fetching this partition
    room: Callable[[str, int], None]  # fetch again
    crash: Callable[[BaseException], None]  # a delivery raised: docsum must not go on past it


@dataclass(slots=True, eq=False)
class PartitionQueue:
    """Runs at most `slots` deliveries of one partition at once, in offset order of start.

    In a topic that `delays`, nothing is started before its not-before time; it takes no slot while it waits.
    Elsewhere somebody else wrote such a header, and one event must not stop the partition. Every retry
    topic has one delay, so the head is always the next due and only the head needs a timer. Holding
    `high` deliveries it asks to be fed no more, back at `low` it asks for more.
    """

    topic: str
    partition: int
    generation: int
    slots: int
    high: int
    low: int
    doors: Doors
    clock: Clock
    delays: bool = False
    state: QueueState = QueueState.OPEN
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    waiting: deque[Trip] = field(default_factory=deque)
    running: dict[asyncio.Task[None], Trip] = field(default_factory=dict)
    committed: int | None = None
    paused: bool = False
    _timer: asyncio.TimerHandle | None = None

    def put(self, delivery: Delivery) -> None:
        """Take a delivery; raises ValueError for an offset that is not higher than the last."""
        self.tracker.add(delivery.at.offset)
        self.waiting.append(Trip(delivery))
        if not self.paused and len(self.tracker) >= self.high:
            self.paused = True
            self.doors.full(self.topic, self.partition)
        self.start_due()

    def start_due(self) -> None:
        """Start what may start now."""
        while self.state is QueueState.OPEN and self.waiting and len(self.running) < self.slots:
            wait = self._wait_for(self.waiting[0].delivery)
            if wait > 0:
                self._wake_in(wait)
                return
            trip = self.waiting.popleft()
            task = asyncio.create_task(self._run(trip))
            self.running[task] = trip
            task.add_done_callback(self._ended)

    def _wait_for(self, delivery: Delivery) -> float:
        """Seconds until it is due; 0 when it is."""
        if not self.delays or delivery.not_before_ms is None:
            return 0.0
        return max(0.0, delivery.not_before_ms / 1000 - (self.clock.now() - EPOCH).total_seconds())

    def _wake_in(self, seconds: float) -> None:
        if self._timer is None:
            # Looked at once a minute, so that a wall clock that jumps is noticed.
            self._timer = asyncio.get_running_loop().call_later(min(seconds, 60.0), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.start_due()

    async def _run(self, trip: Trip) -> None:
        try:
            outcome = await self.doors.work(trip)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.doors.crash(error)
        else:
            if isinstance(outcome, Deferred):
                outcome.later.then(lambda: self._work_again(outcome.delivery))
            else:
                self._finish(trip.delivery.at.offset)

    def _work_again(self, delivery: Delivery) -> None:
        """It was set aside and took no slot; its offset is unfinished."""
        if self.state is QueueState.OPEN:
            self.waiting.appendleft(Trip(delivery, ordered=True))
            self.start_due()

    def _finish(self, offset: int) -> None:
        if self.state is QueueState.DEAD:
            return
        self.tracker.finish(offset)
        if self.paused and len(self.tracker) <= self.low and self.state is QueueState.OPEN:
            self.paused = False
            self.doors.room(self.topic, self.partition)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self.running[task]
        self.start_due()

    def drain(self) -> None:
        """Start nothing more, buy nothing more, and let go of what has cost nothing yet."""
        self.state = QueueState.DRAINING
        self.waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_go()

    def die(self) -> None:
        """The partition is no longer ours. What was bought by then may finish and store, never commit."""
        if self.state is QueueState.OPEN:
            self.drain()
        else:
            self._let_go()  # a call that failed meanwhile would be made again
        self.state = QueueState.DEAD

    def _let_go(self) -> None:
        for task, trip in self.running.items():
            trip.leaving = True
            if trip.may_let_go:
                task.cancel()

    @property
    def uncommitted(self) -> int | None:
        """The offset to commit; None when there is nothing new."""
        offset = self.tracker.committable
        return offset if offset is not None and offset != self.committed else None
