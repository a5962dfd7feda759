"""Lets model calls through: so many at once, so many requests and tokens a minute, none while cooling down.

The limits belong to the whole consumer group; each worker keeps to its `share` of them. Turns are first come,
first served. A budget begins empty and holds one second's worth, so that workers that start together do not
burst, and what was started within the last minute is added up, so that no minute has more than its limit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from types import TracebackType

from docsum.errors import TooLong
from docsum.ports import Clock

_MINUTE = 60.0
_NOW = 1e-6  # seconds; shorter waits are rounding errors
_LONG = 10.0  # seconds; a call that takes longer is told of
_LOOK_AGAIN = 1.0  # seconds; the share may change during a long wait


class _Spent:
    """What one call took of a budget; corrected when the provider has counted."""

    __slots__ = ("amount", "at", "counted")

    def __init__(self, at: float, amount: float) -> None:
        self.at = at
        self.amount = amount
        self.counted = True  # until a minute has passed


class _Budget:
    """A token bucket of one second, under the sum of the last minute."""

    def __init__(self, limit: int, setting: str, now: float) -> None:
        self.limit = limit
        self.setting = setting
        self._level = 0.0
        self._filled_at = now
        self._minute: deque[_Spent] = deque()
        self._sum = 0.0

    def wait(self, amount: int, now: float, share: float) -> float:
        """Seconds until a call of this size may be tried; 0 = now."""
        rate = self.limit * share / _MINUTE
        if rate <= 0:
            return _LOOK_AGAIN
        most = max(rate, 1.0)
        self._level = min(most, self._level + (now - self._filled_at) * rate)
        self._filled_at = now
        while self._minute and self._minute[0].at + _MINUTE - now <= _NOW:
            old = self._minute.popleft()
            old.counted = False
            self._sum -= old.amount
        if self._minute and self._sum + amount > self.limit * share:
            return self._minute[0].at + _MINUTE - now
        # A call larger than the bucket goes when it is full, and the next ones wait the debt off.
        return max(0.0, (min(amount, most) - self._level) / rate)

    def take(self, amount: int, now: float) -> _Spent:
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


class Permit:
    """A place in the queue, then the right to one call while it is entered."""

    __slots__ = ("_gate", "_input_tokens", "_output_tokens", "_spent")

    def __init__(self, gate: CallGate, input_tokens: int, output_tokens: int) -> None:
        self._gate = gate
        self._input_tokens = input_tokens
        self._output_tokens = output_tokens
        self._spent: tuple[_Spent, ...] = ()

    async def __aenter__(self) -> None:
        self._spent = await self._gate.enter(self, self._input_tokens, self._output_tokens)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self)

    def used(self, input_tokens: int, output_tokens: int, requests: int = 1) -> None:
        """What the provider counted, in place of the estimates; nothing at all where there was no call."""
        if self._spent:
            self._gate.correct(self._spent, requests, input_tokens, output_tokens)


class CallGate:
    """The gate of one worker. Without limits it is a semaphore and nothing else."""

    def __init__(
        self,
        max_in_flight: int,
        clock: Clock,
        *,
        requests_per_minute: int = 0,
        input_tokens_per_minute: int = 0,
        output_tokens_per_minute: int = 0,
    ) -> None:
        """A limit of 0 is none."""
        now = clock.monotonic()
        self._clock = clock
        self._places = asyncio.Semaphore(max_in_flight)
        self._turn = asyncio.Lock()  # whoever waits for a budget: one after the other, in order
        self._requests = _Budget(requests_per_minute, "REQUESTS", now)
        self._input = _Budget(input_tokens_per_minute, "INPUT_TOKENS", now)
        self._output = _Budget(output_tokens_per_minute, "OUTPUT_TOKENS", now)
        self._limited = bool(requests_per_minute or input_tokens_per_minute or output_tokens_per_minute)
        self._cool_until = 0.0  # 0 = not cooling down
        self._share = 1.0
        self._most = max_in_flight
        self._waiting = 0
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

    def __str__(self) -> str:
        """What a person wants to know: how many calls, how many wait, and what for."""
        parts = [f"{len(self._calls)} of {self._most} calls"]
        longest = self._clock.monotonic() - next(iter(self._calls.values()), self._clock.monotonic())
        if longest >= _LONG:
            parts.append(f"the longest for {longest:.0f} s")
        if self._waiting:
            parts.append(f"{self._waiting} wait")
        for budget, unit in (
            (self._requests, "requests"),
            (self._input, "input tokens"),
            (self._output, "output tokens"),
        ):
            if budget.limit:
                parts.append(f"{budget.limit * self._share:,.0f} of {budget.limit:,} {unit}/min")
        cooling = self._cool_until - self._clock.monotonic()
        if self._cool_until and cooling > 0:
            parts.append(f"no call for {cooling:.0f} s: the provider asked us to slow down")
        return ", ".join(parts)

    def permit(self, input_tokens: int, output_tokens: int) -> Permit:
        """Waits its turn when entered; the estimates are of this call.

        Raises TooLong for a call that is larger than a whole minute's limit: it would wait for ever.
        """
        if self._limited:
            for budget, amount in ((self._input, input_tokens), (self._output, output_tokens)):
                if 0 < budget.limit < amount:
                    raise TooLong(
                        f"The request needs about {amount} tokens, more than "
                        f"DOCSUM_LIMITS__{budget.setting}_PER_MINUTE ({budget.limit}) allows in a minute."
                    )
        return Permit(self, input_tokens, output_tokens)

    def cool_down(self, wait: timedelta) -> None:
        """No call starts before that time has passed; a shorter wait never shortens a longer one."""
        self._cool_until = max(self._cool_until, self._clock.monotonic() + wait.total_seconds())

    async def enter(self, call: Permit, input_tokens: int, output_tokens: int) -> tuple[_Spent, ...]:
        """For `Permit`: returns when the call may start, with what it took."""
        self._waiting += 1
        try:
            spent = await self._enter(input_tokens, output_tokens)
        finally:
            self._waiting -= 1
        self._calls[call] = self._clock.monotonic()
        return spent

    async def _enter(self, input_tokens: int, output_tokens: int) -> tuple[_Spent, ...]:
        await self._places.acquire()
        if not self._limited and not self._cool_until:
            return ()
        try:
            async with self._turn:
                return await self._wait(
                    ((self._requests, 1), (self._input, input_tokens), (self._output, output_tokens))
                )
        except BaseException:
            self._places.release()
            raise

    async def _wait(self, wanted: tuple[tuple[_Budget, int], ...]) -> tuple[_Spent, ...]:
        while True:
            now = self._clock.monotonic()
            limited = [(budget, amount) for budget, amount in wanted if budget.limit]
            waits = [budget.wait(amount, now, self._share) for budget, amount in limited]
            wait = max(self._cool_until - now, 0.0, *waits)
            if wait <= _NOW:
                self._cool_until = 0.0
                return tuple(
                    budget.take(amount, now) if budget.limit else _Spent(now, 0) for budget, amount in wanted
                )
            await self._clock.sleep(min(wait, _LOOK_AGAIN))

    def leave(self, call: Permit) -> None:
        """For `Permit`."""
        del self._calls[call]
        self._places.release()

    def correct(self, spent: tuple[_Spent, ...], *amounts: int) -> None:
        """For `Permit`: requests, input tokens, output tokens."""
        for budget, old, amount in zip(
            (self._requests, self._input, self._output), spent, amounts, strict=True
        ):
            budget.correct(old, amount)
