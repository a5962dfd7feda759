"""The one ClickHouse client of a process, and what its errors mean in our terms."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from clickhouse_connect import get_async_client
from clickhouse_connect.driver import exceptions, options
from clickhouse_connect.driver.asyncclient import AsyncClient

from docsum.errors import (
    ConfigurationError,
    DocsumError,
    RowRefused,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
)
from docsum.settings import ClickHouse
from docsum.stores.tables import Values

#: A query with its parameters by name -> its rows.
Ask = Callable[..., Awaitable[Sequence[Values]]]

CUT_BODY = 33  # cannot read all data
#: What the client imports when it is installed, and we never ask for: 100 MB and a second a process.
_UNWANTED = ("np", "pd", "pd_time_test", "arrow", "pl")
#: The rows are wrong, whoever sends them: cannot parse, type mismatch, value out of range.
#: 33 is also what a connection lost in the middle of an insert looks like: it counts when it repeats.
ROW_CODES = frozenset({6, 26, 27, CUT_BODY, 38, 41, 53, 69, 70, 131, 349, 407})
#: The deployment is wrong: no such table, column, database, setting or user, or not allowed.
DEPLOYMENT_CODES = frozenset({16, 47, 60, 62, 81, 115, 164, 192, 193, 497, 516})
#: Errors without a server's code, by class or ancestor; what is not here counts as unavailable.
ERRORS: dict[type[Exception], type[StoreError | StoreMisconfigured]] = {
    exceptions.ClickHouseError: StoreUnavailable,
    exceptions.Warning: StoreUnavailable,
    exceptions.Error: StoreUnavailable,
    exceptions.DatabaseError: StoreUnavailable,  # an HTTP status without a code: something in between
    exceptions.OperationalError: StoreUnavailable,
    exceptions.InternalError: StoreUnavailable,
    exceptions.StreamClosedError: StoreUnavailable,
    exceptions.StreamCompleteException: StoreUnavailable,
    exceptions.StreamFailureError: StoreUnavailable,
    exceptions.DataError: RowRefused,
    exceptions.IntegrityError: RowRefused,
    UnicodeEncodeError: RowRefused,
    # The client itself says no: a setting that the server does not have, or a fault of ours.
    exceptions.InterfaceError: StoreMisconfigured,
    exceptions.NotSupportedError: StoreMisconfigured,
    exceptions.ProgrammingError: StoreMisconfigured,
    TimeoutError: StoreUnavailable,
}
_SENTENCE = re.compile(r"DB::Exception: (.*)", re.DOTALL)
_NAME = re.compile(r"\s*\(([A-Z][A-Z0-9_]+)\)\s*$")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, as the client library wants it: it ignores the scheme of a DSN."""

    host: str
    port: int
    secure: bool
    path: str

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_url(url: str) -> Address:
    """`http(s)://host[:port][/path]`; raises ConfigurationError for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError("DOCSUM_CLICKHOUSE__URL is not a URL: write https://host:8443.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            "DOCSUM_CLICKHOUSE__URL must look like http://host:8123 or https://host:8443."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "DOCSUM_CLICKHOUSE__URL must be an address alone: "
            "put the user and the password into DOCSUM_CLICKHOUSE__USER and DOCSUM_CLICKHOUSE__PASSWORD."
        )
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (8443 if secure else 8123), secure, parts.path.strip("/"))


async def connect(
    settings: ClickHouse, *, database: str | None, patience: timedelta = timedelta(seconds=30)
) -> AsyncClient:
    """A client on this event loop; `database` None for one that may not exist yet. Raises StoreError.

    `patience` is the longest silence of the server.
    """
    address = parse_url(settings.url)
    _check_authority(settings, address)
    for library in _UNWANTED:
        setattr(options, library, None)
    with translated():
        return await get_async_client(
            host=address.host,
            port=address.port,
            secure=address.secure,
            interface="https" if address.secure else "http",
            proxy_path=address.path,
            ca_cert=settings.ssl_ca_location or None,
            username=settings.user,
            password=settings.password.get_secret_value(),
            database=database,
            client_name="docsum",
            compress=not address.loopback,  # by lz4, or zstd where lz4 is not installed
            connector_limit=32,
            connector_limit_per_host=32,
            connect_timeout=5,
            send_receive_timeout=patience.total_seconds(),
            autogenerate_session_id=False,
            tz_mode="aware",
            # A server gathers the small inserts of many workers; the embedded engine ignores it.
            settings={"async_insert": 1, "wait_for_async_insert": 1},
        )


def _check_authority(settings: ClickHouse, address: Address) -> None:
    name, setting = settings.ssl_ca_location, "DOCSUM_CLICKHOUSE__SSL_CA_LOCATION"
    if not name:
        return
    if not address.secure:
        raise ConfigurationError(f"{setting} is set, but DOCSUM_CLICKHOUSE__URL is no https:// address.")
    try:
        ssl.create_default_context(cafile=name)
    except ssl.SSLError as error:
        raise ConfigurationError(f"The file of {setting}, {name}, holds no certificate.") from error
    except OSError as error:
        raise ConfigurationError(
            f"{setting} names {name}, which cannot be read: {error.strerror}."
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Errors leave as StoreUnavailable, StoreMisconfigured or RowRefused; ours and cancellation pass."""
    try:
        yield
    except DocsumError:
        raise
    except Exception as error:
        raise translate(error) from error


def translate(error: Exception) -> StoreError | StoreMisconfigured:
    """By code, since the library's classes say little; what is unknown counts as unavailable."""
    code = getattr(error, "code", None)
    if not isinstance(code, int):
        kind = next((ERRORS[ancestor] for ancestor in type(error).__mro__ if ancestor in ERRORS), None)
        if kind is RowRefused:
            return RowRefused(f"The row cannot be written: {type(error).__name__}.")
        if kind is StoreMisconfigured:
            return StoreMisconfigured(f"ClickHouse cannot be asked: {_first_line(str(error))}.")
        if certificate := _certificate_trouble(error):
            return StoreMisconfigured(
                f"The certificate of ClickHouse is not trusted ({certificate}): "
                "correct DOCSUM_CLICKHOUSE__SSL_CA_LOCATION or the host of DOCSUM_CLICKHOUSE__URL."
            )
        if isinstance(error, TimeoutError):
            return StoreUnavailable("ClickHouse did not answer in time.")
        return StoreUnavailable(f"ClickHouse cannot be reached: {_first_line(str(error))}.")
    name = getattr(error, "name", None) or "error"
    if code in ROW_CODES:  # the server's sentence may quote the row: it stays out
        return RowRefused(f"ClickHouse refuses the row: {code} {name}.")
    said = f"{code} {name}: {_said(str(error))}."
    if code in DEPLOYMENT_CODES:
        return StoreMisconfigured(f"ClickHouse answers {said}")
    return StoreUnavailable(f"ClickHouse answers {said}")


def _certificate_trouble(error: BaseException | None) -> str:
    """What is wrong with it, somewhere behind the error; empty when it is something else."""
    while error is not None:
        found = getattr(error, "certificate_error", error)  # aiohttp has it inside its own
        if isinstance(found, ssl.SSLCertVerificationError):
            return found.verify_message
        error = error.__cause__ or error.__context__
    return ""


def code_of(error: BaseException) -> int | None:
    """The server's code behind a translated error."""
    code = getattr(error.__cause__, "code", None)
    return code if isinstance(code, int) else None


def _said(text: str) -> str:
    match = _SENTENCE.search(text)
    return _first_line(match[1] if match else text)


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0].partition(" (for url")[0]
    line = re.sub(r"\s*\(version .*| ssl:\w+ \[.*", "", line)  # the second is aiohttp's
    return _NAME.sub("", line).strip().rstrip(".")[:300] or "no reason was given"
