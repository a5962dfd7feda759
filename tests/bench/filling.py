"""A store with many documents, made by the engine itself: millions take minutes.

A document is a number. What it is called is a pure function of that, here and in SQL, so that a bench can ask
for any of them. The ids of one time are spread over the whole range, as in busy folders: every part of a
table may hold any key, the worst case for a look-up. The texts are cut from one long text, so that 256 of
them together, a granule, compress about as well as prose: to 40 %.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from string import ascii_lowercase
from uuid import UUID

from docsum.models import (
    Answer,
    Coordinates,
    Lane,
    Rows,
    RunDocumentRow,
    State,
    Summary,
    SummaryRow,
    Usage,
    to_ms,
)

COST = "0.002712"  # US dollars, of every answer

_AT_ONCE = 200_000  # documents a statement: a part of about 200 MB, in memory before it is written
_SEED = 21
_PROSE = 200_000  # characters; a statement may have 262,144
_TEXT = 800  # characters of a summary


def fingerprint(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def document_id(number: int) -> str:
    return f"s3://contracts/{fingerprint(number)[:3]}/{number:08d}.pdf"


def run_id(run: int) -> UUID:
    """Of the run of that number; the first is 0."""
    return UUID(f"00000000-0000-4000-8000-{run:012d}")


_NAMED = """SELECT number, lower(hex(SHA256(toString(number)))) AS fingerprint,
    concat('s3://contracts/', substring(fingerprint, 1, 3), '/', leftPad(toString(number), 8, '0'), '.pdf')
        AS document_id,
    toUUID(concat('00000000-0000-4000-8000-', leftPad(toString(intDiv(number, {of_run})), 12, '0')))
        AS run_id,
    toInt64(1790000000000 + number) AS ms, fromUnixTimestamp64Milli(ms, 'UTC') AS moment,
    substring('{prose}', 1 + cityHash64(number) % {last}, {length}) AS text
FROM numbers({start}, {count})"""

_PAID = {
    "fingerprint": "fingerprint",
    "model": "'claude-haiku-5-5'",
    "input_tokens": "1200 + number % 1000",
    "output_tokens": "300",
    "cost": f"toDecimal64('{COST}', 9)",
    "document_id": "document_id",
    "run_id": "run_id",
}
#: Table -> column -> expression over what `_NAMED` selects; other columns keep their defaults.
_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "answer_versions": {
        **_PAID,
        "request_id": "concat('msg_', substring(fingerprint, 41))",
        "raw": """concat('{"title": "', substring(text, 1, 60), '", "summary": "', text,
            '", "key_points": [], "language": "en", "document_type": "report", "warnings": []}')""",
        "price_version": "'2026-10'",
        "status": "'ok'",
        "answered_at": "moment",
        "latency_ms": "1000 + number % 700",
        "lane": "'backfill'",
    },
    "summary_versions": {
        **_PAID,
        "version": "bitShiftLeft(toUInt128(ms), 80)",
        "state": f"'{State.DONE.value}'",
        "source_version": "substring(fingerprint, 1, 32)",
        "uri": "document_id",
        "title": "substring(text, 1, 60)",
        "summary": "text",
        "language": "'en'",
        "document_type": "'report'",
        "recipe": "'0123456789abcdef'",
        "kafka_topic": "'docsum.backfill'",
        "kafka_partition": "number % 12",
        "kafka_offset": "intDiv(number, 12)",
        "occurred_at": "moment",
        "written_at": "moment",
    },
    "run_document_versions": {
        "run_id": "run_id",
        "document_id": "document_id",
        "state": f"arrayJoin(['{State.QUEUED.value}', '{State.DONE.value}'])",  # each was queued first
        "uri": "document_id",
        "attempt": "1",
        "written_at": "moment",
        "version": f"bitShiftLeft(toUInt64(if(state = '{State.DONE.value}', {State.DONE.rank}, 0)), 56) + ms",
    },
}
TABLES = tuple(_COLUMNS)


def statements(start: int, end: int, of_run: int) -> Iterator[str]:
    """What fills the tables with the documents from `start` up to `end`; so many in turn are one run."""
    for first in range(start, end, _AT_ONCE):
        named = _NAMED.format(
            start=first,
            count=min(_AT_ONCE, end - first),
            of_run=of_run,
            prose=_prose(),
            last=_PROSE - _TEXT,
            length=_TEXT,
        )
        for table, columns in _COLUMNS.items():
            values = ", ".join(f"{value} AS {column}" for column, value in columns.items())
            yield f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM ({named})"


def rows_of(number: int, run_id: UUID, now: datetime) -> Rows:
    """What a worker writes for a document whose summary it has just bought, about 2 KB in three tables."""
    name, print_, text, cost = f"{run_id}/{number:08d}.pdf", fingerprint(number), _text(number), Decimal(COST)
    answer = Answer(
        fingerprint=print_,
        request_id=f"msg_{run_id.hex[:8]}{number:016d}",
        model="claude-haiku-5-5",
        raw=json.dumps({"title": text[:60], "summary": text}),
        usage=Usage(1_200, 300),
        cost=cost,
        price_version="2026-10",
        status="ok",
        answered_at=now,
        latency_ms=1_234,
        document_id=name,
        run_id=run_id,
        lane=Lane.BACKFILL,
    )
    summary = Summary(
        title=text[:60],
        summary=text,
        key_points=(text[:80], text[80:160]),
        language="en",
        document_type="report",
        warnings=(),
        model="claude-haiku-5-5",
        recipe="0123456789abcdef",
        fingerprint=print_,
        input_tokens=1_200,
        output_tokens=300,
        cost=cost,
    )
    row = SummaryRow(
        document_id=name,
        version=to_ms(now) << 80,
        state=State.DONE,
        source_version=print_[:32],
        uri=f"s3://contracts/{name}",
        summary=summary,
        attributes={},
        run_id=run_id,
        origin=Coordinates("docsum.backfill", number % 12, number // 12),
        occurred_at=now,
        written_at=now,
    )
    state = RunDocumentRow(run_id, name, State.DONE, row.uri, 1, "", "", now)
    return Rows(answers=(answer,), summaries=(row,), run_documents=(state,))


def _text(number: int) -> str:
    start = random.Random(number).randrange(_PROSE - _TEXT)
    return _prose()[start : start + _TEXT]


@cache
def _prose() -> str:
    """Letters by chance: hard to compress, but its pieces overlap in a block of a table."""
    return "".join(random.Random(_SEED).choices(ascii_lowercase + "    ", k=_PROSE))
