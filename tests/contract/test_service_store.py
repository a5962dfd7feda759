"""The port ServiceStore: pages of runs and documents, on the store in memory and on a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from docsum.models import API, Rows, RunState, State
from docsum.ports import ServiceStore
from docsum.stores import migrate
from docsum.stores.clickhouse import ClickHouseStore
from docsum.stores.memory import MemoryStore
from tests.contract.test_store import INTERVAL, NOW, a_run, answer, run_document, summary_row
from tests.support.engine import Engine

LONG_AGO = timedelta(minutes=5)


@pytest.fixture(params=["memory", "clickhouse"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ServiceStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    engine: Engine = request.getfixturevalue("engine")
    settings = engine.settings
    await migrate.setup(settings)
    async with ClickHouseStore(settings, INTERVAL) as opened:
        yield opened


async def test_pages_of_runs_go_on_where_the_last_one_ended(store: ServiceStore) -> None:
    """Two runs of the same millisecond are told apart by their ids."""
    moments = [NOW - timedelta(seconds=second) for second in (0, 1, 1, 2, 3)]
    for moment in moments:
        await store.save_run(a_run(created_at=moment))
    first = await store.runs_before(None, 2)
    rest = await store.runs_before((first[-1].created_at, first[-1].id), 10)
    assert [run.created_at for run in (*first, *rest)] == moments
    assert len({run.id for run in (*first, *rest)}) == 5
    assert await store.runs_before((rest[-1].created_at, rest[-1].id), 10) == []


async def test_what_the_api_keeps_of_a_run_comes_back(store: ServiceStore) -> None:
    run = a_run(
        publisher=API, problem="Nothing is there.", webhook="https://example.org/hook", request="ab" * 32
    )
    await store.save_run(run)
    assert await store.run(run.id) == run


async def test_runs_that_nobody_publishes_any_more_are_found(store: ServiceStore) -> None:
    fields = {"publisher": API, "state": RunState.PUBLISHING}
    silent = a_run(**fields, updated_at=NOW - LONG_AGO)
    now = datetime.now(UTC).replace(microsecond=0)
    busy = a_run(**fields, created_at=NOW + timedelta(seconds=1), updated_at=now)
    for run in (
        silent,
        busy,
        a_run(**{**fields, "publisher": ""}),
        a_run(**fields, problem="There is no such folder."),
        a_run(publisher=API, state=RunState.PUBLISHED),
    ):
        await store.save_run(run)
    found = {run.id: run.state for run in await store.unpublished(API)}
    assert found == {silent.id: RunState.INTERRUPTED, busy.id: RunState.PUBLISHING}


async def test_documents_of_a_run_by_state_text_and_page(store: ServiceStore) -> None:
    run_id, other = uuid4(), uuid4()
    states = {"a.pdf": State.DONE, "B.pdf": State.QUEUED, "c.pdf": State.DONE, "d.txt": State.DONE}
    rows = [run_document(run_id, name, State.QUEUED) for name in states]
    rows += [run_document(run_id, name, state, ms=5) for name, state in states.items() if state is State.DONE]
    await store.write(Rows(run_documents=(*rows, run_document(other, "a.pdf", State.DONE))))

    async def names(*wanted: State, **more: object) -> list[str]:
        found = await store.documents_of(run_id, wanted, **more)  # type: ignore[arg-type]  # as the case gives them
        return [row.document_id for row in found]

    assert await names() == ["B.pdf", "a.pdf", "c.pdf", "d.txt"]
    assert await names(State.DONE) == ["a.pdf", "c.pdf", "d.txt"]
    assert await names(State.DONE, text="PDF") == ["a.pdf", "c.pdf"]
    assert await names(limit=2) == ["B.pdf", "a.pdf"]
    assert await names(limit=2, after="a.pdf") == ["c.pdf", "d.txt"]
    assert await names(State.HELD) == []


async def test_summaries_are_found_by_id_and_title(store: ServiceStore) -> None:
    rows = [summary_row("x/lease.pdf"), summary_row("y/other.pdf"), summary_row("z/gone.pdf", version=2)]
    title = replace(rows[1], summary=replace(rows[1].summary, title="The Größe of a lease"))  # type: ignore[type-var]
    await store.write(Rows(summaries=(rows[0], title, rows[2])))
    await store.write(Rows(summaries=(replace(rows[2], version=3, summary=None, state=State.SKIPPED),)))

    async def names(text: str, after: str = "", limit: int = 10) -> list[str]:
        return [row.document_id for row in await store.summaries_with(text, after, limit)]

    assert await names("") == ["x/lease.pdf", "y/other.pdf"]
    assert await names("LEASE") == ["x/lease.pdf", "y/other.pdf"]
    assert await names("größe") == ["y/other.pdf"]
    assert await names("", after="x/lease.pdf") == ["y/other.pdf"]
    assert await names("%' OR 1=1 --") == []


async def test_throughput_counts_each_document_once_where_it_ended(store: ServiceStore) -> None:
    run_id, minute = uuid4(), timedelta(minutes=1)
    begin = NOW.replace(second=0, microsecond=0) - 10 * minute
    at = [
        int((begin - NOW) / timedelta(milliseconds=1)) + seconds * 1_000 for seconds in (0, 30, 61, 62, 130)
    ]
    ends = [run_document(run_id, f"{ms}", State.DONE, ms) for ms in at[:4]]
    waits = run_document(run_id, "waiting", State.RETRYING, at[4])
    await store.write(Rows(run_documents=(*ends, waits)))
    found = await store.throughput(run_id, begin, minute)
    assert [(each.begins, each.ended) for each in found] == [(begin, 2), (begin + minute, 2)]
    assert [each.ended for each in await store.throughput(run_id, begin + minute, minute)] == [2]
    assert await store.throughput(uuid4(), begin, minute) == []


async def test_the_dearest_and_the_slowest_documents_of_a_run(store: ServiceStore) -> None:
    run_id = uuid4()

    def call(name: str, cost: str, latency_ms: int, of: UUID = run_id) -> None:
        store.keep(
            answer(uuid4().hex * 2, document_id=name, cost=Decimal(cost), latency_ms=latency_ms, run_id=of)
        )

    call("long", "0.10", 900)
    call("long", "0.20", 100)
    call("slow", "0.01", 5_000)
    call("other run", "9", 9_000, uuid4())
    await store.write(Rows(run_documents=(run_document(run_id, "long", State.DONE),)))
    dearest = await store.expensive(run_id, 10, slowest=False)
    assert [(each.document_id, each.calls, each.cost) for each in dearest] == [
        ("long", 2, Decimal("0.30")),
        ("slow", 1, Decimal("0.01")),
    ]
    slowest = await store.expensive(run_id, 1, slowest=True)
    assert [(each.document_id, each.latency) for each in slowest] == [("slow", timedelta(seconds=5))]
