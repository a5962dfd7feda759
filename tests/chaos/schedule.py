"""What goes wrong, and when, as data: the same seed is the same schedule. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """A fault, named `what-it-hits:how`. Those of one component take turns."""

    WORKER_KILL = "worker:kill"
    WORKER_TERM = "worker:term"
    WORKER_FREEZE = "worker:freeze"
    WORKER_JOIN = "worker:join"  # one more for a while
    WORKER_CLOCK = "worker:clock"  # the wall clock of one jumps, and back
    BROKER_KILL = "broker:kill"
    BROKER_FREEZE = "broker:freeze"
    PARTITIONS = "broker:partitions"  # all topics get one more
    ENGINE_KILL = "engine:kill"  # between two inserts of a flush
    ENGINE_HANG = "engine:hang"
    ENGINE_MEMORY = "engine:241"
    ENGINE_PARTS = "engine:252"
    ENGINE_GONE = "engine:503"
    MODEL_500 = "model:500"
    MODEL_529 = "model:529"
    MODEL_429 = "model:429"
    MODEL_KILL = "model:kill"
    MODEL_RESET = "model:reset"
    MODEL_LOST = "model:reset_after_accept"
    MODEL_SLOW = "model:slow_body"
    MODEL_CAP = "model:spend_cap"
    PUBLISHER_KILL = "publisher:kill"

    @property
    def component(self) -> str:
        return self.partition(":")[0]


#: Seconds, from and to.
LASTS: dict[Kind, tuple[float, float]] = {
    Kind.WORKER_KILL: (0, 3),
    Kind.WORKER_TERM: (0, 3),
    Kind.WORKER_FREEZE: (2, 25),
    Kind.WORKER_JOIN: (3, 12),
    Kind.WORKER_CLOCK: (2, 10),
    Kind.BROKER_KILL: (0, 8),
    Kind.BROKER_FREEZE: (3, 20),
    Kind.PARTITIONS: (0, 0),
    Kind.ENGINE_KILL: (0, 5),
    Kind.ENGINE_HANG: (2, 10),
    Kind.ENGINE_MEMORY: (1, 8),
    Kind.ENGINE_PARTS: (1, 8),
    Kind.ENGINE_GONE: (1, 8),
    Kind.MODEL_500: (2, 10),
    Kind.MODEL_529: (2, 10),
    Kind.MODEL_429: (2, 10),
    Kind.MODEL_KILL: (1, 8),
    Kind.MODEL_RESET: (2, 8),
    Kind.MODEL_LOST: (1, 4),
    Kind.MODEL_SLOW: (2, 8),
    Kind.MODEL_CAP: (2, 8),
    Kind.PUBLISHER_KILL: (0, 2),
}
#: A worker is what dies most in real life.
_WEIGHTS = {Kind.WORKER_KILL: 4, Kind.WORKER_TERM: 3, Kind.WORKER_FREEZE: 2, Kind.ENGINE_KILL: 2}
EVERY = 4.0  # seconds between two faults, on the average


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at: float  # seconds from the beginning
    kind: Kind
    lasts: float  # seconds
    victim: int = 0  # which of several workers, modulo their number
    size: float = 0.0  # of a clock's jump, seconds

    def __str__(self) -> str:
        return f"{self.at:.1f}s {self.kind} {self.lasts:.1f}s"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Schedule = tuple[Fault, ...]


def schedule(
    seed: int, seconds: float, kinds: Sequence[Kind] = tuple(Kind), every: float = EVERY
) -> Schedule:
    """The faults of a seed within that time, in order; every third one comes together with the one before.

    `every`: so many seconds between two, on the average.
    """
    chance = random.Random(seed)
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    faults: list[Fault] = []
    for number in range(max(1, round(seconds / every))):
        kind = chance.choices(kinds, weights)[0]
        together = bool(faults) and number % 3 == 2
        at = faults[-1].at if together else chance.uniform(1, seconds)
        lasts = min(chance.uniform(*LASTS[kind]), seconds)
        jump = chance.choice((-1, 1)) * 10 ** chance.uniform(0, 4)
        faults.append(Fault(round(at, 2), kind, round(lasts, 2), chance.randrange(100), round(jump, 1)))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def read(rows: Sequence[dict[str, Any]]) -> Schedule:
    """A schedule from its JSON."""
    return tuple(Fault(**{**row, "kind": Kind(row["kind"])}) for row in rows)


def shrink(faults: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """The shortest schedule that is found to fail too: parts are left out, halves first, then single faults.

    `fails` runs a schedule, as often as it takes to believe it.
    """
    size = max(1, len(faults) // 2)
    while True:
        for start in range(0, len(faults), size):
            fewer = faults[:start] + faults[start + size :]
            if fewer and fails(fewer):
                faults = fewer
                break
        else:
            if size == 1:
                return faults
            size //= 2
        size = min(size, max(1, len(faults) // 2))
