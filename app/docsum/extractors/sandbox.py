"""Child processes that read what may be hostile. One dying is a normal answer, never our own death.

A child gets bytes through a pipe and gives a text back: it holds no secret, needs no file and no network.
The parent trusts nothing that it says beyond the shape of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

from docsum.errors import (
    ConfigurationError,
    DocsumError,
    DocumentBomb,
    EmptyDocument,
    Encrypted,
    ExtractError,
    ExtractorCrashed,
    ExtractTimeout,
    NotADocument,
    Scanned,
    Undecodable,
)
from docsum.extractors.sniff import Kind
from docsum.extractors.text import MAX_CHARACTERS
from docsum.models import Document, ExtractedText

#: Before the document: its kind, whether to be careful, its length.
REQUEST = struct.Struct(">c?Q")
#: Before the answer's JSON: the child's peak memory in bytes, the length.
ANSWER = struct.Struct(">QQ")
#: Kinds as a request names them.
CODES = {Kind.PDF: b"P", Kind.DOCX: b"W", Kind.HTML: b"H"}

_LONGEST_ANSWER = 6 * MAX_CHARACTERS + 65_536  # bytes: JSON escapes a character by at most six
_DOCUMENTS = 5_000  # then a child is replaced: its start takes a second of processor time
_START = 30.0  # seconds for a child to import its libraries
_CHUNK = 1 << 20
_LOOK_EVERY = 0.1  # seconds, at a child's memory where the system has no limit for it
_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
_REASONS: dict[str, type[ExtractError]] = {
    reason.__name__: reason for reason in (DocumentBomb, EmptyDocument, Encrypted, NotADocument, Undecodable)
}


class Sandbox:
    """Up to so many children, started on first need. Close it, or they end with this process."""

    def __init__(
        self, processes: int, timeout: timedelta, memory: int, *, watch: bool = sys.platform == "darwin"
    ) -> None:
        """`processes` 0: one a core, at most 4. `timeout` of one document; `memory` of one child, bytes.

        `watch`: the children's memory is watched from here; macOS does not hold a process to RLIMIT_AS.
        """
        self._timeout = timeout
        self._memory = memory
        self._watch = watch
        self._turns = asyncio.Semaphore(processes or min(4, os.cpu_count() or 1))
        self._idle: list[_Child] = []
        self._living: set[_Child] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def read(self, kind: Kind, document: Document) -> ExtractedText:
        """Raises an ExtractError, or a ConfigurationError when no child can start."""
        async with self._turns:
            try:
                return await self._read(kind, document)
            except DocsumError as error:
                if self._closed:  # abandoned: nothing is known of the document
                    raise asyncio.CancelledError from error
                raise

    @property
    def pids(self) -> frozenset[int]:
        """Of the children that live now."""
        return frozenset(child.pid for child in self._living)

    async def close(self) -> None:
        """Ends all children at once; a document that is being read is abandoned as cancelled."""
        self._closed = True
        for child in list(self._living):
            self._end(child)
        await asyncio.gather(*self._ending)

    async def _read(self, kind: Kind, document: Document) -> ExtractedText:
        try:
            return await self._attempt(self._reuse(), kind, document)
        except _Died as death:
            # Perhaps an earlier document had damaged the child, perhaps a library does not survive this one:
            # once more in a child of its own, and without that library if it crashed.
            careful = death.crashed
        try:
            return await self._attempt(None, kind, document, careful=careful)
        except _Died as death:
            raise ExtractorCrashed(f"The process that read the document {death}, twice.") from death

    async def _attempt(
        self, child: _Child | None, kind: Kind, document: Document, *, careful: bool = False
    ) -> ExtractedText:
        child = child or await self._start()
        fit = False
        try:
            async with asyncio.timeout(self._timeout.total_seconds()), self._watched(child):
                answer = await child.ask(CODES[kind], careful, document)
            text = _text(answer)
            fit = True
        except TimeoutError as error:
            seconds = self._timeout.total_seconds()
            raise ExtractTimeout(f"Reading the document took longer than {seconds:g} s.") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise await child.cause_of_death() from error
        except ExtractError as error:
            fit = not isinstance(error, DocumentBomb)
            raise
        finally:
            if fit and child.documents < _DOCUMENTS and child.peak <= self._memory // 2:
                self._idle.append(child)
            else:
                self._end(child)
        return text

    @contextlib.asynccontextmanager
    async def _watched(self, child: _Child) -> AsyncIterator[None]:
        if not self._watch:
            yield
            return
        done = asyncio.Event()
        watching = asyncio.create_task(child.watch_memory(self._memory, done))
        try:
            yield
        finally:
            done.set()
            await watching

    def _reuse(self) -> _Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._end(child)
        return None

    async def _start(self) -> _Child:
        if self._closed:
            raise asyncio.CancelledError
        with _empty_folder() as folder:
            try:
                process = await _spawn(folder, 0 if self._watch else self._memory, self._timeout)
            except OSError as error:
                raise DocsumError(f"The extractor process cannot be started: {error.strerror}.") from error
            child = _Child(process)
            self._living.add(child)
            try:
                if self._closed:
                    raise asyncio.CancelledError
                await child.ready()
            except BaseException:
                self._end(child)
                raise
        return child

    def _end(self, child: _Child) -> None:
        child.kill()
        task = asyncio.create_task(self._bury(child))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _bury(self, child: _Child) -> None:
        await child.wait()
        self._living.discard(child)


class _Died(Exception):
    """A child ended in the middle of a document; the text says how."""

    def __init__(self, how: str, *, crashed: bool) -> None:
        super().__init__(how)
        self.crashed = crashed  # by a library's fault, not by a hand from outside


class _Child:
    """One process and its pipes; asked by one caller at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout and process.stderr, "all three are pipes"
        self.pid = process.pid
        self.documents = 0
        self.peak = 0  # bytes
        self._too_large = False  # by its memory
        self._process = process
        self._requests, self._answers = process.stdin, process.stdout
        self._last_words = asyncio.create_task(_tail(process.stderr))

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ready(self) -> None:
        """Returns when the child has imported its libraries. Raises ConfigurationError when it cannot."""
        try:
            async with asyncio.timeout(_START):
                await self._answer()
        except TimeoutError as error:
            raise DocsumError(f"The extractor process was not ready within {_START:g} s.") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            status, words = await self.wait()
            if status > 0:  # it said so itself: with these settings it never will
                raise ConfigurationError(f"The extractor process cannot work: {words}") from error
            raise DocsumError(
                f"The extractor process was ended by {_signal(status)} at its start."
            ) from error

    async def ask(self, code: bytes, careful: bool, document: Document) -> object:
        """The child's answer. IncompleteReadError or ConnectionError: it died or talks nonsense."""
        for chunk in _request(code, careful, document):
            self._requests.write(chunk)
            await self._requests.drain()
        answer = await self._answer()
        self.documents += 1
        return answer

    async def _answer(self) -> object:
        self.peak, length = ANSWER.unpack(await self._answers.readexactly(ANSWER.size))
        if length > _LONGEST_ANSWER:
            raise ConnectionError("an answer longer than any text may be")
        try:
            return json.loads(await self._answers.readexactly(length))
        except ValueError as error:
            raise ConnectionError("an answer that is no JSON") from error

    async def cause_of_death(self) -> ExtractError | _Died:
        """What a child's death in the middle of a document means."""
        self.kill()  # it may live on with closed pipes; one that is dying keeps its own status
        status, words = await self.wait()
        if self._too_large or "bad_alloc" in words or "MemoryError" in words:
            return _out_of_memory()
        if status == -signal.SIGXCPU:
            return ExtractTimeout("Reading the document took more processor time than it may.")
        if status < 0:
            return _Died(f"was ended by {_signal(status)}", crashed=-status in _CRASHES)
        return _Died(f"ended with status {status}", crashed=True)

    async def watch_memory(self, limit: int, done: asyncio.Event) -> None:
        """Ends the child when its memory is above the limit, bytes. Until `done`: most are before a look."""
        while not self._too_large:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), _LOOK_EVERY)
                return
            if await _resident(self.pid) > limit:
                self._too_large = True
                self.kill()

    def kill(self) -> None:
        if self.alive:
            # Not Process.kill(): it may take the exit status away from the event loop (cpython #87744).
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> tuple[int, str]:
        """Exit status (negative: a signal) and the last line of its standard error."""
        self._requests.close()
        status = await self._process.wait()
        return status, await self._last_words


@contextlib.contextmanager
def _empty_folder() -> Iterator[str]:
    """For the start of a child. It stays there when the folder is gone, and can make no file in it."""
    folder = tempfile.mkdtemp(prefix="docsum-child-")
    try:
        yield folder
    finally:
        Path(folder).rmdir()


async def _spawn(folder: str, memory: int, timeout: timedelta) -> asyncio.subprocess.Process:
    """Isolated: no environment but the loader's path, no user site, no byte code, its own session."""
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-B", "-X", "utf8", "-m", "docsum.extractors.child"),
        *(str(memory), str(int(timeout.total_seconds()) + 1)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_CHUNK,
        env=environment,
        cwd=folder,
        start_new_session=True,  # Ctrl-C at a terminal is the parent's affair
    )


def _request(code: bytes, careful: bool, document: Document) -> Iterator[bytes]:
    if document.path is None:
        content = document.content or b""
        yield REQUEST.pack(code, careful, len(content))
        yield content
        return
    with document.path.open("rb") as file:
        yield REQUEST.pack(code, careful, os.fstat(file.fileno()).st_size)
        while chunk := file.read(_CHUNK):
            yield chunk


def _text(answer: object) -> ExtractedText:
    """The answer as a text. Raises the ExtractError that it names, ConnectionError for nonsense."""
    match answer:
        case {
            "text": str(text),
            "media_type": str(kind),
            "pages": int() | None as pages,
            "truncated": bool(cut),
        }:
            return ExtractedText(text, kind, pages, cut)
        case {"reason": "MemoryError"}:
            raise _out_of_memory()
        case {"reason": "Scanned", "message": str(message), "pages": int() | None as pages}:
            raise Scanned(message, pages=pages)
        case {"reason": str(reason), "message": str(message)} if reason in _REASONS:
            raise _REASONS[reason](message)
        case {"failed": str(error)}:
            raise _Died(f"failed with {error}", crashed=True)
    raise ConnectionError("an answer of a shape that we do not know")


async def _resident(pid: int) -> int:
    """Memory of a process in bytes, 0 when it is gone. By `ps`, the same on macOS and Linux."""
    process = await asyncio.create_subprocess_exec(
        *("ps", "-o", "rss=", "-p", str(pid)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output = (await process.communicate())[0].strip()
    return int(output) * 1024 if output.isdigit() else 0


def _out_of_memory() -> DocumentBomb:
    return DocumentBomb("Reading the document took more memory than DOCSUM_EXTRACT__MEMORY allows.")


def _signal(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


async def _tail(stream: asyncio.StreamReader) -> str:
    """The last line of a stream, read to its end without keeping more than a little."""
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-1000:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
