"""A proxy on loopback in front of one port, which fails as it is told, from one moment to the next.

It passes bytes on, whatever they are: a broker stands behind it as well as a ClickHouse server. Only
`answers` looks at them, as HTTP.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from docsum.local.loopback import HOST

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class _Manner:
    """How the proxy behaves; the default passes everything on."""

    refuses: bool = False
    hangs: bool = False
    cut_after: int | None = None  # bytes of an answer, then the connection is reset
    delay: float = 0.0  # seconds before each piece
    code: int = 0  # of ClickHouse: what every request that has `only` in it is answered with
    name: str = ""
    only: str = ""


class FaultProxy:
    """In a thread of its own, so that it also serves tests that block. A context manager."""

    def __init__(self, target: int) -> None:
        """`target` is the port that it stands in front of."""
        self.target = target
        self.port = 0
        self.answered = 0  # requests with an error since the last `answers`
        self._manner = _Manner()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self.passes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuses()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    # -- what a test says --------------------------------------------------------------------------------

    def passes(self) -> None:
        """As if it were not there. Connections that hung go on."""
        self._behave(_Manner(), keep=self._manner.hangs)

    def refuses(self) -> None:
        """Nobody listens; connections are reset."""
        self._behave(_Manner(refuses=True))

    def hangs(self) -> None:
        """Connections stay, and new ones are taken, but no byte moves any more."""
        self._behave(_Manner(hangs=True), keep=True)

    def cuts(self, after: int) -> None:
        """Every new connection is reset after so many bytes of what the target has said."""
        self._behave(_Manner(cut_after=after))

    def delays(self, seconds: float) -> None:
        """Every piece comes so much later."""
        self._behave(_Manner(delay=seconds), keep=True)

    def answers(self, code: int, name: str, only: str = "") -> None:
        """HTTP requests with `only` in their head or body get this error of ClickHouse; the others pass."""
        self.answered = 0
        self._behave(_Manner(code=code, name=name, only=only))

    # -- how it is done ----------------------------------------------------------------------------------

    def _behave(self, manner: _Manner, *, keep: bool = False) -> None:
        asyncio.run_coroutine_threadsafe(self._change(manner, keep), self._loop).result(30)

    async def _change(self, manner: _Manner, keep: bool) -> None:
        self._manner = manner
        if manner.hangs:
            self._flowing.clear()
        else:
            self._flowing.set()
        if manner.refuses and self._server is not None:
            self._server.close()
            self._server = None
        if not keep:
            connections = list(self._connections)
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
        if not manner.refuses and self._server is None:
            self._server = await asyncio.start_server(
                self._accept, HOST, self.port, backlog=512, limit=1 << 20
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                if self._manner.code:
                    await self._converse(reader, writer)
                else:
                    await self._connect(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._moving()
        from_target, to_target = await asyncio.open_connection(HOST, self.target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, to_target, lambda: None))
                group.create_task(self._pipe(from_target, writer, lambda: self._manner.cut_after))
        except* OSError:
            pass
        finally:
            to_target.transport.abort()

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, cut_after: Callable[[], int | None]
    ) -> None:
        passed = 0
        while chunk := await source.read(_CHUNK):
            await self._moving()
            most = cut_after()
            sink.write(chunk if most is None else chunk[: max(0, most - passed)])
            await sink.drain()
            passed += len(chunk)
            if most is not None and passed >= most:
                break
        raise ConnectionError("the other end, or what a test allows")  # ends the other direction too

    async def _moving(self) -> None:
        """Returns when a piece may move."""
        await asyncio.sleep(self._manner.delay)
        await self._flowing.wait()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Request by request; one that is passed on is the last of its connection."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await _body(head, reader)
            manner = self._manner
            if manner.only.encode() not in head + body:
                await self._pass_on(head, body, writer)
                return
            self.answered += 1
            said = (
                f"Code: {manner.code}. DB::Exception: as the test wants it. ({manner.name}) (version 26.9)\n"
            )
            writer.write(
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=UTF-8\r\n"
                b"X-ClickHouse-Exception-Code: %d\r\nContent-Length: %d\r\n\r\n%s"
                % (manner.code, len(said), said.encode())
            )
            await writer.drain()

    async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        from_target, to_target = await asyncio.open_connection(HOST, self.target)
        try:
            kept = re.sub(rb"(?i)\r\nConnection:[^\r]*", b"", head[:-4])
            to_target.write(kept + b"\r\nConnection: close\r\n\r\n" + body)
            while chunk := await from_target.read(_CHUNK):
                writer.write(chunk)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        finally:
            to_target.transport.abort()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As it came, chunked or not."""
    if length := re.search(rb"(?i)\r\nContent-Length: *(\d+)", head):
        return await reader.readexactly(int(length[1]))
    if not re.search(rb"(?i)\r\nTransfer-Encoding: *chunked", head):
        return b""
    parts = []
    while True:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        parts += [line, await reader.readexactly(size + 2)]
        if not size:
            return b"".join(parts)
