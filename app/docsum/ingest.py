"""Live announcements of what is new, changed or gone in a source. Values and ports come in.

What was announced of a document is remembered in its cursor row, which is written after the broker has
acknowledged the event. A kill between the two repeats an event, and a worker passes over that: the same
version of the document is stored, or on its way in the same partition.

Every look at the source has a number that grows, and stamps the rows of what it has seen with it. So what is
gone is what carries an older number after a complete look: one query, and no list of the source in memory.
"""

from __future__ import annotations

import asyncio
import enum
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

from docsum.errors import InvalidEvent
from docsum.models import Coordinates, Cursor, Operation, to_ms
from docsum.ports import Clock, CursorStore
from docsum.reading_ahead import batches
from docsum.runs import AT_ONCE, LAG_PAUSE, PATIENCE, patiently
from docsum.sources import Entry, Listed, Source, Unreadable, file_id

T = TypeVar("T")

#: So few documents may all go at once; of more, half.
FEW = 20


class Announcer(Protocol):
    """Publishes one live event."""

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        """Returns once it is acknowledged. Raises InvalidEvent or BrokerUnavailable."""


class Change(enum.Enum):
    """Why a document is announced."""

    NEW = "new"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Ingested:
    """What came of it so far. The upper ones are of the last look at the whole source."""

    listed: int = 0
    unchanged: int = 0
    ignored: int = 0
    unreadable: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    kept: int = 0  # not seen any more, and not deleted: `why` says it
    why: str = ""
    incomplete: bool = False  # ... because not all of the source could be seen
    waiting: str = ""  # for what, in one sentence


@dataclass(frozen=True, slots=True)
class Wish:
    """How a source is announced."""

    deletes: bool = False
    all_may_go: bool = False  # deletes however much is gone
    max_lag: int = 100_000
    patience: timedelta = PATIENCE  # with a broker or a store that is down


def change_of(listed: Listed, cursor: Cursor | None, *, first: bool) -> Change | None:
    """What has happened to a document since it was announced; None: nothing.

    A source without versions shows no change: what it lists is announced once in each process, at the `first`
    look.
    """
    if cursor is None or cursor.gone:
        return Change.NEW
    if listed.source_version != cursor.source_version:
        return Change.CHANGED
    return Change.CHANGED if first and not listed.source_version else None


def refusal(missing: int, known: int) -> str:
    """Why so many of the known documents are not deleted at once; empty if they are."""
    if known > FEW and missing * 2 > known:
        return (
            f"{missing:,} of {known:,} documents are gone, more than half: nothing is deleted. "
            "If they are gone for good, add --yes."
        )
    return ""


class Ingester:
    """Announces one source, from one look at it to the next."""

    def __init__(
        self,
        source: Source,
        *,
        store: CursorStore,
        announce: Announcer,
        clock: Clock,
        lag: Callable[[], Awaitable[int]],
        wish: Wish = Wish(),
        tell: Callable[[Ingested], None] = lambda _ingested: None,
        complain: Callable[[Unreadable], None] = lambda _unreadable: None,
    ) -> None:
        self._source = source
        self._store = store
        self._announce = announce
        self._clock = clock
        self._lag = lag
        self._wish = wish
        self._tell = tell
        self._complain = complain
        self._scan = 0
        self._first = True
        self._place = _identity(source)
        self._behind: int | None = None  # at most so many events; None = not looked yet
        self.count = Ingested()

    async def look(self, young: Callable[[Listed], bool] = lambda _listed: False) -> None:
        """At all of the source. What is `young` is left to the one who says so.

        Raises BrokerUnavailable or a StoreError, and what a bucket's listing raises: nothing is deleted then.
        """
        look = self._begin()
        self.count = replace(
            self.count, listed=0, unchanged=0, ignored=0, unreadable=0, kept=0, why="", incomplete=False
        )
        await self._take_all(self._source.entries(), look, young)
        self._first = False
        if self._wish.deletes:
            await self._delete_missing(look)
        self._tell(self.count)

    async def look_at(self, paths: Sequence[str]) -> None:
        """At these paths of a folder, where something has happened."""
        assert self._source.below is not None, "only folders have paths"
        look, before = self._begin(), self.count
        await self._take_all(chain.from_iterable(map(self._source.below, paths)), look)
        if self._wish.deletes:
            await self._delete_below(paths, look)
        self.count = replace(
            self.count,
            listed=before.listed,
            unchanged=before.unchanged,
            ignored=before.ignored,
            unreadable=before.unreadable,
        )
        self._tell(self.count)

    def _begin(self) -> _Look:
        self._scan = max(to_ms(self._clock.now()), self._scan + 1)
        return _Look(self._scan)

    # -- what is there -------------------------------------------------------------------------------------

    async def _take_all(
        self, entries: Iterator[Entry], look: _Look, young: Callable[[Listed], bool] = lambda _: False
    ) -> None:
        async with aclosing(batches(entries, min(AT_ONCE, self._wish.max_lag))) as listing:
            async for batch in listing:
                await self._wait_for_room()
                await self._take(batch, look, young)
                self._tell(self.count)

    async def _take(self, batch: Sequence[Entry], look: _Look, young: Callable[[Listed], bool]) -> None:
        """Announces what is new or changed in a batch; returns when its rows are durable."""
        listed = [entry for entry in batch if isinstance(entry, Listed)]
        unreadable = [entry for entry in batch if isinstance(entry, Unreadable)]
        for passed in unreadable:
            self._complain(passed)
            if passed.hides:
                look.hidden = look.hidden or f"{passed.where} could not be read ({passed.problem})"
        look.listed += len(listed)
        names = [entry.document_id for entry in listed]
        names += [entry.document_id for entry in unreadable if entry.document_id]
        cursors = await self._patiently(
            lambda: self._store.cursors(self._source.name, list(dict.fromkeys(names)))
        )
        rows: list[Cursor] = []
        changes: list[tuple[Listed, Change]] = []
        for entry in listed:
            change = change_of(entry, cursors.get(entry.document_id), first=self._first)
            if change and not young(entry):
                changes.append((entry, change))
        announced = {entry.document_id for entry, _ in changes}
        for name, cursor in cursors.items():
            if not cursor.gone:
                look.still += 1
                if self._wish.deletes and name not in announced:
                    rows.append(replace(cursor, scan=look.scan, seen_at=self._clock.now()))
        count = self.count
        self.count = replace(
            count,
            listed=count.listed + len(listed),
            unchanged=count.unchanged + len(listed) - len(changes),
            ignored=count.ignored + len(batch) - len(unreadable) - len(listed),
            unreadable=count.unreadable + len(unreadable),
        )
        await self._publish(changes, rows, look)

    # -- what is gone --------------------------------------------------------------------------------------

    async def _delete_missing(self, look: _Look) -> None:
        """After a look at everything."""
        missing = await self._patiently(lambda: self._store.count_cursors(self._source.name, look.scan))
        if not missing:
            return
        why = refusal(missing, look.still + missing)
        if not look.listed:
            why = why or (
                f"{self._source.name} is empty, and {missing:,} documents of it are known: nothing is "
                "deleted. If it should be empty, add --yes."
            )
        if self._may_delete(missing, why, look):
            await self._delete_pages(look)

    async def _delete_below(self, paths: Sequence[str], look: _Look) -> None:
        """After a look at these paths: they, or what was below them."""
        gone = {file_id(path) for path in paths if not _is_file(path) and "/." not in f"/{self._rest(path)}"}
        rows = await self._patiently(lambda: self._store.cursors(self._source.name, list(gone)))
        files = [row for row in rows.values() if not row.gone and row.scan < look.scan]
        folders: dict[str, int] = {}
        for name in gone - rows.keys():  # perhaps of a folder
            count = partial(self._store.count_cursors, self._source.name, look.scan, within=name)
            if found := await self._patiently(count):
                folders[name] = found
        missing = len(files) + sum(folders.values())
        if not missing:
            return
        known = await self._patiently(lambda: self._store.count_cursors(self._source.name))
        if self._may_delete(missing, refusal(missing, known), look):
            for start in range(0, len(files), AT_ONCE):
                await self._delete(files[start : start + AT_ONCE], look)
            for name in folders:
                await self._delete_pages(look, within=name)

    def _rest(self, path: str) -> str:
        return os.path.relpath(path, self._source.place)

    def _may_delete(self, missing: int, why: str, look: _Look) -> bool:
        incomplete = bool(look.hidden)
        if look.hidden:
            why = f"{look.hidden}, so nothing is deleted: {missing:,} documents may only be out of sight."
        elif self._place != _identity(self._source):
            incomplete = True
            why = (
                f"{self._source.place} is not the folder that it was: nothing is deleted. "
                "Mount it again, or start again if it is right as it is."
            )
        elif self._wish.all_may_go:
            why = ""
        if why:
            self.count = replace(self.count, kept=missing, why=why, incomplete=incomplete)
        return not why

    async def _delete_pages(self, look: _Look, within: str = "") -> None:
        after = ""
        while True:
            ask = partial(
                self._store.cursors_before, self._source.name, look.scan, after, AT_ONCE, within=within
            )
            page = await self._patiently(ask)
            if not page:
                return
            await self._delete(page, look)
            after = page[-1].document_id

    async def _delete(self, rows: Sequence[Cursor], look: _Look) -> None:
        now = self._clock.now()
        await self._wait_for_room()
        gone = [(Listed(row.document_id, "", now), Change.GONE) for row in rows]
        await self._publish(gone, [], look)
        self._tell(self.count)

    # -- effects -------------------------------------------------------------------------------------------

    async def _publish(
        self, changes: Sequence[tuple[Listed, Change]], rows: list[Cursor], look: _Look
    ) -> None:
        """The events, then their rows together with these."""
        steps = [
            partial(
                self._announce.live,
                entry,
                Operation.DELETE if change is Change.GONE else Operation.UPSERT,
                force=False,
            )
            for entry, change in changes
        ]
        results = await asyncio.gather(*map(self._patiently, steps), return_exceptions=True)
        errors: list[BaseException] = []
        done = dict.fromkeys(Change, 0)
        for (entry, change), result in zip(changes, results, strict=True):
            if isinstance(result, InvalidEvent):
                self.count = replace(self.count, unreadable=self.count.unreadable + 1)
                self._complain(Unreadable(entry.document_id, str(result)))
            elif isinstance(result, BaseException):
                errors.append(result)
            else:
                done[change] += 1
                rows.append(self._row(entry, change, look))
        if rows:
            await self._patiently(lambda: self._store.save_cursors(rows))
        self._behind = (self._behind or 0) + sum(done.values())
        self.count = replace(
            self.count,
            new=self.count.new + done[Change.NEW],
            changed=self.count.changed + done[Change.CHANGED],
            deleted=self.count.deleted + done[Change.GONE],
        )
        if errors:
            raise errors[0]

    def _row(self, entry: Listed, change: Change, look: _Look) -> Cursor:
        return Cursor(
            source=self._source.name,
            document_id=entry.document_id,
            source_version=entry.source_version,
            scan=look.scan,
            seen_at=entry.occurred_at,
            gone=change is Change.GONE,
        )

    async def _wait_for_room(self) -> None:
        """Looks only when what was announced since the last look could have filled the room."""
        while self._behind is None or self._behind >= self._wish.max_lag:
            self._behind = await self._patiently(self._lag)
            if self._behind < self._wish.max_lag:
                return
            self._tell(replace(self.count, waiting=f"{self._behind:,} events are waiting for the workers"))
            await self._clock.sleep(LAG_PAUSE.total_seconds())

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        def tell(why: str) -> None:
            self._tell(replace(self.count, waiting=why))

        return await patiently(step, self._clock, tell, self._wish.patience)


@dataclass(slots=True)
class _Look:
    """What one look at the source has seen so far."""

    scan: int
    listed: int = 0
    still: int = 0  # known documents that are there
    hidden: str = ""  # why documents may be there that were not listed


def _identity(source: Source) -> tuple[int, int] | None:
    """Of the folder that is watched: another one, or none, where something was mounted or unmounted."""
    if source.below is None:
        return None
    try:
        status = Path(source.place).stat()
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


async def pass_on(
    source: Source,
    *,
    announce: Announcer,
    clock: Clock,
    lag: Callable[[], Awaitable[int]],
    wish: Wish,
    tell: Callable[[Ingested], None],
    complain: Callable[[Unreadable], None],
) -> Ingested:
    """Every line of standard input as an event: what cannot be read again has no cursor."""
    nowhere = Ingester(
        source,
        store=_Nowhere(),
        announce=announce,
        clock=clock,
        lag=lag,
        wish=replace(wish, deletes=False),
        tell=tell,
        complain=complain,
    )
    await nowhere.look()
    return nowhere.count


class _Nowhere:
    """The `CursorStore` of what is never asked for again."""

    async def cursors(self, source: str, document_ids: Sequence[str]) -> dict[str, Cursor]:
        return {}

    async def save_cursors(self, rows: Sequence[Cursor]) -> None: ...

    async def count_cursors(self, source: str, before: int | None = None, *, within: str = "") -> int:
        return 0

    async def cursors_before(
        self, source: str, before: int, after: str, limit: int, *, within: str = ""
    ) -> Sequence[Cursor]:
        return ()
