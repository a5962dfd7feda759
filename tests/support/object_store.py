"""A real S3 server on loopback, and a proxy in front of it that fails as it is told."""

from __future__ import annotations

import asyncio
import http.client
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from docsum.local.loopback import HOST, free_port, listens

MOTO = Path(__file__).parents[2] / ".venv" / "s3" / "bin" / "moto_server"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
_HEADERS = {
    "Content-Type": "application/octet-stream",
    # moto checks no signature, but only the owner may write over an object
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=none",
}
_OF_THE_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


class S3Server:
    """moto's S3 as a process of its own. Its objects end with it."""

    def __init__(self, log: Path) -> None:
        assert MOTO.exists(), "run `make .venv/.s3`"
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(MOTO), "-H", HOST, "-p", str(self.port)], stdout=output, stderr=output
            )
        deadline = time.monotonic() + 60
        while not listens(self.port):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def bucket(self) -> str:
        """A new one."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self._ask("PUT", f"/{name}")
        return name

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._ask("PUT", f"/{bucket}/{quote(key)}", content)

    def put_many(self, bucket: str, contents: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda item: self.put(bucket, *item), contents.items()))

    def delete(self, bucket: str, key: str) -> None:
        self._ask("DELETE", f"/{bucket}/{quote(key)}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def _ask(self, method: str, path: str, content: bytes = b"") -> None:
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=30)) as connection:
            connection.request(method, path, content, _HEADERS)
            answer = connection.getresponse()
            assert answer.status < 300, answer.read()


@dataclass
class Fault:
    """What happens to the requests that it matches, `times` of them."""

    path: str  # a regular expression that is searched for in path and query
    method: str = "GET"
    status: int = 0  # answered at once, with `code` as S3 says it
    code: str = ""
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    bytes_per_second: int = 0  # of the body
    silent: bool = False  # the request is taken and never answered
    before: Callable[[], None] = lambda: None  # done first, in a thread
    times: int = 1_000_000

    def matches(self, request: web.Request) -> bool:
        wanted = request.method == self.method and re.search(self.path, request.raw_path)
        return self.times > 0 and bool(wanted)


@dataclass
class Seen:
    """A request that came by."""

    method: str
    path: str  # with the query
    range: str
    sent: int = 0  # bytes of the body that were passed on


@dataclass
class FaultProxy:
    """A reverse proxy in a thread of its own, so that it also serves who blocks."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def requests(self, path: str, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and re.search(path, seen.path)]

    async def _start(self) -> str:
        self._stopping = asyncio.Event()
        self._client = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        return f"http://{HOST}:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        self._stopping.set()
        await self._runner.cleanup()
        await self._client.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, request.headers.get("Range", ""))
        self.seen.append(seen)
        fault = next((fault for fault in self.faults if fault.matches(request)), Fault(""))
        fault.times -= 1
        await asyncio.to_thread(fault.before)
        if fault.silent:
            await self._stopping.wait()
        if fault.status:
            text = f"<Error><Code>{fault.code}</Code><Message>as the test wants it</Message></Error>"
            return web.Response(status=fault.status, text=text, content_type="application/xml")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_HOP}
        async with self._client.request(
            request.method,
            URL(self.upstream + request.raw_path, encoded=True),
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            with suppress(ConnectionError):  # whoever asked has gone
                await response.prepare(request)
                await self._body(request, response, answer, fault, seen)
            return response

    async def _body(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: aiohttp.ClientResponse,
        fault: Fault,
        seen: Seen,
    ) -> None:
        piece = max(1, fault.bytes_per_second // 10) if fault.bytes_per_second else 65_536
        async for chunk in answer.content.iter_chunked(piece):
            left = len(chunk) if fault.cut_after is None else fault.cut_after - seen.sent
            await response.write(chunk[:left])
            seen.sent += len(chunk[:left])
            if left < len(chunk) and request.transport is not None:
                request.transport.abort() if left <= 0 else request.transport.close()
                return
            if fault.bytes_per_second:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), len(chunk) / fault.bytes_per_second)
                if self._stopping.is_set():
                    return
        await response.write_eof()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder / "moto.log")
    try:
        yield server
    finally:
        server.close()


def environment(url: str) -> dict[str, str]:
    """The variables that lead to a server."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
