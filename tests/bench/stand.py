"""The stand of a bench: Kafka, the ClickHouse engine, the stub server, and the contenders' turns on them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import psutil

from docsum.bootstrap import setup_store, setup_topics
from docsum.settings import Fetch, Model, Settings, Store, Worker
from tests.bench.measured import Measured
from tests.support.broker import Broker
from tests.support.deployment import ROOT, ModelServer
from tests.support.engine import Engine

LOOPS = {"default": "AsyncAnthropic", "aiohttp": "AsyncAnthropic, aiohttp"}
DOCSUM = "docsum"
_LONGEST_TURN = 600.0  # seconds
_WORDS = """the pump was serviced and its filter changed before pressure in the third line fell below what had
been noted by the engineers on night shift who asked for a new valve from the supplier near the harbour"""


class BenchFailed(Exception):
    """A contender did not do the work that it was to be measured by."""


@dataclass(frozen=True, slots=True)
class Load:
    """What every contender gets."""

    latency: float  # seconds of a model call
    documents: int  # a round
    in_flight: int


def write_documents(folder: Path, count: int) -> None:
    """So many texts of about 1 KB, no two alike in any folder."""
    folder.mkdir()
    chance, words = random.Random(folder.name), _WORDS.split()
    for number in range(count):
        lines = (" ".join(chance.choices(words, k=16)).capitalize() + "." for _ in range(11))
        (folder / f"{number:06d}.txt").write_text(f"Report {number}, {folder.name}.\n" + "\n".join(lines))


@contextmanager
def backend(folder: Path) -> Iterator[Settings]:
    """Kafka and the engine with topics and tables, and the settings that reach them."""
    broker, engine = Broker(folder / "kafka"), Engine(folder / "clickhouse")
    engine.directory.mkdir()
    try:
        asyncio.run(broker.start())
        engine.start()
        settings = Settings(
            _env_file=None,
            home=folder,
            kafka=broker.settings,
            clickhouse=engine.settings,
            store=Store(flush_interval=timedelta(milliseconds=20)),
            fetch=Fetch(file_roots=(str(folder),)),
        )
        asyncio.run(setup_topics(settings))
        asyncio.run(setup_store(settings))
        yield settings
    finally:
        engine.stop()
        broker.kill()


@contextmanager
def model_server(folder: Path, latency: float) -> Iterator[ModelServer]:
    """One stub server for all contenders of a latency."""
    server = ModelServer(folder, "--fast", f"--latency={latency}")
    try:
        yield server
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class Stand:
    """Gives a contender its turn: a process of its own that measures itself."""

    folder: Path
    settings: Settings
    url: str  # of the stub server
    load: Load

    def turn(self, contender: str, documents: Path) -> Measured:
        """Raises BenchFailed unless every document was summarised."""
        out = self.folder / "measured.json"
        out.unlink(missing_ok=True)
        if contender == DOCSUM:
            peak = self._docsum(documents, out)
        else:
            load, model = self.load, self.settings.model.name
            peak = self._loop([contender, self.url, model, str(load.in_flight), str(documents), str(out)])
        found = Measured(**json.loads(out.read_text()) | {"peak_mb": peak / 1e6})
        if found.documents != self.load.documents:
            raise BenchFailed(f"{contender} ended {found.documents} of {self.load.documents} documents.")
        return found

    def _loop(self, arguments: list[str]) -> int:
        """The peak of its memory."""
        with self._process("loop", "tests.bench.loop", *arguments) as process:
            peak = _watched(process, until=process)
            if process.returncode != 0:
                self._fail("loop")
        return peak

    def _docsum(self, documents: Path, out: Path) -> int:
        """Everything is announced before the worker starts: the rate is the worker's. Its peak of memory."""
        slots = -(-self.load.in_flight // 8)  # of 12 partitions: half as much again as may be in flight
        changed = {
            "model": Model(base_url=self.url),
            "worker": Worker(max_in_flight=self.load.in_flight, slots_per_partition=slots),
        }
        env = self.settings.model_copy(update=changed).environment()
        announce = ("run", str(documents), "--no-wait", "--json", "--yes")
        with self._process("run", "docsum", *announce, env=env) as process:
            process.wait(_LONGEST_TURN)
        run_id = str(self._said("run")["run_id"])
        with (
            self._process("watch", "docsum", "runs", "watch", run_id, "--json", env=env) as watcher,
            self._process("worker", "tests.bench.worker", str(out), env=env) as worker,
        ):
            peak = _watched(worker, until=watcher)
            if worker.poll() is not None:
                self._fail("worker")
            worker.terminate()
            if worker.wait(_LONGEST_TURN) != 0:
                self._fail("worker")
        if (done := self._said("watch")["done"]) != self.load.documents:
            raise BenchFailed(f"docsum stored {done} of {self.load.documents} documents.")
        return peak

    @contextmanager
    def _process(
        self, name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`python -m` this; it has ended when the context is left, however that comes.

        It knows nothing of the user's settings, keys and proxies, and runs where no .env is.
        """
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**kept, **(env or {}), "PYTHONPATH": str(ROOT)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _said(self, name: str) -> Mapping[str, object]:
        """The last JSON object that it wrote."""
        lines = [line for line in self._log(name).read_text().splitlines() if line.startswith("{")]
        if not lines:
            self._fail(name)
        found: dict[str, object] = json.loads(lines[-1])
        return found

    def _fail(self, name: str) -> NoReturn:
        lines = self._log(name).read_text(errors="replace").splitlines()[-20:]
        raise BenchFailed("\n".join([f"The process `{name}` failed. Its last words:", *lines]))


def _watched(process: subprocess.Popen[bytes], until: subprocess.Popen[bytes]) -> int:
    """The peak of a process's resident memory in bytes, until the other or it has ended."""
    seen, peak = psutil.Process(process.pid), 0
    deadline = time.monotonic() + _LONGEST_TURN
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            peak = max(peak, seen.memory_info().rss)
        with suppress(subprocess.TimeoutExpired):
            until.wait(0.2)
            break
    return peak
