"""What the ledger adds up to. ClickHouse counts: a million answers never travel."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from docsum.models import EPOCH, CostBy, CostLine, Costs, Usage, to_ms
from docsum.stores.connection import Ask
from docsum.stores.tables import Values

_KEY = {
    CostBy.RUN: "ifNull(toString(run_id), '')",
    CostBy.MODEL: "toString(model)",
    CostBy.DAY: "toString(toDate(answered_at, 'UTC'))",
    CostBy.REASON: "toString(status)",
}
_ORDER = {CostBy.DAY: "key"}
_SINCE = "{moment} >= fromUnixTimestamp64Milli({{since:Int64}}, 'UTC')"
_OF_RUN = "AND run_id = {run_id:UUID}"
# A part of the ledger, each call once. Its rows are found by day and run in the projection `money`, which
# has these columns and no others; FINAL would read the ledger from end to end. For all of it FINAL is faster.
_PART = """(SELECT {columns} FROM answer_versions
    WHERE {filter} LIMIT 1 BY fingerprint, request_id)"""
_COLUMNS = """run_id, model, status, answered_at, document_id, cost,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens"""

_LINES = """SELECT {key} AS key, grouping(key) AS is_total, sumMap(map(toString(status), toUInt64(1))),
    sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens),
    sum(cost) AS paid, uniqExact(document_id)
FROM {source} GROUP BY GROUPING SETS ((key), ()) ORDER BY is_total, {order}"""
# Only the newest version of a summary is sure to be there still, so the savings are those of the newest.
# `done` leaves out what was skipped as unchanged: that would not have been bought anyway.
_SAVED = """SELECT count(), sum(price) FROM (
    SELECT fingerprint FROM summaries WHERE reused AND state = 'done' AND {filter}
) AS used
INNER JOIN (
    SELECT fingerprint, min(cost) AS price FROM answer_versions
    WHERE status = 'ok' AND fingerprint IN (SELECT fingerprint FROM summary_versions WHERE reused)
    GROUP BY fingerprint
) AS bought USING fingerprint"""

_SUM = "SELECT sum(cost) FROM {source}"
_OF_DOCUMENT = "document_id = {document_id:String}"


async def costs(ask: Ask, by: CostBy, since: datetime | None, run_id: UUID | None) -> Costs:
    """The sums of all answers since then, or of one run."""
    parameters: dict[str, object] = {"since": to_ms(since or EPOCH)}
    if run_id is not None:
        parameters["run_id"] = run_id
    everything = since is None and run_id is None
    source = "answers" if everything else _part(_COLUMNS, _filter("answered_at", run_id))
    lines = _LINES.format(key=_KEY[by], source=source, order=_ORDER.get(by, "paid DESC, key"))
    saved = _SAVED.format(filter=_filter("written_at", run_id))
    found = await ask(lines, **parameters)
    ((reused, price),) = await ask(saved, **parameters)
    return Costs(
        lines=tuple(_line(values) for values in found if not values[1]),
        total=next((_line(values) for values in found if values[1]), CostLine("")),
        reused=reused,
        saved=Decimal(price),
    )


async def spent(ask: Ask, run_id: UUID | None, since: datetime) -> Decimal:
    """US dollars of a run, or of everything, from that moment on."""
    parameters: dict[str, object] = {"since": to_ms(since)}
    if run_id is not None:
        parameters["run_id"] = run_id
    return await _sum(ask, _filter("answered_at", run_id), parameters)


async def paid_for(ask: Ask, document_id: str, run_id: UUID | None) -> Decimal:
    """US dollars for one document, in one run or ever."""
    parameters: dict[str, object] = {"document_id": document_id}
    if run_id is None:
        return await _sum(ask, _OF_DOCUMENT, parameters)
    return await _sum(ask, f"{_OF_DOCUMENT} {_OF_RUN}", parameters | {"run_id": run_id})


async def _sum(ask: Ask, of: str, parameters: dict[str, object]) -> Decimal:
    ((paid,),) = await ask(_SUM.format(source=_part("cost", of)), **parameters)
    return Decimal(paid)


def _part(columns: str, of: str) -> str:
    return _PART.format(columns=columns, filter=of)


def _filter(moment: str, run_id: UUID | None) -> str:
    return f"{_SINCE.format(moment=moment)} {_OF_RUN if run_id else ''}"


def _line(values: Values) -> CostLine:
    key, _is_total, statuses, *tokens, cost, documents = values
    return CostLine(key, dict(statuses), Usage(*tokens), cost, documents)
