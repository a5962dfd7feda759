"""What upstreams are told of an outcome: the result, or nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from docsum.models import (
    DeadLettered,
    DocumentReference,
    Outcome,
    Result,
    Skipped,
    SkipReason,
    State,
    Stored,
    Summary,
)
from docsum.ports import SummaryStore


async def result_of(
    reference: DocumentReference | None, outcome: Outcome, store: SummaryStore, now: datetime
) -> Result | None:
    """None where there is nothing new, where it is not over yet, or where nobody knows which document it was.

    A cancelled run says nothing of its documents. Raises a StoreError.
    """
    if reference is None:
        return None
    match outcome:
        case Stored():
            state, reason = State.DONE, ""
        case Skipped(reason=SkipReason.UNCHANGED | SkipReason.DELETED as why):
            state, reason = State.SKIPPED, why.value
        case DeadLettered(failure=failure):
            state, reason = State.DEAD_LETTERED, failure.reason
        case _:
            return None
    told = Result(
        document_id=reference.document_id,
        version=reference.version,
        state=state,
        reason=reason,
        run_id=reference.run_id,
        source_version=reference.source_version,
        occurred_at=reference.occurred_at,
        written_at=now,
        summary=None,
    )
    match outcome:
        case Skipped(reason=SkipReason.DELETED):
            return replace(told, deleted=True)
        case Stored(summary=Summary() as summary, source_version=read):
            return replace(told, summary=summary, source_version=read)
        case Skipped(summary=Summary() as summary):
            return replace(told, summary=summary)
    return await _with_what_is_stored(told, store)


async def _with_what_is_stored(told: Result, store: SummaryStore) -> Result | None:
    """None where a newer version is stored: whoever stored that one tells of it."""
    known = await store.known(told.document_id)
    if known is not None and known.version > told.version:
        return None
    stored = await store.summary(told.document_id)
    if stored is None:
        return told
    read = stored.source_version if told.state is State.DONE else told.source_version
    return replace(told, summary=stored.summary, source_version=read)
