"""How long a command takes to start, and a worker until it is ready; the stack runs already."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from tests.bench.scaling import cpu_seconds, ready_worker
from tests.bench.stand import Children

READY = "docsum worker, until ready"
#: The commands that end by themselves.
COMMANDS = {
    "docsum --version": ("--version",),
    "docsum --help": ("--help",),
    "docsum status": ("status",),
}


@dataclass(frozen=True, slots=True)
class Start:
    """From the start of the process to its end, or to the moment that it is ready."""

    seconds: float
    cpu: float  # seconds, user and system
    mb: float  # resident memory at the end: of a command its peak, which is the same


def measure(children: Children, env: Mapping[str, str], rounds: int) -> Iterator[dict[str, Start]]:
    """All of them once a round. One more comes before: what is compiled and cached then is not measured."""
    for number in range(rounds + 1):
        found = {title: _command(children, env, *words) for title, words in COMMANDS.items()}
        found[READY] = _worker(children, env)
        if number:
            yield found


def _command(children: Children, env: Mapping[str, str], *words: str) -> Start:
    """Raises BenchFailed when it does not end with 0."""
    command = (sys.executable, "-m", "docsum", *words)
    with children.started("command", "tests.bench.launch", *command, env=env) as process:
        if process.wait(120) != 0:
            children.fail("command")
    found: Mapping[str, Any] = children.said("command")  # Any: what the launcher wrote
    return Start(**found)


def _worker(children: Children, env: Mapping[str, str]) -> Start:
    began = time.perf_counter()
    with ready_worker(children, env) as process:
        seconds = time.perf_counter() - began
        seen = psutil.Process(process.pid)
        return Start(seconds, cpu_seconds(seen), seen.memory_info().rss / 1e6)
