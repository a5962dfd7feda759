"""A document on its way in: in memory while it is small, then in a temporary file of ours."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from docsum.errors import SourceTooLarge, SourceUnavailable
from docsum.models import Document

#: Documents up to this size stay in memory, bytes.
IN_MEMORY = 256 * 1024

_TEMPORARY = "docsum-fetch-"
_LEAST_SPEED = 1_000  # bytes a second, of what comes over a network


class TemporaryFolder:
    """A folder of ours, made when it is first needed and locked for as long as this process lives.

    A lock outlives no process; a pid may.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._lock = -1
        self._making = threading.Lock()

    def make_file(self) -> tuple[int, Path]:
        """A new file, open for writing, and its path. May be called by several threads."""
        with self._making:
            if self._path is None:
                self._path = self._make()
        descriptor, name = tempfile.mkstemp(dir=self._path)
        return descriptor, Path(name)

    def remove(self) -> None:
        """Removes it with whatever is left in it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self._lock)
            self._path = None

    def _make(self) -> Path:
        while True:
            path = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():  # else a starting process took it for a stale one
                    return path
            os.close(self._lock)


def remove_stale_folders() -> None:
    """Removes what killed processes of this user left behind: folders that nobody holds the lock of."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


class Spool:
    """Takes a document chunk by chunk. End it with `finish` or `discard`."""

    def __init__(self, folder: TemporaryFolder, max_bytes: int, uri: str) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._uri = uri
        self._memory = bytearray()
        self._file = -1
        self._path: Path | None = None
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Raises SourceTooLarge over DOCSUM_FETCH__MAX_BYTES."""
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise SourceTooLarge(
                f"{self._uri!r} has more than the {self._max_bytes:,} bytes of DOCSUM_FETCH__MAX_BYTES."
            )
        if self._path is None and self.size <= IN_MEMORY:
            self._memory += chunk
            return
        if self._path is None:
            self._file, self._path = self._folder.make_file()
            _write(self._file, bytes(self._memory))
            self._memory.clear()
        _write(self._file, chunk)

    async def fill(self, read: Callable[[], Awaitable[bytes]], patience: timedelta) -> None:
        """Takes what `read` gives until it gives nothing.

        Raises SourceUnavailable when for as long as `patience` less than 1,000 bytes a second have come.
        """
        least = int(patience.total_seconds() * _LEAST_SPEED)
        while True:
            enough = self.size + least
            try:
                async with asyncio.timeout(patience.total_seconds()) as window:
                    while self.size < enough:
                        chunk = await read()
                        if not chunk:
                            return
                        self.write(chunk)
            except TimeoutError as error:
                if not window.expired():
                    raise
                raise SourceUnavailable(
                    f"{self._uri!r} comes too slowly: at less than {_LEAST_SPEED:,} bytes a second."
                ) from error

    def finish(self, source_version: str) -> Document:
        """The whole document; the file, if there is one, is the caller's to discard."""
        if self._path is None:
            return Document(self.size, source_version, content=bytes(self._memory))
        os.close(self._file)
        path, self._path = self._path, None
        return Document(self.size, source_version, path=path)

    def discard(self) -> None:
        """Forget it, and remove its file. After `finish` this does nothing."""
        if self._path is not None:
            os.close(self._file)
            self._path.unlink(missing_ok=True)
            self._path = None


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
