"""The supervisor of the local stack: starts processes in order, keeps them up, and leaves none behind.

Every process leads a group of its own, so Ctrl-C reaches the supervisor alone, which then stops them in the
reverse order. Should the supervisor be killed, its reaper (see `reaper.py`) ends them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from docsum.local import reaper
from docsum.local.loopback import free_port
from docsum.local.process import Ending, Process, ProcessSpec, crashes_in_a_row, describe, next_start
from docsum.local.stack_home import end_leftovers, locked
from docsum.local.stack_state import (
    ProcessState,
    StackFailed,
    StackState,
    State,
    environment_digest,
    take_request,
)

_ONE_WISH = 0.5  # seconds: a terminal and a wrapper such as make both pass the same Ctrl-C on


class _Child:
    """One place in the stack: what should run there, and what does."""

    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.status = ProcessState(spec.name, State.WAITING, str(log), port=spec.port)
        self.process: Process | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.proven = False  # it was ready once
        self.turn = asyncio.Lock()  # stops and restarts one after the other


class Stack:
    """The processes of one home. Enter by `Stack.open`, then `run`."""

    def __init__(self, home: Path, earlier: StackState | None) -> None:
        self._home = home
        self._earlier_ports = dict(earlier.ports) if earlier else {}
        self._ports: dict[str, int] = {}
        self._addresses: Mapping[str, str] = {}
        self._children: list[list[_Child]] = []
        self._started_at = datetime.now(UTC)
        self._birth = reaper.birth(os.getpid())
        self._reaper: Process | None = None
        self._pipe = -1
        self._worker: Callable[[int], ProcessSpec] | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._scaling = asyncio.Lock()
        self._stop_wished = asyncio.Event()
        self._stop_wished_at = 0.0
        self._hurry = False
        self._change = asyncio.Event()
        self._bug: BaseException | None = None
        self._on_change: Callable[[StackState], None] = lambda _state: None

    @classmethod
    @asynccontextmanager
    async def open(cls, home: Path) -> AsyncIterator[Stack]:
        """Makes this process the home's supervisor, once nothing of a killed one runs any more.

        Raises StackRunning when there is one already.
        """
        with locked(home):
            earlier = StackState.load(home)
            if earlier is not None:
                await end_leftovers(earlier)
            take_request(home)
            yield cls(home, earlier)

    def port(self, name: str, preferred: int | None = None) -> int:
        """A free loopback port under this name: the one of the last time, or the preferred, if still free."""
        if name not in self._ports:
            earlier = self._earlier_ports.get(name, preferred)
            port = free_port(earlier)
            while port in self._ports.values():
                port = free_port()
            self._ports[name] = port
        return self._ports[name]

    async def run(
        self,
        stages: Sequence[Sequence[ProcessSpec]],
        addresses: Mapping[str, str],
        on_change: Callable[[StackState], None] = lambda _state: None,
        worker: Callable[[int], ProcessSpec] | None = None,
    ) -> None:
        """Runs the processes until SIGINT, SIGTERM or SIGHUP; a second signal kills them. Main thread only.

        All start at once, for who needs another waits for it; stages stop in the reverse order. The addresses
        are for other processes, to be found in `stack.json`. `worker` makes a further process of the last
        stage, by its number from 1, when more are asked for. Raises StackFailed when a process does not come
        up; whatever happens, nothing runs any more afterwards.
        """
        self._children = [[self._child(spec) for spec in stage] for stage in stages]
        self._addresses, self._on_change, self._worker = addresses, on_change, worker
        with self._signals():
            self._start_reaper()
            reaping = asyncio.create_task(self._keep_reaper())
            try:
                self._changed()
                await self._until_stopped(asyncio.create_task(self._bring_up()))
            finally:
                await self._stop_all()
                reaping.cancel()
                await self._end_reaper()

    async def _until_stopped(self, bring_up: asyncio.Task[None]) -> None:
        stop = asyncio.create_task(self._stop_wished.wait())
        try:
            await asyncio.wait({bring_up, stop}, return_when=asyncio.FIRST_COMPLETED)
            if bring_up.done():
                await bring_up
                await stop
            if self._bug is not None:
                raise self._bug
        finally:
            bring_up.cancel()
            stop.cancel()

    async def _bring_up(self) -> None:
        """Returns when all are ready. Raises StackFailed when one is given up first, also a ready one."""
        children = [child for stage in self._children for child in stage]
        for child in children:
            self._start(child)
        while not all(child.status.state in (State.READY, State.STOPPED) for child in children):
            await self._change.wait()
            self._change.clear()
            for child in children:
                if child.status.state is State.FAILED:
                    raise StackFailed(child.status)

    async def _stop_all(self) -> None:
        for request in self._requests:
            request.cancel()
        for stage in reversed(self._children):
            await asyncio.gather(*(self._stop(child) for child in stage))

    async def _scale(self, count: int) -> None:
        """So many processes in the last stage; the newest leave first."""
        async with self._scaling:
            workers = self._children[-1]
            while self._worker is not None and len(workers) < count:
                workers.append(self._child(self._worker(len(workers) + 1)))
                self._start(workers[-1])
            await asyncio.gather(*(self._stop(child) for child in workers[count:]))
            del workers[count:]
            self._changed()

    # One process

    def _child(self, spec: ProcessSpec) -> _Child:
        return _Child(spec, self._home / "logs" / f"{spec.name}.log")

    def _start(self, child: _Child) -> None:
        child.keeper = asyncio.create_task(self._keep(child))
        child.keeper.add_done_callback(self._notice_bug)

    def _notice_bug(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (bug := keeper.exception()) is not None:
            self._bug = bug
            self._stop_wished.set()

    async def _keep(self, child: _Child) -> None:
        """Starts it, and starts it again, until it is given up."""
        crashes = 0
        while True:
            ending = await self._live(child)
            crashes = crashes_in_a_row(crashes, ending)
            delay = next_start(ending, crashes, proven=child.proven)
            child.status = replace(
                child.status,
                state=State.FAILED if delay is None else State.RESTARTING,
                restarts=child.status.restarts + (delay is not None),
                pid=None,
                exit_code=ending.exit_code,
                problem=ending.problem,
            )
            self._changed()
            if delay is None:
                return
            await asyncio.sleep(delay.total_seconds())

    async def _live(self, child: _Child) -> Ending:
        """One life, from its preparation to its end."""
        spec = child.spec
        child.status = replace(child.status, started_at=datetime.now(UTC))
        try:
            if spec.prepare is not None:
                self._show(child, State.STARTING)
                await spec.prepare()
            process = child.process = self._spawn(child)
        except Exception as error:  # whatever a preparation raises is told, and tried again
            return Ending(f"could not be started: {error}")
        self._show(child, State.STARTING)
        if not await process.becomes_ready(spec):
            hopeless = not process.exited.done()
            if hopeless:
                await process.end(spec.stop_timeout)
                return Ending(f"was not ready after {spec.ready_timeout.total_seconds():g} s", hopeless=True)
            return Ending(f"{describe(process.exited.result())} before it was ready", process.exited.result())
        child.proven = True
        self._show(child, State.READY)
        since = time.monotonic()
        await asyncio.wait({process.exited})
        healthy = timedelta(seconds=time.monotonic() - since)
        return Ending(describe(process.exited.result()), process.exited.result(), healthy)

    def _spawn(self, child: _Child) -> Process:
        log = os.open(child.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            child.status = replace(child.status, log_start=os.fstat(log).st_size)
            return Process.start(child.spec, log, self._pipe)
        finally:
            os.close(log)

    async def _stop(self, child: _Child) -> None:
        async with child.turn:
            await self._halt(child)

    async def _restart(self, child: _Child, env: Mapping[str, str] | None) -> None:
        async with child.turn:
            started = child.keeper is not None
            if started:
                await self._halt(child)
            if env is not None:
                child.spec = replace(child.spec, env=env)
            if started:
                self._start(child)

    async def _halt(self, child: _Child) -> None:
        if child.keeper is not None:
            child.keeper.cancel()
            await asyncio.wait({child.keeper})
        if child.process is not None and not child.process.exited.done():
            self._show(child, State.STOPPING)
            await child.process.end(timedelta() if self._hurry else child.spec.stop_timeout)
        if child.status.state is not State.FAILED:
            code = child.process.exited.result() if child.process else None
            child.status = replace(child.status, exit_code=code)
            self._show(child, State.STOPPED)

    # What others see

    def _show(self, child: _Child, state: State) -> None:
        process = child.process if child.process and not child.process.exited.done() else None
        child.status = replace(
            child.status,
            state=state,
            pid=process.pid if process else None,
            birth=process.birth if process else "",
            environment=environment_digest(child.spec.env),
            problem="" if state is State.READY else child.status.problem,
        )
        self._changed()

    def _changed(self) -> None:
        assert self._reaper is not None
        self._change.set()
        state = StackState(
            pid=os.getpid(),
            birth=self._birth,
            reaper_pid=self._reaper.pid,
            reaper_birth=self._reaper.birth,
            started_at=self._started_at,
            ports={**self._earlier_ports, **self._ports},
            addresses=self._addresses,
            processes=tuple(child.status for stage in self._children for child in stage),
        )
        with suppress(OSError):  # a full disk may not stop what still runs
            state.save(self._home)
        with suppress(OSError):  # nor a terminal that was closed
            self._on_change(state)

    # Signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._wish_stop,
            signal.SIGTERM: self._wish_stop,
            signal.SIGUSR1: self._take_request,
            signal.SIGCHLD: self._notice_exits,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            handlers[signal.SIGHUP] = self._stop_wished.set
        loop = asyncio.get_running_loop()
        earlier: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        for number, handler in handlers.items():
            earlier[number] = signal.getsignal(number)
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
                signal.signal(number, earlier[number])

    def _wish_stop(self) -> None:
        if not self._stop_wished.is_set():
            self._stop_wished.set()
            self._stop_wished_at = time.monotonic()
        elif time.monotonic() - self._stop_wished_at > _ONE_WISH:
            self._hurry = True
            for process in self._living():
                process.kill()

    def _take_request(self) -> None:
        if self._stop_wished.is_set():
            return
        wish = take_request(self._home)
        for child in (
            child for stage in self._children for child in stage if child.spec.name in wish.restart
        ):
            self._do(self._restart(child, wish.restart[child.spec.name]))
        if wish.workers is not None:
            self._do(self._scale(wish.workers))

    def _do(self, work: Coroutine[None, None, None]) -> None:
        request = asyncio.create_task(work)
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)

    def _notice_exits(self) -> None:
        for process in self._living():
            if process.notice_exit():
                self._tell_reaper(f"-{process.pid}")
        if self._reaper is not None:
            self._reaper.notice_exit()

    def _living(self) -> list[Process]:
        processes = (child.process for stage in self._children for child in stage)
        return [process for process in processes if process is not None and not process.exited.done()]

    # The reaper

    def _start_reaper(self) -> None:
        reading, writing = (
            os.pipe()
        )  # not inherited, but for the standard input of each process while it starts
        script = str(Path(reaper.__file__).resolve())
        try:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", script], stdin=reading, cwd="/", env={}, start_new_session=True
            )
        finally:
            os.close(reading)
        self._reaper, self._pipe = Process(popen), writing
        for process in self._living():
            self._tell_reaper(f"+{process.pid}")

    async def _keep_reaper(self) -> None:
        while self._reaper is not None:
            await asyncio.wait({self._reaper.exited})
            os.close(self._pipe)
            self._start_reaper()
            self._changed()
            await asyncio.sleep(_ONE_WISH)  # never a hot loop

    def _tell_reaper(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it was killed: its successor is told everything
            os.write(self._pipe, f"{line}\n".encode())

    async def _end_reaper(self) -> None:
        os.close(self._pipe)
        if self._reaper is not None:
            await asyncio.wait({self._reaper.exited})
