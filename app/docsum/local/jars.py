"""The pinned jars that the local Kafka runs from: fetched once, checked, then only counted.

A jar gets its final name only after its sha256 matched and its bytes are on the disk, so a file of the right
name and size needs no second look: later starts cost one `stat` a jar, no network and no jgo. jgo itself
writes straight to the final name and only warns about a wrong checksum (3.2.0), so it works in a folder of
its own here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docsum.errors import DocsumError

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_PINS = Path(__file__).with_name("kafka_jars.txt")
_THREADS = 4
_ATTEMPTS = 3
_TIMEOUT = 20  # seconds without a byte from the registry
_PARTIAL = ".partial-"


class DownloadFailed(DocsumError):
    """A jar could not be fetched, or was not the pinned one."""


class _Stopped(Exception):
    """The download is being given up: another jar failed, or Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned Maven artifact."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """Its name in the cache."""
        return f"{self.artifact}-{self.version}.jar"


def cache_folder(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where downloads are kept for this user, on every docsum home alike."""
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "docsum"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "docsum"


def pinned() -> list[Jar]:
    """The jars of Apache Kafka 4.3.1, in class path order."""
    return [_parse(line) for line in _PINS.read_text().splitlines() if not line.startswith("#")]


def _parse(line: str) -> Jar:
    coordinate, sha256, size = line.split()
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, sha256, int(size))


def download_size(cache: Path) -> int:
    """Bytes that `ensure_jars` would fetch; 0 when everything is there."""
    return sum(jar.size for jar in _missing(_folder(cache), pinned()))


def ensure_jars(cache: Path, progress: Progress = lambda _done, _total: None) -> list[Path]:
    """Returns the paths of the pinned jars, fetching what is missing; see `fetch`."""
    jars, folder = pinned(), _folder(cache)
    fetch(jars, folder, progress)
    return [folder / jar.filename for jar in jars]


def fetch(jars: Sequence[Jar], folder: Path, progress: Progress, mirror: str = "") -> None:
    """Fetches the jars that the folder lacks; safe in several processes at once and to interrupt anywhere.

    `progress` is called from this thread and never goes back; not at all when nothing is missing. `mirror` is
    the address of a Maven repository to use in place of the public one. Raises DownloadFailed.
    """
    if not _missing(folder, jars):
        return
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(jar.size for jar in jars)
    shown = 0

    def show(under_way: int) -> None:
        nonlocal shown
        there = total - sum(jar.size for jar in _missing(folder, jars))
        shown = max(shown, min(there + under_way, total))  # a jar being renamed or tried again counts wrongly
        progress(shown, total)

    with _alone(folder, while_waiting=lambda: show(0)):
        _sweep(folder)
        _download(_missing(folder, jars), _Transfer(folder, mirror), show)
    show(0)


def _folder(cache: Path) -> Path:
    return cache / "jars"


def _missing(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    return [jar for jar in jars if not _is_there(folder / jar.filename, jar.size)]


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@contextmanager
def _alone(folder: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the folder's lock; while another process downloads, its progress is shown here too."""
    with (folder / ".lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(0.1)
        yield


def _sweep(folder: Path) -> None:
    """Removes what a killed download left; only the lock's holder may call this."""
    for leftover in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(jars: Sequence[Jar], transfer: _Transfer, show: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = {pool.submit(transfer.fetch, jar) for jar in jars}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                show(transfer.under_way)
                for future in done:
                    future.result()
        finally:
            transfer.stop.set()
            pool.shutdown(cancel_futures=True)


class _Transfer:
    """Fetches jars one by one into a folder, from several threads."""

    def __init__(self, folder: Path, mirror: str) -> None:
        self.stop = threading.Event()
        self._folder = folder
        self._repositories = {"mirror": mirror} if mirror else None  # None: the public one
        self._counts: dict[str, int] = {}  # bytes of each unfinished jar; every thread writes its own key

    @property
    def under_way(self) -> int:
        """Bytes of jars that are not complete yet."""
        return sum(self._counts.copy().values())

    def fetch(self, jar: Jar) -> None:
        """Puts one checked jar under its final name."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._fetch_once(jar)
                return
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo raises RuntimeError
                if attempt == _ATTEMPTS or self.stop.wait(attempt):
                    raise DownloadFailed(_explain(jar, error, self._folder)) from error
            finally:
                self._counts.pop(jar.filename, None)

    def _fetch_once(self, jar: Jar) -> None:
        from jgo.maven import MavenContext, PythonResolver

        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=self._folder) as scratch:
            resolver = PythonResolver(progress_callback=lambda _name, _size: self._counted(jar))
            context = MavenContext(resolver, Path(scratch), remote_repos=self._repositories, timeout=_TIMEOUT)
            component = context.project(jar.group, jar.artifact).at_version(jar.version)
            path: Path = component.artifact().resolve()
            _keep(path, jar, self._folder / jar.filename)

    @contextmanager
    def _counted(self, jar: Jar) -> Iterator[Callable[[int], None]]:
        def count(size: int) -> None:
            if self.stop.is_set():
                raise _Stopped
            self._counts[jar.filename] = self._counts.get(jar.filename, 0) + size

        yield count


def _keep(path: Path, jar: Jar, final: Path) -> None:
    """Gives a fetched file its final name if it is the pinned one, after its bytes reached the disk."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != jar.sha256:
            raise RuntimeError(f"{jar.filename} is not the pinned file")
        os.fsync(file.fileno())
    path.replace(final)


def _explain(jar: Jar, error: Exception, folder: Path) -> str:
    if isinstance(error, OSError) and error.errno:  # the disk's, not the network's
        return f"Could not store {jar.filename} in {folder}: {error.strerror}."
    if "pinned" in str(error):
        return f"Could not download Kafka: {error}; something between here and the registry changes it."
    return (
        f"Could not download {jar.filename}; connect to the internet once, "
        f"or copy the folder {folder} from a machine that has it."
    )


def pin(coordinates: Sequence[str]) -> list[Jar]:
    """Resolves what a new list of pins would hold: the first coordinate with all it needs, the others alone.

    They are resolved one by one, since the managed versions of one POM leak into the other's (jgo 3.2.0).
    """
    from jgo.maven import MavenContext

    jars = []
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch), timeout=_TIMEOUT)
        for index, coordinate in enumerate(coordinates):
            inputs, needed = context.resolver.resolve([context.create_dependency(coordinate)])
            for found in inputs if index else inputs + needed:
                content = found.artifact.resolve().read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                jars.append(Jar(found.groupId, found.artifactId, found.version, digest, len(content)))
    return sorted(jars, key=lambda jar: (jar.group, jar.artifact))


if __name__ == "__main__":
    for each in pin(sys.argv[1:]):
        sys.stdout.write(f"{each.group}:{each.artifact}:{each.version} {each.sha256} {each.size}\n")
