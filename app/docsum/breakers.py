"""Breakers: what many documents meet at a shared dependency is the dependency's trouble, not theirs.

A breaker opens when 80 % of the last outcomes, at most 20, were failures, of at least 5 documents.
While it is open one document at a time probes, in the order in which they wait, so that one that is poison
cannot keep it open; the first that gets through closes it. A probe that hangs is not waited for: after the
longest cool-down the next one tries.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from docsum.models import Failure
from docsum.ports import Clock

WINDOW, SHARE, DOCUMENTS = 20, 0.8, 5
#: Between two probes; doubles from the first to the second.
FIRST_COOL_DOWN, LONGEST_COOL_DOWN = timedelta(seconds=2), timedelta(seconds=15)
_NOW = timedelta(milliseconds=1)  # what is left of a wait is a rounding error
#: Dependencies that are remembered: hosts may be many.
MOST = 1_000

#: Hears why a delivery waits, and how long until the next probe.
Told = Callable[[Failure, timedelta], None]


@dataclass(frozen=True, slots=True)
class Trouble:
    """An open breaker as a person is told of it."""

    dependency: str
    failure: Failure
    since: datetime
    next_probe: datetime
    waiting: int  # deliveries

    def __str__(self) -> str:
        day = "" if self.since.date() == self.next_probe.date() else "%Y-%m-%d "
        waiting = f" {self.waiting} wait," if self.waiting else ""
        return (
            f"{self.dependency} has not worked since {self.since:{day}%H:%M:%S} UTC ({self.failure.reason}),"
            f"{waiting} next probe {self.next_probe:%H:%M:%S} UTC. {self.failure.message}"
        )


class Breaker:
    """The breaker of one dependency in one worker."""

    def __init__(self, dependency: str, clock: Clock) -> None:
        self.dependency = dependency
        self._clock = clock
        self._outcomes: deque[tuple[str, bool]] = deque(maxlen=WINDOW)
        self._successes: deque[tuple[int, str]] = deque(maxlen=WINDOW)  # begun at which mark
        self._count = 0  # of outcomes, ever
        self._opened = 0  # at which mark
        self._failure: Failure | None = None
        self._since: datetime | None = None  # None = closed
        self._cool_down = FIRST_COOL_DOWN
        self._next_probe = 0.0  # monotonic
        self._probing = False
        self._waiting: deque[tuple[asyncio.Future[None], Told]] = deque()
        self._timer: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._since is not None

    @property
    def mark(self) -> int:
        """A moment, for `succeeded` and `others_succeeded`."""
        return self._count

    def others_succeeded(self, document_id: str, mark: int) -> int:
        """How many other documents got through whose work began after that moment."""
        return len({name for begun, name in self._successes if begun >= mark and name != document_id})

    def trouble(self) -> Trouble | None:
        """None while it is closed."""
        if self._since is None or self._failure is None:
            return None
        next_probe = self._clock.now() + self._until_probe()
        return Trouble(self.dependency, self._failure, self._since, next_probe, len(self._waiting))

    def _until_probe(self) -> timedelta:
        return timedelta(seconds=max(0.0, self._next_probe - self._clock.monotonic()))

    def succeeded(self, document_id: str, begun: int | None = None) -> None:
        """The dependency has worked for this document: an open breaker closes.

        `begun`: the mark at which its work began. What was under way before it opened does not close it.
        """
        begun = self._count if begun is None else begun
        self._count += 1
        self._outcomes.append((document_id, True))
        self._successes.append((begun, document_id))
        if self.is_open and begun >= self._opened:
            self._close()

    def failed(self, document_id: str, failure: Failure) -> None:
        """The dependency has failed for this document."""
        self._failure = failure
        self._count += 1
        self._outcomes.append((document_id, False))
        if self.is_open:
            if self._probing:
                self._cool_down = min(self._cool_down * 2, LONGEST_COOL_DOWN)
                self._probing = False
                self._probe_in(self._cool_down)
                for _, told in self._waiting:
                    self._tell(told)
        elif self._must_open():
            self._open()

    def may_probe(self) -> bool:
        """True when it is closed, or when it is open and this caller is the next probe."""
        if not self.is_open:
            return True
        if self._until_probe() > _NOW:
            return False
        self._probing = True
        self._probe_in(LONGEST_COOL_DOWN)  # unless it is heard of before
        return True

    async def turn(self, told: Told = lambda _failure, _wait: None) -> bool:
        """Returns at once while it is closed, else when it has closed or this caller is to probe.

        `told` hears of every probe that has failed meanwhile. True makes the caller the probe: it must report
        how it went, or `give_up`.
        """
        while not self.may_probe():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = (turn, told)
            self._waiting.append(waiting)
            self._tell(told)
            self._wake_at_next_probe()
            try:
                await turn
            except asyncio.CancelledError:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
                self._wake_at_next_probe()  # its turn may have come in the same moment
                raise
        return self._probing

    def give_up(self) -> None:
        """A probe that was let go without an outcome: the next one may try."""
        if self._probing:
            self._probing = False
            self._probe_in(timedelta())

    def _tell(self, told: Told) -> None:
        if self._failure is not None:
            message = f"{self.dependency} is out of order. {self._failure.message}"
            told(replace(self._failure, message=message), self._until_probe())

    def _must_open(self) -> bool:
        failures = [document for document, worked in self._outcomes if not worked]
        return len(set(failures)) >= DOCUMENTS and len(failures) >= SHARE * len(self._outcomes)

    def _open(self) -> None:
        self._since, self._opened = self._clock.now(), self._count
        self._cool_down = FIRST_COOL_DOWN
        self._probe_in(self._cool_down)

    def _close(self) -> None:
        self._since, self._probing = None, False
        self._outcomes.clear()
        self._stop_timer()
        while self._waiting:
            _wake(self._waiting.popleft()[0])

    def _probe_in(self, wait: timedelta) -> None:
        self._next_probe = self._clock.monotonic() + wait.total_seconds()
        self._stop_timer()
        self._wake_at_next_probe()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_at_next_probe(self) -> None:
        if self._waiting and self._timer is None:
            self._timer = asyncio.create_task(self._wake_later())

    async def _wake_later(self) -> None:
        await self._clock.sleep(self._until_probe().total_seconds())
        self._timer = None
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                _wake(turn)
                return


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


class Breakers:
    """The breakers of a worker, by dependency: `model NAME`, `https://host`, `s3://bucket`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def of(self, dependency: str) -> Breaker:
        """Made when it is first asked for; of many, closed ones that nobody asks for are forgotten."""
        breaker = self._breakers.get(dependency)
        if breaker is None:
            breaker = self._breakers[dependency] = Breaker(dependency, self._clock)
            closed = [name for name, old in self._breakers.items() if not old.is_open]
            for name in closed[:-MOST]:
                del self._breakers[name]
        self._breakers.move_to_end(dependency)
        return breaker

    def count_open(self, prefix: str) -> int:
        """Of the dependencies whose name begins so."""
        return sum(breaker.is_open for name, breaker in self._breakers.items() if name.startswith(prefix))

    def troubles(self) -> list[Trouble]:
        """Of all that are open."""
        return [trouble for breaker in self._breakers.values() if (trouble := breaker.trouble())]
