"""What is wanted of runs, and what they have spent: read from ClickHouse at most every two seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from docsum.models import Control, State
from docsum.stores import costs
from docsum.stores.connection import Ask
from docsum.stores.tables import CONTROLS, control_of, utf8

AGE = 2.0  # seconds that an answer is believed

_ALL = f"SELECT {', '.join(CONTROLS.columns)} FROM controls"  # noqa: S608 - our own names
_CANCEL = f"""INSERT INTO run_document_versions
    (run_id, document_id, state, uri, attempt, reason, message, written_at, version)
SELECT run_id, document_id, '{State.CANCELLED.value}', uri, attempt, 'cancelled', {{reason:String}},
    {{at:DateTime64(3, 'UTC')}},
    bitOr(bitShiftLeft(toUInt64({State.CANCELLED.rank}), 56),
          toUInt64(toUnixTimestamp64Milli({{at:DateTime64(3, 'UTC')}})))
FROM run_documents
WHERE run_id = {{run_id:UUID}} AND state IN ('queued', 'retrying', 'held')"""  # noqa: S608 - our own names


class Controls:
    """The table `controls` as a whole, it is small, and sums of the money ledger."""

    def __init__(self, query: Ask, now: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._now = now
        self._controls: tuple[float, Mapping[UUID, Control]] = (0.0, {})
        self._spent: dict[tuple[UUID | None, datetime], tuple[float, Decimal]] = {}
        self._asking = asyncio.Lock()

    async def of(self, target: UUID) -> Control | None:
        """None where nothing was ever asked."""
        return (await self._current()).get(target)

    async def all(self) -> Sequence[Control]:
        """The newest wish of every target."""
        return list((await self._current()).values())

    async def _current(self) -> Mapping[UUID, Control]:
        until, controls = self._controls
        if until < self._now():
            async with self._asking:
                until, controls = self._controls
                if until < self._now():
                    found = [control_of(values) for values in await self._query(_ALL)]
                    controls = {control.target: control for control in found}
                    self._controls = (self._now() + AGE, controls)
        return controls

    def forget(self) -> None:
        """The next look asks again."""
        self._controls = (0.0, {})

    async def spent(self, run_id: UUID | None, since: datetime) -> Decimal:
        """US dollars; `run_id` None: of everything."""
        key = (run_id, since)
        until, spent = self._spent.get(key, (0.0, Decimal(0)))
        if until < self._now():
            async with self._asking:
                until, spent = self._spent.get(key, (0.0, Decimal(0)))
                if until < self._now():
                    spent = await costs.spent(self._query, run_id, since)
                    now = self._now()
                    self._spent = {k: v for k, v in self._spent.items() if v[0] >= now}
                    self._spent[key] = (now + AGE, spent)
        return spent

    async def cancel_rest(self, run_id: UUID, reason: str, at: datetime) -> None:
        await self._query(_CANCEL, run_id=run_id, reason=utf8(reason), at=at)
