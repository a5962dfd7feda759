"""A real Kafka broker for tests: one a session, and topics of its own for each test.

`tests/conftest.py` makes the fixtures known to every test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from docsum.local.jars import cache_folder, ensure_jars
from docsum.local.kafka import kafka_spec
from docsum.local.loopback import HOST, free_port
from docsum.settings import Kafka
from docsum.topics import Topology


@dataclass
class Broker:
    """A broker over one data folder, which survives `kill` and `start`."""

    data: Path
    port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Kafka:
        return Kafka(bootstrap_servers=f"{HOST}:{self.port}")

    async def start(self) -> None:
        """Returns when it answers."""
        jars = await asyncio.to_thread(ensure_jars, cache_folder(os.environ))
        spec = kafka_spec(self.data, jars, self.port, self.controller_port)
        if spec.prepare is not None:
            await spec.prepare()
        self.configure()
        with (self.data / "stdout").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; `kill` works in any test
                spec.argv, env=dict(spec.env), cwd=spec.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(spec.ready_timeout.total_seconds()):
            while not await spec.ready():
                assert self.process.poll() is None, (self.data / "stdout").read_text()
                await asyncio.sleep(0.1)

    def configure(self) -> None:
        """Changes what has just been written to `server.properties`."""

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Shared: a test that stops it must start it again."""
    broker = Broker(tmp_path_factory.mktemp("kafka") / "data")
    try:
        asyncio.run(broker.start())
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def topology() -> Topology:
    """Topics of this test alone, three partitions each."""
    return Topology(prefix=f"t{uuid4().hex[:8]}", partitions=3)
