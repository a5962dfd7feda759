"""The ClickHouse engine as a library (chDB), behind a pool of handles.

A handle is one chDB connection: one thread at a time, with a current database and settings of its own.
Several handles share the one engine of the process.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from docsum.local.clickhouse_statements import Insert, Query

T = TypeVar("T")

NOT_ENOUGH_SPACE = 243
UNKNOWN_EXCEPTION = 1002
_CODE = re.compile(r"Code: (\d+)\. DB::")


class EngineError(Exception):
    """The engine refused or failed a statement; `code` and text are what a server would send."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code

    @classmethod
    def of(cls, error: Exception) -> "EngineError":
        """chDB puts its own words before the engine's, and the code only into the text."""
        text = str(error)
        match = _CODE.search(text)
        if match is None:
            return cls(
                f"Code: {UNKNOWN_EXCEPTION}. DB::Exception: {text} (UNKNOWN_EXCEPTION)",
                code=UNKNOWN_EXCEPTION,
            )
        return cls(text[match.start() :], code=int(match[1]))


@dataclass(frozen=True, slots=True)
class Session:
    """What a request wants set on the handle that runs it."""

    database: str = "default"
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one statement; `elapsed_ns` counts the engine's part."""

    body: bytes = b""
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    elapsed_ns: int = 0


class Handle:
    """One chDB connection. `at_rest` means that the next request may have it."""

    def __init__(self, connection: Any, *, rows: Path, readonly: bool) -> None:  # chdb has no types
        self._connection = connection
        self._rows = rows
        self.session = Session()
        self.at_rest = True
        # As a library the engine takes `SELEC` for `SELECT SELEC`; a server calls it a syntax error.
        self._execute("SET implicit_select = 0")
        if readonly:
            # It cannot be undone (code 164), which is why these handles have a pool of their own. 2 is what a
            # server takes for GET: settings may change, data may not.
            self._execute("SET readonly = 2")

    def query(self, session: Session, query: Query, params: Mapping[str, str], default_format: str) -> Answer:
        """Run a statement to its end; raises EngineError."""
        started = time.perf_counter_ns()
        with self._entered(session, leaves_traces=query.alters_session):
            result = self._connection.query(query.text, default_format, params=dict(params))
            return Answer(
                body=result.bytes() or b"",
                read_rows=result.rows_read(),
                read_bytes=result.bytes_read(),
                written_rows=result.rows_written(),
                written_bytes=result.bytes_written(),
                elapsed_ns=time.perf_counter_ns() - started,
            )

    def insert(self, session: Session, insert: Insert) -> Answer:
        """Write the rows; raises EngineError, after which the handle is good for the next request.

        By a file: the engine's streamed insert (`send_insert`) answers success when the write has failed, for
        too many parts, a constraint, a view, a full disk or the memory limit. Inside an SQL text rows end at
        a blank line. A file costs no more time than a stream: 4.4 and 7.6 ms for 200 rows, fsync included.
        """
        started = time.perf_counter_ns()
        with self._entered(session), self._file(insert.rows) as path:
            statement = b" ".join((
                insert.head,
                f"FROM INFILE {_quoted(str(path))} COMPRESSION 'none'".encode(),
                insert.settings,
                f"FORMAT {insert.format}".encode(),
            ))  # fmt: skip
            result = self._connection.query(statement, "TabSeparated")
        return Answer(
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            elapsed_ns=time.perf_counter_ns() - started,
        )

    def stream(self, session: Session, query: Query, params: Mapping[str, str]) -> Generator[bytes]:
        """The Native blocks of a result, made as they are asked for; raises EngineError, also half-way."""
        with (
            self._entered(session),
            self._connection.send_query(query.text, "Native", params=dict(params)) as blocks,
        ):
            for block in blocks:
                yield block.bytes()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _file(self, rows: bytes) -> Iterator[Path]:
        """The rows as a file, which ends with the statement: they hold text of documents."""
        with tempfile.NamedTemporaryFile(dir=self._rows) as file:
            try:
                file.write(rows)
                file.flush()
            except OSError as error:
                text = f"Cannot write the rows: {error.strerror}. (NOT_ENOUGH_SPACE)"
                raise EngineError(
                    f"Code: {NOT_ENOUGH_SPACE}. DB::Exception: {text}", code=NOT_ENOUGH_SPACE
                ) from error
            yield Path(file.name)

    @contextmanager
    def _entered(self, session: Session, *, leaves_traces: bool = False) -> Iterator[None]:
        """The handle with the session set on it; translates the engine's errors."""
        self.at_rest = False
        try:
            self._apply(session)
        except RuntimeError as error:
            # Some values may be set by now and must not leak into the next request: the handle ends here.
            self.close()
            raise EngineError.of(error) from error
        try:
            yield
        except RuntimeError as error:
            raise EngineError.of(error) from error
        finally:
            if leaves_traces:
                # A request is no session: what SET, USE or a temporary table changed ends with it.
                self.close()
            else:
                self.at_rest = True

    def _apply(self, session: Session) -> None:
        """Set what differs from the last request: a SET costs 0.3 ms, a third of a small SELECT."""
        if session == self.session:
            return
        if session.database != self.session.database:
            self._execute(f"USE {_quoted(session.database, '`')}")
        before, after = self.session.settings, session.settings
        changes = [f"{name} = DEFAULT" for name in before if name not in after]
        changes += [
            f"{name} = {_quoted(value)}" for name, value in after.items() if before.get(name) != value
        ]
        if changes:
            self._execute("SET " + ", ".join(changes))
        self.session = session

    def _execute(self, sql: str) -> None:
        self._connection.query(sql, "TabSeparated")


class HandlePool:
    """Handles for one kind of request, at most `size` at work; further requests queue in order of arrival."""

    def __init__(self, open_handle: Callable[[], Handle], *, size: int, name: str) -> None:
        self._open_handle = open_handle
        self._idle: list[Handle] = []
        self._places = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, name)
        self._at_work: set[Future[Any]] = set()

    async def run(self, session: Session, work: Callable[[Handle], T]) -> T:
        """Do the work on a handle, in a thread."""
        async with self._borrowed(session) as handle:
            return await self._in_thread(work, handle)

    async def stream(
        self, session: Session, query: Query, params: Mapping[str, str]
    ) -> AsyncGenerator[bytes]:
        """The blocks of a result; the handle is taken until the last one, or until the caller closes this."""
        async with self._borrowed(session) as handle:
            blocks = handle.stream(session, query, params)
            try:
                while block := await self._in_thread(_next_block, blocks):
                    yield block
            finally:
                await self._in_thread(blocks.close)

    async def close(self, within: timedelta) -> bool:
        """Close the handles; false when a statement still ran after that time and kept its own."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        _, running = await asyncio.to_thread(wait, list(self._at_work), within.total_seconds())
        while self._idle:
            self._idle.pop().close()
        return not running

    @asynccontextmanager
    async def _borrowed(self, session: Session) -> AsyncGenerator[Handle]:
        async with self._places:
            handle = self._take(session)
            if handle is None:
                handle = await self._in_thread(self._open_handle)
            try:
                yield handle
            finally:
                # A handle that is not at rest is closed, or a cancelled request left a thread in it.
                if handle.at_rest:
                    self._idle.append(handle)

    def _take(self, session: Session) -> Handle | None:
        """An idle handle, if possible one that needs no SET for this session."""
        for position in range(len(self._idle) - 1, -1, -1):
            if self._idle[position].session == session:
                return self._idle.pop(position)
        return self._idle.pop() if self._idle else None

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        job = self._threads.submit(work, *arguments)
        self._at_work.add(job)
        job.add_done_callback(self._at_work.discard)
        return await asyncio.wrap_future(job)


class Engine:
    """The engine of this process; `rows` is a folder for the rows of inserts while they are written.

    Raises EngineError where the directory cannot be opened.
    """

    def __init__(self, directory: Path, *, rows: Path, memory_bytes: int, threads: int) -> None:
        import chdb

        # The mark cache may grow to 5 GB by default, more than the whole allowance.
        address = f"{directory}?max_server_memory_usage={memory_bytes}&mark_cache_size={memory_bytes // 8}"
        try:
            # The engine lives while a connection does: this one stays open under the pools.
            self._keeper = chdb.connect(address)
        except RuntimeError as error:
            raise EngineError.of(error) from error
        self.version, self.timezone = self._facts()
        self._writers = HandlePool(
            lambda: Handle(chdb.connect(address), rows=rows, readonly=False), size=threads, name="writer"
        )
        self._readers = HandlePool(
            lambda: Handle(chdb.connect(address), rows=rows, readonly=True), size=2, name="reader"
        )

    def pool(self, *, readonly: bool) -> HandlePool:
        return self._readers if readonly else self._writers

    async def close(self, within: timedelta) -> bool:
        """Close all; false when a statement still ran after that time and the engine had to be left open."""
        rested = await asyncio.gather(self._writers.close(within), self._readers.close(within))
        if all(rested):
            self._keeper.close()
        return all(rested)

    def _facts(self) -> tuple[str, str]:
        version, timezone = self._keeper.query("SELECT version(), timezone()", "TabSeparated").bytes().split()
        return version.decode(), timezone.decode()


def _next_block(blocks: Iterator[bytes]) -> bytes:
    return next(blocks, b"")


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
