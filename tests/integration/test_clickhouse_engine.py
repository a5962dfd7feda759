"""The engine host behind the real client: each rule of its HTTP interface, and its life as a process."""

import asyncio
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import psutil
import pytest
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, OperationalError
from clickhouse_connect.driver.summary import QuerySummary

from docsum.local.clickhouse_statements import Insert, Query, StatementRefused, parse

TOKEN = "a-token-for-tests"
READY = "docsum engine host: ready on http://127.0.0.1:"


@dataclass
class Host:
    """A running engine host."""

    process: subprocess.Popen[str]
    port: int
    directory: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def rss(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code; a host that does not end in 20 s fails the test."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr
            with self.process.stderr:
                said = self.process.stderr.read()
        assert "Traceback" not in said, said
        return code

    @asynccontextmanager
    async def client(self, **arguments: Any) -> AsyncIterator[AsyncClient]:  # the client's own, many kinds
        options = {"password": TOKEN, "compress": False, "autogenerate_session_id": False, **arguments}
        client = await clickhouse_connect.get_async_client(
            host="127.0.0.1", port=self.port, username="docsum", **options
        )
        try:
            yield client
        finally:
            await client.close()

    async def ask(self, body: bytes | str = b"", *, method: str = "POST", **arguments: Any) -> "Reply":
        """A request by hand, for what the client would never send."""
        arguments["headers"] = {"X-ClickHouse-Key": TOKEN, **arguments.get("headers", {})}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url, data=body or None, **arguments) as response,
        ):
            return Reply(response.status, dict(response.headers), await response.text())


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def code(self) -> str | None:
        return self.headers.get("X-ClickHouse-Exception-Code")


def command(directory: Path, *extra: str) -> list[str]:
    token = directory.with_name(directory.name + ".token")
    if not token.exists():
        token.touch(0o600)
        token.write_text(TOKEN)
    module = [sys.executable, "-m", "docsum.local.clickhouse_engine"]
    return [*module, "--path", str(directory), "--port", "0", "--token-file", str(token), *extra]


def start(directory: Path, *extra: str, cwd: Path | None = None) -> Host:
    process = subprocess.Popen(command(directory, *extra), stderr=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stderr
    readable, _, _ = select.select([process.stderr], [], [], 30)
    line = process.stderr.readline() if readable else "nothing in 30 s"
    if not line.startswith(READY):
        process.kill()
        process.wait()
        process.stderr.close()
        pytest.fail(f"the host did not start: {line}")
    return Host(process, int(line.removeprefix(READY).split()[0]), directory)


def refusal(directory: Path, *extra: str) -> tuple[int, str]:
    """Exit code and sentence of a host that must not start."""
    ended = subprocess.run(
        command(directory, *extra), capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = start(tmp_path_factory.mktemp("engine") / "data")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with one handle for writes, so that each request meets what the one before left behind."""
    running = start(tmp_path_factory.mktemp("narrow") / "data", "--threads", "1", "--max-execution-time", "3")
    yield running
    assert running.stop() == 0


@pytest.fixture
async def client(host: Host) -> AsyncIterator[AsyncClient]:
    async with host.client() as client:
        yield client


async def fresh(
    client: AsyncClient, name: str, columns: str, rest: str = "ENGINE = MergeTree ORDER BY id"
) -> None:
    await client.command(f"DROP TABLE IF EXISTS {name}")
    await client.command(f"CREATE TABLE {name} ({columns}) {rest}")


async def scalar(client: AsyncClient, sql: str, **arguments: Any) -> Any:
    return (await client.query(sql, **arguments)).result_rows[0][0]


# What a text is: pure.


@pytest.mark.parametrize(
    ("text", "head", "settings", "format_", "rows"),
    [
        (b"INSERT INTO t FORMAT TSV\n1\t2\n", b"INSERT INTO t", b"", "TSV", b"1\t2\n"),
        (
            b"insert into `d b`.t (`a b`, c) format Native\n\n\nx",
            b"insert into `d b`.t (`a b`, c)",
            b"",
            "Native",
            b"\n\nx",
        ),
        (
            b"/* c */ INSERT INTO t (a) VALUES ('FORMAT TSV\n')",
            b"INSERT INTO t (a)",
            b"",
            "Values",
            b" ('FORMAT TSV\n')",
        ),
        (
            b"INSERT INTO TABLE t SETTINGS a=1, b='x, FORMAT y' FORMAT CSV \r\n;1",
            b"INSERT INTO TABLE t",
            b"SETTINGS a=1, b='x, FORMAT y'",
            "CSV",
            b";1",
        ),
        (b"INSERT INTO t(* EXCEPT(b))VALUES(1);", b"INSERT INTO t(* EXCEPT(b))", b"", "Values", b"(1);"),
        (b"INSERT INTO t FORMAT JSONEachRow {}", b"INSERT INTO t", b"", "JSONEachRow", b"{}"),
    ],
)
def test_an_insert_is_split_into_its_statement_and_its_rows(
    text: bytes, head: bytes, settings: bytes, format_: str, rows: bytes
) -> None:
    assert parse(text) == Insert(head, settings, format_, rows)


@pytest.mark.parametrize(
    "text",
    [
        b"INSERT INTO t SELECT 1",
        b"INSERT INTO t (SELECT ';')",
        b"INSERT INTO t (a) WITH 1 AS x SELECT x",
        b"SELECT ';', \";\", `;` -- ;\n, $tag$;$tag$ /* ; */ FROM t ;; -- the end",
        b"SELECT 'it''s; \\'; fine'",
        b"SELECT 1 - 2 # comment;",
    ],
)
def test_a_semicolon_in_a_string_a_name_or_a_comment_ends_nothing(text: bytes) -> None:
    assert isinstance(parse(text), Query)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 1; SELECT 2",
        b"SELECT ''';'; DROP TABLE t",
        b"INSERT INTO t VALUES (1); DROP TABLE t",
        b"INSERT INTO t SELECT 1; DROP TABLE t",
        b"INSERT INTO t FORMAT CSV; 1",
        b"INSERT INTO FUNCTION file('x.csv') SELECT 1",
        b"INSERT INTO t",
        b" -- nothing",
        b"",
    ],
)
def test_what_is_not_one_statement_is_refused(text: bytes) -> None:
    with pytest.raises(StatementRefused):
        parse(text)


def test_a_long_text_is_read_in_one_pass() -> None:
    quoted = b"','".join([b"x" * 60] * 20_000)
    started = time.monotonic()
    assert isinstance(parse(b"SELECT ['" + quoted + b"'] ;"), Query)
    with pytest.raises(StatementRefused):
        parse(b"INSERT INTO t (" + b"`a`, " * 20_000 + b" oops")
    assert time.monotonic() - started < 2


# The client as the store uses it.


COLUMNS = ["id", "version", "attributes", "cost", "at", "is_deleted"]
TYPES = ["String", "UInt128", "Map(String, String)", "Decimal(18, 9)", "DateTime64(3, 'UTC')", "UInt8"]


async def test_ddl_insert_and_a_look_up_of_5000_bound_ids(client: AsyncClient) -> None:
    await fresh(client, "bulk", ", ".join(f"{n} {t}" for n, t in zip(COLUMNS, TYPES, strict=True)))
    at = datetime(2026, 11, 23, 8, 30, 0, 123000, tzinfo=UTC)
    rows = [(f"doc'{n}\n\n", n << 80, {"k;": "v\n\n"}, Decimal("0.000000001"), at, 0) for n in range(6_000)]
    types = [clickhouse_connect.datatypes.registry.get_from_name(name) for name in TYPES]
    summary = await client.insert("bulk", rows, column_names=COLUMNS, column_types=types)
    assert summary.written_rows == 6_000
    found = await client.query(
        "SELECT id, argMax(version, version) AS v FROM bulk WHERE id IN {ids:Array(String)} GROUP BY id",
        parameters={"ids": [row[0] for row in rows[1_000:]]},
    )
    assert {tuple(row) for row in found.result_rows} == {(row[0], row[1]) for row in rows[1_000:]}
    back = await client.query("SELECT * FROM bulk ORDER BY version LIMIT 1", tz_mode="aware")
    assert back.result_rows[0] == rows[0]


@pytest.mark.parametrize("in_form", [False, True], ids=["url", "form"])
async def test_bound_parameters_arrive_as_they_were(host: Host, in_form: bool) -> None:
    text = 'it\'s "quoted"\\ `back` \t\r\n\n\0 {x:String} 🦜 ; DROP TABLE x'
    async with host.client(form_encode_query_params=in_form) as client:
        found = await client.query(
            "SELECT {t:String}, {a:Array(String)}", parameters={"t": text, "a": [text]}
        )
    assert found.result_rows == [(text, [text])]


async def test_100_requests_at_once_all_get_their_own_answer(client: AsyncClient) -> None:
    await fresh(client, "crowd", "id UInt32")

    async def one(n: int) -> int:
        await client.insert("crowd", [[n]], column_names=["id"], settings={"max_threads": 1 + n % 3})
        return int(await scalar(client, f"SELECT id FROM crowd WHERE id = {n}"))

    assert await asyncio.gather(*(one(n) for n in range(100))) == list(range(100))
    assert await scalar(client, "SELECT count() FROM crowd") == 100


@pytest.mark.parametrize(
    ("sql", "code", "name"),
    [
        ("SELEC 1", 62, "SYNTAX_ERROR"),
        ("SELECT * FROM nowhere", 60, "UNKNOWN_TABLE"),
        ("SELECT nothing", 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT * FROM nowhere.x", 81, "UNKNOWN_DATABASE"),
        ("SELECT 1 SETTINGS nonsense = 1", 115, "UNKNOWN_SETTING"),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT sleep(2) SETTINGS max_execution_time = 0.2", 159, "TIMEOUT_EXCEEDED"),
        (
            "SELECT groupArray(number) FROM numbers(9000000) SETTINGS max_memory_usage = 10000000",
            241,
            "MEMORY_LIMIT_EXCEEDED",
        ),
    ],
)
async def test_an_error_carries_the_code_and_the_name_of_a_server(
    client: AsyncClient, sql: str, code: int, name: str
) -> None:
    with pytest.raises(DatabaseError) as caught:
        await client.query(sql)
    assert caught.value.code == code
    assert name in str(caught.value)


async def test_the_database_of_a_request_is_its_own(narrow: Host, host: Host) -> None:
    async with narrow.client() as outside:
        await outside.command("CREATE DATABASE IF NOT EXISTS `odd ``name`")
        async with narrow.client(database="odd `name") as inside:
            await fresh(inside, "here", "id UInt8")
            assert await scalar(inside, "SELECT currentDatabase()") == "odd `name"
        assert await scalar(outside, "SELECT currentDatabase()") == "default"
        assert await scalar(outside, "SELECT count() FROM `odd ``name`.here") == 0
    reply = await host.ask("SELECT 1", params={"database": "missing"})
    assert (reply.status, reply.code) == (404, "81")


async def test_a_session_id_is_ignored(host: Host) -> None:
    def use() -> list[Sequence[Any]]:
        with clickhouse_connect.get_client(
            host="127.0.0.1", port=host.port, username="docsum", password=TOKEN, autogenerate_session_id=True
        ) as client:
            return list(client.query("SELECT 1").result_rows)

    assert await asyncio.to_thread(use) == [(1,)]


# Tables as the design has them.


DURABLE = (
    "fsync_after_insert = 1, fsync_part_directory = 1, min_compressed_bytes_to_fsync_after_merge = 1,"
    " non_replicated_deduplication_window = 1000"
)


async def test_replacing_tables_with_uint128_versions_and_deletes_answer_right(client: AsyncClient) -> None:
    await fresh(
        client,
        "versions",
        "id String, text String, version UInt128, is_deleted UInt8",
        "ENGINE = ReplacingMergeTree(version, is_deleted) ORDER BY id SETTINGS index_granularity = 1024,"
        f" allow_experimental_replacing_merge_with_cleanup = 1, {DURABLE}",
    )
    await client.command("CREATE OR REPLACE VIEW newest AS SELECT * EXCEPT is_deleted FROM versions FINAL")

    async def put(*row: Any) -> None:
        await client.insert("versions", [row], column_names=["id", "text", "version", "is_deleted"])

    high = 1_900_000_000_000 << 80
    await put("a", "new", high + 1, 0)
    await put("a", "old, late", high, 0)
    await put("b", "gone", high, 0)
    await put("b", "", high + 1, 1)
    assert (await client.query("SELECT id, text, version FROM newest")).result_rows == [
        ("a", "new", high + 1)
    ]
    assert await scalar(client, "SELECT argMax(text, version) FROM versions WHERE id = 'a'") == "new"
    await client.command("OPTIMIZE TABLE versions FINAL CLEANUP")
    assert await scalar(client, "SELECT count() FROM versions") == 1


async def test_a_flush_sent_twice_with_its_token_is_one(client: AsyncClient) -> None:
    await fresh(client, "flushed", "id UInt32", f"ENGINE = MergeTree ORDER BY id SETTINGS {DURABLE}")
    for _ in range(2):
        await client.insert(
            "flushed", [[1], [2]], column_names=["id"], settings={"insert_deduplication_token": "flush-1"}
        )
    assert await scalar(client, "SELECT count() FROM flushed") == 2


async def test_deletes_updates_and_expiry_run_as_on_a_server(client: AsyncClient) -> None:
    await fresh(
        client,
        "erased",
        "id UInt32, at DateTime64(3, 'UTC'), text String",
        "ENGINE = MergeTree ORDER BY id TTL toDateTime(at) + INTERVAL 90 DAY"
        " SETTINGS ttl_only_drop_parts = 1",
    )
    now = datetime.now(UTC)
    await client.insert("erased", [[n, now, "secret"] for n in range(3)], column_names=["id", "at", "text"])
    await client.command("DELETE FROM erased WHERE id = 1")
    await client.command("ALTER TABLE erased UPDATE text = '' WHERE id = 2 SETTINGS mutations_sync = 2")
    assert (await client.query("SELECT id, text FROM erased ORDER BY id")).result_rows == [
        (0, "secret"),
        (2, ""),
    ]


# Bodies.


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "deflate"])
async def test_a_body_that_does_not_unpack_is_a_400(host: Host, encoding: str) -> None:
    reply = await host.ask(b"\x04\x22 not packed", headers={"Content-Encoding": encoding})
    assert (reply.status, reply.code) == (400, "271")
    assert encoding in reply.text


async def test_an_unknown_encoding_is_a_415(host: Host) -> None:
    reply = await host.ask(b"x", headers={"Content-Encoding": "snappy"})
    assert (reply.status, reply.code) == (415, "779")


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip"])
async def test_packed_requests_and_answers_are_understood(host: Host, encoding: str) -> None:
    async with host.client(compress=encoding) as client:
        await fresh(client, f"packed_{encoding}", "id UInt32, text String")
        rows = [(n, f"text {n}" * 20) for n in range(500)]
        await client.insert(f"packed_{encoding}", rows, column_names=["id", "text"])
        found = await client.query(f"SELECT * FROM packed_{encoding} ORDER BY id")
        assert found.result_rows == rows
    params = {"query": "SELECT repeat('x', 5000)", "enable_http_compression": "1"}
    reply = await host.ask(method="GET", params=params, headers={"Accept-Encoding": "gzip"})
    assert reply.headers["Content-Encoding"] == "gzip"
    assert reply.text == "x" * 5000 + "\n"


@pytest.mark.parametrize("compress", [False, "lz4", "zstd"])
async def test_an_insert_that_the_client_takes_back_leaves_no_row(host: Host, compress: bool | str) -> None:
    async with host.client(compress=compress) as client:
        await fresh(client, "taken_back", "id UInt8, text String")
        with pytest.raises((TypeError, ValueError, DataError)):
            await client.insert("taken_back", [[1, "ok"], ["x", 2]], column_names=["id", "text"])
        assert await scalar(client, "SELECT count() FROM taken_back") == 0


async def test_only_multipart_is_a_form(host: Host) -> None:
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await host.ask("SELECT 'query=1&x'", headers=urlencoded)).text == "query=1&x\n"
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("query", "SELECT {n:UInt8} + 1")
    form.add_field("param_n", "41")
    assert (await host.ask(form)).text == "42\n"  # type: ignore[arg-type]  # aiohttp takes a form as data


async def test_an_external_table_is_refused(host: Host) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("extra", b"1\n", filename="extra.tsv")
    reply = await host.ask(form, params={"query": "SELECT * FROM extra"})  # type: ignore[arg-type]  # as above
    assert (reply.status, reply.code) == (501, "48")


async def test_curl_sees_text(host: Host) -> None:
    assert (await host.ask(method="GET")).text == "Ok.\n"
    assert (await host.ask(method="GET", params={"query": "SELECT 1 + 1"})).text == "2\n"
    reply = await host.ask("SELECT 1 AS x", params={"default_format": "JSONEachRow"})
    assert json.loads(reply.text) == {"x": 1}
    assert reply.headers["X-ClickHouse-Format"] == "JSONEachRow"


# Inserts.


async def test_a_blank_line_in_the_rows_ends_nothing_and_runs_nothing(client: AsyncClient) -> None:
    await fresh(client, "blank", "id String")
    await client.raw_insert("blank", ["id"], "a\n\n\nDROP TABLE blank\n", fmt="TSV")
    await client.command("INSERT INTO blank VALUES ('b\n\n;DROP TABLE blank\n\n')")
    assert await scalar(client, "SELECT count() FROM blank") == 5


async def test_random_bytes_in_native_blocks_arrive_whole(client: AsyncClient) -> None:
    await fresh(client, "hashes", "id UInt32, hash FixedString(32)")
    rows = [(n, os.urandom(30) + b"\n\n") for n in range(2_000)]
    for first in range(0, len(rows), 100):
        await client.insert("hashes", rows[first : first + 100], column_names=["id", "hash"])
    found = await client.query("SELECT * FROM hashes ORDER BY id", query_formats={"FixedString": "bytes"})
    assert found.result_rows == rows


async def test_the_word_format_in_a_value_is_a_value(client: AsyncClient) -> None:
    await fresh(client, "words", "id String")
    await client.command(
        "INSERT INTO words (id) VALUES (' FORMAT TSV\n1\n'), ('INSERT INTO words FORMAT CSV')"
    )
    assert await scalar(client, "SELECT count() FROM words") == 2


async def test_an_insert_may_carry_settings_select_its_rows_or_have_none(client: AsyncClient) -> None:
    await fresh(client, "ways", "id UInt32")
    await client.command("INSERT INTO ways SETTINGS insert_deduplicate = 0 VALUES (1)")
    summary = await client.command(
        "INSERT INTO ways (id)\n\nSELECT {n:UInt32} + number FROM numbers(2)", {"n": 7}
    )
    assert isinstance(summary, QuerySummary)
    assert summary.written_rows == 2
    await client.raw_insert("ways", ["id"], b"", fmt="TSV")
    assert await scalar(client, "SELECT count() FROM ways") == 3


async def test_a_failed_insert_writes_nothing_and_leaves_the_handle_usable(narrow: Host) -> None:
    async with narrow.client() as client:
        await fresh(client, "strict", "id UInt8")
        for body, code in (("1\nx\n", 27), ("300 oops\n", 27)):
            with pytest.raises(DatabaseError) as caught:
                await client.raw_insert("strict", ["id"], body, fmt="TSV")
            assert caught.value.code == code
        with pytest.raises(DatabaseError) as caught:
            await client.raw_insert("strict", ["nope"], "1\n", fmt="TSV")
        assert caught.value.code == 16
        await client.raw_insert("strict", ["id"], "1\n", fmt="TSV")
        assert await scalar(client, "SELECT count() FROM strict") == 1


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("(id UInt64, CONSTRAINT small CHECK id < 9) ENGINE = MergeTree ORDER BY id", "469"),
        (
            "(id UInt64) ENGINE = MergeTree ORDER BY id "
            "SETTINGS parts_to_delay_insert = 1, parts_to_throw_insert = 1, max_delay_to_insert = 0",
            "252",
        ),
    ],
)
async def test_rows_that_cannot_be_written_are_an_error_and_no_success(
    narrow: Host, table: str, code: str
) -> None:
    """The engine's own streamed insert says "1 row written" of each of these, of a full disk and at the
    memory limit, and the row is nowhere."""
    await narrow.ask("DROP TABLE IF EXISTS refusing")
    await narrow.ask(f"CREATE TABLE refusing {table}")
    await narrow.ask("INSERT INTO refusing VALUES (1)")
    reply = await narrow.ask('INSERT INTO refusing FORMAT JSONEachRow\n{"id": 10}\n')
    assert (reply.status, reply.code) == (500, code)
    assert (await narrow.ask("SELECT id FROM refusing")).text == "1\n"


async def test_a_full_disk_is_an_error_and_no_success(tmp_path: Path) -> None:
    """Of the files that carry rows to the engine; of the engine's own it says so itself, code 243."""
    running = start(tmp_path / "data")
    try:
        await running.ask("CREATE TABLE t (id UInt64) ENGINE = MergeTree ORDER BY id")
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        reply = await running.ask(b"INSERT INTO t FORMAT TSV\n" + b"1\n" * 100_000)
        assert (reply.status, reply.code) == (500, "243")
        await running.ask("INSERT INTO t VALUES (1)")
        assert (await running.ask("SELECT count() FROM t")).text == "1\n"
        assert not list((tmp_path / "data" / "rows").iterdir())
    finally:
        running.stop(signal.SIGKILL)


async def test_a_cut_native_block_writes_nothing(narrow: Host) -> None:
    async with narrow.client() as client:
        await fresh(client, "cut", "id UInt64")
        reply = await narrow.ask(b"INSERT INTO cut FORMAT Native\n\x01\x02\x02id\x06UInt64" + b"\0" * 9)
        assert reply.status >= 400
        assert await scalar(client, "SELECT count() FROM cut") == 0


async def test_parameters_in_inserted_values_are_refused(host: Host) -> None:
    reply = await host.ask("INSERT INTO t VALUES ({x:UInt8})", params={"param_x": "1"})
    assert (reply.status, reply.code) == (501, "48")


async def test_several_statements_are_refused_with_62(client: AsyncClient) -> None:
    await fresh(client, "kept", "id UInt8")
    with pytest.raises(DatabaseError) as caught:
        await client.command("SELECT 1; DROP TABLE kept")
    assert caught.value.code == 62
    assert await scalar(client, "SELECT count() FROM kept") == 0


# What one request leaves behind for the next: nothing.


async def setting(host: Host, name: str, **params: str) -> str:
    return (await host.ask(f"SELECT getSetting('{name}')", params=params)).text.strip()


async def test_settings_of_a_request_end_with_it(narrow: Host) -> None:
    default = await setting(narrow, "max_block_size")
    assert await setting(narrow, "max_block_size", max_block_size="123", max_threads="1") == "123"
    assert await setting(narrow, "max_block_size", max_threads="1") == default
    assert await setting(narrow, "log_comment", log_comment="it's \\ fine") == "it\\'s \\\\ fine"
    assert await setting(narrow, "log_comment") == ""


async def test_a_handle_is_dropped_when_a_set_fails(narrow: Host) -> None:
    default = await setting(narrow, "max_block_size")
    for bad in ({"nonsense": "1"}, {"max_threads": "many"}):
        reply = await narrow.ask("SELECT 1", params={"max_block_size": "321", **bad})
        assert reply.status >= 400
        assert await setting(narrow, "max_block_size") == default
    reply = await narrow.ask("SELECT 1", params={"nonsense": "1"})
    assert (reply.status, reply.code) == (404, "115")
    reply = await narrow.ask("SELECT 1", params={"x = 1, max_threads": "1"})
    assert (reply.status, reply.code) == (404, "115")


@pytest.mark.parametrize(
    "sql",
    ["SET max_block_size = 77", "USE system", "CREATE TEMPORARY TABLE fleeting (x Int8)", "SET readonly = 1"],
)
async def test_a_request_is_no_session(narrow: Host, sql: str) -> None:
    assert (await narrow.ask(sql)).status == 200
    assert await setting(narrow, "max_block_size") != "77"
    assert (await narrow.ask("SELECT currentDatabase()")).text == "default\n"
    assert (await narrow.ask("SELECT * FROM fleeting")).code == "60"
    assert (await narrow.ask("CREATE TABLE IF NOT EXISTS writable (x Int8) ENGINE = Memory")).status == 200


@pytest.mark.parametrize(
    ("method", "params"), [("GET", {}), ("POST", {"readonly": "1"}), ("POST", {"readonly": "2"})]
)
async def test_a_read_only_request_cannot_write_and_poisons_no_handle(
    narrow: Host, method: str, params: dict[str, str]
) -> None:
    create = "CREATE TABLE IF NOT EXISTS reader (x Int8) ENGINE = Memory"
    refused = await narrow.ask(method=method, params={"query": create, **params})
    assert (refused.status, refused.code) == (500, "164")
    for _ in range(3):
        read = await narrow.ask(method=method, params={"query": "SELECT 1", "max_threads": "1", **params})
        assert (read.status, read.text) == (200, "1\n")
    assert (await narrow.ask("SELECT 1 SETTINGS readonly = 1")).status == 200
    assert (await narrow.ask(create, params={"readonly": "0"})).status == 200


async def test_each_request_has_a_default_time_limit(narrow: Host) -> None:
    assert await setting(narrow, "max_execution_time") == "3"
    assert await setting(narrow, "max_execution_time", max_execution_time="9") == "9"
    reply = await narrow.ask("SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1")
    assert (reply.status, reply.code) == (408, "159")


async def test_ping_answers_while_all_handles_are_busy(narrow: Host) -> None:
    async with narrow.client() as client:
        slow = asyncio.create_task(client.query("SELECT sleep(1.5)"))
        queued = asyncio.create_task(client.query("SELECT 2"))
        pings = 0
        while not slow.done():
            started = time.monotonic()
            assert await client.ping()
            assert time.monotonic() - started < 0.5
            pings += 1
        assert pings > 5
        assert (await queued).result_rows == [(2,)]
        await slow


# Headers and statuses.


async def test_headers_say_what_happened(host: Host) -> None:
    made = await host.ask("CREATE TABLE IF NOT EXISTS heads (id UInt8) ENGINE = MergeTree ORDER BY id")
    assert "X-ClickHouse-Format" not in made.headers
    put = await host.ask("INSERT INTO heads VALUES (1), (2)", params={"query_id": "my-query"})
    assert put.headers["X-ClickHouse-Query-Id"] == "my-query"
    assert json.loads(put.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert "X-ClickHouse-Format" not in put.headers
    got = await host.ask("SELECT id FROM heads FORMAT CSV", params={"query_id": "line\r\nbreak"})
    assert "break" not in got.headers["X-ClickHouse-Query-Id"]
    assert got.headers["X-ClickHouse-Timezone"] == "UTC"
    assert got.headers["X-ClickHouse-Format"] == "CSV"
    assert json.loads(got.headers["X-ClickHouse-Summary"])["read_rows"] == "2"
    none = await host.ask("SELECT id FROM heads WHERE id > 9")
    assert (none.text, none.headers["X-ClickHouse-Format"]) == ("", "TabSeparated")


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        ("SELEC", 400),
        ("", 400),
        ("SELECT CAST('x', 'UInt8')", 400),
        ("SELECT * FROM nowhere", 404),
        ("SELECT nofunction()", 404),
        ("SELECT 1 FORMAT Nothing", 404),
        ("SELECT throwIf(1)", 500),
        ("SELECT sleep(1) SETTINGS max_execution_time = 0.1", 408),
    ],
)
async def test_statuses_are_those_of_a_server(host: Host, sql: str, status: int) -> None:
    reply = await host.ask(sql)
    assert reply.status == status
    assert reply.code
    assert reply.text.startswith(f"Code: {reply.code}. DB::Exception: ")


async def test_the_native_protocol_version_is_not_emulated(host: Host) -> None:
    plain = await host.ask("SELECT 1 AS x FORMAT Native")
    newer = await host.ask("SELECT 1 AS x FORMAT Native", params={"client_protocol_version": "54458"})
    assert plain.text == newer.text
    async with host.client() as client:
        assert client.protocol_version == 0


# Streams.


async def test_a_streamed_result_is_never_whole_in_memory(host: Host) -> None:
    async with host.client() as client:
        await client.query("SELECT 1")
        before, peak, rows = host.rss, 0, 0
        sql = "SELECT number, repeat('x', 4000) FROM numbers(400000)"
        async with await client.query_row_block_stream(sql, settings={"max_block_size": 2_500}) as blocks:
            async for block in blocks:
                rows += len(block)
                peak = max(peak, host.rss)
    assert rows == 400_000
    assert peak - before < 800 << 20, "1,600 MB of rows passed through"


async def test_a_streams_early_error_has_a_code_and_a_late_one_breaks_the_connection(narrow: Host) -> None:
    async with narrow.client() as client:
        with pytest.raises(DatabaseError) as caught:
            await client.query_row_block_stream("SELECT * FROM nowhere")
        assert caught.value.code == 60
        sql = "SELECT throwIf(number = 3000000), number FROM numbers(4000000)"

        async def read() -> None:
            async with await client.query_row_block_stream(
                sql, settings={"max_block_size": 10_000}
            ) as blocks:
                async for _ in blocks:
                    pass

        with pytest.raises(OperationalError):
            await read()
        assert (await client.query("SELECT 1")).result_rows == [(1,)]


async def test_a_stream_that_nobody_reads_to_its_end_gives_its_handle_back(narrow: Host) -> None:
    async with narrow.client() as client:
        sql = "SELECT number, repeat('x', 100) FROM numbers(5000000)"
        async with await client.query_row_block_stream(sql) as blocks:
            async for _ in blocks:
                break
    async with narrow.client() as client, asyncio.timeout(20):
        assert (await client.query("SELECT 1")).result_rows == [(1,)]


async def test_a_reader_that_stalls_loses_its_stream(narrow: Host) -> None:
    sql = b"SELECT number, repeat('x', 100) FROM numbers(100000000)\n FORMAT Native"
    reader, writer = await asyncio.open_connection("127.0.0.1", narrow.port)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nX-ClickHouse-Key: {TOKEN}\r\nContent-Length: {len(sql)}\r\n\r\n"
    writer.write(head.encode() + sql)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(20):
        assert (await narrow.ask("SELECT 1")).text == "1\n"
    writer.close()


async def test_a_streamed_result_with_long_gaps_between_its_rows_is_complete(client: AsyncClient) -> None:
    await fresh(client, "sparse", "id UInt64")
    await client.command("INSERT INTO sparse SELECT number FROM numbers(2000000)")
    found = []
    async with await client.query_rows_stream("SELECT id FROM sparse WHERE id % 500000 = 7") as rows:
        async for row in rows:
            found.append(row[0])
    assert sorted(found) == [7, 500_007, 1_000_007, 1_500_007]


# The process.


async def test_without_the_token_nothing_but_ping_answers(host: Host) -> None:
    with pytest.raises(DatabaseError) as caught:
        async with host.client(password="wrong"):
            pytest.fail("a wrong token was taken")
    assert caught.value.code == 516
    reply = await host.ask("SELECT 1", headers={"X-ClickHouse-Key": "wrong"})
    assert (reply.status, reply.code) == (403, "516")
    async with aiohttp.ClientSession() as session:
        async with session.post(host.url, data=b"SELECT 1") as response:
            assert response.status == 403
        async with session.get(host.url + "ping") as response:
            assert (response.status, await response.text()) == (200, "Ok.\n")


@pytest.mark.parametrize("where", ["0.0.0.0", "::", "localhost.example", "192.0.2.1"])
def test_only_loopback_is_listened_on(tmp_path: Path, where: str) -> None:
    code, sentence = refusal(tmp_path / "data", "--host", where)
    assert code == 78
    assert f"--host {where} is refused" in sentence


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    command(tmp_path / "data")
    token = tmp_path / "data.token"
    token.chmod(0o640)
    code, sentence = refusal(tmp_path / "data")
    assert code == 78
    assert sentence == (
        f"docsum engine host: The token file {token} has mode 0640,"
        f" so others can use it: run chmod 600 {token}.\n"
    )


def test_a_missing_or_empty_token_file_is_refused(tmp_path: Path) -> None:
    code, sentence = refusal(tmp_path / "data", "--token-file", str(tmp_path / "none"))
    assert code == 78
    assert "cannot be read" in sentence
    empty = tmp_path / "empty"
    empty.touch(0o600)
    code, sentence = refusal(tmp_path / "data", "--token-file", str(empty))
    assert code == 78
    assert "is empty" in sentence


def test_a_directory_that_the_engine_would_take_for_a_pattern_is_refused(tmp_path: Path) -> None:
    code, sentence = refusal(tmp_path / "what?")
    assert code == 78
    assert "patterns" in sentence


def test_a_directory_belongs_to_one_process(host: Host) -> None:
    code, sentence = refusal(host.directory)
    assert code == 1
    assert str(host.directory) in sentence
    assert f"process {host.process.pid}" in sentence


def test_a_taken_port_is_one_sentence(host: Host, tmp_path: Path) -> None:
    code, sentence = refusal(tmp_path / "data", "--port", str(host.port))
    assert code == 1
    assert f"Port {host.port}" in sentence
    assert "Traceback" not in sentence


async def test_a_config_file_where_the_host_was_started_is_not_obeyed(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(
        "<clickhouse><max_server_memory_usage>777000000</max_server_memory_usage></clickhouse>"
    )
    running = start(tmp_path / "data", "--memory-bytes", "900000000", cwd=tmp_path)
    try:
        reply = await running.ask(
            "SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'"
        )
        assert reply.text == "900000000\n"
        hungry = await running.ask("SELECT length(range(400000000))")
        assert hungry.code == "241"
        assert (await running.ask("SELECT 1")).text == "1\n"
    finally:
        assert running.stop() == 0


async def test_the_engine_has_a_memory_cap_of_its_own(host: Host) -> None:
    reply = await host.ask("SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'")
    assert int(reply.text) == min(2_000_000_000, psutil.virtual_memory().total // 2)


async def test_it_is_ready_soon_and_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    start(tmp_path / "data").stop()
    started = time.monotonic()
    running = start(tmp_path / "data")
    assert time.monotonic() - started < 10, "about 1 s on an idle machine"
    try:
        async with running.client() as client:
            slow = asyncio.create_task(client.query("SELECT sleep(1), 'done'"))
            await until_running(running, "sleep(1)")
            stopping = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert (await slow).result_rows == [(0, "done")]
            assert await asyncio.to_thread(running.process.wait, 10) == 0
            assert time.monotonic() - stopping < 8
    finally:
        running.stop()


async def test_sigterm_does_not_wait_for_a_long_statement(tmp_path: Path) -> None:
    running = start(tmp_path / "data")
    try:
        async with running.client() as client:
            slow = asyncio.create_task(
                client.query("SELECT sleepEachRow(1) FROM numbers(50) SETTINGS max_block_size = 1")
            )
            await until_running(running, "sleepEachRow")
            stopping = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises((OperationalError, DatabaseError)):
                await slow
            assert await asyncio.to_thread(running.process.wait, 15) == 0
            assert time.monotonic() - stopping < 12
    finally:
        running.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def until_running(host: Host, part: str) -> None:
    sql = f"SELECT position(query, '{part}') FROM system.processes WHERE query NOT LIKE '%processes%'"

    async def seen() -> bool:
        return (await host.ask(sql)).text not in ("", "0\n")

    await until(seen)


async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    numbers = iter(range(1_000_000))
    create = f"CREATE TABLE IF NOT EXISTS kept (id UInt32) ENGINE = MergeTree ORDER BY id SETTINGS {DURABLE}"

    async def write(client: AsyncClient) -> None:
        while True:
            batch = [next(numbers) for _ in range(5)]
            try:
                await client.insert("kept", [[n] for n in batch], column_names=["id"])
            except (OperationalError, DatabaseError):
                return
            acknowledged.update(batch)

    async def enough(rows: int) -> bool:
        return len(acknowledged) >= rows

    for round_ in (1, 2):
        running = start(tmp_path / "data")
        try:
            async with running.client() as client:
                await client.command(create)
                async with asyncio.TaskGroup() as writers:
                    for _ in range(4):
                        writers.create_task(write(client))
                    await until(partial(enough, 150 * round_))
                    running.process.kill()
        finally:
            running.stop()
    running = start(tmp_path / "data")
    try:
        async with running.client() as client:
            stored = {row[0] for row in (await client.query("SELECT id FROM kept")).result_rows}
        assert acknowledged <= stored
    finally:
        assert running.stop() == 0
