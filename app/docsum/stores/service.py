"""What the API and its page ask of the tables: pages of runs and documents, tokens, webhook messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from docsum.models import (
    EPOCH,
    DeliveryState,
    DocumentCost,
    Run,
    RunDocumentRow,
    State,
    SummaryRow,
    Throughput,
    Token,
    WebhookDelivery,
    to_ms,
)
from docsum.stores.connection import Ask
from docsum.stores.tables import (
    RUN_DOCUMENT_COLUMNS,
    RUNS,
    SUMMARY_COLUMNS,
    TOKENS,
    WEBHOOKS,
    run_document_of,
    run_of,
    summary_row_of,
    token_of,
    utf8,
    webhook_of,
)

_BEFORE = f"""SELECT {", ".join(RUNS.columns)} FROM runs
WHERE {{first:Bool}}
    OR (created_at, run_id) < (fromUnixTimestamp64Milli({{at:Int64}}, 'UTC'), {{run_id:UUID}})
ORDER BY created_at DESC, run_id DESC LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names
_PUBLISHED_BY = f"""SELECT {", ".join(RUNS.columns)} FROM runs
WHERE publisher = {{publisher:String}} AND state != 'published' AND problem = ''
ORDER BY created_at"""  # noqa: S608 - our own names
_TOLD = f"""SELECT {", ".join(RUNS.columns)} FROM runs WHERE webhook != '' AND run_id NOT IN (
    SELECT run_id FROM webhook_deliveries WHERE event = 'run.finished'
) ORDER BY created_at"""  # noqa: S608 - our own names
_DOCUMENTS = f"""SELECT {", ".join(RUN_DOCUMENT_COLUMNS)} FROM run_document_versions FINAL
WHERE run_id = {{run_id:UUID}} AND document_id > {{after:String}}
    AND ({{states:Array(String)}} = [] OR state IN {{states:Array(String)}})
    AND ({{text:String}} = '' OR positionCaseInsensitiveUTF8(document_id, {{text:String}}) > 0)
ORDER BY run_id, document_id LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names
_FOUND = f"""SELECT {", ".join(SUMMARY_COLUMNS)}, is_deleted FROM summary_versions FINAL
WHERE document_id > {{after:String}} AND is_deleted = 0 AND ({{text:String}} = ''
    OR positionCaseInsensitiveUTF8(document_id, {{text:String}}) > 0
    OR positionCaseInsensitiveUTF8(title, {{text:String}}) > 0)
ORDER BY document_id LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names
_ENDED = """SELECT intDiv(toUnixTimestamp64Milli(written_at), {step:Int64}) * {step:Int64} AS begins, count()
FROM run_document_versions FINAL
WHERE run_id = {run_id:UUID} AND state NOT IN ('queued', 'retrying', 'held')
    AND toUnixTimestamp64Milli(written_at) >= {since:Int64}
GROUP BY begins ORDER BY begins"""
# From the projection `money` a run's calls are found at once, but it has no latencies: this reads the ledger.
_EXPENSIVE = """SELECT document_id, count(), sum(cost) AS paid, sum(latency_ms) AS took
FROM (SELECT document_id, cost, latency_ms FROM answer_versions
    WHERE run_id = {run_id:UUID} LIMIT 1 BY fingerprint, request_id)
GROUP BY document_id ORDER BY multiIf({slowest:Bool}, toFloat64(took), toFloat64(paid)) DESC, document_id
LIMIT {limit:UInt32}"""
_TOKENS = f"SELECT {', '.join(TOKENS.columns)} FROM tokens ORDER BY name"  # noqa: S608 - our own names
_MESSAGES = f"""SELECT {", ".join(WEBHOOKS.columns)} FROM webhook_deliveries
WHERE ({{every:Bool}} OR run_id = {{run_id:UUID}})
    AND ({{states:Array(String)}} = [] OR state IN {{states:Array(String)}})
ORDER BY created_at DESC, message_id LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names
_DUE = f"""SELECT {", ".join(WEBHOOKS.columns)} FROM webhook_deliveries
WHERE state = 'pending' AND toUnixTimestamp64Milli(next_attempt_at) <= {{now:Int64}}
ORDER BY next_attempt_at, message_id
LIMIT {{to_one_host:UInt32}} BY lower(domain(url)) LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names
_NOBODY = UUID(int=0)


async def runs_before(ask: Ask, before: tuple[datetime, UUID] | None, limit: int) -> Sequence[Run]:
    at, run_id = before or (EPOCH, _NOBODY)
    found = await ask(_BEFORE, first=before is None, at=to_ms(at), run_id=run_id, limit=limit)
    return [run_of(values) for values in found]


async def unpublished(ask: Ask, publisher: str) -> Sequence[Run]:
    return [run_of(values) for values in await ask(_PUBLISHED_BY, publisher=publisher)]


async def runs_to_tell(ask: Ask) -> Sequence[Run]:
    return [run_of(values) for values in await ask(_TOLD)]


async def documents_of(
    ask: Ask, run_id: UUID, *, states: Collection[State], text: str, after: str, limit: int
) -> Sequence[RunDocumentRow]:
    found = await ask(
        _DOCUMENTS,
        run_id=run_id,
        states=[state.value for state in states],
        text=utf8(text),
        after=utf8(after),
        limit=limit,
    )
    return [run_document_of(values) for values in found]


async def summaries_with(ask: Ask, text: str, after: str, limit: int) -> Sequence[SummaryRow]:
    found = await ask(_FOUND, text=utf8(text), after=utf8(after), limit=limit)
    return [summary_row_of(values) for values in found]


async def throughput(ask: Ask, run_id: UUID, since: datetime, step: timedelta) -> Sequence[Throughput]:
    milliseconds = step // timedelta(milliseconds=1)
    found = await ask(_ENDED, run_id=run_id, since=to_ms(since), step=milliseconds)
    return [Throughput(EPOCH + timedelta(milliseconds=begins), ended) for begins, ended in found]


async def expensive(ask: Ask, run_id: UUID, limit: int, *, slowest: bool) -> Sequence[DocumentCost]:
    found = await ask(_EXPENSIVE, run_id=run_id, limit=limit, slowest=slowest)
    return [
        DocumentCost(name, calls, cost, timedelta(milliseconds=took)) for name, calls, cost, took in found
    ]


async def tokens(ask: Ask) -> Sequence[Token]:
    return [token_of(values) for values in await ask(_TOKENS)]


async def webhook_deliveries(
    ask: Ask, run_id: UUID | None, states: Collection[DeliveryState], limit: int
) -> Sequence[WebhookDelivery]:
    found = await ask(
        _MESSAGES,
        every=run_id is None,
        run_id=run_id or _NOBODY,
        states=[state.value for state in states],
        limit=limit,
    )
    return [webhook_of(values) for values in found]


async def webhooks_due(ask: Ask, now: datetime, limit: int, to_one_host: int) -> Sequence[WebhookDelivery]:
    found = await ask(_DUE, now=to_ms(now), limit=limit, to_one_host=to_one_host)
    return [webhook_of(values) for values in found]
