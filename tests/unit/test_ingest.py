"""What is announced of a source, and what never is: on the store in memory and an announcer that records."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import BrokerUnavailable, InvalidEvent, SourceUnavailable
from docsum.fetchers.file import file_version
from docsum.ingest import FEW, Change, Ingested, Ingester, Wish, change_of, pass_on, refusal
from docsum.models import Coordinates, Cursor, Operation
from docsum.sources import Entry, Ignored, Listed, Lister, Source, Unreadable, file_id
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock

DELETES = Wish(deletes=True)


@dataclass
class Recorder:
    """Announces to a list; raises what was prepared for a document, once each."""

    seen: list[tuple[str, str]] = field(default_factory=list)
    errors: dict[str, list[Exception]] = field(default_factory=dict)

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        name = listed.document_id.rpartition("/")[2]
        if errors := self.errors.get(name):
            raise errors.pop(0)
        self.seen.append((operation.value, name))
        return "event", Coordinates("docsum.documents", 0, len(self.seen))

    def take(self) -> list[tuple[str, str]]:
        taken, self.seen = sorted(self.seen), []
        return taken


@dataclass
class World:
    """One source, and everything that announcing it needs."""

    source: Source
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    announced: Recorder = field(default_factory=Recorder)
    behind: list[int] = field(default_factory=list)
    told: list[Ingested] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    async def lag(self) -> int:
        return self.behind.pop(0) if self.behind else 0

    def ingester(self, wish: Wish = DELETES) -> Ingester:
        self.clock.advance(timedelta(seconds=1))
        return Ingester(
            self.source,
            store=self.store,
            announce=self.announced,
            clock=self.clock,
            lag=self.lag,
            wish=wish,
            tell=self.told.append,
            complain=lambda entry: self.passed_over.append(entry.where),
        )

    async def look(self, wish: Wish = DELETES) -> Ingested:
        """As a process of its own."""
        ingester = self.ingester(wish)
        await ingester.look()
        return ingester.count


def documents(*names: str, version: str = "v1") -> list[Entry]:
    return [
        Listed(f"s3://bucket/{name}", f"s3://bucket/{name}", START, source_version=version) for name in names
    ]


def bucket(entries: Callable[[], Iterator[Entry]]) -> World:
    return World(Source("s3://bucket", "s3://bucket", entries))


def listing(*batches: list[Entry] | Exception) -> World:
    """A bucket that lists something else each time, and in the end always the same."""
    left = list(batches)

    def entries() -> Iterator[Entry]:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            yield from documents("a")
            raise found
        yield from found

    return bucket(entries)


def folder(path: Path) -> World:
    lister = Lister(now=lambda: START, file_version=file_version, list_objects=lambda _url, _now: iter(()))
    return World(lister.open(str(path), BytesIO()))


def write(path: Path, text: str = "text") -> Path:
    """In one step: a look in between would see an empty file, and then a changed one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    return part.replace(path)


# -- decisions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "listed", "first", "change"),
    [
        (None, "v1", True, Change.NEW),
        (None, "", False, Change.NEW),
        (("v1", False), "v1", True, None),
        (("v1", False), "v2", False, Change.CHANGED),
        (("", True), "v1", False, Change.NEW),
        (("v1", True), "v1", False, Change.NEW),
        (("", False), "", True, Change.CHANGED),
        (("", False), "", False, None),
    ],
)
def test_a_document_is_new_changed_or_as_before(
    stored: tuple[str, bool] | None, listed: str, first: bool, change: Change | None
) -> None:
    cursor = stored and Cursor("s", "a", stored[0], 1, START, gone=stored[1])
    assert change_of(Listed("a", "file:///a", START, source_version=listed), cursor, first=first) is change


@given(known=st.integers(1, 10_000), missing=st.integers(0, 10_000))
def test_more_than_half_of_more_than_a_few_never_go_at_once(known: int, missing: int) -> None:
    missing = min(missing, known)
    assert bool(refusal(missing, known)) is (known > FEW and missing > known / 2)


# -- a look ------------------------------------------------------------------------------------------------


async def test_a_second_look_announces_only_what_is_new_or_changed() -> None:
    changed = documents("b", version="v2")
    world = listing(documents("a", "b"), documents("a", "b"), [*documents("a"), *changed, *documents("c")])
    assert await world.look() == Ingested(listed=2, new=2)
    assert await world.look() == Ingested(listed=2, unchanged=2)
    assert await world.look() == Ingested(listed=3, unchanged=1, new=1, changed=1)
    assert world.announced.seen == [("UPSERT", "a"), ("UPSERT", "b"), ("UPSERT", "b"), ("UPSERT", "c")]


async def test_a_kill_between_event_and_row_repeats_the_event() -> None:
    world = listing(documents("a"), documents("a"), documents("a"))
    world.store.save_cursors = _killed  # type: ignore[method-assign]  # the process ends here
    with pytest.raises(KeyboardInterrupt):
        await world.look()
    del world.store.save_cursors
    await world.look()
    await world.look()
    assert world.announced.seen == [("UPSERT", "a"), ("UPSERT", "a")]


async def _killed(rows: object) -> None:
    raise KeyboardInterrupt


async def test_what_the_broker_has_not_taken_has_no_row_and_comes_again() -> None:
    world = listing(documents("b", "a"), documents("a", "b"))
    world.announced.errors["a"] = [BrokerUnavailable("down")] * 10_000
    with pytest.raises(BrokerUnavailable):
        await world.look(replace(DELETES, patience=timedelta(minutes=1)))
    assert world.told[-1].waiting == "down"
    world.announced.errors.clear()
    assert await world.look() == Ingested(listed=2, unchanged=1, new=1)


async def test_what_no_worker_would_take_is_told_and_the_rest_goes_on() -> None:
    world = listing([*documents("a", "b"), Unreadable("c", "no"), Ignored("d", "hidden")])
    world.announced.errors["a"] = [InvalidEvent("too long")]
    assert await world.look() == Ingested(listed=2, new=1, ignored=1, unreadable=2)
    assert sorted(world.passed_over) == ["c", "s3://bucket/a"]


async def test_a_source_without_versions_is_announced_once_a_process() -> None:
    world = listing(*[documents("a", version="")] * 4)
    await world.look()
    again = world.ingester()
    await again.look()
    await again.look()
    assert len(world.announced.take()) == 2


async def test_while_the_workers_are_far_behind_nothing_is_announced() -> None:
    world = listing(documents("a", "b", "c"))
    world.behind = [10, 9, 3, 0, 0, 0]
    await world.look(Wish(max_lag=1))  # one after the other, however the listing is cut
    assert world.behind == []
    waits = [count.waiting for count in world.told if count.waiting]
    assert waits[0] == "10 events are waiting for the workers"
    assert len(world.announced.seen) == 3


# -- what is gone ------------------------------------------------------------------------------------------


async def test_what_is_gone_is_deleted_once_and_may_come_back() -> None:
    world = listing(documents("a", "b"), documents("a"), documents("a"), documents("a", "b"))
    await world.look()
    assert (await world.look()).deleted == 1
    assert (await world.look()).deleted == 0
    assert (await world.look()).new == 1
    assert world.announced.seen[2:] == [("DELETE", "b"), ("UPSERT", "b")]


async def test_without_deletes_nothing_is_deleted_and_no_row_is_written_for_what_is_as_before() -> None:
    world = listing(documents("a", "b"), documents("a"), documents("a"))
    await world.look(Wish())
    before = dict(world.store.cursor_rows)
    assert (await world.look(Wish())).deleted == 0
    assert world.store.cursor_rows == before
    assert (await world.look()).deleted == 1


async def test_a_deletion_that_was_killed_before_its_row_is_announced_again() -> None:
    world = listing(documents("a", "b"), documents("a"), documents("a"))
    await world.look()
    world.announced.errors["b"] = [BrokerUnavailable("down")] * 10_000
    with pytest.raises(BrokerUnavailable):
        await world.look(replace(DELETES, patience=timedelta()))
    world.announced.errors.clear()
    assert (await world.look()).deleted == 1


MANY = [f"{number:02}" for number in range(40)]


async def test_more_than_half_never_goes_without_a_yes() -> None:
    world = listing(*[documents(*MANY)], *[documents(*MANY[:19])] * 3)
    await world.look()
    refused = await world.look()
    assert (refused.deleted, refused.kept, refused.incomplete) == (0, 21, False)
    assert refused.why.startswith("21 of 40 documents are gone, more than half")
    assert (await world.look(replace(DELETES, all_may_go=True))).deleted == 21
    assert (await world.look()).kept == 0


async def test_an_empty_source_deletes_nothing_without_a_yes() -> None:
    world = listing(documents("a", "b"), [], [])
    await world.look()
    refused = await world.look()
    assert (refused.deleted, refused.kept) == (0, 2)
    assert "is empty" in refused.why
    assert (await world.look(replace(DELETES, all_may_go=True))).deleted == 2


async def test_a_listing_that_breaks_off_deletes_nothing() -> None:
    world = listing(documents("a", "b"), SourceUnavailable("the store failed"))
    await world.look()
    with pytest.raises(SourceUnavailable):
        await world.look(replace(DELETES, all_may_go=True))
    assert world.announced.take() == [("UPSERT", "a"), ("UPSERT", "b")]


async def test_a_folder_that_cannot_be_read_hides_what_may_be_in_it() -> None:
    unreadable = Unreadable("/data/in", "permission denied", hides=True)
    world = listing(documents("a", "b"), [unreadable, *documents("a")])
    await world.look()
    found = await world.look(replace(DELETES, all_may_go=True))
    assert (found.deleted, found.kept, found.incomplete) == (0, 1, True)
    assert found.why.startswith("/data/in could not be read (permission denied), so nothing is deleted")


async def test_a_manifest_with_a_bad_line_deletes_nothing(tmp_path: Path) -> None:
    lines = '{"document_id": "a", "uri": "https://e.org/a"}\n{"document_id": "b", "uri": "https://e.org/b"}\n'
    manifest = write(tmp_path / "list.jsonl", lines)
    world = folder(manifest)
    await world.look()
    write(manifest, lines.partition("\n")[0] + "\nnonsense\n")
    found = await world.look()
    assert (found.deleted, found.kept, found.incomplete) == (0, 1, True)


async def test_more_documents_than_a_page_are_deleted_in_pages() -> None:
    names = [f"{number:05}" for number in range(2_500)]
    world = listing(documents(*names), documents(*names[:1]))
    await world.look()
    assert (await world.look(replace(DELETES, all_may_go=True))).deleted == 2_499


# -- folders -----------------------------------------------------------------------------------------------


async def test_a_folder_that_is_not_there_any_more_deletes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt")
    world = folder(tmp_path / "docs")
    await world.look()
    shutil.rmtree(tmp_path / "docs")
    found = await world.look(replace(DELETES, all_may_go=True))
    assert (found.deleted, found.kept, found.incomplete) == (0, 1, True)


async def test_a_folder_that_another_one_was_mounted_over_deletes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt")
    write(tmp_path / "docs" / "b.txt")
    world = folder(tmp_path / "docs")
    following = world.ingester(replace(DELETES, all_may_go=True))
    await following.look()
    (tmp_path / "docs").rename(tmp_path / "away")
    write(tmp_path / "docs" / "a.txt")
    await following.look()
    assert (following.count.deleted, following.count.kept, following.count.incomplete) == (0, 1, True)
    assert "is not the folder that it was" in following.count.why
    await following.look_at([str(tmp_path / "docs" / "b.txt")])
    assert following.count.deleted == 0


async def test_a_link_to_nothing_is_still_there(tmp_path: Path) -> None:
    write(tmp_path / "there" / "a.txt")
    (tmp_path / "docs").mkdir()
    write(tmp_path / "docs" / "b.txt")
    (tmp_path / "docs" / "a.txt").symlink_to(tmp_path / "there" / "a.txt")
    world = folder(tmp_path / "docs")
    assert (await world.look()).new == 2
    shutil.rmtree(tmp_path / "there")
    found = await world.look()
    assert (found.deleted, found.kept, found.unreadable) == (0, 0, 1)


# -- paths that have changed -------------------------------------------------------------------------------


async def test_a_changed_path_is_announced_and_a_gone_one_deleted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        write(tmp_path / name)
    world = folder(tmp_path)
    following = world.ingester()
    await following.look()
    world.announced.take()
    write(tmp_path / "a.txt", "longer than before")
    (tmp_path / "b.txt").rename(tmp_path / "d.txt")
    await following.look_at([str(tmp_path / name) for name in ("a.txt", "b.txt", "d.txt", "c.txt")])
    assert world.announced.take() == [("DELETE", "b.txt"), ("UPSERT", "a.txt"), ("UPSERT", "d.txt")]
    assert following.count == Ingested(listed=3, new=4, changed=1, deleted=1)
    assert world.passed_over == []  # what is gone is no trouble
    await following.look()
    assert world.announced.take() == []


async def test_a_folder_comes_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt")
    write(tmp_path / "docs" / "in" / "b.txt")
    write(tmp_path / "docs" / "in" / "deep" / "c.txt")
    write(tmp_path / "docs" / "inn.txt")
    world = folder(tmp_path / "docs")
    following = world.ingester()
    await following.look()
    world.announced.take()
    (tmp_path / "docs" / "in").rename(tmp_path / "docs" / "other")
    await following.look_at([str(tmp_path / "docs" / "in"), str(tmp_path / "docs" / "other")])
    assert world.announced.take() == sorted(
        [("DELETE", "b.txt"), ("DELETE", "c.txt"), ("UPSERT", "b.txt"), ("UPSERT", "c.txt")]
    )


async def test_more_than_half_never_goes_by_a_watch_either(tmp_path: Path) -> None:
    paths = [write(tmp_path / "in" / f"{name}.txt") for name in MANY]
    write(tmp_path / "a.txt")
    world = folder(tmp_path)
    following = world.ingester()
    await following.look()
    shutil.rmtree(tmp_path / "in")
    await following.look_at([str(path) for path in paths])
    assert (following.count.deleted, following.count.kept) == (0, 40)
    await following.look_at([str(tmp_path / "in")])
    assert (following.count.deleted, following.count.kept) == (0, 40)


@pytest.mark.parametrize("name", [".hidden.txt", ".git/a.txt", "link/a.txt", "../beside.txt", "a.pdf"])
async def test_a_path_that_the_source_would_not_list_is_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "docs" / ".git").mkdir(parents=True)
    write(tmp_path / "elsewhere" / "a.txt")
    (tmp_path / "docs" / "link").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "docs" / name)
    world = folder(tmp_path / "docs" / "**" / "*.txt")
    await world.ingester().look_at([str(tmp_path / "docs" / name)])
    assert world.announced.take() == []


async def test_a_single_file_is_followed_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.txt")
    world = folder(tmp_path / "a.txt")
    following = world.ingester()
    await following.look()
    write(tmp_path / "a.txt", "something else")
    write(tmp_path / "b.txt", "something else")
    await following.look_at([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert world.announced.take() == [("UPSERT", "a.txt"), ("UPSERT", "a.txt")]
    assert {name for _, name in world.store.cursor_rows} == {file_id(str(tmp_path / "a.txt"))}


# -- standard input ----------------------------------------------------------------------------------------


async def test_every_line_of_standard_input_is_an_event() -> None:
    world = listing([*documents("a", "b", "a"), Unreadable("line 4", "no JSON", hides=True)])
    count = await pass_on(
        world.source,
        announce=world.announced,
        clock=world.clock,
        lag=world.lag,
        wish=DELETES,
        tell=world.told.append,
        complain=lambda _entry: None,
    )
    assert count == Ingested(listed=3, new=3, unreadable=1)
    assert world.announced.take() == [("UPSERT", "a"), ("UPSERT", "a"), ("UPSERT", "b")]
    assert not world.store.cursor_rows


# -- anything ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"]), min_size=1), max_size=8)
)
async def test_after_every_look_what_was_announced_is_what_the_source_holds(
    states: list[dict[str, str]],
) -> None:
    now: dict[str, str] = {}
    world = bucket(lambda: iter([entry for name in now for entry in documents(name, version=now[name])]))
    held: dict[str, str] = {}
    for now in states:
        await world.look()
        for operation, name in world.announced.take():
            if operation == "DELETE":
                del held[name]
            else:
                assert held.get(name) != now[name], "announced without a change"
                held[name] = now[name]
        assert held == now
