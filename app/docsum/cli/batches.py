"""The batches of a run, for `docsum runs show --batches`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from docsum.cli.output import table
from docsum.models import Batch
from docsum.words import money

if TYPE_CHECKING:
    from rich.table import Table


def fields(batch: Batch) -> Mapping[str, object]:
    """One batch, for scripts."""
    return {
        "batch": batch.intent,
        "provider_id": batch.provider_id,
        "state": batch.state.value,
        "partition": batch.partition,
        "requests": batch.size,
        "succeeded": batch.succeeded,
        "errored": batch.errored,
        "canceled": batch.canceled,
        "expired": batch.expired,
        "missing": batch.missing,
        "cost_usd": batch.cost,
        "created_at": batch.created_at,
        "changed_at": batch.changed_at,
        "ended_at": batch.ended_at,
        "detail": batch.detail,
    }


def view(batches: Sequence[Batch]) -> Table:
    """The newest first."""
    found = table(
        "batch", "provider's id", "state", "submitted", "requests", "answered", "came to nothing", "cost",
        right=("requests", "answered", "came to nothing", "cost"),
    )  # fmt: skip
    for batch in batches:
        found.add_row(
            batch.intent,
            batch.provider_id,
            "; ".join(filter(None, (batch.state.value, batch.detail))),
            f"{batch.created_at.astimezone():%Y-%m-%d %H:%M}",
            f"{batch.size:,}",
            f"{batch.succeeded:,}",
            ", ".join(_nothing(batch)),
            money(batch.cost),
        )
    return found


def _nothing(batch: Batch) -> Iterator[str]:
    for name in ("errored", "canceled", "expired", "missing"):
        if count := getattr(batch, name):
            yield f"{count:,} {name}"
