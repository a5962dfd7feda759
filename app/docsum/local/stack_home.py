"""Who owns a home: one supervisor at a time, and nothing of an earlier one beside it."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from docsum.local import reaper
from docsum.local.stack_state import StackError, StackRunning, StackState, until


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Holds the home's lock, which ends with this process however it ends."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "logs").mkdir(exist_ok=True)
    with os.fdopen(os.open(home / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = (
                f"docsum runs in {home} already, as process {lock.read().strip()}; `docsum down` ends it."
            )
            raise StackRunning(message) from None
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def end_leftovers(earlier: StackState) -> None:
    """Waits until nothing of a killed supervisor runs any more, for two may not open the same data.

    Its reaper ends them, and then itself; we do it where that was killed too. Raises StackError.
    """
    with suppress(TimeoutError):
        await until(lambda: reaper.birth(earlier.reaper_pid) != earlier.reaper_birth, timedelta(seconds=10))
    leftovers = {each.pid: each.birth for each in earlier.processes if each.pid is not None}
    await asyncio.to_thread(reaper.end, _alive(leftovers))
    if alive := _alive(leftovers):
        raise StackError(
            f"Processes of an earlier start do not end: {', '.join(map(str, alive))}; kill them."
        )


def _alive(processes: Mapping[int, str]) -> dict[int, str]:
    return {pid: mark for pid, mark in processes.items() if mark and reaper.birth(pid) == mark}
