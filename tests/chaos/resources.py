"""What a process holds on to while it lives: memory, open files, threads. Pure, but for `look`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import linear_regression, median

import psutil

_WARM_UP = 0.25  # of its life, in which a process reaches its size


@dataclass(frozen=True, slots=True)
class Footprint:
    """One process at one moment."""

    at: float  # seconds
    memory: float  # resident, MB
    files: int  # open file descriptors
    threads: int


@dataclass(frozen=True, slots=True)
class Trend:
    """How a process has grown once it was warm."""

    seconds: float  # from the first look to the last
    memory: tuple[float, float]  # MB, medians of the first and of the last tenth after the warm-up
    slope: float  # MB an hour, least squares
    files: tuple[float, float]  # medians, as those of the memory
    threads: tuple[float, float]

    def __str__(self) -> str:
        (low, high), (few, many), (least, most) = self.memory, self.files, self.threads
        return (
            f"{self.seconds:,.0f} s: memory {low:.0f} -> {high:.0f} MB ({self.slope:+.1f} MB/h), "
            f"open files {few:.0f} -> {many:.0f}, threads {least:.0f} -> {most:.0f}"
        )


def look(pid: int, at: float) -> Footprint | None:
    """None where there is no such process any more."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            memory = process.memory_info().rss / 1e6
            return Footprint(at, memory, process.num_fds(), process.num_threads())
    return None


def trend(seen: Sequence[Footprint]) -> Trend | None:
    """None where there were too few looks to tell."""
    warm = seen[int(len(seen) * _WARM_UP) :]
    if len(warm) < 10:
        return None
    tenth = len(warm) // 10
    ends = warm[:tenth], warm[-tenth:]
    memory, files, threads = (
        tuple(median(getattr(each, name) for each in end) for end in ends)
        for name in ("memory", "files", "threads")
    )
    slope = linear_regression([each.at for each in warm], [each.memory for each in warm]).slope
    return Trend(seen[-1].at - seen[0].at, memory, slope * 3600, files, threads)


def trends(seen: Mapping[str, Sequence[Footprint]], longest: float) -> Iterator[str]:
    """A line for every process that has lived for at least half of that time, in seconds."""
    for name, looks in seen.items():
        found = trend(looks)
        if found and found.seconds > longest / 2:
            yield f"{name} {found}"
