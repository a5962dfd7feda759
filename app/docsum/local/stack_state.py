"""What a supervisor tells other processes: `stack.json` in its home, and who may believe it."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from docsum.errors import DocsumError
from docsum.local.reaper import birth

_LOOK_EVERY = 0.05  # seconds


#: What to restart; each with its whole new environment, or None for the one that it has.
Environments = Mapping[str, Mapping[str, str] | None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What another process asks of a supervisor."""

    restart: Environments = field(default_factory=dict)
    workers: int | None = None  # how many there shall be; None: as many as there are


class StackError(DocsumError):
    """The local stack did not do what it was asked."""


class StackRunning(StackError):
    """Another supervisor runs this home."""


class StackFailed(StackError):
    """A process of the stack does not come up."""

    def __init__(self, process: ProcessState) -> None:
        said = next(iter(process.last_lines(1)), "")  # a command that ends by itself says why
        why = f" ({said.removeprefix('Error: ').rstrip('.')})" if said.startswith("Error: ") else ""
        super().__init__(
            f"{process.name} does not start: it {process.problem}{why}; its log is {process.log}."
        )
        self.process = process


class State(enum.StrEnum):
    """Where a supervised process is in its life."""

    WAITING = "waiting"  # its turn has not come
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # it ended by itself and is started again after a back-off
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"  # given up


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One supervised process as its supervisor sees it."""

    name: str
    state: State
    log: str
    log_start: int = 0  # where in the log its newest life begins, bytes
    started_at: datetime | None = None  # when that life began
    port: int | None = None
    pid: int | None = None  # of the living process
    birth: str = ""  # proves that the pid is still this process
    restarts: int = 0  # not asked for
    exit_code: int | None = None  # of the last life; negative: the signal that ended it
    problem: str = ""  # why it is restarting or failed: "exited with code 1"
    environment: str = ""  # digest of what it was started with

    def last_lines(self, limit: int = 15) -> list[str]:
        """The end of what its newest life wrote to its log."""
        return last_lines(Path(self.log), self.log_start, limit)


@dataclass(frozen=True, slots=True)
class StackState:
    """A supervisor, its processes, and the addresses at which they are reached."""

    pid: int
    birth: str
    reaper_pid: int
    reaper_birth: str
    started_at: datetime
    ports: Mapping[str, int]
    addresses: Mapping[str, str]
    processes: tuple[ProcessState, ...]
    version: Literal[1] = 1  # of this format

    @property
    def ready(self) -> bool:
        """Whether every process does its work."""
        return all(process.state is State.READY for process in self.processes)

    @property
    def failed(self) -> ProcessState | None:
        """The first process that was given up."""
        return next((process for process in self.processes if process.state is State.FAILED), None)

    @property
    def workers(self) -> tuple[ProcessState, ...]:
        """Those of its processes that are workers, in the order of their numbers."""
        return tuple(process for process in self.processes if process.name.startswith("worker-"))

    def process(self, name: str) -> ProcessState | None:
        """The process of this name."""
        return next((process for process in self.processes if process.name == name), None)

    @staticmethod
    def load(home: Path) -> StackState | None:
        """What the last supervisor of this home wrote, dead or alive; None if nothing that we can read."""
        try:
            return _adapter().validate_json(_path(home).read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, home: Path) -> None:
        """Replaces the file in one step; only its owner may read it."""
        _write_private(_path(home), _adapter().dump_json(self, indent=1))


def find(home: Path) -> StackState | None:
    """The living supervisor of this home."""
    state = StackState.load(home)
    return state if state is not None and birth(state.pid) == state.birth else None


def environment_digest(env: Mapping[str, str]) -> str:
    """Tells whether two environments are the same without showing them."""
    return hashlib.sha256(json.dumps(sorted(env.items())).encode()).hexdigest()


def last_lines(log: Path, start: int, limit: int) -> list[str]:
    """The last lines of a log from a byte offset on, read from at most its last 64 KB."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65_536))
        return file.read().decode(errors="replace").splitlines()[-limit:]


def post_request(home: Path, wish: Wish) -> bool:
    """Leaves a wish for the supervisor; False while another one waits."""
    draft = home / f"stack.request.{os.getpid()}"
    _write_private(draft, json.dumps(asdict(wish)).encode())
    try:
        _request(home).hardlink_to(draft)  # unlike a rename it never takes another one's place
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def take_request(home: Path) -> Wish:
    """The wish that was left, removed from the disk since it may hold keys; empty if there is none."""
    try:
        content = json.loads(_request(home).read_bytes())
    except OSError:
        return Wish()
    _request(home).unlink(missing_ok=True)
    return Wish(**content)


async def until(condition: Callable[[], bool], timeout: timedelta) -> None:
    """Waits for something that another process does; raises TimeoutError."""
    async with asyncio.timeout(timeout.total_seconds()):
        while not condition():  # noqa: ASYNC110 - no event reaches us from there
            await asyncio.sleep(_LOOK_EVERY)


def _write_private(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    temporary.replace(path)


def _path(home: Path) -> Path:
    return home / "stack.json"


def _request(home: Path) -> Path:
    return home / "stack.request.json"


@cache
def _adapter() -> TypeAdapter[StackState]:
    return TypeAdapter(StackState)
