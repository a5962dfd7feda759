"""The store through TLS, as a server would have it: the engine behind a door with a certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from docsum.errors import ConfigurationError, StoreMisconfigured
from docsum.settings import ClickHouse
from docsum.stores import roles
from docsum.stores.connection import connect
from docsum.stores.migrate import setup
from tests.support.certificates import Authority
from tests.support.engine import Engine


@asynccontextmanager
async def door(engine: Engine, authority: Authority) -> AsyncIterator[int]:
    """A port that speaks TLS and hands everything on to the engine."""
    pair = authority.sign("clickhouse", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", engine.port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_an_authority_of_ones_own_is_trusted_and_no_other(engine: Engine, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    async with door(engine, ours) as port:
        secured = engine.settings.model_copy(
            update={"url": f"https://127.0.0.1:{port}", "ssl_ca_location": str(ours.trusted)}
        )
        await setup(secured)
        client = await connect(secured, database=secured.database)
        try:
            assert (await client.query("SELECT count() FROM summaries")).result_rows == [(0,)]
        finally:
            await client.close()
        for wrong in (str(other.trusted), ""):
            with pytest.raises(StoreMisconfigured, match=r"is not trusted \(.*\): correct DOCSUM_CLICKHOUSE"):
                await connect(secured.model_copy(update={"ssl_ca_location": wrong}), database=None)


async def test_the_engine_understands_the_roles_as_far_as_it_has_any(engine: Engine) -> None:
    """It keeps no roles: 497 is a missing privilege, 511 an unknown role; a fault of syntax would be 62."""
    settings = engine.settings
    await setup(settings)
    client = await connect(settings, database=settings.database)
    try:
        for line in roles.script(settings).splitlines():
            if line.startswith("--"):
                continue
            try:
                await client.command(line.rstrip(";"))
            except DatabaseError as error:
                assert "ROLE" in line.upper() or line.startswith("GRANT")
                assert error.code in (497, 511), error
        assert (await client.query("SELECT count() FROM summaries")).result_rows == [(0,)]
    finally:
        await client.close()


async def test_an_authority_that_cannot_be_used_is_one_sentence(engine: Engine, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("hello")
    for url, name, words in (
        ("http://127.0.0.1:1", str(empty), "is no https:// address"),
        ("https://127.0.0.1:1", str(empty), "holds no certificate"),
        ("https://127.0.0.1:1", str(tmp_path / "none.pem"), "which cannot be read: No such file"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            await connect(ClickHouse(url=url, ssl_ca_location=name), database=None)
