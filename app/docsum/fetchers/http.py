"""Documents over http(s): only from allowed hosts, only at checked addresses, never more than was agreed.

A host is resolved once for a connection, every address it has is checked, and the connection goes to one of
those; the Host header, SNI and the certificate check keep the name. Redirects take the same way each time.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import http_exceptions
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from docsum import __version__
from docsum.errors import (
    FetchError,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceOutdated,
    SourceTooLarge,
    SourceUnavailable,
)
from docsum.fetchers.addresses import AddressGuard, Target
from docsum.fetchers.spool import Spool, TemporaryFolder
from docsum.models import Document, DocumentReference

_CHUNK = 64 * 1024
_PACKED_CHUNK = 4 * 1024  # unpacks to 4 MiB at most: what the event loop waits for
_GZIP = 31  # zlib's number for the gzip format, largest window
_CONNECT_WITHIN = 10.0  # seconds: the look-up of the name, TCP and TLS together
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=_CONNECT_WITHIN)
_LEAST_SPEED = 1000  # bytes a second
_MOST_REDIRECTS = 3
_LONGEST_RETRY_AFTER = timedelta(hours=1)

_HEADERS = {
    "User-Agent": f"docsum/{__version__}",
    "Accept": "*/*",
    # Documents are packed already; and the etag of an unpacked body is its own, its length known before.
    "Accept-Encoding": "identity",
}

_DOCUMENT = {200, 203, 204}
_REDIRECT = {301, 302, 303, 307, 308}
_FORBIDDEN = {401, 402, 403, 407, 451}
_MAY_PASS = {408, 421, 423, 425, 429}

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_DATE = re.compile(
    r"([A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT)(?:, \d+ bytes)?", re.ASCII
)

_NO_ADDRESS = "it is not an address that can be asked"
_NO_HTTP = "the answer is not proper HTTP"
_NO_TLS = "there is no secure connection"
_NO_CONNECTION = "there is no connection"
_BROKEN = "the connection broke"
_CUT = "the body was cut or is damaged"
_SILENT = "the server did not answer in time"

#: Every error of aiohttp's client, and of what lies below it; of any other the nearest ancestor counts.
TRANSLATIONS: Mapping[type[Exception], tuple[type[FetchError], str]] = {
    aiohttp.ClientError: (SourceUnavailable, "the request failed"),
    aiohttp.ClientConnectionError: (SourceUnavailable, _BROKEN),
    aiohttp.ClientConnectionResetError: (SourceUnavailable, _BROKEN),
    aiohttp.ClientOSError: (SourceUnavailable, _BROKEN),
    aiohttp.ClientConnectorError: (SourceUnavailable, _NO_CONNECTION),
    aiohttp.ClientConnectorDNSError: (SourceUnavailable, "the host's name has no address"),
    aiohttp.ClientConnectorSSLError: (SourceUnavailable, _NO_TLS),
    aiohttp.ClientConnectorCertificateError: (SourceUnavailable, "the server's certificate is not valid"),
    aiohttp.ClientSSLError: (SourceUnavailable, _NO_TLS),
    aiohttp.ClientProxyConnectionError: (SourceUnavailable, _NO_CONNECTION),
    aiohttp.ClientHttpProxyError: (SourceUnavailable, _NO_CONNECTION),
    aiohttp.ClientResponseError: (SourceUnavailable, _NO_HTTP),
    aiohttp.ContentTypeError: (SourceUnavailable, _NO_HTTP),
    aiohttp.WSServerHandshakeError: (SourceUnavailable, _NO_HTTP),
    aiohttp.WSMessageTypeError: (SourceUnavailable, _NO_HTTP),
    aiohttp.ClientPayloadError: (SourceUnavailable, _CUT),
    aiohttp.UploadAbortedError: (SourceUnavailable, _BROKEN),
    aiohttp.ServerConnectionError: (SourceUnavailable, _BROKEN),
    aiohttp.ServerDisconnectedError: (SourceUnavailable, "the server hung up without an answer"),
    aiohttp.ServerFingerprintMismatch: (SourceUnavailable, "the server's certificate is not valid"),
    aiohttp.ServerTimeoutError: (SourceUnavailable, _SILENT),
    aiohttp.SocketTimeoutError: (SourceUnavailable, _SILENT),
    aiohttp.ConnectionTimeoutError: (SourceUnavailable, f"no connection within {_CONNECT_WITHIN:.0f} s"),
    aiohttp.TooManyRedirects: (SourceUnavailable, "it redirects in circles"),
    aiohttp.InvalidURL: (SourceNotAllowed, _NO_ADDRESS),
    aiohttp.InvalidUrlClientError: (SourceNotAllowed, _NO_ADDRESS),
    aiohttp.NonHttpUrlClientError: (SourceNotAllowed, _NO_ADDRESS),
    aiohttp.RedirectClientError: (SourceNotAllowed, _NO_ADDRESS),
    aiohttp.InvalidUrlRedirectClientError: (SourceNotAllowed, _NO_ADDRESS),
    aiohttp.NonHttpUrlRedirectClientError: (SourceNotAllowed, _NO_ADDRESS),
    http_exceptions.HttpProcessingError: (SourceUnavailable, _NO_HTTP),  # some come bare from a body
    zlib.error: (SourceUnavailable, _CUT),
    OSError: (SourceUnavailable, "reading or keeping it failed"),  # also of the temporary file
}


class HttpFetcher:
    """The port `Fetcher` for `http:` and `https:` addresses. Enter it: it owns connections."""

    def __init__(
        self,
        hosts: Sequence[str],
        private_hosts: Sequence[str],
        max_bytes: int,
        timeout: timedelta,
        folder: TemporaryFolder,
        *,
        resolver: AbstractResolver | None = None,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        """`patience`: how long there may be no answer, or a body at less than 1 KB a second.

        Raises ConfigurationError.
        """
        self._guard = AddressGuard(hosts, private_hosts)
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._folder = folder
        self._resolver = resolver
        self._patience = patience
        self._session: aiohttp.ClientSession

    async def fetch(self, reference: DocumentReference) -> Document:
        """Raises a FetchError; the whole time, redirects included, is at most `timeout`."""
        target = self._guard.target(reference.uri)
        try:
            async with asyncio.timeout(self._timeout.total_seconds()) as whole:
                return await self._follow(target, reference.source_version)
        except tuple(TRANSLATIONS) as error:
            if whole.expired():
                raise SourceUnavailable(
                    f"{target.shown!r} took longer than the {self._timeout.total_seconds():g} s "
                    "of DOCSUM_FETCH__TIMEOUT."
                ) from error
            raise translated(error, target.shown) from error

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=await checked_connector(self._guard, self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=TIMEOUT,
            read_bufsize=_CHUNK,
            auto_decompress=False,
            trust_env=False,  # a proxy would resolve the name once more, unchecked
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    # -- one document ----------------------------------------------------------------------------------

    async def _follow(self, first: Target, announced: str) -> Document:
        target = first
        for _ in range(1 + _MOST_REDIRECTS):
            async with await self._answer(target) as response:
                if response.status not in _REDIRECT or "Location" not in response.headers:
                    return await self._take(response, target.shown, announced)
                target = self._guard.redirect(target, response.headers["Location"])
        raise SourceUnavailable(f"{first.shown!r} redirects more than {_MOST_REDIRECTS} times.")

    async def _answer(self, target: Target) -> aiohttp.ClientResponse:
        """Its head. A host that takes requests and is silent must not hold a worker's places for minutes."""
        try:
            async with asyncio.timeout(self._patience.total_seconds()) as window:
                # `encoded`: the address is asked for as it was checked, not as yarl would write it
                return await self._session.get(URL(target.url, encoded=True), allow_redirects=False)
        except TimeoutError as error:
            if not window.expired():
                raise
            patience = f"{self._patience.total_seconds():g} s"
            raise SourceUnavailable(f"{target.shown!r} gave no answer within {patience}.") from error

    async def _take(self, response: aiohttp.ClientResponse, shown: str, announced: str) -> Document:
        check_status(response.status, response.headers, shown, datetime.now(UTC))
        self._check_headers(response, shown, announced)
        spool = Spool(self._folder, self._max_bytes, shown)
        try:
            await self._read(response, spool, shown)
            return spool.finish(source_version(response.headers, spool.size))
        finally:
            spool.discard()

    def _check_headers(self, response: aiohttp.ClientResponse, shown: str, announced: str) -> None:
        length = response.content_length
        if length is not None and length > self._max_bytes:
            raise SourceTooLarge(
                f"{shown!r} has {length:,} bytes; DOCSUM_FETCH__MAX_BYTES allows {self._max_bytes:,}."
            )
        if _encoding(response) not in ("", "gzip", "x-gzip"):  # some servers pack unasked
            raise SourceUnavailable(f"{shown!r} comes in a Content-Encoding that nobody asked for.")
        if is_outdated(response.headers, announced):
            raise SourceOutdated(f"{shown!r} is still older than was announced.")

    async def _read(self, response: aiohttp.ClientResponse, spool: Spool, shown: str) -> None:
        least = self._patience.total_seconds() * _LEAST_SPEED
        async with aclosing(_pieces(response)) as pieces:
            while True:
                enough = spool.size + least
                try:
                    async with asyncio.timeout(self._patience.total_seconds()) as window:
                        while spool.size < enough:
                            spool.write(await anext(pieces))
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    if not window.expired():
                        raise
                    raise SourceUnavailable(
                        f"{shown!r} comes at less than {_LEAST_SPEED:,} bytes a second."
                    ) from error


async def _pieces(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The body, unpacked, in pieces of at most 64 KiB: a bomb is met at the cap and not in memory.

    Not by aiohttp, which takes a gzip body that was cut for a whole one. Raises zlib.error.
    """
    if not _encoding(response):
        while chunk := await response.content.read(_CHUNK):
            yield chunk
        return
    member, inside = zlib.decompressobj(_GZIP), False
    while packed := await response.content.read(_PACKED_CHUNK):
        while packed:
            yield member.decompress(packed, _CHUNK)
            packed, inside = member.unconsumed_tail, True
            if member.eof:
                packed, member, inside = member.unused_data, zlib.decompressobj(_GZIP), False
    if inside:
        raise zlib.error("the body ends within a member")


def _encoding(response: aiohttp.ClientResponse) -> str:
    """Empty for a body that is as it is."""
    encoding = ", ".join(response.headers.getall("Content-Encoding", [])).strip().lower()
    return "" if encoding == "identity" else encoding


async def checked_connector(
    guard: AddressGuard, resolver: AbstractResolver | None = None, *, keep_alive: bool = True
) -> aiohttp.TCPConnector:
    """Connects to nothing but what the guard has checked, anew for every connection."""
    return aiohttp.TCPConnector(
        resolver=_CheckedResolver(guard, resolver or aiohttp.ThreadedResolver()),
        use_dns_cache=False,
        ssl=await asyncio.to_thread(_tls),
        limit=0,  # callers bound their requests; a slow host must not take the others' places
        force_close=not keep_alive,
    )


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp nothing but checked addresses, and as numbers, so that nothing resolves them again."""

    def __init__(self, guard: AddressGuard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises SourceNotAllowed, or OSError where the name has no address."""
        found = await self._resolver.resolve(host, port, family)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name has no address")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._guard.check(host, port, [result["host"] for result in found])
        ]

    async def close(self) -> None:
        """Nothing here is owned."""


def _tls() -> ssl.SSLContext:
    """Reads the system's certificates, or those of SSL_CERT_FILE: a company's own authority."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


# -- what an answer means ----------------------------------------------------------------------------------


def check_status(status: int, headers: Mapping[str, str], shown: str, now: datetime) -> None:
    """Returns for a document. Else raises the FetchError that an HTTP status is.

    A 4xx that is not about permission or time says that this address cannot be read: asking again will not
    help, so it counts as not found.
    """
    if status in _DOCUMENT:
        return
    message = f"{shown!r} answered {_status_name(status)}."
    if status in _FORBIDDEN:
        raise SourceForbidden(message)
    if 400 <= status < 500 and status not in _MAY_PASS:
        raise SourceNotFound(message)
    raise SourceUnavailable(message, retry_after=retry_after(headers, now))


def _status_name(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def retry_after(
    headers: Mapping[str, str], now: datetime, longest: timedelta = _LONGEST_RETRY_AFTER
) -> timedelta | None:
    """What Retry-After asks for, as seconds or as a date; `longest` at most, None without a usable one."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        wait = timedelta(seconds=int(text))
    elif moment := _date(text):
        wait = max(moment - now, timedelta(0))
    else:
        return None
    return min(wait, longest)


def source_version(headers: Mapping[str, str], size: int) -> str:
    """The strong ETag as it was sent; else `<Last-Modified>, <size> bytes`; else empty."""
    etag = headers.get("ETag", "").strip()
    if _STRONG_ETAG.fullmatch(etag):
        return etag
    modified = headers.get("Last-Modified", "").strip()
    return f"{modified}, {size} bytes" if _date(modified) else ""


def is_outdated(headers: Mapping[str, str], announced: str) -> bool:
    """True where both sides name a date and the source's is the older. Etags have no order."""
    expected, found = _date(announced), _date(headers.get("Last-Modified", "").strip())
    return expected is not None and found is not None and found < expected


def _date(text: str) -> datetime | None:
    match = _DATE.fullmatch(text)
    try:
        return parsedate_to_datetime(match[1]) if match else None
    except ValueError:
        return None


def translated(error: Exception, shown: str) -> FetchError:
    """Our error for one of aiohttp's or the system's. Says nothing that the server has chosen."""
    kind, _ = _translation(error)
    return kind(f"{shown!r} could not be fetched: {cause(error)}.")


def cause(error: Exception) -> str:
    """Why a request failed, without a full stop. Says nothing that the server has chosen."""
    detail = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{_translation(error)[1]}{detail}"


def _translation(error: Exception) -> tuple[type[FetchError], str]:
    return next(TRANSLATIONS[ancestor] for ancestor in type(error).__mro__ if ancestor in TRANSLATIONS)
