"""`stack.json`: what it holds, who may read it, and when it is believed."""

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from docsum.local.reaper import birth
from docsum.local.stack_state import (
    ProcessState,
    StackFailed,
    StackState,
    State,
    Wish,
    environment_digest,
    find,
    post_request,
    take_request,
)


def stack_state(*processes: ProcessState, pid: int | None = None, born: str | None = None) -> StackState:
    return StackState(
        pid=pid or os.getpid(),
        birth=birth(os.getpid()) if born is None else born,
        reaper_pid=1,
        reaper_birth="",
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        ports={"kafka": 20_001},
        addresses={"clickhouse": "http://127.0.0.1:20002"},
        processes=processes,
    )


def process_state(state: State = State.READY) -> ProcessState:
    return ProcessState("worker-1", state, "/tmp/worker-1.log", port=8081, pid=7, exit_code=-9, restarts=2)


def test_a_state_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    state = stack_state(process_state(), process_state(State.FAILED))
    state.save(tmp_path)
    assert StackState.load(tmp_path) == state


def test_only_the_owner_may_read_it_and_no_draft_stays(tmp_path: Path) -> None:
    stack_state().save(tmp_path)
    stack_state(process_state()).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', "null"])
def test_what_is_not_a_state_is_no_state(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text(content)
    assert StackState.load(tmp_path) is None


def test_only_a_living_supervisor_is_found(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    stack_state().save(tmp_path)
    assert find(tmp_path) == StackState.load(tmp_path) is not None


def test_a_reused_pid_is_no_supervisor(tmp_path: Path) -> None:
    stack_state(born="an earlier process").save(tmp_path)
    assert find(tmp_path) is None


def test_a_stack_is_ready_when_every_process_is() -> None:
    ready, starting = process_state(), process_state(State.STARTING)
    assert stack_state(ready, ready).ready
    assert not stack_state(ready, starting).ready
    assert stack_state(ready, starting).failed is None
    assert stack_state(ready, failed := process_state(State.FAILED)).failed == failed


def test_a_process_that_does_not_start_is_told_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    log.write_text("starting\nError: There is no setting DOCSUM_X.\n")
    process = replace(process_state(), log=str(log), problem="exited with code 78", log_start=0)
    told = str(StackFailed(process))
    assert told.startswith("worker-1 does not start: it exited with code 78 (There is no setting DOCSUM_X); ")


def test_the_last_lines_are_those_of_the_newest_life(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    log.write_text("old\nnew 1\nnew 2\nnew 3\n")
    process = replace(process_state(), log=str(log), log_start=4)
    assert process.last_lines(2) == ["new 2", "new 3"]
    assert process.last_lines() == ["new 1", "new 2", "new 3"]
    assert replace(process, log=str(tmp_path / "none.log")).last_lines() == []


def test_a_request_is_taken_once_and_waits_for_the_one_before(tmp_path: Path) -> None:
    wish = Wish(restart={"worker-1": {"ANTHROPIC_API_KEY": "k"}, "worker-2": None}, workers=3)
    assert post_request(tmp_path, wish)
    assert not post_request(tmp_path, Wish(workers=1))
    assert stat.S_IMODE((tmp_path / "stack.request.json").stat().st_mode) == 0o600
    assert take_request(tmp_path) == wish
    assert take_request(tmp_path) == Wish()
    assert list(tmp_path.iterdir()) == []


def test_the_digest_tells_environments_apart_without_showing_them() -> None:
    assert environment_digest({"A": "1", "B": "2"}) == environment_digest({"B": "2", "A": "1"})
    assert environment_digest({"A": "1"}) != environment_digest({"A": "2"})
    assert "secret" not in environment_digest({"A": "secret"})
