"""The engine host: one process that owns a ClickHouse engine and lets workers use it over HTTP.

An engine directory belongs to one process, and the embedded engine (chDB) has no async client; behind this
host any number of workers use it with the client, the SQL and the error codes of a real server. SQL can read
every file that this user can read, through the table function `file`: so the host listens on loopback alone
and asks for a token.

    python -m docsum.local.clickhouse_engine --path DIR --port N --token-file FILE

Below DIR it makes `engine` (the data), `cwd` (an empty working directory), `rows` (of inserts that are being
written) and `lock`. Exit codes: 0 after SIGTERM, 1 where trying again may help, 2 usage, 78 where the
configuration is wrong.
"""

import argparse
import asyncio
import fcntl
import ipaddress
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from docsum.local.clickhouse_door import Door
from docsum.local.clickhouse_handles import Engine, EngineError

CONFIGURATION = 78
# For requests in flight after SIGTERM, and once more for statements that the first left behind.
_DRAIN = timedelta(seconds=2)


class StartRefused(Exception):
    """The host cannot start; the sentence says why and what to do."""

    def __init__(self, sentence: str, *, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Options:
    path: Path
    host: str
    port: int
    token: str
    threads: int
    memory_bytes: int
    max_execution_time: timedelta


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; leaves the process."""
    started = time.monotonic()
    try:
        options = _options(arguments)
        lock = _lock(options.path)
        listener = _listener(options.host, options.port)
        engine = _open_engine(options)
    except StartRefused as error:
        _say(str(error))
        sys.exit(error.exit_code)
    with listener:
        closed = asyncio.run(_serve(engine, listener, options, started))
    if not closed:
        _say("stopped with a statement still running; what was acknowledged is safe")
        # Leaving in the ordinary way would wait for its thread.
        os._exit(0)
    os.close(lock)


async def _serve(engine: Engine, listener: socket.socket, options: Options, started: float) -> bool:
    """Answer until told to stop; false when a statement was still running at the end."""
    door = Door(engine, token=options.token, max_execution_time=options.max_execution_time, report=_say)
    runner = web.AppRunner(
        door.application(),
        access_log=None,
        # aiohttp would unpack gzip and zstd but not lz4, and answer a bad body with a stack trace.
        auto_decompress=False,
        shutdown_timeout=_DRAIN.total_seconds(),
        # Parameters travel in the URL; a server allows 1 MB too.
        max_line_size=1 << 20,
    )
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()[:2]
    _say(
        f"ready on http://{f'[{host}]' if ':' in host else host}:{port}"
        f" after {time.monotonic() - started:.1f} s: ClickHouse {engine.version}, data in {options.path}"
    )
    await stop.wait()
    await runner.cleanup()
    return await engine.close(_DRAIN)


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="docsum.local.clickhouse_engine", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--path", type=Path, required=True, help="directory of the data; made if it is missing"
    )
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the token, mode 0600")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    # More than the cores, so that short requests do not stand behind long ones.
    parser.add_argument("--threads", type=int, default=(os.cpu_count() or 1) + 2)
    parser.add_argument("--memory-bytes", type=int, default=_memory_allowance(), help="cap of the engine")
    parser.add_argument(
        "--max-execution-time", type=float, default=60, help="seconds, unless a request says so"
    )
    given = parser.parse_args(arguments)
    if not _is_loopback(given.host):
        raise StartRefused(
            f"--host {given.host} is refused: SQL can read your files, so the engine listens on loopback"
            " alone, for example on 127.0.0.1.",
            exit_code=CONFIGURATION,
        )
    path: Path = given.path.absolute()
    if set("*?{}") & set(str(path)):
        raise StartRefused(
            f"--path {path} is refused: the engine takes * ? {{ }} in a path for patterns.",
            exit_code=CONFIGURATION,
        )
    return Options(
        path=path,
        host=given.host,
        port=given.port,
        token=_token(given.token_file),
        threads=max(1, given.threads),
        memory_bytes=given.memory_bytes,
        max_execution_time=timedelta(seconds=given.max_execution_time),
    )


def _memory_allowance() -> int:
    """2 GB or half of the machine's memory, whichever is less."""
    return min(2_000_000_000, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(4096).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartRefused(
            f"The token file {path} cannot be read: {error}.", exit_code=CONFIGURATION
        ) from error
    if mode & 0o077:
        raise StartRefused(
            f"The token file {path} has mode {mode:04o}, so others can use it: run chmod 600 {path}.",
            exit_code=CONFIGURATION,
        )
    if not token:
        raise StartRefused(f"The token file {path} is empty.", exit_code=CONFIGURATION)
    return token


def _lock(path: Path) -> int:
    """Take the directory, and work in an empty one below it: the engine obeys a config.xml where it works."""
    try:
        for directory in (path, path / "engine", path / "cwd", path / "rows"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.chdir(path / "cwd")
    except OSError as error:
        raise StartRefused(
            f"The directory {path} cannot be used: {error}.", exit_code=CONFIGURATION
        ) from error
    try:
        # The kernel drops the lock with the process, so that a crash leaves none behind.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        raise StartRefused(
            f"The directory {path} is in use by another engine, process {owner}: stop that one or use it.",
            exit_code=1,
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise StartRefused(f"Port {port} on {host} cannot be taken: {error}.", exit_code=1) from error
    return listener


def _open_engine(options: Options) -> Engine:
    # A server's zone is part of what it answers: the same on every machine.
    os.environ["TZ"] = "UTC"
    time.tzset()
    # chDB imports pyarrow for formats that are not used here: 70 MB and up to a second at start.
    sys.modules["pyarrow"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    rows = options.path / "rows"
    for left_by_a_crash in rows.iterdir():
        left_by_a_crash.unlink()
    try:
        return Engine(
            options.path / "engine", rows=rows, memory_bytes=options.memory_bytes, threads=options.threads
        )
    except EngineError as error:
        raise StartRefused(f"The engine in {options.path} does not open: {error}", exit_code=1) from error


def _say(sentence: str) -> None:
    sys.stderr.write(f"docsum engine host: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
