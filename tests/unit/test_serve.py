"""What a worker process needs before it can be one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from docsum.errors import ConfigurationError
from docsum.serve import state_folder
from docsum.settings import ClickHouse
from docsum.stores.clickhouse import ClickHouseStore


def test_a_home_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    for _ in range(2):
        assert state_folder(home) == home / "faust"
    assert (home / "faust").is_dir()


def test_a_home_that_cannot_be_made_is_a_setting_to_correct(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="set DOCSUM_HOME to a folder"):
        state_folder(tmp_path / "file" / "home")


async def test_what_ends_the_flushes_of_a_store_is_told_to_whoever_waits_for_it() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    store = ClickHouseStore(ClickHouse(), timedelta(seconds=1))
    store._flusher = asyncio.create_task(broken())
    with pytest.raises(ZeroDivisionError):
        await store.flushing()


async def test_who_waits_no_more_for_the_flushes_does_not_end_them() -> None:
    async def flush() -> None:
        await asyncio.Event().wait()

    store = ClickHouseStore(ClickHouse(), timedelta(seconds=1))
    store._flusher = asyncio.create_task(flush())
    waiting = asyncio.create_task(store.flushing())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not store._flusher.done()
    store._flusher.cancel()
