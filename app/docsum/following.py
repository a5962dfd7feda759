"""Follows a source: what is told to have changed is looked at once it is still, all of it now and then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from typing import Protocol
from urllib.parse import unquote_to_bytes

from docsum.errors import BrokerError, ConfigurationError, DocsumError, StoreError
from docsum.ingest import Ingester
from docsum.ports import Clock
from docsum.sources import Listed, Source

TICK = timedelta(milliseconds=250)
STILL = timedelta(seconds=1)  # so long nothing has happened to a file that is looked at
RESTLESS = timedelta(seconds=30)  # one that never rests is looked at as often
_ROOM = 10_000  # paths that wait; of more, all of the source is looked at


class Watch(Protocol):
    """Tells what has changed in a folder."""

    def __call__(self, folder: str) -> AsyncIterator[Collection[str]]:
        """Absolute paths, or nothing, the first time as soon as it watches.

        Raises WatchFailed where nothing can be watched, and when it ends.
        """


class WatchFailed(Exception):
    """The folder cannot be watched; the message says why."""


class Settling:
    """Paths to which something has happened, until they are still. Times are of a steady clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # path -> the first and the last time
        self.overflowed = False  # some were forgotten: only a look at everything finds them

    def touch(self, path: str, now: float) -> None:
        """Something has happened to it."""
        if path not in self._seen and len(self._seen) >= _ROOM:
            self.overflowed = True
            return
        self._seen[path] = (self._seen.get(path, (now, now))[0], now)

    def take(self, now: float) -> list[str]:
        """Those that are still, and those that have been restless for long."""
        due = [
            path
            for path, (first, last) in self._seen.items()
            if now - last >= STILL.total_seconds() or now - first >= RESTLESS.total_seconds()
        ]
        for path in due:
            del self._seen[path]
        return due


async def follow(
    ingester: Ingester,
    source: Source,
    *,
    every: timedelta,
    clock: Clock,
    watch: Watch | None,
    say: Callable[[str], None] = lambda _sentence: None,
) -> None:
    """Until it is cancelled. All of the source is looked at in the beginning and `every` so often.

    Where the source cannot be listed at the moment, that is said, and tried again the next time. Raises
    ConfigurationError, BrokerError or StoreError.
    """
    settling = Settling()

    def young(listed: Listed) -> bool:
        """A file that may still be written to is looked at again once it is still."""
        if source.below is None or listed.modified_ns is None:
            return False
        age = clock.now().timestamp() - listed.modified_ns / 1e9
        if not 0 <= age < STILL.total_seconds():
            return False
        settling.touch(_path(listed), clock.monotonic())
        return True

    watcher = _Watcher(source, settling, clock, watch, say)
    try:
        due = clock.monotonic()
        while True:
            if settling.overflowed or clock.monotonic() >= due:
                settling.overflowed = False
                await watcher.begin()
                with _Told(say):
                    await ingester.look(young)
                due = clock.monotonic() + every.total_seconds()
            if paths := settling.take(clock.monotonic()):
                with _Told(say):
                    await ingester.look_at(paths)
            await clock.sleep(TICK.total_seconds())
    finally:
        await watcher.end()


class _Watcher:
    """Keeps watching a folder; begins anew where the last watching has ended."""

    def __init__(
        self,
        source: Source,
        settling: Settling,
        clock: Clock,
        watch: Watch | None,
        say: Callable[[str], None],
    ) -> None:
        self._source = source
        self._settling = settling
        self._clock = clock
        self._watch = watch
        self._say = say
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._told = ""

    async def begin(self) -> None:
        """Returns when it watches, or cannot: so a look that follows misses nothing."""
        if self._watch is None or self._source.below is None:
            return
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._run(self._watch))
            await self._ready.wait()

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, watch: Watch) -> None:
        try:
            async for paths in watch(self._source.place):
                self._ready.set()
                for path in paths:
                    self._settling.touch(path, self._clock.monotonic())
        except WatchFailed as error:
            if str(error) != self._told:
                self._told = str(error)
                self._say(f"{error} Until then changes are found by looking at everything.")
        finally:
            self._ready.set()


class _Told:
    """Says an error of the source in a sentence; those of the broker, the store and the settings pass."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DocsumError) or isinstance(
            error, (ConfigurationError, BrokerError, StoreError)
        ):
            return False
        self._say(f"{error} It is tried again at the next look.")
        return True


def _path(listed: Listed) -> str:
    return os.fsdecode(unquote_to_bytes(listed.uri.removeprefix("file://")))
