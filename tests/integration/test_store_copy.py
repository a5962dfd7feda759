"""`deploy/store.sh`: every table there and back, whatever its types are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clickhouse_connect.driver.asyncclient import AsyncClient

from docsum.settings import ClickHouse
from docsum.stores.connection import connect
from docsum.stores.migrate import setup
from tests.support.engine import Engine
from tests.support.manifests import ROOT

ROWS = 7


def store(settings: ClickHouse, *arguments: str) -> subprocess.CompletedProcess[str]:
    told = {
        "DOCSUM_CLICKHOUSE__URL": settings.url,
        "DOCSUM_CLICKHOUSE__DATABASE": settings.database,
        "DOCSUM_CLICKHOUSE__PASSWORD": settings.password.get_secret_value(),
    }
    return subprocess.run(
        [ROOT / "deploy/store.sh", *arguments],
        env={"PATH": os.environ["PATH"], **told},
        capture_output=True,
        text=True,
        check=False,
    )


@asynccontextmanager
async def opened(settings: ClickHouse) -> AsyncIterator[AsyncClient]:
    client = await connect(settings, database=settings.database)
    try:
        yield client
    finally:
        await client.close()


async def tables(client: AsyncClient) -> dict[str, int]:
    """Every table but the list of migrations, and one number for all that is in it."""
    names = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    found = {}
    for (name,) in (await client.query(names)).result_rows:
        if name != "schema_migrations":
            digest = f"SELECT count() + sum(cityHash64(formatRow('JSONEachRow', *))) FROM {name}"
            found[name] = int((await client.query(digest)).result_rows[0][0])
    return found


async def fill(client: AsyncClient) -> None:
    """Random rows in every table."""
    for name in await tables(client):
        columns = (await client.query(f"DESCRIBE {name}")).result_rows
        types = ", ".join(f"{column[0]} {column[1]}" for column in columns).replace("'", "\\'")
        real = {
            "is_deleted": "is_deleted % 2 AS is_deleted",  # the engine takes no other number
            # Older rows would be forgotten in the middle of this.
            **{each: f"now64(3) AS {each}" for each in ("failed_at", "beat_at", "died_at")},
        }
        kept = ", ".join(real[column[0]] for column in columns if column[0] in real)
        replaced = f" REPLACE ({kept})" if kept else ""
        await client.command(
            f"INSERT INTO {name} SELECT *{replaced} FROM generateRandom('{types}', 1, 20, 3) LIMIT {ROWS}"
        )


async def test_every_table_comes_back_as_it_was(engine: Engine, tmp_path: Path) -> None:
    first, second = engine.settings, engine.settings
    for settings in (first, second):
        await setup(settings)
    async with opened(first) as client:
        await fill(client)
        before = await tables(client)
    assert len(before) > 10 and all(before.values())
    copy = tmp_path / "copy"
    done = store(first, "backup", str(copy))
    assert done.returncode == 0, done.stderr
    assert copy.stat().st_mode & 0o77 == 0
    restored = store(second, "restore", str(copy))
    assert restored.returncode == 0, restored.stderr
    async with opened(second) as client:
        assert await tables(client) == before
    again = store(second, "restore", str(copy))
    assert again.returncode == 1 and "is not empty" in again.stderr


def test_a_copy_that_was_not_finished_is_not_restored_and_a_wrong_password_makes_none(
    engine: Engine, tmp_path: Path
) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    done = store(engine.settings, "restore", str(unfinished))
    assert done.returncode == 1 and "no complete copy" in done.stderr
    wrong = engine.settings.model_copy(update={"password": ClickHouse().password})
    refused = store(wrong, "backup", str(tmp_path / "refused"))
    assert refused.returncode == 1 and "Authentication failed" in refused.stderr
    assert not (tmp_path / "refused").exists()
