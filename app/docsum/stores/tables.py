"""The tables as rows of values, in both directions. Pure: nothing here talks to a server.

The names are the contract with `migrations/`; the types are read from the server, so that they have one home.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from docsum.models import (
    Answer,
    AtRisk,
    AuditRow,
    Batch,
    BatchItem,
    BatchState,
    Control,
    ControlState,
    Coordinates,
    Cursor,
    DeadLetterRow,
    Death,
    DeliveryState,
    FailureRow,
    Known,
    Lane,
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
    Usage,
    WebhookDelivery,
    WorkerStatus,
    to_ms,
)

R = TypeVar("R")
Values = tuple[Any, ...]  # Any: a row as the client library takes and gives it


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """A table that is written to: its columns, and how one row becomes their values."""

    name: str
    columns: tuple[str, ...]
    values: Callable[[R], Values]

    def columnar(self, rows: Sequence[R]) -> list[Values]:
        """Column by column, as the wire has it. `rows` must not be empty."""
        return list(zip(*map(self.values, rows), strict=True))


def utf8(text: str) -> str:
    """The text as UTF-8 can carry it: lone surrogates, which JSON may hold, become question marks."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _utf8s(texts: Sequence[str]) -> list[str]:
    return [utf8(text) for text in texts]


# -- answers -----------------------------------------------------------------------------------------------


def _answer_values(answer: Answer) -> Values:
    usage = answer.usage
    return (
        answer.fingerprint,
        utf8(answer.request_id),
        utf8(answer.model),
        utf8(answer.raw),
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        answer.cost,
        answer.price_version,
        answer.status,
        answer.answered_at,
        answer.latency_ms,
        utf8(answer.document_id),
        answer.run_id,
        answer.chunk,
        answer.lane.value,
        utf8(answer.detail),
    )


ANSWERS = Table(
    "answer_versions",
    (
        "fingerprint",
        "request_id",
        "model",
        "raw",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cost",
        "price_version",
        "status",
        "answered_at",
        "latency_ms",
        "document_id",
        "run_id",
        "chunk",
        "lane",
        "detail",
    ),
    _answer_values,
)


def answer_of(values: Values) -> Answer:
    """The answer that a row of `ANSWERS.columns` is."""
    return Answer(
        fingerprint=values[0],
        request_id=values[1],
        model=values[2],
        raw=values[3],
        usage=Usage(*values[4:8]),
        cost=values[8],
        price_version=values[9],
        status=values[10],
        answered_at=values[11],
        latency_ms=values[12],
        document_id=values[13],
        run_id=values[14],
        chunk=values[15],
        lane=Lane(values[16]),
        detail=values[17],
    )


# -- summaries ---------------------------------------------------------------------------------------------

_TOMBSTONE = Summary("", "", (), "", "", (), "", "")


def _summary_values(row: SummaryRow) -> Values:
    summary = row.summary or _TOMBSTONE
    origin = row.origin
    return (
        utf8(row.document_id),
        row.version,
        int(row.summary is None),
        row.state.value,
        utf8(row.source_version),
        utf8(row.uri),
        utf8(summary.title),
        utf8(summary.summary),
        _utf8s(summary.key_points),
        utf8(summary.language),
        utf8(summary.document_type),
        _utf8s(summary.warnings),
        utf8(summary.model),
        summary.recipe,
        summary.fingerprint,
        summary.input_tokens,
        summary.output_tokens,
        summary.cost,
        summary.reused,
        summary.chunks,
        summary.coverage,
        summary.truncated,
        {utf8(name): utf8(value) for name, value in row.attributes.items()},
        row.run_id,
        origin.topic,
        origin.partition,
        origin.offset,
        row.occurred_at,
        row.written_at,
    )


SUMMARIES = Table(
    "summary_versions",
    (
        "document_id",
        "version",
        "is_deleted",
        "state",
        "source_version",
        "uri",
        "title",
        "summary",
        "key_points",
        "language",
        "document_type",
        "warnings",
        "model",
        "recipe",
        "fingerprint",
        "input_tokens",
        "output_tokens",
        "cost",
        "reused",
        "chunks",
        "coverage",
        "truncated",
        "attributes",
        "run_id",
        "kafka_topic",
        "kafka_partition",
        "kafka_offset",
        "occurred_at",
        "written_at",
    ),
    _summary_values,
)

#: What is read back from the view `summaries`: it has no tombstones.
SUMMARY_COLUMNS = tuple(name for name in SUMMARIES.columns if name != "is_deleted")


def summary_row_of(values: Values) -> SummaryRow:
    """The row that a row of `SUMMARY_COLUMNS` is."""
    return SummaryRow(
        document_id=values[0],
        version=values[1],
        state=State(values[2]),
        source_version=values[3],
        uri=values[4],
        summary=Summary(
            title=values[5],
            summary=values[6],
            key_points=tuple(values[7]),
            language=values[8],
            document_type=values[9],
            warnings=tuple(values[10]),
            model=values[11],
            recipe=values[12],
            fingerprint=values[13],
            input_tokens=values[14],
            output_tokens=values[15],
            cost=values[16],
            reused=values[17],
            chunks=values[18],
            coverage=values[19],
            truncated=values[20],
        ),
        attributes=values[21],
        run_id=values[22],
        origin=Coordinates(*values[23:26]),
        occurred_at=values[26],
        written_at=values[27],
    )


def known_of(values: Values) -> Known:
    """From version, state, source_version, recipe, is_deleted."""
    version, state, source_version, recipe, deleted = values
    return Known(version, State(state), source_version, recipe, bool(deleted))


# -- run documents -----------------------------------------------------------------------------------------


def _run_document_values(row: RunDocumentRow) -> Values:
    return (
        row.run_id,
        utf8(row.document_id),
        row.state.value,
        utf8(row.uri),
        row.attempt,
        row.reason,
        utf8(row.message),
        row.written_at,
        row.version,
    )


RUN_DOCUMENTS = Table(
    "run_document_versions",
    (
        "run_id",
        "document_id",
        "state",
        "uri",
        "attempt",
        "reason",
        "message",
        "written_at",
        "version",
    ),
    _run_document_values,
)

#: What is read back from the view `run_documents`.
RUN_DOCUMENT_COLUMNS = RUN_DOCUMENTS.columns[:-1]


def run_document_of(values: Values) -> RunDocumentRow:
    """The row that a row of `RUN_DOCUMENT_COLUMNS` is."""
    run_id, document_id, state, *others = values
    return RunDocumentRow(run_id, document_id, State(state), *others)


# -- dead letters and failures -----------------------------------------------------------------------------


def _dead_letter_values(row: DeadLetterRow) -> Values:
    origin, copy = row.origin, row.dead_letter
    return (
        origin.topic,
        origin.partition,
        origin.offset,
        copy.topic,
        copy.partition,
        copy.offset,
        utf8(row.document_id),
        row.document_version,
        row.run_id,
        row.reason,
        utf8(row.message),
        row.stage,
        row.attempts,
        row.first_failed_at,
        row.failed_at,
        row.replay_count,
        row.state,
        row.version,
    )


DEAD_LETTERS = Table(
    "dead_letter_versions",
    (
        "kafka_topic",
        "kafka_partition",
        "kafka_offset",
        "dlq_topic",
        "dlq_partition",
        "dlq_offset",
        "document_id",
        "document_version",
        "run_id",
        "reason",
        "message",
        "stage",
        "attempts",
        "first_failed_at",
        "failed_at",
        "replay_count",
        "state",
        "version",
    ),
    _dead_letter_values,
)


def dead_letter_of(values: Values) -> DeadLetterRow:
    """The dead letter that a row of `DEAD_LETTERS.columns` without `version` is."""
    return DeadLetterRow(Coordinates(*values[:3]), Coordinates(*values[3:6]), *values[6:])


def _failure_values(row: FailureRow) -> Values:
    return (
        row.failed_at,
        utf8(row.document_id),
        row.run_id,
        row.attempt,
        row.reason,
        row.stage,
        row.disposition,
        utf8(row.message),
        row.worker,
    )


FAILURES = Table(
    "failures",
    (
        "failed_at",
        "document_id",
        "run_id",
        "attempt",
        "reason",
        "stage",
        "disposition",
        "message",
        "worker",
    ),
    _failure_values,
)


# -- runs and workers --------------------------------------------------------------------------------------


def _run_values(run: Run) -> Values:
    return (
        run.id,
        utf8(run.name),
        utf8(run.source),
        utf8(run.recipe.to_json()),
        run.lane.value,
        run.state.value,
        run.created_at,
        run.updated_at,
        run.limit,
        run.force,
        run.listed,
        run.unreadable,
        run.by,
        run.publisher,
        utf8(run.problem),
        utf8(run.webhook),
        run.request,
    )


RUNS = Table(
    "run_versions",
    (
        "run_id",
        "name",
        "source",
        "recipe",
        "lane",
        "state",
        "created_at",
        "updated_at",
        "document_limit",
        "force",
        "listed",
        "unreadable",
        "batch_by",
        "publisher",
        "problem",
        "webhook",
        "request",
    ),
    _run_values,
)


def run_of(values: Values) -> Run:
    """The run that a row of `RUNS.columns` is."""
    run_id, name, source, recipe, lane, state, *others = values
    return Run(run_id, name, source, Recipe.from_json(recipe), Lane(lane), RunState(state), *others)


def _control_values(control: Control) -> Values:
    return (
        control.target,
        control.state.value,
        utf8(control.reason),
        control.budget,
        control.unguarded,
        control.changed_at,
    )


CONTROLS = Table(
    "control_versions",
    ("target", "state", "reason", "budget", "unguarded", "changed_at"),
    _control_values,
)


def control_of(values: Values) -> Control:
    """The control that a row of `CONTROLS.columns` is."""
    target, state, *others = values
    return Control(target, ControlState(state), *others)


def _audit_values(row: AuditRow) -> Values:
    return (row.at, utf8(row.who), row.action, utf8(row.detail), row.count)


AUDIT = Table("audit", ("at", "who", "action", "detail", "count"), _audit_values)


def _token_values(token: Token) -> Values:
    return (
        utf8(token.name),
        token.digest,
        sorted(scope.value for scope in token.scopes),
        token.created_at,
        utf8(token.created_by),
        token.revoked,
        token.changed_at,
    )


TOKENS = Table(
    "token_versions",
    ("name", "digest", "scopes", "created_at", "created_by", "revoked", "changed_at"),
    _token_values,
)


def token_of(values: Values) -> Token:
    """The token that a row of `TOKENS.columns` is."""
    name, digest, scopes, *others = values
    return Token(name, digest, frozenset(map(Scope, scopes)), *others)


def _webhook_values(delivery: WebhookDelivery) -> Values:
    return (
        delivery.message_id,
        delivery.run_id,
        delivery.event,
        utf8(delivery.url),
        utf8(delivery.body),
        delivery.state.value,
        delivery.attempts,
        delivery.next_attempt_at,
        utf8(delivery.answer),
        delivery.created_at,
        delivery.changed_at,
    )


WEBHOOKS = Table(
    "webhook_delivery_versions",
    (
        "message_id",
        "run_id",
        "event",
        "url",
        "body",
        "state",
        "attempts",
        "next_attempt_at",
        "answer",
        "created_at",
        "changed_at",
    ),
    _webhook_values,
)


def webhook_of(values: Values) -> WebhookDelivery:
    """The message that a row of `WEBHOOKS.columns` is."""
    (
        message_id, run_id, event, url, body, state, attempts, next_attempt_at, answer, created_at, changed_at
    ) = values  # fmt: skip
    return WebhookDelivery(
        message_id,
        run_id,
        event,
        url,
        body,
        created_at,
        changed_at,
        next_attempt_at,
        DeliveryState(state),
        attempts,
        answer,
    )


def _worker_values(status: WorkerStatus) -> Values:
    return (
        status.worker,
        status.host,
        status.pid,
        status.lane.value,
        status.started_at,
        status.beat_at,
        list(status.partitions),
        status.in_flight,
        _utf8s(status.holds),
        _utf8s(status.breakers),
        status.gate,
        status.cost_in_flight,
        [_work_values(work) for work in status.at_risk],
        status.alone,
        status.stopped,
    )


def _work_values(work: AtRisk) -> Values:
    return (work.stage, work.at.topic, work.at.partition, work.at.offset)


def _work_of(values: Values) -> AtRisk:
    stage, *place = values
    return AtRisk(stage, Coordinates(*place))


WORKERS = Table(
    "worker_versions",
    (
        "worker",
        "host",
        "pid",
        "lane",
        "started_at",
        "beat_at",
        "partitions",
        "in_flight",
        "holds",
        "breakers",
        "gate",
        "cost_in_flight",
        "at_risk",
        "alone",
        "stopped",
    ),
    _worker_values,
)


def worker_of(values: Values) -> WorkerStatus:
    """The heartbeat that a row of `WORKERS.columns` is."""
    (
        worker, host, pid, lane, started_at, beat_at, partitions, in_flight, holds, breakers, gate, cost,
        at_risk, alone, stopped,
    ) = values  # fmt: skip
    return WorkerStatus(
        worker,
        host,
        pid,
        Lane(lane),
        started_at,
        beat_at,
        tuple(partitions),
        in_flight,
        tuple(holds),
        tuple(breakers),
        gate,
        cost,
        tuple(_work_of(work) for work in at_risk),
        alone,
        stopped,
    )


def _death_values(death: Death) -> Values:
    work = _work_values(death.work)
    return (death.worker, death.started_at, death.died_at, *work, death.alone)


DEATHS = Table(
    "worker_death_versions",
    (
        "worker",
        "started_at",
        "died_at",
        "stage",
        "kafka_topic",
        "kafka_partition",
        "kafka_offset",
        "alone",
    ),
    _death_values,
)


def death_of(values: Values) -> Death:
    """The death that a row of `DEATHS.columns` is."""
    worker, started_at, died_at, *work, alone = values
    return Death(worker, started_at, died_at, _work_of(tuple(work)), alone)


# -- batches -------------------------------------------------------------------------------------------------


def _batch_values(batch: Batch) -> Values:
    return (
        batch.intent,
        batch.partition,
        batch.state.value,
        batch.size,
        batch.created_at,
        batch.changed_at,
        utf8(batch.provider_id),
        batch.ended_at,
        batch.succeeded,
        batch.errored,
        batch.canceled,
        batch.expired,
        batch.missing,
        batch.cost,
        utf8(batch.detail),
        (batch.state.rank << 56) | to_ms(batch.changed_at),
    )


BATCHES = Table(
    "batch_versions",
    (
        "intent",
        "kafka_partition",
        "state",
        "size",
        "created_at",
        "changed_at",
        "provider_id",
        "ended_at",
        "succeeded",
        "errored",
        "canceled",
        "expired",
        "missing",
        "cost",
        "detail",
        "version",
    ),
    _batch_values,
)


def batch_of(values: Values) -> Batch:
    """The batch that a row of `BATCHES.columns`, without the version, is."""
    intent, partition, state, *rest = values
    return Batch(intent, partition, BatchState(state), *rest)


def _batch_item_values(item: BatchItem) -> Values:
    return (
        item.intent,
        item.custom_id,
        item.fingerprint,
        utf8(item.document_id),
        item.version,
        item.run_id,
        item.chunk,
        utf8(item.model),
        item.input_tokens,
        item.output_tokens,
    )


BATCH_ITEMS = Table(
    "batch_item_versions",
    (
        "intent",
        "custom_id",
        "fingerprint",
        "document_id",
        "version",
        "run_id",
        "chunk",
        "model",
        "input_tokens",
        "output_tokens",
    ),
    _batch_item_values,
)


def batch_item_of(values: Values) -> BatchItem:
    """The item that a row of `BATCH_ITEMS.columns` is."""
    return BatchItem(*values[2:], *values[:2])


# -- ingest ------------------------------------------------------------------------------------------------


def _cursor_values(row: Cursor) -> Values:
    return (
        utf8(row.source),
        utf8(row.document_id),
        utf8(row.source_version),
        row.scan,
        row.seen_at,
        row.gone,
    )


CURSORS = Table(
    "ingest_cursor_versions",
    ("source", "document_id", "source_version", "scan", "seen_at", "gone"),
    _cursor_values,
)


# -- together ----------------------------------------------------------------------------------------------

TABLES: tuple[Table[Any], ...] = (  # Any: each table has its own row type
    ANSWERS,
    SUMMARIES,
    RUN_DOCUMENTS,
    DEAD_LETTERS,
    FAILURES,
    RUNS,
    CONTROLS,
    AUDIT,
    WORKERS,
    DEATHS,
    BATCHES,
    BATCH_ITEMS,
    TOKENS,
    WEBHOOKS,
    CURSORS,
)
VIEWS = (
    "answers",
    "summaries",
    "run_documents",
    "dead_letters",
    "runs",
    "run_progress",
    "controls",
    "workers",
    "batches",
    "batch_items",
    "worker_deaths",
    "tokens",
    "webhook_deliveries",
    "ingest_cursors",
)


def in_order(rows: Rows) -> tuple[tuple[Table[Any], tuple[Any, ...]], ...]:
    """The tables that these rows go to, first to last: a paid answer first, a dashboard's row last."""
    parts: tuple[tuple[Table[Any], tuple[Any, ...]], ...] = (
        (ANSWERS, rows.answers),
        (SUMMARIES, rows.summaries),
        (RUN_DOCUMENTS, rows.run_documents),
        (DEAD_LETTERS, rows.dead_letters),
        (FAILURES, rows.failures),
    )
    return tuple((table, part) for table, part in parts if part)


def size_of(rows: Rows) -> int:
    """About how many bytes the rows take: the long texts are counted, the rest of a row is a flat rate."""
    size = 500 * (len(rows.summaries) + len(rows.run_documents) + len(rows.dead_letters) + len(rows.failures))
    for answer in rows.answers:
        size += 500 + len(answer.raw)
    for row in rows.summaries:
        if row.summary is not None:
            size += len(row.summary.summary) + sum(map(len, row.summary.key_points))
    return size
