"""The store on a real ClickHouse engine: what durable rows take, and look-ups as the tables grow.

Rows: so many writers at once, each with one document after the other (its answer, its summary and its state
in the run), through the group commit, into an empty store. A document's time is from `write` to the moment
when its rows are on the disk. A writer that rests for an interval after each document finds an idle store.

Look-ups: so many ids at once, asked for one by one and gathered by the store; the time is that of all of them
together, with the 5 ms for which they are gathered. The ids are random ones of all that are stored, or of as
many that are not. The engine fills the tables, one size after the other, and merges them as it thinks right.

Run: its exact counts, and what it has spent; it is as large in every store, so that it should take as long.
`spent` is asked as if nobody had asked before: a store believes an answer for 2 s.

p99 of less than 100 times is the longest. Growth is p50 in the largest store over p50 in the smallest. All of
it is read from the page cache where memory has room for that. Nothing is asserted but that every answer is
right.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

from clickhouse_connect.driver.asyncclient import AsyncClient

from docsum.bootstrap import open_store, setup_store
from docsum.local.model_server import whole_number
from docsum.models import EPOCH
from docsum.settings import Settings, Store
from docsum.stores.clickhouse import ClickHouseStore
from docsum.stores.connection import connect, translated
from tests.bench import filling, report
from tests.bench.command import carry_out, result_path, say
from tests.bench.stand import BenchFailed
from tests.support.engine import Engine

_AT_ONCE = (1, 50, 500)
_FAST = timedelta(milliseconds=20)  # as in the bench of whole workers
_LARGEST_RUN = 1_000_000  # documents
_LEAST = 3  # times, however long one takes
_PATIENCE = timedelta(minutes=15)  # for one filling statement, and for the merges that follow all of them
_RESTS = 5  # looks without a merge: the next one is not always begun at once
_SEED = 22
_QUICK = {"documents": "20000,100000", "seconds": 2, "repeats": 50}
_FLUSH_COLUMNS = ("p50, p99 ms", "documents/s", "rows/s")
_EXAMPLES = """\
examples:
  python -m tests.bench.store                              1 and 10 million documents
  python -m tests.bench.store --quick                      a minute or two for a first look
  python -m tests.bench.store --documents 100000,1000000   other sizes
"""
Say = Callable[[str], None]
_Ask = Callable[[], Awaitable[None]]
_Found = Mapping[str, Any]  # Any: what `measure` found, or the same from a file


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, milliseconds."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        ordered = [1000 * each for each in sorted(seconds)]
        return cls(len(ordered), ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100])


@dataclass(frozen=True, slots=True)
class Flush:
    """Rows of documents until they are durable."""

    work: str
    times: Times  # of a document
    rate: float  # documents a second
    rows: float  # a second


@dataclass(frozen=True, slots=True)
class Asked:
    """One kind of question to the store."""

    question: str
    times: Times


@dataclass(frozen=True, slots=True)
class Size:
    """What a table takes."""

    table: str
    rows: int
    parts: int
    disk: int  # bytes, with the index
    raw: int  # bytes before compression


@dataclass(frozen=True, slots=True)
class Filled:
    """A store of some size, and what it answered."""

    documents: int
    of_run: int  # documents
    filled_s: float  # seconds, merges included
    asked: tuple[Asked, ...]
    sizes: tuple[Size, ...]


# -- the measurements ----------------------------------------------------------------------------------------


async def measure(
    folder: Path, documents: Sequence[int], seconds: float, repeats: int, say: Say
) -> dict[str, Any]:
    """Everything, as JSON has it; the sizes ascend. Raises BenchFailed or DocsumError."""
    engine = Engine(folder / "clickhouse")
    engine.directory.mkdir()
    try:
        engine.start()
        say("The ClickHouse engine is there.")
        flushes = [asdict(each) async for each in _flushes(await _empty(engine, folder), seconds, say)]
        filled = _filled(await _empty(engine, folder), documents, seconds, repeats, say)
        return {"flushes": flushes, "stores": [asdict(each) async for each in filled]}
    finally:
        engine.stop()


async def _empty(engine: Engine, folder: Path) -> Settings:
    """A database of its own with all tables."""
    settings = Settings(_env_file=None, home=folder, clickhouse=engine.settings)
    await setup_store(settings)
    return settings


async def _flushes(settings: Settings, seconds: float, say: Say) -> AsyncIterator[Flush]:
    for interval in (_FAST, settings.store.flush_interval):
        changed = settings.model_copy(update={"store": Store(flush_interval=interval)})
        async with open_store(changed) as store:
            for writers, idle in ((1, True), *((writers, False) for writers in _AT_ONCE)):
                found = await _flush(store, interval, writers, idle=idle, seconds=seconds)
                yield found
                say(f"{found.work}: {found.rate:,.0f} documents/s")


async def _flush(
    store: ClickHouseStore, interval: timedelta, writers: int, *, idle: bool, seconds: float
) -> Flush:
    """Raises BenchFailed unless every document is stored."""
    run_id, numbers, taken = uuid4(), count(1), list[float]()
    await store.write(filling.rows_of(0, run_id, datetime.now(UTC)))  # the types of the columns are known now
    began = time.perf_counter()

    async def write() -> None:
        while time.perf_counter() < began + seconds:
            rows = filling.rows_of(next(numbers), run_id, datetime.now(UTC))
            start = time.perf_counter()
            await store.write(rows)
            taken.append(time.perf_counter() - start)
            if idle:
                await asyncio.sleep(interval.total_seconds())

    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(write())
    rate = len(taken) / (time.perf_counter() - began)
    written = 1 + len(taken)
    if (done := (await store.progress(run_id)).done) != written:
        raise BenchFailed(f"{done} of {written} documents are stored.")
    return Flush(_title(interval, writers, idle=idle), Times.of(taken), rate, 3 * rate)


def _title(interval: timedelta, writers: int, *, idle: bool) -> str:
    work = "1 writer, idle store" if idle else f"{writers} writer{'s' * (writers > 1)}"
    return f"{work}, a flush every {1000 * interval.total_seconds():.0f} ms"


async def _filled(
    settings: Settings, documents: Sequence[int], seconds: float, repeats: int, say: Say
) -> AsyncIterator[Filled]:
    """The same tables at one size after the other."""
    of_run, stored = min([*documents, _LARGEST_RUN]), 0
    async with open_store(settings) as store, _client(settings) as client:
        for size in documents:
            began = time.perf_counter()
            for statement in filling.statements(stored, size, of_run):
                await client.command(statement, settings={"max_execution_time": 0})
            stored = size
            await _merged(client)
            filled_s = time.perf_counter() - began
            say(f"{size:,} documents are stored after {filled_s:.0f} s.")
            asked = []
            for question, ask in _questions(store, size, of_run):
                asked.append(Asked(question, await _timed(ask, seconds, repeats)))
                say(f"{size:,} documents, {question}: {asked[-1].times.p50:,.1f} ms")
            yield Filled(size, of_run, filled_s, tuple(asked), await _sizes(client))


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[AsyncClient]:
    """For what the store has no words for."""
    database = settings.clickhouse.database
    client = await connect(settings.clickhouse, database=database, patience=_PATIENCE)
    try:
        with translated():
            yield client
    finally:
        await client.close()


async def _merged(client: AsyncClient) -> None:
    """Wait until the engine merges no more. Raises BenchFailed when that takes too long."""
    rests = 0
    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()):
            while rests < _RESTS:
                await asyncio.sleep(0.5)
                ((merges,),) = (await client.query("SELECT count() FROM system.merges")).result_rows
                rests = 0 if merges else rests + 1
    except TimeoutError as error:
        raise BenchFailed("The merges of the tables have not ended.") from error


async def _sizes(client: AsyncClient) -> tuple[Size, ...]:
    found = await client.query(
        "SELECT table, sum(rows), count(), sum(bytes_on_disk), sum(data_uncompressed_bytes) "
        "FROM system.parts WHERE database = currentDatabase() AND active AND table IN {tables:Array(String)} "
        "GROUP BY table ORDER BY table",
        parameters={"tables": list(filling.TABLES)},
    )
    return tuple(Size(*values) for values in found.result_rows)


def _questions(store: ClickHouseStore, documents: int, of_run: int) -> Iterator[tuple[str, _Ask]]:
    """Each raises BenchFailed where the answer is wrong."""
    chance = random.Random(_SEED)

    async def look(ask: Callable[[int], Awaitable[object]], at_once: int, *, stored: bool) -> None:
        start = 0 if stored else documents
        numbers = chance.sample(range(start, start + documents), at_once)
        found = await asyncio.gather(*map(ask, numbers))
        if any(bool(each) != stored for each in found):
            raise BenchFailed(f"Not {'all' if stored else 'none'} of {at_once} ids were found.")

    for name, ask in (
        ("documents known", lambda number: store.known(filling.document_id(number))),
        ("answers", lambda number: store.answers(filling.fingerprint(number))),
    ):
        for at_once in _AT_ONCE:
            for stored in (True, False):
                title = f"{name}, {at_once} at once, {'stored' if stored else 'not stored'}"
                yield title, partial(look, ask, at_once, stored=stored)
    yield "progress of a run", partial(_progress, store, of_run)
    moments = map(timedelta(milliseconds=1).__mul__, count())  # none is asked for twice
    yield "spent by a run", partial(_spent, store, filling.run_id(0), of_run, moments)
    yield "spent by all", partial(_spent, store, None, documents, moments)


async def _progress(store: ClickHouseStore, of_run: int) -> None:
    found = await store.progress(filling.run_id(0))
    if (found.done, found.total, found.cost) != (of_run, of_run, of_run * Decimal(filling.COST)):
        raise BenchFailed(f"A run of {of_run} documents was counted as {found}.")


async def _spent(
    store: ClickHouseStore, run_id: UUID | None, answers: int, moments: Iterator[timedelta]
) -> None:
    if (found := await store.spent(run_id, EPOCH + next(moments))) != answers * Decimal(filling.COST):
        raise BenchFailed(f"{answers} answers were counted as {found} dollars.")


async def _timed(ask: _Ask, seconds: float, repeats: int) -> Times:
    await ask()  # connections, columns and caches are there now
    taken = list[float]()
    began = time.perf_counter()
    while len(taken) < _LEAST or (len(taken) < repeats and time.perf_counter() < began + seconds):
        start = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - start)
    return Times.of(taken)


# -- the tables ----------------------------------------------------------------------------------------------


def show(found: _Found) -> None:
    report.show_tables(_tables(found))


def markdown(found: _Found) -> Iterator[str]:
    """The same tables, for a README."""
    return report.markdown(_tables(found))


def _tables(found: _Found) -> Iterator[report.Titled]:
    stores = found["stores"]
    sizes = [f"{store['documents']:,} documents" for store in stores]
    yield "Rows until they are durable", ("", *_FLUSH_COLUMNS), [*flush_lines(found)]
    columns = ("", *(f"{size}: p50, p99 ms" for size in sizes), "growth")
    of_run = stores[0]["of_run"]
    yield f"Look-ups, and a run of {of_run:,} documents", columns, [*asked_lines(found)]
    yield "Bytes on disk a document", ("", *sizes), [*size_lines(found)]


def flush_lines(found: _Found) -> Iterator[tuple[str, ...]]:
    for each in found["flushes"]:
        yield each["work"], _pair(each["times"]), f"{each['rate']:,.0f}", f"{each['rows']:,.0f}"


def asked_lines(found: _Found) -> Iterator[tuple[str, ...]]:
    """Each question with its times in every store, and how many times as long it takes in the largest."""
    for same in zip(*(store["asked"] for store in found["stores"]), strict=True):
        times = [each["times"] for each in same]
        growth = f"{times[-1]['p50'] / times[0]['p50']:.2f}" if len(times) > 1 else ""
        yield same[0]["question"], *map(_pair, times), growth


def size_lines(found: _Found) -> Iterator[tuple[str, ...]]:
    """Each table in every store, and all of them; before compression, too."""
    stores = found["stores"]
    for name in filling.TABLES:
        yield name, *(_bytes(store, "disk", name) for store in stores)
    yield "all", *(_bytes(store, "disk", *filling.TABLES) for store in stores)
    yield "before compression", *(_bytes(store, "raw", *filling.TABLES) for store in stores)


def _bytes(store: _Found, kind: str, *tables: str) -> str:
    total = sum(size[kind] for size in store["sizes"] if size["table"] in tables)
    return f"{total / store['documents']:,.0f}"


def _pair(times: _Found) -> str:
    return f"{times['p50']:,.1f}, {times['p99']:,.1f}"


# -- the command ---------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.store",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--documents",
        type=_sizes_of,
        default="1000000,10000000",
        metavar="N,...",
        help="of a store; default 1000000,10000000",
    )
    add("--seconds", type=whole_number, default=10, metavar="N", help="a line at most; default 10")
    add("--repeats", type=whole_number, default=300, metavar="N", help="of a question at most; default 300")
    add("--quick", action="store_true", help="20,000 and 100,000 documents, 2 s and 50 repeats a line")
    add(
        "--json",
        type=Path,
        default=result_path("store"),
        metavar="PATH",
        help="default bench-results/DATE-store.json",
    )
    if parser.parse_args(argv).quick:
        parser.set_defaults(**_QUICK)  # what is said besides still counts
    return parser.parse_args(argv)


def _sizes_of(text: str) -> list[int]:
    sizes = sorted(set(map(whole_number, text.split(","))))
    if sizes[0] < max(_AT_ONCE):
        raise argparse.ArgumentTypeError(
            f"a store has at least {max(_AT_ONCE)} documents: they are asked for"
        )
    return sizes


def main() -> int:
    options = arguments()

    def work(folder: Path) -> Mapping[str, object]:
        found = asyncio.run(measure(folder, options.documents, options.seconds, options.repeats, say))
        show(found)
        return {"store": found}

    return carry_out(work, options.json)


if __name__ == "__main__":
    sys.exit(main())
