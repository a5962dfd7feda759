"""The supervisor with small real processes: order, restarts, and nothing left behind whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from docsum.local import stack_control
from docsum.local.loopback import HOST, free_port, http_ready
from docsum.local.stack_state import (
    ProcessState,
    StackError,
    StackFailed,
    StackState,
    State,
    environment_digest,
    find,
)

pytestmark = pytest.mark.timeout(60)

# A supervised process: tells in a file what happens to it, and behaves as its last argument says.
CHILD = """
import os, signal, subprocess, sys, time
home, name, behaviour = sys.argv[1:]
def tell(what):
    with open(home + "/events", "a") as events:
        events.write(what + " " + name + "\\n")
def stop(*_):
    tell("stopped")
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else stop)
signal.signal(signal.SIGUSR2, lambda *_: os._exit(78))
tell("started")
print("hello from", name, os.environ.get("MARK"), flush=True)
if behaviour.isdigit():
    sys.exit(int(behaviour))
if behaviour == "parent":
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", home])
if behaviour != "unready":
    open(home + "/" + name + ".ready", "w").close()
if behaviour == "brief":
    time.sleep(1)
    sys.exit(78)
while True:
    time.sleep(60)
"""

# A supervisor as the command line has it; its plan is a list of stages of {name: behaviour}.
SUPERVISOR = f"""
import asyncio, json, sys
from datetime import timedelta
from pathlib import Path
from docsum.local.process import ProcessSpec
from docsum.local.stack import Stack
from docsum.local.stack_state import StackError

home, plan = Path(sys.argv[1]), json.loads(sys.argv[2])

def spec(name, behaviour):
    mark = home / (name + ".ready")
    async def prepare():
        mark.unlink(missing_ok=True)
    async def ready():
        return mark.exists()
    argv = [sys.executable, "-I", "-S", "-c", {CHILD!r}, str(home), name, behaviour]
    return ProcessSpec(name, argv, {{"MARK": "first"}}, home, ready, prepare=prepare,
                       ready_timeout=timedelta(seconds=20), stop_timeout=timedelta(seconds=1.5))

async def main():
    async with Stack.open(home) as stack:
        stages = [[spec(*item) for item in stage.items()] for stage in plan]
        stack.port("kafka")
        def worker(number):
            return spec(f"worker-{{number}}", sys.argv[3])
        await stack.run(stages, {{"kafka": "127.0.0.1:1"}}, worker=worker)

try:
    asyncio.run(main())
except StackError as error:
    sys.exit(str(error))
"""

Plan = list[dict[str, str]]


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.more = ""  # how further workers behave
        self._popens: list[subprocess.Popen[str]] = []

    def argv(self, plan: Plan) -> list[str]:
        return [sys.executable, "-c", SUPERVISOR, str(self.home), json.dumps(plan), self.more]

    def start(self, plan: Plan) -> subprocess.Popen[str]:
        popen = subprocess.Popen(
            self.argv(plan), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._popens.append(popen)
        return popen

    def up(self, plan: Plan) -> subprocess.Popen[str]:
        popen = self.start(plan)
        until(lambda: (state := find(self.home)) is not None and state.pid == popen.pid and state.ready)
        return popen

    @property
    def state(self) -> StackState:
        state = StackState.load(self.home)
        assert state is not None
        return state

    def process(self, name: str) -> ProcessState:
        process = self.state.process(name)
        assert process is not None
        return process

    def pid(self, name: str) -> int:
        pid = self.process(name).pid
        assert pid is not None
        return pid

    @property
    def events(self) -> list[str]:
        path = self.home / "events"
        return path.read_text().splitlines() if path.exists() else []

    def left(self) -> list[int]:
        """Living processes that have this home on their command line."""
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.home) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process.pid)
        return left

    def end(self) -> None:
        for popen in self._popens:
            popen.kill()
            popen.communicate()
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.left())


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path / "home")
    yield supervised
    supervised.end()


def test_stages_start_together_and_stop_in_the_reverse_order(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}, {"worker": "stay"}, {"api": "stay"}])
    assert sorted(supervised.events) == ["started api", "started kafka", "started worker"]
    popen.terminate()
    assert popen.wait(20) == 0
    assert supervised.events[3:] == ["stopped api", "stopped worker", "stopped kafka"]
    assert [process.state for process in supervised.state.processes] == [State.STOPPED] * 3
    assert (supervised.left(), find(supervised.home)) == ([], None)


def test_the_state_tells_others_what_runs_and_where(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}])
    state, kafka = supervised.state, supervised.process("kafka")
    assert (state.pid, dict(state.addresses)) == (popen.pid, {"kafka": "127.0.0.1:1"})
    assert psutil.Process(kafka.pid).cmdline()[-1] == "stay"
    assert kafka.last_lines() == ["hello from kafka first"]
    files = [path for path in supervised.home.rglob("*") if path.suffix in {".json", ".lock", ".log"}]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(supervised.home.stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_everything_in_order(
    supervised: Supervised, number: signal.Signals
) -> None:
    popen = supervised.up([{"kafka": "stay"}, {"worker": "parent"}])
    popen.send_signal(number)
    assert popen.wait(20) == 0
    assert supervised.events[2:] == ["stopped worker", "stopped kafka"]
    assert supervised.left() == []


def test_a_stop_during_the_start_stops_what_had_started(supervised: Supervised) -> None:
    popen = supervised.start([{"kafka": "stay"}, {"worker": "unready"}, {"api": "stay"}])
    until(lambda: len(supervised.events) == 3)
    popen.terminate()
    assert popen.wait(20) == 0
    assert supervised.events[3:] == ["stopped api", "stopped worker", "stopped kafka"]
    assert supervised.left() == []


def test_a_process_that_ignores_the_stop_is_killed_after_its_time(supervised: Supervised) -> None:
    popen = supervised.up([{"worker": "stubborn"}])
    popen.terminate()
    assert popen.wait(20) == 0
    assert supervised.process("worker").exit_code == -signal.SIGKILL


def test_a_second_signal_kills_at_once(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stubborn"}, {"worker": "stubborn"}])
    started = time.monotonic()
    popen.terminate()
    until(lambda: supervised.process("worker").state is State.STOPPING)
    while popen.poll() is None:
        popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            popen.wait(0.1)
    assert time.monotonic() - started < 2 * 1.5  # less than the patience with both


def test_a_killed_process_is_started_again(supervised: Supervised) -> None:
    supervised.up([{"worker": "parent"}])
    before = supervised.pid("worker")
    os.kill(before, signal.SIGKILL)
    until(lambda: supervised.process("worker").state is State.RESTARTING)
    assert supervised.process("worker").problem == "was ended by SIGKILL"
    until(lambda: supervised.state.ready)
    worker = supervised.process("worker")
    assert (worker.restarts, worker.problem, worker.exit_code) == (1, "", -signal.SIGKILL)
    assert worker.pid != before
    assert len(supervised.left()) == 1 + 2  # the supervisor, the worker, its child: not its first life's


def test_a_process_that_never_comes_up_ends_the_start_with_its_name(supervised: Supervised) -> None:
    popen = supervised.start([{"kafka": "stay"}, {"worker": "3"}])
    _, complaint = popen.communicate(timeout=30)
    assert popen.returncode == 1
    assert "worker does not start: it exited with code 3 before it was ready" in complaint
    assert sorted(supervised.events) == ["started kafka", *["started worker"] * 3, "stopped kafka"]
    assert supervised.left() == []


def test_wrong_settings_end_the_start_at_the_first_attempt(supervised: Supervised) -> None:
    popen = supervised.start([{"worker": "78"}])
    popen.communicate(timeout=30)
    assert (popen.returncode, supervised.events) == (1, ["started worker"])
    failed = supervised.state.failed
    assert failed is not None
    assert (failed.exit_code, failed.last_lines()) == (78, ["hello from worker first"])


def test_what_is_given_up_while_others_start_ends_the_start(supervised: Supervised) -> None:
    """It may have seemed ready, as when another stack's API answered at its port."""
    popen = supervised.start([{"kafka": "unready", "api": "brief"}])
    _, complaint = popen.communicate(timeout=15)
    assert popen.returncode == 1
    assert "api does not start: it exited with code 78" in complaint


def test_wrong_settings_later_on_leave_the_others_running(supervised: Supervised) -> None:
    supervised.up([{"kafka": "stay"}, {"worker": "stay"}])
    os.kill(supervised.pid("worker"), signal.SIGUSR2)
    until(lambda: supervised.process("worker").state is State.FAILED)
    assert supervised.process("kafka").state is State.READY
    assert supervised.events.count("started worker") == 1


def test_nothing_outlives_a_killed_supervisor(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}, {"worker": "parent", "other": "stubborn"}])
    reaper = supervised.state.reaper_pid
    assert len(supervised.left()) == 5
    popen.kill()
    popen.wait()
    until(lambda: not supervised.left(), 5)
    until(lambda: not psutil.pid_exists(reaper), 5)


@pytest.mark.parametrize("behaviour", ["stay", "parent"])
def test_nothing_outlives_a_supervisor_that_was_killed_while_it_started(
    supervised: Supervised, behaviour: str
) -> None:
    popen = supervised.start([{f"worker-{number}": behaviour for number in range(4)}])
    until(lambda: len(supervised.left()) > 1)
    popen.kill()
    popen.wait()
    until(lambda: not supervised.left(), 5)


def test_a_killed_reaper_has_a_successor_that_knows_everything(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}, {"worker": "stay"}])
    first = supervised.state.reaper_pid
    os.kill(first, signal.SIGKILL)
    until(lambda: supervised.state.reaper_pid != first)
    popen.kill()
    popen.wait()
    until(lambda: not supervised.left(), 5)


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}])
    second = supervised.start([{"kafka": "stay"}])
    _, complaint = second.communicate(timeout=20)
    assert second.returncode == 1
    assert f"as process {popen.pid}" in complaint
    assert supervised.events == ["started kafka"]


def test_a_new_start_waits_for_what_a_killed_one_left(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}])
    kafka = supervised.pid("kafka")
    os.kill(supervised.state.reaper_pid, signal.SIGSTOP)  # a reaper that is slow to come
    popen.kill()
    popen.wait()
    second = supervised.start([{"kafka": "stay"}])
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)
    assert (supervised.events, psutil.pid_exists(kafka)) == (["started kafka"], True)
    os.kill(supervised.state.reaper_pid, signal.SIGCONT)
    until(lambda: supervised.events == ["started kafka"] * 2)
    assert not psutil.pid_exists(kafka) or psutil.Process(kafka).status() == psutil.STATUS_ZOMBIE


def test_a_new_start_ends_what_nobody_else_did(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": "stay"}])
    kafka = psutil.Process(supervised.pid("kafka"))
    reaper = supervised.state.reaper_pid
    os.kill(popen.pid, signal.SIGSTOP)  # so that it cannot start another reaper
    os.kill(reaper, signal.SIGKILL)
    popen.kill()
    popen.wait()
    assert kafka.is_running()
    supervised.up([{"kafka": "stay"}])
    assert not kafka.is_running() or kafka.status() == psutil.STATUS_ZOMBIE


def test_ports_stay_the_same_over_restarts(supervised: Supervised) -> None:
    ports = []
    for _ in range(2):
        supervised.up([{"kafka": "stay"}]).terminate()
        until(lambda: find(supervised.home) is None)
        ports.append(dict(supervised.state.ports))
    assert ports[0] == ports[1]


async def test_a_restart_brings_a_new_environment(supervised: Supervised) -> None:
    await asyncio.to_thread(supervised.up, [{"kafka": "stay"}, {"worker": "stay", "other": "stay"}])
    before = supervised.pid("worker")
    env = {"MARK": "second"}
    state = await stack_control.restart(supervised.home, {"worker": env}, timedelta(seconds=20))
    worker = state.process("worker")
    assert worker is not None
    assert worker.last_lines() == ["hello from worker second"]
    assert (worker.environment, worker.restarts) == (environment_digest(env), 0)
    assert worker.pid != before
    assert supervised.events[3:] == ["stopped worker", "started worker"]


async def test_only_what_runs_can_be_restarted(supervised: Supervised) -> None:
    with pytest.raises(StackError, match="No docsum runs"):
        await stack_control.restart(supervised.home, {"worker": None}, timedelta(seconds=1))
    await asyncio.to_thread(supervised.up, [{"worker": "stay"}])
    with pytest.raises(StackError, match="no process worker-9"):
        await stack_control.restart(supervised.home, {"worker-9": None}, timedelta(seconds=1))


async def test_workers_join_and_the_newest_leave(supervised: Supervised) -> None:
    popen = supervised.up([{"kafka": ""}, {"worker-1": ""}])
    first = supervised.pid("worker-1")
    state = await stack_control.scale(supervised.home, 3, timedelta(seconds=20))
    assert [process.name for process in state.processes] == ["kafka", "worker-1", "worker-2", "worker-3"]
    assert state.ready
    os.kill(supervised.pid("worker-3"), signal.SIGKILL)
    until(lambda: supervised.process("worker-3").restarts == 1 and supervised.state.ready)
    state = await stack_control.scale(supervised.home, 1, timedelta(seconds=20))
    assert [process.name for process in state.processes] == ["kafka", "worker-1"]
    assert supervised.pid("worker-1") == first
    assert {"stopped worker-2", "stopped worker-3"} <= set(supervised.events)
    assert await stack_control.scale(supervised.home, 1, timedelta(seconds=20)) == supervised.state
    popen.terminate()
    assert popen.wait(20) == 0


async def test_a_further_worker_that_does_not_start_is_told_and_can_be_taken_away(
    supervised: Supervised,
) -> None:
    supervised.more = "78"
    supervised.up([{"kafka": ""}, {"worker-1": ""}])
    with pytest.raises(StackFailed, match="worker-2 does not start: it exited with code 78"):
        await stack_control.scale(supervised.home, 2, timedelta(seconds=20))
    assert supervised.process("worker-1").state is State.READY
    state = await stack_control.scale(supervised.home, 1, timedelta(seconds=20))
    assert state.ready


async def test_a_detached_stack_is_ready_when_detach_returns_and_ends_by_stop(supervised: Supervised) -> None:
    seen: list[StackState] = []
    state = await detach(supervised, [{"kafka": "stay"}, {"worker": "stay"}], on_change=seen.append)
    assert state.ready
    assert seen[-1] == state == find(supervised.home)
    assert await stack_control.stop(supervised.home, timedelta(seconds=20))
    assert supervised.events[2:] == ["stopped worker", "stopped kafka"]
    assert not await stack_control.stop(supervised.home, timedelta(seconds=20))


async def test_a_detached_stack_that_fails_says_which_process_and_its_last_words(
    supervised: Supervised,
) -> None:
    with pytest.raises(StackFailed) as failure:
        await detach(supervised, [{"kafka": "stay"}, {"worker": "78"}])
    assert failure.value.process.exit_code == 78
    assert failure.value.process.last_lines() == ["hello from worker first"]


async def test_a_detached_supervisor_that_is_refused_says_why(supervised: Supervised) -> None:
    await asyncio.to_thread(supervised.up, [{"kafka": "stay"}])
    with pytest.raises(StackError, match=r"docsum runs in .* already"):
        await detach(supervised, [{"kafka": "stay"}])


async def detach(
    supervised: Supervised, plan: Plan, on_change: Callable[[StackState], None] = lambda _state: None
) -> StackState:
    return await stack_control.detach(
        supervised.argv(plan),
        os.environ,
        supervised.home,
        supervised.home / "logs" / "supervisor.log",
        timeout=timedelta(seconds=20),
        on_change=on_change,
    )


def test_a_free_port_is_the_preferred_one_where_nobody_listens() -> None:
    assert free_port(port := free_port()) == port


async def test_an_http_probe_believes_only_an_answer_of_200() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if request.startswith(b"GET /health?deep=1 ") else b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await http_ready(f"http://{HOST}:{port}/health?deep=1")()
        assert not await http_ready(f"http://{HOST}:{port}")()
        assert free_port(port) != port
    assert not await http_ready(f"http://{HOST}:{port}/health")()
