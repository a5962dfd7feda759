"""When an ended process is started again, and what the reaper believes."""

import os
from datetime import timedelta

import pytest

from docsum.local.process import Ending, back_off, crashes_in_a_row, describe, next_start
from docsum.local.reaper import birth, follow

CRASHED = Ending("exited with code 1", exit_code=1)


@pytest.mark.parametrize(
    ("crashes", "seconds"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (8, 30), (5_000, 30)]
)
def test_the_back_off_doubles_up_to_half_a_minute(crashes: int, seconds: float) -> None:
    assert back_off(crashes) == timedelta(seconds=seconds)


def test_a_minute_of_health_forgets_earlier_crashes() -> None:
    assert crashes_in_a_row(5, Ending("", 1, healthy=timedelta(seconds=59))) == 6
    assert crashes_in_a_row(5, Ending("", 1, healthy=timedelta(seconds=60))) == 1
    assert crashes_in_a_row(5, CRASHED) == 6


def test_wrong_settings_are_never_tried_again() -> None:
    assert next_start(Ending("", exit_code=78), 1, proven=True) is None


def test_a_process_that_was_never_ready_gets_three_starts() -> None:
    delays = [next_start(CRASHED, crashes, proven=False) for crashes in (1, 2, 3)]
    assert delays == [back_off(1), back_off(2), None]


def test_a_process_that_was_ready_once_is_started_for_ever() -> None:
    assert next_start(CRASHED, 100, proven=True) == timedelta(seconds=30)


def test_too_slow_a_first_start_is_given_up_a_later_one_is_not() -> None:
    slow = Ending("was not ready after 60 s", hopeless=True)
    assert next_start(slow, 1, proven=False) is None
    assert next_start(slow, 1, proven=True) == back_off(1)


def test_an_exit_is_told_in_words() -> None:
    assert (describe(3), describe(-9)) == ("exited with code 3", "was ended by SIGKILL")


def test_the_reaper_forgets_what_has_ended() -> None:
    lines = ["+4194401\n", f"+{os.getpid()}\n", "-4194401\n"]
    assert follow(lines) == {os.getpid(): birth(os.getpid())}


def test_a_birth_mark_belongs_to_one_living_process() -> None:
    assert birth(os.getpid()) == birth(os.getpid()) != ""
    assert birth(2**22 + 100) == ""  # above the largest pid of Linux and macOS
