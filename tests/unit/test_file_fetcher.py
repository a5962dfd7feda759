"""Files under the allowed roots, and every way out of them."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from docsum.errors import (
    DocsumError,
    SourceNotAllowed,
    SourceNotFound,
    SourceOutdated,
    SourceRootMissing,
    SourceTooLarge,
    SourceUnavailable,
)
from docsum.fetchers import file as module
from docsum.fetchers import spool
from docsum.fetchers.file import FileFetcher, file_version, path_of
from docsum.fetchers.spool import IN_MEMORY, TemporaryFolder
from docsum.models import DocumentReference
from tests.support.waiting import eventually

LARGE = IN_MEMORY + 10


def reference(uri: str, source_version: str = "") -> DocumentReference:
    return DocumentReference("e1", "d1", uri, datetime(2026, 1, 1, tzinfo=UTC), 1, source_version)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def copies(folder: Path) -> list[Path]:
    return [*folder.glob("docsum-fetch-*/*")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporaryFolder]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = TemporaryFolder()
    yield folder
    folder.remove()


@pytest.fixture(params=["here", "in threads"])
def fetcher(
    request: pytest.FixtureRequest, root: Path, folder: TemporaryFolder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FileFetcher]:
    """Once with the root on a local disk and once on what might be a network's."""
    local = request.param == "here"
    monkeypatch.setattr(module, "_lies_on_local_disks", lambda root: local)
    with closing(FileFetcher([root], 2_000_000, folder)) as fetcher:
        yield fetcher


async def test_a_small_file_comes_in_memory(fetcher: FileFetcher, root: Path) -> None:
    (root / "a.txt").write_text("hello")
    document = await fetcher.fetch(reference((root / "a.txt").as_uri()))
    assert (document.content, document.size) == (b"hello", 5)
    assert document.source_version == file_version((root / "a.txt").stat())


async def test_a_large_file_comes_as_a_copy_of_ours(fetcher: FileFetcher, root: Path) -> None:
    content = os.urandom(LARGE)
    (root / "a.bin").write_bytes(content)
    document = await fetcher.fetch(reference((root / "a.bin").as_uri()))
    assert document.content is None
    assert document.path is not None
    assert document.path.read_bytes() == content
    assert root not in document.path.parents
    document.discard()
    document.discard()
    assert not document.path.exists()
    assert (root / "a.bin").exists()


async def test_names_are_percent_decoded(fetcher: FileFetcher, root: Path) -> None:
    (root / "Übersicht #1?.txt").write_text("x")
    assert (await fetcher.fetch(reference((root / "Übersicht #1?.txt").as_uri()))).content == b"x"
    assert (await fetcher.fetch(reference(f"file://{root}/Übersicht #1?.txt"))).content == b"x"


async def test_a_name_that_is_not_utf8(fetcher: FileFetcher, root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    document = await fetcher.fetch(reference(f"{root.as_uri()}/caf%E9.txt"))
    assert document.content == b"x"
    with pytest.raises(SourceNotFound) as missing:
        await fetcher.fetch(reference(f"{root.as_uri()}/th%E9.txt"))
    assert str(missing.value).encode()


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/a.txt",
        "/etc/passwd",
        "file:relative.txt",
        "file://server/share/a.txt",
        "file:///data/a%00.txt",
        "",
    ],
)
def test_only_absolute_files_of_this_machine(uri: str) -> None:
    with pytest.raises(SourceNotAllowed):
        path_of(uri)


@pytest.mark.parametrize("uri", ["file:///a/b", "FILE:/a/b", "file://localhost/a/b", "file:///a/%62"])
def test_spellings_of_one_file(uri: str) -> None:
    assert path_of(uri) == "/a/b"


@pytest.mark.parametrize(
    "way_out", ["data/../secret.txt", "data/link.txt", "data/folder/secret.txt", "data2/a.txt"]
)
async def test_no_way_out_of_the_root(fetcher: FileFetcher, root: Path, way_out: str) -> None:
    outside = root.parent
    (outside / "secret.txt").write_text("secret")
    (outside / "data2").mkdir()
    (outside / "data2" / "a.txt").write_text("secret")
    (root / "link.txt").symlink_to(outside / "secret.txt")
    (root / "folder").symlink_to(outside)
    with pytest.raises(SourceNotAllowed, match="DOCSUM_FETCH__FILE_ROOTS"):
        await fetcher.fetch(reference(f"file://{outside}/{way_out}"))


async def test_whether_a_file_exists_outside_is_not_told(fetcher: FileFetcher, root: Path) -> None:
    with pytest.raises(SourceNotAllowed):
        await fetcher.fetch(reference(f"file://{root.parent}/nothing.txt"))


async def test_a_link_that_stays_inside_is_followed(fetcher: FileFetcher, root: Path) -> None:
    (root / "a.txt").write_text("hello")
    (root / "b.txt").symlink_to("a.txt")
    assert (await fetcher.fetch(reference((root / "b.txt").as_uri()))).content == b"hello"


async def test_a_link_to_itself(fetcher: FileFetcher, root: Path) -> None:
    (root / "a.txt").symlink_to("a.txt")
    with pytest.raises(SourceNotAllowed, match="a link"):
        await fetcher.fetch(reference((root / "a.txt").as_uri()))


async def test_no_roots_no_files(root: Path, folder: TemporaryFolder) -> None:
    (root / "a.txt").write_text("hello")
    fetcher = FileFetcher([], 100, folder)
    with closing(fetcher), pytest.raises(SourceNotAllowed, match="until DOCSUM_FETCH__FILE_ROOTS names it"):
        await fetcher.fetch(reference((root / "a.txt").as_uri()))


async def test_a_root_may_be_reached_by_a_link(root: Path, folder: TemporaryFolder) -> None:
    (root / "a.txt").write_text("hello")
    (root.parent / "mount").symlink_to(root)
    with closing(FileFetcher([root.parent / "mount"], 100, folder)) as fetcher:
        assert (await fetcher.fetch(reference(f"file://{root.parent}/mount/a.txt"))).content == b"hello"
        assert (await fetcher.fetch(reference((root / "a.txt").as_uri()))).content == b"hello"


@pytest.mark.parametrize("special", ["fifo", "folder", "socket"])
async def test_only_regular_files_and_a_fifo_never_blocks(
    fetcher: FileFetcher, root: Path, special: str
) -> None:
    path = root / special
    match special:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, 0o140600)
    async with asyncio.timeout(5):
        with pytest.raises(SourceNotAllowed, match="not a regular file"):
            await fetcher.fetch(reference(path.as_uri()))


async def test_a_device_is_refused(folder: TemporaryFolder) -> None:
    fetcher = FileFetcher([Path("/dev")], 100, folder)
    with closing(fetcher), pytest.raises(SourceNotAllowed, match="not a regular file"):
        await fetcher.fetch(reference("file:///dev/zero"))


async def test_a_missing_file_and_a_missing_root_differ(fetcher: FileFetcher, root: Path) -> None:
    for name in ("nothing.txt", "no/such/folder.txt", "x" * 300):
        with pytest.raises(SourceNotFound):
            await fetcher.fetch(reference(f"{root.as_uri()}/{name}"))
    (root / "a.txt").write_text("x")
    with pytest.raises(SourceNotFound):
        await fetcher.fetch(reference(f"{root.as_uri()}/a.txt/b.txt"))
    remove(root)
    with pytest.raises(SourceRootMissing, match="cannot be reached"):
        await fetcher.fetch(reference(f"{root.as_uri()}/a.txt"))


async def test_too_large_names_the_setting(fetcher: FileFetcher, root: Path) -> None:
    (root / "a.txt").write_bytes(b"x" * 2_000_001)
    with pytest.raises(SourceTooLarge, match="2,000,001 bytes; DOCSUM_FETCH__MAX_BYTES"):
        await fetcher.fetch(reference((root / "a.txt").as_uri()))


async def test_a_file_that_grows_while_it_is_read(
    fetcher: FileFetcher, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a.log"
    path.write_bytes(b"x" * LARGE)
    write = spool._write

    def grow(descriptor: int, chunk: bytes) -> None:
        write(descriptor, chunk)
        with path.open("ab") as log:
            log.write(b"y" * 1_000_000)

    monkeypatch.setattr(spool, "_write", grow)
    with pytest.raises(SourceTooLarge, match="DOCSUM_FETCH__MAX_BYTES"):
        await fetcher.fetch(reference(path.as_uri()))
    assert not copies(tmp_path)


async def test_a_file_that_changes_while_it_is_read_is_tried_again(
    fetcher: FileFetcher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a.txt"
    path.write_text("one")
    read = module._read_up_to

    def change(descriptor: int, size: int) -> bytes:
        content = read(descriptor, size)
        path.write_text("three")
        return content

    monkeypatch.setattr(module, "_read_up_to", change)
    with pytest.raises(SourceUnavailable, match="changed while"):
        await fetcher.fetch(reference(path.as_uri()))


async def test_older_than_announced_is_outdated_and_newer_is_fine(fetcher: FileFetcher, root: Path) -> None:
    path = root / "a.txt"
    path.write_text("x")
    now = path.stat().st_mtime_ns
    for announced in ("", "an-etag", f"{now}:1:1", f"{now - 1}:1:1"):
        document = await fetcher.fetch(reference(path.as_uri(), announced))
        assert document.source_version == file_version(path.stat())
    with pytest.raises(SourceOutdated):
        await fetcher.fetch(reference(path.as_uri(), f"{now + 1}:1:1"))


def test_no_permission_may_pass(root: Path) -> None:
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    refusal = module._refusal("/data/a.txt", str(root), denied)
    assert isinstance(refusal, SourceUnavailable)
    assert str(refusal) == "'/data/a.txt' cannot be opened: Permission denied."


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell where a file is")
async def test_a_folder_swapped_for_a_link_between_check_and_open(
    fetcher: FileFetcher, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "a.txt").write_text("mine")
    (root.parent / "a.txt").write_text("secret")
    opened = module._open

    def swap(path: str, real: str, allowed: str) -> int:
        (root / "folder").rename(root / "old")
        (root / "folder").symlink_to(root.parent)
        return opened(path, real, allowed)

    monkeypatch.setattr(module, "_open", swap)
    with pytest.raises(SourceNotAllowed):
        await fetcher.fetch(reference(f"{root.as_uri()}/folder/a.txt"))


async def test_a_cancelled_fetch_leaves_no_copy(
    root: Path, folder: TemporaryFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a.bin").write_bytes(os.urandom(LARGE))
    started, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    write = spool._write

    def wait(descriptor: int, chunk: bytes) -> None:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        write(descriptor, chunk)

    monkeypatch.setattr(spool, "_write", wait)
    with closing(FileFetcher([root], 2_000_000, folder)) as fetcher:
        fetching = asyncio.create_task(fetcher.fetch(reference((root / "a.bin").as_uri())))
        await started.wait()
        assert copies(tmp_path)
        fetching.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await eventually(lambda: not copies(tmp_path))


def test_mounts_tell_whether_a_read_may_hang(tmp_path: Path) -> None:
    if Path("/proc/self/mountinfo").exists():
        assert not module._lies_on_local_disks("/")  # /proc and others are below it
    assert isinstance(module._lies_on_local_disks(str(tmp_path)), bool)


async def test_errors_are_sentences(fetcher: FileFetcher, root: Path) -> None:
    for uri in ("file://host/a", f"file://{root}/nothing", "file:///etc/hosts", "s3://bucket/a"):
        with pytest.raises(DocsumError) as error:
            await fetcher.fetch(reference(uri))
        assert str(error.value).endswith((".", ".pdf."))
