"""`docsum api` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from docsum.local.loopback import HOST, free_port
from tests.support.deployment import ROOT, until


class ApiProcess:
    """Started, killed and started again at the same port; without tokens unless told otherwise."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, is_open: bool = True) -> None:
        self._folder = folder
        self._arguments = ["--open"] if is_open else []
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.environment = {
            **environment,
            "DOCSUM_API__PORT": str(self.port),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'app'}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with (self._folder / "api.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "docsum", "api", *self._arguments],
                env=self.environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        until(self._answers, 60, f"the API answers: {self.said()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said()[-3000:]
        with suppress(OSError):
            urllib.request.urlopen(f"{self.url}/livez", timeout=5).read()
            return True
        return False

    def said(self) -> str:
        return (self._folder / "api.log").read_text()

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def stop(self) -> int:
        """In order; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def ends(self, within: float) -> int:
        """By itself; the exit code."""
        assert self._process is not None
        return self._process.wait(within)

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:  # Any: JSON
        """Status and body of an answer; `body`: bytes as they are, else JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(
            f"{self.url}{path}", data, {"content-type": kind, **(headers or {})}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def get(self, path: str) -> Any:  # Any: JSON
        """The body of an answer that must be a good one."""
        status, found = self.ask("GET", path)
        assert status == 200, found
        return found
