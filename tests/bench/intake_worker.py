"""docsum's Kafka worker with nothing to do for an event: what is left is intake, queues, offsets and commits.

It is built as `docsum worker` builds it, without pipeline, store and probes. It ends by itself once all has
been begun and is committed, and writes what it saw to the file that is named.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import psutil

from docsum.kafka import backlog
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.worker import KafkaWorker
from docsum.models import Lane, Outcome, Skipped, SkipReason
from docsum.pipeline import Trip
from docsum.ports import SystemClock

# Its own parts: what is measured must be a member and a collector like those of a worker.
from docsum.serve import _calm_the_collector, _membership
from docsum.settings import Settings
from docsum.telemetry import logs
from tests.support.waiting import eventually

#: The processor time of a worker that only waits is taken over this long, up to a moment before the first
#: record is due; the worker must have had its partitions for a while by then.
REST = timedelta(seconds=10)
SETTLE = timedelta(seconds=4)
_MOMENT = timedelta(seconds=0.5)
_COMMITTED_WITHIN = 60.0  # seconds after the last delivery
_NOTHING = Skipped(SkipReason.UNCHANGED)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the process was when so many deliveries had been begun."""

    begun: int
    seconds: float  # of a clock that never goes back
    cpu: float  # seconds of user and system time, all threads
    rss: int  # bytes

    @classmethod
    def now(cls, begun: int) -> Mark:
        rss = psutil.Process().memory_info().rss
        return cls(begun, time.perf_counter(), time.process_time(), rss)


class Counted:
    """In place of the pipeline: counts, with a mark at the first event, after each quarter and at the end."""

    def __init__(self, events: int) -> None:
        self.marks: list[Mark] = []
        self.all_begun = asyncio.Event()
        self.begun = 0  # events that came again included
        self._bounds = deque(events * quarter // 4 for quarter in range(5))

    async def __call__(self, trip: Trip) -> Outcome:
        if self.begun == 0:
            self._mark()
        self.begun += 1
        if self._bounds and self.begun == self._bounds[0]:
            self._mark()
        return _NOTHING

    def _mark(self) -> None:
        self._bounds.popleft()
        self.marks.append(Mark.now(self.begun))
        if not self._bounds:
            self.all_begun.set()


class Timed:
    """In place of the pipeline: notes how late each delivery is begun, milliseconds of the wall clock."""

    def __init__(self, waiting: int) -> None:
        self.late_ms = array("d")
        self.all_begun = asyncio.Event()
        self._waiting = waiting

    @property
    def begun(self) -> int:
        return len(self.late_ms)

    async def __call__(self, trip: Trip) -> Outcome:
        due_ms = trip.delivery.not_before_ms
        assert due_ms is not None
        self.late_ms.append(time.time() * 1000 - due_ms)
        if self.begun == self._waiting:
            self.all_begun.set()
        return _NOTHING


async def noop(settings: Settings, events: int) -> dict[str, object]:
    """The marks; the last one is when every offset was committed."""
    counted = Counted(events)
    end = await work(settings, counted, lambda: None)
    return {"marks": [asdict(mark) for mark in (*counted.marks, end)]}


async def lateness(settings: Settings, waiting: int, first_due: float) -> dict[str, object]:
    """How late each was begun; and marks: two around the rest before the first is due, one of the end.

    `first_due`: seconds since 1970.
    """
    timed, assigned_at = Timed(waiting), array("d")
    resting = asyncio.create_task(rest(first_due, assigned_at))
    end = await work(settings, timed, lambda: assigned_at.append(time.time()))
    marks = (*await resting, end)
    return {"late_ms": [round(late, 2) for late in timed.late_ms], "marks": [*map(asdict, marks)]}


async def rest(first_due: float, assigned_at: array[float]) -> tuple[Mark, Mark]:
    """Both ends of the time that is measured while everything waits."""
    begin = first_due - (REST + _MOMENT).total_seconds()
    await asyncio.sleep(begin - time.time())
    if not assigned_at or assigned_at[0] > begin - SETTLE.total_seconds():
        raise RuntimeError("The worker had its partitions too late to be watched while everything waits.")
    before = Mark.now(0)
    await asyncio.sleep(REST.total_seconds())
    return before, Mark.now(0)


async def work(settings: Settings, process: Counted | Timed, on_assigned: Callable[[], None]) -> Mark:
    """Be a worker until all is begun and committed; returns the mark of that moment.

    Raises an ExceptionGroup with what has made the worker crash.
    """
    admin, topology, stop = KafkaAdmin(settings.kafka), settings.topology(), asyncio.Event()
    member = _membership(settings, Lane.LIVE, "bench", await admin.existing_retry_topics(topology))
    worker = KafkaWorker(
        member,
        process,
        SystemClock(),
        lambda share: on_assigned(),
        lambda: backlog.unowned(settings.kafka, member.group, (*member.topics, *member.retries)),
    )

    async def all_committed() -> bool:
        return not any(place.lag for place in await admin.lag(settings.kafka.group_id, topology))

    _calm_the_collector()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(stop))
        await process.all_begun.wait()
        await eventually(all_committed, _COMMITTED_WITHIN, "every offset committed")
        end = Mark.now(process.begun)
        stop.set()
    return end


def main() -> None:
    """`noop COUNT OUT` or `lateness COUNT FIRST_DUE OUT`."""
    kind, count, *first_due, out = sys.argv[1:]
    settings = Settings(_env_file=None)  # no store: so not by `settings.load`, which asks for one
    logs.configure(settings.log.level, settings.log.format)
    if kind == "noop":
        seen = asyncio.run(noop(settings, int(count)))
    else:
        seen = asyncio.run(lateness(settings, int(count), float(first_due[0])))
    Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
