"""How `docsum ingest` shows its progress: a line that changes on a terminal, one now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from docsum.cli.output import console, say
from docsum.ingest import Ingested
from docsum.sources import Unreadable

if TYPE_CHECKING:
    from rich.live import Live

_PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal
_COMPLAINTS = 20  # so many are told one by one


def line(count: Ingested) -> str:
    """All that matters in one line."""
    parts = [f"new {count.new:,}", f"changed {count.changed:,}", f"as before {count.unchanged:,}"]
    if count.deleted:
        parts.append(f"gone {count.deleted:,}")
    if count.unreadable:
        parts.append(f"passed over {count.unreadable:,}")
    return " · ".join(parts) + (f"; {count.waiting}" if count.waiting else "")


class Progress:
    """Keeps the newest counts and shows them on stderr."""

    def __init__(self) -> None:
        self.count = Ingested()
        self._complained: set[str] = set()
        self._untold = 0
        self._why = ""
        self._live: Live | None = None
        self._shown = ""
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
        if self._untold:
            say(f"Passed over {self._untold} more.")

    def show(self, count: Ingested) -> None:
        """It has come so far."""
        self.count = count
        if count.why and count.why != self._why:  # said once, however often it is found
            self._why = count.why
            self.say(count.why)
        self._draw()

    def passed_over(self, entry: Unreadable) -> None:
        """This one could not be announced; each is told once, and only the first ones."""
        if entry.where in self._complained:
            return
        if len(self._complained) >= _COMPLAINTS:
            self._untold += 1
            return
        self._complained.add(entry.where)
        self.say(f"Passed over {entry.where}: {entry.problem}.")

    def say(self, text: str) -> None:
        """A sentence above the line."""
        if self._live is not None:
            self._live.console.print(text)
        else:
            say(text)

    def _draw(self) -> None:
        text = line(self.count)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(text))
        elif text != self._shown and time.monotonic() - self._shown_at > _PLAIN_EVERY:
            self._shown, self._shown_at = text, time.monotonic()
            say(text)
