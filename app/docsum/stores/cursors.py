"""What `docsum ingest` asks of the tables: what it has announced of a source, and not seen again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from docsum.models import Cursor
from docsum.stores.connection import Ask
from docsum.stores.tables import CURSORS, utf8

_COLUMNS = ", ".join(CURSORS.columns)
_OF = f"""SELECT {_COLUMNS} FROM ingest_cursor_versions FINAL
WHERE source = {{source:String}} AND document_id IN {{keys:Array(String)}}"""  # noqa: S608 - our own names
# Between two ids, so that the order of the table finds them: a 0 comes right after a slash.
_LIVING = """FROM ingest_cursor_versions FINAL
WHERE source = {source:String} AND NOT gone AND ({every:Bool} OR scan < {before:UInt64})
    AND document_id > {after:String}
    AND ({within:String} = '' OR document_id = {within:String}
        OR document_id > concat({within:String}, '/') AND document_id < concat({within:String}, '0'))"""
_COUNT = f"SELECT count() {_LIVING}"
_PAGE = f"SELECT {_COLUMNS} {_LIVING} ORDER BY document_id LIMIT {{limit:UInt32}}"


async def of(ask: Ask, source: str, document_ids: Sequence[str]) -> Mapping[str, Cursor]:
    if not document_ids:
        return {}
    given = {utf8(document_id): document_id for document_id in document_ids}
    found = [Cursor(*values) for values in await ask(_OF, source=utf8(source), keys=list(given))]
    return {given[row.document_id]: row for row in found}


async def count(ask: Ask, source: str, before: int | None, within: str) -> int:
    found = await ask(
        _COUNT,
        source=utf8(source),
        every=before is None,
        before=before or 0,
        after="",
        within=utf8(within),
    )
    return int(found[0][0])


async def page(
    ask: Ask, source: str, before: int, after: str, limit: int, *, within: str
) -> Sequence[Cursor]:
    found = await ask(
        _PAGE,
        source=utf8(source),
        every=False,
        before=before,
        after=utf8(after),
        within=utf8(within),
        limit=limit,
    )
    return [Cursor(*values) for values in found]
