"""Documents from folders: only `file:` addresses, only under the allowed roots, never through a way out."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

from docsum.errors import (
    FetchError,
    SourceNotAllowed,
    SourceNotFound,
    SourceOutdated,
    SourceRootMissing,
    SourceTooLarge,
    SourceUnavailable,
)
from docsum.fetchers.spool import IN_MEMORY, Spool, TemporaryFolder
from docsum.models import Document, DocumentReference

_CHUNK = 1 << 20
_THREADS = 16
_URI = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"(\d+):\d+:\d+")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: File systems that answer from this machine. Anything else (nfs, cifs, fuse ...) may hang on a network.
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "overlay", "ramfs", "squashfs"}
_LOCAL |= {"tmpfs", "vfat", "xfs", "zfs"}
_LOCAL_FOR = 10.0  # seconds that an answer of `_is_local` is believed: mounts come and go


def file_version(status: os.stat_result) -> str:
    """The source version of a file: `mtime_ns:size:inode`."""
    return f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"


class FileFetcher:
    """The port `Fetcher` for `file:` addresses. Close it: it owns threads."""

    def __init__(self, roots: Sequence[Path], max_bytes: int, folder: TemporaryFolder) -> None:
        self._roots = tuple(os.path.normpath(root.expanduser().absolute()) for root in roots)
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docsum-file")
        self._local: dict[str, tuple[float, bool]] = {}
        self._folder = folder

    async def fetch(self, reference: DocumentReference) -> Document:
        """Reads a small file of a local disk right here: a thread costs 280 us for a read of 35 us.

        Larger files, and everything that may hang on a network, go through the threads.
        """
        path = path_of(reference.uri)
        if self._reads_here(path):
            document = self._read(path, reference.source_version, IN_MEMORY)
            if document is not None:
                return document
        future = self._threads.submit(self._read_all, path, reference.source_version)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_discard)  # nobody else knows of its temporary file
            raise

    def close(self) -> None:
        """Does not wait: a read may hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- one file --------------------------------------------------------------------------------------

    def _read_all(self, path: str, announced: str) -> Document:
        document = self._read(path, announced, None)
        assert document is not None, "only a size limit makes _read give nothing"
        return document

    def _read(self, path: str, announced: str, at_most: int | None) -> Document | None:
        """None when the file is larger than `at_most` bytes. Raises a FetchError."""
        real, root = self._resolve(path)
        descriptor = _open(path, real, root)
        try:
            opened = _path_of_descriptor(descriptor)
            if opened is not None and opened != real:
                self._resolve(opened)  # a folder on the way may have become a link between check and open
            before = os.fstat(descriptor)
            self._check(path, before, announced)
            if at_most is not None and before.st_size > at_most:
                return None
            document = self._take(descriptor, path, before)
            if file_version(os.fstat(descriptor)) != file_version(before):
                document.discard()
                raise SourceUnavailable(f"{path!r} changed while it was read.")
        except OSError as error:
            raise SourceUnavailable(f"{path!r} cannot be read: {error.strerror}.") from error
        finally:
            os.close(descriptor)
        return document

    def _resolve(self, path: str) -> tuple[str, str]:
        """Where a path really leads, and the root that allows it."""
        real = os.path.realpath(path)
        for root in self._roots:
            if _is_within(real, os.path.realpath(root)):
                return real, root
        if not self._roots:
            raise SourceNotAllowed(
                f"{path!r} is refused: no folder may be read until DOCSUM_FETCH__FILE_ROOTS names it."
            )
        raise SourceNotAllowed(f"{path!r} is outside the folders of DOCSUM_FETCH__FILE_ROOTS.")

    def _check(self, path: str, status: os.stat_result, announced: str) -> None:
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
            raise SourceNotAllowed(f"{path!r} is {what}, not a regular file.")
        if status.st_size > self._max_bytes:
            raise SourceTooLarge(
                f"{path!r} has {status.st_size:,} bytes; DOCSUM_FETCH__MAX_BYTES allows {self._max_bytes:,}."
            )
        version = _VERSION.fullmatch(announced)
        if version is not None and int(version[1]) > status.st_mtime_ns:
            raise SourceOutdated(f"{path!r} is still older than was announced.")

    def _take(self, descriptor: int, path: str, status: os.stat_result) -> Document:
        version = file_version(status)
        if status.st_size <= IN_MEMORY:
            content = _read_up_to(descriptor, status.st_size + 1)
            if len(content) > self._max_bytes:
                raise self._grew(path)
            return Document(len(content), version, content=content)
        spool = Spool(self._folder, self._max_bytes, path)
        try:
            while chunk := os.read(descriptor, _CHUNK):
                spool.write(chunk)
            return spool.finish(version)
        finally:
            spool.discard()

    def _grew(self, path: str) -> SourceTooLarge:
        return SourceTooLarge(f"{path!r} grew over DOCSUM_FETCH__MAX_BYTES while it was read.")

    # -- where to read ---------------------------------------------------------------------------------

    def _reads_here(self, path: str) -> bool:
        """Whether the event loop may read this path itself. Touches no file: that might hang."""
        path = os.path.normpath(path)
        return any(_is_within(path, root) and self._is_local(root) for root in self._roots)

    def _is_local(self, root: str) -> bool:
        now = time.monotonic()
        believed_until, local = self._local.get(root, (0.0, False))
        if now >= believed_until:
            local = _lies_on_local_disks(root)
            self._local[root] = (now + _LOCAL_FOR, local)
        return local


def path_of(uri: str) -> str:
    """The absolute path of a `file:` address. Raises SourceNotAllowed."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise SourceNotAllowed(f"{uri!r} is not an absolute file: address, such as file:///data/report.pdf.")
    if match["host"] and match["host"].lower() != "localhost":
        raise SourceNotAllowed(f"{uri!r} names another host; only files of this machine are read.")
    # A bare ? or # is part of the name: a file has no query.
    path = os.fsdecode(unquote_to_bytes(match["path"].encode(errors="replace")))
    if "\0" in path:
        raise SourceNotAllowed(f"{uri!r} holds a NUL character.")
    return path


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _open(path: str, real: str, root: str) -> int:
    """Opens what `path` was resolved to. Raises a FetchError."""
    try:
        return os.open(real, _FLAGS)
    except OSError as error:
        raise _refusal(path, root, error) from error


def _refusal(path: str, root: str, error: OSError) -> FetchError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return _root_failure(root) or SourceNotFound(f"There is no file {path!r}.")
        case errno.ELOOP:  # links were resolved: one is left where they go in a circle, or it is a new one
            return SourceNotAllowed(f"{path!r} is a link that leads nowhere.")
        case errno.ENXIO:  # a socket
            return SourceNotAllowed(f"{path!r} is not a regular file.")
    return _root_failure(root) or SourceUnavailable(f"{path!r} cannot be opened: {error.strerror}.")


def _root_failure(root: str) -> SourceRootMissing | None:
    try:
        Path(root).stat()
    except PermissionError:
        return None
    except OSError as error:
        return SourceRootMissing(f"The folder {root!r} cannot be reached: {error.strerror}.")
    return None


def _path_of_descriptor(descriptor: int) -> str | None:
    """Where an open file really is; None where the system does not tell."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (Path: 14 us of a read's 60, not 4)
    except OSError:
        return None


def _read_up_to(descriptor: int, size: int) -> bytes:
    content = os.read(descriptor, size)
    while len(content) < size and (more := os.read(descriptor, size - len(content))):
        content += more
    return content


def _lies_on_local_disks(root: str) -> bool:
    """From Linux's list of mounts: the one that holds the root and those below it. Elsewhere: not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    below: list[str] = []
    holder, holder_type = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount, kind = before.split(" ")[4].replace("\\040", " "), after.split(" ", 1)[0]
        if _is_within(mount, root):
            below.append(kind)
        if _is_within(root, mount) and len(mount) >= len(holder):
            holder, holder_type = mount, kind
    return _LOCAL.issuperset([*below, holder_type])


def _discard(future: Future[Document]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().discard()
