"""Documents from object stores: `s3:`, `gs:` and `az:` addresses, through obstore.

Credentials are obstore's business: the clouds' own variables (AWS_*, GOOGLE_*, AZURE_*), web identity and the
instance's metadata service. Profiles and SSO are not read; for those, before the command:
`eval "$(aws configure export-credentials --format env)"`. Public buckets: AWS_SKIP_SIGNATURE=true.
AWS_ENDPOINT_URL leads to any S3-compatible server, and may be plain http.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from docsum.errors import (
    ConfigurationError,
    FetchError,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceTooLarge,
    SourceUnavailable,
)
from docsum.fetchers.spool import Spool, TemporaryFolder
from docsum.models import Document, DocumentReference
from docsum.sources import Entry, Ignored, Listed, Now, Unreadable, UnusableSource, problem_of_id

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

Store = S3Store | GCSStore | AzureStore

_CONNECT_WITHIN = timedelta(seconds=5)
_OPEN_STORES = 32  # each has connections of its own
#: The retry topics own the retries of a document; only what passes in a moment is tried again here. The rest
#: of a body that breaks off is taken only under the same etag, so that two states are never mixed.
_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
#: A listing cannot be handed to a retry topic: it waits longer.
_LISTING_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(minutes=1)}
_LISTING_TIMEOUT = timedelta(seconds=60)  # of one page
_AT_ONCE = 500  # entries taken from obstore; the store's own page, mostly 1,000, is all that is read ahead

_ADDRESS = re.compile(
    r"(?P<scheme>s3|gs|az)://(?P<bucket>[a-z0-9][a-z0-9._-]{1,221})(?:/(?P<key>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_ENDPOINT = re.compile(r"https?://(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d{1,5})?(/\S*)?", re.ASCII)
#: Where else than at the cloud a store may be; read here only to tell plain http, and to refuse nonsense.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_HOW_TO_SIGN_IN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a profile run "
    '`eval "$(aws configure export-credentials --format env)"`',
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

#: Every error of obstore, and the built-in ones that it raises; an HTTP status in its text goes before.
TRANSLATIONS: Mapping[type[Exception], tuple[type[FetchError], str]] = {
    exceptions.BaseError: (SourceUnavailable, "the store failed"),
    exceptions.GenericError: (SourceUnavailable, "the connection broke"),
    exceptions.JoinError: (SourceUnavailable, "the client failed"),
    exceptions.NotFoundError: (SourceNotFound, "it is not there"),
    FileNotFoundError: (SourceNotFound, "it is not there"),
    exceptions.InvalidPathError: (SourceNotAllowed, "it is no address that can be asked"),
    ValueError: (SourceNotAllowed, "it is no address that can be asked"),
    exceptions.PermissionDeniedError: (SourceForbidden, "these credentials may not read it"),
    exceptions.UnauthenticatedError: (SourceForbidden, "the credentials are not valid"),
    exceptions.UnknownConfigurationKeyError: (SourceForbidden, "the credentials' variables are wrong"),
    exceptions.PreconditionError: (SourceUnavailable, "it changed while it was read"),
    exceptions.NotModifiedError: (SourceUnavailable, "the store gave no content"),
    exceptions.AlreadyExistsError: (SourceUnavailable, "it is being changed"),
    exceptions.NotSupportedError: (SourceUnavailable, "the store cannot give it"),
}
_FAILURES = tuple(TRANSLATIONS)

# obstore's errors have no fields: these read its texts.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
_NO_LONGER_VALID = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}
_CREDENTIALS = re.compile(
    r"/latest/(api/token|meta-data)|/computeMetadata/|/oauth2/|//sts\.|Missing(Account|AccessKey|SecretAccess)"
    r"|(Open|Read|Decode)Credentials"
)
_ANOTHER_REGION = "incorrectly configured region"
_CONNECTION = re.compile(r"kind: (Connect|Timeout|Interrupted)\b")
_CONNECTIONS = {
    "Connect": "there is no connection to the store",
    "Timeout": "the store did not answer in time",
    "Interrupted": "the connection broke",
}


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A bucket, such as `s3://reports`, and a key in it, unescaped; a key may also stand for a prefix."""

    bucket: str
    key: str

    @classmethod
    def named(cls, text: str) -> Self:
        """What a person names, with nothing escaped. Raises UnusableSource."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise UnusableSource(f"{text!r} names no bucket: write s3://bucket/prefix.")
        return cls(f"{match['scheme'].lower()}://{match['bucket']}", match["key"] or "")

    @classmethod
    def of_uri(cls, uri: str) -> Self:
        """Of one object. Raises SourceNotAllowed."""
        try:
            escaped = cls.named(uri)
            key = unquote(escaped.key, errors="strict")
            if any(part in ("", ".", "..") for part in key.split("/")):
                raise ValueError("obstore drops empty parts at the ends, and so would read another object")
        except (UnusableSource, ValueError) as error:
            raise SourceNotAllowed(
                f"{uri!r} is no address of an object, such as s3://reports/2026/may.pdf."
            ) from error
        return cls(escaped.bucket, key)

    @property
    def scheme(self) -> str:
        return self.bucket[:2]

    @property
    def text(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    def is_within(self, prefix: ObjectAddress) -> bool:
        """By whole segments: `a/b` holds `a/b/c`, not `a/bc`."""
        folder = prefix.key.rstrip("/")
        return self.bucket == prefix.bucket and f"{self.key}/".startswith(f"{folder}/" if folder else "")


class BucketGuard:
    """Deny by default: only what an entry of DOCSUM_FETCH__BUCKETS holds is read."""

    def __init__(self, buckets: Sequence[str]) -> None:
        """Raises ConfigurationError."""
        self.allowed = [_entry_of_setting(text) for text in buckets]

    def check(self, address: ObjectAddress) -> None:
        """An object, or a prefix with all below it. Raises SourceNotAllowed."""
        if not self.allowed:
            raise SourceNotAllowed(
                f"{address.text!r} is refused: no bucket may be read until DOCSUM_FETCH__BUCKETS names it."
            )
        if not any(address.is_within(entry) for entry in self.allowed):
            raise SourceNotAllowed(f"{address.text!r} is outside the buckets of DOCSUM_FETCH__BUCKETS.")


class ObjectStoreFetcher:
    """The port `Fetcher` for `s3:`, `gs:` and `az:` addresses. Nothing to close."""

    def __init__(
        self,
        buckets: Sequence[str],
        max_bytes: int,
        timeout: timedelta,
        folder: TemporaryFolder,
        *,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        """`patience`: how long a body may come at less than 1 KB a second. Raises ConfigurationError."""
        self._guard = BucketGuard(buckets)
        for entry in self._guard.allowed:
            _is_plain_http(entry.scheme)  # says now that an endpoint is wrong, not at the first document
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._folder = folder
        self._patience = patience
        self._store = lru_cache(_OPEN_STORES)(lambda bucket: _open(bucket, timeout, _RETRIES))

    async def fetch(self, reference: DocumentReference) -> Document:
        """One request: its head says size and etag before the body is read. Raises a FetchError.

        Another etag than was announced is taken as the newer state: etags have no order, and all three clouds
        show every reader the newest state, so that an older one than was announced cannot be told or met.
        """
        address = ObjectAddress.of_uri(reference.uri)
        self._guard.check(address)
        try:
            async with asyncio.timeout(self._timeout.total_seconds()) as whole:
                return await self._read(address)
        except TimeoutError as error:
            if not whole.expired():
                raise
            raise SourceUnavailable(
                f"{address.text!r} took longer than the {self._timeout.total_seconds():g} s "
                "of DOCSUM_FETCH__TIMEOUT."
            ) from error

    async def _read(self, address: ObjectAddress) -> Document:
        found = await self._ask(address)
        size = found.meta["size"]
        if size > self._max_bytes:
            raise SourceTooLarge(
                f"{address.text!r} has {size:,} bytes; DOCSUM_FETCH__MAX_BYTES allows {self._max_bytes:,}."
            )
        body = aiter(found.stream(min_chunk_size=1))  # as it comes, else a slow one would not be seen

        async def read() -> bytes:
            with _translated(address):
                return await anext(body, b"")

        spool = Spool(self._folder, self._max_bytes, address.text)
        try:
            await spool.fill(read, self._patience)
            return spool.finish(object_version(found.meta))
        finally:
            spool.discard()

    async def _ask(self, address: ObjectAddress) -> GetResult:
        try:
            async with asyncio.timeout(self._patience.total_seconds()) as window:
                with _translated(address):
                    return await self._store(address.bucket).get_async(address.key)
        except TimeoutError as error:
            if not window.expired():
                raise
            raise SourceUnavailable(f"{address.text!r} could not be read: the store is silent.") from error


def object_version(meta: ObjectMeta) -> str:
    """The source version of an object: its etag without quotes, as the stores' notifications have it."""
    etag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return etag or f"{meta['last_modified']:%Y-%m-%dT%H:%M:%SZ}:{meta['size']}"


# -- listing -----------------------------------------------------------------------------------------------


def list_objects(url: str, now: Now) -> Iterator[Entry]:
    """Every object below a prefix, or the one of that very key; page by page, in the store's order.

    `url` has no escapes, as a person writes it. Blocks. Raises UnusableSource, ConfigurationError or a
    FetchError.
    """
    address = ObjectAddress.named(url)
    store = _open(address.bucket, _LISTING_TIMEOUT, _LISTING_RETRIES)
    named = None
    if address.key and not address.key.endswith("/"):
        named = _head(store, address)
        if named is not None:
            yield _of_object(named, address, now)
    pages = _pages(store, address)
    try:
        page = next(pages, [])
    except SourceForbidden:
        if named is not None:  # who may read an object need not be allowed to list
            return
        raise
    while page:
        for meta in page:
            yield _listed(store, meta, address, now)
        page = next(pages, [])


def _pages(store: Store, address: ObjectAddress) -> Iterator[Sequence[ObjectMeta]]:
    try:
        with _translated(address):
            yield from store.list(address.key.rstrip("/") or None, chunk_size=_AT_ONCE)
    except SourceNotAllowed as error:
        # The whole page is lost with the key that obstore cannot express, and there is no way past it.
        raise UnusableSource(
            f"Below {address.text!r} is an object with an empty part or a control character in its key "
            f"({_first_line(error.__cause__)}): list the prefixes beside it one by one."
        ) from error


def _head(store: Store, address: ObjectAddress) -> ObjectMeta | None:
    """None where there is no such object, or none that these credentials may see."""
    try:
        with _translated(address):
            return store.head(address.key)
    except (SourceNotFound, SourceForbidden, SourceNotAllowed):
        return None


def _listed(store: Store, meta: ObjectMeta, below: ObjectAddress, now: Now) -> Entry:
    address = ObjectAddress(below.bucket, meta["path"])
    rest = address.key[len(below.key.rstrip("/")) :]
    if "/." in f"/{rest}":
        return Ignored(address.text, "hidden")
    if not meta["size"] and _head(store, address) is None:  # obstore drops the / at the end of a key
        return Ignored(f"{address.text}/", "a folder's marker")
    return _of_object(meta, address, now)


def _of_object(meta: ObjectMeta, address: ObjectAddress, now: Now) -> Entry:
    if problem := problem_of_id(address.text):
        return Unreadable(address.text, problem)
    return Listed(
        address.text,
        f"{address.bucket}/{quote(address.key)}",
        now(),
        source_version=object_version(meta),
        size_bytes=meta["size"],
    )


# -- the library's edge ------------------------------------------------------------------------------------


def _open(bucket: str, timeout: timedelta, retries: RetryConfig) -> Store:
    """Opens no connection yet. Raises ConfigurationError or SourceForbidden."""
    address = ObjectAddress(bucket, "")
    options: ClientConfig = {
        "allow_http": _is_plain_http(address.scheme),
        "connect_timeout": _CONNECT_WITHIN,
        "timeout": timeout,
    }
    name = bucket[5:]
    with _translated(address):
        match address.scheme:
            case "s3":
                return S3Store(name, client_options=options, retry_config=retries)
            case "gs":
                return GCSStore(name, client_options=options, retry_config=retries)
            case _:
                return AzureStore(name, client_options=options, retry_config=retries)


def _is_plain_http(scheme: str) -> bool:
    """Whether the store is at an `http://` address. Raises ConfigurationError: obstore panics at nonsense."""
    for name in _ENDPOINTS[scheme]:
        if text := os.environ.get(name, ""):
            if not _ENDPOINT.fullmatch(text):
                raise ConfigurationError(f"{name} is no address: write https://host or http://host:port.")
            return text.startswith("http://")
    return False


@contextmanager
def _translated(address: ObjectAddress) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise translated(error, address) from error


def translated(error: Exception, address: ObjectAddress) -> FetchError:
    """Our error for one of obstore's. Of the store's answer it tells the status and S3's code alone."""
    text = str(error)
    status = found[1] if (found := _STATUS.search(text)) else ""
    code = found[1] if (found := _CODE.search(text)) else ""
    kind, why = next(TRANSLATIONS[ancestor] for ancestor in type(error).__mro__ if ancestor in TRANSLATIONS)
    if type(error) is exceptions.GenericError:
        if _CREDENTIALS.search(text):
            return SourceForbidden(
                f"There are no credentials for {address.bucket!r}: {_HOW_TO_SIGN_IN[address.scheme]}."
            )
        if _ANOTHER_REGION in text:
            return SourceForbidden(f"The bucket {address.bucket!r} is in another region: set AWS_REGION.")
        kind, why = _of_status(status, code, kind, why)
        if not status and (found := _CONNECTION.search(text)):
            why = _CONNECTIONS[found[1]]
    if code in _NO_BUCKET:
        return SourceNotFound(f"There is no bucket {address.bucket!r}.")
    if kind is SourceNotFound:
        return SourceNotFound(f"There is no object {address.text!r}.")
    said = f" ({' '.join(filter(None, (status, code)))})" if status else ""
    return kind(f"{address.text!r} could not be read: {why}{said}.")


def _of_status(status: str, code: str, kind: type[FetchError], why: str) -> tuple[type[FetchError], str]:
    """What obstore calls generic: every failure of a listing, and the rarer ones of an object."""
    if status in ("401", "403") or code in _NO_LONGER_VALID:
        return SourceForbidden, "these credentials may not read it"
    if status == "404":
        return SourceNotFound, why
    if status in ("429", "503"):
        return SourceUnavailable, "the store asked for a pause"
    return (kind, "the store failed") if status else (kind, why)


def _entry_of_setting(text: str) -> ObjectAddress:
    try:
        return ObjectAddress.named(text)
    except UnusableSource as error:
        raise ConfigurationError(
            f"DOCSUM_FETCH__BUCKETS holds {text!r}: write s3://reports, gs://reports/a/folder or az://reports."
        ) from error


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0].rstrip(".")
