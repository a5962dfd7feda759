"""The store in memory: the same rules for what is visible, no durability. For tests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit
from uuid import UUID

from docsum.models import (
    EPOCH,
    OPEN_BATCHES,
    RESOLVED,
    Answer,
    AtRisk,
    AuditRow,
    Batch,
    BatchItem,
    Control,
    Coordinates,
    CostBy,
    CostLine,
    Costs,
    Cursor,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterRow,
    Death,
    DeliveryState,
    DocumentCost,
    FailureRow,
    Known,
    OpenBatches,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
    SummaryRow,
    Throughput,
    Token,
    Traces,
    Usage,
    WebhookDelivery,
    WorkerStatus,
)

_SILENT = timedelta(seconds=30)  # a publisher refreshes its run every 5 s


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """The ports `SummaryStore`, `ServiceStore` and `CursorStore`.

    The newest version of a key is kept; of equal ones the last written.
    """

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now
        self._answers: dict[tuple[str, str], Answer] = {}
        self._summaries: dict[str, SummaryRow] = {}
        self._versions: defaultdict[str, list[SummaryRow]] = defaultdict(list)  # all of them, as written
        self._run_documents: dict[tuple[UUID, str], RunDocumentRow] = {}
        self._runs: dict[UUID, Run] = {}
        self._controls: dict[UUID, Control] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self._deaths: dict[tuple[str, datetime, AtRisk], Death] = {}
        self.dead_letter_rows: dict[Coordinates, DeadLetterRow] = {}
        self._audit: list[AuditRow] = []
        self._tokens: dict[str, Token] = {}
        self._webhooks: dict[str, WebhookDelivery] = {}
        self.cursor_rows: dict[tuple[str, str], Cursor] = {}
        self.batch_rows: dict[str, Batch] = {}
        self.batch_items: dict[tuple[str, str], BatchItem] = {}
        self.unavailable_since: datetime | None = None
        self.failures: list[FailureRow] = []

    async def known(self, document_id: str) -> Known | None:
        row = self._summaries.get(document_id)
        if row is None:
            return None
        recipe = row.summary.recipe if row.summary else ""
        return Known(row.version, row.state, row.source_version, recipe, deleted=row.summary is None)

    async def summary(self, document_id: str) -> SummaryRow | None:
        row = self._summaries.get(document_id)
        return row if row is not None and row.summary is not None else None

    async def answers(self, fingerprint: str) -> Sequence[Answer]:
        found = [answer for answer in self._answers.values() if answer.fingerprint == fingerprint]
        return sorted(found, key=lambda answer: (answer.answered_at, answer.request_id))

    async def write(self, rows: Rows) -> None:
        for answer in rows.answers:
            self.keep(answer)
        for summary in rows.summaries:
            self._versions[summary.document_id].append(summary)
            stored = self._summaries.get(summary.document_id)
            if stored is None or summary.version >= stored.version:
                self._summaries[summary.document_id] = summary
        for document in rows.run_documents:
            key = (document.run_id, document.document_id)
            if key not in self._run_documents or document.version >= self._run_documents[key].version:
                self._run_documents[key] = document
        for letter in rows.dead_letters:
            entry = self.dead_letter_rows.get(letter.origin)
            if entry is None or letter.version >= entry.version:
                self.dead_letter_rows[letter.origin] = letter
        self.failures.extend(rows.failures)

    def keep(self, answer: Answer) -> None:
        self._answers[answer.fingerprint, answer.request_id] = answer

    async def run(self, run_id: UUID) -> Run | None:
        run = self._runs.get(run_id)
        return self._read(run) if run else None

    async def save_run(self, run: Run) -> None:
        stored = self._runs.get(run.id)
        if stored is None or run.updated_at >= stored.updated_at:
            self._runs[run.id] = run

    async def runs(self, limit: int = 50) -> Sequence[Run]:
        newest = sorted(self._runs.values(), key=lambda run: run.created_at, reverse=True)
        return [self._read(run) for run in newest[:limit]]

    async def progress(self, run_id: UUID) -> RunProgress:
        states = [row.state for (run, _), row in self._run_documents.items() if run == run_id]
        return RunProgress(
            run_id,
            queued=states.count(State.QUEUED),
            retrying=states.count(State.RETRYING),
            held=states.count(State.HELD),
            done=states.count(State.DONE),
            dead_lettered=states.count(State.DEAD_LETTERED),
            skipped=states.count(State.SKIPPED),
            cancelled=states.count(State.CANCELLED),
            cost=sum((a.cost for a in self._answers.values() if a.run_id == run_id), Decimal(0)),
            as_of=self._now(),
        )

    async def run_documents(self, run_id: UUID, document_ids: Sequence[str]) -> frozenset[str]:
        return frozenset(each for each in document_ids if (run_id, each) in self._run_documents)

    async def run_rows(self, run_id: UUID) -> AsyncIterator[tuple[RunDocumentRow, SummaryRow | None]]:
        """By document id."""
        for (run, document_id), row in sorted(self._run_documents.items(), key=lambda item: item[0]):
            if run == run_id:
                yield row, await self.summary(document_id)

    async def document_runs(self, document_id: str) -> Sequence[RunDocumentRow]:
        found = [row for (_, document), row in self._run_documents.items() if document == document_id]
        return sorted(found, key=lambda row: row.written_at, reverse=True)

    async def costs(self, by: CostBy, since: datetime | None = None, run_id: UUID | None = None) -> Costs:
        groups: defaultdict[str, list[Answer]] = defaultdict(list)
        counted = [
            answer
            for answer in self._answers.values()
            if (since is None or answer.answered_at >= since) and (run_id is None or answer.run_id == run_id)
        ]
        for answer in counted:
            groups[_key(answer, by)].append(answer)
        lines = sorted((_line(key, answers) for key, answers in groups.items()), key=lambda line: line.key)
        if by is not CostBy.DAY:
            lines.sort(key=lambda line: line.cost, reverse=True)
        prices = [
            min((a.cost for a in await self.answers(row.summary.fingerprint) if a.usable), default=None)
            for row in self._summaries.values()
            if row.summary and row.summary.reused and row.state is State.DONE
            if (since is None or row.written_at >= since) and (run_id is None or row.run_id == run_id)
        ]
        saved = [price for price in prices if price is not None]
        return Costs(tuple(lines), _line("", counted), len(saved), sum(saved, Decimal(0)))

    async def traces(self, document_id: str) -> Traces:
        texts, shared = self._texts(document_id)
        messages: list[RunDocumentRow | DeadLetterRow | FailureRow] = [
            *self._run_documents.values(),
            *self.dead_letter_rows.values(),
            *self.failures,
        ]
        return Traces(
            summaries=len({row.version for row in self._versions[document_id] if row.summary}),
            answers=len(texts),
            shared=len(shared),
            messages=sum(row.document_id == document_id and bool(row.message) for row in messages),
        )

    async def purge(self, document_id: str, version: int) -> None:
        for answer in self._texts(document_id)[0]:
            self.keep(replace(answer, raw="", detail=""))
        self._versions[document_id] = [row for row in self._versions[document_id] if row.version >= version]
        for key, row in self._run_documents.items():
            if row.document_id == document_id:
                self._run_documents[key] = replace(row, message="")
        for at, letter in self.dead_letter_rows.items():
            if letter.document_id == document_id:
                self.dead_letter_rows[at] = replace(letter, message="")
        self.failures = [
            replace(failure, message="") if failure.document_id == document_id else failure
            for failure in self.failures
        ]

    def _texts(self, document_id: str) -> tuple[list[Answer], list[Answer]]:
        """The answers with text that only this document stands on, and those that others stand on too."""
        used = {row.summary.fingerprint for row in self._versions[document_id] if row.summary}
        elsewhere = {
            row.summary.fingerprint
            for row in self._summaries.values()
            if row.summary and row.document_id != document_id
        }
        texts = [
            answer
            for answer in self._answers.values()
            if (answer.raw or answer.detail)
            and (answer.document_id == document_id or answer.fingerprint in used)
        ]
        shared = [answer for answer in texts if answer.fingerprint in elsewhere]
        return [answer for answer in texts if answer.fingerprint not in elsewhere], shared

    async def dead_letter_groups(self, meant: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        groups: defaultdict[tuple[str, str], list[DeadLetterRow]] = defaultdict(list)
        for row in self._meant(meant):
            groups[row.reason, row.state].append(row)
        found = [
            DeadLetterGroup(
                reason,
                state,
                len(rows),
                len({row.document_id for row in rows}),
                min(row.failed_at for row in rows),
                max(row.failed_at for row in rows),
                max(rows, key=lambda row: row.failed_at).message,
            )
            for (reason, state), rows in groups.items()
        ]
        return sorted(found, key=lambda group: (group.count, group.newest), reverse=True)

    async def newest_dead_letters(self, meant: DeadLetterFilter, limit: int) -> Sequence[DeadLetterRow]:
        rows = sorted(self._meant(meant), key=lambda row: row.origin)
        return sorted(rows, key=lambda row: row.failed_at, reverse=True)[:limit]

    async def dead_letters(
        self, meant: DeadLetterFilter, after: Coordinates | None, limit: int
    ) -> Sequence[DeadLetterRow]:
        rows = sorted(self._meant(meant), key=lambda row: row.dead_letter)
        return [row for row in rows if after is None or row.dead_letter > after][:limit]

    def _meant(self, meant: DeadLetterFilter) -> list[DeadLetterRow]:
        rows = [self._seen(row) for row in self.dead_letter_rows.values()]
        return [
            row
            for row in rows
            if (not meant.states or row.state in meant.states)
            and (not meant.reasons or row.reason in meant.reasons)
            and (not meant.documents or row.document_id in meant.documents)
            and meant.run_id in (None, row.run_id)
            and (meant.since is None or row.failed_at >= meant.since)
            and (meant.until is None or row.failed_at < meant.until)
        ]

    def _seen(self, row: DeadLetterRow) -> DeadLetterRow:
        stored = self._summaries.get(row.document_id)
        resolved = stored is not None and stored.version >= row.document_version
        return replace(row, state=RESOLVED) if resolved and row.state in ("open", "replayed") else row

    async def audit(self, row: AuditRow) -> None:
        self._audit.append(row)

    async def audits(self, limit: int = 50) -> Sequence[AuditRow]:
        return sorted(self._audit, key=lambda row: row.at, reverse=True)[:limit]

    async def beat(self, status: WorkerStatus) -> None:
        stored = self._workers.get(status.worker)
        if stored is None or status.beat_at >= stored.beat_at:
            self._workers[status.worker] = status

    async def workers(self) -> Sequence[WorkerStatus]:
        return [self._workers[name] for name in sorted(self._workers)]

    async def add_batch(self, batch: Batch, items: Sequence[BatchItem]) -> None:
        self.batch_items |= {(item.intent, item.custom_id): item for item in items}
        await self.save_batch(batch)

    async def save_batch(self, batch: Batch) -> None:
        stored = self.batch_rows.get(batch.intent)
        order = (batch.state.rank, batch.changed_at)
        if stored is None or order >= (stored.state.rank, stored.changed_at):
            self.batch_rows[batch.intent] = batch

    async def open_batches(
        self, partitions: Collection[int], known: Collection[str] = ()
    ) -> Sequence[tuple[Batch, Sequence[BatchItem]]]:
        found = [
            each
            for each in self.batch_rows.values()
            if each.state.is_open and each.partition in partitions and each.intent not in known
        ]
        return [
            (each, [item for item in self.batch_items.values() if item.intent == each.intent])
            for each in sorted(found, key=lambda each: (each.created_at, each.intent))
        ]

    async def provider_batches(self, since: datetime) -> Mapping[str, str]:
        rows = self.batch_rows.values()
        return {
            each.provider_id: each.intent for each in rows if each.created_at >= since and each.provider_id
        }

    async def batches(self, run_id: UUID | None = None, limit: int = 50) -> Sequence[Batch]:
        meant = {item.intent for item in self.batch_items.values() if run_id in (None, item.run_id)}
        newest = sorted(self.batch_rows.values(), key=lambda each: each.created_at, reverse=True)
        return [each for each in newest if each.intent in meant][:limit]

    async def open_batch_counts(self) -> Sequence[OpenBatches]:
        found = []
        for state in sorted(OPEN_BATCHES):
            mine = [each for each in self.batch_rows.values() if each.state is state]
            if mine:
                oldest = min(each.created_at for each in mine)
                found.append(OpenBatches(state, len(mine), sum(each.size for each in mine), oldest))
        return found

    async def bury(self, deaths: Sequence[Death]) -> None:
        for death in deaths:
            self._deaths[(death.worker, death.started_at, death.work)] = death

    async def deaths(self, since: datetime) -> Sequence[Death]:
        return [death for _, death in sorted(self._deaths.items()) if death.died_at >= since]

    async def control(self, target: UUID, *, fresh: bool = False) -> Control:
        return self._controls.get(target) or Control(target)

    async def controls(self) -> Sequence[Control]:
        return list(self._controls.values())

    async def save_control(self, control: Control) -> None:
        if control.changed_at >= (await self.control(control.target)).changed_at:
            self._controls[control.target] = control

    async def spent(self, run_id: UUID | None, since: datetime = EPOCH) -> Decimal:
        costs = (
            answer.cost
            for answer in self._answers.values()
            if answer.answered_at >= since and run_id in (None, answer.run_id)
        )
        return sum(costs, Decimal(0))

    async def paid_for(self, document_id: str, run_id: UUID | None = None) -> Decimal:
        costs = (
            answer.cost
            for answer in self._answers.values()
            if answer.document_id == document_id and run_id in (None, answer.run_id)
        )
        return sum(costs, Decimal(0))

    async def cancel_rest(self, run_id: UUID, reason: str, at: datetime) -> None:
        for (run, _), row in list(self._run_documents.items()):
            if run == run_id and not row.state.terminal:
                cancelled = replace(
                    row, state=State.CANCELLED, reason="cancelled", message=reason, written_at=at
                )
                await self.write(Rows(run_documents=(cancelled,)))

    # -- for the API ---------------------------------------------------------------------------------------

    async def runs_before(self, before: tuple[datetime, UUID] | None, limit: int) -> Sequence[Run]:
        newest = sorted(self._runs.values(), key=lambda run: (run.created_at, run.id), reverse=True)
        found = [run for run in newest if before is None or (run.created_at, run.id) < before]
        return [self._read(run) for run in found[:limit]]

    async def unpublished(self, publisher: str) -> Sequence[Run]:
        runs = [self._read(run) for run in self._runs.values()]
        return [
            run
            for run in sorted(runs, key=lambda run: run.created_at)
            if run.publisher == publisher and run.state is not RunState.PUBLISHED and not run.problem
        ]

    async def runs_to_tell(self) -> Sequence[Run]:
        told = {each.run_id for each in self._webhooks.values() if each.event == "run.finished"}
        runs = sorted(self._runs.values(), key=lambda run: run.created_at)
        return [self._read(run) for run in runs if run.webhook and run.id not in told]

    async def documents_of(
        self,
        run_id: UUID,
        states: Collection[State] = (),
        *,
        text: str = "",
        after: str = "",
        limit: int = 100,
    ) -> Sequence[RunDocumentRow]:
        found = [
            row
            for (run, name), row in sorted(self._run_documents.items())
            if run == run_id and name > after and (not states or row.state in states)
            if text.lower() in name.lower()
        ]
        return found[:limit]

    async def summaries_with(self, text: str, after: str, limit: int) -> Sequence[SummaryRow]:
        found = [
            row
            for name, row in sorted(self._summaries.items())
            if name > after and row.summary
            if text.lower() in name.lower() or text.lower() in row.summary.title.lower()
        ]
        return found[:limit]

    async def throughput(self, run_id: UUID, since: datetime, step: timedelta) -> Sequence[Throughput]:
        counts = Counter(
            EPOCH + (row.written_at - EPOCH) // step * step
            for (run, _), row in self._run_documents.items()
            if run == run_id and row.state.terminal and row.written_at >= since
        )
        return [Throughput(begins, ended) for begins, ended in sorted(counts.items())]

    async def expensive(self, run_id: UUID, limit: int, *, slowest: bool) -> Sequence[DocumentCost]:
        calls: defaultdict[str, list[Answer]] = defaultdict(list)
        for answer in self._answers.values():
            if answer.run_id == run_id:
                calls[answer.document_id].append(answer)
        found = [
            DocumentCost(
                name,
                len(answers),
                sum((answer.cost for answer in answers), Decimal(0)),
                timedelta(milliseconds=sum(answer.latency_ms for answer in answers)),
            )
            for name, answers in sorted(calls.items())
        ]
        return sorted(found, key=lambda each: each.latency if slowest else each.cost, reverse=True)[:limit]

    async def tokens(self) -> Sequence[Token]:
        return [self._tokens[name] for name in sorted(self._tokens)]

    async def save_token(self, token: Token) -> None:
        stored = self._tokens.get(token.name)
        if stored is None or token.changed_at >= stored.changed_at:
            self._tokens[token.name] = token

    async def webhook_deliveries(
        self, run_id: UUID | None = None, states: Collection[DeliveryState] = (), limit: int = 100
    ) -> Sequence[WebhookDelivery]:
        found = [
            each
            for each in self._webhooks.values()
            if run_id in (None, each.run_id) and (not states or each.state in states)
        ]
        return sorted(found, key=lambda each: each.created_at, reverse=True)[:limit]

    async def webhooks_due(self, now: datetime, limit: int, to_one_host: int) -> Sequence[WebhookDelivery]:
        due = [
            each
            for each in self._webhooks.values()
            if each.state is DeliveryState.PENDING and each.next_attempt_at <= now
        ]
        hosts: Counter[str | None] = Counter()
        found = []
        for each in sorted(due, key=lambda each: (each.next_attempt_at, each.message_id)):
            host = urlsplit(each.url).hostname
            hosts[host] += 1
            if hosts[host] <= to_one_host:
                found.append(each)
        return found[:limit]

    async def save_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        stored = self._webhooks.get(delivery.message_id)
        if stored is None or delivery.changed_at >= stored.changed_at:
            self._webhooks[delivery.message_id] = delivery

    # -- for `docsum ingest` -------------------------------------------------------------------------------

    async def cursors(self, source: str, document_ids: Sequence[str]) -> Mapping[str, Cursor]:
        wanted = {name: self.cursor_rows.get((source, name)) for name in document_ids}
        return {name: row for name, row in wanted.items() if row is not None}

    async def save_cursors(self, rows: Sequence[Cursor]) -> None:
        for row in rows:
            stored = self.cursor_rows.get((row.source, row.document_id))
            if stored is None or row.scan >= stored.scan:
                self.cursor_rows[row.source, row.document_id] = row

    async def count_cursors(self, source: str, before: int | None = None, *, within: str = "") -> int:
        return len(self._living(source, before, within))

    async def cursors_before(
        self, source: str, before: int, after: str, limit: int, *, within: str = ""
    ) -> Sequence[Cursor]:
        return [row for row in self._living(source, before, within) if row.document_id > after][:limit]

    def _living(self, source: str, before: int | None, within: str) -> list[Cursor]:
        return [
            row
            for (where, name), row in sorted(self.cursor_rows.items())
            if where == source and not row.gone and (before is None or row.scan < before)
            if not within or name == within or name.startswith(f"{within}/")
        ]

    def _read(self, run: Run) -> Run:
        """A publisher that has been silent reads as interrupted."""
        run = replace(run, control=self._controls.get(run.id))
        if run.state is RunState.PUBLISHING and run.updated_at < self._now() - _SILENT:
            return replace(run, state=RunState.INTERRUPTED)
        return run


def _key(answer: Answer, by: CostBy) -> str:
    match by:
        case CostBy.RUN:
            return str(answer.run_id or "")
        case CostBy.MODEL:
            return answer.model
        case CostBy.DAY:
            return answer.answered_at.astimezone(UTC).date().isoformat()
        case CostBy.REASON:
            return answer.status


def _line(key: str, answers: Iterable[Answer]) -> CostLine:
    answers = list(answers)
    return CostLine(
        key,
        Counter(answer.status for answer in answers),
        Usage(
            sum(answer.usage.input_tokens for answer in answers),
            sum(answer.usage.output_tokens for answer in answers),
            sum(answer.usage.cache_read_tokens for answer in answers),
            sum(answer.usage.cache_write_tokens for answer in answers),
        ),
        sum((answer.cost for answer in answers), Decimal(0)),
        len({answer.document_id for answer in answers}),
    )
