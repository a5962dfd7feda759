"""The port CursorStore: what was announced of a source, on the store in memory and on a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from docsum.models import Cursor
from docsum.ports import CursorStore
from docsum.stores import migrate
from docsum.stores.clickhouse import ClickHouseStore
from docsum.stores.memory import MemoryStore
from tests.contract.test_store import INTERVAL, NOW
from tests.support.engine import Engine

SOURCE = "/data/contracts"


@pytest.fixture(params=["memory", "clickhouse"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[CursorStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    engine: Engine = request.getfixturevalue("engine")
    settings = engine.settings
    await migrate.setup(settings)
    async with ClickHouseStore(settings, INTERVAL) as opened:
        yield opened


def row(name: str, scan: int = 1, **fields: object) -> Cursor:
    made = Cursor(SOURCE, f"file:///data/contracts/{name}", "v1", scan, NOW)
    return replace(made, **fields)  # type: ignore[arg-type]  # a builder


async def test_a_row_reads_back_and_belongs_to_its_source(store: CursorStore) -> None:
    rows = [row("a.txt"), row("b.txt", gone=True), row("a.txt", source="/other", source_version="theirs")]
    await store.save_cursors(rows)
    asked = [each.document_id for each in rows] + ["file:///unknown"]
    assert await store.cursors(SOURCE, asked) == {each.document_id: each for each in rows[:2]}
    assert await store.cursors("/other", asked) == {rows[2].document_id: rows[2]}
    assert await store.cursors("/nobody", asked) == {}
    assert await store.cursors(SOURCE, []) == {}
    await store.save_cursors([])


async def test_the_latest_scan_wins_and_of_equal_ones_the_last_written(
    store: CursorStore,
) -> None:
    name = row("a.txt").document_id
    for written, seen in (
        (row("a.txt", 5, source_version="five"), "five"),
        (row("a.txt", 4, source_version="four"), "five"),
        (row("a.txt", 5, source_version="five again"), "five again"),
        (row("a.txt", 6, gone=True, source_version=""), ""),
    ):
        await store.save_cursors([written])
        found = await store.cursors(SOURCE, [name])
        assert found[name].source_version == seen
    assert await store.count_cursors(SOURCE) == 0


async def test_what_a_scan_has_not_seen_comes_in_pages(store: CursorStore) -> None:
    old = [row(f"{number}.txt", 3) for number in range(5)]
    await store.save_cursors([*old, row("new.txt", 7), row("gone.txt", 2, gone=True)])
    assert await store.count_cursors(SOURCE) == 6
    assert await store.count_cursors(SOURCE, 7) == 5
    assert await store.count_cursors(SOURCE, 3) == 0
    first = await store.cursors_before(SOURCE, 7, "", 3)
    rest = await store.cursors_before(SOURCE, 7, first[-1].document_id, 3)
    assert [*first, *rest] == old
    assert await store.cursors_before(SOURCE, 7, rest[-1].document_id, 3) == []


async def test_within_is_a_document_and_what_lies_below_it(store: CursorStore) -> None:
    names = ("in", "in/a.txt", "in/deep/b.txt", "in-law.txt", "in.txt", "in0.txt", "inside.txt", "out.txt")
    await store.save_cursors([row(name) for name in names])
    within = row("in").document_id
    found = await store.cursors_before(SOURCE, 2, "", 10, within=within)
    assert [each.document_id for each in found] == [row(name).document_id for name in names[:3]]
    assert await store.count_cursors(SOURCE, 2, within=within) == 3
    assert await store.count_cursors(SOURCE, 1, within=within) == 0


async def test_names_that_are_hard_to_write_come_back(store: CursorStore) -> None:
    names = ("it's.txt", "tab%09.txt", "日本.txt", "50 %.txt", "{x:String}.txt", "back\\slash.txt")
    await store.save_cursors([row(name) for name in names])
    asked = [row(name).document_id for name in names]
    assert sorted(await store.cursors(SOURCE, asked)) == sorted(asked)
    assert [len(await store.cursors_before(SOURCE, 2, "", 9, within=name)) for name in asked] == [1] * 6
