"""Many documents, one insert: rows gather while the flush before them is under way."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog

from docsum.errors import DocsumError, RowRefused, StoreMisconfigured, StoreUnavailable
from docsum.models import Answer, Rows
from docsum.stores.tables import size_of

log = structlog.get_logger(__name__)

#: Stores the rows in the order of `Rows`. The token is the same whenever the same rows are sent again.
Insert = Callable[[Rows, str], Awaitable[None]]
#: Hears of every insert: the rows, how many seconds it took, and the error if it failed.
Flushed = Callable[[Rows, float, DocsumError | None], None]


@dataclass(slots=True)
class _Entry:
    """What one call handed over; `stored` is None where nobody waits."""

    rows: Rows
    size: int
    stored: asyncio.Future[None] | None = None
    settled: bool = False

    def settle(self, error: RowRefused | StoreUnavailable | None = None) -> None:
        self.settled = True
        if self.stored is None or self.stored.done():  # done: the caller was cancelled
            return
        if error is None:
            self.stored.set_result(None)
        else:
            self.stored.set_exception(error)


class GroupCommit:
    """Rows in, first come first stored, one flush at a time; a flush that fails is sent again until it works.

    A flush starts when the one before has ended and `interval` has passed since it began, or when it is full.
    An idle store waits `gather` only, so that an answer and the summary made of it share a flush.
    """

    def __init__(
        self,
        insert: Insert,
        *,
        interval: timedelta,
        gather: timedelta = timedelta(milliseconds=5),
        documents: int = 200,
        flush_bytes: int = 4_000_000,
        buffer_bytes: int = 64_000_000,
        first_wait: timedelta = timedelta(milliseconds=200),
        longest_wait: timedelta = timedelta(seconds=5),
        flushed: Flushed | None = None,
    ) -> None:
        self._insert = insert
        self._flushed: Flushed = flushed or (lambda rows, seconds, error: None)
        self._interval = interval.total_seconds()
        self._gather = gather.total_seconds()
        self._documents = documents
        self._flush_bytes = flush_bytes
        self._buffer_bytes = buffer_bytes
        self._first_wait = first_wait.total_seconds()
        self._longest_wait = longest_wait.total_seconds()
        self._buffer: deque[_Entry] = deque()
        self._waiting_bytes = 0  # in the buffer
        self._waiting_documents = 0  # in the buffer
        self._flushing: Sequence[_Entry] = ()
        self._refused_answers = 0
        self._changed = asyncio.Condition()  # told after every flush
        self._filled = asyncio.Event()  # something is in the buffer
        self._ready = asyncio.Event()  # a whole flush is in the buffer, or we are draining
        self._draining = False
        self._closed = False
        self.unavailable_since: datetime | None = None

    @property
    def buffered_rows(self) -> int:
        """Documents and answers that are not stored yet."""
        return len(self._entries())

    async def write(self, rows: Rows) -> None:
        """Returns when durable; waits for room, and while the store is down. Raises RowRefused."""
        size = size_of(rows)
        if not self._has_room(size):
            async with self._changed:
                await self._changed.wait_for(lambda: self._has_room(size))
        entry = _Entry(rows, size, asyncio.get_running_loop().create_future())
        self._add(entry)
        assert entry.stored is not None
        await entry.stored

    def keep(self, answer: Answer) -> None:
        """Into the next flush, ahead of every later write. Never waits: the answer has been paid for."""
        rows = Rows(answers=(answer,))
        self._add(_Entry(rows, size_of(rows)))

    async def run(self) -> None:
        """Flush for ever; to be cancelled once drained."""
        started = -self._interval
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            await self._gathered(max(self._gather, started + self._interval - loop.time()))
            started = loop.time()
            self._flushing = self._take()
            await self._store(self._flushing)
            self._flushing = ()
            async with self._changed:
                self._changed.notify_all()

    async def drain(self, timeout: timedelta) -> int:
        """Flush what was handed over, without pauses. Returns how many answers are not stored by then."""
        self._draining = True
        self._ready.set()
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._changed:
                await self._changed.wait_for(lambda: not self._buffer and not self._flushing)
        except TimeoutError:
            pass
        finally:
            self._draining = False
            self._mark()
        return self._refused_answers + sum(len(entry.rows.answers) for entry in self._entries())

    def close(self) -> None:
        """Nothing is taken any more; who still waits is told that the rows are not stored."""
        self._closed = True
        for entry in self._entries():
            entry.settle(StoreUnavailable("The store was closed before the rows were stored."))

    def _entries(self) -> Sequence[_Entry]:
        """What was handed over and is neither stored nor refused."""
        return [entry for entry in (*self._flushing, *self._buffer) if not entry.settled]

    def _has_room(self, size: int) -> bool:
        return not self._buffer or self._waiting_bytes + size <= self._buffer_bytes

    def _add(self, entry: _Entry) -> None:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        self._buffer.append(entry)
        self._waiting_bytes += entry.size
        self._waiting_documents += entry.stored is not None
        self._mark()

    def _mark(self) -> None:
        full = self._waiting_documents >= self._documents or self._waiting_bytes >= self._flush_bytes
        _switch(self._filled, on=bool(self._buffer))
        _switch(self._ready, on=full or self._draining)

    async def _gathered(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[_Entry]:
        """The next flush: at most so many documents and bytes, one entry at least."""
        taken: list[_Entry] = []
        documents = size = 0
        while self._buffer:
            entry = self._buffer[0]
            documents += entry.stored is not None
            size += entry.size
            if taken and (documents > self._documents or size > self._flush_bytes):
                break
            taken.append(self._buffer.popleft())
            self._waiting_bytes -= entry.size
            self._waiting_documents -= entry.stored is not None
        self._mark()
        return taken

    async def _store(self, entries: Sequence[_Entry]) -> None:
        """All of them, in halves where the store refuses a row, until the one that is wrong is alone."""
        try:
            await self._insert_patiently(_together(entries))
        except RowRefused as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                await self._store(entries[:middle])
                await self._store(entries[middle:])
                return
            self._refuse(entries[0], error)
        else:
            for entry in entries:
                entry.settle()

    def _refuse(self, entry: _Entry, error: RowRefused) -> None:
        entry.settle(error)
        if entry.stored is None:  # nobody would hear of it
            self._refused_answers += len(entry.rows.answers)
            ids = [answer.request_id for answer in entry.rows.answers]
            log.error("answer_refused", action="store", request_ids=ids, error=str(error))

    async def _insert_patiently(self, rows: Rows) -> None:
        token = uuid4().hex
        wait = self._first_wait
        while True:
            began = time.monotonic()
            try:
                await self._insert(rows, token)
            except DocsumError as error:
                self._flushed(rows, time.monotonic() - began, error)
                if not isinstance(error, StoreUnavailable | StoreMisconfigured):
                    raise
                self._note_trouble(error)
            else:
                self._flushed(rows, time.monotonic() - began, None)
                self._note_success()
                return
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - jitter is no secret
            wait = min(2 * wait, self._longest_wait)

    def _note_trouble(self, error: StoreUnavailable | StoreMisconfigured) -> None:
        if self.unavailable_since is None:
            self.unavailable_since = datetime.now(UTC)
            level = log.error if isinstance(error, StoreMisconfigured) else log.warning
            level("store_unavailable", action="store", error=str(error))

    def _note_success(self) -> None:
        if self.unavailable_since is not None:
            log.info("store_available", action="store", since=self.unavailable_since.isoformat())
        self.unavailable_since = None


def _switch(event: asyncio.Event, *, on: bool) -> None:
    if on:
        event.set()
    else:
        event.clear()


def _together(entries: Sequence[_Entry]) -> Rows:
    """All rows of a flush, table by table, in the order in which they were handed over."""
    return Rows(
        answers=tuple(row for entry in entries for row in entry.rows.answers),
        summaries=tuple(row for entry in entries for row in entry.rows.summaries),
        run_documents=tuple(row for entry in entries for row in entry.rows.run_documents),
        dead_letters=tuple(row for entry in entries for row in entry.rows.dead_letters),
        failures=tuple(row for entry in entries for row in entry.rows.failures),
    )
