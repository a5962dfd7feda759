"""A blocking iterator read in a thread, a little ahead of whoever takes what it gives."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def batches(items: Iterator[T], size: int) -> AsyncGenerator[list[T], None]:
    """What a blocking iterator gives, as soon as there is something, in lists of at most `size`.

    A daemon thread reads at most `size` items ahead: a silent pipe or a hanging mount never holds up Ctrl-C.
    """
    loop, some = asyncio.get_running_loop(), asyncio.Event()
    ready: queue.Queue[T] = queue.Queue(size)
    ended: list[BaseException | None] = []
    stop = threading.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(some.set)

    def read() -> None:
        try:
            for item in items:
                while not stop.is_set():
                    with suppress(queue.Full):
                        ready.put(item, timeout=0.2)
                        break
                if stop.is_set():
                    return
                if not some.is_set():
                    wake()
            ended.append(None)
        except BaseException as error:  # handed to the reader below, whatever it is
            ended.append(error)
        wake()

    threading.Thread(target=read, name="docsum-listing", daemon=True).start()
    try:
        while True:
            await some.wait()
            some.clear()
            last = list(ended)  # looked at before the queue is emptied: nothing follows after it
            while batch := _take(ready, size):
                yield batch
            if last:
                if last[0] is not None:
                    raise last[0]
                return
    finally:
        stop.set()


def _take(ready: queue.Queue[T], size: int) -> list[T]:
    batch: list[T] = []
    with suppress(queue.Empty):
        while len(batch) < size:
            batch.append(ready.get_nowait())
    return batch
