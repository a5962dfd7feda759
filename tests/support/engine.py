"""The real engine host, one for all tests of a session; every test gets a database of its own.

Use it with `pytest_plugins = ["tests.support.engine"]`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from docsum.local.loopback import free_port
from docsum.settings import ClickHouse

_MEMORY = 4_000_000_000  # bytes: a file of tests has a hundred databases
_READY = "ready on"


@dataclass
class Engine:
    """An engine host with its directory; may be killed and started again at the same port."""

    directory: Path
    token: str = field(default_factory=lambda: uuid4().hex)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> ClickHouse:
        """A database that does not exist yet."""
        return ClickHouse(
            url=f"http://127.0.0.1:{self.port}",
            database=f"test_{uuid4().hex[:12]}",
            password=SecretStr(self.token),
        )

    def start(self) -> None:
        """Returns when it answers; fails after 60 s."""
        token_file = self.directory / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        log = self.directory / "log"
        options = {
            "--path": self.directory,
            "--port": self.port,
            "--token-file": token_file,
            "--memory-bytes": _MEMORY,
        }
        arguments = [str(part) for option in options.items() for part in option]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "docsum.local.clickhouse_engine", *arguments],
                stdout=said,
                stderr=said,
            )
        deadline = time.monotonic() + 60
        while _READY not in log.read_text():
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self.stop()
            raise AssertionError(f"the engine host did not start: {log.read_text()}")

    def kill(self) -> None:
        """At once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """In the ordinary way; by force after 20 s."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Of the tests of one file: never stop it in a test, see `own_engine`.

    Not of all: each database counts as 18 MB with the engine, whatever it really takes.
    """
    host = Engine(tmp_path_factory.mktemp("engine"))
    host.start()
    yield host
    host.stop()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[Engine]:
    """For a test that kills it."""
    host = Engine(tmp_path)
    host.start()
    yield host
    host.stop()
