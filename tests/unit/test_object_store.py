"""Addresses of objects, allow-lists, and what each of obstore's errors means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from obstore import exceptions

from docsum.errors import (
    ConfigurationError,
    FetchError,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnavailable,
)
from docsum.fetchers import DocumentFetcher, allowance, check_allowed
from docsum.fetchers.object_store import (
    TRANSLATIONS,
    BucketGuard,
    ObjectAddress,
    object_version,
    translated,
)
from docsum.settings import Fetch
from docsum.sources import UnusableSource
from tests.support.fakes import reference

ADDRESS = ObjectAddress("s3://bucket", "a/b.pdf")


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket/a/b.pdf", "s3://bucket", "a/b.pdf"),
        ("S3://bucket/a%20b%25.pdf", "s3://bucket", "a b%.pdf"),
        ("gs://my_bucket.example/ü", "gs://my_bucket.example", "ü"),
        ("az://container/a?b#c", "az://container", "a?b#c"),
    ],
)
def test_the_address_of_an_object(uri: str, bucket: str, key: str) -> None:
    assert ObjectAddress.of_uri(uri) == ObjectAddress(bucket, key)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket//a",
        "s3://bucket/a/",
        "s3://bucket/a//b",
        "s3://bucket/a/../b",
        "s3://bucket/a/%2e%2e/b",
        "s3://bucket/./a",
        "s3://bucket/%ff",
        "s3://bad bucket/a",
        "s3://buc%2Fket/a",
        "s3:bucket/a",
        "s3a://bucket/a",
        "file:///a",
    ],
)
def test_what_is_no_address_of_an_object(uri: str) -> None:
    with pytest.raises(SourceNotAllowed, match="is no address of an object"):
        ObjectAddress.of_uri(uri)


@pytest.mark.parametrize(
    ("entry", "held", "not_held"),
    [
        ("s3://b1", ["s3://b1/a", "s3://b1"], ["s3://b12/a", "gs://b1/a"]),
        ("s3://b1/a", ["s3://b1/a", "s3://b1/a/b", "s3://b1/a/"], ["s3://b1/ab", "s3://b1", "s3://b1/A"]),
        ("s3://b1/a/", ["s3://b1/a/b"], ["s3://b1/ab"]),
    ],
)
def test_an_entry_holds_whole_segments(entry: str, held: list[str], not_held: list[str]) -> None:
    guard = BucketGuard(["gs://other", entry])
    for text in held:
        guard.check(ObjectAddress.named(text))
    for text in not_held:
        with pytest.raises(SourceNotAllowed, match="DOCSUM_FETCH__BUCKETS"):
            guard.check(ObjectAddress.named(text))


def test_no_entries_no_buckets() -> None:
    with pytest.raises(SourceNotAllowed, match="until DOCSUM_FETCH__BUCKETS names it"):
        BucketGuard([]).check(ADDRESS)


@pytest.mark.parametrize("entry", ["reports", "s3:/reports", "file:///data", "https://example.org"])
def test_an_entry_that_is_no_bucket_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="write s3://reports"):
        BucketGuard([entry])


def test_the_version_of_an_object_is_its_etag() -> None:
    modified = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def version(etag: str | None) -> str:
        return object_version(
            {"path": "a", "last_modified": modified, "size": 7, "e_tag": etag, "version": None}
        )

    assert version('"abc-2"') == version("abc-2") == version('W/"abc-2"') == "abc-2"
    assert version(None) == "2026-01-02T03:04:05Z:7"


# -- errors ------------------------------------------------------------------------------------------------


def test_every_error_that_obstore_exports_is_translated() -> None:
    exported = {kind for kind in vars(exceptions).values() if isinstance(kind, type)}
    assert len(exported) > 10
    assert exported - set(TRANSLATIONS) == set()


@pytest.mark.parametrize("kind", TRANSLATIONS)
def test_every_translation_is_a_sentence_without_the_library_s_words(kind: type[Exception]) -> None:
    error = translated(kind("Debug source: https://host/?sig=secret"), ADDRESS)
    assert "s3://bucket/a/b.pdf" in str(error)
    assert str(error).endswith(".")
    assert "secret" not in str(error)


class OfALaterVersion(exceptions.BaseError):
    """As the next obstore may bring one."""


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OfALaterVersion("new"), SourceUnavailable, "the store failed"),
        (exceptions.GenericError("kind: Timeout,"), SourceUnavailable, "did not answer in time"),
        (exceptions.GenericError("kind: Connect,"), SourceUnavailable, "no connection"),
        (exceptions.GenericError("MissingAccount"), SourceForbidden, "There are no credentials"),
        (
            exceptions.GenericError("GET http://metadata/computeMetadata/v1 status code: 404"),
            SourceForbidden,
            "There are no credentials",
        ),
        (
            exceptions.GenericError("status code: 404 Not Found: <Code>ContainerNotFound</Code>"),
            SourceNotFound,
            "There is no bucket 's3://bucket'",
        ),
        (
            FileNotFoundError("GET http://host/bucket/oauth2/x: status code: 404"),
            SourceNotFound,
            "There is no object",
        ),
    ],
)
def test_what_an_error_means(error: Exception, kind: type[FetchError], says: str) -> None:
    found = translated(error, ADDRESS)
    assert type(found) is kind
    assert says in str(found)


# -- all kinds of addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["ftp://example.org/a", "nonsense", "", "s3a://bucket/a"])
async def test_an_unknown_kind_of_address_is_refused(uri: str) -> None:
    async with DocumentFetcher(Fetch()) as fetcher:
        with pytest.raises(SourceNotAllowed):
            await fetcher.fetch(reference(uri=uri))


@pytest.mark.parametrize(
    ("uri", "setting"),
    [
        ("file:///data/a.txt", "DOCSUM_FETCH__FILE_ROOTS"),
        ("s3://bucket/a", "DOCSUM_FETCH__BUCKETS"),
        ("gs://bucket/a", "DOCSUM_FETCH__BUCKETS"),
        ("az://bucket/a", "DOCSUM_FETCH__BUCKETS"),
        ("https://example.org/a", "DOCSUM_FETCH__HOSTS"),
        ("HTTP://example.org/a", "DOCSUM_FETCH__HOSTS"),
    ],
)
async def test_each_kind_has_its_allow_list_and_empty_means_refused(uri: str, setting: str) -> None:
    async with DocumentFetcher(Fetch(timeout=timedelta(seconds=1))) as fetcher:
        with pytest.raises(SourceNotAllowed, match=setting):
            await fetcher.fetch(reference(uri=uri))


@pytest.mark.parametrize(
    ("place", "kind", "entry"),
    [
        ("/data/reports", "file_roots", "/data/reports"),
        ("s3://bucket/dir/", "buckets", "s3://bucket/dir"),
        ("https://example.org:8443/a?b=//c", "hosts", "example.org:8443"),
    ],
)
def test_a_place_is_allowed_by_its_entry(place: str, kind: str, entry: str) -> None:
    assert allowance(place) == (kind, entry)
    with pytest.raises(SourceNotAllowed, match=f"DOCSUM_FETCH__{kind.upper()}"):
        check_allowed(Fetch(), place)
    check_allowed(Fetch(**{kind: (entry,)}), place)


def test_what_is_never_read_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(SourceNotAllowed):
        check_allowed(Fetch(hosts=("169.254.169.254",)), "http://169.254.169.254/latest/meta-data")
    with pytest.raises(UnusableSource):
        check_allowed(Fetch(buckets=("s3://bucket",)), "s3://")
