"""The two pictures of the page, as numbers that a template draws: a bar of states, and columns over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from docsum.models import RunProgress, State, Throughput, from_ms, to_ms

MOST_COLUMNS = 60
_STEPS = tuple(timedelta(seconds=each) for each in (1, 2, 5, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400))
#: As they stand in the bar: what has its end first, what waits last.
_ORDER = (
    State.DONE,
    State.SKIPPED,
    State.DEAD_LETTERED,
    State.CANCELLED,
    State.RETRYING,
    State.HELD,
    State.QUEUED,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A state's share of a bar; both in percent of its width."""

    state: State
    count: int
    begins: float
    width: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A run by state."""

    parts: tuple[Part, ...]
    total: int
    ended: int

    @property
    def share(self) -> float:
        return self.ended / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Column:
    """A stretch of time; place and height in percent."""

    begins: datetime
    count: int
    x: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Documents that had their end, over time."""

    columns: tuple[Column, ...]
    width: float  # of one column, in percent
    step: timedelta
    most: int  # in one stretch
    begins: datetime
    ends: datetime

    @property
    def peak(self) -> float:
        """Documents a second, in the best stretch."""
        return self.most / self.step.total_seconds()


def counts_of(progress: RunProgress) -> dict[State, int]:
    """By state, in the order of the bar."""
    return {state: getattr(progress, state.value) for state in _ORDER}


def bar_of(progress: RunProgress) -> Bar:
    """Empty for a run without documents."""
    parts, begins = [], 0.0
    for state, count in counts_of(progress).items():
        if count:
            width = 100 * count / progress.total
            parts.append(Part(state, count, round(begins, 3), round(width, 3)))
            begins += width
    return Bar(tuple(parts), progress.total, progress.total - progress.remaining)


def step_of(begun: datetime, now: datetime) -> timedelta:
    """The shortest that needs no more columns than there is room for."""
    length = max(now - begun, timedelta(seconds=1))
    return next(
        (step for step in _STEPS if length / step <= MOST_COLUMNS),
        ceil(length / _STEPS[-1] / 60) * _STEPS[-1],
    )


def chart_of(
    found: Sequence[Throughput], begun: datetime, step: timedelta, until: datetime | None = None
) -> Chart | None:
    """From the run's beginning to `until`, or to the last end of a document; None without any."""
    if not found:
        return None
    size = step // timedelta(milliseconds=1)
    first = min(to_ms(begun) // size * size, to_ms(found[0].begins))
    last = max(to_ms(found[-1].begins), to_ms(until) if until else 0)
    number = (last - first) // size + 1
    number = max(number, 12)  # a few columns do not fill the whole width
    most = max(each.ended for each in found)
    columns = tuple(
        Column(
            each.begins,
            each.ended,
            round(100 * ((to_ms(each.begins) - first) // size) / number, 3),
            round(max(100 * each.ended / most, 1.5), 2),
        )
        for each in found
    )
    return Chart(columns, round(100 / number, 3), step, most, from_ms(first), from_ms(first + number * size))
