"""One supervised process: what it is, how it is started and ended, and when it is started again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from docsum.local import reaper

EXIT_CONFIGURATION = 78  # starting again never helps

_FIRST_DELAY = timedelta(seconds=0.5)
_LONGEST_DELAY = timedelta(seconds=30)
_HEALTHY = timedelta(seconds=60)  # up that long, a process has earned a fresh back-off
_FIRST_STARTS = 3  # attempts of a process that was never ready
_PROBE_EVERY = 0.1  # seconds

# The process tells the reaper its pid before it becomes its program; standard input is the reaper's pipe.
_REGISTERED = 'echo "+$$" >&0 && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to keep up."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]  # the whole environment: nothing is inherited
    cwd: Path
    ready: Callable[[], Awaitable[bool]]  # one probe, answered within a few seconds
    port: int | None = None  # to show
    prepare: Callable[[], Awaitable[None]] | None = None  # before every start; may raise: a failed start
    ready_timeout: timedelta = timedelta(seconds=60)
    stop_timeout: timedelta = timedelta(seconds=10)  # between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Ending:
    """How one life of a process ended."""

    problem: str  # completes the sentence "it ..."
    exit_code: int | None = None  # None: it was never started, or not ready in time
    healthy: timedelta | None = None  # how long it was ready; None: never
    hopeless: bool = False  # it had all the time that it may take


def back_off(crashes: int) -> timedelta:
    """How long to wait after so many crashes in a row, the last one included."""
    return min(_FIRST_DELAY * float(2 ** min(crashes - 1, 10)), _LONGEST_DELAY)


def crashes_in_a_row(before: int, ending: Ending) -> int:
    """Counts this crash; a long healthy life forgets the earlier ones."""
    return 1 if ending.healthy is not None and ending.healthy >= _HEALTHY else before + 1


def next_start(ending: Ending, crashes: int, *, proven: bool) -> timedelta | None:
    """When to start it again; None gives it up. `proven`: it was ready before, in this or an earlier life."""
    if ending.exit_code == EXIT_CONFIGURATION:
        return None
    if not proven and (ending.hopeless or crashes >= _FIRST_STARTS):
        return None
    return back_off(crashes)


class Process:
    """A started process, the leader of its group."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.birth = reaper.birth(popen.pid)
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @classmethod
    def start(cls, spec: ProcessSpec, log: int, pipe: int) -> Process:
        """Starts it in a group of its own, writing to this log and known to the reaper behind this pipe."""
        command = ["/bin/sh", "-c", _REGISTERED, "sh", *spec.argv]
        return cls(
            subprocess.Popen(
                command,
                env=spec.env,
                cwd=spec.cwd,
                stdin=pipe,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )

    async def becomes_ready(self, spec: ProcessSpec) -> bool:
        """False when it ended first, or took too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(spec.ready_timeout.total_seconds()):
                while not self.exited.done():
                    if await spec.ready():
                        return not self.exited.done()
                    await asyncio.wait({self.exited}, timeout=_PROBE_EVERY)
        return False

    def notice_exit(self) -> bool:
        """Whether this look found that it has ended; ends what it left in its group."""
        if self.exited.done() or (code := self._popen.poll()) is None:
            return False
        reaper.kill_group(self.pid)
        self.exited.set_result(code)
        return True

    async def end(self, patience: timedelta) -> None:
        """SIGTERM to the process, then SIGKILL to its group."""
        self._popen.terminate()
        await asyncio.wait({self.exited}, timeout=patience.total_seconds())
        self.kill()
        await asyncio.wait({self.exited})

    def kill(self) -> None:
        """Ends the whole group at once."""
        if not self.exited.done():
            reaper.kill_group(self.pid)


def describe(exit_code: int) -> str:
    """Completes the sentence "it ..."."""
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"exited with code {exit_code}"
