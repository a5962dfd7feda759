"""The store in memory: the same rules for what is visible, no durability. For tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from docsum.models import (
    Answer,
    Coordinates,
    DeadLetterRow,
    FailureRow,
    Known,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
    SummaryRow,
    WorkerStatus,
)

_SILENT = timedelta(seconds=30)  # a publisher refreshes its run every 5 s


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """The port `SummaryStore`. The newest version of a key is kept; of equal ones the last written."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now
        self._answers: dict[tuple[str, str], Answer] = {}
        self._summaries: dict[str, SummaryRow] = {}
        self._run_documents: dict[tuple[UUID, str], RunDocumentRow] = {}
        self._runs: dict[UUID, Run] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self.dead_letters: dict[Coordinates, DeadLetterRow] = {}
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
            stored = self._summaries.get(summary.document_id)
            if stored is None or summary.version >= stored.version:
                self._summaries[summary.document_id] = summary
        for document in rows.run_documents:
            key = (document.run_id, document.document_id)
            if key not in self._run_documents or document.version >= self._run_documents[key].version:
                self._run_documents[key] = document
        for letter in rows.dead_letters:
            entry = self.dead_letters.get(letter.origin)
            if entry is None or letter.version >= entry.version:
                self.dead_letters[letter.origin] = letter
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

    async def beat(self, status: WorkerStatus) -> None:
        stored = self._workers.get(status.worker)
        if stored is None or status.beat_at >= stored.beat_at:
            self._workers[status.worker] = status

    async def workers(self) -> Sequence[WorkerStatus]:
        return [self._workers[name] for name in sorted(self._workers)]

    def _read(self, run: Run) -> Run:
        """A publisher that has been silent reads as interrupted."""
        if run.state is RunState.PUBLISHING and run.updated_at < self._now() - _SILENT:
            return replace(run, state=RunState.INTERRUPTED)
        return run
