"""What http(s) may read or tell: which hosts by name, and which of the addresses that they turn out to be at.

Decisions only, no network. Whatever two programs could read differently is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import quote, urljoin

import idna

from docsum.errors import ConfigurationError, SourceNotAllowed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)((?:\?[^#]*)?)(?:#.*)?", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_AUTHORITY = re.compile(
    r"(?:\[(?P<literal>[0-9A-Fa-f:]+)\]|(?P<name>[^:@\[\]%]+))(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label: the C library takes the host for an address
_KEPT = "%/?:@!$&'()*+,;=~-._[]"  # of a path and query; all else is percent-encoded

# From the registries of special-purpose addresses of IANA, and the address of every cloud's metadata service
# that is not link-local. Not from `ipaddress.is_global`, which changes from one Python to the next.
_NEVER: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for what, networks in {
        "a metadata service": "100.100.100.200 168.63.129.16 192.0.0.192 169.254.169.254 169.254.170.2 "
        "169.254.170.23 fd00:ec2::/32 fd20:ce::254 fd00:42::42 fd00:c1::a9fe:a9fe",
        "an unspecified address": "0.0.0.0/8 ::",
        "a link-local address": "169.254.0.0/16 fe80::/10",
        "a multicast address": "224.0.0.0/4 ff00::/8",
        "a benchmarking address": "198.18.0.0/15 2001:2::/48",
        "a documentation address": "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
        "a reserved address": "192.0.0.0/24 192.88.99.0/24 240.0.0.0/4 fec0::/10 2001::/23",
    }.items()
    for network in networks.split()
)
_PRIVATE: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for what, networks in {
        "a loopback address": "127.0.0.0/8 ::1",
        "a private address": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
        "a shared address": "100.64.0.0/10",
    }.items()
    for network in networks.split()
)
_GLOBAL = IPv6Network("2000::/3")  # the only part of IPv6 that is given out for global unicast
_NAT64 = IPv6Network("64:ff9b::/96")
_IN_THE_LAST_BITS = (_NAT64, IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"))


# -- addresses ---------------------------------------------------------------------------------------------


def refusal(address: Address, private: bool = False) -> str:
    """What an address is, if nothing may be read there; empty if it may. `private`: internal ones may."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "an address of one network interface"
        if address.ipv4_mapped is not None:
            return refusal(address.ipv4_mapped, private)
        for inner in _embedded(address):
            if why := refusal(inner):
                return f"which leads to {inner}, {why}"
        if address in _NAT64:
            return ""
    for network, what in _NEVER:
        if address in network:
            return what
    for network, what in _PRIVATE:
        if address in network:
            return "" if private else what
    if isinstance(address, IPv6Address) and address not in _GLOBAL:
        return "a reserved address"
    return ""


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that a gateway or tunnel may take an IPv6 address for."""
    bits = int(address)
    if bits > 1 and any(address in network for network in _IN_THE_LAST_BITS):  # :: and ::1 are no carriers
        yield IPv4Address(bits & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if bits >> 32 & 0xFCFFFFFF == 0x5EFE:  # ISATAP, RFC 5214
        yield IPv4Address(bits & 0xFFFFFFFF)


# -- hosts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Host:
    """A host in the one form that is compared and connected to: ASCII, lower case, no trailing dot."""

    name: str
    address: Address | None = None  # of an IP literal

    @classmethod
    def parse(cls, text: str, literal: bool) -> Self:
        """Raises ValueError with the reason. `literal`: it stood in brackets."""
        if literal:
            address = IPv6Address(text)
            if address.ipv4_mapped is not None or str(address) != text.lower():
                raise ValueError("the IPv6 address is not in its canonical form")
            return cls(str(address), address)
        labels = [_ascii_label(label) for label in text.removesuffix(".").split(".")]
        name = ".".join(labels)
        if len(name) > 253:
            raise ValueError("the host name is too long")
        if not _NUMBER.fullmatch(labels[-1]):
            return cls(name)
        try:
            return cls(name, IPv4Address(name))
        except ValueError:
            raise ValueError("the host is a number, not an address such as 192.0.2.1") from None

    @property
    def in_url(self) -> str:
        return f"[{self.name}]" if isinstance(self.address, IPv6Address) else self.name


def _ascii_label(label: str) -> str:
    """By IDNA 2008, without its mappings: full-width and other look-alike forms of ASCII are refused."""
    lowered = label.lower()
    if label.isascii():
        if _LABEL.fullmatch(lowered):
            return lowered
    elif not lowered.isascii():
        try:
            return idna.alabel(lowered).decode()
        except idna.IDNAError:
            pass
    raise ValueError("the host is not a plain name")


@dataclass(frozen=True, slots=True)
class HostPattern:
    """An entry of an allow-list: `example.org`, `*.example.org` or an IP literal, perhaps with a port."""

    name: str
    subdomains: bool
    port: int | None

    @classmethod
    def parse(cls, text: str, setting: str) -> Self:
        """Raises ConfigurationError."""
        rest = text.removeprefix("*.")
        if rest.count(":") > 1 and "[" not in rest:
            rest = f"[{rest}]"
        try:
            host, port = _authority(rest)
            if text.startswith("*.") and host.address is not None:
                raise ValueError("an address has no sub-domains")
        except ValueError as error:
            raise ConfigurationError(
                f"{setting} holds {text!r}: {error}. Write example.org, *.example.org or example.org:8443."
            ) from error
        return cls(host.name, text.startswith("*."), port)

    def covers(self, host: Host) -> bool:
        return host.name.endswith(f".{self.name}") if self.subdomains else host.name == self.name


def _authority(text: str) -> tuple[Host, int | None]:
    """Host and port. Raises ValueError with the reason."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("the host or port is missing or not plainly written")
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > 65535:
        raise ValueError("the port is above 65535")
    return Host.parse(match["literal"] or match["name"], match["literal"] is not None), port


# -- whole addresses of documents --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """An http(s) address that may be asked: its host is allowed, its addresses are checked on connecting."""

    scheme: str
    host: Host
    port: int
    path: str  # percent-encoded, never empty
    query: str  # percent-encoded, with its question mark; may hold a signature, so it is never shown

    @property
    def url(self) -> str:
        return f"{self._origin}{self.path}{self.query}"

    @property
    def shown(self) -> str:
        """For messages."""
        return f"{self._origin}{self.path}"[:200]

    @property
    def _origin(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host.in_url}{port}"


class AddressGuard:
    """Deny by default: what is not listed is refused, and so is a listed name that leads to a bad address."""

    def __init__(
        self,
        hosts: Sequence[str] | None,
        private_hosts: Sequence[str],
        private_setting: str = "DOCSUM_FETCH__PRIVATE_HOSTS",
    ) -> None:
        """`hosts` None: any, at public addresses. `private_setting`: which setting lists `private_hosts`.

        Raises ConfigurationError. An entry of `private_hosts` without a port covers every allowed port.
        """
        self._any_host = hosts is None
        self._hosts = [HostPattern.parse(text, "DOCSUM_FETCH__HOSTS") for text in hosts or ()]
        self._private = [HostPattern.parse(text, private_setting) for text in private_hosts]
        self._private_setting = private_setting
        self._listing = private_setting if self._any_host else "DOCSUM_FETCH__HOSTS"

    def target(self, uri: str) -> Target:
        """Raises SourceNotAllowed."""
        target = _parse(uri)
        self._check_host(target)
        if target.host.address is not None:  # nothing resolves it, so nothing checks it later
            self.check(target.host.name, target.port, [target.host.name])
        return target

    def redirect(self, origin: Target, location: str) -> Target:
        """Where a redirect leads, checked like a first address. Raises SourceNotAllowed."""
        try:
            target = self.target(_absolute(origin, location))
            if (origin.scheme, target.scheme) == ("https", "http"):
                raise SourceNotAllowed(f"{target.shown!r} is refused: it would leave https for http.")
        except ValueError as error:
            raise SourceNotAllowed(f"{origin.shown!r} redirects to no proper address: {error}.") from error
        except SourceNotAllowed as error:
            raise SourceNotAllowed(f"{origin.shown!r} redirects elsewhere: {error}") from error
        return target

    def check(self, name: str, port: int, found: Sequence[str]) -> list[Address]:
        """The addresses of a host, if every one of them may be connected to. Raises SourceNotAllowed."""
        private = self.may_be_private(Host(name), port)
        return [self._checked(name, text, private) for text in found]

    def may_be_private(self, host: Host, port: int) -> bool:
        """Whether internal addresses are allowed to this host."""
        return any(entry.covers(host) and entry.port in (None, port) for entry in self._private)

    def _check_host(self, target: Target) -> None:
        if self._any_host:
            return
        if not self._hosts:
            raise SourceNotAllowed(
                f"{target.shown!r} is refused: no host may be read until DOCSUM_FETCH__HOSTS names it."
            )
        covering = [entry for entry in self._hosts if entry.covers(target.host)]
        if not covering:
            raise SourceNotAllowed(
                f"{target.shown!r} is refused: DOCSUM_FETCH__HOSTS does not name its host."
            )
        if all(target.port != (entry.port or _PORTS[target.scheme]) for entry in covering):
            raise SourceNotAllowed(
                f"{target.shown!r} is refused: DOCSUM_FETCH__HOSTS names its host without port {target.port}."
            )

    def _checked(self, name: str, text: str, private: bool) -> Address:
        try:
            address = ip_address(text)
        except ValueError:
            raise SourceNotAllowed(f"The host {name!r} is refused: {text!r} is no address.") from None
        why = refusal(address, private)
        if not why:
            return address
        if refusal(address, private=True):
            raise SourceNotAllowed(
                f"The host {name!r} is refused: it is at {address}, {why}, and nothing is asked there, "
                f"whatever {self._listing} names."
            )
        raise SourceNotAllowed(
            f"The host {name!r} is refused: it is at {address}, {why}, and {self._private_setting} "
            "does not name it."
        )


def _parse(uri: str) -> Target:
    try:
        _check_characters(uri)
        match = _URL.fullmatch(uri)
        if match is None:
            raise ValueError("it does not begin with http:// or https://")
        scheme, authority, path, query = match.groups()
        if "@" in authority:
            raise ValueError("it holds a user name or password")
        host, port = _authority(authority)
    except ValueError as error:
        raise SourceNotAllowed(f"{_without_secrets(uri)!r} is refused: {error}.") from error
    scheme = scheme.lower()
    return Target(
        scheme, host, port or _PORTS[scheme], quote(path, safe=_KEPT) or "/", quote(query, safe=_KEPT)
    )


def _absolute(origin: Target, location: str) -> str:
    """Only paths are joined: urljoin and browsers read `http:///host` and `http:host` differently."""
    _check_characters(location)
    if _SCHEME.match(location):
        return location
    if location.startswith("//"):
        return f"{origin.scheme}:{location}"
    return urljoin(origin.url, location)


def _check_characters(text: str) -> None:
    for character in text:
        if character == "\\" or character.isspace() or not character.isprintable():
            raise ValueError(f"it holds the character {character!r}, which must be percent-encoded")


def _without_secrets(uri: str) -> str:
    """An address that could not be read, without its query and without what may be a password."""
    return re.sub(r"[^/]*@", "…@", re.split(r"[?#]", uri, maxsplit=1)[0])[:200]
