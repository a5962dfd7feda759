"""A run carried out in the foreground: until when it is watched, and what it ends with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from docsum.cli.deployment import Deployment
from docsum.cli.execution import Execution, Manner
from docsum.cli.output import Code
from docsum.models import Coordinates, Lane, Recipe, RecordCopy, Rows, Run, RunDocumentRow, RunState, State
from docsum.settings import Kafka, Settings
from docsum.sources import Listed, Source
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock
from tests.support.waiting import eventually

SETTINGS = Settings(home=Path("/home"), kafka=Kafka(bootstrap_servers="broker:9092"))
RUN = Run(
    UUID(int=77), "letters", "/letters", Recipe("m"), Lane.BATCH, RunState.PUBLISHING, START, START
)  # fmt: skip


class SlowProducer:
    """Kafka takes nothing before it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def submit(self, copy: RecordCopy, *, timestamp_ms: int) -> asyncio.Future[Coordinates]:
        await self.open.wait()
        taken: asyncio.Future[Coordinates] = asyncio.get_running_loop().create_future()
        taken.set_result(Coordinates(copy.topic, 0, 0))
        return taken


class SleptStore(MemoryStore):
    """The machine has slept before the first look at the run: its publisher has been silent for too long."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock.now)
        self._clock = clock
        self.states: list[RunState] = []  # as they were seen

    async def run(self, run_id: UUID) -> Run | None:
        if not self.states:
            self._clock.advance(timedelta(seconds=31))
        run = await super().run(run_id)
        assert run is not None
        self.states.append(run.state)
        return run


async def test_a_run_that_looks_interrupted_while_it_is_announced_is_watched_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, producer = FakeClock(), SlowProducer()
    store = SleptStore(clock)

    @asynccontextmanager
    async def open_producer(settings: Settings) -> AsyncIterator[SlowProducer]:
        yield producer

    monkeypatch.setattr("docsum.bootstrap.open_producer", open_producer)
    source = Source(
        "/letters", "/letters", lambda: (Listed(name, f"file:///letters/{name}", START) for name in "ab")
    )
    deployment = Deployment(SETTINGS, "", local=False, started=False)
    execution = Execution(source, deployment, store, clock, Manner(json=True))
    going = asyncio.create_task(execution.carry_out(RUN))
    await eventually(lambda: bool(store.states))
    assert store.states[0] is RunState.INTERRUPTED
    producer.open.set()

    async def announced() -> bool:
        return (await store.progress(RUN.id)).total == 2

    await eventually(announced)
    ends = [
        RunDocumentRow(RUN.id, name, state, "", 1, "", "", clock.now())
        for name, state in (("a", State.DONE), ("b", State.DEAD_LETTERED))
    ]
    await store.write(Rows(run_documents=tuple(ends)))
    assert await asyncio.wait_for(going, 10) is Code.DEAD_LETTERS
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["done"], told["dead_lettered"]) == ("finished", 1, 1)
