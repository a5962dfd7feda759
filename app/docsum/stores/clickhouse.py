"""The store on ClickHouse: one async client, writes by group commit, look-ups by micro-batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import structlog
from clickhouse_connect.datatypes.base import ClickHouseType
from clickhouse_connect.datatypes.registry import get_from_name
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.insert import InsertContext
from clickhouse_connect.driver.transform import NativeTransform

from docsum.errors import RowRefused, StoreMisconfigured
from docsum.models import (
    EPOCH,
    Answer,
    AuditRow,
    Batch,
    BatchItem,
    Control,
    Coordinates,
    CostBy,
    Costs,
    Cursor,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterRow,
    Death,
    DeliveryState,
    DocumentCost,
    Known,
    OpenBatches,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    State,
    SummaryRow,
    Throughput,
    Token,
    Traces,
    WebhookDelivery,
    WorkerStatus,
)
from docsum.settings import ClickHouse
from docsum.stores import batches, costs, cursors, dead_letters, migrate, purge, service
from docsum.stores.connection import CUT_BODY, code_of, connect, translated
from docsum.stores.controls import Controls
from docsum.stores.group_commit import Flushed, GroupCommit
from docsum.stores.lookups import Lookup
from docsum.stores.tables import (
    ANSWERS,
    AUDIT,
    BATCH_ITEMS,
    BATCHES,
    CONTROLS,
    CURSORS,
    DEATHS,
    RUN_DOCUMENT_COLUMNS,
    RUNS,
    SUMMARY_COLUMNS,
    TOKENS,
    WEBHOOKS,
    WORKERS,
    Table,
    Values,
    answer_of,
    death_of,
    in_order,
    known_of,
    run_document_of,
    run_of,
    summary_row_of,
    utf8,
    worker_of,
)

log = structlog.get_logger(__name__)
R = TypeVar("R")

_RUN_AGE = 2.0  # seconds that a run is believed without asking again
_TOKEN_AGE = 2.0  # and the tokens
_PAGE = 5_000  # documents of a run that are read at once
_DEADLINE = 60.0  # seconds for one statement, whatever the socket does
_MUTATION = timedelta(minutes=15)  # to write the parts of a table anew that hold the rows in question
_CLOSE = timedelta(seconds=10)  # for what was handed over and not drained


def _select(columns: Iterable[str], rest: str) -> str:
    return f"SELECT {', '.join(columns)} {rest}"


# Look-ups read the versions themselves and keep the newest: with FINAL they would take five times as long.
# A page of a run is the other way round: FINAL in key order stops at the limit, LIMIT BY reads to the end.
_KNOWN = """SELECT document_id, max(version), argMax(state, version), argMax(source_version, version),
    argMax(recipe, version), argMax(is_deleted, version)
FROM summary_versions WHERE document_id IN {keys:Array(String)} GROUP BY document_id
SETTINGS max_threads = 1"""
_SUMMARY = _select(
    (*SUMMARY_COLUMNS, "is_deleted"),
    "FROM summary_versions WHERE document_id IN {keys:Array(String)} "
    "ORDER BY document_id, version DESC LIMIT 1 BY document_id SETTINGS max_threads = 1",
)
_ANSWERS = _select(
    ANSWERS.columns,
    "FROM answer_versions WHERE fingerprint IN {keys:Array(String)} "
    "ORDER BY answered_at, request_id LIMIT 1 BY fingerprint, request_id SETTINGS max_threads = 1",
)
_RUN = _select(RUNS.columns, "FROM runs WHERE run_id IN {keys:Array(UUID)}")
_RUN_LIST = _select(RUNS.columns, "FROM runs ORDER BY created_at DESC, run_id LIMIT {limit:UInt32}")
_PROGRESS = """SELECT run_id,
    queued, retrying, held, done_count, failed_count, skipped_count, cancelled, cost, as_of
FROM run_progress WHERE run_id IN {keys:Array(UUID)}"""
_RUN_IDS = """SELECT DISTINCT document_id FROM run_document_versions
WHERE run_id = {run_id:UUID} AND document_id IN {keys:Array(String)}"""
_RUN_PAGE = _select(
    RUN_DOCUMENT_COLUMNS,
    "FROM run_document_versions FINAL WHERE run_id = {run_id:UUID} AND document_id > {after:String} "
    "ORDER BY run_id, document_id LIMIT {limit:UInt32}",
)
_DOCUMENT_RUNS = _select(
    RUN_DOCUMENT_COLUMNS,
    "FROM run_documents WHERE document_id = {document_id:String} ORDER BY written_at DESC, run_id",
)
_WORKER_LIST = _select(WORKERS.columns, "FROM workers ORDER BY worker")
_DEATHS = _select(
    DEATHS.columns,
    "FROM worker_deaths WHERE died_at >= {since:DateTime64(3, 'UTC')} "
    "ORDER BY worker, started_at, stage, kafka_topic, kafka_partition, kafka_offset",
)
_AUDITS = _select(AUDIT.columns, "FROM audit ORDER BY at DESC LIMIT {limit:UInt32}")
_TYPES = """SELECT name, type FROM system.columns
WHERE database = currentDatabase() AND table = {table:String}"""


class ClickHouseStore:
    """The ports `SummaryStore`, `ServiceStore` and `CursorStore`.

    To be entered on the event loop that uses it; needs tables: see `check`.
    """

    def __init__(
        self, settings: ClickHouse, flush_interval: timedelta, flushed: Flushed | None = None
    ) -> None:
        """`flushed` hears of every insert of documents and answers."""
        self._settings = settings
        self._flushed = flushed
        self._interval = flush_interval
        self._known: Lookup[Known | None] = Lookup(self._ask_known, None)
        self._summaries: Lookup[SummaryRow | None] = Lookup(self._ask_summaries, None)
        self._answers: Lookup[Sequence[Answer]] = Lookup(self._ask_answers, ())
        self._runs: Lookup[Run | None] = Lookup(self._ask_runs, None)
        self._progress: Lookup[RunProgress | None] = Lookup(self._ask_progress, None)
        self._recent_runs: dict[UUID, tuple[float, Run | None]] = {}
        self._controls = Controls(self._query)
        self._recent_tokens: tuple[float, Sequence[Token]] = (0.0, ())
        self._types: dict[str, Sequence[ClickHouseType]] = {}

    async def __aenter__(self) -> Self:
        """Raises StoreUnavailable or StoreMisconfigured."""
        self._client: AsyncClient = await connect(self._settings, database=self._settings.database)
        self._commits = GroupCommit(self._insert, interval=self._interval, flushed=self._flushed)
        self._flusher = asyncio.create_task(self._commits.run(), name="store-flusher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unstored = await self.drain(_CLOSE)
        self._commits.close()
        self._flusher.cancel()
        with suppress(asyncio.CancelledError):
            await self._flusher
        for lookup in (self._known, self._summaries, self._answers, self._runs, self._progress):
            lookup.close()
        await self._client.close()
        if unstored:
            log.error("answers_not_stored", action="store", answers=unstored)

    async def check(self) -> None:
        """Raises StoreMisconfigured with one sentence where tables or grants are missing or foreign."""
        await migrate.check(self._client)

    # -- writing -------------------------------------------------------------------------------------------

    @property
    def unavailable_since(self) -> datetime | None:
        """Since when rows could not be stored; None while all is well."""
        return self._commits.unavailable_since

    @property
    def buffered_rows(self) -> int:
        """Documents and answers that were handed over and are not stored yet."""
        return self._commits.buffered_rows

    async def flushing(self) -> None:
        """Goes on until the store is closed. Raises what has ended it: every write would wait for ever."""
        await asyncio.shield(self._flusher)

    async def write(self, rows: Rows) -> None:
        await self._commits.write(rows)

    def keep(self, answer: Answer) -> None:
        self._commits.keep(answer)

    async def drain(self, timeout: timedelta) -> int:
        """Store what was handed over. Returns how many answers are not stored when the time is up."""
        return await self._commits.drain(timeout)

    async def save_run(self, run: Run) -> None:
        await self._insert_rows(RUNS, (run,), uuid4().hex)
        self._recent_runs.pop(run.id, None)

    async def save_control(self, control: Control) -> None:
        await self._insert_rows(CONTROLS, (control,), uuid4().hex)
        self._controls.forget()

    async def cancel_rest(self, run_id: UUID, reason: str, at: datetime) -> None:
        await self._controls.cancel_rest(run_id, reason, at)

    async def audit(self, row: AuditRow) -> None:
        await self._insert_rows(AUDIT, (row,), uuid4().hex)

    async def beat(self, status: WorkerStatus) -> None:
        await self._insert_rows(WORKERS, (status,), uuid4().hex)

    async def purge(self, document_id: str, version: int) -> None:
        """Needs the grants ALTER UPDATE and ALTER DELETE, which no worker needs."""
        cluster = migrate.on_cluster(self._settings.cluster)
        await purge.purge(self._query, self._mutate, cluster, utf8(document_id), version)

    async def _mutate(self, sql: str, parameters: Mapping[str, object]) -> None:
        """To its end on every replica. By a client of its own: the server is silent meanwhile."""
        client = await connect(self._settings, database=self._settings.database, patience=_MUTATION)
        to_the_end = {"mutations_sync": 2, "max_execution_time": 0}
        try:
            with translated():
                async with asyncio.timeout(_MUTATION.total_seconds()):
                    await client.command(sql, parameters=dict(parameters), settings=to_the_end)
        finally:
            await client.close()

    async def _insert(self, rows: Rows, token: str) -> None:
        for table, part in in_order(rows):
            await self._insert_rows(table, part, token)

    async def _insert_rows(self, table: Table[R], rows: Sequence[R], token: str) -> None:
        block = _native_block(table, rows, await self._types_of(table), self._client.write_compression)
        try:
            await self._send(block, token)
        except RowRefused as refused:
            if code_of(refused) != CUT_BODY:
                raise
            await self._send(block, token)

    async def _send(self, block: bytes, token: str) -> None:
        with translated():
            async with asyncio.timeout(_DEADLINE):
                await self._client.raw_insert(
                    insert_block=block,
                    compression=self._client.write_compression,
                    settings={"insert_deduplication_token": token},
                )

    async def _types_of(self, table: Table[Any]) -> Sequence[ClickHouseType]:  # Any: of any row type
        """The column types as the server has them, asked for once."""
        if table.name not in self._types:
            types: dict[str, str] = dict(await self._query(_TYPES, table=table.name))
            missing = [column for column in table.columns if column not in types]
            if missing:
                raise StoreMisconfigured(
                    f"The table {self._client.database}.{table.name} has no column {missing[0]}: "
                    "run `docsum setup store`."
                )
            self._types[table.name] = [get_from_name(types[column]) for column in table.columns]
        return self._types[table.name]

    # -- reading -------------------------------------------------------------------------------------------

    async def known(self, document_id: str) -> Known | None:
        return await self._known(utf8(document_id))

    async def summary(self, document_id: str) -> SummaryRow | None:
        return await self._summaries(utf8(document_id))

    async def answers(self, fingerprint: str) -> Sequence[Answer]:
        return await self._answers(fingerprint)

    async def run(self, run_id: UUID) -> Run | None:
        until, run = self._recent_runs.get(run_id, (0.0, None))
        if until < time.monotonic():
            run = await self._runs(str(run_id))
            if run is not None:
                self._recent_runs[run_id] = (time.monotonic() + _RUN_AGE, run)
        return None if run is None else replace(run, control=await self._controls.of(run_id))

    async def runs(self, limit: int = 50) -> Sequence[Run]:
        return await self._controlled(
            [run_of(values) for values in await self._query(_RUN_LIST, limit=limit)]
        )

    async def control(self, target: UUID, *, fresh: bool = False) -> Control:
        if fresh:
            self._controls.forget()
        return await self._controls.of(target) or Control(target)

    async def controls(self) -> Sequence[Control]:
        return await self._controls.all()

    async def spent(self, run_id: UUID | None, since: datetime = EPOCH) -> Decimal:
        return await self._controls.spent(run_id, since)

    async def progress(self, run_id: UUID) -> RunProgress:
        found = await self._progress(str(run_id))
        return found or RunProgress(run_id, as_of=datetime.now(UTC))

    async def run_documents(self, run_id: UUID, document_ids: Sequence[str]) -> frozenset[str]:
        given = {utf8(document_id): document_id for document_id in document_ids}
        found = await self._query(_RUN_IDS, run_id=run_id, keys=list(given))
        return frozenset(given[values[0]] for values in found)

    async def run_rows(self, run_id: UUID) -> AsyncIterator[tuple[RunDocumentRow, SummaryRow | None]]:
        """By document id, a page at a time: no connection stays open and no memory grows, here or there."""
        after = ""
        while True:
            page = await self._query(_RUN_PAGE, run_id=run_id, after=after, limit=_PAGE)
            rows = [run_document_of(values) for values in page]
            summaries = await self._ask_summaries([row.document_id for row in rows]) if rows else {}
            for row in rows:
                yield row, summaries.get(row.document_id)
            if len(rows) < _PAGE:
                return
            after = rows[-1].document_id

    async def document_runs(self, document_id: str) -> Sequence[RunDocumentRow]:
        found = await self._query(_DOCUMENT_RUNS, document_id=utf8(document_id))
        return [run_document_of(values) for values in found]

    async def workers(self) -> Sequence[WorkerStatus]:
        return [worker_of(values) for values in await self._query(_WORKER_LIST)]

    async def add_batch(self, batch: Batch, items: Sequence[BatchItem]) -> None:
        await self._insert_rows(BATCH_ITEMS, items, uuid4().hex)
        await self.save_batch(batch)

    async def save_batch(self, batch: Batch) -> None:
        await self._insert_rows(BATCHES, (batch,), uuid4().hex)

    async def open_batches(
        self, partitions: Collection[int], known: Collection[str] = ()
    ) -> Sequence[tuple[Batch, Sequence[BatchItem]]]:
        return await batches.open_of(self._query, partitions, known)

    async def provider_batches(self, since: datetime) -> Mapping[str, str]:
        return await batches.provider_ids(self._query, since)

    async def batches(self, run_id: UUID | None = None, limit: int = 50) -> Sequence[Batch]:
        return await batches.newest(self._query, run_id, limit)

    async def open_batch_counts(self) -> Sequence[OpenBatches]:
        return await batches.counts(self._query)

    async def bury(self, deaths: Sequence[Death]) -> None:
        if deaths:
            await self._insert_rows(DEATHS, deaths, uuid4().hex)

    async def deaths(self, since: datetime) -> Sequence[Death]:
        return [death_of(values) for values in await self._query(_DEATHS, since=since)]

    async def dead_letter_groups(self, meant: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        return await dead_letters.groups(self._query, meant)

    async def newest_dead_letters(self, meant: DeadLetterFilter, limit: int) -> Sequence[DeadLetterRow]:
        return await dead_letters.newest(self._query, meant, limit)

    async def dead_letters(
        self, meant: DeadLetterFilter, after: Coordinates | None, limit: int
    ) -> Sequence[DeadLetterRow]:
        return await dead_letters.page(self._query, meant, after, limit)

    async def audits(self, limit: int = 50) -> Sequence[AuditRow]:
        return [AuditRow(*values) for values in await self._query(_AUDITS, limit=limit)]

    async def costs(self, by: CostBy, since: datetime | None = None, run_id: UUID | None = None) -> Costs:
        return await costs.costs(self._query, by, since, run_id)

    async def paid_for(self, document_id: str, run_id: UUID | None = None) -> Decimal:
        return await costs.paid_for(self._query, utf8(document_id), run_id)

    async def traces(self, document_id: str) -> Traces:
        return await purge.traces(self._query, utf8(document_id))

    # -- for the API ---------------------------------------------------------------------------------------

    async def runs_before(self, before: tuple[datetime, UUID] | None, limit: int) -> Sequence[Run]:
        return await self._controlled(await service.runs_before(self._query, before, limit))

    async def unpublished(self, publisher: str) -> Sequence[Run]:
        return await self._controlled(await service.unpublished(self._query, publisher))

    async def runs_to_tell(self) -> Sequence[Run]:
        return await self._controlled(await service.runs_to_tell(self._query))

    async def _controlled(self, runs: Sequence[Run]) -> Sequence[Run]:
        return [replace(run, control=await self._controls.of(run.id)) for run in runs]

    async def documents_of(
        self,
        run_id: UUID,
        states: Collection[State] = (),
        *,
        text: str = "",
        after: str = "",
        limit: int = 100,
    ) -> Sequence[RunDocumentRow]:
        return await service.documents_of(
            self._query, run_id, states=states, text=text, after=after, limit=limit
        )

    async def summaries_with(self, text: str, after: str, limit: int) -> Sequence[SummaryRow]:
        return await service.summaries_with(self._query, text, after, limit)

    async def throughput(self, run_id: UUID, since: datetime, step: timedelta) -> Sequence[Throughput]:
        return await service.throughput(self._query, run_id, since, step)

    async def expensive(self, run_id: UUID, limit: int, *, slowest: bool) -> Sequence[DocumentCost]:
        return await service.expensive(self._query, run_id, limit, slowest=slowest)

    async def tokens(self) -> Sequence[Token]:
        until, tokens = self._recent_tokens
        if until < time.monotonic():
            tokens = await service.tokens(self._query)
            self._recent_tokens = (time.monotonic() + _TOKEN_AGE, tokens)
        return tokens

    async def save_token(self, token: Token) -> None:
        await self._insert_rows(TOKENS, (token,), uuid4().hex)
        self._recent_tokens = (0.0, ())

    async def webhook_deliveries(
        self, run_id: UUID | None = None, states: Collection[DeliveryState] = (), limit: int = 100
    ) -> Sequence[WebhookDelivery]:
        return await service.webhook_deliveries(self._query, run_id, states, limit)

    async def webhooks_due(self, now: datetime, limit: int, to_one_host: int) -> Sequence[WebhookDelivery]:
        return await service.webhooks_due(self._query, now, limit, to_one_host)

    async def save_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        await self._insert_rows(WEBHOOKS, (delivery,), uuid4().hex)

    # -- for `docsum ingest` -------------------------------------------------------------------------------

    async def cursors(self, source: str, document_ids: Sequence[str]) -> Mapping[str, Cursor]:
        return await cursors.of(self._query, source, document_ids)

    async def save_cursors(self, rows: Sequence[Cursor]) -> None:
        if rows:
            await self._insert_rows(CURSORS, rows, uuid4().hex)

    async def count_cursors(self, source: str, before: int | None = None, *, within: str = "") -> int:
        return await cursors.count(self._query, source, before, within)

    async def cursors_before(
        self, source: str, before: int, after: str, limit: int, *, within: str = ""
    ) -> Sequence[Cursor]:
        return await cursors.page(self._query, source, before, after, limit, within=within)

    async def _ask_known(self, keys: Sequence[str]) -> Mapping[str, Known]:
        return {values[0]: known_of(values[1:]) for values in await self._query(_KNOWN, keys=keys)}

    async def _ask_summaries(self, keys: Sequence[str]) -> Mapping[str, SummaryRow]:
        found = await self._query(_SUMMARY, keys=keys)
        return {values[0]: summary_row_of(values) for values in found if not values[-1]}

    async def _ask_answers(self, keys: Sequence[str]) -> Mapping[str, Sequence[Answer]]:
        answers: dict[str, list[Answer]] = {}
        for values in await self._query(_ANSWERS, keys=keys):
            answers.setdefault(values[0], []).append(answer_of(values))
        return answers

    async def _ask_progress(self, keys: Sequence[str]) -> Mapping[str, RunProgress]:
        found = await self._query(_PROGRESS, keys=list(keys))
        return {str(values[0]): RunProgress(*values) for values in found}

    async def _ask_runs(self, keys: Sequence[str]) -> Mapping[str, Run]:
        return {str(values[0]): run_of(values) for values in await self._query(_RUN, keys=keys)}

    async def _query(self, sql: str, **parameters: object) -> Sequence[Values]:
        with translated():
            async with asyncio.timeout(_DEADLINE):
                result = await self._client.query(sql, parameters=parameters)
        return [tuple(row) for row in result.result_rows]


def _native_block(
    table: Table[R], rows: Sequence[R], types: Sequence[ClickHouseType], compression: str | None
) -> bytes:
    """The whole INSERT as bytes. A value that cannot be written is found before anything is sent.

    The client's own `insert` does the same in a thread with a queue, for a quarter more time.
    """
    context = InsertContext(
        table.name,
        table.columns,
        types,
        table.columnar(rows),
        column_oriented=True,
        compression=compression or False,
    )
    try:
        block = b"".join(NativeTransform.build_insert(context))
        if context.insert_exception is not None:
            raise context.insert_exception
    except Exception as error:  # whatever it is: one row must not stop the flushes of all others
        raise RowRefused(f"A value of {table.name} cannot be written: {type(error).__name__}.") from error
    return block
