"""The http(s) fetcher against servers on loopback: good ones, hostile ones, and names that lie.

Every connection that is tried is written down, and none but to loopback can succeed.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import socket
import ssl
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

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
from docsum.fetchers.http import HttpFetcher
from docsum.fetchers.spool import IN_MEMORY, TemporaryFolder
from docsum.models import Document, DocumentReference
from tests.support.waiting import eventually
from tests.support.web_server import (
    Answer,
    WebServer,
    certificate,
    endless,
    redirect,
    reply,
    reset,
    silence,
    then_close,
)
from tests.unit.test_addresses import INTERNAL, LISTED, NEVER, PRIVATE, TRICKS

MAX_BYTES = 3_000_000
SOON = 60.0  # seconds that any of the hostile servers gets; most end in a tenth of one
MEMORY = 8_000_000  # bytes that a fetch may hold at its worst, the test's own server included

MONDAY, TUESDAY = "Mon, 05 Jan 2026 08:00:00 GMT", "Tue, 06 Jan 2026 08:00:00 GMT"
OK = b"HTTP/1.1 200 OK\r\n"


def reference(uri: str, source_version: str = "") -> DocumentReference:
    return DocumentReference("e1", "d1", uri, datetime(2026, 1, 1, tzinfo=UTC), 1, source_version)


class Names(AbstractResolver):
    """Names as a test says; of several answers one for each look-up, the last one for ever."""

    def __init__(self, **names: Sequence[Sequence[str]]) -> None:
        self.names = {name.replace("_", "."): [*answers] for name, answers in names.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers = self.names.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            ResolveResult(hostname=host, host=address, port=1, family=socket.AF_INET, proto=0, flags=0)
            for address in found
        ]

    async def close(self) -> None: ...


@pytest.fixture
async def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a connection was tried to."""
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect
    tried: list[str] = []

    async def recorded(sock: socket.socket, address: tuple[str, int]) -> None:
        tried.append(address[0])
        if not ip_address(address[0]).is_loopback:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", recorded)
    return tried


@pytest.fixture
async def server(dialled: list[str]) -> AsyncIterator[WebServer]:
    async with WebServer() as server:
        yield server


Open = Callable[..., AbstractAsyncContextManager[HttpFetcher]]


@pytest.fixture
def fetcher_of(tmp_path: Path, dialled: list[str], monkeypatch: pytest.MonkeyPatch) -> Open:
    """Makes fetchers whose temporary files are below `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(
        hosts: Sequence[str],
        private_hosts: Sequence[str] = (),
        *,
        names: AbstractResolver | None = None,
        max_bytes: int = MAX_BYTES,
        timeout: float = 60.0,
        patience: float = 30.0,
    ) -> HttpFetcher:
        return HttpFetcher(
            hosts,
            private_hosts,
            max_bytes,
            timedelta(seconds=timeout),
            TemporaryFolder(),
            resolver=names,
            patience=timedelta(seconds=patience),
        )

    return make


@pytest.fixture
async def fetcher(fetcher_of: Open, server: WebServer) -> AsyncIterator[HttpFetcher]:
    """May read this one server, which it knows to be internal."""
    async with fetcher_of([f"127.0.0.1:{server.port}"], ["127.0.0.1"]) as fetcher:
        yield fetcher


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- documents ---------------------------------------------------------------------------------------------


async def test_a_small_document_comes_in_memory(fetcher: HttpFetcher, server: WebServer) -> None:
    server.answers["/reports/a%20b.txt?v=1"] = reply(b"hello", ETag='"abc"', Last_Modified=MONDAY)
    document = await fetcher.fetch(reference(server.url("/reports/a%20b.txt?v=1")))
    assert document == Document(5, '"abc"', content=b"hello")


async def test_a_large_document_comes_as_a_file_of_ours(
    fetcher: HttpFetcher, server: WebServer, tmp_path: Path
) -> None:
    content = os.urandom(IN_MEMORY * 5)
    server.answers["/a.pdf"] = reply(content, Last_Modified=MONDAY)
    document = await fetcher.fetch(reference(server.url("/a.pdf")))
    assert document.content is None
    assert document.path is not None
    assert document.path.read_bytes() == content
    assert document.source_version == f"{MONDAY}, {len(content)} bytes"
    document.discard()
    assert not files(tmp_path)


async def test_what_is_asked_is_plain(fetcher_of: Open, server: WebServer) -> None:
    server.answers["/a"] = reply(b"x", Set_Cookie="a=1; Path=/")
    names = Names(wiki_corp=[["127.0.0.1"]])  # cookies of a bare address are never kept
    async with fetcher_of([f"wiki.corp:{server.port}"], ["wiki.corp"], names=names) as fetcher:
        for _ in range(2):
            await fetcher.fetch(reference(server.url("/a", "wiki.corp")))
    for request in server.requests:
        assert dict(request.headers) == {
            "host": f"wiki.corp:{server.port}",
            "user-agent": f"docsum/{__version__}",
            "accept": "*/*",
            "accept-encoding": "identity",
        }
    assert server.connections == 1, "a connection is used again"


async def test_proxies_of_the_environment_are_ignored(
    fetcher_of: Open, server: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.answers["/a"] = reply(b"direct")
    async with WebServer() as proxy, fetcher_of([f"127.0.0.1:{server.port}"], ["127.0.0.1"]) as fetcher:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
        assert (await fetcher.fetch(reference(server.url("/a")))).content == b"direct"
        assert proxy.connections == 0
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("said", "content"),
    [
        (reply(b""), b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (reply(b"proxied", "203 Non-Authoritative Information"), b"proxied"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n", b"abcde"),
        (reply(gzip.compress(b"packed unasked", mtime=0), Content_Encoding="gzip"), b"packed unasked"),
        (
            reply(gzip.compress(b"in ", mtime=0) + gzip.compress(b"two", mtime=0), Content_Encoding="x-gzip"),
            b"in two",
        ),
        (reply(b"", Content_Encoding="gzip"), b""),
        (reply(b"as it is", Content_Encoding="Identity"), b"as it is"),
        (then_close(b"HTTP/1.0 200 OK\r\n\r\nuntil it is closed"), b"until it is closed"),
    ],
)
async def test_bodies(fetcher: HttpFetcher, server: WebServer, said: Answer, content: bytes) -> None:
    server.answers["/a"] = said
    assert (await fetcher.fetch(reference(server.url("/a")))).content == content


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("404 Not Found", SourceNotFound),
        ("410 Gone", SourceNotFound),
        ("403 Forbidden", SourceForbidden),
        ("206 Partial Content", SourceUnavailable),
        ("302 Found", SourceUnavailable),
        ("304 Not Modified", SourceUnavailable),
        ("503 Service Unavailable", SourceUnavailable),
    ],
)
async def test_refusals_of_the_server(
    fetcher: HttpFetcher, server: WebServer, status: str, error: type[FetchError]
) -> None:
    server.answers["/a?signature=s3cret"] = reply(b"", status, Retry_After="7")
    with pytest.raises(error, match=f"/a' answered {status[:3]}") as raised:
        await fetcher.fetch(reference(server.url("/a?signature=s3cret")))
    assert raised.value.retry_after == (timedelta(seconds=7) if error is SourceUnavailable else None)


async def test_an_older_state_than_announced(fetcher: HttpFetcher, server: WebServer) -> None:
    server.answers["/a"] = reply(b"old", Last_Modified=MONDAY)
    with pytest.raises(SourceOutdated):
        await fetcher.fetch(reference(server.url("/a"), TUESDAY))
    document = await fetcher.fetch(reference(server.url("/a"), MONDAY))
    assert (await fetcher.fetch(reference(server.url("/a"), document.source_version))).content == b"old"


async def test_a_length_over_the_cap_is_refused_before_the_body(
    fetcher: HttpFetcher, server: WebServer
) -> None:
    server.answers["/a"] = endless(OK + b"Content-Length: 3000001\r\n\r\n", b"", pause=60)
    with pytest.raises(SourceTooLarge, match=r"3,000,001 bytes; DOCSUM_FETCH__MAX_BYTES allows 3,000,000"):
        async with asyncio.timeout(SOON):
            await fetcher.fetch(reference(server.url("/a")))


async def test_cancelling_leaves_nothing_behind(
    fetcher: HttpFetcher, server: WebServer, tmp_path: Path
) -> None:
    server.answers["/a"] = endless(OK + b"Content-Length: 2000000\r\n\r\n" + bytes(IN_MEMORY + 1), b"", 60)
    task = asyncio.create_task(fetcher.fetch(reference(server.url("/a"))))
    await eventually(lambda: bool(files(tmp_path)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not files(tmp_path)


# -- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", TRICKS)
async def test_no_packet_leaves_for_a_trick(fetcher_of: Open, dialled: list[str], url: str) -> None:
    names = Names()
    async with fetcher_of(LISTED, PRIVATE, names=names) as fetcher:
        with pytest.raises(SourceNotAllowed):
            await fetcher.fetch(reference(url))
    assert (names.asked, dialled) == ([], [])


@pytest.mark.parametrize("address", [*NEVER, *INTERNAL])
async def test_no_packet_leaves_for_a_name_at_a_bad_address(
    fetcher_of: Open, dialled: list[str], address: str
) -> None:
    names = Names(docs_example_org=[[address]], mixed_example_org=[["93.184.216.34", address]])
    async with fetcher_of(["*.example.org"], names=names) as fetcher:
        for name in ("docs", "mixed"):
            with pytest.raises(SourceNotAllowed, match=f"'{name}.example.org' is refused: it is at"):
                await fetcher.fetch(reference(f"https://{name}.example.org/"))
    assert dialled == []


async def test_a_name_that_rebinds_never_reaches_loopback(
    fetcher_of: Open, server: WebServer, dialled: list[str]
) -> None:
    server.answers["/"] = reply(b"internal")
    names = Names(docs_example_org=[["93.184.216.34"], ["127.0.0.1"]])
    async with fetcher_of([f"docs.example.org:{server.port}"], names=names) as fetcher:
        with pytest.raises(SourceUnavailable, match="Network is unreachable"):
            await fetcher.fetch(reference(server.url(host="docs.example.org")))
        assert dialled == ["93.184.216.34"], "what was checked, and nothing else"
        assert names.asked == ["docs.example.org"], "and it was looked up once"
        with pytest.raises(SourceNotAllowed, match="a loopback address"):
            await fetcher.fetch(reference(server.url(host="docs.example.org")))
    assert dialled == ["93.184.216.34"]
    assert server.connections == 0


async def test_every_attempt_goes_to_a_checked_address(
    fetcher_of: Open, server: WebServer, dialled: list[str]
) -> None:
    found = ["93.184.216.34", "2606:2800:220:1::1", "93.184.216.35"]
    names = Names(docs_example_org=[found, ["127.0.0.1"]])
    async with fetcher_of([f"docs.example.org:{server.port}"], names=names) as fetcher:
        with pytest.raises(SourceUnavailable):
            await fetcher.fetch(reference(server.url(host="docs.example.org")))
    assert set(dialled) == set(found)
    assert names.asked == ["docs.example.org"]


async def test_a_private_host_is_read_under_its_own_name(
    fetcher_of: Open, server: WebServer, dialled: list[str]
) -> None:
    server.answers["/a"] = reply(b"wiki")
    names = Names(wiki_corp=[["127.0.0.1"]])
    async with fetcher_of([f"wiki.corp:{server.port}"], ["wiki.corp"], names=names) as fetcher:
        assert (await fetcher.fetch(reference(server.url("/a", "WIKI.corp.")))).content == b"wiki"
    assert server.requests[0].headers["host"] == f"wiki.corp:{server.port}"
    assert dialled == ["127.0.0.1"]


async def test_the_real_resolver_is_checked_too(fetcher_of: Open, server: WebServer) -> None:
    server.answers["/a"] = reply(b"here")
    async with fetcher_of([f"localhost:{server.port}"]) as fetcher:
        with pytest.raises(SourceNotAllowed, match="a loopback address"):
            await fetcher.fetch(reference(server.url("/a", "localhost")))
    assert server.connections == 0
    async with fetcher_of([f"localhost:{server.port}"], ["localhost"]) as fetcher:
        assert (await fetcher.fetch(reference(server.url("/a", "localhost")))).content == b"here"


@pytest.mark.parametrize("found", [None, [[]]])
async def test_a_name_without_addresses(fetcher_of: Open, found: list[list[str]] | None) -> None:
    names = Names() if found is None else Names(docs_example_org=found)
    async with fetcher_of(["docs.example.org"], names=names) as fetcher:
        with pytest.raises(SourceUnavailable, match="the host's name has no address"):
            await fetcher.fetch(reference("https://docs.example.org/"))


# -- redirects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
async def test_redirects_are_followed(fetcher: HttpFetcher, server: WebServer, status: str) -> None:
    server.answers["/a/b.txt"] = redirect("../c", status)
    server.answers["/c"] = redirect("?page=2", status)
    server.answers["/c?page=2"] = redirect(server.url("/d.txt"), status)
    server.answers["/d.txt"] = reply(b"found")
    document = await fetcher.fetch(reference(server.url("/a/b.txt")))
    assert document.content == b"found"


async def test_a_redirect_to_another_server_is_refused(fetcher: HttpFetcher, server: WebServer) -> None:
    async with WebServer() as other:
        other.answers["/"] = reply(b"internal")
        for location in (other.url(), other.url(host="localhost"), other.url()[5:]):
            server.answers["/a"] = redirect(location)
            with pytest.raises(SourceNotAllowed, match="redirects elsewhere"):
                await fetcher.fetch(reference(server.url("/a")))
        assert other.connections == 0


@pytest.mark.parametrize(
    "url", [trick for trick in TRICKS if trick.startswith("http://") and trick.isascii()]
)
async def test_a_redirect_to_a_trick_is_refused(
    fetcher_of: Open, server: WebServer, dialled: list[str], url: str
) -> None:
    server.answers["/a"] = redirect(url)
    hosts = [f"127.0.0.1:{server.port}", *LISTED]
    async with fetcher_of(hosts, PRIVATE, names=Names()) as fetcher:
        with pytest.raises((SourceNotAllowed, SourceUnavailable)):  # some are no proper header at all
            await fetcher.fetch(reference(server.url("/a")))
    assert dialled == ["127.0.0.1"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
async def test_a_redirect_to_a_listed_name_at_a_bad_address_is_refused(
    fetcher_of: Open, server: WebServer, dialled: list[str], address: str
) -> None:
    server.answers["/a"] = redirect(server.url("/b", "docs.example.org"))
    hosts = [f"127.0.0.1:{server.port}", f"docs.example.org:{server.port}"]
    async with fetcher_of(hosts, ["127.0.0.1"], names=Names(docs_example_org=[[address]])) as fetcher:
        with pytest.raises(SourceNotAllowed):
            await fetcher.fetch(reference(server.url("/a")))
    assert len(dialled) == server.connections == 1


@pytest.mark.parametrize("location", ["/a", "/b", "?{}"])
async def test_loops_and_long_chains_end(fetcher: HttpFetcher, server: WebServer, location: str) -> None:
    server.answers["/a"] = redirect(location.format(0))
    server.answers["/b"] = redirect("/a")
    for number in range(1000):
        server.answers[f"/a?{number}"] = redirect(location.format(number + 1))
    with pytest.raises(SourceUnavailable, match="redirects more than 3 times"):
        await fetcher.fetch(reference(server.url("/a")))
    assert len(server.requests) == 4


async def test_the_body_of_a_redirect_is_not_read(fetcher: HttpFetcher, server: WebServer) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /b\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answers["/a"] = endless(head, b"5\r\nhello\r\n")
    server.answers["/b"] = reply(b"found")
    assert (await fetcher.fetch(reference(server.url("/a")))).content == b"found"


# -- TLS ---------------------------------------------------------------------------------------------------


async def test_the_certificate_is_checked_for_the_name_and_not_for_the_address(
    fetcher_of: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, tls = certificate(tmp_path, "wiki.corp")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    asked: list[str | None] = []
    tls.sni_callback = lambda sock, name, context: asked.append(name)
    names = Names(wiki_corp=[["127.0.0.1"]], other_corp=[["127.0.0.1"]])
    async with (
        WebServer(tls) as server,
        fetcher_of([f"*.corp:{server.port}", f"wiki.corp:{server.port}"], ["*.corp"], names=names) as fetcher,
    ):
        server.answers["/a"] = reply(b"secure")
        assert (await fetcher.fetch(reference(server.url("/a", "wiki.corp")))).content == b"secure"
        assert asked == ["wiki.corp"]
        with pytest.raises(SourceUnavailable, match=r"certificate is not valid .*other\.corp"):
            await fetcher.fetch(reference(server.url("/a", "other.corp")))
        server.answers["/a"] = redirect(server.url("/a", "wiki.corp").replace("https", "http"))
        with pytest.raises(SourceNotAllowed, match="it would leave https for http"):
            await fetcher.fetch(reference(server.url("/a", "wiki.corp")))
    assert len(server.requests) == 2


@pytest.mark.parametrize(("days", "why"), [(-3, "expired"), (1, "self-signed")])
async def test_bad_certificates(
    fetcher_of: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, why: str
) -> None:
    trusted, tls = certificate(tmp_path, "wiki.corp", days=days)
    if days < 0:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    names = Names(wiki_corp=[["127.0.0.1"]])
    async with WebServer(tls) as server:
        async with fetcher_of([f"wiki.corp:{server.port}"], ["wiki.corp"], names=names) as fetcher:
            with pytest.raises(SourceUnavailable, match=f"certificate is not valid.*{why}"):
                await fetcher.fetch(reference(server.url("/", "wiki.corp")))
        assert server.requests == []


async def test_plain_http_where_tls_was_expected(fetcher_of: Open) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "400 Bad Request"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        async with fetcher_of([f"127.0.0.1:{port}"], ["127.0.0.1"]) as fetcher:
            with pytest.raises(SourceUnavailable, match="there is no secure connection"):
                await fetcher.fetch(reference(f"https://127.0.0.1:{port}/"))


async def test_an_old_tls_version_is_refused(
    fetcher_of: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, tls = certificate(tmp_path, "wiki.corp")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with pytest.warns(DeprecationWarning):
        tls.minimum_version = ssl.TLSVersion.TLSv1
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    names = Names(wiki_corp=[["127.0.0.1"]])
    async with (
        WebServer(tls) as server,
        fetcher_of([f"wiki.corp:{server.port}"], ["wiki.corp"], names=names) as fetcher,
    ):
        with pytest.raises(SourceUnavailable):
            await fetcher.fetch(reference(server.url("/", "wiki.corp")))
    assert server.requests == []


# -- hostile servers ---------------------------------------------------------------------------------------


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1_000_000)
    return b"".join([packer.compress(zeros) for _ in range(megabytes)]) + packer.flush()


TOO_SLOW, TOO_LONG = "comes at less than 1,000 bytes a second", "of DOCSUM_FETCH__TIMEOUT"
SILENT = "gave no answer within 0.5 s"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PACKED = OK + b"Content-Encoding: gzip\r\n"
LINE = b"X-Filler: " + b"x" * 1000 + b"\r\n"

#: Ended by a cap or by what they say.
HOSTILE: dict[str, tuple[type[FetchError], Callable[[], Answer]]] = {
    "endless body": (SourceTooLarge, lambda: endless(OK + b"\r\n", bytes(65536))),
    "endless chunks": (SourceTooLarge, lambda: endless(CHUNKED, (b"3e8\r\n" + bytes(1000) + b"\r\n") * 50)),
    "endless small chunks": (
        SourceTooLarge,
        lambda: endless(CHUNKED, (b"40\r\n" + bytes(64) + b"\r\n") * 1000),
    ),
    "one huge chunk": (SourceTooLarge, lambda: endless(CHUNKED + b"7fffffffffffffff\r\n", bytes(65536))),
    "chunk of impossible size": (
        SourceUnavailable,
        lambda: endless(CHUNKED + b"f" * 17 + b"\r\n", b"x" * 99),
    ),
    "endless trailers": (SourceUnavailable, lambda: endless(CHUNKED + b"1\r\nx\r\n0\r\n", LINE * 10)),
    "endless headers": (SourceUnavailable, lambda: endless(OK, LINE * 10)),
    "endless tiny headers": (SourceUnavailable, lambda: endless(OK, b"a: b\r\n" * 1000)),
    "one endless header": (SourceUnavailable, lambda: endless(OK + b"X-Long: ", b"x" * 65536)),
    "endless status line": (SourceUnavailable, lambda: endless(b"HTTP/1.1 200 ", b"O" * 65536)),
    "gzip bomb": (SourceTooLarge, lambda: reply(bomb(100), Content_Encoding="gzip")),
    "gzip bomb in chunks": (
        SourceTooLarge,
        lambda: then_close(PACKED + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(bomb(100), 500)),
    ),
    "gzip bomb of many members": (
        SourceTooLarge,
        lambda: endless(PACKED + b"\r\n", gzip.compress(bytes(1_000_000))),
    ),
    "unasked deflate": (SourceUnavailable, lambda: reply(zlib.compress(b"x"), Content_Encoding="deflate")),
    "two packings": (SourceUnavailable, lambda: then_close(PACKED + b"Content-Encoding: br\r\n\r\nx")),
    "packed twice": (SourceUnavailable, lambda: reply(gzip.compress(b"x"), Content_Encoding="gzip, gzip")),
    "unknown packing": (SourceUnavailable, lambda: reply(b"x", Content_Encoding="br")),
    "damaged gzip": (SourceUnavailable, lambda: reply(b"\x1f\x8b\x08garbage", Content_Encoding="gzip")),
    "cut gzip": (
        SourceUnavailable,
        lambda: reply(gzip.compress(os.urandom(9999))[:-20], Content_Encoding="gzip"),
    ),
    "no word": (SourceUnavailable, lambda: then_close(b"")),
    "reset": (SourceUnavailable, lambda: reset),
    "cut headers": (SourceUnavailable, lambda: then_close(OK + b"Content-Le")),
    "cut body": (SourceUnavailable, lambda: then_close(reply(b"half", Content_Length="8"))),
    "cut chunk": (SourceUnavailable, lambda: then_close(CHUNKED + b"8\r\nhalf")),
    "cut between chunks": (SourceUnavailable, lambda: then_close(CHUNKED + b"4\r\nhalf\r\n")),
    "more than announced": (SourceUnavailable, lambda: reply(b"five and more", Content_Length="4")),
    "two lengths": (
        SourceUnavailable,
        lambda: then_close(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ),
    "negative length": (SourceUnavailable, lambda: then_close(reply(b"ab", Content_Length="-2"))),
    "length in words": (SourceUnavailable, lambda: then_close(reply(b"ab", Content_Length="two"))),
    "impossible length": (SourceUnavailable, lambda: then_close(reply(b"ab", Content_Length="9" * 5000))),
    "length and chunks": (
        SourceUnavailable,
        lambda: then_close(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ),
    "garbage": (SourceUnavailable, lambda: then_close(os.urandom(1000))),
    "garbage status line": (SourceUnavailable, lambda: then_close(b"HELLO 200 OK\r\n\r\n")),
    "garbage status": (SourceUnavailable, lambda: then_close(b"HTTP/1.1 OK\r\n\r\n")),
    "status 99": (SourceUnavailable, lambda: then_close(b"HTTP/1.1 99 Low\r\n\r\n")),
    "other protocol": (SourceUnavailable, lambda: then_close(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "switching protocols": (
        SourceUnavailable,
        lambda: then_close(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    ),
    "header without a name": (SourceUnavailable, lambda: then_close(OK + b": x\r\n\r\n")),
    "location of garbage": (
        SourceNotAllowed,
        lambda: then_close(b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\n\r\n"),
    ),
}

#: Ended by the least speed or by the whole time, with what they are told.
SLOW: dict[str, tuple[str, Answer]] = {
    "endless chunk extension": (TOO_SLOW, endless(CHUNKED + b"5;", b"x" * 65536)),
    "endless gzip header": (TOO_SLOW, endless(PACKED + b"\r\n\x1f\x8b\x08\x10" + bytes(6), b"x" * 65536)),
    "endless empty gzip members": (TOO_SLOW, endless(PACKED + b"\r\n", gzip.compress(b"") * 999)),
    "trickle": (TOO_SLOW, endless(OK + b"\r\n", b"x", pause=0.02)),
    "body that stops": (TOO_SLOW, endless(OK + b"\r\n" + b"x" * 99, b"", pause=60)),
    "endless interim answers": (SILENT, endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 100)),
    "trickle of headers": (SILENT, endless(OK + b"X-Slow: ", b"x", pause=0.02)),
    "no answer": (SILENT, silence),
    "slow, but fast enough": (TOO_LONG, endless(OK + b"\r\n", bytes(1000), pause=0.02)),
}


def chunks(content: bytes, size: int) -> bytes:
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def fails(fetcher: HttpFetcher, url: str) -> FetchError:
    """The error of a fetch that must end soon and in little memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(FetchError) as raised:
            await fetcher.fetch(reference(url))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.monotonic() - began < SOON
    assert str(raised.value).isprintable()
    return raised.value


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_server_costs_little_time_and_memory(
    fetcher: HttpFetcher, server: WebServer, tmp_path: Path, name: str
) -> None:
    error, answer = HOSTILE[name]
    server.answers["/a"] = answer()
    assert type(await fails(fetcher, server.url("/a"))) is error
    assert not files(tmp_path)


@pytest.mark.parametrize("name", SLOW)
async def test_a_slow_server_costs_little_memory_and_not_for_ever(
    fetcher_of: Open, server: WebServer, tmp_path: Path, name: str
) -> None:
    said, server.answers["/a"] = SLOW[name]
    hosts = [f"127.0.0.1:{server.port}"]
    async with fetcher_of(hosts, ["127.0.0.1"], timeout=2, patience=0.5) as fetcher:
        error = await fails(fetcher, server.url("/a"))
    assert type(error) is SourceUnavailable
    assert said in str(error)
    assert not files(tmp_path)


async def test_a_refused_connection(fetcher_of: Open) -> None:
    with socket.socket() as free:  # bound, and nobody listens
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with fetcher_of([f"127.0.0.1:{port}"], ["127.0.0.1"]) as fetcher:
            with pytest.raises(SourceUnavailable, match="there is no connection"):
                await fetcher.fetch(reference(f"http://127.0.0.1:{port}/"))


async def test_a_slow_host_takes_no_place_from_others(fetcher_of: Open, server: WebServer) -> None:
    server.answers["/slow"] = silence
    server.answers["/fast"] = reply(b"fast")
    async with fetcher_of([f"127.0.0.1:{server.port}"], ["127.0.0.1"]) as fetcher:
        slow = [asyncio.create_task(fetcher.fetch(reference(server.url("/slow")))) for _ in range(150)]
        await eventually(lambda: len(server.requests) == 150)
        assert (await fetcher.fetch(reference(server.url("/fast")))).content == b"fast"
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
