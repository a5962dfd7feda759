"""One look at a whole deployment: every part is asked at the same time, and none is waited for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from docsum.bootstrap import look_at
from docsum.cli.output import NothingRuns
from docsum.health import Health, LocalProcess
from docsum.models import WorkerStatus

if TYPE_CHECKING:
    from docsum.local.stack_state import StackState
    from docsum.settings import Settings

_PAGE_PATIENCE = timedelta(seconds=2)  # for a worker of this machine


async def look(settings: Settings, *, local: bool) -> Health:
    """Takes about `bootstrap.PATIENCE` at most. A part that is down hides no other."""
    from docsum.local.stack_state import find

    stack = find(settings.home) if local else None
    if local and stack is None:  # it was stopped while somebody watched
        gone = NothingRuns(f"No docsum runs in {settings.home} any more: `docsum up -d` starts it.")
        return Health(datetime.now(UTC), errors=[gone])
    health, pages = await asyncio.gather(look_at(settings), _pages(stack))
    return replace(health, processes=processes_of(stack) if stack else None, pages=pages)


def processes_of(stack: StackState) -> list[LocalProcess]:
    """The processes of a stack as values."""
    return [
        LocalProcess(
            process.name,
            process.state.value,
            process.log,
            process.pid,
            process.port,
            process.restarts,
            process.problem,
        )
        for process in stack.processes
    ]


async def _pages(stack: StackState | None) -> Sequence[WorkerStatus]:
    """What the workers of the local stack say, whatever else is down."""
    ports = [process.port for process in stack.workers if process.port] if stack else []
    if not ports:
        return ()
    from docsum.local.loopback import HOST
    from docsum.telemetry.health import ask

    answers = await asyncio.gather(*(ask(f"{HOST}:{port}", _PAGE_PATIENCE) for port in ports))
    return [answer for answer in answers if answer]
