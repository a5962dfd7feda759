"""The batch lane through the real SDK, against the local model server with its faults and billing ledger."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import anthropic
import httpx2
import pytest

from docsum import settings
from docsum.errors import (
    DocsumError,
    ModelAccountBlocked,
    ModelRefused,
    ModelRejectedDocument,
    StoreMisconfigured,
    StoreUnavailable,
)
from docsum.local.extractive import ExtractiveModel
from docsum.local.model_latency import Latency
from docsum.local.model_server import Options, serving
from docsum.models import (
    Answer,
    Batch,
    BatchItem,
    BatchState,
    Control,
    ControlState,
    DocumentReference,
    ExtractedText,
    Lane,
    Recipe,
    Run,
    RunState,
    Summary,
)
from docsum.ports import Later, SystemClock
from docsum.settings import Model
from docsum.stores.memory import MemoryStore
from docsum.summarisers.anthropic import make_client
from docsum.summarisers.batched import BatchSummariser
from docsum.summarisers.batches import BatchLane, custom_id
from docsum.summarisers.gate import CallGate
from docsum.summarisers.prices import Prices
from tests.support.fakes import START, reference
from tests.support.waiting import eventually

RECIPE, PRICES = Recipe("claude-haiku-5-5", words=40), Prices.load()
LIMITS = settings.Batch(
    max_requests=4,
    quiet=timedelta(seconds=0.2),
    poll=timedelta(seconds=0.05),
    doubt=timedelta(seconds=1),
)


class Store(MemoryStore):
    """Tells of an intent that it has written down; may be away once."""

    def __init__(self) -> None:
        super().__init__()
        self.on_intent: Callable[[], None] = lambda: None
        self.away_for: BatchState | None = None  # when a batch is to be saved in this state

    async def add_batch(self, batch: Batch, items: Sequence[BatchItem]) -> None:
        await super().add_batch(batch, items)
        self.on_intent()

    async def save_batch(self, batch: Batch) -> None:
        if batch.state is self.away_for:
            self.away_for = None
            raise StoreUnavailable
        await super().save_batch(batch)


@dataclass
class Bench:
    """A model server whose batches take an hour of its clock, and workers of the batch lane."""

    url: str
    client: anthropic.AsyncAnthropic
    http: aiohttp.ClientSession
    store: Store = field(default_factory=Store)
    wanted: set[UUID | None] = field(default_factory=lambda: {None})
    workers: list[Worker] = field(default_factory=list)

    def worker(self, *owned: int, limits: settings.Batch = LIMITS) -> Worker:
        made = Worker(self, frozenset(owned or (0,)), limits)
        self.workers.append(made)
        return made

    async def fault(self, endpoint: str, **rule: Any) -> None:
        match = {"endpoint": endpoint, **rule.pop("match", {})}
        async with self.http.put(f"{self.url}/_faults", json=[{"match": match, **rule}]) as response:
            assert response.status == 200, await response.text()

    async def pass_time(self, seconds: float = 3600) -> None:
        async with self.http.post(f"{self.url}/_clock", json={"advance": seconds}) as response:
            assert response.status == 200

    async def billed(self) -> int:
        async with self.http.get(f"{self.url}/_billing") as response:
            return int((await response.json())["accepted"])

    async def batches(self) -> int:
        return len([each async for each in self.client.messages.batches.list()])

    @property
    def states(self) -> list[str]:
        return sorted(each.state.value for each in self.store.batch_rows.values())

    @property
    def answers(self) -> list[Answer]:
        return list(self.store._answers.values())


class Worker:
    """What a worker process does with deliveries of the lane: asks, is told Later, asks again."""

    def __init__(self, bench: Bench, owned: frozenset[int], limits: settings.Batch) -> None:
        self.bench, self.owned = bench, owned
        self.slept = 0.0  # seconds
        clock = SystemClock()
        self.lane = BatchLane(
            bench.client,
            bench.store,
            clock,
            PRICES,
            limits,
            owned=lambda: self.owned,
            wanted=self._wanted,
            boot_time=lambda: time.monotonic() + self.slept,
        )
        self.summariser = BatchSummariser(
            bench.client,
            CallGate(8, clock),
            bench.store,
            clock,
            PRICES,
            timeout=timedelta(seconds=5),
            batches=self.lane,
        )
        self._run = asyncio.create_task(self.lane.run())
        self._deliveries: list[asyncio.Task[Summary]] = []
        self.set_aside = 0

    async def _wanted(self, run_id: UUID | None) -> bool:
        return run_id in self.bench.wanted

    def kill(self) -> None:
        for task in (*self._deliveries, self._run):
            task.cancel()

    async def ended(self) -> None:
        self.kill()
        await asyncio.gather(*self._deliveries, self._run, return_exceptions=True)

    async def summarise(
        self, number: int, text: str = "", partition: int = 0, recipe: Recipe = RECIPE, **changes: Any
    ) -> Summary:
        """As a delivery does: looks whether it waits already, asks, waits, asks again."""
        event = replace(reference(document_id=f"doc-{number}"), **changes)
        extracted = ExtractedText(text or f"Report {number}. The harbour was dredged in May.", "text/plain")
        while True:
            try:
                return await self._ask(event, extracted, recipe, partition)
            except Later as later:
                self.set_aside += 1
                there = asyncio.Event()
                later.then(there.set)
                await there.wait()

    async def _ask(
        self, event: DocumentReference, text: ExtractedText, recipe: Recipe, partition: int
    ) -> Summary:
        if later := await self.summariser.pending(event, partition):
            raise later
        return await self.summariser.summarise(event, text, recipe, Lane.BATCH, _nothing, partition=partition)

    def start(self, *numbers: int, **changes: Any) -> list[asyncio.Task[Summary]]:
        tasks = [asyncio.create_task(self.summarise(number, **changes)) for number in numbers]
        self._deliveries += tasks
        return tasks


async def _nothing() -> None:
    pass


@pytest.fixture(scope="module")
def extracts() -> ExtractiveModel:
    return ExtractiveModel()


Start = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def start(tmp_path: Path, extracts: ExtractiveModel) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:
        made: list[Bench] = []

        async def started(seconds: str = "3600") -> Bench:
            options = Options(tmp_path, fast=True, batch_time=Latency.parse(seconds))
            url = await stack.enter_async_context(serving(options, extracts))
            client = await stack.enter_async_context(make_client(Model(base_url=url), 8))
            http = await stack.enter_async_context(aiohttp.ClientSession())
            made.append(Bench(url, client, http))
            return made[-1]

        yield started
        for bench in made:
            for worker in bench.workers:
                await worker.ended()


def a_run() -> Run:
    return Run(UUID(int=0), "a run", "/docs", RECIPE, Lane.BATCH, RunState.PUBLISHED, START, START)


async def answered(bench: Bench, waiting: Iterable[Awaitable[object]]) -> None:
    """Once the provider is done with what it has."""
    await bench.pass_time()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


async def submitted(bench: Bench, count: int = 1) -> None:
    await eventually(lambda: bench.states.count("submitted") >= count)


async def test_documents_wait_for_a_batch_and_cost_half(start: Start) -> None:
    bench = await start()
    worker = bench.worker()
    waiting = worker.start(*range(6))
    await submitted(bench, 2)  # of four and of two
    assert worker.lane.committed(None) > 0
    assert await bench.billed() == 0
    await bench.pass_time()
    summaries = await asyncio.gather(*waiting)
    assert {summary.reused for summary in summaries} == {False}
    assert sum(summary.cost for summary in summaries) == sum(answer.cost for answer in bench.answers)
    assert bench.states == ["applied", "applied"]
    assert sum(each.succeeded for each in bench.store.batch_rows.values()) == 6
    assert {answer.lane for answer in bench.answers} == {Lane.BATCH}
    live = [PRICES.cost(answer.model, answer.usage, Lane.LIVE) for answer in bench.answers]
    assert sum(answer.cost for answer in bench.answers) * 2 == sum(live)
    assert await bench.billed() == 6
    assert worker.lane.committed(None) == 0


async def test_a_model_that_is_free_is_ordered_as_any_other(start: Start) -> None:
    bench = await start("0")
    worker = bench.worker()
    recipe = replace(RECIPE, model="local-extractive-1")
    await asyncio.gather(*worker.start(*range(6), recipe=recipe))
    assert await bench.billed() == 6
    assert {answer.cost for answer in bench.answers} == {0}


async def test_the_same_text_is_bought_once(start: Start) -> None:
    bench = await start()
    worker = bench.worker()
    waiting = [
        *worker.start(1, text="The same text for all."),
        *worker.start(2, 3, text="The same text for all."),
    ]
    await submitted(bench)
    await bench.pass_time()
    summaries = await asyncio.gather(*waiting)
    assert [summary.reused for summary in summaries].count(False) == 1
    assert await bench.billed() == 1
    assert (await worker.summarise(4, text="The same text for all.")).reused
    assert await bench.billed() == 1


async def test_a_long_document_is_read_in_one_batch_and_summarised_in_the_next(start: Start) -> None:
    bench = await start()
    worker = bench.worker(limits=LIMITS.model_copy(update={"max_requests": 100}))
    recipe = replace(RECIPE, single_shot_tokens=1_000)
    text = "\n\n".join(f"# Chapter {n}\n\n" + f"The harbour number {n} was dredged. " * 60 for n in range(8))
    event = reference(document_id="long")

    async def work() -> Summary:
        while True:
            try:
                return await worker.summariser.summarise(
                    event, ExtractedText(text, "text/plain"), recipe, Lane.BATCH, _nothing
                )
            except Later as later:
                there = asyncio.Event()
                later.then(there.set)
                await there.wait()

    waiting = asyncio.create_task(work())
    while not waiting.done():
        await bench.pass_time()
        await asyncio.wait({waiting}, timeout=0.2)
    summary = await waiting
    assert summary.chunks > 2
    assert summary.cost == sum(answer.cost for answer in bench.answers) > 0
    sizes = [each.size for each in sorted(bench.store.batch_rows.values(), key=lambda b: b.created_at)]
    assert sizes[0] == summary.chunks
    assert sizes[-1] == 1


async def test_what_cannot_be_collected_is_told_and_ordered_anew(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await start("0")
    worker = bench.worker()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
        with pytest.raises(FileNotFoundError):
            await worker.summarise(1)
    assert worker.lane.committed(None) == 0
    async with asyncio.timeout(10):
        await worker.summarise(1)
    assert await bench.billed() == 1


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """As a full disk does it: what still fits is written, of the rest nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_what_a_full_disk_cuts_spoils_nothing_else(start: Start) -> None:
    bench = await start("0")
    worker = bench.worker(limits=LIMITS.model_copy(update={"max_requests": 2, "quiet": timedelta(hours=1)}))
    waiting = worker.start(1)
    await eventually(lambda: worker.set_aside == 1)
    committed = worker.lane.committed(None)
    with files_end_at(64_000), pytest.raises(OSError, match="No space left"):
        await worker.summarise(2, text="The harbour was dredged in May. " * 4_000)
    assert worker.lane.committed(None) == committed
    waiting += worker.start(3)  # as many as a batch takes: they are sent at once
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert bench.states == ["applied"]
    assert await bench.billed() == 2


# -- killed at each step -------------------------------------------------------------------------------------


async def test_killed_while_collecting_nothing_was_bought(start: Start) -> None:
    bench = await start("0")
    first = bench.worker(limits=LIMITS.model_copy(update={"quiet": timedelta(hours=1)}))
    first.start(1)
    await eventually(lambda: first.set_aside == 1)
    first.kill()
    await bench.worker().summarise(1)
    assert await bench.billed() == 1
    assert await bench.batches() == 1


async def test_killed_after_the_intent_and_before_the_request(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.create", kind="reset")
    first = bench.worker()
    first.start(1)
    await eventually(lambda: bool(bench.store.batch_rows))
    first.kill()
    await bench.fault("batches.create", kind="reset", times=0)
    await bench.worker().summarise(1)
    assert await bench.billed() == 1
    assert await bench.batches() == 1
    assert bench.states == ["abandoned", "applied"]


async def test_an_intent_that_has_grown_old_is_not_sent(start: Start) -> None:
    """Its worker was frozen meanwhile: another owner may look for that batch by now."""
    bench = await start("0")
    worker = bench.worker()

    def freeze() -> None:
        bench.store.on_intent = lambda: None
        worker.slept += 60

    bench.store.on_intent = freeze
    await worker.summarise(1)
    assert bench.states == ["abandoned", "applied"]
    assert await bench.billed() == await bench.batches() == 1


@pytest.mark.parametrize("error", [StoreUnavailable(), StoreMisconfigured(), None])
async def test_an_intent_of_which_the_store_does_not_say_that_it_knows_is_not_sent(
    start: Start, error: DocsumError | None
) -> None:
    """It may be there all the same: it is given up in the store before anybody asks again.

    Without an error its worker is frozen, and then the store is away.
    """
    bench = await start()
    worker = bench.worker()

    def fail() -> None:
        bench.store.on_intent = lambda: None
        if error:
            raise error
        worker.slept += 60
        bench.store.away_for = BatchState.ABANDONED

    bench.store.on_intent = fail
    waiting = worker.start(1, 2)
    await eventually(lambda: bench.states == ["abandoned", "submitted"])
    await answered(bench, waiting)
    assert await bench.billed() == 2
    assert await bench.batches() == 1


async def test_an_intent_that_shows_late_is_given_up_alone(start: Start) -> None:
    """Its requests are on their way in another batch by then, which goes on."""
    bench = await start()
    waiting = bench.worker().start(1, 2)
    await submitted(bench)
    (batch,) = bench.store.batch_rows.values()
    late = "0123456789ab"
    items = [
        replace(item, intent=late, custom_id=custom_id(late, item.fingerprint))
        for item in bench.store.batch_items.values()
    ]
    await bench.store.add_batch(
        replace(batch, intent=late, state=BatchState.SUBMITTING, provider_id=""), items
    )
    await eventually(lambda: bench.states == ["abandoned", "submitted"])
    await answered(bench, waiting)
    assert await bench.billed() == 2
    assert await bench.batches() == 1


@pytest.mark.parametrize("ended", [False, True])
async def test_what_a_batch_that_shows_late_has_bought_is_not_sent_again(start: Start, ended: bool) -> None:
    bench = await start()
    worker = bench.worker(limits=LIMITS.model_copy(update={"quiet": timedelta(hours=1)}))
    waiting = worker.start(1, 2)
    await eventually(lambda: worker.set_aside == 2)
    former = bench.worker()
    former.start(1, 2)
    await submitted(bench)
    former.kill()
    await eventually(lambda: str(worker.lane).startswith("1 batches open"))
    if ended:
        await bench.pass_time()
        await asyncio.gather(*waiting)
    waiting += worker.start(3, 4)  # with the first two as many as a batch takes: they are sent at once
    await eventually(lambda: len(bench.store.batch_rows) == 2)
    assert [batch.size for batch in bench.store.batch_rows.values()] == [2, 2]
    await submitted(bench, 1 if ended else 2)
    await answered(bench, waiting)
    assert await bench.billed() == 4


@pytest.mark.parametrize("ended", [False, True])
async def test_killed_after_the_request_left(start: Start, ended: bool) -> None:
    bench = await start("0" if ended else "3600")
    await bench.fault("batches.create", kind="reset_after_accept", times=1)
    first = bench.worker(limits=LIMITS.model_copy(update={"poll": timedelta(hours=1)}))
    first.start(*range(3))
    await eventually(lambda: bench.states == ["in_doubt"])
    first.kill()
    second = bench.worker()
    waiting = second.start(*range(3))
    if not ended:
        await eventually(lambda: second.set_aside == 3)
        await bench.pass_time()
    await asyncio.gather(*waiting)
    assert await bench.batches() == 1
    assert await bench.billed() == 3
    assert bench.states == ["applied"]


async def test_a_batch_in_doubt_is_told_from_others_of_its_size(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.create", kind="reset_after_accept", times=1)
    worker = bench.worker(0, 1)
    waiting = [*worker.start(1, 2), *worker.start(3, 4, partition=1)]
    await asyncio.gather(*waiting)
    assert await bench.billed() == 4
    assert await bench.batches() == 2
    assert bench.states == ["applied", "applied"]


async def test_killed_after_the_reply_the_next_owner_waits_for_the_same_batch(start: Start) -> None:
    bench = await start()
    first = bench.worker()
    first.start(*range(4))
    await submitted(bench)
    first.kill()
    second = bench.worker()
    waiting = second.start(*range(4))
    await eventually(lambda: second.set_aside == 4)
    await bench.pass_time()
    await asyncio.gather(*waiting)
    assert await bench.batches() == 1
    assert await bench.billed() == 4


async def test_results_that_break_off_are_read_again(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.results", kind="cut", times=2)
    worker = bench.worker()
    await asyncio.gather(*worker.start(*range(4)))
    assert await bench.billed() == len(bench.answers) == 4


class GarblingClient:
    """A client that is told of one batch what nobody can read."""

    def __init__(self, client: anthropic.AsyncAnthropic, garble: Callable[[bytes], bytes]) -> None:
        self._client = client
        self._garble = garble
        self.batch = ""  # the provider's id of it

    async def get(self, path: str, **named: Any) -> Any:
        response = await self._client.get(path, **named)
        if self.batch and self.batch in path:
            return httpx2.Response(200, content=self._garble(response.content))
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize(
    "garble",
    [
        lambda line: line[:-9],
        lambda line: b"[]\n",
        lambda line: line.replace(b'"custom_id"', b'"name"'),
        lambda line: line.replace(b'"usage"', b'"use"'),
    ],
)
async def test_results_that_cannot_be_read_are_told_and_keep_no_other_batch(
    start: Start, garble: Callable[[bytes], bytes]
) -> None:
    bench = await start()
    garbling = GarblingClient(bench.client, garble)
    bench.client = garbling  # type: ignore[assignment]  # stands in for it
    worker = bench.worker(0, 1)
    (bad,) = worker.start(1)
    await submitted(bench)
    (garbling.batch,) = [batch.provider_id for batch in bench.store.batch_rows.values()]
    (good,) = worker.start(2, partition=1)
    await submitted(bench, 2)
    await bench.pass_time()
    async with asyncio.timeout(10):
        await good
        await eventually(lambda: f"{garbling.batch} cannot be read" in str(worker.lane))
        assert not bad.done()
        garbling.batch = ""
        await bad
    assert await bench.billed() == await bench.batches() == 2


async def test_dead_for_26_hours_everything_is_found(start: Start) -> None:
    bench = await start()
    await bench.fault("batches.item", kind="expired", times=2)
    first = bench.worker()
    first.start(*range(4))
    await submitted(bench)
    first.kill()
    await bench.pass_time(26 * 3600)
    second = bench.worker()
    waiting = second.start(*range(4))
    await eventually(lambda: bench.states == ["applied", "submitted"])
    (old,) = [each for each in bench.store.batch_rows.values() if each.state is BatchState.APPLIED]
    assert (old.succeeded, old.expired) == (2, 2)
    await bench.pass_time()
    await asyncio.gather(*waiting)
    assert await bench.billed() == len(bench.answers) == 4


async def test_a_partition_that_moves_takes_its_batches_along(start: Start) -> None:
    bench = await start()
    first = bench.worker(0, 1)
    first.start(1, 2)
    first.start(3, 4, partition=1)
    await submitted(bench, 2)
    first.owned = frozenset({0})
    second = bench.worker(1)
    waiting = second.start(3, 4, partition=1)
    await eventually(lambda: second.set_aside == 2)
    await bench.pass_time()
    await asyncio.gather(*waiting)
    await eventually(lambda: bench.states == ["applied", "applied"])
    assert await bench.billed() == len(bench.answers) == 4


async def test_a_batch_that_the_provider_does_not_know_is_told_and_not_bought_again(start: Start) -> None:
    """Most probably the key is one of another workspace."""
    bench = await start()
    await bench.fault("batches.retrieve", kind="hidden", seconds=10**6)
    worker = bench.worker()
    waiting = worker.start(1)
    await eventually(lambda: "the provider does not know msgbatch_" in str(worker.lane))
    assert await bench.batches() == 1
    await bench.fault("batches.retrieve", kind="hidden", times=0)
    await bench.pass_time()
    await asyncio.gather(*waiting)
    assert await bench.billed() == 1
    assert "does not know" not in str(worker.lane)


class FrozenClient:
    """A client whose process stands still within the call that sends a batch."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client
        self.reached, self.thaw = asyncio.Event(), asyncio.Event()

    async def post(self, *arguments: Any, **named: Any) -> Any:
        self.reached.set()
        await self.thaw.wait()
        return await self._client.post(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def test_what_a_worker_frozen_in_the_send_buys_again_is_in_the_ledger(start: Start) -> None:
    """The one case in which a batch is bought twice: nobody can know, but the bill is told in full."""
    bench = await start("0")
    honest, frozen = bench.client, FrozenClient(bench.client)
    bench.client = frozen  # type: ignore[assignment]  # stands in for it
    first = bench.worker()
    bench.client = honest
    first.start(*range(3))
    await frozen.reached.wait()
    second = bench.worker()
    await asyncio.gather(*second.start(*range(3)))
    assert bench.states == ["abandoned", "applied"]

    first.owned = frozenset()  # it is told so as soon as it goes on
    frozen.thaw.set()
    await eventually(lambda: bench.states == ["applied", "applied"])
    assert await bench.billed() == len(bench.answers) == 6


async def test_what_a_late_batch_does_not_answer_another_still_brings(start: Start) -> None:
    """As above, but somebody cancels the late one at the provider."""
    bench = await start()
    honest, frozen = bench.client, FrozenClient(bench.client)
    bench.client = frozen  # type: ignore[assignment]  # stands in for it
    first = bench.worker()
    bench.client = honest
    revoked = first.start(*range(3))
    await frozen.reached.wait()
    second = bench.worker()
    waiting = second.start(*range(3))
    await submitted(bench)
    assert bench.states == ["abandoned", "submitted"]

    first.owned = frozenset()
    for delivery in revoked:
        delivery.cancel()
    frozen.thaw.set()
    await submitted(bench, 2)
    late = min(bench.store.batch_rows.values(), key=lambda batch: batch.created_at)
    await bench.client.messages.batches.cancel(late.provider_id)
    await eventually(lambda: bench.states == ["applied", "submitted"])
    await answered(bench, waiting)
    assert await bench.billed() == 3
    assert await bench.batches() == 2


# -- what becomes of single items ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "expired"},
        {"kind": "canceled"},
        {"status": 500},
        {"status": 529},
        {"kind": "invalid_json"},
        {"kind": "truncated"},
    ],
)
async def test_an_item_that_came_to_nothing_is_bought_again(start: Start, rule: dict[str, Any]) -> None:
    bench = await start("0")
    await bench.fault("batches.item", times=1, match={"contains": "Report 1."}, **rule)
    worker = bench.worker()
    await asyncio.gather(*worker.start(1, 2))
    assert await bench.billed() == (3 if rule.get("kind") in ("invalid_json", "truncated") else 2)


async def test_a_result_that_is_missing_is_written_down_as_lost_and_bought_again(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.item", times=1, kind="missing", match={"contains": "Report 1."})
    worker = bench.worker()
    await asyncio.gather(*worker.start(1, 2))
    assert [answer.status for answer in bench.answers].count("lost") == 1
    assert sum(each.missing for each in bench.store.batch_rows.values()) == 1


async def test_a_result_that_comes_twice_counts_once(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.item", kind="duplicated")
    await asyncio.gather(*bench.worker().start(*range(4)))
    (batch,) = bench.store.batch_rows.values()
    assert batch.succeeded == len(bench.answers) == 4
    assert batch.cost == sum(answer.cost for answer in bench.answers)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"status": 400}, ModelRejectedDocument),
        ({"kind": "credit_too_low"}, ModelAccountBlocked),
        ({"kind": "refusal"}, ModelRefused),
    ],
)
async def test_what_is_wrong_with_one_item_its_delivery_is_told(
    start: Start, rule: dict[str, Any], error: type[Exception]
) -> None:
    bench = await start("0")
    await bench.fault("batches.item", match={"contains": "Report 1."}, **rule)
    bad, good = bench.worker().start(1, 2)
    await good
    with pytest.raises(error):
        await bad


async def test_what_is_not_wanted_any_more_is_not_bought(start: Start) -> None:
    bench = await start("0")
    worker = bench.worker()
    unwanted = UUID(int=7)
    waiting = worker.start(1, run_id=unwanted)
    await eventually(lambda: worker.set_aside > 1)  # it was dropped, and asked again
    await worker.summarise(2)
    assert await bench.billed() == 1
    waiting[0].cancel()


async def test_a_cancelled_run_cancels_a_batch_that_is_all_its_own(start: Start) -> None:
    bench = await start()
    run, other = replace(a_run(), id=UUID(int=7)), replace(a_run(), id=UUID(int=8))
    bench.wanted |= {run.id, other.id}
    for each in (run, other):
        await bench.store.save_run(each)
    worker = bench.worker(0, 1)
    alone = worker.start(1, 2, run_id=run.id)
    mixed = [*worker.start(3, run_id=run.id, partition=1), *worker.start(4, run_id=other.id, partition=1)]
    await submitted(bench, 2)
    bench.wanted.discard(run.id)
    await bench.store.save_control(Control(run.id, ControlState.CANCELLED))
    await eventually(lambda: sum(each.canceled for each in bench.store.batch_rows.values()) == 2)
    await bench.pass_time()
    await asyncio.gather(*mixed)
    assert await bench.billed() == 2
    for task in alone:
        task.cancel()


async def test_what_no_batch_has_by_then_is_bought_live(start: Start) -> None:
    bench = await start()
    run = replace(a_run(), by=datetime.now(UTC) + timedelta(seconds=1))
    bench.wanted.add(run.id)
    await bench.store.save_run(run)
    worker = bench.worker(0, 1, limits=LIMITS.model_copy(update={"quiet": timedelta(hours=1)}))
    waiting = worker.start(*range(4), run_id=run.id)  # as many as a batch takes: it is sent at once
    await submitted(bench)
    collected = worker.start(4, 5, run_id=run.id, partition=1)
    await asyncio.gather(*collected)  # before that batch ends
    assert await bench.batches() == 1
    await bench.pass_time()
    await asyncio.gather(*waiting)
    full = [answer for answer in bench.answers if answer.document_id in ("doc-4", "doc-5")]
    assert [answer.cost for answer in full] == [
        PRICES.cost(answer.model, answer.usage, Lane.LIVE) for answer in full
    ]
    assert await bench.billed() == len(bench.answers) == 6


async def test_a_create_that_is_refused_is_tried_again_after_the_wait(start: Start) -> None:
    bench = await start("0")
    await bench.fault("batches.create", status=429, retry_after=0.1, times=2)
    await asyncio.gather(*bench.worker().start(1))
    assert bench.states == ["applied", "rejected", "rejected"]
    assert await bench.billed() == 1


def test_ids_are_valid_whatever_they_stand_for() -> None:
    one, other = custom_id("0123456789ab", "f" * 64), custom_id("0123456789ab", "e" * 64)
    assert one != other
    assert len(one) == 53
    assert set(one) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
