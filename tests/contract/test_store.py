"""The port SummaryStore: one suite for the store in memory and the one on a real ClickHouse engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from random import Random
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from docsum.errors import RowRefused, StoreMisconfigured, StoreUnavailable
from docsum.models import (
    EPOCH,
    Answer,
    AtRisk,
    Batch,
    BatchItem,
    BatchState,
    Control,
    ControlState,
    Coordinates,
    CostBy,
    CostLine,
    Costs,
    DeadLetterRow,
    Death,
    DeliveryState,
    FailureRow,
    Known,
    Lane,
    OpenBatches,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    Scope,
    State,
    Summary,
    SummaryRow,
    Token,
    Traces,
    Usage,
    WebhookDelivery,
    WorkerStatus,
)
from docsum.ports import ServiceStore, SummaryStore
from docsum.settings import ClickHouse
from docsum.stores import migrate
from docsum.stores.clickhouse import ClickHouseStore
from docsum.stores.connection import connect
from docsum.stores.controls import Controls
from docsum.stores.memory import MemoryStore
from docsum.stores.tables import TABLES, Values
from tests.support.engine import Engine
from tests.support.waiting import eventually

pytest_plugins = ["tests.support.engine"]

NOW = datetime.now(UTC).replace(microsecond=123_000)  # the stores keep milliseconds
INTERVAL = timedelta(milliseconds=20)
_numbers = count()


def answer(fingerprint: str = "f" * 64, **fields: object) -> Answer:
    given_ = {
        "fingerprint": fingerprint,
        "request_id": f"msg_{next(_numbers)}",
        "model": "claude-haiku-5-5",
        "raw": '{"title": "Größe"}',
        "usage": Usage(1_200, 300, 7, 8),
        "cost": Decimal("0.002712345"),
        "price_version": "2026-10",
        "status": "ok",
        "answered_at": NOW,
        "latency_ms": 1_234,
        "document_id": "a.pdf",
    }
    return Answer(**{**given_, **fields})  # type: ignore[arg-type]  # a builder takes any field


def summary_row(document_id: str = "a.pdf", version: int = 1, **fields: object) -> SummaryRow:
    summary = Summary(
        title=f"Title {version}",
        summary="Größe: \U0001f4c4 'quoted'\n\nDROP TABLE summaries",
        key_points=("one", "zwei"),
        language="en",
        document_type="report",
        warnings=("a page is missing",),
        model="claude-haiku-5-5",
        recipe="0123456789abcdef",
        fingerprint="f" * 64,
        input_tokens=1_200,
        output_tokens=300,
        cost=Decimal("0.002712345"),
        reused=False,
    )
    given_ = {
        "document_id": document_id,
        "version": version,
        "state": State.DONE,
        "source_version": "etag-1",
        "uri": f"file:///{document_id}",
        "summary": summary,
        "attributes": {"team": "legal", "größe": "ü"},
        "run_id": uuid4(),
        "origin": Coordinates("docsum.backfill", 3, 2**40),
        "occurred_at": NOW,
        "written_at": NOW,
    }
    return SummaryRow(**{**given_, **fields})  # type: ignore[arg-type]  # a builder takes any field


def run_document(run_id: UUID, document_id: str, state: State, ms: int = 0) -> RunDocumentRow:
    written = NOW + timedelta(milliseconds=ms)
    return RunDocumentRow(run_id, document_id, state, f"file:///{document_id}", 1, "", "", written)


def a_run(**fields: object) -> Run:
    given_ = {
        "id": uuid4(),
        "name": "contracts",
        "source": "/srv/contracts",
        "recipe": Recipe("claude-haiku-5-5", instructions="Wer schuldet wem? \U0001f4b6"),
        "lane": Lane.BACKFILL,
        "state": RunState.PUBLISHED,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Run(**{**given_, **fields})  # type: ignore[arg-type]  # a builder takes any field


def dead_letter(offset: int, document_id: str, version: int, **fields: object) -> DeadLetterRow:
    given_ = {
        "origin": Coordinates("docsum.documents", 1, offset),
        "dead_letter": Coordinates("docsum.dlq", 1, 7),
        "document_id": document_id,
        "document_version": version,
        "run_id": None,
        "reason": "scanned",
        "message": "The pages are pictures without text.",
        "stage": "extract",
        "attempts": 4,
        "first_failed_at": NOW,
        "failed_at": NOW,
    }
    return DeadLetterRow(**{**given_, **fields})  # type: ignore[arg-type]  # a builder takes any field


@pytest.fixture
async def database(engine: Engine) -> ClickHouse:
    """A fresh database with all tables."""
    settings = engine.settings
    await migrate.setup(settings)
    return settings


@pytest.fixture
async def clickhouse(database: ClickHouse) -> AsyncIterator[ClickHouseStore]:
    async with ClickHouseStore(database, INTERVAL) as store:
        yield store


@pytest.fixture(params=["memory", "clickhouse"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SummaryStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    settings = request.getfixturevalue("engine").settings
    await migrate.setup(settings)
    async with ClickHouseStore(settings, INTERVAL) as opened:
        yield opened


async def ask(settings: ClickHouse, sql: str) -> list[Sequence[object]]:
    """What a reader with a SQL client sees."""
    client = await connect(settings, database=settings.database)
    try:
        return list((await client.query(sql)).result_rows)
    finally:
        await client.close()


async def command(settings: ClickHouse, sql: str) -> None:
    client = await connect(settings, database=settings.database)
    try:
        await client.command(sql)
    finally:
        await client.close()


# -- summaries ---------------------------------------------------------------------------------------------


async def test_nothing_is_known_of_a_new_document(store: SummaryStore) -> None:
    assert await store.known("new.pdf") is None
    assert await store.summary("new.pdf") is None
    assert list(await store.answers("0" * 64)) == []
    assert await store.run(uuid4()) is None
    assert list(await store.document_runs("new.pdf")) == []


async def test_a_summary_reads_back_as_it_was_written(store: SummaryStore) -> None:
    row = summary_row(version=(2**48 - 1) << 80 | 5)
    await store.write(Rows(summaries=(row,)))
    assert await store.summary("a.pdf") == row
    assert await store.known("a.pdf") == Known(row.version, State.DONE, "etag-1", "0123456789abcdef")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
async def test_the_newest_version_shows_whatever_came_first(
    store: SummaryStore, order: tuple[int, ...]
) -> None:
    for version in order:
        await store.write(Rows(summaries=(summary_row(version=version),)))
    found = await store.summary("a.pdf")
    assert found is not None and found.summary is not None and found.summary.title == "Title 3"


async def test_a_deleted_document_has_a_tombstone_until_it_comes_back(store: SummaryStore) -> None:
    await store.write(Rows(summaries=(summary_row(version=1),)))
    await store.write(Rows(summaries=(summary_row(version=2, summary=None, state=State.SKIPPED),)))
    assert await store.summary("a.pdf") is None
    assert await store.known("a.pdf") == Known(2, State.SKIPPED, "etag-1", "", deleted=True)
    await store.write(Rows(summaries=(summary_row(version=3),)))
    assert await store.summary("a.pdf") is not None


async def test_many_look_ups_at_once_get_each_their_own(store: SummaryStore) -> None:
    rows = tuple(summary_row(f"{n}.pdf", version=n + 1) for n in range(0, 1_200, 2))
    await store.write(Rows(summaries=rows))
    found = await asyncio.gather(*(store.known(f"{n}.pdf") for n in range(1_200)))
    assert [known.version if known else None for known in found] == [
        None if n % 2 else n + 1 for n in range(1_200)
    ]


# -- answers -----------------------------------------------------------------------------------------------


async def test_every_answer_to_a_request_is_kept_oldest_first(store: SummaryStore) -> None:
    late = answer(answered_at=NOW + timedelta(seconds=1), run_id=uuid4(), chunk=3, lane=Lane.BATCH)
    early = answer(status="truncated", detail="cut")
    other = answer("0" * 64)
    await store.write(Rows(answers=(late, early, other)))
    assert list(await store.answers("f" * 64)) == [early, late]


async def test_an_answer_that_is_kept_is_durable_when_a_later_write_returns(store: SummaryStore) -> None:
    kept = [answer() for _ in range(300)]
    for one in kept:
        store.keep(one)
    await store.write(Rows())
    assert {one.request_id for one in await store.answers("f" * 64)} == {one.request_id for one in kept}


async def test_an_answer_that_is_written_again_is_not_paid_again(store: SummaryStore) -> None:
    run_id = uuid4()
    once = answer(run_id=run_id)
    for _ in range(3):
        store.keep(once)
        await store.write(Rows(answers=(once,)))
    assert list(await store.answers(once.fingerprint)) == [once]
    assert (await store.progress(run_id)).cost == once.cost
    assert await store.spent(run_id) == await store.spent(None) == once.cost
    assert await store.paid_for("a.pdf") == await store.paid_for("a.pdf", run_id) == once.cost
    for found in (await store.costs(CostBy.DAY), await store.costs(CostBy.DAY, NOW, run_id)):
        assert (found.total.cost, found.total.calls) == (once.cost, 1)


# -- runs --------------------------------------------------------------------------------------------------


async def test_a_run_reads_back_and_its_newest_row_wins(store: SummaryStore) -> None:
    run = a_run(limit=10, force=True)
    newer = replace(
        run, state=RunState.INTERRUPTED, updated_at=NOW + timedelta(seconds=1), listed=9, unreadable=1
    )
    await store.save_run(run)
    assert await store.run(run.id) == run
    await store.save_run(newer)
    await store.save_run(run)
    assert await store.run(run.id) == newer


async def test_runs_are_listed_newest_first(store: SummaryStore) -> None:
    runs = [a_run(created_at=NOW + timedelta(seconds=n)) for n in range(3)]
    for run in runs:
        await store.save_run(run)
    assert list(await store.runs(limit=2)) == [runs[2], runs[1]]


async def test_a_publisher_that_has_been_silent_reads_as_interrupted(store: SummaryStore) -> None:
    silent = a_run(state=RunState.PUBLISHING, updated_at=NOW - timedelta(seconds=60))
    alive = a_run(state=RunState.PUBLISHING, updated_at=datetime.now(UTC).replace(microsecond=0))
    for run in (silent, alive):
        await store.save_run(run)
    assert await store.run(silent.id) == replace(silent, state=RunState.INTERRUPTED)
    assert await store.run(alive.id) == alive


async def test_progress_counts_every_document_once_and_all_money(store: SummaryStore) -> None:
    run_id, other = uuid4(), uuid4()
    states = [
        State.QUEUED,
        State.QUEUED,
        State.RETRYING,
        State.HELD,
        State.DONE,
        State.DEAD_LETTERED,
        State.SKIPPED,
        State.CANCELLED,
    ]
    documents = tuple(run_document(run_id, f"{n}.pdf", state) for n, state in enumerate(states))
    late = run_document(run_id, "4.pdf", State.RETRYING, ms=5_000)  # done stays done
    await store.write(Rows(run_documents=documents))
    await store.write(
        Rows(
            answers=(
                answer(run_id=run_id, cost=Decimal("0.1")),
                answer(run_id=run_id, cost=Decimal("0.02"), status="refused"),
                answer(run_id=other),
                answer(),
            ),
            run_documents=(*documents, late, run_document(other, "x.pdf", State.DONE)),
        )
    )
    progress = await store.progress(run_id)
    assert (progress.queued, progress.retrying, progress.held) == (2, 1, 1)
    assert (progress.done, progress.dead_lettered, progress.skipped, progress.cancelled) == (1, 1, 1, 1)
    assert (progress.remaining, progress.total, progress.cost) == (4, 8, Decimal("0.12"))
    assert await store.spent(run_id) == Decimal("0.12"), "also right after the write"
    assert abs(progress.as_of - datetime.now(UTC)) < timedelta(seconds=60)


async def test_progress_of_a_run_without_rows_is_zero(store: SummaryStore) -> None:
    progress = await store.progress(uuid4())
    assert (progress.total, progress.cost) == (0, Decimal(0))


async def test_the_publisher_learns_which_documents_have_a_row(store: SummaryStore) -> None:
    run_id = uuid4()
    ids = [f"docs/{n} ü'.pdf" for n in range(1_000)]
    await store.write(Rows(run_documents=tuple(run_document(run_id, one, State.QUEUED) for one in ids[::2])))
    assert await store.run_documents(run_id, ids) == frozenset(ids[::2])
    assert await store.run_documents(uuid4(), ids) == frozenset()


async def test_all_rows_of_a_run_come_with_their_summaries(store: SummaryStore) -> None:
    run_id = uuid4()
    ids = [f"{n:05}.pdf" for n in range(5_200)]  # more than one page
    await store.write(
        Rows(
            summaries=tuple(summary_row(one) for one in ids[:100]),
            run_documents=tuple(run_document(run_id, one, State.QUEUED) for one in ids),
        )
    )
    done = tuple(run_document(run_id, one, State.DONE, ms=1) for one in ids[:100])
    await store.write(Rows(run_documents=(*done, run_document(uuid4(), "x.pdf", State.DONE))))
    rows = [row async for row in store.run_rows(run_id)]
    assert [row.document_id for row, _ in rows] == ids
    assert [row.state for row, _ in rows] == [State.DONE] * 100 + [State.QUEUED] * 5_100
    assert [summary.document_id for _, summary in rows if summary] == ids[:100]


async def test_a_document_knows_the_runs_that_it_was_part_of(store: SummaryStore) -> None:
    rows = [run_document(uuid4(), "a.pdf", State.DONE, ms=n) for n in range(3)]
    await store.write(Rows(run_documents=(*rows, run_document(rows[0].run_id, "b.pdf", State.DONE))))
    assert list(await store.document_runs("a.pdf")) == rows[::-1]


async def test_a_worker_shows_its_newest_heartbeat(store: SummaryStore) -> None:
    beat = WorkerStatus("w-1", "host", 4711, Lane.LIVE, NOW, NOW)
    newer = replace(
        beat,
        beat_at=NOW + timedelta(seconds=5),
        partitions=("docsum.documents[0]",),
        in_flight=3,
        holds=("The provider asked us to slow down.",),
        breakers=("model m is out of order.",),
        gate="3 of 64 calls",
        cost_in_flight=Decimal("0.25"),
        at_risk=(AtRisk("extract", Coordinates("docsum.documents", 3, 2**40)),),
        alone=True,
        stopped=True,
    )
    other = replace(beat, worker="w-2")
    for status in (newer, beat, other):
        await store.beat(status)
    assert list(await store.workers()) == [newer, other]


async def test_an_open_batch_comes_back_with_its_items_and_never_goes_back_a_state(
    store: SummaryStore,
) -> None:
    run_id = uuid4()
    begun = Batch("0123456789ab", 3, BatchState.SUBMITTING, 2, NOW, NOW)
    item = BatchItem("f" * 64, "doc-1", 2**100, run_id, 3, "m", 900, 80, begun.intent, f"{begun.intent}-1")
    items = [item, replace(item, document_id="doc-2", custom_id=f"{begun.intent}-2")]
    await store.add_batch(begun, items)
    other = replace(begun, intent="aaaaaaaaaaaa", partition=4)
    await store.add_batch(other, [replace(item, intent=other.intent)])
    assert [(found, list(of)) for found, of in await store.open_batches({3, 7})] == [(begun, items)]
    # A former owner whose clock is behind says less than is known.
    known = replace(begun, state=BatchState.SUBMITTED, provider_id="msgbatch_1")
    await store.save_batch(known)
    await store.save_batch(replace(begun, changed_at=NOW + timedelta(minutes=1)))
    await store.save_batch(replace(begun, state=BatchState.ABANDONED, changed_at=NOW + timedelta(minutes=2)))
    assert [found for found, _ in await store.open_batches({3})] == [known]
    assert list(await store.open_batch_counts()) == [
        OpenBatches(BatchState.SUBMITTED, 1, begun.size, begun.created_at),
        OpenBatches(BatchState.SUBMITTING, 1, other.size, other.created_at),
    ]
    assert list(await store.open_batches({3}, {begun.intent})) == []
    assert await store.provider_batches(NOW) == {"msgbatch_1": begun.intent}
    assert await store.provider_batches(NOW + timedelta(seconds=1)) == {}
    ended = replace(
        known,
        state=BatchState.APPLIED,
        ended_at=NOW + timedelta(hours=2),
        succeeded=1,
        missing=1,
        cost=Decimal("0.000123"),
        detail="half a character \ud800".encode(errors="replace").decode(),
    )
    await store.save_batch(ended)
    assert list(await store.open_batches({3})) == []
    assert {found.intent for found in await store.batches(run_id)} == {ended.intent, other.intent}
    assert next(found for found in await store.batches() if found.intent == ended.intent) == ended
    assert list(await store.batches(uuid4())) == []


async def test_a_death_counts_once_whoever_finds_it(store: SummaryStore) -> None:
    work = AtRisk("extract", Coordinates("docsum.backfill", 1, 7))
    first = Death("w-1", NOW, NOW + timedelta(seconds=5), work, alone=False)
    second = replace(
        first, started_at=NOW + timedelta(seconds=9), died_at=NOW + timedelta(seconds=9), alone=True
    )
    for found in ((first,), (first, second), ()):
        await store.bury(found)
    assert list(await store.deaths(NOW)) == [first, second]
    assert list(await store.deaths(NOW + timedelta(seconds=6))) == [second]


# -- any order ---------------------------------------------------------------------------------------------

_EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # document
        st.sampled_from(list(State)),
        st.integers(1, 3),  # deliveries
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example has documents of its own
)
@given(events=_EVENTS, seed=st.integers(0, 2**32))
async def test_any_order_and_any_number_of_deliveries_end_the_same(
    store: SummaryStore, events: list[tuple[int, State, int]], seed: int
) -> None:
    run_id = uuid4()
    versions = [
        (
            summary_row(f"{run_id}/{document}", version, summary=None)
            if state is State.CANCELLED
            else summary_row(f"{run_id}/{document}", version),
            run_document(run_id, f"{run_id}/{document}", state, ms=version),
        )
        for version, (document, state, _) in enumerate(events, 1)
    ]
    deliveries = [version for version, event in zip(versions, events, strict=True) for _ in range(event[2])]
    chance = Random(seed)
    chance.shuffle(deliveries)
    while deliveries:
        batch = [deliveries.pop() for _ in range(min(len(deliveries), chance.randint(1, 6)))]
        await asyncio.gather(*(store.write(Rows(summaries=(s,), run_documents=(r,))) for s, r in batch))

    newest: Mapping[str, SummaryRow] = {summary.document_id: summary for summary, _ in versions}
    states: dict[str, RunDocumentRow] = {}
    for _, row in versions:
        if row.document_id not in states or row.version > states[row.document_id].version:
            states[row.document_id] = row
    found = {row.document_id: (row, summary) async for row, summary in store.run_rows(run_id)}
    assert found == {
        one: (states[one], newest[one] if newest[one].summary else None) for one in sorted(states)
    }


# -- money -------------------------------------------------------------------------------------------------


async def _ledger(store: SummaryStore, run_id: UUID) -> None:
    """Four answers of a run on one day, of which one came twice, and one live answer on the next."""
    cheap = answer("1" * 64, run_id=run_id, cost=Decimal("0.1"), document_id="a.pdf")
    answers = (
        cheap,
        cheap,
        answer("2" * 64, run_id=run_id, cost=Decimal("0.2"), document_id="b.pdf", status="truncated"),
        answer("2" * 64, run_id=run_id, cost=Decimal("0.4"), document_id="b.pdf"),
        answer("3" * 64, run_id=run_id, cost=Decimal("0.8"), document_id="c.pdf", status="refused"),
        answer(
            "4" * 64,
            cost=Decimal("10"),
            document_id="a.pdf",
            model="claude-opus-5",
            usage=Usage(1, 2, 3, 4),
            answered_at=NOW + timedelta(days=1),
        ),
    )
    for one in answers:
        await store.write(Rows(answers=(one,)))


async def test_the_money_is_counted_once_by_whatever_one_asks_for(store: SummaryStore) -> None:
    run_id = uuid4()
    await _ledger(store, run_id)
    today, tomorrow = NOW.date(), (NOW + timedelta(days=1)).date()
    keys = {
        CostBy.RUN: ["", str(run_id)],
        CostBy.MODEL: ["claude-opus-5", "claude-haiku-5-5"],
        CostBy.DAY: [str(today), str(tomorrow)],
        CostBy.REASON: ["ok", "refused", "truncated"],
    }
    for by, expected in keys.items():
        found = await store.costs(by)
        assert [line.key for line in found.lines] == expected
        assert sum(line.cost for line in found.lines) == found.total.cost == Decimal("11.5")
        assert sum(line.calls for line in found.lines) == found.total.calls == 5
        assert (found.total.documents, found.total.unusable) == (3, 2)
        assert found.total.usage == Usage(4 * 1_200 + 1, 4 * 300 + 2, 4 * 7 + 3, 4 * 8 + 4)
    of_run = (await store.costs(CostBy.RUN)).lines[1]
    assert of_run.statuses == {"ok": 2, "truncated": 1, "refused": 1}
    assert (of_run.documents, of_run.cost, of_run.per_document) == (3, Decimal("1.5"), Decimal("0.5"))


async def test_money_of_one_run_and_since_a_moment(store: SummaryStore) -> None:
    run_id = uuid4()
    await _ledger(store, run_id)
    later = NOW + timedelta(hours=1)
    assert (await store.costs(CostBy.MODEL, since=later)).total.cost == Decimal(10)
    assert (await store.costs(CostBy.MODEL, since=NOW)).total.calls == 5  # that very millisecond counts
    assert (await store.costs(CostBy.DAY, run_id=run_id)).total.cost == Decimal("1.5")
    for nothing in (
        await store.costs(CostBy.REASON, since=later, run_id=run_id),
        await store.costs(CostBy.RUN, run_id=uuid4()),
    ):
        assert nothing == Costs((), CostLine(""))


async def test_what_reuse_saved_is_the_price_of_the_answers_that_were_used(store: SummaryStore) -> None:
    run_id = uuid4()
    bought, again, carried = summary_row("a.pdf"), summary_row("b.pdf"), summary_row("c.pdf")
    assert bought.summary is not None
    reused = replace(bought.summary, reused=True, cost=Decimal(0))
    paid = answer(bought.summary.fingerprint, cost=Decimal("0.25"))
    await store.write(
        Rows(
            answers=(answer(bought.summary.fingerprint, cost=Decimal(1), status="truncated"), paid, paid),
            summaries=(
                bought,
                replace(again, summary=reused, run_id=run_id),
                replace(carried, summary=reused, state=State.SKIPPED),  # unchanged: nothing to be saved
                replace(summary_row("d.pdf"), summary=reused, written_at=NOW - timedelta(days=1)),
                summary_row("e.pdf", 1, summary=reused),
                summary_row("e.pdf", 2, summary=None),  # deleted
            ),
        )
    )
    everything = await store.costs(CostBy.MODEL)
    assert (everything.reused, everything.saved) == (2, Decimal("0.5"))
    for one in (await store.costs(CostBy.MODEL, NOW), await store.costs(CostBy.MODEL, run_id=run_id)):
        assert (one.reused, one.saved) == (1, Decimal("0.25"))


# -- taking a document's content away ----------------------------------------------------------------------

MARKER = "Marzipankartoffel"


def of(row: SummaryRow, **fields: object) -> SummaryRow:
    """The row with other fields of its summary."""
    assert row.summary is not None
    return replace(row, summary=replace(row.summary, **fields))  # type: ignore[arg-type]  # a builder


async def _telling(store: SummaryStore, run_id: UUID) -> None:
    """A document with two versions, a retry, a dead letter, answers of all kinds, and a neighbour."""
    words = {"title": MARKER, "summary": MARKER, "key_points": (MARKER,), "warnings": (MARKER,)}
    first = of(summary_row("a.pdf", 1, attributes={"k": MARKER}), **words, fingerprint="1" * 64)
    second = of(summary_row("a.pdf", 2, attributes={"k": MARKER}), **words, fingerprint="2" * 64)
    state = replace(run_document(run_id, "a.pdf", State.DEAD_LETTERED), message=MARKER)
    failure = FailureRow(NOW, "a.pdf", None, 1, "scanned", "extract", "retry", MARKER, "w-1")
    await store.write(
        Rows(
            answers=(
                answer("1" * 64, raw=MARKER, document_id="elsewhere.pdf"),  # bought for another, used here
                answer("2" * 64, raw=MARKER, status="truncated", detail=MARKER, run_id=run_id),
                answer("2" * 64, raw=MARKER, run_id=run_id),
                answer("3" * 64, raw=MARKER, chunk=7),  # a part of a long text
                answer("4" * 64, raw="", status="lost", detail=MARKER),
            ),
            summaries=(first,),
            run_documents=(state, run_document(run_id, "b.pdf", State.DONE)),
            dead_letters=(dead_letter(1, "a.pdf", 2, message=MARKER),),
            failures=(failure, replace(failure, document_id="b.pdf", message="Not about it.")),
        )
    )
    await store.write(Rows(summaries=(second, summary_row("b.pdf"))))


async def test_a_purge_takes_the_words_and_leaves_the_money(store: SummaryStore) -> None:
    run_id = uuid4()
    await _telling(store, run_id)
    before, neighbour = await store.costs(CostBy.REASON), await store.summary("b.pdf")
    paid = await store.paid_for("a.pdf", run_id)
    assert await store.traces("a.pdf") == Traces(summaries=2, answers=5, shared=0, messages=3)
    await store.write(Rows(summaries=(summary_row("a.pdf", 3, summary=None, attributes={}),)))
    await store.purge("a.pdf", 3)
    assert await store.traces("a.pdf") == Traces()
    for fingerprint in "1234":
        answers = await store.answers(fingerprint * 64)
        assert answers
        assert {(one.raw, one.detail) for one in answers} == {("", "")}
    assert await store.costs(CostBy.REASON) == before
    assert await store.spent(run_id) == await store.paid_for("a.pdf", run_id) == paid > 0
    assert (await store.progress(run_id)).cost == paid
    assert await store.summary("a.pdf") is None
    known = await store.known("a.pdf")
    assert known is not None and known.deleted
    assert [(row.state, row.message) for row in await store.document_runs("a.pdf")] == [
        (State.DEAD_LETTERED, "")
    ]
    assert neighbour is not None and await store.summary("b.pdf") == neighbour
    await store.purge("a.pdf", 3)  # again: nothing to do


async def test_an_answer_that_another_summary_stands_on_stays(store: SummaryStore) -> None:
    shared, alone = answer("1" * 64), answer("2" * 64)
    await store.write(
        Rows(
            answers=(shared, alone),
            summaries=(
                of(summary_row("a.pdf"), fingerprint="1" * 64),
                of(summary_row("b.pdf", 1), fingerprint="2" * 64),  # its newest version stands on the other
                of(summary_row("b.pdf", 2), fingerprint="1" * 64),
            ),
        )
    )
    assert await store.traces("a.pdf") == Traces(summaries=1, answers=1, shared=1)
    await store.write(Rows(summaries=(summary_row("a.pdf", 2, summary=None),)))
    await store.purge("a.pdf", 2)
    assert await store.answers("1" * 64) == [shared]
    assert await store.answers("2" * 64) == [replace(alone, raw="")]
    await store.write(Rows(summaries=(summary_row("b.pdf", 3, summary=None),)))
    await store.purge("b.pdf", 3)
    assert await store.answers("1" * 64) == [replace(shared, raw="")]


async def test_nothing_of_an_unknown_document_is_stored(store: SummaryStore) -> None:
    assert await store.traces("new.pdf") == Traces()
    await store.purge("new.pdf", 1)


# -- ClickHouse alone --------------------------------------------------------------------------------------


async def test_nouns_are_right_without_final(clickhouse: ClickHouseStore, database: ClickHouse) -> None:
    run_id = uuid4()
    paid = answer(run_id=run_id)
    for version in (1, 2, 2, 3):
        await clickhouse.write(
            Rows(
                answers=(paid,),
                summaries=(summary_row("a.pdf", version), summary_row("gone.pdf", version, summary=None)),
                run_documents=(run_document(run_id, "a.pdf", State.DONE, ms=version),),
            )
        )
    status = WorkerStatus("w-1", "host", 4711, Lane.LIVE, NOW, NOW)
    run = a_run()
    for _ in range(2):
        await clickhouse.save_run(run)
        await clickhouse.beat(status)
    for noun in ("answers", "summaries", "run_documents", "runs", "workers", "run_progress"):
        assert await ask(database, f"SELECT count() FROM {noun}") == [(1,)], noun
    assert await ask(database, "SELECT version FROM summaries") == [(3,)]
    assert await ask(
        database,
        "SELECT queued, retrying, held, done_count, failed_count, skipped_count, cancelled, remaining, cost "
        f"FROM run_progress WHERE run_id = '{run_id}'",
    ) == [(0, 0, 0, 1, 0, 0, 0, 0, paid.cost)]


async def test_a_dead_letter_is_resolved_by_a_summary_as_new(
    clickhouse: ClickHouseStore, database: ClickHouse
) -> None:
    await clickhouse.write(
        Rows(
            summaries=(summary_row("a.pdf", 5), summary_row("b.pdf", 4)),
            dead_letters=(
                dead_letter(1, "a.pdf", 5),
                dead_letter(2, "b.pdf", 5),
                dead_letter(3, "", 0, reason="invalid_event"),
                dead_letter(4, "a.pdf", 5, state="discarded"),
                dead_letter(5, "c.pdf", 1, replay_count=1),
                dead_letter(5, "c.pdf", 1, state="replayed"),
                dead_letter(6, "c.pdf", 1, state="replayed"),
                dead_letter(6, "c.pdf", 1),
            ),
            failures=(FailureRow(NOW, "a.pdf", None, 4, "scanned", "extract", "dead_letter", "…", "w-1"),),
        )
    )
    rows = await ask(database, "SELECT kafka_offset, state FROM dead_letters ORDER BY kafka_offset")
    assert [tuple(row) for row in rows] == [
        (1, "resolved"),
        (2, "open"),
        (3, "open"),
        (4, "discarded"),
        (5, "open"),
        (6, "replayed"),
    ]
    assert await ask(database, "SELECT reason, disposition FROM failures") == [("scanned", "dead_letter")]


async def test_after_a_purge_no_table_holds_the_words(
    clickhouse: ClickHouseStore, database: ClickHouse
) -> None:
    await _telling(clickhouse, uuid4())
    # Older tombstones carry attributes too.
    deleted = summary_row("a.pdf", 3, summary=None, attributes={"k": MARKER})
    await clickhouse.write(Rows(summaries=(deleted,)))
    assert await _tables_that_hold(MARKER, database) == {
        "answer_versions", "summary_versions", "run_document_versions", "dead_letter_versions", "failures",
    }  # fmt: skip
    await clickhouse.write(Rows(summaries=(summary_row("a.pdf", 4, summary=None, attributes={}),)))
    await clickhouse.purge("a.pdf", 4)
    assert await _tables_that_hold(MARKER, database) == set()
    assert await ask(database, "SELECT message FROM failures ORDER BY document_id") == [
        ("",), ("Not about it.",),
    ]  # fmt: skip
    assert await ask(database, "SELECT title FROM summaries") == [("Title 1",)]


async def _tables_that_hold(text: str, settings: ClickHouse) -> set[str]:
    """Every row of every table as text, merged or not."""
    tables = await ask(
        settings,
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'",
    )
    held = set()
    for (name,) in tables:
        ((count,),) = await ask(
            settings, f"SELECT count() FROM {name} WHERE position(toString(tuple(*)), '{text}') > 0"
        )
        if count:
            held.add(str(name))
    return held


async def test_many_answers_are_purged_in_parts(clickhouse: ClickHouseStore) -> None:
    answers = tuple(answer(f"{n:064}", raw=MARKER, chunk=n) for n in range(1_200))
    await clickhouse.write(Rows(answers=answers))
    assert await clickhouse.traces("a.pdf") == Traces(answers=1_200)
    await clickhouse.purge("a.pdf", 1)
    assert await clickhouse.traces("a.pdf") == Traces()


async def test_setup_may_run_again_and_satisfies_the_check(
    clickhouse: ClickHouseStore, database: ClickHouse
) -> None:
    assert await migrate.setup(database) == ()
    await clickhouse.check()


async def test_the_columns_that_we_write_are_the_columns_of_the_tables(database: ClickHouse) -> None:
    for table in TABLES:
        columns = await ask(database, f"DESCRIBE TABLE {table.name}")
        assert [column[0] for column in columns] == list(table.columns)


async def test_a_database_that_was_not_set_up_is_told_in_one_sentence(engine: Engine) -> None:
    settings = engine.settings
    with pytest.raises(StoreMisconfigured):
        async with ClickHouseStore(settings, INTERVAL) as store:
            await store.check()
    await command(settings.model_copy(update={"database": "default"}), f"CREATE DATABASE {settings.database}")
    async with ClickHouseStore(settings, INTERVAL) as store:
        with pytest.raises(StoreMisconfigured, match="has no tables yet: run `docsum setup store`"):
            await store.check()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("INSERT INTO schema_migrations VALUES (900, '900_future', 'x', now64(3))", "newer docsum"),
        ("INSERT INTO schema_migrations VALUES (1, '001_answers', 'x', now64(3))", "another text of 001"),
        ("ALTER TABLE schema_migrations DELETE WHERE version = 5 SETTINGS mutations_sync = 2", "lacks 005"),
        ("DROP TABLE failures", "UNKNOWN_TABLE"),
        ("DROP VIEW run_progress", "UNKNOWN_TABLE"),
        ("ALTER TABLE worker_versions DROP COLUMN holds", "holds"),
    ],
)
async def test_a_schema_that_is_not_ours_is_refused(
    clickhouse: ClickHouseStore, database: ClickHouse, change: str, sentence: str
) -> None:
    await command(database, change)
    with pytest.raises(StoreMisconfigured, match=sentence):
        await clickhouse.check()


async def test_half_characters_become_question_marks(clickhouse: ClickHouseStore) -> None:
    row = summary_row("half-\ud83d.pdf", attributes={"a": "\udc00"})
    await clickhouse.write(Rows(summaries=(row,)))
    found = await clickhouse.summary("half-\ud83d.pdf")
    assert found == replace(row, document_id="half-?.pdf", uri="file:///half-?.pdf", attributes={"a": "?"})


async def test_a_row_that_cannot_be_written_fails_alone(clickhouse: ClickHouseStore) -> None:
    run_id = uuid4()
    rows = [run_document(run_id, f"{n}.pdf", State.DONE) for n in range(20)]
    rows[13] = replace(rows[13], attempt=70_000)
    outcomes = await asyncio.gather(
        *(clickhouse.write(Rows(run_documents=(row,))) for row in rows), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [RowRefused]
    assert isinstance(outcomes[13], RowRefused)
    assert (await clickhouse.progress(run_id)).done == 19


async def test_a_wrong_password_is_a_wrong_deployment(engine: Engine) -> None:
    settings = engine.settings.model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(StoreMisconfigured, match="516"):
        await migrate.setup(settings)


async def test_an_outage_is_waited_out_and_nothing_is_lost(own_engine: Engine) -> None:
    settings = own_engine.settings
    await migrate.setup(settings)
    run_id = uuid4()
    async with ClickHouseStore(settings, INTERVAL) as store:
        await store.write(Rows(summaries=(summary_row("before.pdf"),)))
        own_engine.kill()
        with pytest.raises(StoreUnavailable):
            await store.known("before.pdf")
        store.keep(answer(run_id=run_id))
        write = asyncio.create_task(store.write(Rows(summaries=(summary_row("during.pdf"),))))
        await eventually(lambda: store.unavailable_since is not None)
        assert not write.done()
        assert await store.drain(timedelta(milliseconds=50)) == 1
        own_engine.start()
        await write
        assert store.unavailable_since is None
        assert await store.drain(timedelta(seconds=5)) == 0
        assert await store.known("before.pdf") is not None
        assert await store.summary("during.pdf") is not None
        assert (await store.progress(run_id)).cost == answer().cost


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await connect(ClickHouse(url="http://127.0.0.1:9"), database=None)


# -- the money of ClickHouse -------------------------------------------------------------------------------


async def _fill(settings: ClickHouse, runs: int, calls: int) -> None:
    """A run a day, numbered, the last one today; a tenth of a dollar a call, and every call came twice."""
    for _ in range(2):
        await command(
            settings,
            f"""INSERT INTO answer_versions (fingerprint, request_id, model, raw, cost, status, answered_at,
                document_id, run_id, lane)
            SELECT hex(SHA256(toString(number))), concat('msg_', toString(number)), 'm', 'raw',
                toDecimal64(0.1, 9), 'ok', now64(3) - toIntervalDay({runs} - 1 - intDiv(number, {calls})),
                concat(toString(number), '.pdf'),
                toUUID(concat('00000000-0000-0000-0000-',
                              leftPad(lower(hex(intDiv(number, {calls}))), 12, '0'))), 'backfill'
            FROM numbers({runs * calls}) SETTINGS insert_deduplicate = 0""",
        )


async def _money(store: ClickHouseStore, run_id: UUID) -> list[Decimal]:
    """One run of `_fill`, by all who know it."""
    return [
        await store.spent(run_id),
        await store.spent(run_id, NOW - timedelta(days=9_000)),
        (await store.progress(run_id)).cost,
        (await store.costs(CostBy.MODEL, run_id=run_id)).total.cost,
    ]


async def test_questions_about_money_read_a_part_of_the_ledger(
    clickhouse: ClickHouseStore, database: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(database, runs=20, calls=4_000)
    yesterday = datetime.now(UTC) - timedelta(hours=12)
    plans: list[str] = []
    plain = clickhouse._query

    async def explained(sql: str, **parameters: object) -> Sequence[Values]:
        if "summary_versions" not in sql:  # that one is of what was saved
            plan = await plain(f"EXPLAIN indexes = 1 {sql}", **parameters)
            plans.append("\n".join(line for (line,) in plan))
        return await plain(sql, **parameters)

    monkeypatch.setattr(clickhouse, "_query", explained)
    run_id = UUID(int=7)
    expected = [
        (await Controls(explained).spent(run_id, EPOCH), Decimal(400)),
        (await Controls(explained).spent(None, yesterday), Decimal(400)),
        ((await clickhouse.progress(run_id)).cost, Decimal(400)),
        (await clickhouse.paid_for("77.pdf"), Decimal("0.1")),
        (await clickhouse.paid_for("28077.pdf", run_id), Decimal("0.1")),
        ((await clickhouse.costs(CostBy.DAY, yesterday)).total.cost, Decimal(400)),
        ((await clickhouse.costs(CostBy.REASON, run_id=run_id)).total.cost, Decimal(400)),
    ]
    assert [found for found, _ in expected] == [right for _, right in expected]
    assert len(plans) == len(expected)
    for plan in plans:
        shares = [
            int(read) / int(held) for read, held in re.findall(r"Granules: (\d+)/(\d+)", plan) if int(held)
        ]
        assert shares and min(shares) < 0.2, plan


async def test_merges_change_no_sum(clickhouse: ClickHouseStore, database: ClickHouse) -> None:
    await command(database, "SYSTEM STOP MERGES answer_versions")
    await _fill(database, runs=3, calls=500)
    assert await ask(database, "SELECT count() FROM answer_versions") == [(3_000,)]
    before = await _money(clickhouse, UUID(int=1))
    await command(database, "SYSTEM START MERGES answer_versions")
    await command(database, "OPTIMIZE TABLE answer_versions FINAL")
    assert await ask(database, "SELECT count() FROM answer_versions") == [(1_500,)]
    assert before == [Decimal(50)] * 4
    async with ClickHouseStore(database, INTERVAL) as afterwards:  # remembers no sum
        assert await _money(afterwards, UUID(int=1)) == before
        assert await afterwards.spent(None) == Decimal(150)


@pytest.mark.parametrize("statements_before_a_kill", [0, 2, 3, 4, 5])
async def test_an_old_ledger_comes_along(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, statements_before_a_kill: int
) -> None:
    settings = engine.settings
    every = migrate.migrations()
    with monkeypatch.context() as past:
        past.setattr(migrate, "migrations", lambda: tuple(one for one in every if one.version < 10))
        await migrate.setup(settings)
    await _fill(settings, runs=20, calls=300)
    async with ClickHouseStore(settings, INTERVAL) as store:
        with pytest.raises(StoreMisconfigured, match="lacks 010_money"):
            await store.check()
    (money,) = (one for one in every if one.version == 10)
    variables = {"engine": "", "on_cluster": "", "durability": ""}
    for statement in money.statements(variables)[:statements_before_a_kill]:
        await command(settings, statement)
    assert "010_money" in await migrate.setup(settings)
    async with ClickHouseStore(settings, INTERVAL) as store:
        await store.check()
        assert await _money(store, UUID(int=3)) == [Decimal(30)] * 4, "while it is still being made"
        await store.write(Rows(answers=(answer(run_id=UUID(int=3), cost=Decimal(1)),)))
    without = "SELECT count() FROM system.parts WHERE active AND table = 'answer_versions' " + (
        "AND database = currentDatabase() AND NOT has(projections, 'money')"
    )

    async def complete() -> bool:
        return await ask(settings, without) == [(0,)]

    await eventually(complete, within=30)
    async with ClickHouseStore(settings, INTERVAL) as store:
        assert await _money(store, UUID(int=3)) == [Decimal(31)] * 4
        assert await store.paid_for("77.pdf") == Decimal("0.1")


async def test_money_is_right_where_a_power_cut_has_emptied_the_projection(own_engine: Engine) -> None:
    """ClickHouse does not bring a projection to the disk before it acknowledges the rows (issue 111318)."""
    settings = own_engine.settings
    await migrate.setup(settings)
    await _fill(settings, runs=20, calls=1_000)
    own_engine.kill()
    files = [file for file in own_engine.directory.glob("**/money.proj/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"")
    own_engine.start()
    async with ClickHouseStore(settings, INTERVAL) as store:
        assert await _money(store, UUID(int=7)) == [Decimal(100)] * 4
        assert await store.spent(None, NOW - timedelta(hours=12)) == Decimal(100)
    broken = "SELECT count() > 0 FROM system.projection_parts WHERE active AND is_broken"
    await command(settings, "OPTIMIZE TABLE answer_versions FINAL")
    assert await ask(settings, broken) == [(False,)], "a merge makes it anew"
    async with ClickHouseStore(settings, INTERVAL) as store:
        assert await _money(store, UUID(int=7)) == [Decimal(100)] * 4


# -- what is wanted of runs ----------------------------------------------------------------------------------


async def test_a_wish_of_another_process_is_seen_at_once_by_whoever_asks_afresh(
    database: ClickHouse, clickhouse: ClickHouseStore
) -> None:
    run_id = uuid4()
    assert await clickhouse.control(run_id) == Control(run_id)
    cancelled = Control(run_id, ControlState.CANCELLED, "No more of it.", changed_at=NOW)
    async with ClickHouseStore(database, INTERVAL) as other:
        await other.save_control(cancelled)
    assert await clickhouse.control(run_id, fresh=True) == cancelled


async def test_nothing_is_wanted_of_a_run_until_somebody_asks_and_the_newest_wish_counts(
    store: SummaryStore,
) -> None:
    run = a_run()
    await store.save_run(run)
    assert await store.control(run.id) == Control(run.id)
    found = await store.run(run.id)
    assert found is not None and found.wanted is ControlState.RUNNING
    paused = Control(run.id, ControlState.PAUSED, "Größe", Decimal("5.25"), True, NOW)
    await store.save_control(paused)
    await store.save_control(Control(run.id, changed_at=NOW - timedelta(seconds=1)))
    assert await store.control(run.id) == paused
    found = await store.run(run.id)
    assert found is not None and found.control == paused
    assert [each.control for each in await store.runs(1_000) if each.id == run.id] == [paused]
    await store.save_run(replace(run, updated_at=NOW + timedelta(hours=1)))
    found = await store.run(run.id)
    assert found is not None and found.control == paused, "a publisher that goes on changes no wish"


async def test_what_was_spent_is_summed_by_run_and_since(store: SummaryStore) -> None:
    mine, other = uuid4(), uuid4()
    tomorrow = NOW + timedelta(days=30_000)
    for run_id, at in ((mine, NOW), (mine, tomorrow), (other, tomorrow)):
        store.keep(answer(uuid4().hex, run_id=run_id, cost=Decimal("0.25"), answered_at=at))
    await store.write(Rows())
    await store.write(Rows(run_documents=(run_document(mine, "a", State.DONE),)))  # returns after the answers
    assert await store.spent(mine) == Decimal("0.50")
    assert await store.spent(None, tomorrow) == Decimal("0.50")
    assert await store.spent(uuid4()) == 0


async def test_cancelling_ends_what_has_no_end_and_nothing_else(store: SummaryStore) -> None:
    run = uuid4()
    states = {
        "q": State.QUEUED,
        "r": State.RETRYING,
        "h": State.HELD,
        "d": State.DONE,
        "f": State.DEAD_LETTERED,
    }
    rows = tuple(run_document(run, name, state) for name, state in states.items())
    elsewhere = run_document(uuid4(), "q", State.QUEUED)
    await store.write(Rows(run_documents=(*rows, elsewhere)))
    await store.cancel_rest(run, "Ada's wish", NOW + timedelta(seconds=1))
    progress = await store.progress(run)
    assert (progress.cancelled, progress.done, progress.dead_lettered, progress.remaining) == (3, 1, 1, 0)
    assert (await store.progress(elsewhere.run_id)).queued == 1
    assert {row.message for row, _ in [each async for each in store.run_rows(run)]} == {"Ada's wish", ""}
    await store.write(Rows(run_documents=(run_document(run, "q", State.DONE, 9_000),)))
    assert (await store.progress(run)).done == 2, "what was paid for in time still counts"


# -- webhooks and tokens -------------------------------------------------------------------------------------


@pytest.fixture
async def tables(store: SummaryStore) -> ServiceStore:
    """What the API asks of both."""
    assert isinstance(store, MemoryStore | ClickHouseStore)
    return store


def webhook(**fields: object) -> WebhookDelivery:
    given_ = {
        "message_id": f"msg_{uuid4().hex}",
        "run_id": uuid4(),
        "event": "run.finished",
        "url": "https://receiver.example/größe?token=abc",
        "body": '{"type":"run.finished","name":"Größe \U0001f4c4"}',
        "created_at": NOW,
        "changed_at": NOW,
        "next_attempt_at": NOW,
    }
    return WebhookDelivery(**{**given_, **fields})  # type: ignore[arg-type]  # a builder takes any field


async def test_a_message_reads_back_and_its_newest_row_shows(tables: ServiceStore) -> None:
    pending = webhook()
    later = NOW + timedelta(seconds=3)
    delivered = replace(
        pending,
        state=DeliveryState.DELIVERED,
        attempts=10,
        answer="The receiver answered 200 (OK).",
        changed_at=later,
    )
    await tables.save_webhook_delivery(pending)
    assert await tables.webhook_deliveries(pending.run_id) == [pending]
    await tables.save_webhook_delivery(delivered)
    await tables.save_webhook_delivery(pending)  # by another process that has looked at the same moment
    assert await tables.webhook_deliveries(pending.run_id) == [delivered]
    assert not await tables.webhook_deliveries(pending.run_id, [DeliveryState.PENDING])
    assert not await tables.webhook_deliveries(uuid4())


async def test_messages_come_newest_first_by_run_and_state(tables: ServiceStore) -> None:
    run_id = uuid4()
    rows = [
        webhook(run_id=run_id, created_at=NOW + timedelta(seconds=number), state=state)
        for number, state in enumerate([DeliveryState.FAILED, DeliveryState.PENDING, DeliveryState.DISABLED])
    ]
    other = webhook(created_at=NOW + timedelta(seconds=9))
    for row in (*rows, other):
        await tables.save_webhook_delivery(row)
    assert await tables.webhook_deliveries(run_id) == rows[::-1]
    assert await tables.webhook_deliveries(run_id, limit=1) == [rows[2]]
    assert await tables.webhook_deliveries(states=[DeliveryState.PENDING]) == [other, rows[1]]
    assert await tables.webhook_deliveries(run_id, [DeliveryState.PENDING, DeliveryState.FAILED]) == [
        rows[1],
        rows[0],
    ]


async def test_what_is_due_comes_longest_due_first_and_few_for_one_host(tables: ServiceStore) -> None:
    def at(seconds: int, url: str, **fields: object) -> WebhookDelivery:
        return webhook(url=url, next_attempt_at=NOW + timedelta(seconds=seconds), **fields)

    slow = [at(number - 60, f"https://Slow.example:8443/{number}") for number in range(5)]
    quick = at(0, "http://quick.example/a")
    rows = [
        *slow[::-1],
        quick,
        at(1, "https://other.example/"),
        at(-99, "https://done.example/", state=DeliveryState.DELIVERED),
        at(-99, "https://gone.example/", state=DeliveryState.DISABLED),
        at(-99, "https://lost.example/", state=DeliveryState.FAILED),
    ]
    for row in rows:
        await tables.save_webhook_delivery(row)
    assert await tables.webhooks_due(NOW, 10, 2) == [slow[0], slow[1], quick]
    assert await tables.webhooks_due(NOW, 2, 1) == [slow[0], quick]
    assert await tables.webhooks_due(NOW - timedelta(hours=1), 10, 2) == []


async def test_runs_are_to_tell_until_they_are_told_of_their_end(tables: ServiceStore) -> None:
    run = a_run(webhook="https://receiver.example/", publisher="api", request="d" * 64)
    broken = a_run(webhook="https://receiver.example/", problem="Größe: it is no folder.")
    for each in (run, broken, a_run()):
        await tables.save_run(each)
    await tables.save_control(Control(run.id, ControlState.PAUSED, "Ada's wish", changed_at=NOW))

    async def to_tell() -> dict[UUID, Run]:
        return {each.id: each for each in await tables.runs_to_tell()}

    await tables.save_webhook_delivery(webhook(run_id=run.id, event="run.paused"))
    await tables.save_webhook_delivery(webhook(run_id=broken.id, event="run.failed"))
    found = await to_tell()
    assert found.keys() == {run.id, broken.id}, "a run that failed may be resumed"
    assert found[run.id].wanted is ControlState.PAUSED and found[run.id].webhook == run.webhook
    assert found[broken.id] == broken
    await tables.save_webhook_delivery(webhook(run_id=run.id))
    assert (await to_tell()).keys() == {broken.id}


async def test_tokens_read_back_by_name_and_the_newest_row_shows(tables: ServiceStore) -> None:
    ops = Token("ops", "a" * 64, frozenset(Scope), NOW, "Ada", changed_at=NOW)
    reports = Token("größe", "b" * 64, frozenset({Scope.READ}), NOW, "Ada", changed_at=NOW)
    assert await tables.tokens() == []
    await tables.save_token(ops)
    await tables.save_token(reports)
    assert await tables.tokens() == [reports, ops]
    revoked = replace(ops, revoked=True, changed_at=NOW + timedelta(seconds=1))
    await tables.save_token(revoked)
    await tables.save_token(ops)
    assert await tables.tokens() == [reports, revoked]
