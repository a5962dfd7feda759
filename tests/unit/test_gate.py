"""How calls are let through: in order, never more than the limits, none while cooling down."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docsum.errors import TooLong
from docsum.models import Lane
from docsum.summarisers.gate import CallGate
from tests.support.fakes import FakeClock


async def turns(count: int = 5) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def most_in_a_minute(starts: list[tuple[float, int]]) -> int:
    return max(sum(size for at, size in starts if 0 <= at - first < 59.999) for first, _ in starts)


async def starts_of(gate: CallGate, clock: FakeClock, sizes: list[int]) -> list[tuple[float, int]]:
    started: list[tuple[float, int]] = []
    for size in sizes:
        async with gate.permit(size, 1):
            started.append((clock.monotonic(), size))
    return started


async def test_without_limits_only_the_number_at_once_counts() -> None:
    clock = FakeClock()
    gate = CallGate(2, clock)
    leave = asyncio.Event()
    inside: list[int] = []

    async def call(number: int) -> None:
        async with gate.permit(10**9, 10**9):
            inside.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(call(n)) for n in range(5)]
    await turns()
    assert inside == [0, 1]
    leave.set()
    await asyncio.gather(*tasks)
    assert inside == [0, 1, 2, 3, 4]
    assert clock.monotonic() == 1.0  # nothing waited for time


async def test_who_is_cancelled_while_waiting_leaves_no_trace() -> None:
    gate = CallGate(1, FakeClock())
    async with gate.permit(1, 1):
        waiting = asyncio.create_task(gate.permit(1, 1).__aenter__())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(1), gate.permit(1, 1):
        pass


async def test_who_is_cancelled_while_a_limit_makes_it_wait_gives_its_place_back() -> None:
    class Stuck(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    gate = CallGate(1, Stuck(), requests_per_minute=1)
    for _ in range(3):
        waiting = asyncio.create_task(gate.permit(1, 1).__aenter__())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting], timeout=1)
        assert waiting.cancelled()


async def test_requests_are_spread_from_the_first_call() -> None:
    clock = FakeClock()
    gate = CallGate(8, clock, requests_per_minute=60)
    starts = await starts_of(gate, clock, [1] * 30)
    assert starts[-1][0] - 1.0 == pytest.approx(30, abs=2)
    assert starts[0][0] > 1.0  # the budget begins empty


@settings(max_examples=50)
@given(
    limit=st.integers(100, 2_000),
    parts=st.lists(st.integers(1, 1_000), min_size=5, max_size=60),
    share=st.sampled_from([1.0, 0.5, 1 / 3]),
)
def test_no_minute_has_more_tokens_than_its_limit(limit: int, parts: list[int], share: float) -> None:
    clock = FakeClock()
    sizes = [min(part, int(limit * share)) for part in parts]

    async def run() -> list[tuple[float, int]]:
        gate = CallGate(4, clock, input_tokens_per_minute=limit)
        gate.share = share
        return await starts_of(gate, clock, sizes)

    starts = asyncio.run(run())
    assert most_in_a_minute(starts) <= limit * share
    # And no slower than the limit asks for: twice the time is for pieces that do not fit into a minute.
    assert starts[-1][0] <= 2 * sum(sizes) / (limit * share) * 60 + 70


async def test_half_the_partitions_get_half_the_limit() -> None:
    clock = FakeClock()
    gate = CallGate(8, clock, requests_per_minute=60)
    gate.share = 0.5
    starts = await starts_of(gate, clock, [1] * 30)
    assert starts[-1][0] - 1.0 == pytest.approx(60, abs=3)


async def test_without_a_share_nothing_starts_until_there_is_one() -> None:
    clock = FakeClock()
    gate = CallGate(8, clock, requests_per_minute=60)
    gate.share = 0
    call = asyncio.create_task(gate.permit(1, 1).__aenter__())
    await turns(50)
    assert not call.done()
    gate.share = 1
    await call
    with pytest.raises(ValueError, match="share"):
        gate.share = 1.5


async def test_all_three_limits_hold() -> None:
    clock = FakeClock()
    gate = CallGate(
        8,
        clock,
        requests_per_minute=600,
        input_tokens_per_minute=100_000,
        output_tokens_per_minute=600,
    )
    for _ in range(10):
        async with gate.permit(1_000, 60):
            pass
    assert clock.monotonic() - 1.0 >= 50  # output is the narrowest: ten calls a minute


async def test_what_was_not_used_is_given_back() -> None:
    async def duration(used: int) -> float:
        clock = FakeClock()
        gate = CallGate(8, clock, output_tokens_per_minute=6_000)
        for _ in range(20):
            permit = gate.permit(10, 1_000)
            async with permit:
                pass
            permit.used(10, used)
        return clock.monotonic()

    assert await duration(250) < await duration(1_000) / 2
    assert await duration(2_000) > await duration(1_000) * 1.5


async def test_turns_are_first_come_first_served() -> None:
    clock = FakeClock()
    gate = CallGate(3, clock, input_tokens_per_minute=6_000)
    order: list[int] = []

    async def call(number: int, size: int) -> None:
        async with gate.permit(size, 1):
            order.append(number)

    # A large call is not overtaken for ever by small ones.
    await asyncio.gather(*(call(n, 5_000 if n == 3 else 10) for n in range(10)))
    assert order == list(range(10))


async def test_a_call_larger_than_the_limit_is_refused_by_name() -> None:
    gate = CallGate(1, FakeClock(), input_tokens_per_minute=1_000)
    with pytest.raises(TooLong, match=r"INPUT_TOKENS_PER_MINUTE \(1000\)"):
        gate.permit(1_001, 1)


async def test_nothing_starts_while_cooling_down() -> None:
    clock = FakeClock()
    gate = CallGate(4, clock)
    gate.cool_down(timedelta(seconds=30))
    gate.cool_down(timedelta(seconds=5))  # a shorter one changes nothing
    starts = await starts_of(gate, clock, [1, 1, 1])
    assert [at for at, _ in starts] == [31.0, 31.0, 31.0]


async def test_a_permit_without_a_call_gives_everything_back() -> None:
    clock = FakeClock()
    gate = CallGate(8, clock, requests_per_minute=60)
    for _ in range(30):
        permit = gate.permit(0, 0)
        async with permit:
            permit.used(0, 0, requests=0)
    assert clock.monotonic() <= 3.0  # one second's worth is saved up; thirty calls would take thirty


async def test_it_says_what_calls_wait_for() -> None:
    clock = FakeClock()
    gate = CallGate(2, clock, requests_per_minute=600)
    gate.share = 0.5
    assert str(gate) == "0 of 2 calls, 0 of 300 requests/min (of 600)"
    gate.cool_down(timedelta(seconds=7))
    waiting = [asyncio.create_task(gate.permit(1, 1).__aenter__()) for _ in range(3)]
    for _ in range(30):
        await asyncio.sleep(0)
    assert str(gate).startswith("2 of 2 calls, 1 wait")
    for task in waiting:
        task.cancel()


async def test_a_call_that_gets_no_answer_is_told_of() -> None:
    clock = FakeClock()
    gate = CallGate(4, clock)
    async with gate.permit(1, 1):
        assert str(gate) == "1 of 4 calls"
        clock.advance(timedelta(seconds=45))
        async with gate.permit(1, 1):
            assert str(gate) == "2 of 4 calls, the longest for 45 s"
    assert str(gate) == "0 of 4 calls"


# -- what the provider says ----------------------------------------------------------------------------------


def said(requests: int, tokens: int = 10**10) -> dict[str, str]:
    """The headers of a reply."""
    return {
        "anthropic-ratelimit-requests-limit": str(requests),
        "anthropic-ratelimit-input-tokens-limit": str(tokens),
        "anthropic-ratelimit-output-tokens-limit": "no number",
    }


class Calls:
    """Calls that stay until they are let go."""

    def __init__(self, gate: CallGate) -> None:
        self.gate = gate
        self.began: list[str] = []
        self._leave = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def _call(self, name: str, lane: Lane) -> None:
        async with self.gate.permit(1, 1, lane):
            self.began.append(name)
            await self._leave.wait()

    def ask(self, name: str, count: int, lane: Lane = Lane.LIVE) -> None:
        self.tasks += [asyncio.create_task(self._call(name, lane)) for _ in range(count)]

    async def end(self) -> None:
        self._leave.set()
        await asyncio.gather(*self.tasks)


async def test_few_calls_go_until_the_first_answer_tells_the_limits() -> None:
    gate = CallGate(16, FakeClock())
    calls = Calls(gate)
    calls.ask("a", 20)
    await turns()
    assert len(calls.began) == 4
    gate.heard({})
    await turns()
    assert len(calls.began) == 16
    await calls.end()


async def test_limits_are_learned_from_replies_and_settings_go_first() -> None:
    clock = FakeClock()
    gate = CallGate(8, clock, input_tokens_per_minute=500)
    gate.heard(said(60, 7_000))
    assert str(gate) == (
        "0 of 8 calls, 0 of 60 requests/min (of 60, as the provider says), 0 of 500 input tokens/min (of 500)"
    )
    starts = await starts_of(gate, clock, [1] * 30)
    assert starts[-1][0] - 1.0 == pytest.approx(30, abs=2)
    gate.heard(said(120))
    starts = await starts_of(gate, clock, [1] * 30)
    assert starts[-1][0] - starts[0][0] == pytest.approx(15, abs=2)


async def test_a_limit_that_nobody_reaches_is_not_counted() -> None:
    gate = CallGate(8, FakeClock())
    gate.heard(said(1_000_000))
    assert str(gate) == "0 of 8 calls"


async def test_what_was_not_counted_before_the_first_reply_is_not_given_back_after_it() -> None:
    gate = CallGate(8, FakeClock())
    permit = gate.permit(60_000, 1)
    async with permit:
        gate.heard(said(1_000, 6_000))
        permit.used(100, 1)
    assert " 0 of 6,000 input tokens/min" in str(gate)


async def test_after_a_pause_few_calls_go_and_one_more_for_each_answer() -> None:
    clock = FakeClock()
    gate = CallGate(16, clock)
    gate.heard({})
    gate.cool_down(timedelta(seconds=5), said(6_000))
    calls = Calls(gate)
    calls.ask("a", 20)
    await turns(200)
    assert clock.monotonic() >= 6.0
    assert len(calls.began) == 4
    assert "at most 4 at once after a pause" in str(gate)
    for _ in range(3):
        gate.heard(said(6_000))
        await turns(200)
    assert len(calls.began) == 7
    gate.faltered()
    assert "at most 4 at once" in str(gate)
    for _ in range(20):
        gate.heard(said(6_000))
        await turns(200)
    await calls.end()


async def test_live_events_have_four_turns_in_five() -> None:
    gate = CallGate(1, FakeClock())
    gate.heard({})
    order: list[str] = []

    async def call(name: str, lane: Lane) -> None:
        async with gate.permit(1, 1, lane):
            order.append(name)
            await asyncio.sleep(0)

    others = [asyncio.create_task(call("b", Lane.BACKFILL)) for _ in range(10)]
    await turns(1)
    live = [asyncio.create_task(call("l", Lane.LIVE)) for _ in range(8)]
    await asyncio.gather(*others, *live)
    assert "".join(order[:12]) == "bbllllbllllb"
    assert sorted(order) == ["b"] * 10 + ["l"] * 8


async def test_whoever_is_cancelled_at_the_moment_of_its_turn_gives_everything_back() -> None:
    clock = FakeClock()
    gate = CallGate(1, clock, requests_per_minute=60, input_tokens_per_minute=60, output_tokens_per_minute=60)
    clock.advance(timedelta(seconds=10))
    async with gate.permit(1, 1):
        waiting = [asyncio.create_task(gate.permit(1, 1).__aenter__()) for _ in range(2)]
        await turns()
        waiting[0].cancel()
    await turns(50)
    assert waiting[1].done()
    assert "2 of 60 requests/min" in str(gate)


async def test_what_is_given_back_wakes_whoever_waits_for_it() -> None:
    class Stuck(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    clock = Stuck()
    gate = CallGate(4, clock, input_tokens_per_minute=60_000)
    clock.advance(timedelta(seconds=1))
    first, second = gate.permit(900, 1), gate.permit(900, 1)
    async with first:
        waiting = asyncio.create_task(second.__aenter__())
        await turns()
        assert not waiting.done()
        first.used(100, 1)
        await turns()
        assert waiting.done()
