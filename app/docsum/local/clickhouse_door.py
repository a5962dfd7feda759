"""The part of ClickHouse's HTTP interface that clickhouse-connect uses, in front of an embedded engine.

Codes, headers and statuses are a server's, so that the store cannot tell the difference.
"""

import asyncio
import base64
import binascii
import gzip
import hmac
import json
import re
import sys
import uuid
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from urllib.parse import parse_qsl

import lz4.frame
from aiohttp import BodyPartReader, web

from docsum.local.clickhouse_handles import Answer, Engine, EngineError, Session
from docsum.local.clickhouse_statements import Insert, Query, StatementRefused, parse

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY = 256 << 20

# Parameters of the HTTP interface that are no engine settings. A request is no session here, and the native
# protocol version is not honoured on purpose: clickhouse-connect then falls back to version 0 by itself.
_TRANSPORT = frozenset({
    "buffer_size", "cancel_http_readonly_queries_on_client_close", "client_protocol_version", "close_session",
    "compress", "database", "decompress", "default_format", "enable_http_compression",
    "http_headers_progress_interval_ms", "http_write_exception_in_output_format", "password", "query",
    "query_id", "quota_key", "readonly", "role", "send_progress_in_http_headers", "session_check",
    "session_id", "session_timeout", "stacktrace", "user", "wait_end_of_query",
})  # fmt: skip
_SETTING_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}\Z")

SYNTAX_ERROR, NOT_IMPLEMENTED, UNKNOWN_SETTING, CANNOT_DECOMPRESS = 62, 48, 115, 271
QUERY_IS_TOO_LARGE, AUTHENTICATION_FAILED, UNSUPPORTED_MEDIA_TYPE = 229, 516, 779

# Code to status as in ClickHouse's src/Server/HTTP/exceptionCodeToHTTPStatus.cpp; any other code is a 500.
_CODES = {
    400: "6 8 15 25 26 27 36 37 38 41 44 53 62 72 117 123 167 168 223 321 376 427 441 675 676",
    401: "194",
    403: "192 193 497 512 516",
    404: "46 47 50 56 60 63 73 78 81 115 152 336 511",
    408: "159",
    413: "229",
    415: "779",
    501: "48",
    503: "76 209 439",
}
_STATUS = {int(code): status for status, codes in _CODES.items() for code in codes.split()}

_UNPACK: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType({
    "lz4": lz4.frame.decompress, "zstd": zstd.decompress, "gzip": gzip.decompress, "deflate": zlib.decompress,
})  # fmt: skip
_PACK: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType({
    "lz4": lz4.frame.compress, "zstd": zstd.compress, "gzip": lambda body: gzip.compress(body, 1),
})  # fmt: skip


class Refused(Exception):
    """This host, not the engine, refuses a request; `code` is the one that a server would give."""

    def __init__(self, sentence: str, name: str, *, code: int, status: int | None = None) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {sentence}. ({name})")
        self.code = code
        self.status = status or _STATUS.get(code, 500)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the engine sees it."""

    statement: Insert | Query
    session: Session
    params: Mapping[str, str]
    readonly: bool
    default_format: str
    streamed: bool


class Door:
    """The HTTP interface in front of the engine."""

    def __init__(
        self, engine: Engine, *, token: str, max_execution_time: timedelta, report: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._report = report
        self._token = token.encode()
        self._max_execution_time = max_execution_time

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY)
        application.add_routes([
            web.get("/ping", self.ping),
            web.get("/", self.answer, allow_head=False),
            web.post("/", self.answer),
        ])  # fmt: skip
        return application

    async def ping(self, _: web.Request) -> web.Response:
        """Needs no handle, so it answers while all of them are busy."""
        return web.Response(text="Ok.\n")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One statement; every error becomes ClickHouse's status, header and text."""
        url = dict(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
        query_id = url.get("query_id", "")
        headers = {
            "X-ClickHouse-Query-Id": query_id if _PRINTABLE.match(query_id) else str(uuid.uuid4()),
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            self._authenticate(request, url)
            text, params = await _read(request, url)
            if not text and request.method == "GET":
                return web.Response(text="Ok.\n", headers=headers)
            ask = self._understand(request, url, text, params)
            if ask.streamed:
                return await self._stream(request, ask, headers)
            return await _packed(await self._run(ask), ask, request, url, headers)
        except (Refused, EngineError) as error:
            status = error.status if isinstance(error, Refused) else _STATUS.get(error.code, 500)
            return _failed(str(error), error.code, status, headers)
        except StatementRefused as error:
            refusal = f"Code: {SYNTAX_ERROR}. DB::Exception: {error}. (SYNTAX_ERROR)"
            return _failed(refusal, SYNTAX_ERROR, 400, headers)

    def _authenticate(self, request: web.Request, url: Mapping[str, str]) -> None:
        presented = _presented_token(request, url).encode(errors="replace")
        if not hmac.compare_digest(presented, self._token):
            sentence = "Authentication failed: the token of this engine is wrong or missing"
            raise Refused(sentence, "AUTHENTICATION_FAILED", code=AUTHENTICATION_FAILED)

    def _understand(
        self, request: web.Request, url: Mapping[str, str], text: bytes, params: Mapping[str, str]
    ) -> Ask:
        statement = parse(text)
        if isinstance(statement, Insert) and statement.format == "Values" and params:
            sentence = (
                "Parameters are not put into the rows of INSERT ... VALUES here; send the rows in a FORMAT"
            )
            raise Refused(sentence, "NOT_IMPLEMENTED", code=NOT_IMPLEMENTED)
        settings = {k: v for k, v in url.items() if k not in _TRANSPORT and not k.startswith("param_")}
        for name in settings:
            if not _SETTING_NAME.match(name):
                raise Refused(f"Unknown setting {name!r}", "UNKNOWN_SETTING", code=UNKNOWN_SETTING)
        # A client that goes away does not stop its statement, so each has an end of its own.
        settings.setdefault("max_execution_time", f"{self._max_execution_time.total_seconds():g}")
        database = url.get("database") or request.headers.get("X-ClickHouse-Database") or "default"
        wanted = url.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated"
        return Ask(
            statement=statement,
            session=Session(database, settings),
            params=params,
            readonly=request.method == "GET" or url.get("readonly", "0") != "0",
            default_format=wanted,
            streamed=isinstance(statement, Query)
            and statement.may_stream
            and url.get("wait_end_of_query") != "1",
        )

    async def _run(self, ask: Ask) -> Answer:
        pool = self._engine.pool(readonly=ask.readonly)
        match ask.statement:
            case Insert() as insert:
                return await pool.run(ask.session, lambda handle: handle.insert(ask.session, insert))
            case Query() as query:
                return await pool.run(
                    ask.session,
                    lambda handle: handle.query(ask.session, query, ask.params, ask.default_format),
                )

    async def _stream(self, request: web.Request, ask: Ask, headers: Mapping[str, str]) -> web.StreamResponse:
        """Send blocks as they come: no result is whole in memory. A later error breaks the connection."""
        assert isinstance(ask.statement, Query)
        pool = self._engine.pool(readonly=ask.readonly)
        async with aclosing(pool.stream(ask.session, ask.statement, ask.params)) as blocks:
            first = await anext(blocks, b"")
            response = web.StreamResponse(headers={**headers, "X-ClickHouse-Format": "Native"})
            response.content_type = "application/octet-stream"
            await response.prepare(request)
            try:
                await self._send(response, first, blocks)
            except EngineError as error:
                self._report(f"a result ended half-way: {error}")
                _break(request)
            except (ConnectionError, TimeoutError):
                _break(request)
        return response

    async def _send(self, response: web.StreamResponse, first: bytes, blocks: AsyncGenerator[bytes]) -> None:
        """Raises TimeoutError when the reader stalls: it would keep the handle for good."""
        block = first
        while block:
            async with asyncio.timeout(self._max_execution_time.total_seconds()):
                await response.write(block)
            block = await anext(blocks, b"")
        await response.write_eof()


def _break(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _presented_token(request: web.Request, url: Mapping[str, str]) -> str:
    """The password in any of the places where a server looks; the user's name does not matter."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    if scheme.lower() == "bearer":
        return credentials
    return request.headers.get("X-ClickHouse-Key") or url.get("password", "")


async def _read(request: web.Request, url: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The SQL text with the rows that may follow it, and the values of its parameters."""
    params = {name[6:]: value for name, value in url.items() if name.startswith("param_")}
    text = url.get("query", "").encode()
    # Only multipart is a form. curl calls any body urlencoded, and it is plain SQL.
    if request.content_type == "multipart/form-data":
        form = await _read_form(request)
        params |= {name[6:]: value for name, value in form.items() if name.startswith("param_")}
        return form.get("query", "").encode() or text, params
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large() from error
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        body = await asyncio.to_thread(_unpacked, body, encoding)
    return (text + b"\n" + body if text and body else text or body), params


async def _read_form(request: web.Request) -> dict[str, str]:
    form: dict[str, str] = {}
    size = 0
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or part.name is None or part.filename is not None:
                sentence = "External tables are not taken by this engine; only the fields query and param_*"
                raise Refused(sentence, "NOT_IMPLEMENTED", code=NOT_IMPLEMENTED)
            value = bytes(await part.read())
            size += len(value)
            if size > MAX_BODY:
                raise _too_large()
            form[part.name] = value.decode()
    except ValueError as error:
        raise Refused(f"The form cannot be read: {error}", "INCORRECT_DATA", code=117) from error
    return form


def _unpacked(body: bytes, encoding: str) -> bytes:
    """A body that does not unpack is how the client takes an insert back."""
    unpack = _UNPACK.get(encoding)
    if unpack is None:
        sentence = f"The Content-Encoding {encoding!r} is not known here, only {', '.join(_UNPACK)}"
        raise Refused(sentence, "UNSUPPORTED_MEDIA_TYPE", code=UNSUPPORTED_MEDIA_TYPE)
    try:
        return unpack(body)
    except (RuntimeError, OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise Refused(
            f"The body is not {encoding}: {error}", "CANNOT_DECOMPRESS", code=CANNOT_DECOMPRESS, status=400
        ) from error


def _too_large() -> Refused:
    return Refused(
        f"The body is larger than {MAX_BODY >> 20} MB", "QUERY_IS_TOO_LARGE", code=QUERY_IS_TOO_LARGE
    )


async def _packed(
    answer: Answer, ask: Ask, request: web.Request, url: Mapping[str, str], headers: dict[str, str]
) -> web.Response:
    headers["X-ClickHouse-Summary"] = json.dumps({
        "read_rows": str(answer.read_rows), "read_bytes": str(answer.read_bytes),
        "written_rows": str(answer.written_rows), "written_bytes": str(answer.written_bytes),
        "elapsed_ns": str(answer.elapsed_ns),
    })  # fmt: skip
    # Without a result there must be no format, or the client takes a DDL statement for an empty result.
    if isinstance(ask.statement, Query) and (ask.statement.has_result or answer.body):
        headers["X-ClickHouse-Format"] = ask.statement.format or ask.default_format
    body = answer.body
    if url.get("enable_http_compression") == "1" and len(body) > 1024:
        accepted = [name.strip() for name in request.headers.get("Accept-Encoding", "").split(",")]
        encoding = next((name for name in accepted if name in _PACK), None)
        if encoding:
            headers["Content-Encoding"] = encoding
            body = await asyncio.to_thread(_PACK[encoding], body)
    return web.Response(body=body, headers=headers)


def _failed(text: str, code: int, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        text=text.rstrip() + "\n",
        status=status,
        headers={**headers, "X-ClickHouse-Exception-Code": str(code)},
    )
