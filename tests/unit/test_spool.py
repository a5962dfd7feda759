"""Documents on their way in: caps, speed, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from docsum.errors import SourceTooLarge, SourceUnavailable
from docsum.fetchers.spool import IN_MEMORY, Spool, TemporaryFolder, remove_stale_folders

PATIENCE = timedelta(seconds=30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporaryFolder]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = TemporaryFolder()
    yield folder
    folder.remove()


def files(tmp_path: Path) -> list[Path]:
    return [*tmp_path.glob("docsum-fetch-*/*")]


def chunks(*given: bytes) -> Callable[[], Awaitable[bytes]]:
    left = iter([*given, b""])

    async def read() -> bytes:
        return next(left)

    return read


def test_a_small_document_stays_in_memory(folder: TemporaryFolder, tmp_path: Path) -> None:
    spool = Spool(folder, 2 * IN_MEMORY, "s3://b/k")
    spool.write(b"a" * IN_MEMORY)
    document = spool.finish("v1")
    assert (document.content, document.source_version) == (b"a" * IN_MEMORY, "v1")
    assert not [*tmp_path.iterdir()]


def test_a_large_one_goes_to_a_file_of_the_callers(folder: TemporaryFolder, tmp_path: Path) -> None:
    spool = Spool(folder, 2 * IN_MEMORY, "s3://b/k")
    spool.write(b"a" * IN_MEMORY)
    spool.write(b"b")
    document = spool.finish("v1")
    spool.discard()
    assert document.path is not None
    assert (document.size, document.read()) == (IN_MEMORY + 1, b"a" * IN_MEMORY + b"b")
    document.discard()
    assert not files(tmp_path)


def test_one_byte_too_many_names_the_setting_and_leaves_no_file(
    folder: TemporaryFolder, tmp_path: Path
) -> None:
    spool = Spool(folder, IN_MEMORY + 1, "s3://b/k")
    spool.write(b"a" * (IN_MEMORY + 1))
    with pytest.raises(SourceTooLarge, match="DOCSUM_FETCH__MAX_BYTES"):
        spool.write(b"b")
    spool.discard()
    spool.discard()
    assert not files(tmp_path)


async def test_it_is_filled_until_nothing_more_comes(folder: TemporaryFolder) -> None:
    spool = Spool(folder, 100_000, "s3://b/k")
    await spool.fill(chunks(b"one ", b"two", b" " * 60_000), PATIENCE)
    assert spool.finish("").read() == b"one two" + b" " * 60_000


async def test_what_comes_too_slowly_is_given_up(folder: TemporaryFolder) -> None:
    async def trickle() -> bytes:
        await asyncio.sleep(0.01)
        return b"x"

    async def silence() -> bytes:
        await asyncio.Event().wait()
        return b"x"

    for read in (trickle, silence):
        with pytest.raises(SourceUnavailable, match="'s3://b/k' comes too slowly"):
            await Spool(folder, 1 << 40, "s3://b/k").fill(read, timedelta(milliseconds=100))


async def test_another_time_out_than_ours_passes(folder: TemporaryFolder) -> None:
    async def late() -> bytes:
        raise TimeoutError("the whole time is over")

    with pytest.raises(TimeoutError, match="the whole time"):
        await Spool(folder, 10, "s3://b/k").fill(late, PATIENCE)


def test_a_start_removes_what_killed_processes_left_and_nothing_else(
    folder: TemporaryFolder, tmp_path: Path
) -> None:
    stale = tmp_path / "docsum-fetch-of-a-killed-process"
    stale.mkdir()
    (stale / "copy").write_bytes(b"x")
    descriptor, mine = folder.make_file()
    os.close(descriptor)
    remove_stale_folders()
    assert not stale.exists()
    assert mine.exists()
    folder.remove()
    assert not mine.parent.exists()
