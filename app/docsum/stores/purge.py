"""Takes the content of one document out of the tables, and leaves the money.

By mutations, not by lightweight deletes: those only mark rows, and the words would stay on the disk until a
merge. Answers come before the versions of the summary: the versions name the answers that were used again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from docsum.models import Traces
from docsum.stores.connection import Ask

Command = Callable[[str, Mapping[str, object]], Awaitable[None]]

_KEYS = 500  # fingerprints in one statement
_TABLES_WITH_MESSAGES = ("run_document_versions", "dead_letter_versions", "failures")
# Bought for this document, or bought for another and used for this one.
_TEXTS = """SELECT fingerprint, uniqExact(request_id) FROM answer_versions
WHERE (raw != '' OR detail != '') AND (document_id = {document_id:String} OR fingerprint IN (
    SELECT fingerprint FROM summary_versions WHERE document_id = {document_id:String}))
GROUP BY fingerprint"""
# The inner SELECT keeps FINAL off the rest of the table.
_USED_ELSEWHERE = """SELECT DISTINCT fingerprint FROM summaries
WHERE fingerprint IN {keys:Array(String)} AND document_id != {document_id:String} AND document_id IN (
    SELECT document_id FROM summary_versions WHERE fingerprint IN {keys:Array(String)})"""
_SUMMARIES = """SELECT uniqExact(version) FROM summary_versions
WHERE document_id = {document_id:String} AND NOT is_deleted"""
_MESSAGES = "SELECT count() FROM {table} WHERE document_id = {{document_id:String}} AND message != ''"
_BLANK_MESSAGES = """ALTER TABLE {table} {on_cluster} UPDATE message = ''
WHERE document_id = {{document_id:String}} AND message != ''"""
_BLANK_TEXTS = """ALTER TABLE answer_versions {on_cluster} UPDATE raw = '', detail = ''
WHERE fingerprint IN {{keys:Array(String)}} AND (raw != '' OR detail != '')"""
_DROP_VERSIONS = """ALTER TABLE summary_versions {on_cluster} DELETE
WHERE document_id = {{document_id:String}} AND version < {{version:UInt128}}"""


async def traces(ask: Ask, document_id: str) -> Traces:
    """What is stored of the content."""
    texts, shared = await _texts(ask, document_id)
    ((summaries,),) = await ask(_SUMMARIES, document_id=document_id)
    messages = [await _messages(ask, table, document_id) for table in _TABLES_WITH_MESSAGES]
    return Traces(
        summaries=summaries,
        answers=sum(count for fingerprint, count in texts.items() if fingerprint not in shared),
        shared=sum(texts[fingerprint] for fingerprint in shared),
        messages=sum(messages),
    )


async def purge(ask: Ask, command: Command, on_cluster: str, document_id: str, version: int) -> None:
    """`command` runs a mutation to its end. One that would find nothing is not sent: it may cost a scan."""
    for table in _TABLES_WITH_MESSAGES:
        if await _messages(ask, table, document_id):
            await command(
                _BLANK_MESSAGES.format(table=table, on_cluster=on_cluster), {"document_id": document_id}
            )
    texts, shared = await _texts(ask, document_id)
    keys = sorted(texts.keys() - shared)
    for start in range(0, len(keys), _KEYS):
        await command(_BLANK_TEXTS.format(on_cluster=on_cluster), {"keys": keys[start : start + _KEYS]})
    # Older tombstones too: they carry the attributes of the event that deleted the document.
    await command(
        _DROP_VERSIONS.format(on_cluster=on_cluster), {"document_id": document_id, "version": version}
    )


async def _texts(ask: Ask, document_id: str) -> tuple[Mapping[str, int], frozenset[str]]:
    """Fingerprint -> answers with text; and the fingerprints that other documents' summaries stand on."""
    texts: dict[str, int] = dict(await ask(_TEXTS, document_id=document_id))
    keys = list(texts)
    shared: set[str] = set()
    for start in range(0, len(keys), _KEYS):
        part: Sequence[str] = keys[start : start + _KEYS]
        shared |= {key for (key,) in await ask(_USED_ELSEWHERE, document_id=document_id, keys=part)}
    return texts, frozenset(shared)


async def _messages(ask: Ask, table: str, document_id: str) -> int:
    ((count,),) = await ask(_MESSAGES.format(table=table), document_id=document_id)
    return int(count)
