"""When the flood guard stops a run."""

from __future__ import annotations

from docsum.errors import REASONS
from docsum.flood import LEAST, SUSPICIOUS, FloodGuard

RUN, OTHER = "a run", "another run"


def test_every_suspicious_reason_exists() -> None:
    assert REASONS.keys() >= SUSPICIOUS


def test_a_run_that_only_fails_is_stopped_before_its_fiftieth_dead_letter() -> None:
    guard = FloodGuard()
    written = 0
    while not guard.failed(RUN):
        written += 1
    assert written == LEAST - 1
    assert guard.failed(RUN), "it stays stopped"
    assert not guard.failed(OTHER)


def test_half_of_the_last_two_hundred_is_not_yet_a_flood() -> None:
    guard = FloodGuard()
    for _ in range(500):
        guard.passed(RUN)
        assert not guard.failed(RUN)


def test_a_good_past_does_not_hide_a_flood_for_long() -> None:
    guard = FloodGuard()
    for _ in range(10_000):
        guard.passed(RUN)
    assert [guard.failed(RUN) for _ in range(101)] == [False] * 100 + [True]
