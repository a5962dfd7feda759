"""Look-ups that share a query."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from docsum.errors import StoreUnavailable
from docsum.stores.lookups import Lookup
from tests.support.waiting import eventually


class Table:
    """Knows even numbers; counts the queries."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []
        self.down = False
        self.open = asyncio.Event()
        self.open.set()

    async def ask(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.queries.append(list(keys))
        await self.open.wait()
        if self.down:
            raise StoreUnavailable("down")
        return {key: int(key) for key in keys if int(key) % 2 == 0}


async def test_look_ups_that_come_together_share_a_query_and_a_key() -> None:
    table = Table()
    lookup: Lookup[int | None] = Lookup(table.ask, None)
    assert await asyncio.gather(*(lookup(key) for key in ("1", "2", "2", "4"))) == [None, 2, 2, 4]
    assert table.queries == [["1", "2", "4"]]


async def test_a_full_query_is_sent_at_once_and_queries_run_side_by_side() -> None:
    table = Table()
    table.open.clear()
    lookup: Lookup[int | None] = Lookup(table.ask, None, gather=timedelta(hours=1), limit=2)
    asked = asyncio.gather(*(lookup(str(key)) for key in range(4)))
    await eventually(lambda: table.queries == [["0", "1"], ["2", "3"]])
    table.open.set()
    assert await asked == [0, None, 2, None]


async def test_everyone_in_a_query_gets_its_error_and_the_next_query_is_new() -> None:
    table = Table()
    table.down = True
    lookup: Lookup[int | None] = Lookup(table.ask, None)
    errors = await asyncio.gather(lookup("1"), lookup("2"), return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailable, StoreUnavailable]
    table.down = False
    assert await lookup("2") == 2


async def test_a_caller_that_is_cancelled_does_not_take_the_others_along() -> None:
    table = Table()
    table.open.clear()
    lookup: Lookup[int | None] = Lookup(table.ask, None)
    first, second = asyncio.create_task(lookup("2")), asyncio.create_task(lookup("2"))
    await eventually(lambda: bool(table.queries))
    first.cancel()
    table.open.set()
    assert await second == 2


@pytest.mark.parametrize("gather", [timedelta(hours=1), timedelta()])
async def test_who_waits_at_the_end_is_told(gather: timedelta) -> None:
    table = Table()
    table.open.clear()
    lookup: Lookup[int | None] = Lookup(table.ask, None, gather=gather)
    asked = asyncio.create_task(lookup("2"))
    await asyncio.sleep(0)
    if not gather:
        await eventually(lambda: bool(table.queries))
    lookup.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await asked
