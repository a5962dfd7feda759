"""Fetching pinned jars from a Maven repository on loopback."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from docsum.local.jars import DownloadFailed, Jar, fetch


class Mirror(ThreadingHTTPServer):
    """Serves `/org/example/NAME/1.0/NAME-1.0.jar` for each content given."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents = contents
        self.served: list[str] = []
        self.stalled: set[str] = set()  # answered only in part
        self.stalling = threading.Event()
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def jars(self) -> list[Jar]:
        return [
            Jar("org.example", name, "1.0", hashlib.sha256(content).hexdigest(), len(content))
            for name, content in self.contents.items()
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 3)[1]
        content = self.server.contents.get(name)
        if content is None or not self.path.endswith(f"/org/example/{name}/1.0/{name}-1.0.jar"):
            self.send_error(404)
            return
        self.server.served.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name in self.server.stalled:
            self.wfile.write(content[:-1])
            self.server.stalling.set()
            self.server.released.wait(30)
            content = content[-1:]
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    contents = {
        name: name.encode() * 20_000 for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
    }
    with Mirror(contents) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def test_missing_jars_are_fetched_and_the_progress_never_goes_back(mirror: Mirror, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    fetch(mirror.jars(), tmp_path, lambda done, total: reports.append((done, total)), mirror.address)
    total = sum(len(content) for content in mirror.contents.values())
    assert reports == sorted(reports)
    assert reports[-1] == (total, total)
    assert names(tmp_path) == {f"{name}-1.0.jar" for name in mirror.contents}


def test_a_jar_that_is_not_the_pinned_one_never_gets_its_name(mirror: Mirror, tmp_path: Path) -> None:
    jars = mirror.jars()
    mirror.contents["beta"] = b"something else"
    with pytest.raises(DownloadFailed, match=r"beta-1\.0\.jar is not the pinned file"):
        fetch(jars, tmp_path, ignore, mirror.address)
    assert "beta-1.0.jar" not in names(tmp_path)


def test_a_registry_out_of_reach_is_one_sentence_with_the_way_out(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadFailed, match=r"^Could not download .*; connect to the internet once, or copy"
    ):
        fetch(mirror.jars(), tmp_path, ignore, "http://127.0.0.1:9")
    assert names(tmp_path) == set()


def test_two_at_once_fetch_each_jar_once(mirror: Mirror, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(fetch, mirror.jars(), tmp_path, ignore, mirror.address) for _ in range(2)]
        for each in both:
            each.result(30)
    assert sorted(mirror.served) == sorted(mirror.contents)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_goes_on_where_it_was(
    mirror: Mirror, tmp_path: Path, number: signal.Signals
) -> None:
    mirror.stalled = {"delta"}
    script = (
        "from pathlib import Path; from docsum.local.jars import *; "
        f"fetch({mirror.jars()!r}, Path({str(tmp_path)!r}), lambda *_: None, {mirror.address!r})"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as popen:
        assert mirror.stalling.wait(20)
        deadline = time.monotonic() + 20
        while len(names(tmp_path)) < len(mirror.contents) - 1:
            assert time.monotonic() < deadline
        popen.send_signal(number)
        mirror.released.set()
    # The stalled transfer may have ended before the signal was looked at; then it is whole, as all are.
    missing = {f"{name}-1.0.jar" for name in mirror.contents} - names(tmp_path)
    assert missing <= {"delta-1.0.jar"}
    mirror.stalled, mirror.served = set(), []
    fetch(mirror.jars(), tmp_path, ignore, mirror.address)
    assert mirror.served == ["delta"] * len(missing)
    assert {path.name for path in tmp_path.iterdir()} == names(tmp_path) | {".lock"}


def ignore(_done: int, _total: int) -> None:
    """No progress is shown."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.jar")}
