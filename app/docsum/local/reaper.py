"""Ends the processes of a supervisor that was killed. Standard library only: run as a file, `python -I -S`.

Its standard input is a pipe of lines: `+PID` for a process that now leads a group of its own, `-PID` when it
has ended. Every starting process writes its own `+PID` before it becomes its program, and holds the pipe
until then, so there is no moment in which one could be missed. End of input means that the supervisor is
gone: every group still listed is killed, and the reaper stays until they have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PATIENCE = 10.0  # seconds in which killed processes must have ended


def birth(pid: int) -> str:
    """A mark that tells a living process from any other that had or will have its pid; "" when none lives.

    A process that has ended but was not waited for counts as gone.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _birth_by_ps(pid)
    except ProcessLookupError:
        return ""
    return "" if state in "ZX" else f"{_boot()}:{fields[18]}"  # field 22 of proc(5): start, ticks since boot


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""


def _birth_by_ps(pid: int) -> str:
    """The same on macOS, which has no /proc."""
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    state, _, started = answer.partition(" ")
    return "" if state.startswith("Z") else started.strip()


def kill_group(pid: int) -> None:
    """Kills the group that this process leads or led."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of ended processes
        os.killpg(pid, signal.SIGKILL)


def follow(lines: Iterable[str]) -> dict[int, str]:
    """What is still running when the lines end, each with its birth mark."""
    running: dict[int, str] = {}
    for line in lines:
        pid = int(line[1:])
        if line.startswith("+"):
            running[pid] = birth(pid)
        else:
            running.pop(pid, None)
    return running


def end(running: dict[int, str]) -> None:
    """Kills the groups of these processes and waits for their leaders; a reused pid is left alone."""
    for pid, mark in running.items():
        if birth(pid) in ("", mark):  # "": the leader has ended; its pid stays taken while its group lives
            kill_group(pid)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and any(mark and birth(pid) == mark for pid, mark in running.items()):
        time.sleep(0.02)


def main() -> None:
    """Follows standard input to its end, then ends what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor's end is the only reason to go
    end(follow(sys.stdin))


if __name__ == "__main__":
    main()
