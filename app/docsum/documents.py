"""One document: what is stored of it as a program reads it, and how it is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import uuid4

from docsum.models import Coordinates, Known, RunDocumentRow, State, SummaryRow, event_version, to_ms


def document_fields(
    document_id: str, known: Known | None, stored: SummaryRow | None, states: Sequence[RunDocumentRow]
) -> dict[str, object]:
    summary = stored.summary if stored else None
    return {
        "document_id": document_id,
        "deleted": bool(known and known.deleted),
        "summary": summary_fields(stored) if stored and summary else None,
        "runs": [
            {
                "run_id": str(row.run_id),
                "state": row.state.value,
                "attempt": row.attempt,
                "reason": row.reason,
                "message": row.message,
                "written_at": row.written_at,
            }
            for row in states
        ],
    }


def summary_fields(stored: SummaryRow) -> dict[str, object]:
    """A stored summary as a program reads it."""
    summary = stored.summary
    assert summary is not None
    return {
        "title": summary.title,
        "summary": summary.summary,
        "key_points": list(summary.key_points),
        "language": summary.language,
        "document_type": summary.document_type,
        "warnings": list(summary.warnings),
        "model": summary.model,
        "recipe": summary.recipe,
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "cost_usd": summary.cost,
        "reused": summary.reused,
        "chunks": summary.chunks,
        "coverage": summary.coverage,
        "truncated": summary.truncated,
        "source_version": stored.source_version,
        "occurred_at": stored.occurred_at,
        "written_at": stored.written_at,
        "attributes": dict(stored.attributes),
    }


def tombstone(document_id: str, known: Known | None, now: datetime) -> SummaryRow:
    """A version above all that is stored. Older events stay hidden under it, later ones show over it.

    It came with no event: its coordinates have no topic.
    """
    version = event_version(now, to_ms(now), str(uuid4()))
    return SummaryRow(
        document_id=document_id,
        # What is stored may be of an event from ahead of this clock.
        version=max(version, known.version + 1) if known else version,
        state=State.SKIPPED,
        source_version="",
        uri="",
        summary=None,
        attributes={},
        run_id=None,
        origin=Coordinates("", 0, 0),
        occurred_at=now,
        written_at=now,
    )
