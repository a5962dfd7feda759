"""The index of the dead-letter topic, as a person sorts through it."""

from __future__ import annotations

from collections.abc import Sequence

from docsum.models import EPOCH, Coordinates, DeadLetterFilter, DeadLetterGroup, DeadLetterRow, to_ms
from docsum.stores.connection import Ask
from docsum.stores.tables import DEAD_LETTERS, dead_letter_of, utf8

_COLUMNS = ", ".join(name for name in DEAD_LETTERS.columns if name != "version")
_MEANT = """({states:Array(String)} = [] OR state IN {states:Array(String)})
    AND ({reasons:Array(String)} = [] OR reason IN {reasons:Array(String)})
    AND ({documents:Array(String)} = [] OR document_id IN {documents:Array(String)})
    AND ({runs:Array(UUID)} = [] OR run_id IN {runs:Array(UUID)})
    AND toUnixTimestamp64Milli(failed_at) >= {since:Int64}
    AND toUnixTimestamp64Milli(failed_at) < {until:Int64}"""
_GROUPS = f"""SELECT reason, state, count() AS entries, uniqExact(document_id),
    min(failed_at), max(failed_at) AS newest, argMax(message, failed_at)
FROM dead_letters WHERE {_MEANT} GROUP BY reason, state ORDER BY entries DESC, newest DESC"""  # noqa: S608 - ours
_PAGE = f"""SELECT {_COLUMNS} FROM dead_letters WHERE {_MEANT}
    AND (dlq_topic, dlq_partition, dlq_offset) > ({{topic:String}}, {{partition:Int64}}, {{offset:Int64}})
ORDER BY dlq_topic, dlq_partition, dlq_offset LIMIT {{limit:UInt32}}"""  # noqa: S608 - ours
_NEWEST = f"""SELECT {_COLUMNS} FROM dead_letters WHERE {_MEANT}
ORDER BY failed_at DESC, kafka_topic, kafka_partition, kafka_offset LIMIT {{limit:UInt32}}"""  # noqa: S608 - ours
_LATEST = 253_402_300_799_000  # the year 9999


async def groups(ask: Ask, meant: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
    """By reason and state, the largest first."""
    return [DeadLetterGroup(*values) for values in await ask(_GROUPS, **_parameters(meant))]


async def newest(ask: Ask, meant: DeadLetterFilter, limit: int) -> Sequence[DeadLetterRow]:
    return [dead_letter_of(values) for values in await ask(_NEWEST, limit=limit, **_parameters(meant))]


async def page(
    ask: Ask, meant: DeadLetterFilter, after: Coordinates | None, limit: int
) -> Sequence[DeadLetterRow]:
    """In the order of the topic."""
    at = after or Coordinates("", -1, -1)
    where = {"topic": at.topic, "partition": at.partition, "offset": at.offset}
    found = await ask(_PAGE, limit=limit, **where, **_parameters(meant))
    return [dead_letter_of(values) for values in found]


def _parameters(meant: DeadLetterFilter) -> dict[str, object]:
    return {
        "states": list(meant.states),
        "reasons": list(meant.reasons),
        "documents": [utf8(name) for name in meant.documents],
        "runs": [meant.run_id] if meant.run_id else [],
        "since": to_ms(meant.since or EPOCH),
        "until": to_ms(meant.until) if meant.until else _LATEST,
    }
