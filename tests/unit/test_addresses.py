"""Every trick that leads a fetcher elsewhere, as a table: what is refused, what passes, and what both say."""

from __future__ import annotations

import inspect
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import (
    ConfigurationError,
    FetchError,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnavailable,
)
from docsum.fetchers.addresses import AddressGuard, refusal
from docsum.fetchers.http import (
    TRANSLATIONS,
    check_status,
    is_outdated,
    retry_after,
    source_version,
    translated,
)

#: What the tricks would mean is allowed here wherever possible: they must fail for what they are.
NAMES = ["example.org", "*.example.net", "example.com:8443", "localhost", "k8s.example", "bücher.example"]
LITERALS = ["127.0.0.1", "::1", "0.0.0.0", "::", "10.0.0.7", "172.16.0.1", "93.184.216.34", "fd12::1"]
BAD_LITERALS = [
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "fd00:ec2::254",
    "fe80::1",
    "224.0.0.1",
]
LISTED = NAMES + LITERALS + BAD_LITERALS
PRIVATE = [name for name in LISTED if name not in ("10.0.0.7", "example.org")]
GUARD = AddressGuard(LISTED, PRIVATE)

TRICKS = (
    # numbers that the C library takes for 127.0.0.1
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://0X7F.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://127.0.0.0x1/",
    "http://127.000.000.001/",
    "http://127.0.0.1.0x/",
    "http://127.0.0.256/",
    "http://127.0.0.1.1/",
    "http://1/",
    "http://0/",
    # other scripts and invisible characters
    "http://１２７.０.０.１/",
    "http://127。0。0。1/",
    "http://127．0．0．1/",
    "http://127｡0｡0｡1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://١٢٧.٠.٠.١/",
    "http://ｅxample.org/",
    "http://example。org/",
    "http://ℯxample.org/",
    "http://\u212a8s.example/",
    "http://loc\u00adalhost/",
    "http://local\u200bhost/",
    # percent-encoding
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%2f@example.org/",
    "http://example%2eorg/",
    "http://example.org%00.evil.test/",
    "http://example.org%23@evil.test/",
    # IPv6
    "http://[::1%25lo]/",
    "http://[::1%lo]/",
    "http://[fe80::1%25eth0]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::0001]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::FFFF:7f00:1]/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[127.0.0.1]/",
    "http://[v1.fe80::]/",
    "http://[]/",
    # who is the host?
    "http://user:secret@example.org/",
    "http://user@example.org/",
    "http://@example.org/",
    "http://example.org@evil.test/",
    "http://evil.test#@example.org/",
    "http://evil.test?@example.org/",
    "http://evil.test\\@example.org/",
    "http://example.org\\@evil.test/",
    "http:\\\\example.org/",
    "http:/example.org/",
    "http:example.org/",
    "http:///example.org/",
    "http:////example.org/",
    "//example.org/",
    "example.org/",
    # other schemes
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "httpx://example.org/",
    "javascript:alert(1)",
    "data:text/plain,hello",
    "unix:///var/run/docker.sock",
    "http+unix://%2fvar%2frun%2fdocker.sock/",
    "ws://example.org/",
    # empty and broken hosts
    "http://",
    "http:///",
    "http://:80/",
    "http://./",
    "http://../",
    "http://.example.org/",
    "http://example..org/",
    "http://example.org../",
    "http://-example.org/",
    "http://a.example.net-/",
    "http://exam_ple*.org/",
    # ports
    "http://example.org:/",
    "http://example.org:0/",
    "http://example.org:00080/",
    "http://example.org:65536/",
    "http://example.org:99999999999/",
    "http://example.org:+80/",
    "http://example.org:-80/",
    "http://example.org:８０/",
    "http://example.org:80:80/",
    "http://example.org:8080/",
    "http://example.org:443/",
    "https://example.org:80/",
    "https://example.com/",
    "http://example.com:8444/",
    # white space and control characters
    "http://example.org\t/",
    "http://example.org /",
    " http://example.org/",
    "\nhttp://example.org/",
    "http://example.org/a b",
    "http://example.org/a\tb",
    "http://example.org/\r\nHost: evil.test",
    "http://example.org/\u2028",
    "http://example.org/\udcff",
    "http://example.org/\x00",
    "http://example.org/a\\b",
    # not listed
    "http://example.net/",
    "http://evilexample.net/",
    "http://example.net.evil.test/",
    "http://example.org.evil.test/",
    "http://evil.test/",
    "http://www.example.org/",
    "http://127.0.0.2/",
    "http://[::2]/",
    "http://93.184.216.35/",
    "http://metadata.google.internal/",
    # listed, and refused all the same
    "http://10.0.0.7/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://224.0.0.1/",
    "http://0.0.0.0/",
    "http://[::]/",
)

#: What passes, and what is then asked for.
GOOD = (
    ("http://example.org/", "http://example.org/"),
    ("http://example.org", "http://example.org/"),
    ("HTTP://EXAMPLE.ORG/A/b", "http://example.org/A/b"),
    ("http://example.org./a", "http://example.org/a"),
    ("http://example.org:80/a", "http://example.org/a"),
    ("https://example.org/a#part", "https://example.org/a"),
    ("https://example.org:443?a=1", "https://example.org/?a=1"),
    ("https://example.org/a%20b/%2e%2e/%41?x=%2F&y[]=1", "https://example.org/a%20b/%2e%2e/%41?x=%2F&y[]=1"),
    ("https://example.org/Übersicht|1", "https://example.org/%C3%9Cbersicht%7C1"),
    ("https://example.org/me@home:80/..", "https://example.org/me@home:80/.."),
    ("https://a.example.net/", "https://a.example.net/"),
    ("https://b.a.example.net/", "https://b.a.example.net/"),
    ("https://127.0.0.1.example.net/", "https://127.0.0.1.example.net/"),
    ("https://my_wiki.example.net/", "https://my_wiki.example.net/"),
    ("http://example.com:8443/", "http://example.com:8443/"),
    ("https://example.com:8443/", "https://example.com:8443/"),
    ("https://bücher.example/", "https://xn--bcher-kva.example/"),
    ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
    ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
    ("http://localhost/", "http://localhost/"),
    ("http://127.0.0.1/", "http://127.0.0.1/"),
    ("http://[::1]/", "http://[::1]/"),
    ("http://[FD12::1]/", "http://[fd12::1]/"),
    ("http://93.184.216.34/", "http://93.184.216.34/"),
)

#: Addresses that a name must never lead to, not even that of a private host.
NEVER = """
    0.0.0.0 0.0.0.1 169.254.0.1 169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 168.63.129.16
    192.0.0.192 192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255 :: fe80::1 fe80::1%eth0 febf::1 ff02::1 ff0e::1 fd00:ec2::254
    fd00:ec2::23 fd20:ce::254 fd00:42::42 fd00:c1::a9fe:a9fe fec0::1 100::1 2001:db8::1 3fff::1 2001:2::1
    2001:10::1 4000::1 5f00::1 e000::1 ::1%lo ::7f00:1 ::a00:1 ::808:808 ::ffff:0:7f00:1 ::ffff:0:808:808
    ::ffff:169.254.169.254 ::ffff:0.0.0.0 ::ffff:100.100.100.200 64:ff9b::7f00:1 64:ff9b::a00:1
    64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe::1 2001:0:7f00:1::1
    2001:0:4136:e378:8000:63bf:80ff:fffe 2001:0:808:808:0:0:f7f7:f7f7 2a00::5efe:7f00:1
    2a00::200:5efe:a9fe:a9fe fd12::5efe:a9fe:a9fe
""".split()
#: And those that only a private host may be at.
INTERNAL = """
    127.0.0.1 127.255.255.254 10.0.0.7 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255
    ::1 fc00::1 fd12:3456:789a::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:192.168.0.1
""".split()
PUBLIC = """
    8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 192.0.1.1 223.255.255.255
    2606:4700::1111 2a00:1450:4001:829::200e 2001:4860:4860::8888 2620:4f:8000::1 ::ffff:8.8.8.8
    64:ff9b::808:808 2002:808:808::1 2a00::5efe:808:808
""".split()


@pytest.mark.parametrize("url", TRICKS)
def test_a_trick_is_refused_with_one_sentence(url: str) -> None:
    with pytest.raises(SourceNotAllowed) as refused:
        GUARD.target(url)
    message = str(refused.value)
    assert message.isprintable()
    assert message.endswith(".")
    assert "secret" not in message


def test_there_are_enough_tricks() -> None:
    assert len(set(TRICKS)) >= 60
    assert len(set(NEVER)) >= 60


@pytest.mark.parametrize(("url", "asked"), GOOD)
def test_a_good_address_is_asked_for_as_it_was_written(url: str, asked: str) -> None:
    assert GUARD.target(url).url == asked


@pytest.mark.parametrize("address", NEVER)
def test_nothing_is_ever_read_there(address: str) -> None:
    assert refusal(ip_address(address))
    assert refusal(ip_address(address), private=True)
    with pytest.raises(SourceNotAllowed, match="whatever DOCSUM_FETCH__HOSTS names"):
        GUARD.check("localhost", 80, [address])


@pytest.mark.parametrize("address", INTERNAL)
def test_only_a_private_host_is_read_there(address: str) -> None:
    assert refusal(ip_address(address))
    assert not refusal(ip_address(address), private=True)
    with pytest.raises(SourceNotAllowed, match="DOCSUM_FETCH__PRIVATE_HOSTS does not name it"):
        GUARD.check("example.org", 80, [address])
    assert GUARD.check("localhost", 80, [address]) == [ip_address(address)]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert not refusal(ip_address(address))
    assert GUARD.check("example.org", 80, [address]) == [ip_address(address)]


@pytest.mark.parametrize("found", [["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]])
def test_one_bad_address_refuses_the_host(found: list[str]) -> None:
    with pytest.raises(SourceNotAllowed):
        GUARD.check("example.org", 80, found)


@pytest.mark.parametrize("nonsense", ["", "example.org", "127.1", "0177.0.0.1", "1.2.3.4 ", "[::1]"])
def test_what_is_no_address_is_refused(nonsense: str) -> None:
    with pytest.raises(SourceNotAllowed, match="is no address"):
        GUARD.check("localhost", 80, [nonsense])


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_that_python_knows_as_special_passes(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert refusal(address)


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_python_knows_as_special_passes(address: IPv6Address) -> None:
    if address.ipv4_mapped or address.sixtofour or address in IPv6Network("64:ff9b::/96"):
        return  # what they carry decides
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_site_local:
        assert refusal(address)


@given(st.text())
def test_any_text_is_an_address_or_a_refusal(text: str) -> None:
    for url in (text, f"http://{text}/", f"http://example.org{text}"):
        with suppress(SourceNotAllowed):
            assert GUARD.target(url).url.isascii()


def test_nothing_may_be_read_until_a_host_is_named() -> None:
    with pytest.raises(SourceNotAllowed, match="no host may be read until DOCSUM_FETCH__HOSTS names it"):
        AddressGuard([], ["example.org"]).target("https://example.org/")


def test_private_alone_is_not_enough() -> None:
    with pytest.raises(SourceNotAllowed, match="DOCSUM_FETCH__HOSTS does not name its host"):
        AddressGuard(["example.org"], ["wiki.corp"]).target("https://wiki.corp/")


def test_the_port_is_named_in_the_refusal() -> None:
    with pytest.raises(SourceNotAllowed, match="without port 8080"):
        GUARD.target("http://example.org:8080/")


def test_a_private_entry_may_name_one_port() -> None:
    guard = AddressGuard(["wiki.corp", "wiki.corp:8443"], ["wiki.corp:8443"])
    assert guard.check("wiki.corp", 8443, ["10.0.0.1"])
    with pytest.raises(SourceNotAllowed):
        guard.check("wiki.corp", 80, ["10.0.0.1"])


@pytest.mark.parametrize(
    "entry",
    (
        "https://example.org example.org/a * *. *.*.org a.*.org *example.org example.org: example.org:0 . "
        "example.org:65536 127.1 2130706433 *.127.0.0.1 *.::1 [::01] 10.0.0.0/8 user@example.org "
        "::ffff:10.0.0.1 [*.example.org] [::1]:80:80"
    ).split(),
)
def test_a_wrong_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_FETCH__HOSTS holds"):
        AddressGuard([entry], [])
    with pytest.raises(ConfigurationError, match="DOCSUM_FETCH__PRIVATE_HOSTS holds"):
        AddressGuard([], [entry])


@pytest.mark.parametrize("location", ["b", "/a/b", "./x/../b", "//example.org/a/b", "http://example.org/a/b"])
def test_redirects_within_the_list_are_followed(location: str) -> None:
    origin = GUARD.target("http://example.org/a/start")
    assert GUARD.redirect(origin, location).url == "http://example.org/a/b"


@pytest.mark.parametrize(
    "location",
    [trick for trick in TRICKS if ":" in trick]
    + [
        "//evil.test/",
        "///evil.test/",
        "http:evil.test",
        "\\\\evil.test/",
        "/\\evil.test",
        "//evil.test\\@example.org/",
        "http://[/",
        "a b",
        "\t",
    ],
)
def test_a_redirect_is_checked_like_a_first_address(location: str) -> None:
    with pytest.raises(SourceNotAllowed, match=r"^'http://example\.org/' redirects "):
        GUARD.redirect(GUARD.target("http://example.org/"), location)


@pytest.mark.parametrize("location", ["", "?", "#", "evil.test", "./evil.test:80/", "@evil.test"])
def test_a_redirect_without_a_host_stays_where_it_is(location: str) -> None:
    assert GUARD.redirect(GUARD.target("http://example.org/"), location).host.name == "example.org"


def test_a_redirect_never_leaves_https() -> None:
    with pytest.raises(SourceNotAllowed, match="it would leave https for http"):
        GUARD.redirect(GUARD.target("https://example.org/"), "http://example.org/")
    assert GUARD.redirect(GUARD.target("http://example.org/"), "https://example.org/").scheme == "https"


def test_a_signature_is_never_shown() -> None:
    assert "s3cret" not in GUARD.target("https://example.org/a?signature=s3cret").shown
    with pytest.raises(SourceNotAllowed) as refused:
        GUARD.target("https://evil.test/a?signature=s3cret")
    assert "s3cret" not in str(refused.value)


# -- what an answer means ----------------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MONDAY, TUESDAY = "Mon, 05 Jan 2026 08:00:00 GMT", "Tue, 06 Jan 2026 08:00:00 GMT"


@pytest.mark.parametrize("status", [200, 203, 204])
def test_a_document(status: int) -> None:
    check_status(status, {}, "a", NOW)


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (SourceNotFound, [400, 404, 405, 406, 410, 414, 418, 422, 499]),
        (SourceForbidden, [401, 402, 403, 407, 451]),
        (SourceUnavailable, [408, 425, 429, 500, 502, 503, 504, 520, 599, 600, 999]),
        (SourceUnavailable, [101, 201, 202, 205, 206, 226, 300, 304, 305]),
    ],
)
def test_every_other_status_has_its_error(error: type[FetchError], statuses: list[int]) -> None:
    for status in statuses:
        with pytest.raises(error, match=f"'a' answered {status}") as raised:
            check_status(status, {}, "a", NOW)
        assert type(raised.value) is error


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("120", timedelta(seconds=120)),
        ("0", timedelta(0)),
        ("999999999", timedelta(hours=1)),
        ("Sun, 01 Mar 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Mon, 01 Mar 2027 12:00:00 GMT", timedelta(hours=1)),
        ("Sat, 01 Mar 2025 12:00:00 GMT", timedelta(0)),
        ("-5", None),
        ("soon", None),
        ("99999999999999999999", None),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None),
        ("", None),
    ],
)
def test_retry_after(text: str, wait: timedelta | None) -> None:
    assert retry_after({"Retry-After": text}, NOW) == wait
    with pytest.raises(SourceUnavailable) as raised:
        check_status(503, {"Retry-After": text}, "a", NOW)
    assert raised.value.retry_after == wait


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"abc"', "Last-Modified": MONDAY}, '"abc"'),
        ({"ETag": 'W/"abc"', "Last-Modified": MONDAY}, f"{MONDAY}, 7 bytes"),
        ({"ETag": '"a\udcffc"'}, ""),
        ({"ETag": '"' + "a" * 8000 + '"'}, ""),
        ({"Last-Modified": "yesterday"}, ""),
        ({}, ""),
    ],
)
def test_the_source_version(headers: dict[str, str], version: str) -> None:
    assert source_version(headers, 7) == version


@pytest.mark.parametrize(
    ("announced", "found", "outdated"),
    [
        (TUESDAY, MONDAY, True),
        (f"{TUESDAY}, 7 bytes", MONDAY, True),
        (MONDAY, MONDAY, False),
        (MONDAY, TUESDAY, False),
        (TUESDAY, "", False),
        ('"abc"', MONDAY, False),
        ("", MONDAY, False),
        (TUESDAY, "yesterday", False),
    ],
)
def test_only_dates_have_an_order(announced: str, found: str, outdated: bool) -> None:
    assert is_outdated({"Last-Modified": found}, announced) is outdated


def exported_errors() -> set[type[Exception]]:
    modules = [aiohttp.client, aiohttp.client_exceptions]
    found = {
        value for module in modules for name, value in inspect.getmembers(module) if name in module.__all__
    }
    everywhere = {value for _, value in inspect.getmembers(aiohttp) if inspect.isclass(value)}
    return {value for value in found if inspect.isclass(value) and issubclass(value, Exception)} | {
        value for value in everywhere if issubclass(value, aiohttp.ClientError)
    }


def test_every_error_of_the_client_has_a_translation() -> None:
    assert len(exported_errors()) > 20
    assert exported_errors() <= set(TRANSLATIONS)


@pytest.mark.parametrize("kind", TRANSLATIONS)
def test_a_translation_is_one_sentence(kind: type[Exception]) -> None:
    error = translated(kind.__new__(kind), "a")
    assert isinstance(error, FetchError)
    assert str(error).startswith("'a' could not be fetched: ")
