"""Wait for a condition with a deadline; nothing in the tests sleeps for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def within_turns(check: Callable[[], bool], turns: int = 1_000) -> None:
    """Return once `check` holds, looking at every turn of the loop: a fake clock hardly moves meanwhile."""
    for _ in range(turns):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"not within {turns} turns of the loop")


async def eventually(
    check: Callable[[], bool | Awaitable[bool]], within: float = 10.0, what: str = ""
) -> None:
    """Return once `check` holds; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what or check}")
        await asyncio.sleep(0.02)
