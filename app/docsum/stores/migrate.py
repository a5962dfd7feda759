"""Makes the tables and says whether they are the ones that this version of docsum works with.

`migrations/NNN_name.sql` in order of their numbers, every statement safe to run again: ClickHouse's DDL is
not transactional. `schema_migrations` remembers what was applied, with checksums.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from clickhouse_connect.driver.asyncclient import AsyncClient

from docsum.errors import ConfigurationError, StoreMisconfigured
from docsum.settings import ClickHouse
from docsum.stores.connection import code_of, connect, translated
from docsum.stores.tables import TABLES, VIEWS, Table, Values

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_MISSING = (60, 81)  # no such table, no such database
#: An acknowledged row is on the disk, and an insert that is sent again with the same token is one insert.
_DURABILITY = (
    "fsync_after_insert = 1, fsync_part_directory = 1, min_compressed_bytes_to_fsync_after_merge = 1, "
    "non_replicated_deduplication_window = 1000"
)
_LEDGER_COLUMNS = ("version", "name", "checksum", "applied_at")
_LEDGER = """CREATE TABLE IF NOT EXISTS schema_migrations {on_cluster} (
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC')
) ENGINE = {engine}ReplacingMergeTree(applied_at)
ORDER BY version
SETTINGS {durability}"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, variables: Mapping[str, str]) -> Sequence[str]:
        """One a call; a statement ends with a semicolon at the end of a line."""
        parts = re.split(r";\s*\n", _filled(self.text, variables) + "\n")
        return [part.strip() for part in parts if part.strip()]


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this version, in order."""
    found = [
        Migration(int(file.name[:3]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in files("docsum.stores").joinpath("migrations").iterdir()
        if file.name.endswith(".sql")
    ]
    return tuple(sorted(found, key=lambda migration: migration.version))


def script(settings: ClickHouse) -> str:
    """Everything that `setup` would run on an empty server, for those who run it themselves."""
    variables = _variables(settings.cluster)
    statements = [_database_statement(settings), f"USE {settings.database}", _filled(_LEDGER, variables)]
    for migration in migrations():
        statements += migration.statements(variables)
        values = f"({migration.version}, '{migration.name}', '{migration.checksum}', now64(3))"
        statements.append(
            f"INSERT INTO schema_migrations ({', '.join(_LEDGER_COLUMNS)}) VALUES {values}"  # noqa: S608 - ours
        )
    return "".join(f"{statement};\n\n" for statement in statements)


async def setup(settings: ClickHouse) -> tuple[str, ...]:
    """Make the database and what is missing in it; may run again. Returns the names of what was applied.

    Raises StoreMisconfigured for a database that a newer docsum has set up, StoreUnavailable.
    """
    client = await connect(settings, database=None)
    try:
        with translated():
            await client.command(_database_statement(settings), use_database=False)
            client.database = settings.database
            return await _migrate(client, _variables(settings.cluster))
    finally:
        await client.close()


async def check(client: AsyncClient) -> None:
    """Prove that the tables are ours and that rows can be read and written.

    Raises StoreMisconfigured with one sentence for missing or other tables or a missing grant.
    """
    applied = await _applied(client)
    _refuse_foreign(applied)
    missing = [migration.name for migration in migrations() if migration.version not in applied]
    if missing:
        raise StoreMisconfigured(
            f"The ClickHouse database {client.database} lacks {missing[0]}: run `docsum setup store`."
        )
    with translated():
        for name in VIEWS:
            await _prove_select(client, name)
        for table in TABLES:
            await _prove_insert(client, table)


async def _migrate(client: AsyncClient, variables: Mapping[str, str]) -> tuple[str, ...]:
    await client.command(_filled(_LEDGER, variables))
    applied = await _applied(client)
    _refuse_foreign(applied)
    done: list[str] = []
    for migration in migrations():
        if migration.version in applied:
            continue
        for statement in migration.statements(variables):
            await client.command(statement)
        await client.insert(
            "schema_migrations",
            [(migration.version, migration.name, migration.checksum, datetime.now(UTC))],
            _LEDGER_COLUMNS,
        )
        done.append(migration.name)
    return tuple(done)


async def _applied(client: AsyncClient) -> Mapping[int, Values]:
    """Version -> name and checksum of every migration that was applied."""
    try:
        with translated():
            result = await client.query("SELECT version, name, checksum FROM schema_migrations FINAL")
    except StoreMisconfigured as error:
        if code_of(error) in _MISSING:
            raise StoreMisconfigured(
                f"The ClickHouse database {client.database} has no tables yet: run `docsum setup store`."
            ) from error
        raise
    return {version: (name, checksum) for version, name, checksum in result.result_rows}


def _refuse_foreign(applied: Mapping[int, Values]) -> None:
    ours = {migration.version: migration for migration in migrations()}
    for version, (name, checksum) in sorted(applied.items()):
        if version not in ours:
            raise StoreMisconfigured(
                f"The tables in ClickHouse are of a newer docsum ({name}): use that version of docsum."
            )
        if ours[version].checksum != checksum:
            raise StoreMisconfigured(
                f"The tables in ClickHouse were made by another text of {ours[version].name}: "
                "use the docsum that made them, or another database."
            )


async def _prove_select(client: AsyncClient, name: str) -> None:
    await client.query(f"SELECT * FROM {name} LIMIT 0")  # noqa: S608 - a name of ours


async def _prove_insert(client: AsyncClient, table: Table[object]) -> None:
    """Inserts no row: needs SELECT and INSERT on every column."""
    columns = ", ".join(table.columns)
    await client.command(
        f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {table.name} WHERE 0"  # noqa: S608 - names of ours
    )


def _database_statement(settings: ClickHouse) -> str:
    database = identifier(settings.database, "DOCSUM_CLICKHOUSE__DATABASE")
    return f"CREATE DATABASE IF NOT EXISTS {database} {on_cluster(settings.cluster)}".rstrip()


def _variables(cluster: str) -> Mapping[str, str]:
    return {
        "engine": "Replicated" if cluster else "",
        "on_cluster": on_cluster(cluster),
        "durability": _DURABILITY,
    }


def on_cluster(cluster: str) -> str:
    """The clause that makes a statement run on every server of a cluster; empty for a single server."""
    return f"ON CLUSTER {identifier(cluster, 'DOCSUM_CLICKHOUSE__CLUSTER')}" if cluster else ""


def identifier(name: str, setting: str) -> str:
    """The name itself. Raises ConfigurationError for one that would have to be quoted."""
    if not _IDENTIFIER.fullmatch(name):
        raise ConfigurationError(f"{setting} must be a plain name of letters, digits and underscores.")
    return name


def _filled(text: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace(f"{{{name}}}", value)
    return text
