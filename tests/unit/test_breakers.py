"""When a breaker opens, who probes, and what closes it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from docsum.breakers import LONGEST_COOL_DOWN, MOST, Breaker, Breakers, Trouble
from docsum.models import Failure
from tests.support.fakes import START, FakeClock
from tests.support.waiting import eventually

DOWN = Failure("model_unreachable", "The provider cannot be reached.", "summarise", "ModelUnreachable")


class SlowClock(FakeClock):
    """Sleeps until the test moves the time."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        due = asyncio.Event()
        self._sleepers.append((self.monotonic() + seconds, due))
        await due.wait()

    def advance(self, by: timedelta) -> None:
        super().advance(by)
        for until, due in self._sleepers:
            if until <= self.monotonic():
                due.set()


@pytest.fixture
def clock() -> SlowClock:
    return SlowClock()


@pytest.fixture
def breaker(clock: SlowClock) -> Breaker:
    return Breaker("model", clock)


def opened(breaker: Breaker) -> Breaker:
    for number in range(5):
        breaker.failed(f"doc-{number}", DOWN)
    assert breaker.is_open
    return breaker


def test_it_opens_for_many_documents_and_not_for_one_poison(breaker: Breaker) -> None:
    for _ in range(50):
        breaker.failed("poison", DOWN)
    assert not breaker.is_open
    opened(breaker)


def test_a_fifth_of_successes_keeps_it_closed(breaker: Breaker) -> None:
    for number in range(40):
        breaker.succeeded(f"good-{number}") if number % 4 == 0 else breaker.failed(f"bad-{number}", DOWN)
    assert not breaker.is_open


async def test_one_document_at_a_time_probes_and_the_others_follow(
    breaker: Breaker, clock: SlowClock
) -> None:
    opened(breaker)
    probes: list[str] = []

    async def work(name: str) -> None:
        while True:
            await breaker.turn()
            if breaker.is_open:
                probes.append(name)
                if len(probes) < 3:
                    breaker.failed(name, DOWN)
                    continue
            breaker.succeeded(name)
            return

    tasks = [asyncio.create_task(work(name)) for name in "abcd"]
    for expected in ("a", "b", "c"):
        await asyncio.sleep(0)
        trouble = breaker.trouble()
        assert trouble is not None and trouble.waiting == 4
        clock.advance(LONGEST_COOL_DOWN)
        await eventually(partial(_ends_with, probes, expected))
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert probes == ["a", "b", "c"]
    assert breaker.trouble() is None


def _ends_with(names: list[str], name: str) -> bool:
    return names[-1:] == [name]


async def test_a_probe_that_is_let_go_passes_its_turn_on(breaker: Breaker, clock: SlowClock) -> None:
    opened(breaker)
    clock.advance(timedelta(seconds=3))
    assert await breaker.turn()
    waiting = asyncio.create_task(breaker.turn())
    await asyncio.sleep(0)
    assert not waiting.done()
    breaker.give_up()
    assert await asyncio.wait_for(waiting, 5)


async def test_a_waiting_document_that_is_let_go_does_not_take_the_turn_with_it(
    breaker: Breaker, clock: SlowClock
) -> None:
    opened(breaker)
    first, second = (asyncio.create_task(breaker.turn()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    clock.advance(timedelta(seconds=3))
    assert await asyncio.wait_for(second, 5)


async def test_a_probe_that_hangs_is_not_waited_for(breaker: Breaker, clock: SlowClock) -> None:
    opened(breaker)
    clock.advance(timedelta(seconds=3))
    assert await breaker.turn()  # and nothing is heard of it
    waiting = asyncio.create_task(breaker.turn())
    await asyncio.sleep(0)
    clock.advance(LONGEST_COOL_DOWN - timedelta(seconds=1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(timedelta(seconds=1))
    assert await asyncio.wait_for(waiting, 5)
    breaker.succeeded("hung")
    assert not breaker.is_open


async def test_whoever_waits_hears_of_every_probe_that_fails(breaker: Breaker, clock: SlowClock) -> None:
    opened(breaker)
    told: list[tuple[str, str, timedelta]] = []
    waiting = asyncio.create_task(
        breaker.turn(lambda failure, wait: told.append((failure.reason, failure.message, wait)))
    )
    await asyncio.sleep(0)
    assert told == [(DOWN.reason, f"model is out of order. {DOWN.message}", timedelta(seconds=2))]
    clock.advance(timedelta(seconds=2))
    assert breaker.may_probe()  # before the one that waits
    breaker.failed("probe", replace(DOWN, reason="model_faltered"))
    assert [(reason, wait) for reason, _, wait in told[1:]] == [("model_faltered", timedelta(seconds=4))]
    breaker.succeeded("late")
    await asyncio.wait_for(waiting, 5)


def test_successes_of_others_are_counted_from_a_moment_on(breaker: Breaker) -> None:
    breaker.succeeded("early")
    mark = breaker.mark
    for name in ("mine", "a", "a", "b"):
        breaker.succeeded(name)
    assert breaker.others_succeeded("mine", mark) == 2


def test_what_was_under_way_before_the_trouble_says_nothing_of_it(breaker: Breaker) -> None:
    begun = breaker.mark
    opened(breaker)
    for name in "abcd":
        breaker.succeeded(name, begun)
    assert breaker.is_open
    assert breaker.others_succeeded("mine", breaker.mark) == 0
    breaker.succeeded("probe", breaker.mark)
    assert not breaker.is_open


def test_a_person_is_told_since_when_and_how_many_wait() -> None:
    at = START.replace(hour=23, minute=59, second=50)
    trouble = Trouble("https://h", DOWN, at, at + timedelta(seconds=5), 2)
    assert str(trouble) == (
        "https://h has not worked since 23:59:50 UTC (model_unreachable), 2 wait, next probe 23:59:55 UTC."
        " The provider cannot be reached."
    )
    later = replace(trouble, next_probe=at + timedelta(seconds=15), waiting=0)
    assert "since 2026-11-23 23:59:50 UTC (model_unreachable), next probe 00:00:05 UTC." in str(later)


def test_the_breakers_of_many_hosts_are_bounded_and_open_ones_are_kept() -> None:
    breakers = Breakers(FakeClock())
    opened(breakers.of("host 0"))
    for number in range(1, 2 * MOST):
        breakers.of(f"host {number}")
    assert [trouble.dependency for trouble in breakers.troubles()] == ["host 0"]
    assert breakers.of("host 0").is_open
