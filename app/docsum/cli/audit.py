"""Who has moved or dropped work, and why: written down by the command that does it."""

from __future__ import annotations

import asyncio
import getpass
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from docsum.cli.output import say
from docsum.errors import DocsumError
from docsum.models import AuditRow
from docsum.replay import GOODBYE

if TYPE_CHECKING:
    from docsum.ports import SummaryStore


async def audit(store: SummaryStore, action: str, detail: str, count: int) -> None:
    """Never fails: what was done is done, and the person is told."""
    try:
        async with asyncio.timeout(GOODBYE.total_seconds()):
            await store.audit(AuditRow(datetime.now(UTC), who(), action, detail, count))
    except (DocsumError, TimeoutError) as error:
        why = "ClickHouse did not answer in time." if isinstance(error, TimeoutError) else error
        say(f"It could not be written to the audit: {why}")


def who() -> str:
    """The user of the operating system; in a container there may be a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
