"""The stand of a bench: Kafka, the ClickHouse engine, the stub server, and the contenders' turns on them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
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
from docsum.models import Recipe
from docsum.settings import Fetch, Model, Settings, Store, Worker
from docsum.summarisers.prompt import render
from tests.bench.contenders import BY_ID, DOCSUM
from tests.bench.measured import Measured
from tests.support.broker import Broker
from tests.support.deployment import ROOT, ModelServer
from tests.support.engine import Engine

_PEERS = ROOT / ".venv" / "peers" / "bin" / "python"
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

    def __str__(self) -> str:
        """As part of a file's name."""
        return f"{self.latency:g}-{self.in_flight}"


def write_documents(folder: Path, count: int) -> None:
    """So many texts of about 1 KB, no two alike in any folder."""
    folder.mkdir()
    chance, words = random.Random(folder.name), _WORDS.split()
    for number in range(count):
        lines = (" ".join(chance.choices(words, k=16)).capitalize() + "." for _ in range(11))
        (folder / f"{number:06d}.txt").write_text(f"Report {number}, {folder.name}.\n" + "\n".join(lines))


def write_requests(documents: Path, model: str, out: Path) -> None:
    """What docsum would ask of each text, a JSON line each: the others need not know how that is made."""
    with out.open("w") as lines:
        for path in sorted(documents.iterdir()):
            body = render(Recipe(model), path.read_text(), secrets.token_hex(8)).params()
            lines.write(json.dumps(body) + "\n")


@dataclass(frozen=True, slots=True)
class Parts:
    """Kafka and the engine with topics and tables, and the settings that reach them."""

    broker: Broker
    engine: Engine
    settings: Settings


@contextmanager
def backend(folder: Path) -> Iterator[Settings]:
    """How a worker reaches the parts that run while the context is open."""
    with parts(folder) as found:
        yield found.settings


@contextmanager
def parts(folder: Path) -> Iterator[Parts]:
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
        yield Parts(broker, engine, settings)
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
class Bill:
    """What the stub server has charged for."""

    accepted: int
    input_tokens: int

    @classmethod
    def of(cls, server: ModelServer) -> Bill:
        totals = server.get("/_billing")
        return cls(totals["accepted"], totals["input_tokens"])

    def since(self, before: Bill) -> Bill:
        return Bill(self.accepted - before.accepted, self.input_tokens - before.input_tokens)


@dataclass(frozen=True, slots=True)
class Children:
    """The processes of a bench: each writes into a log of this folder."""

    folder: Path

    @contextmanager
    def started(
        self,
        name: str,
        module: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`python -m` this; it has ended when the context is left, however that comes.

        It knows nothing of the user's settings, keys and proxies, and runs where no .env is.
        """
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                [python, "-m", module, *arguments],
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

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> Mapping[str, object]:
        """The last JSON object that it wrote."""
        lines = [line for line in self.log(name).read_text().splitlines() if line.startswith("{")]
        if not lines:
            self.fail(name)
        found: dict[str, object] = json.loads(lines[-1])
        return found

    def fail(self, name: str) -> NoReturn:
        lines = self.log(name).read_text(errors="replace").splitlines()[-20:]
        raise BenchFailed("\n".join([f"The process `{name}` failed. Its last words:", *lines]))


@dataclass(frozen=True, slots=True)
class Stand:
    """Gives a contender its turn: a process of its own that measures itself."""

    folder: Path
    settings: Settings
    server: ModelServer  # the stub
    load: Load

    @property
    def children(self) -> Children:
        return Children(self.folder)

    def round(self, number: int) -> Iterator[tuple[str, Measured]]:
        """A turn for everyone, on texts that nobody has seen; each round begins with another contender.

        Raises BenchFailed unless all of them asked the same of the model.
        """
        documents, requests = self.folder / f"documents-{self.load}-{number}", self.folder / "requests.jsonl"
        write_documents(documents, self.load.documents)
        write_requests(documents, self.settings.model.name, requests)
        first, names, bills = number % len(BY_ID), list(BY_ID), {}
        for name in (*names[first:], *names[:first]):
            before = Bill.of(self.server)
            yield name, self._turn(name, documents, requests)
            bills[name] = Bill.of(self.server).since(before)
        if len(set(bills.values())) > 1 or bills[DOCSUM].accepted != self.load.documents:
            raise BenchFailed(f"The contenders did not do the same work: {bills}")
        shutil.rmtree(documents)

    def _turn(self, contender: str, documents: Path, requests: Path) -> Measured:
        """Raises BenchFailed unless every document was summarised."""
        out = self.folder / "measured.json"
        out.unlink(missing_ok=True)
        peak = self._docsum(documents, out) if contender == DOCSUM else self._rival(contender, requests, out)
        found = Measured(**json.loads(out.read_text()) | {"peak_mb": peak / 1e6})
        if found.documents != self.load.documents:
            raise BenchFailed(f"{contender} ended {found.documents} of {self.load.documents} documents.")
        return found

    def _rival(self, contender: str, requests: Path, out: Path) -> int:
        """The peak of its memory."""
        arguments = (contender, self.server.url, str(self.load.in_flight), str(requests), str(out))
        if not BY_ID[contender].peer:
            process = self.children.started(contender, "tests.bench.loop", *arguments)
        elif _PEERS.exists():
            process = self.children.started(contender, "tests.bench.peers", *arguments, python=str(_PEERS))
        else:
            raise BenchFailed("The peers are not installed: run `make .venv/.peers`.")
        with process as running:
            peak = _watched(running, until=running)
            if running.returncode != 0:
                self.children.fail(contender)
        return peak

    def _docsum(self, documents: Path, out: Path) -> int:
        """Everything is announced before the worker starts: the rate is the worker's. Its peak of memory."""
        # Of 12 partitions: three times what may be in flight, for what is being stored takes one, too.
        slots = -(-self.load.in_flight // 4)
        changed = {
            "model": Model(base_url=self.server.url),
            "worker": Worker(max_in_flight=self.load.in_flight, slots_per_partition=slots),
        }
        env = self.settings.model_copy(update=changed).environment()
        announce = ("run", str(documents), "--no-wait", "--json", "--yes")
        with self.children.started("run", "docsum", *announce, env=env) as process:
            process.wait(_LONGEST_TURN)
        run_id = str(self.children.said("run")["run_id"])
        with (
            self.children.started("watch", "docsum", "runs", "watch", run_id, "--json", env=env) as watcher,
            self.children.started("worker", "tests.bench.worker", str(out), env=env) as worker,
        ):
            peak = _watched(worker, until=watcher)
            if worker.poll() is not None:
                self.children.fail("worker")
            worker.terminate()
            if worker.wait(_LONGEST_TURN) != 0:
                self.children.fail("worker")
        if (done := self.children.said("watch")["done"]) != self.load.documents:
            raise BenchFailed(f"docsum stored {done} of {self.load.documents} documents.")
        return peak


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
