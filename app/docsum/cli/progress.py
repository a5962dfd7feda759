"""A run on its way, as a person watches it."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from docsum.cli.output import console, say
from docsum.models import RunProgress
from docsum.runs import Published, Snapshot
from docsum.sources import Unreadable
from docsum.words import money, span

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_WINDOW = 30.0  # seconds that a rate is measured over
_PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal
_COMPLAINTS = 20  # so many are told one by one
_BAR = 30  # columns


class Pace:
    """Documents a second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, finished: int) -> None:
        """So many documents had their end at this moment, in seconds of a steady clock."""
        self._seen.append((at, finished))
        while at - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """0 until there are two moments."""
        (first, before), (last, now) = self._seen[0], self._seen[-1]
        return (now - before) / (last - first) if last > first else 0.0


def counts(progress: RunProgress, rate: float, *, complete: bool) -> str:
    """One line of numbers. Without the `complete` listing there is no telling when it ends."""
    parts = [
        f"done {progress.done:,}",
        f"skipped {progress.skipped:,}",
        f"retrying {progress.retrying:,}",
        f"failed {progress.dead_lettered:,}",
    ]
    if progress.held:
        parts.append(f"held {progress.held:,}")
    if rate > 0:
        parts.append(f"{rate:,.1f}/s")
        if complete and progress.remaining:
            parts.append(f"{span(progress.remaining / rate)} left")
    return " · ".join([*parts, money(progress.cost)])


class Watch:
    """Shows a run on stderr: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._snapshot: Snapshot | None = None
        self._published = Published()
        self._publishing = False
        self._complaints = 0
        self._live: Live | None = None
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(stderr=True), transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._complaints > _COMPLAINTS:
            say(f"Passed over {self._complaints - _COMPLAINTS} more.")

    def publishing(self, published: Published) -> None:
        """The publisher has come so far."""
        self._published, self._publishing = published, True
        self._draw()

    def passed_over(self, entry: Unreadable) -> None:
        """The publisher could not announce this one."""
        self._complaints += 1
        if self._complaints <= _COMPLAINTS:
            self._say(f"Passed over {entry.where}: {entry.problem}.")

    def show(self, snapshot: Snapshot, *, publishing: bool) -> None:
        """The run as the store has it now."""
        self._snapshot, self._publishing = snapshot, publishing
        progress = snapshot.progress
        self._pace.add(time.monotonic(), progress.total - progress.remaining)
        self._draw()

    def _lines(self) -> list[str]:
        published, lines = self._published, []
        if self._snapshot is not None:
            complete = not self._publishing
            lines.append(counts(self._snapshot.progress, self._pace.rate, complete=complete))
        if self._publishing and published.waiting:
            lines.append(f"Announced {published.announced:,}; {published.waiting}")
        elif self._publishing and published.listed:
            lines.append(f"Announced {published.announced:,} of {published.listed:,} listed so far")
        if self._snapshot is not None and self._snapshot.trouble:
            lines.append(f"These are old numbers: {self._snapshot.trouble}")
        return lines

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._picture())
        elif time.monotonic() - self._shown_at > _PLAIN_EVERY:
            self._shown_at = time.monotonic()
            for line in self._lines():
                say(line)

    def _picture(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        picture = Table.grid()
        if self._snapshot is not None:
            progress = self._snapshot.progress
            total, ended = progress.total, progress.total - progress.remaining
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total or 1, ended, width=_BAR), Text(f"{ended:,} of {total:,}"))
            picture.add_row(bar)
        for line in self._lines():
            picture.add_row(Text(line))
        return picture

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text)
        else:
            say(text)
