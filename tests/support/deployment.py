"""A whole local stack for a test: its own home, its own model server as the judge of money, real commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from docsum.local.loopback import free_port
from docsum.local.stack_state import StackState, find

ROOT = Path(__file__).parents[2]


class ModelServer:
    """The model server as a process of its own: nothing of the stack can kill it."""

    def __init__(self, home: Path, *options: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.options = options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        with (self.home / "model-server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "docsum.local.model_server",
                    f"--port={self.port}",
                    f"--home={self.home}",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError):
                self.get("/health")
                return
            assert time.monotonic() < deadline, (self.home / "model-server.log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def put(self, path: str, body: object) -> None:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method="PUT")
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=30).read()

    @property
    def billed(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/_billing")
        return found

    close = stop


class Deployment:
    """`docsum` as a user runs it, in a home of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
        self.environment = {**kept, "DOCSUM_HOME": str(self.home), "NO_COLOR": "1", **environment}

    def docsum(self, *arguments: str, within: float = 240, ok: tuple[int, ...] = (0,)) -> str:
        """Standard output of a command that must end with one of these codes."""
        return self._run(arguments, within, ok).stdout

    def ends(self, *arguments: str, within: float = 600, ok: tuple[int, ...] = (0,)) -> int:
        """With which of these codes a command ends."""
        return self._run(arguments, within, ok).returncode

    def _run(
        self, arguments: Sequence[str], within: float, ok: Sequence[int]
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "docsum", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        assert done.returncode in ok, (
            f"docsum {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "docsum", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def state(self) -> StackState:
        found = find(self.home)
        assert found is not None, "no stack runs"
        return found

    def pid(self, name: str) -> int | None:
        """Of a living process of the stack; `supervisor` is one too."""
        state = find(self.home)
        if state is None:
            return None
        if name == "supervisor":
            return state.pid
        process = state.process(name)
        return process.pid if process else None

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> bool:
        """False when it does not live at the moment."""
        pid = self.pid(name)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, how)
            return True
        return False

    def run_of(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docsum("runs", "show", run_id, "--json", ok=(0, 3)))
        return found

    def close(self) -> None:
        state = find(self.home)
        if state is not None:
            self.docsum("down", ok=(0, 1))
            still = find(self.home)
            if still is not None:
                os.kill(still.pid, signal.SIGKILL)
