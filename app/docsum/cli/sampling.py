"""`docsum run --sample N`: a simple random sample of a source, run by itself, and what it says of the whole.

The sample is kept as a manifest in DOCSUM_HOME/runs, which is the source of its run: asked for again, or
resumed, it is the same one. Beside it is what the listing had, so that the whole can be told from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from docsum.cli.output import WrongUsage, say
from docsum.cli.quoting import cost_of, paid_instead
from docsum.models import Lane, Summary, Usage
from docsum.quote import Cost, Count, Estimate, Reading, Reservoir, Stratum, Tally, projected, weight_of
from docsum.reading_ahead import batches
from docsum.sources import Listed, Source, Unreadable

if TYPE_CHECKING:
    from docsum.ports import SummaryStore
    from docsum.runs import Snapshot

_PAGE = 500  # entries of a listing at once


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as it was drawn."""

    whole: str  # the name of the source that it was drawn from
    size: int  # as asked for: the source may have had fewer
    tally: Tally  # of that source
    manifest: Path


@dataclass(frozen=True, slots=True)
class Projection:
    """What the whole source costs if all of it is as the sample was; the sample included."""

    documents: int
    model: str
    live: Estimate
    batch: Estimate


async def drawn(run_id: UUID, source: Source, size: int, home: Path, *, exists: bool) -> Sample:
    """The sample of this run, drawn now or before. Raises WrongUsage where that was another one.

    `exists`: the run is in the store.
    """
    folder = home / "runs"
    manifest, head = folder / f"{run_id}.jsonl", folder / f"{run_id}.json"
    if manifest.exists():
        found = _read(head, manifest)
        if (found.whole, found.size) != (source.name, size):
            raise WrongUsage(f"The run {run_id} exists with another sample: choose another --id.")
        return found
    if exists:
        raise WrongUsage(f"The run {run_id} exists, and its sample is not here: choose another --id.")
    tally, passed_over = Tally(), 0
    reservoir = Reservoir[Listed](size, Random())  # noqa: S311  (a sample needs no secrecy)
    async with aclosing(batches(source.entries(), _PAGE)) as pages:
        async for page in pages:
            for entry in page:
                if isinstance(entry, Listed):
                    tally.add(entry)
                    reservoir.add(entry)
                elif isinstance(entry, Unreadable):
                    passed_over += 1
    if passed_over:
        say(f"Passed over {passed_over:,} entries that cannot be announced; --dry-run counts them too.")
    sample = Sample(source.name, size, tally, manifest)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(head, json.dumps(_head(sample)))
    _write(manifest, "".join(f"{json.dumps(_line(listed))}\n" for listed in reservoir.kept))
    return sample


def _head(sample: Sample) -> Mapping[str, object]:
    strata = sample.tally.strata.items()
    return {
        "source": sample.whole,
        "size": sample.size,
        "strata": [[*stratum, count.documents, count.weight] for stratum, count in strata],
    }


def _read(head: Path, manifest: Path) -> Sample:
    fields = json.loads(head.read_text())
    strata = {Stratum(kind, band): Count(number, weight) for kind, band, number, weight in fields["strata"]}
    return Sample(fields["source"], fields["size"], Tally(strata), manifest)


def _line(listed: Listed) -> Mapping[str, Any]:  # Any: JSON values
    fields = {
        "document_id": listed.document_id,
        "uri": listed.uri,
        "source_version": listed.source_version,
        "media_type": listed.media_type,
        "size_bytes": listed.size_bytes,
        "title": listed.title,
        "attributes": dict(listed.attributes),
    }
    return {name: value for name, value in fields.items() if value}


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


async def projection(
    sample: Sample, source: Source, snapshot: Snapshot, store: SummaryStore
) -> Projection | None:
    """What the documents of `source`, the manifest of the sample, say of the whole; None of an empty one.

    Of a free model: what the usual paid one would cost. Texts that were bought before the sample cost
    nothing; what was paid in vain is spread over the others.
    """
    run = snapshot.run
    made: dict[str, Summary] = {}
    async for row, stored in store.run_rows(run.id):
        if stored is not None and stored.summary is not None and stored.run_id == run.id:
            made[row.document_id] = stored.summary
    listed = [entry for entry in source.entries() if isinstance(entry, Listed)]
    if not listed:
        return None
    other = paid_instead(run.recipe.model)
    model = other or run.recipe.model
    bought = {summary.fingerprint: summary for summary in made.values() if not summary.reused}
    readings = [
        Reading(sample.tally.place(entry), weight_of(entry), made[entry.document_id].fingerprint)
        if entry.document_id in made
        else Reading(sample.tally.place(entry), weight_of(entry))
        for entry in listed
    ]

    cost = cost_of(model)
    known = sum(_price(cost, Lane.LIVE, summary) for summary in bought.values())
    wasted = max(1.0, float(snapshot.progress.cost) / known) if known and not other else 1.0

    def whole(lane: Lane) -> Estimate:
        prices = {name: wasted * _price(cost, lane, summary) for name, summary in bought.items()}
        return projected(
            sample.tally.strata, readings, [prices.get(reading.text, 0.0) for reading in readings]
        )

    return Projection(sample.tally.documents, model, whole(Lane.LIVE), whole(Lane.BATCH))


def _price(cost: Cost, lane: Lane, summary: Summary) -> float:
    """Of what was bought for a summary; of a long document's calls, all as long as their mean."""
    calls = 1 if summary.chunks == 1 else summary.chunks + 1
    mean = Usage(round(summary.input_tokens / calls), round(summary.output_tokens / calls))
    return calls * cost(mean, lane)
