"""What a contender's process is told, and what it measures of itself. Needs the standard library only."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Of a request to the Messages API. Any: the SDK's overloads do not take a mapping of objects.
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender in one round, from the first document begun to the last one finished."""

    documents: int
    rate: float  # documents a second
    cpu_ms: float  # user and system time of the whole process, milliseconds a document
    call_ms: tuple[float, float]  # a model call as this client saw it: p50, p99
    added_ms: tuple[float, float]  # what a document took around its call: p50, p99
    peak_mb: float = 0.0  # resident memory over the life of the process; seen from outside


class Meter:
    """Takes the times while the work is done; costs about a microsecond of processor time a document."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)
        self._calls, self._added = array("d"), array("d")

    def begin(self) -> None:
        """A document is begun; the clocks start with the first one."""
        if self._began is None:
            self._began = time.perf_counter(), time.process_time()

    def end(self, call: float, added: float = 0.0) -> None:
        """A document is finished: seconds in its model call, and around it."""
        self._calls.append(call)
        self._added.append(added)
        self._ended = time.perf_counter(), time.process_time()

    def save(self, path: Path) -> None:
        count, began = len(self._calls), self._began or self._ended
        seconds, cpu = (end - start for start, end in zip(began, self._ended, strict=True))
        found = Measured(
            documents=count,
            rate=count / seconds if seconds else 0.0,
            cpu_ms=1000 * cpu / max(count, 1),
            call_ms=_p50_p99(self._calls),
            added_ms=_p50_p99(self._added),
        )
        path.write_text(json.dumps(asdict(found)))


#: Sends each of these requests to that address, so many at once.
Work = Callable[[str, Sequence[Body], int, Meter], Coroutine[Any, Any, None]]


def take_turn(works: Mapping[str, Work]) -> None:
    """Be the contender that the command line names."""
    name, url, in_flight, requests, out = sys.argv[1:]
    with Path(requests).open() as lines:
        bodies = list(map(json.loads, lines))  # before the clock starts
    meter = Meter()
    asyncio.run(works[name](url, bodies, int(in_flight), meter))
    meter.save(Path(out))


def _p50_p99(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds) or [0.0]
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[len(ordered) * 99 // 100]
