"""`docsum worker --lane batch` that kills itself once, at a named step of a batch's life: DIE_AT=step."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic

from docsum import cli
from docsum.kafka.worker import KafkaWorker
from docsum.models import BatchState
from docsum.stores.clickhouse import ClickHouseStore
from docsum.summarisers.batches import BatchLane

Call = Callable[..., Awaitable[Any]]  # Any: of whatever it stands for

#: In the order of a batch's life.
STEPS = (
    "before the intent",
    "in the middle of the intent",
    "after the intent",
    "after the request has left",
    "after the reply",
    "after it is submitted",
    "in the middle of the results",
    "after it is applied",
    "before the commit",
)
_STEP = os.environ.get("DIE_AT", "")
_CHANCE = random.Random(int(os.environ.get("DIE_SEED", "1")))
_applied = False


def die(step: str) -> None:
    """By SIGKILL, as a power cut would; only once, whatever is started again."""
    died = Path(os.environ["DOCSUM_HOME"]) / "has-died"
    if step == _STEP and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _around(before: str, call: Call, after: str) -> Call:
    async def called(*arguments: Any, **named: Any) -> Any:
        die(before)
        result = await call(*arguments, **named)
        die(after)
        return result

    return called


def _post(call: Call) -> Call:
    async def posted(*arguments: Any, **named: Any) -> Any:
        if "/batches" not in str(arguments):
            return await call(*arguments, **named)
        request = asyncio.ensure_future(call(*arguments, **named))
        if _STEP == "after the request has left":
            await asyncio.wait({request}, timeout=_CHANCE.uniform(0, 0.05))
            die("after the request has left")
        reply = await request
        die("after the reply")
        return reply

    return posted


def _save_batch(call: Call) -> Call:
    async def saved(store: ClickHouseStore, batch: Any) -> None:
        global _applied  # noqa: PLW0603 - a process has one life
        if batch.state is BatchState.SUBMITTING:
            die("in the middle of the intent")
        await call(store, batch)
        if batch.state is BatchState.SUBMITTED:
            die("after it is submitted")
        if batch.state is BatchState.APPLIED:
            _applied = True
            die("after it is applied")

    return saved


def _results(call: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def lines(*arguments: Any) -> AsyncIterator[Any]:
        last, number = _CHANCE.randint(1, 140), 0
        async for line in call(*arguments):
            number += 1
            if number == last:
                die("in the middle of the results")
            yield line

    return lines


def _commit(call: Call) -> Call:
    async def committed(worker: KafkaWorker) -> None:
        if _applied:
            die("before the commit")
        await call(worker)

    return committed


if __name__ == "__main__":
    doomed: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
        (ClickHouseStore, "add_batch", lambda call: _around(STEPS[0], call, STEPS[2])),
        (ClickHouseStore, "save_batch", _save_batch),
        (anthropic.AsyncAnthropic, "post", _post),
        (BatchLane, "_results", _results),
        (KafkaWorker, "_commit_all", _commit),
    )
    for owner, name, wrapped in doomed:
        setattr(owner, name, wrapped(getattr(owner, name)))
    cli.main()
