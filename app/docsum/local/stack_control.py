"""What other processes ask of a supervisor: to start in the background, to restart something, to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from docsum.local.reaper import birth
from docsum.local.stack_state import (
    Environments,
    StackError,
    StackFailed,
    StackState,
    State,
    Wish,
    find,
    last_lines,
    post_request,
    until,
)

_LOOK_EVERY = 0.1  # seconds


async def stop(home: Path, timeout: timedelta) -> bool:
    """Asks the supervisor to stop everything, and waits; False when none runs.

    Raises StackError when it takes longer.
    """
    state = find(home)
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    try:
        await until(lambda: birth(state.pid) != state.birth, timeout)
    except TimeoutError:
        raise StackError(
            f"docsum (process {state.pid}) is still stopping; wait, or run `docsum down` again to kill it."
        ) from None
    return True


async def restart(home: Path, environments: Environments, timeout: timedelta) -> StackState:
    """Restarts these processes, with new environments where given, and waits until they are ready.

    Raises StackFailed when one does not come up, StackError when none runs or it takes longer.
    """
    before = _running(home)
    if unknown := [name for name in environments if before.process(name) is None]:
        raise StackError(f"There is no process {unknown[0]} in {home}.")
    return await _asked(
        home, before, Wish(restart=environments), lambda now: _restarted(before, now, environments), timeout
    )


async def scale(home: Path, workers: int, timeout: timedelta) -> StackState:
    """Changes the number of workers, and waits until the new ones are ready and the others have left.

    Raises StackFailed when one does not come up, StackError when none runs or it takes longer.
    """
    before = _running(home)
    wanted = {f"worker-{number}" for number in range(1, workers + 1)}
    return await _asked(
        home, before, Wish(workers=workers), lambda now: _scaled(before, now, wanted), timeout
    )


def _running(home: Path) -> StackState:
    state = find(home)
    if state is None:
        raise StackError(f"No docsum runs in {home}; `docsum up` starts it.")
    return state


async def _asked(
    home: Path, before: StackState, wish: Wish, done: Callable[[StackState], bool], timeout: timedelta
) -> StackState:
    """The state once the supervisor has done what it was asked."""

    def is_done() -> bool:
        now = find(home)
        if now is None or now.pid != before.pid:
            raise StackError("docsum was stopped meanwhile.")
        return done(now)

    try:
        await until(lambda: post_request(home, wish), timeout)
        os.kill(before.pid, signal.SIGUSR1)
        await until(is_done, timeout)
    except TimeoutError:
        raise StackError(f"The workers are not ready after {timeout}; see {home / 'logs'}.") from None
    return find(home) or before


def _scaled(before: StackState, now: StackState, wanted: set[str]) -> bool:
    for process in now.workers:
        if process.state is State.FAILED and process != before.process(process.name):
            raise StackFailed(process)
    return {process.name for process in now.workers} == wanted and all(
        process.state is State.READY for process in now.workers
    )


def _restarted(before: StackState, now: StackState, names: Environments) -> bool:
    for name in names:
        process, earlier = now.process(name), before.process(name)
        assert process is not None and earlier is not None
        if process.state is State.FAILED and process != earlier:
            raise StackFailed(process)
        if process.state is not State.READY or (process.pid, process.birth) == (earlier.pid, earlier.birth):
            return False
    return True


async def detach(
    argv: Sequence[str],
    env: Mapping[str, str],
    home: Path,
    log: Path,
    *,
    timeout: timedelta,
    on_change: Callable[[StackState], None] = lambda _state: None,
) -> StackState:
    """Starts a supervisor that outlives this process, and waits until its stack is ready.

    `argv` must become the supervisor itself, not start it. Raises StackFailed with the process that did not
    come up, StackError with the supervisor's own last lines. Cancelled, it stops what it started.
    """
    process, start = _start(argv, env, home, log)
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await _ready(process, home, on_change)
    except TimeoutError:
        process.terminate()
        raise StackError(f"docsum was not ready after {timeout}; see {home / 'logs'}.") from None
    except _Ended as ended:
        raise ended.failure or StackError("\n".join(last_lines(log, start, 15)) or "docsum ended.") from None
    except asyncio.CancelledError:
        process.terminate()
        raise


class _Ended(Exception):
    """The supervisor ended before its stack was ready."""

    def __init__(self, failure: StackFailed | None) -> None:
        super().__init__()
        self.failure = failure


def _start(
    argv: Sequence[str], env: Mapping[str, str], home: Path, log: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """The supervisor, and where in the log it begins."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    start = os.fstat(descriptor).st_size
    try:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    # Takes its exit code should it end before us; a daemon thread, since as a rule it outlives us.
    threading.Thread(target=process.wait, daemon=True).start()
    return process, start


async def _ready(
    process: subprocess.Popen[bytes], home: Path, on_change: Callable[[StackState], None]
) -> StackState:
    shown = None
    while process.returncode is None:
        state = find(home)
        if state is not None and state.pid == process.pid and state != shown:
            on_change(state)
            shown = state
            if state.ready:
                return state
        await asyncio.sleep(_LOOK_EVERY)
    last = StackState.load(home)
    failed = last.failed if last is not None and last.pid == process.pid else None
    raise _Ended(StackFailed(failed) if failed else None)
