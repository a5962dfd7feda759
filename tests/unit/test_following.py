"""Following: what is told to have changed is looked at once it is still, all of it now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from docsum.errors import BrokerRefused, DocsumError, SourceUnavailable
from docsum.following import RESTLESS, Settling, WatchFailed, follow
from docsum.ingest import Ingester
from tests.support.waiting import eventually
from tests.unit.test_ingest import DELETES, World, documents, folder, listing, write

EVERY = timedelta(minutes=5)


@dataclass
class Told:
    """A watch that a test tells what has happened."""

    paths: asyncio.Queue[Collection[str]] = field(default_factory=asyncio.Queue)
    watched: list[str] = field(default_factory=list)
    problem: str = ""

    async def __call__(self, folder: str) -> AsyncIterator[Collection[str]]:
        self.watched.append(folder)
        if self.problem:
            raise WatchFailed(self.problem)
        yield ()
        while (found := await self.paths.get()) is not None:
            yield found
        raise WatchFailed(f"{folder} is not watched any more.")


class Followed:
    """A follower in the background."""

    def __init__(self, world: World, ingester: Ingester, watch: Told | None = None) -> None:
        self.world = world
        self.said: list[str] = []
        self.watch = watch
        self.task = asyncio.create_task(
            follow(
                ingester,
                world.source,
                every=EVERY,
                clock=world.clock,
                watch=watch,
                say=self.said.append,
            )
        )

    async def __aenter__(self) -> Followed:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, DocsumError):
            await self.task

    async def announces(self, *expected: tuple[str, str]) -> None:
        await eventually(lambda: len(self.world.announced.seen) >= len(expected), 30, "announced")
        assert self.world.announced.take() == sorted(expected)


def test_a_path_is_due_once_it_is_still_or_has_been_restless_for_long() -> None:
    settling = Settling()
    settling.touch("a", 0.0)
    settling.touch("b", 0.5)
    assert settling.take(0.9) == []
    assert settling.take(1.2) == ["a"]
    assert settling.take(1.5) == ["b"]
    now = 10.0
    while not (found := settling.take(now)):
        settling.touch("log", now)
        now += 0.5
    assert (found, now) == (["log"], 10.0 + RESTLESS.total_seconds())


def test_too_many_paths_are_forgotten_and_that_is_known() -> None:
    settling = Settling()
    for number in range(10_001):
        settling.touch(str(number), 0.0)
    assert settling.overflowed
    assert len(settling.take(1.0)) == 10_000


async def test_what_the_watch_tells_is_announced_without_another_look_at_everything(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    world, watch = folder(tmp_path), Told()
    async with Followed(world, world.ingester(DELETES), watch) as followed:
        await followed.announces(("UPSERT", "a.txt"))
        write(tmp_path / "b.txt")
        (tmp_path / "a.txt").unlink()
        watch.paths.put_nowait([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
        await followed.announces(("DELETE", "a.txt"), ("UPSERT", "b.txt"))
    assert watch.watched == [str(tmp_path)]


async def test_what_the_watch_misses_the_next_look_finds(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    world = folder(tmp_path)
    async with Followed(world, world.ingester(DELETES), Told()) as followed:
        await followed.announces(("UPSERT", "a.txt"))
        write(tmp_path / "b.txt")
        await followed.announces(("UPSERT", "b.txt"))
        assert world.clock.now() - world.clock.start >= EVERY


async def test_a_folder_that_cannot_be_watched_is_told_once_and_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    world, watch = folder(tmp_path), Told(problem="There are no watches left.")
    async with Followed(world, world.ingester(DELETES), watch) as followed:
        await followed.announces(("UPSERT", "a.txt"))
        write(tmp_path / "b.txt")
        await followed.announces(("UPSERT", "b.txt"))
        await eventually(lambda: len(watch.watched) > 2)
    assert followed.said == [
        "There are no watches left. Until then changes are found by looking at everything."
    ]


async def test_a_bucket_that_fails_is_told_and_listed_again() -> None:
    world = listing(documents("a", "b"), SourceUnavailable("The store failed."), documents("a", "c"))
    async with Followed(world, world.ingester(DELETES)) as followed:
        await followed.announces(("UPSERT", "a"), ("UPSERT", "b"), ("DELETE", "b"), ("UPSERT", "c"))
    assert followed.said == ["The store failed. It is tried again at the next look."]


async def test_a_broker_that_refuses_ends_it() -> None:
    world = listing(documents("a"))
    world.announced.errors["a"] = [BrokerRefused("No.")] * 10_000
    async with Followed(world, world.ingester(DELETES)) as followed:
        with pytest.raises(BrokerRefused):
            await followed.task


async def test_a_file_that_was_just_written_is_left_until_it_is_still(tmp_path: Path) -> None:
    world = folder(tmp_path)
    path = write(tmp_path / "a.txt")
    world.clock.moment = world.clock.start = _modified(path)
    ingester = world.ingester(DELETES)
    world.clock.moment = _modified(path) + timedelta(milliseconds=500)
    async with Followed(world, ingester, Told()) as followed:
        await followed.announces(("UPSERT", "a.txt"))
    first = next(count for count in world.told if count.listed)
    assert (first.listed, first.new) == (1, 0)


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
