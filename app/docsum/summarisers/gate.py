"""Lets model calls through: so many at once, so many requests and tokens a minute, none while cooling down.

The limits belong to the whole consumer group; each worker keeps to its `share` of them. What no setting says,
the provider's replies do: until the first one has come only a few calls go. Turns are first come, first
served in each of two queues, live events and everything else, four to one where both wait. A budget begins
empty and holds one second's worth, so that workers that start together do not burst, and what was started
within the last minute is added up, so that no minute has more than its limit. After a pause few calls go at
once, one more for every answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from docsum.errors import TooLong
from docsum.models import Lane
from docsum.ports import Clock

_MINUTE = 60.0
_NOW = 1e-6  # seconds; shorter waits are rounding errors
_LONG = 10.0  # seconds; a call that takes longer is told of
_LOOK_AGAIN = 1.0  # seconds; the share may change during a long wait
_FEW = 4  # calls at once while nothing is known, and after a pause
_LIVE_IN_A_ROW = 4  # before another one has its turn
#: A limit that no worker reaches is none: keeping count of it would cost something for every call.
_BEYOND_REACH = {"requests": 100_000, "input-tokens": 1_000_000_000, "output-tokens": 1_000_000_000}


class _Spent:
    """What one call took of a budget; corrected when the provider has counted."""

    __slots__ = ("amount", "at", "counted")

    def __init__(self, at: float, amount: float) -> None:
        self.at = at
        self.amount = amount
        self.counted = True  # until a minute has passed


class _Budget:
    """A token bucket of one second, under the sum of the last minute."""

    def __init__(self, unit: str, limit: int, now: float) -> None:
        self.unit = unit  # as the provider's headers have it
        self.limit = limit  # 0 = none
        self.is_ours = limit > 0  # the settings' own, which no reply changes
        self._level = 0.0
        self._filled_at = now
        self._minute: deque[_Spent] = deque()
        self._sum = 0.0

    def used(self, now: float) -> float:
        """In the last minute."""
        while self._minute and self._minute[0].at + _MINUTE - now <= _NOW:
            old = self._minute.popleft()
            old.counted = False
            self._sum -= old.amount
        return self._sum

    def wait(self, amount: int, now: float, share: float) -> float:
        """Seconds until a call of this size may be tried; 0 = now."""
        rate = self.limit * share / _MINUTE
        if rate <= 0:
            return _LOOK_AGAIN
        most = max(rate, 1.0)
        self._level = min(most, self._level + (now - self._filled_at) * rate)
        self._filled_at = now
        used = self.used(now)
        if self._minute and used + amount > self.limit * share:
            return self._minute[0].at + _MINUTE - now
        # A call larger than the bucket goes when it is full, and the next ones wait the debt off.
        return max(0.0, (min(amount, most) - self._level) / rate)

    def take(self, amount: int, now: float) -> _Spent | None:
        """None where there is no limit, or none is known yet."""
        if not self.limit:
            return None
        spent = _Spent(now, amount)
        self._level -= amount
        self._sum += amount
        self._minute.append(spent)
        return spent

    def correct(self, spent: _Spent, amount: int) -> None:
        self._level += spent.amount - amount
        if spent.counted:
            self._sum += amount - spent.amount
        spent.amount = amount

    def learn(self, limit: int, now: float) -> None:
        """What a reply says. What is too high to be reached stays uncounted."""
        if self.is_ours or limit == self.limit or not 0 < limit < _BEYOND_REACH[self.unit]:
            return
        if not self.limit:
            self._filled_at = now
        self.limit = limit


class Permit:
    """A place in the queue, then the right to one call while it is entered."""

    __slots__ = ("_amounts", "_gate", "_lane", "_spent")

    def __init__(self, gate: CallGate, amounts: tuple[int, int, int], lane: Lane) -> None:
        self._gate = gate
        self._amounts = amounts
        self._lane = lane
        self._spent: tuple[_Spent | None, ...] = ()

    async def __aenter__(self) -> None:
        self._spent = await self._gate.enter(self, self._amounts, self._lane)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self)

    def used(self, input_tokens: int, output_tokens: int, requests: int = 1) -> None:
        """What the provider counted, in place of the estimates; nothing at all where there was no call."""
        if self._spent:
            self._gate.correct(self._spent, requests, input_tokens, output_tokens)


class _Turn:
    """A call that waits."""

    __slots__ = ("amounts", "granted")

    def __init__(self, amounts: tuple[int, int, int]) -> None:
        self.amounts = amounts
        self.granted: asyncio.Future[tuple[_Spent | None, ...]] = asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class GateState:
    """A gate at one moment."""

    calls: int  # in flight
    waiting: int  # for a place, or for the limits
    width: int  # calls that may be in flight at once, for now
    cooling: float  # seconds in which no call starts
    limits: Mapping[str, float]  # a minute, of this worker, by unit; 0 = none
    used: Mapping[str, float]  # of the last minute, of those that are counted


class CallGate:
    """The gate of one worker."""

    def __init__(
        self,
        max_in_flight: int,
        clock: Clock,
        *,
        requests_per_minute: int = 0,
        input_tokens_per_minute: int = 0,
        output_tokens_per_minute: int = 0,
    ) -> None:
        """A limit of 0 is the provider's, as its replies tell."""
        now = clock.monotonic()
        self._clock = clock
        self._budgets = (
            _Budget("requests", requests_per_minute, now),
            _Budget("input-tokens", input_tokens_per_minute, now),
            _Budget("output-tokens", output_tokens_per_minute, now),
        )
        self._limited = any(budget.limit for budget in self._budgets)
        self._heard = all(budget.limit for budget in self._budgets)  # of the limits
        self._most = max_in_flight
        self._width = max_in_flight if self._heard else min(_FEW, max_in_flight)  # so many at once, for now
        self._taken = 0  # places
        self._live: deque[_Turn] = deque()
        self._others: deque[_Turn] = deque()
        self._in_a_row = 0  # live ones that went while others waited
        self._next: deque[_Turn] | None = None  # whose first one is next
        self._timer: asyncio.Task[None] | None = None
        self._look_at = 0.0  # when it ends, by the monotonic clock
        self._cool_until = 0.0  # 0 = not cooling down
        self._share = 1.0
        self._calls: dict[Permit, float] = {}  # in flight, oldest first, and when each began

    @property
    def share(self) -> float:
        """This worker's part of the limits: its partitions of all partitions."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"A share is between 0 and 1, not {share}.")
        self._share = share

    def state(self) -> GateState:
        """For metrics."""
        now = self._clock.monotonic()
        return GateState(
            calls=len(self._calls),
            waiting=len(self._live) + len(self._others),
            width=self._width,
            cooling=max(0.0, self._cool_until - now) if self._cool_until else 0.0,
            limits={budget.unit: budget.limit * self._share for budget in self._budgets},
            used={budget.unit: budget.used(now) for budget in self._budgets},
        )

    def __str__(self) -> str:
        """What a person wants to know: how many calls, how many wait, what for, and what the share is."""
        now = self._clock.monotonic()
        parts = [f"{len(self._calls)} of {self._most} calls"]
        longest = now - next(iter(self._calls.values()), now)
        if longest >= _LONG:
            parts.append(f"the longest for {longest:.0f} s")
        if waiting := len(self._live) + len(self._others):
            parts.append(f"{waiting} wait")
        if self._width < self._most and self._heard:
            parts.append(f"at most {self._width} at once after a pause")
        for budget in self._budgets:
            if budget.limit:
                mine, unit = budget.limit * self._share, budget.unit.replace("-", " ")
                told = "" if budget.is_ours else ", as the provider says"
                parts.append(f"{budget.used(now):,.0f} of {mine:,.0f} {unit}/min (of {budget.limit:,}{told})")
        cooling = self._cool_until - now
        if self._cool_until and cooling > 0:
            parts.append(f"no call for {cooling:.0f} s: the provider asked us to slow down")
        return ", ".join(parts)

    def permit(self, input_tokens: int, output_tokens: int, lane: Lane = Lane.LIVE) -> Permit:
        """Waits its turn when entered; the estimates are of this call.

        Raises TooLong for a call that is larger than a whole minute's limit: it would wait for ever.
        """
        amounts = (1, input_tokens, output_tokens)
        if self._limited:
            for budget, amount in zip(self._budgets, amounts, strict=True):
                if 0 < budget.limit < amount:
                    name = budget.unit.replace("-", "_").upper()
                    raise TooLong(
                        f"The request needs about {amount} tokens, more than "
                        f"DOCSUM_LIMITS__{name}_PER_MINUTE ({budget.limit}) allows in a minute."
                    )
        return Permit(self, amounts, lane)

    # -- what the provider says --------------------------------------------------------------------------

    def heard(self, headers: Mapping[str, str]) -> None:
        """An answer has come, with these headers: the limits are known, and one more call may go at once."""
        self._learn(headers)
        self._width = min(self._most, self._width + 1) if self._heard else self._most
        self._heard = True
        self._pump()

    def cool_down(self, wait: timedelta, headers: Mapping[str, str] | None = None) -> None:
        """No call starts before that time has passed; a shorter wait never shortens a longer one."""
        self._learn(headers or {})
        self._cool_until = max(self._cool_until, self._clock.monotonic() + wait.total_seconds())
        self._width = min(_FEW, self._most)

    def faltered(self) -> None:
        """A call has failed at the provider: half as many at once, until answers come."""
        self._width = min(self._most, max(_FEW, self._width // 2))

    def _learn(self, headers: Mapping[str, str]) -> None:
        for budget in self._budgets:
            said = headers.get(f"anthropic-ratelimit-{budget.unit}-limit", "")
            if said.isdecimal():
                budget.learn(int(said), self._clock.monotonic())
        self._limited = any(budget.limit for budget in self._budgets)

    # -- turns -------------------------------------------------------------------------------------------

    async def enter(
        self, call: Permit, amounts: tuple[int, int, int], lane: Lane
    ) -> tuple[_Spent | None, ...]:
        """For `Permit`: returns when the call may start, with what it took."""
        turn = _Turn(amounts)
        queue = self._live if lane is Lane.LIVE else self._others
        queue.append(turn)
        self._pump()
        try:
            spent = await turn.granted
        except asyncio.CancelledError:
            self._withdraw(turn, queue)
            raise
        self._calls[call] = self._clock.monotonic()
        return spent

    def _withdraw(self, turn: _Turn, queue: deque[_Turn]) -> None:
        if turn.granted.done() and not turn.granted.cancelled():
            self.correct(turn.granted.result(), 0, 0, 0)
            self._taken -= 1
        elif turn in queue:
            if self._next is queue and queue[0] is turn:
                self._next = None
            queue.remove(turn)
        self._pump()

    def leave(self, call: Permit) -> None:
        """For `Permit`."""
        del self._calls[call]
        self._taken -= 1
        self._pump()

    def correct(self, spent: tuple[_Spent | None, ...], *amounts: int) -> None:
        """For `Permit`: requests, input tokens, output tokens."""
        for budget, old, amount in zip(self._budgets, spent, amounts, strict=True):
            if old is not None:
                budget.correct(old, amount)
        if self._timer is not None:  # what was given back may be what the next one waits for
            self._pump()

    def _pump(self) -> None:
        """Lets in whoever may go."""
        while self._taken < self._width and (queue := self._chosen()) is not None:
            now, turn = self._clock.monotonic(), queue[0]
            if turn.granted.cancelled():  # its caller has not run since
                queue.popleft()
                self._next = None
                continue
            if (wait := self._wait(turn.amounts, now)) > _NOW:
                self._look_again_in(min(wait, _LOOK_AGAIN))
                return
            queue.popleft()
            self._next = None
            self._in_a_row = self._in_a_row + 1 if queue is self._live and self._others else 0
            self._taken += 1
            pairs = zip(self._budgets, turn.amounts, strict=True)
            turn.granted.set_result(tuple(budget.take(amount, now) for budget, amount in pairs))

    def _chosen(self) -> deque[_Turn] | None:
        """The queue whose turn it is; it stays so until its first one has gone."""
        if self._next is None:
            others_turn = self._others and (not self._live or self._in_a_row >= _LIVE_IN_A_ROW)
            self._next = self._others if others_turn else self._live or None
        return self._next

    def _wait(self, amounts: tuple[int, int, int], now: float) -> float:
        if self._cool_until:
            if (cooling := self._cool_until - now) > _NOW:
                return cooling
            self._cool_until = 0.0
        if not self._limited:
            return 0.0
        pairs = zip(self._budgets, amounts, strict=True)
        return max(budget.wait(amount, now, self._share) for budget, amount in pairs if budget.limit)

    def _look_again_in(self, seconds: float) -> None:
        at = self._clock.monotonic() + seconds
        if self._timer is not None:
            if self._look_at <= at + _NOW:
                return
            self._timer.cancel()
        self._look_at = at
        self._timer = asyncio.create_task(self._look_again(seconds))

    async def _look_again(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._timer = None
        self._pump()
