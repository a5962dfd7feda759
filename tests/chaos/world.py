"""A deployment and everything that can be done to it: real parts, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from docsum.kafka.admin import KafkaAdmin, PartitionLag
from docsum.models import RunProgress
from tests.chaos.resources import Footprint, look
from tests.chaos.schedule import Fault, Kind, Schedule
from tests.support.broker import Broker
from tests.support.deployment import ROOT, Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

IN_FLIGHT = 8
LATENCY = "1..3"  # seconds of a model call: there is always something that a fault can hit
WORKER = "tests.support.chaos_worker"
POISON = 5  # documents without a text
_UNLUCKY = 3  # documents at which the model fails, and at no other
_UNLUCKY_TIMES = 5  # each; once more, and the last attempt would be spent


_RULES: dict[Kind, dict[str, object]] = {
    Kind.MODEL_500: {"status": 500},
    Kind.MODEL_529: {"status": 529},
    Kind.MODEL_429: {"status": 429, "retry_after": 1},
    Kind.MODEL_RESET: {"kind": "reset"},
    Kind.MODEL_LOST: {"kind": "reset_after_accept", "probability": 0.5},
    Kind.MODEL_SLOW: {"kind": "slow_body", "seconds": 2.0},
    Kind.MODEL_CAP: {"kind": "credit_too_low"},
}


def enough(seconds: float, workers: int) -> int:
    """So many documents keep the workers busy for that time."""
    return round(seconds * workers * IN_FLIGHT / 2)


@dataclass(frozen=True, slots=True)
class Sample:
    """What could be seen from outside at one moment; None: the store did not answer."""

    at: float
    progress: RunProgress | None


class Ground:
    """What seeds share: the broker, the engine and the model server. Each may be killed and comes back."""

    def __init__(self, folder: Path, latency: str = LATENCY) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.broker, self.engine = Broker(folder / "kafka"), Engine(folder / "clickhouse")
        self.engine.directory.mkdir()
        asyncio.run(self.broker.start())
        self.engine.start()
        self.model = ModelServer(folder / "model", "--fast", f"--latency={latency}")

    def close(self) -> None:
        self.model.close()
        self.engine.stop()
        self.broker.kill()


class World(Fleet):
    """One seed: a run of its own over documents of its own, and workers that come back when they die."""

    def __init__(self, folder: Path, ground: Ground, count: int, workers: int, spared: int = 0) -> None:
        """So many of the workers are `spared`: no fault hits their process, so that they grow old."""
        folder.mkdir(parents=True)
        super().__init__(
            folder,
            ground.broker,
            ground.engine,
            ground.model,
            in_flight=IN_FLIGHT,
            partitions=2 * workers,
            summaries=True,
        )
        ground.model.delete("/_billing")
        self.ground = ground
        self.count = count
        self.run_id = uuid4()
        self.documents = folder / "documents"
        write_documents(self.documents, count, seed=int(self.run_id) % 1_000_000)
        for number in range(POISON):
            (self.documents / f"poison-{number}.txt").touch()
        self.samples: list[Sample] = []
        self.footprints: dict[str, list[Footprint]] = defaultdict(list)  # by name and pid of the worker
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._names = [f"worker-{number}" for number in range(workers)]
        self._victims = self._names[spared:]
        self._leaving: set[str] = set()
        self._publisher: subprocess.Popen[bytes] | None = None
        self._rules: dict[str, Mapping[str, object]] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self.troubles: list[str] = []  # what the harness itself met: a fault that could not be done
        self.calm_since = 0.0  # second in which the last fault was over
        self.deaths = 0  # workers that were killed, frozen or stopped

    # -- the whole ---------------------------------------------------------------------------------------

    def live_through(self, faults: Schedule, patience: float) -> None:
        """Returns when the run is over and every fault too, or after `patience` seconds more."""
        for number in range(_UNLUCKY):
            rule = {"match": {"contains": f"Report {number} of"}, "status": 500, "times": _UNLUCKY_TIMES}
            self._set_rule(f"unlucky-{number}", rule)
        threads = [threading.Thread(target=self._guarded, args=(self._meet, fault)) for fault in faults]
        keepers = [
            threading.Thread(target=self._guarded, args=(work,)) for work in (self._keep, self._publish)
        ]
        keepers[0].start()
        until(
            lambda: set(self._names) <= set(self.workers) and all(map(self.is_member, self._names)),
            90,
            "members",
        )
        self._begun = time.monotonic()
        for thread in (keepers[1], *threads):
            thread.start()
        try:
            end = None
            while True:
                self.samples.append(self._sample())
                self._look_at_workers()
                busy = any(thread.is_alive() for thread in (*threads, keepers[1]))
                if not busy:
                    self.calm_since = self.calm_since or self.elapsed()
                    end = end or time.monotonic() + patience
                    last = self.samples[-1].progress
                    if last is not None and last.remaining == 0 and last.total == self.count + POISON:
                        return
                    if time.monotonic() > end:
                        return
                self._over.wait(0.5)
        finally:
            for thread in threads:
                thread.join()
            self._over.set()
            for thread in keepers:
                thread.join()

    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # a fault that cannot be done must be told, not passed over
            self.troubles.append(f"{work.__name__} {arguments}: {error!r}")

    def _sample(self) -> Sample:
        progress = None
        with suppress(Exception):
            progress = self.ask(lambda store: store.progress(self.run_id))
        return Sample(self.elapsed(), progress)

    def _look_at_workers(self) -> None:
        for name, worker in list(self.workers.items()):
            if seen := look(worker.pid, self.elapsed()):
                self.footprints[f"{name}, process {worker.pid},"].append(seen)

    # -- what comes back by itself -----------------------------------------------------------------------

    def _keep(self) -> None:
        """The supervisor: a worker that has ended is started again."""
        while not self._over.is_set():
            with self._lock:
                for name in self._names:
                    worker = self.workers.get(name)
                    if name not in self._leaving and (worker is None or worker.poll() is not None):
                        self.start_worker(name, WORKER)
            self._over.wait(0.3)

    def _publish(self) -> None:
        """Announces the run, and again until it is whole: it may be killed, and the broker may be away."""
        arguments = ["run", str(self.documents), "--no-wait", "--json", "--yes", "--id", str(self.run_id)]
        while not self._over.is_set():
            with (self.folder / "publisher.log").open("ab") as log:
                publisher = subprocess.Popen(
                    [sys.executable, "-m", "docsum", *arguments],
                    env=self.environment,
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )
            self._publisher = publisher
            while publisher.poll() is None and not self._over.is_set():
                self._over.wait(0.1)
            if publisher.poll() == 0:
                return
            self._over.wait(1)
        publisher.kill()
        publisher.wait(10)

    # -- faults ------------------------------------------------------------------------------------------

    def _meet(self, fault: Fault) -> None:
        if self._over.wait(max(0.0, fault.at - self.elapsed())):
            return
        component = fault.kind.component
        with self._turns.setdefault(component, threading.Lock()):
            match component:
                case "worker":
                    self._worker_fault(fault)
                case "broker":
                    self._broker_fault(fault)
                case "engine":
                    self._engine_fault(fault)
                case "model":
                    self._model_fault(fault)
                case _:
                    if self._publisher is not None:
                        self._publisher.kill()

    def _wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def _worker_fault(self, fault: Fault) -> None:
        if fault.kind is Kind.WORKER_JOIN:
            return self._guest(fault)
        name = self._victims[fault.victim % len(self._victims)]
        with self._lock:
            worker = self.workers.get(name)
        if worker is None or worker.poll() is not None:
            return None
        match fault.kind:
            case Kind.WORKER_CLOCK:
                with self._clock_shifted(name, fault.size):
                    self._wait(fault.lasts)
                return None
            case Kind.WORKER_FREEZE:
                self.deaths += 1
                worker.send_signal(signal.SIGSTOP)
                self._wait(fault.lasts)
                worker.send_signal(signal.SIGCONT)
                return None
        self.deaths += 1
        with self._lock:
            self._leaving.add(name)  # so that it stays away for a while
        worker.send_signal(signal.SIGKILL if fault.kind is Kind.WORKER_KILL else signal.SIGTERM)
        worker.wait(240)
        self._wait(fault.lasts)
        with self._lock:
            self._leaving.discard(name)
        return None

    @contextmanager
    def _clock_shifted(self, name: str, seconds: float) -> Iterator[None]:
        path = self.home / f"clock-{self._ports[name]}"
        path.write_text(str(seconds))
        try:
            yield
        finally:
            path.unlink()

    def _guest(self, fault: Fault) -> None:
        name = f"guest-{fault.victim}-{fault.at:g}"
        with self._lock:
            self.start_worker(name, WORKER)
        self._wait(fault.lasts)
        self.deaths += 1
        self.workers[name].terminate()
        self.workers[name].wait(240)

    def _broker_fault(self, fault: Fault) -> None:
        broker = self.ground.broker
        match fault.kind:
            case Kind.BROKER_KILL:
                broker.kill()
                self._wait(fault.lasts)
                asyncio.run(broker.start())
            case Kind.BROKER_FREEZE:
                broker.freeze()
                self._wait(fault.lasts)
                broker.thaw()
            case _:
                topics = self.settings.topics
                more = self.settings.model_copy(
                    update={"topics": topics.model_copy(update={"partitions": topics.partitions + 1})}
                )
                asyncio.run(KafkaAdmin(more.kafka).setup(more.topology()))
                self.settings = more

    def _engine_fault(self, fault: Fault) -> None:
        proxy = self.store_proxy
        match fault.kind:
            case Kind.ENGINE_KILL:
                # Answers are written, what stands on them is not: the worst moment for a flush.
                proxy.answers(241, "MEMORY_LIMIT_EXCEEDED", only="INTO run_document_versions")
                self._wait(1.0)
                self.ground.engine.kill()
                self._wait(fault.lasts)
                self.ground.engine.start()
            case Kind.ENGINE_HANG:
                proxy.hangs()
                self._wait(fault.lasts)
            case Kind.ENGINE_MEMORY:
                proxy.answers(241, "MEMORY_LIMIT_EXCEEDED")
                self._wait(fault.lasts)
            case Kind.ENGINE_PARTS:
                proxy.answers(252, "TOO_MANY_PARTS", only="INSERT")
                self._wait(fault.lasts)
            case _:
                proxy.refuses()
                self._wait(fault.lasts)
        proxy.passes()

    def _model_fault(self, fault: Fault) -> None:
        if fault.kind is Kind.MODEL_KILL:
            self._note_what_fired()
            self.model.stop()
            self._wait(fault.lasts)
            self.model.start()
            self._send_rules()
            return
        self._set_rule("now", _RULES[fault.kind])
        self._wait(fault.lasts)
        self._set_rule("now", None)

    def _set_rule(self, name: str, rule: Mapping[str, object] | None) -> None:
        self._note_what_fired()
        if rule is None:
            self._rules.pop(name, None)
        else:
            self._rules = {name: rule, **self._rules}
        self._send_rules()

    def _note_what_fired(self) -> None:
        """The server counts anew when it is given a rule again; documents would fail too often."""
        for name, shown in zip(self._rules, self.model.get("/_faults"), strict=True):
            self._rules[name] = {**self._rules[name], "times": shown["times"]}

    def _send_rules(self) -> None:
        self.model.fail(*self._rules.values())

    # -- the end -----------------------------------------------------------------------------------------

    def lags(self) -> list[PartitionLag]:
        """Of all that the group reads, once the last commits had the time that they take."""
        admin, kafka = KafkaAdmin(self.settings.kafka), self.settings.kafka
        deadline = time.monotonic() + 30
        while True:
            found = asyncio.run(admin.lag(kafka.group_id, self.topology))
            if not any(lag.lag for lag in found) or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def close(self) -> None:
        with suppress(OSError):
            self.model.fail()
        for worker in self.workers.values():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        super().close()

    def keep_evidence(self, faults: Schedule) -> Path:
        """What a person needs to look into a failure: the schedule, beside the logs."""
        path = self.folder / "schedule.json"
        path.write_text(json.dumps([fault.as_json() for fault in faults], indent=1))
        return path
