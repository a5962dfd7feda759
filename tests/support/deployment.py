"""Whole deployments for tests: real commands, and a model server of their own as the judge of money.

`Deployment` is the local stack in a home of its own. `Fleet` is a deployment of the user's own, with workers
as processes of the test, on the broker and the engine that tests share; its store is reached through a proxy.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from confluent_kafka import Consumer, Message, TopicPartition
from pydantic import SecretStr

from docsum.bootstrap import open_store, setup_store, setup_topics
from docsum.local.compose import attach
from docsum.local.loopback import HOST, free_port
from docsum.local.stack_state import StackState, find
from docsum.models import RunDocumentRow
from docsum.settings import Batch, Fetch, Kafka, Limits, Model, Retry, Settings, Topics, Worker, load
from docsum.stores.clickhouse import ClickHouseStore
from docsum.topics import Topology
from tests.support.broker import Broker
from tests.support.engine import Engine
from tests.support.fault_proxy import FaultProxy

ROOT = Path(__file__).parents[2]
MODEL = "local-extractive-1"
T = TypeVar("T")


def until(check: Callable[[], bool], within: float = 60, what: str = "what was waited for") -> float:
    """Blocks until `check` holds, and returns after how many seconds; fails when that takes too long."""
    begun = time.monotonic()
    while not check():
        assert time.monotonic() - begun < within, f"not within {within} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begun


def stays(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Fails when `check` does not hold all that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert check(), f"not for {seconds} s: {what}"
        time.sleep(0.2)


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

    def entries(self) -> list[dict[str, Any]]:
        """Every billed request."""
        with urllib.request.urlopen(f"{self.url}/_billing?entries=1", timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def fail(self, *rules: Mapping[str, object]) -> None:
        """These fault rules and no others from now on."""
        self.put("/_faults", list(rules))

    @property
    def paid_again(self) -> dict[str, int]:
        """Requests that were paid for more than once."""
        found: dict[str, int] = self.get("/_billing/fingerprints")["paid_more_than_once"]
        return found

    def delete(self, path: str) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url + path, method="DELETE"), timeout=30).read()

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
        # A free port of the API: two stacks that start at the same moment cannot both have the usual one.
        ours = {"DOCSUM_HOME": str(self.home), "NO_COLOR": "1", "DOCSUM_API__PORT": "0"}
        self.environment = {**kept, **ours, **environment}

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

    @property
    def reached(self) -> Settings:
        """With the addresses of what runs."""
        found = attach(load(home=self.home))
        assert found is not None, "no stack runs"
        return found

    def ask(self, question: Callable[[ClickHouseStore], Coroutine[None, None, T]]) -> T:
        """Of the store itself: a command takes a while, and some tests must be quick."""

        async def answer() -> T:
            async with open_store(self.reached) as store:
                return await question(store)

        return asyncio.run(answer())

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


@dataclass
class ProxiedBroker(Broker):
    """A broker that everybody reaches through a proxy: its own metadata lead there too."""

    proxy: FaultProxy = field(init=False)

    def __post_init__(self) -> None:
        self.proxy = FaultProxy(self.port)

    @property
    def settings(self) -> Kafka:
        return Kafka(bootstrap_servers=self.proxy.address)

    def configure(self) -> None:
        properties = self.data / "server.properties"
        listener = f"advertised.listeners=PLAINTEXT://{HOST}:"
        text = properties.read_text()
        assert f"{listener}{self.port}\n" in text
        properties.write_text(text.replace(f"{listener}{self.port}\n", f"{listener}{self.proxy.port}\n"))


class Fleet(Deployment):
    """A deployment of the user's own: topics, a database and a group that nobody else uses."""

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        engine: Engine,
        model: ModelServer,
        *,
        delays: tuple[float, ...] = (1, 2),
        in_flight: int = 16,
        partitions: int = 6,
        limits: Limits | None = None,
        fetch: Fetch | None = None,
        batch: Batch | None = None,
        registry: str = "",
        summaries: bool = False,
        inputs: tuple[str, ...] = (),
    ) -> None:
        """`delays` of the retry topics, in seconds; `registry`: the address of a schema registry.

        `summaries`: whether upstreams are told of results; `inputs`: topics of others, which exist.
        """
        self.folder = folder
        self.model = model
        self.brokers = broker.settings.bootstrap_servers
        self.store_proxy = FaultProxy(engine.port)
        self.store_proxy.__enter__()
        prefix = f"t{uuid4().hex[:8]}"
        direct = engine.settings
        self.settings = Settings(
            home=folder / "home",
            kafka=Kafka(
                bootstrap_servers=self.brokers,
                group_id=f"{prefix}-workers",
                batch_group_id=f"{prefix}-batch",
                schema_registry_url=registry,
            ),
            topics=Topics(prefix=prefix, partitions=partitions, inputs=inputs, summaries=summaries),
            clickhouse=direct.model_copy(update={"url": self.store_proxy.url}),
            model=Model(name=MODEL, api_key=SecretStr("a-key"), base_url=model.url),
            limits=limits or Limits(),
            worker=Worker(max_in_flight=in_flight, shutdown_timeout=timedelta(seconds=5)),
            retry=Retry(delays=tuple(timedelta(seconds=delay) for delay in delays)),
            fetch=fetch or Fetch(file_roots=(str(folder),)),
            batch=batch or Batch(),
        )
        self._direct = self.settings.model_copy(update={"clickhouse": direct})
        super().__init__(folder, **self.settings.environment())
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        asyncio.run(self._set_up())

    async def _set_up(self) -> None:
        await setup_topics(self._direct)
        await setup_store(self._direct)

    @property
    def topology(self) -> Topology:
        return self.settings.topology()

    # -- workers -----------------------------------------------------------------------------------------

    def start_workers(self, *names: str) -> None:
        """Returns when all are members of the group."""
        for name in names:
            self.start_worker(name)
        until(lambda: all(map(self.is_member, names)), 60, f"{names} are members")

    def start_worker(self, name: str, module: str = "docsum", *arguments: str) -> None:
        """Returns at once; `module` is what the process runs, the arguments are those of `docsum worker`."""
        self._ports[name] = free_port()
        environment = self.environment | {
            "DOCSUM_WORKER__INSTANCE_ID": name,
            "DOCSUM_WORKER__PORT": str(self._ports[name]),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'app'}",
        }
        with self._log(name).open("ab") as log:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", module, "worker", *arguments],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def stop_worker(self, name: str) -> None:
        """Ends it in order."""
        self.workers[name].terminate()
        assert self.workers[name].wait(240) == 0

    def is_member(self, name: str) -> bool:
        assert self.workers[name].poll() is None, f"{name} has ended: {self.said(name)[-3000:]}"
        with suppress(OSError):
            urllib.request.urlopen(f"http://{self.page(name)}/readyz", timeout=5).read()
            return True
        return False

    def page(self, name: str) -> str:
        """`host:port` of a worker's page."""
        return f"{HOST}:{self._ports[name]}"

    def said(self, *names: str) -> str:
        """The logs of these workers, or of all."""
        return "".join(self._log(name).read_text() for name in names or self.workers)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    # -- what is stored ----------------------------------------------------------------------------------

    @property
    def reached(self) -> Settings:
        """Past the proxy of the store."""
        return self._direct

    def rows(self, run_id: str) -> list[RunDocumentRow]:
        async def read(store: ClickHouseStore) -> list[RunDocumentRow]:
            return [row async for row, _ in store.run_rows(UUID(run_id))]

        return self.ask(read)

    def counts(self, run_id: str) -> dict[str, int]:
        """Documents of a run by state."""
        states = [row.state.value for row in self.rows(run_id)]
        return {state: states.count(state) for state in sorted(set(states))}

    def holds(self) -> list[str]:
        """What the last heartbeat of every worker says."""
        return [hold for status in self.ask(lambda store: store.workers()) for hold in status.holds]

    def announce(self, *arguments: str) -> str:
        """Publishes a run without waiting for it; returns its id."""
        run_id: str = json.loads(self.docsum("run", *arguments, "--no-wait", "--json"))["run_id"]
        return run_id

    def remaining(self, run_id: str) -> int:
        """Documents of a run without an end."""
        return self.ask(lambda store: store.progress(UUID(run_id))).remaining

    # -- what is in Kafka --------------------------------------------------------------------------------

    def records(self, topic: str) -> list[Message]:
        """All that a topic holds now, with headers."""
        return list(read_topic(self.brokers, topic, self.topology.partitions))

    def size(self, topic: str) -> int:
        """How many records a topic holds now."""
        return sum(high - low for low, high in ends(self.brokers, topic, self.topology.partitions))

    def dead_letters(self) -> list[Message]:
        return self.records(self.topology.dead_letters)

    def has_caught_up(self) -> bool:
        """Whether the group has committed the end of every partition that its workers read."""
        topics = self.topology
        read = (topics.documents, topics.backfill, *topics.retries)
        places = [TopicPartition(topic, number) for topic in read for number in range(topics.partitions)]
        with closing(consumer_of(self.brokers, self.settings.kafka.group_id)) as consumer:
            committed = [place.offset for place in consumer.committed(places, timeout=20)]
        return committed == [end for topic in read for _, end in ends(self.brokers, topic, topics.partitions)]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait(20)
        self.store_proxy.__exit__(None, None, None)


def ends(brokers: str, topic: str, partitions: int) -> list[tuple[int, int]]:
    """The first offset of each partition, and the one after its last."""
    with closing(consumer_of(brokers)) as consumer:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        return [consumer.get_watermark_offsets(place, timeout=20) for place in places]


def read_topic(brokers: str, topic: str, partitions: int) -> Iterator[Message]:
    """Everything that was there when it began."""
    places = enumerate(ends(brokers, topic, partitions))
    with closing(consumer_of(brokers)) as consumer:
        for number, (first, end) in places:
            consumer.assign([TopicPartition(topic, number, first)])
            offset = first
            while offset < end:
                message = consumer.poll(20)
                assert message is not None and message.error() is None, f"{topic}[{number}] at {offset}"
                yield message
                offset = message.offset() + 1


def consumer_of(
    brokers: str, group: str = "readers"
) -> Any:  # Any: it declares no `close` that `closing` knows
    return Consumer({"bootstrap.servers": brokers, "group.id": group, "enable.auto.commit": False})
