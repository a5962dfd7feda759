"""The batches of the batch lane: read by those who look after them, and by people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from docsum.models import OPEN_BATCHES, Batch, BatchItem, BatchState, OpenBatches
from docsum.stores.connection import Ask
from docsum.stores.tables import BATCH_ITEMS, BATCHES, batch_item_of, batch_of

_COLUMNS = ", ".join(BATCHES.columns[:-1])
_OPEN = f"""SELECT {_COLUMNS} FROM batches
WHERE state IN {{states:Array(String)}} AND kafka_partition IN {{partitions:Array(UInt32)}}
ORDER BY created_at, intent"""  # noqa: S608 - our own names
_ITEMS = f"""SELECT {", ".join(BATCH_ITEMS.columns)} FROM batch_items
WHERE intent IN {{intents:Array(String)}} ORDER BY intent, custom_id"""  # noqa: S608 - our own names
_COUNTS = """SELECT state, count(), sum(size), min(created_at) FROM batches
WHERE state IN {states:Array(String)} GROUP BY state ORDER BY state"""
_IDS = """SELECT provider_id, intent FROM batches
WHERE created_at >= {since:DateTime64(3, 'UTC')} AND provider_id != ''"""
_NEWEST = f"""SELECT {_COLUMNS} FROM batches
WHERE {{every:Bool}} OR intent IN (SELECT intent FROM batch_items WHERE run_id = {{run_id:UUID}})
ORDER BY created_at DESC, intent LIMIT {{limit:UInt32}}"""  # noqa: S608 - our own names


async def open_of(
    ask: Ask, partitions: Collection[int], known: Collection[str]
) -> Sequence[tuple[Batch, Sequence[BatchItem]]]:
    states = [state.value for state in OPEN_BATCHES]
    found = await ask(_OPEN, states=states, partitions=sorted(partitions))
    batches = [batch for values in found if (batch := batch_of(values)).intent not in known]
    items: dict[str, list[BatchItem]] = defaultdict(list)
    if batches:
        for values in await ask(_ITEMS, intents=[batch.intent for batch in batches]):
            item = batch_item_of(values)
            items[item.intent].append(item)
    return [(batch, items[batch.intent]) for batch in batches]


async def provider_ids(ask: Ask, since: datetime) -> Mapping[str, str]:
    return dict(await ask(_IDS, since=since))


async def counts(ask: Ask) -> Sequence[OpenBatches]:
    found = await ask(_COUNTS, states=[state.value for state in OPEN_BATCHES])
    return [OpenBatches(BatchState(state), *rest) for state, *rest in found]


async def newest(ask: Ask, run_id: UUID | None, limit: int) -> Sequence[Batch]:
    found = await ask(_NEWEST, every=run_id is None, run_id=run_id or UUID(int=0), limit=limit)
    return [batch_of(values) for values in found]
