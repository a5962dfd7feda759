"""`docsum worker` with a stop-watch around each delivery and each model call; what it does is the same.

Around the call is the time from the start of work on a delivery to its durable outcome, without the call
and without the wait for one of the places in flight: a bench keeps them full on purpose.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docsum import serve, settings
from docsum.models import Lane, Outcome
from docsum.pipeline import Deferred, Pipeline, Trip
from docsum.summarisers.gate import CallGate, Permit
from tests.bench.measured import Meter


@dataclass(slots=True)
class _Watch:
    """Seconds of one delivery. Its calls are tasks of their own, which inherit it with the context."""

    waited: float = 0.0  # for a place
    called: float = 0.0
    sent_at: float = 0.0


_WATCH: ContextVar[_Watch] = ContextVar("watch")


class TimedGate(CallGate):
    """Notes how long a call waits for its place, and how long it has it."""

    async def enter(
        self, call: Permit, amounts: tuple[int, int, int], lane: Lane
    ) -> Any:  # Any: a private type, passed on
        asked_at, watch = time.perf_counter(), _WATCH.get()
        spent = await super().enter(call, amounts, lane)
        watch.sent_at = time.perf_counter()
        watch.waited += watch.sent_at - asked_at
        return spent

    def leave(self, call: Permit) -> None:
        watch = _WATCH.get()
        watch.called += time.perf_counter() - watch.sent_at
        super().leave(call)


def timed_pipeline(meter: Meter) -> type[Pipeline]:
    """The pipeline, with a meter."""

    class TimedPipeline(Pipeline):
        async def process(self, trip: Trip) -> Outcome | Deferred:
            meter.begin()
            watch = _Watch()
            _WATCH.set(watch)  # a delivery is a task of its own
            started_at = time.perf_counter()
            outcome = await super().process(trip)
            seconds = time.perf_counter() - started_at
            meter.end(watch.called, seconds - watch.waited - watch.called)
            return outcome

    return TimedPipeline


def main() -> None:
    """Be a worker until SIGTERM, then write what was measured to the file that is named."""
    meter = Meter()
    vars(serve).update(CallGate=TimedGate, Pipeline=timed_pipeline(meter))
    asyncio.run(serve.serve_worker(settings.load()))
    meter.save(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
