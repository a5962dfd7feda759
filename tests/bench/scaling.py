"""More workers on the same work: their rate, their processor time, and the memory of every process.

Each turn has a run of its own, on texts that nobody has seen. The workers are started and share the
partitions out, the run is announced, and only then do they begin, all at once.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from docsum.bootstrap import open_store
from docsum.local.loopback import HOST, free_port
from docsum.settings import Model, Settings, Worker
from tests.bench.member import Tally
from tests.bench.stand import BenchFailed, Bill, Children, Load, Parts, write_documents
from tests.support.deployment import ModelServer

WORKER = "worker"
_LONGEST = 600.0  # seconds of a turn
_READY_WITHIN = 120.0  # seconds
_EVERY = 0.2  # seconds between two looks at memory and at the bill


@dataclass(frozen=True, slots=True)
class Turn:
    """So many workers on one run, from the first document begun to the last one finished."""

    workers: int
    documents: int
    shares: Sequence[int]  # deliveries of each worker: no worker is faster than the one with the most
    rate: float  # documents a second, of all workers
    cpu_ms: float  # user and system time of the worker processes, milliseconds a document
    others_cpu_ms: Mapping[str, float]  # the same of the broker, the engine host and the model server
    worker_mb: Sequence[float]  # peak of resident memory, of each worker
    others_mb: Mapping[str, float]

    @property
    def cores(self) -> float:
        """How many cores were busy on average, with nothing but this."""
        return self.rate * (self.cpu_ms + sum(self.others_cpu_ms.values())) / 1000


def turn_of(
    documents: int, tallies: Sequence[Tally], others_cpu: Mapping[str, float], peaks: Mapping[str, float]
) -> Turn:
    """`others_cpu`: seconds by process; `peaks`: bytes by process, the workers among them."""
    worked = [tally for tally in tallies if tally.deliveries]  # one without a document began at no time
    seconds = max(tally.ended for tally in worked) - min(tally.began for tally in worked)
    spent = sum(tally.cpu[1] - tally.cpu[0] for tally in worked)
    return Turn(
        workers=len(tallies),
        documents=documents,
        shares=[tally.deliveries for tally in tallies],
        rate=documents / seconds,
        cpu_ms=1000 * spent / documents,
        others_cpu_ms={name: 1000 * cpu / documents for name, cpu in others_cpu.items()},
        worker_mb=[peak / 1e6 for name, peak in peaks.items() if name not in others_cpu],
        others_mb={name: peaks[name] / 1e6 for name in others_cpu},
    )


def settled(shares: Sequence[Sequence[str]], topics: int, partitions: int) -> bool:
    """Whether the workers have all partitions of all topics, and each its part of them."""
    owned = [partition for share in shares for partition in share]
    return all(shares) and len(owned) == len(set(owned)) == topics * partitions


def processes_of(parts: Parts, server: ModelServer) -> dict[str, Any]:
    """What runs beside the workers. Any: an untyped library's process."""
    started = {
        "broker": parts.broker.process,
        "engine host": parts.engine.process,
        "model server": server.process,
    }
    return {name: psutil.Process(process.pid) for name, process in started.items() if process}


@contextmanager
def ready_worker(children: Children, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A plain `docsum worker` from the moment that it is ready; stopped in the ordinary way afterwards."""
    port = free_port()
    env = {**env, "DOCSUM_WORKER__PORT": str(port)}
    with children.started(WORKER, "docsum", "worker", env=env) as process:
        when(lambda: page(port, "/readyz") is not None, [process], "the worker is ready", every=0.01)
        yield process
        _stop(process, WORKER, children)


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of a turn, seen from outside."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    out: Path

    @property
    def share(self) -> Sequence[str]:
        """Its partitions; none while it is not ready."""
        if page(self.port, "/readyz") is None or (status := page(self.port, "/status")) is None:
            return ()
        return tuple(json.loads(status)["partitions"])


@dataclass(frozen=True, slots=True)
class Scale:
    """Gives so many workers their turn."""

    folder: Path
    parts: Parts
    server: ModelServer  # the stub
    load: Load  # in flight: of each worker

    @property
    def children(self) -> Children:
        return Children(self.folder)

    def round(self, number: int, steps: Sequence[int]) -> Iterator[Turn]:
        """A turn for each number of workers; every round begins with another one.

        Raises BenchFailed unless every document was bought once and stored.
        """
        first = number % len(steps)
        for workers in (*steps[first:], *steps[:first]):
            documents = self.folder / f"documents-{number}-{workers}"
            write_documents(documents, self.load.documents)
            yield self._turn(workers, documents)
            shutil.rmtree(documents)

    def _turn(self, workers: int, documents: Path) -> Turn:
        settings = settings_for(self.parts.settings, self.server, self.load.in_flight, workers)
        with ExitStack() as stack:
            members = [
                stack.enter_context(self._member(f"{WORKER}-{number}", settings)) for number in range(workers)
            ]
            processes = [member.process for member in members]
            topology = settings.topology()
            topics = len((topology.documents, *topology.inputs, topology.backfill, *topology.retries))
            when(
                lambda: settled([member.share for member in members], topics, topology.partitions),
                processes,
                f"{workers} workers have shared the partitions out",
            )
            run_id = self._announced(documents, settings)
            others = processes_of(self.parts, self.server)
            before, bill = _cpu(others), Bill.of(self.server)
            for process in processes:
                process.send_signal(signal.SIGUSR1)
            watched = {member.name: psutil.Process(member.process.pid) for member in members} | others
            peaks = self._watched(watched, bill.accepted + self.load.documents, processes)
            after = _cpu(others)
            self._check(run_id, settings, Bill.of(self.server).since(bill))
            for member in members:
                _stop(member.process, member.name, self.children)
            tallies = [Tally(**json.loads(member.out.read_text())) for member in members]
        spent = {name: after[name] - before[name] for name in others}
        return turn_of(self.load.documents, tallies, spent, peaks)

    @contextmanager
    def _member(self, name: str, settings: Settings) -> Iterator[Member]:
        port, out = free_port(), self.folder / f"{name}.json"
        out.unlink(missing_ok=True)
        # No instance id: a static member that has ended keeps its partitions until its session ends, and
        # the next turn would wait for that.
        env = settings.environment() | {"DOCSUM_WORKER__PORT": str(port)}
        with self.children.started(name, "tests.bench.member", str(out), env=env) as process:
            yield Member(name, port, process, out)

    def _announced(self, documents: Path, settings: Settings) -> UUID:
        arguments = ("run", str(documents), "--no-wait", "--json", "--yes")
        with self.children.started("run", "docsum", *arguments, env=settings.environment()) as process:
            process.wait(_LONGEST)
        return UUID(str(self.children.said("run")["run_id"]))

    def _watched(
        self, watched: Mapping[str, Any], until: int, workers: Sequence[subprocess.Popen[bytes]]
    ) -> dict[str, float]:
        """The peak of resident memory of each, in bytes, until so many calls were paid."""
        peaks = dict.fromkeys(watched, 0.0)

        def look() -> bool:
            for name, process in watched.items():
                with suppress(psutil.NoSuchProcess):
                    peaks[name] = max(peaks[name], process.memory_info().rss)
            return Bill.of(self.server).accepted >= until

        when(look, workers, "all documents were summarised", within=_LONGEST, every=_EVERY)
        return peaks

    def _check(self, run_id: UUID, settings: Settings, bill: Bill) -> None:
        """Waits until all is stored. Raises BenchFailed when it is not, or was paid for twice."""

        async def stored() -> int:
            async with open_store(settings) as store:
                return (await store.progress(run_id)).done

        when(lambda: asyncio.run(stored()) == self.load.documents, (), "all summaries are stored", every=0.5)
        if bill.accepted != self.load.documents:
            raise BenchFailed(f"{bill.accepted} calls were paid for {self.load.documents} documents.")


def settings_for(settings: Settings, server: ModelServer, in_flight: int, workers: int) -> Settings:
    """Of one of so many workers: each has its share of the partitions, and room for its calls in them."""
    slots = -(-in_flight * workers // 8)  # of 12 partitions: half as much again as may be in flight
    changed = {
        "model": Model(base_url=server.url),
        "worker": Worker(max_in_flight=in_flight, slots_per_partition=slots),
    }
    return settings.model_copy(update=changed)


def when(
    holds: Callable[[], bool],
    needed: Sequence[subprocess.Popen[bytes]],
    what: str,
    *,
    within: float = _READY_WITHIN,
    every: float = 0.1,
) -> None:
    """Returns once it holds. Raises BenchFailed after so many seconds, or when a process has ended."""
    deadline = time.monotonic() + within
    while not holds():
        if any(process.poll() is not None for process in needed):
            raise BenchFailed(f"A worker ended before {what}.")
        if time.monotonic() > deadline:
            raise BenchFailed(f"Not within {within:g} s: {what}.")
        time.sleep(every)


def page(port: int, path: str) -> bytes | None:
    """What a worker's own page says; None while there is no such page, or it is not ready."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
            found: bytes = answer.read()
            return found
    except OSError:
        return None


def cpu_seconds(process: Any) -> float:  # Any: an untyped library's process
    times = process.cpu_times()
    return float(times.user + times.system)


def _cpu(processes: Mapping[str, Any]) -> dict[str, float]:
    return {name: cpu_seconds(process) for name, process in processes.items()}


def _stop(process: subprocess.Popen[bytes], name: str, children: Children) -> None:
    process.terminate()
    if process.wait(_LONGEST) != 0:
        children.fail(name)
