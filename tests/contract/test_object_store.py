"""Objects fetched and listed from a real S3 server, and what happens when it is slow, broken or says no."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from docsum.errors import (
    ConfigurationError,
    FetchError,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceTooLarge,
    SourceUnavailable,
)
from docsum.fetchers.object_store import ObjectStoreFetcher, list_objects
from docsum.fetchers.spool import TemporaryFolder
from docsum.models import Document
from docsum.sources import Entry, Ignored, Listed, Unreadable, UnusableSource
from tests.support.fakes import START, reference
from tests.support.object_store import Fault, FaultProxy, S3Server, environment, s3_server

MAX_BYTES = 30_000_000
LARGE = 3_000_000


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of the server, and where this process finds S3."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    with FaultProxy(s3.url) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporaryFolder]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = TemporaryFolder()
    yield folder
    folder.remove()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


class Fetching:
    """A fetcher that may read one bucket."""

    def __init__(self, bucket: str, folder: TemporaryFolder) -> None:
        self.bucket = bucket
        self.folder = folder

    async def __call__(
        self,
        key: str,
        announced: str = "",
        *,
        max_bytes: int = MAX_BYTES,
        timeout: float = 60,
        patience: float = 30,
    ) -> Document:
        fetcher = ObjectStoreFetcher(
            [f"s3://{self.bucket}"],
            max_bytes,
            timedelta(seconds=timeout),
            self.folder,
            patience=timedelta(seconds=patience),
        )
        uri = f"s3://{self.bucket}/{quote(key)}"
        return await fetcher.fetch(reference(uri=uri, source_version=announced))


@pytest.fixture
def fetch(bucket: str, folder: TemporaryFolder, proxy: FaultProxy) -> Fetching:
    return Fetching(bucket, folder)


def etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def copies(tmp_path: Path) -> list[Path]:
    return [*tmp_path.glob("docsum-fetch-*/*")]


# -- one object --------------------------------------------------------------------------------------------


async def test_a_small_object_comes_in_memory_with_its_etag(
    fetch: Fetching, s3: S3Server, bucket: str
) -> None:
    key = "reports/Übersicht #1? 100%.txt"
    s3.put(bucket, key, b"hello")
    document = await fetch(key)
    assert (document.content, document.size) == (b"hello", 5)
    assert document.source_version == etag(b"hello")


async def test_twenty_megabytes_come_as_a_file_in_one_request(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    content = os.urandom(20_000_000)
    s3.put(bucket, "large.pdf", content)
    tracemalloc.start()
    document = await fetch("large.pdf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert document.path is not None
    assert document.read() == content
    assert peak < 4_000_000
    assert [seen.range for seen in proxy.seen] == [""]
    document.discard()
    assert not copies(tmp_path)


async def test_too_large_is_known_before_the_body_is_read(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    s3.put(bucket, "large", bytes(LARGE))
    proxy.faults = [Fault("large", bytes_per_second=10)]
    with pytest.raises(SourceTooLarge, match="3,000,000 bytes; DOCSUM_FETCH__MAX_BYTES allows 2,999,999"):
        await fetch("large", max_bytes=LARGE - 1)
    assert proxy.seen[0].sent < 100


async def test_another_etag_than_announced_is_the_newer_state(
    fetch: Fetching, s3: S3Server, bucket: str
) -> None:
    s3.put(bucket, "a.txt", b"one")
    assert (await fetch("a.txt", etag(b"one"))).source_version == etag(b"one")
    s3.put(bucket, "a.txt", b"two")
    assert (await fetch("a.txt", etag(b"one"))).source_version == etag(b"two")


async def test_a_body_that_breaks_off_goes_on_where_it_was(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    content = os.urandom(LARGE)
    s3.put(bucket, "a.bin", content)
    proxy.faults = [Fault("a.bin", cut_after=100_000, times=2)]
    assert (await fetch("a.bin")).read() == content
    assert [seen.range for seen in proxy.seen] == [
        "",
        f"bytes=100000-{LARGE - 1}",
        f"bytes=200000-{LARGE - 1}",
    ]


async def test_two_states_of_an_object_are_never_mixed(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    new = b"n" * LARGE
    s3.put(bucket, "a.bin", b"o" * LARGE)
    proxy.faults = [
        Fault("a.bin", cut_after=1_000_000, times=1),
        Fault("a.bin", before=lambda: s3.put(bucket, "a.bin", new), times=1),
    ]
    with pytest.raises(SourceUnavailable, match="could not be read"):
        await fetch("a.bin")
    assert not copies(tmp_path)
    document = await fetch("a.bin")
    assert (document.read(), document.source_version) == (new, etag(new))


async def test_a_body_that_always_breaks_off_is_left_to_the_retry_topics(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3.put(bucket, "a.bin", bytes(LARGE))
    proxy.faults = [Fault("a.bin", cut_after=300_000)]
    with pytest.raises(SourceUnavailable, match=r"a\.bin' could not be read: the connection broke"):
        await fetch("a.bin")
    assert len(proxy.seen) == 3
    assert not copies(tmp_path)


async def test_slow_bodies_and_silent_stores_are_given_up(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3.put(bucket, "a.bin", bytes(LARGE))
    proxy.faults = [Fault("a.bin", bytes_per_second=100)]
    with pytest.raises(SourceUnavailable, match="comes too slowly: at less than 1,000 bytes a second"):
        await fetch("a.bin", patience=0.5)
    proxy.faults = [Fault("a.bin", bytes_per_second=400_000)]
    with pytest.raises(SourceUnavailable, match="longer than the 1 s of DOCSUM_FETCH__TIMEOUT"):
        await fetch("a.bin", timeout=1)
    proxy.faults = [Fault("a.bin", silent=True)]
    with pytest.raises(SourceUnavailable, match="the store is silent"):
        await fetch("a.bin", patience=0.5)
    assert not copies(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "kind", "says", "requests"),
    [
        (403, "AccessDenied", SourceForbidden, "these credentials may not read it (403 AccessDenied)", 1),
        (401, "Unauthorized", SourceForbidden, "the credentials are not valid (401 Unauthorized)", 1),
        (400, "ExpiredToken", SourceForbidden, "these credentials may not read it (400 ExpiredToken)", 1),
        (301, "PermanentRedirect", SourceForbidden, "is in another region: set AWS_REGION", 1),
        (404, "NoSuchKey", SourceNotFound, "There is no object", 1),
        (404, "NoSuchBucket", SourceNotFound, "There is no bucket", 1),
        (429, "TooManyRequests", SourceUnavailable, "the store asked for a pause (429 TooManyRequests)", 3),
        (503, "SlowDown", SourceUnavailable, "the store asked for a pause (503 SlowDown)", 3),
        (500, "InternalError", SourceUnavailable, "the store failed (500 InternalError)", 3),
        (400, "BadRequest", SourceUnavailable, "the store failed (400 BadRequest)", 1),
    ],
)
async def test_what_a_status_means(
    fetch: Fetching,
    proxy: FaultProxy,
    *,
    status: int,
    code: str,
    kind: type[FetchError],
    says: str,
    requests: int,
) -> None:
    proxy.faults = [Fault("a.txt", status=status, code=code)]
    with pytest.raises(kind) as error:
        await fetch("a.txt")
    assert says in str(error.value)
    assert str(error.value).endswith(".")
    assert "127.0.0.1" not in str(error.value)
    assert len(proxy.seen) == requests


async def test_a_pause_that_passes_is_not_noticed(
    fetch: Fetching, s3: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    s3.put(bucket, "a.txt", b"hello")
    proxy.faults = [Fault("a.txt", status=503, code="SlowDown", times=1)]
    assert (await fetch("a.txt")).content == b"hello"


async def test_missing_objects_and_missing_buckets_differ(fetch: Fetching, folder: TemporaryFolder) -> None:
    with pytest.raises(SourceNotFound, match=f"There is no object 's3://{fetch.bucket}/nothing.txt'"):
        await fetch("nothing.txt")
    with pytest.raises(SourceNotFound, match="There is no bucket 's3://nowhere'"):
        await Fetching("nowhere", folder)("a.txt")


async def test_what_is_not_allowed_is_not_asked_for(
    fetch: Fetching, proxy: FaultProxy, folder: TemporaryFolder
) -> None:
    fetcher = ObjectStoreFetcher(["s3://mine/a"], MAX_BYTES, timedelta(seconds=5), folder)
    for uri in ("s3://mine/b", "s3://mine/ab", "s3://other/a/b", "gs://mine/a/b", "s3://mine/a/../b"):
        with pytest.raises(SourceNotAllowed):
            await fetcher.fetch(reference(uri=uri))
    assert not proxy.seen


async def test_a_store_that_is_away_and_credentials_that_are_missing(
    fetch: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceUnavailable, match="there is no connection to the store"):
        await fetch("a.txt")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceForbidden, match=r"no credentials .* `eval \"\$\(aws configure"):
        await fetch("a.txt")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceForbidden, match="There are no credentials"):
        await fetch("a.txt")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no host")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL is no address"):
        await fetch("a.txt")


# -- listing -----------------------------------------------------------------------------------------------


def entries(url: str) -> list[Entry]:
    return list(list_objects(url, lambda: START))


def names(url: str, bucket: str) -> list[str]:
    found = [entry for entry in entries(url) if isinstance(entry, Listed)]
    return [entry.document_id.removeprefix(f"s3://{bucket}/") for entry in found]


def test_an_object_is_listed_with_what_a_worker_needs(proxy: FaultProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "a/Übersicht 100%.txt", b"hello")
    assert entries(f"s3://{bucket}") == [
        Listed(
            f"s3://{bucket}/a/Übersicht 100%.txt",
            f"s3://{bucket}/a/%C3%9Cbersicht%20100%25.txt",
            START,
            source_version=etag(b"hello"),
            size_bytes=5,
        )
    ]


async def test_what_was_listed_can_be_fetched(fetch: Fetching, s3: S3Server, bucket: str) -> None:
    for key in ("a b", "100%", "%41", "ü?#", "a&b=c;d", "'\"\\", "~{}[]*", "x.", "x/a..b", "漢字"):
        s3.put(bucket, key, key.encode())
    for entry in entries(f"s3://{bucket}"):
        assert isinstance(entry, Listed)
        document = await fetch(entry.document_id.removeprefix(f"s3://{bucket}/"))
        assert f"s3://{bucket}/{document.read().decode()}" == entry.document_id
        assert document.source_version == entry.source_version


def test_a_prefix_is_whole_segments_and_the_object_of_that_very_key(
    proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    s3.put_many(bucket, dict.fromkeys(["dir", "dir/a", "dir/b/c", "directory", "dir-2/d"], b"x"))
    assert names(f"s3://{bucket}/dir", bucket) == ["dir", "dir/a", "dir/b/c"]
    assert names(f"s3://{bucket}/dir/", bucket) == ["dir/a", "dir/b/c"]
    assert names(f"s3://{bucket}/dir/a", bucket) == ["dir/a"]
    assert names(f"s3://{bucket}/d", bucket) == []


def test_markers_and_hidden_objects_are_passed_over_and_empty_ones_are_not(
    proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    s3.put_many(bucket, {"dir/": b"", "dir/empty.txt": b"", "dir/.hidden/a": b"x", "dir/sub/": b""})
    assert entries(f"s3://{bucket}/dir") == [
        Ignored(f"s3://{bucket}/dir/", "a folder's marker"),
        Ignored(f"s3://{bucket}/dir/.hidden/a", "hidden"),
        Listed(
            f"s3://{bucket}/dir/empty.txt",
            f"s3://{bucket}/dir/empty.txt",
            START,
            source_version=etag(b""),
            size_bytes=0,
        ),
        Ignored(f"s3://{bucket}/dir/sub/", "a folder's marker"),
    ]


def test_a_key_that_cannot_be_an_id_is_told_and_the_rest_goes_on(
    proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    s3.put_many(bucket, {"a\x85b": b"x", "long/" + "y" * 600: b"x", "z": b"x"})
    told = {entry.problem for entry in entries(f"s3://{bucket}") if isinstance(entry, Unreadable)}
    assert told == {
        "its address holds a control character",
        f"its address has {len(bucket) + 611} characters; 512 are allowed",
    }
    assert names(f"s3://{bucket}", bucket) == ["z"]


def test_a_key_that_the_client_cannot_express_ends_the_listing_with_a_way_round(
    proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    s3.put_many(bucket, {"good/a": b"x", "odd//b": b"x"})
    with pytest.raises(UnusableSource, match=r"odd//b.* list the prefixes beside it one by one"):
        entries(f"s3://{bucket}")
    assert names(f"s3://{bucket}/good", bucket) == ["good/a"]


def test_two_thousand_objects_are_listed_lazily_and_in_flat_memory(
    proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    s3.put_many(bucket, {f"many/{number:05}.txt": b"x" for number in range(2_000)})
    listing = list_objects(f"s3://{bucket}/many/", lambda: START)
    first = next(listing)
    assert isinstance(first, Listed)
    assert len(proxy.requests("list-type")) == 1
    count = 1 + sum(1 for _, _ in zip(range(999), listing, strict=False))
    tracemalloc.start()
    count += sum(1 for _ in listing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_000
    assert len(proxy.requests("list-type")) == 2
    assert peak < 1_500_000  # half a page; a thousand entries kept would be more


def test_a_listing_outlasts_a_pause_of_the_store(proxy: FaultProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "a", b"x")
    proxy.faults = [Fault("list-type", status=503, code="SlowDown", times=3)]
    assert names(f"s3://{bucket}", bucket) == ["a"]


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AccessDenied", SourceForbidden, "could not be read: these credentials may not read it"),
        (404, "NoSuchBucket", SourceNotFound, "There is no bucket"),
    ],
)
def test_what_is_in_the_way_of_a_listing(
    proxy: FaultProxy, bucket: str, *, status: int, code: str, kind: type[FetchError], says: str
) -> None:
    proxy.faults = [Fault("list-type", status=status, code=code)]
    with pytest.raises(kind, match=says):
        entries(f"s3://{bucket}")


def test_who_may_only_read_can_name_an_object(proxy: FaultProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "a.txt", b"x")
    proxy.faults = [Fault("list-type", status=403, code="AccessDenied")]
    assert names(f"s3://{bucket}/a.txt", bucket) == ["a.txt"]
    with pytest.raises(SourceForbidden):
        entries(f"s3://{bucket}/b.txt")
