"""Group commit: what shares a flush, what is sent again, and who is told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from docsum.errors import DocsumError, RowRefused, StoreMisconfigured, StoreUnavailable
from docsum.models import Answer, FailureRow, Rows, Usage
from docsum.stores.group_commit import GroupCommit
from tests.support.waiting import eventually

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def rows(name: str) -> Rows:
    return Rows(failures=(FailureRow(NOW, name, None, 1, "timeout", "extract", "retry", "", "w"),))


def answer(name: str, raw: str = "") -> Answer:
    return Answer("f", name, "m", raw, Usage(), Decimal(1), "p", "ok", NOW, 1, "d")


class Store:
    """Takes flushes; fails the next ones with `trouble`, and refuses flushes that hold a name in `wrong`."""

    def __init__(self) -> None:
        self.flushes: list[list[str]] = []
        self.tokens: list[str] = []
        self.trouble: deque[DocsumError] = deque()
        self.wrong: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()

    async def insert(self, flush: Rows, token: str) -> None:
        names = [one.request_id for one in flush.answers] + [one.document_id for one in flush.failures]
        self.tokens.append(token)
        await self.open.wait()
        if self.trouble:
            raise self.trouble.popleft()
        if self.wrong & set(names):
            raise RowRefused
        self.flushes.append(names)

    @property
    def stored(self) -> list[str]:
        return [name for flush in self.flushes for name in flush]


@asynccontextmanager
async def committing(store: Store, **options: object) -> AsyncIterator[GroupCommit]:
    quick: dict[str, object] = {
        "interval": timedelta(milliseconds=1),
        "first_wait": timedelta(milliseconds=1),
        "longest_wait": timedelta(milliseconds=2),
    }
    commits = GroupCommit(store.insert, **{**quick, **options})  # type: ignore[arg-type]  # any option
    flusher = asyncio.create_task(commits.run())
    try:
        yield commits
    finally:
        commits.close()
        flusher.cancel()
        await asyncio.gather(flusher, return_exceptions=True)


async def writes(commits: GroupCommit, names: list[str]) -> list[BaseException | None]:
    return await asyncio.gather(*(commits.write(rows(name)) for name in names), return_exceptions=True)


async def test_a_single_document_does_not_wait_for_the_interval() -> None:
    store = Store()
    async with committing(store, interval=timedelta(hours=1)) as commits:
        await asyncio.wait_for(commits.write(rows("a")), 5)
    assert store.flushes == [["a"]]


async def test_an_answer_and_what_is_made_of_it_share_a_flush() -> None:
    store = Store()
    async with committing(store) as commits:
        commits.keep(answer("paid"))
        await commits.write(rows("a"))
    assert store.flushes == [["paid", "a"]]


async def test_what_comes_during_a_flush_is_in_the_next() -> None:
    store = Store()
    async with committing(store) as commits:
        store.open.clear()
        first = asyncio.create_task(commits.write(rows("a")))
        await eventually(lambda: len(store.tokens) == 1)
        others = asyncio.create_task(writes(commits, ["b", "c", "d"]))
        await eventually(lambda: commits.buffered_rows == 4)
        store.open.set()
        await asyncio.gather(first, others)
    assert store.flushes == [["a"], ["b", "c", "d"]]


async def test_a_flush_holds_so_many_documents_and_a_full_one_does_not_wait() -> None:
    store = Store()
    names = [str(n) for n in range(10)]
    async with committing(store, documents=5, interval=timedelta(hours=1)) as commits:
        assert await asyncio.wait_for(writes(commits, names), 5) == [None] * 10
    assert store.flushes == [names[:5], names[5:]]


async def test_a_flush_holds_so_many_bytes_and_one_entry_at_least() -> None:
    store = Store()
    async with committing(store, flush_bytes=2_500) as commits:
        for name in ("a", "b", "c"):
            commits.keep(answer(name, raw="x" * 1_000))
        commits.keep(answer("large", raw="x" * 10_000))
        assert await commits.drain(timedelta(seconds=5)) == 0
    assert store.flushes == [["a"], ["b"], ["c"], ["large"]]


@pytest.mark.parametrize("trouble", [StoreUnavailable, StoreMisconfigured])
async def test_a_flush_is_sent_again_with_its_token_until_it_works(trouble: type[DocsumError]) -> None:
    store = Store()
    async with committing(store) as commits:
        store.trouble.extend([trouble("down"), trouble("down"), trouble("still down")])
        await commits.write(rows("a"))
        assert (len(store.tokens), len(set(store.tokens))) == (4, 1)
        assert commits.unavailable_since is None
    assert store.flushes == [["a"]]


async def test_trouble_shows_while_it_lasts() -> None:
    store = Store()
    async with committing(store, first_wait=timedelta(hours=1)) as commits:
        store.trouble.append(StoreUnavailable("down"))
        commits.keep(answer("paid"))
        await eventually(lambda: commits.unavailable_since is not None)
        assert await commits.drain(timedelta(milliseconds=20)) == 1


async def test_a_row_that_is_refused_fails_alone_and_the_others_keep_their_order() -> None:
    store = Store()
    names = [str(n) for n in range(9)]
    store.wrong = {"3", "7"}
    async with committing(store) as commits:
        outcomes = await writes(commits, names)
    assert [type(outcome) for outcome in outcomes] == [
        RowRefused if name in store.wrong else type(None) for name in names
    ]
    assert store.stored == [name for name in names if name not in store.wrong]
    assert len(set(store.tokens)) == len(store.tokens)  # other rows, another token


async def test_an_answer_that_is_refused_counts_as_not_stored() -> None:
    store = Store()
    store.wrong = {"paid"}
    async with committing(store) as commits:
        commits.keep(answer("paid"))
        await commits.write(rows("a"))
        assert await commits.drain(timedelta(seconds=5)) == 1
    assert store.stored == ["a"]


async def test_a_full_buffer_makes_writers_wait_and_answers_not() -> None:
    store = Store()
    async with committing(store, buffer_bytes=1_000) as commits:
        store.open.clear()
        commits.keep(answer("first"))
        await eventually(lambda: len(store.tokens) == 1)
        tasks = [asyncio.create_task(commits.write(rows(name))) for name in "abcd"]
        await eventually(lambda: commits.buffered_rows == 3)  # first, and two of 500 bytes
        commits.keep(answer("paid"))
        assert commits.buffered_rows == 4
        store.open.set()
        await asyncio.gather(*tasks)
    assert sorted(store.stored) == ["a", "b", "c", "d", "first", "paid"]


async def test_rows_of_a_writer_that_was_cancelled_are_stored() -> None:
    store = Store()
    async with committing(store) as commits:
        store.open.clear()
        write = asyncio.create_task(commits.write(rows("a")))
        await eventually(lambda: commits.buffered_rows == 1)
        write.cancel()
        await asyncio.gather(write, return_exceptions=True)
        store.open.set()
        await commits.drain(timedelta(seconds=5))
    assert store.stored == ["a"]


async def test_draining_does_not_wait_for_the_interval() -> None:
    store = Store()
    async with committing(store, interval=timedelta(hours=1)) as commits:
        await commits.write(rows("a"))
        commits.keep(answer("paid"))
        assert await asyncio.wait_for(commits.drain(timedelta(seconds=5)), 5) == 0
    assert store.stored == ["a", "paid"]


async def test_who_waits_when_the_store_closes_is_told() -> None:
    store = Store()
    async with committing(store) as commits:
        store.open.clear()
        write = asyncio.create_task(commits.write(rows("a")))
        await eventually(lambda: len(store.tokens) == 1)
        commits.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await write
        with pytest.raises(StoreUnavailable, match="closed"):
            await commits.write(rows("b"))


async def test_every_insert_is_told_with_its_seconds_and_its_error() -> None:
    store, told = Store(), list[tuple[int, str]]()
    store.trouble.append(StoreUnavailable("Down."))
    store.wrong = {"b"}

    def flushed(flush: Rows, seconds: float, error: DocsumError | None) -> None:
        assert seconds >= 0
        told.append((len(flush.failures), type(error).__name__))

    async with committing(store, flushed=flushed) as commits:
        await writes(commits, ["a", "b"])
    assert told == [(2, "StoreUnavailable"), (2, "RowRefused"), (1, "NoneType"), (1, "RowRefused")]
