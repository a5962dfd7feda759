"""One set of settings, three clients: how each is told to reach and to trust the brokers, and as whom.

aiokafka (and so Faust) takes an SSL context. Ours looks at its files before every handshake, so that renewed
certificates need no restart. librdkafka reads the files when a client is made, and never again.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from docsum.errors import ConfigurationError
from docsum.settings import Kafka

if TYPE_CHECKING:
    from faust.auth import Credentials

log = structlog.get_logger(__name__)

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CA, _CERTIFICATE, _KEY = (f"DOCSUM_KAFKA__SSL_{name}_LOCATION" for name in ("CA", "CERTIFICATE", "KEY"))


def client_config(kafka: Kafka) -> dict[str, Any]:
    """For librdkafka (confluent-kafka). Raises ConfigurationError for settings that do not go together."""
    check(kafka)
    if not kafka.bootstrap_servers:
        raise ConfigurationError("DOCSUM_KAFKA__BOOTSTRAP_SERVERS is not set.")
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": kafka.security_protocol,
        "log.connection.close": False,  # brokers close idle connections: no news
    }
    if _has_sasl(kafka):
        config |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.username": kafka.sasl_username,
            "sasl.password": kafka.sasl_password.get_secret_value(),
        }
    if not _has_tls(kafka):
        return config
    _Context(kafka)  # a file that is missing or wrong gets its sentence here
    if kafka.ssl_ca_location:
        config["ssl.ca.location"] = kafka.ssl_ca_location
    if kafka.ssl_certificate_location:
        config |= {
            "ssl.certificate.location": kafka.ssl_certificate_location,
            "ssl.key.location": _key_location(kafka),
        }
        if password := kafka.ssl_key_password.get_secret_value():
            config["ssl.key.password"] = password
    return config


def aiokafka_security(kafka: Kafka) -> dict[str, Any]:
    """For aiokafka's producer and consumer. Raises ConfigurationError."""
    check(kafka)
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if _has_sasl(kafka):
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    if _has_tls(kafka):
        options["ssl_context"] = _Context(kafka)
    return options


def faust_credentials(kafka: Kafka) -> Credentials | None:
    """For Faust's `broker_credentials`; None on a plain connection. Raises ConfigurationError."""
    from faust.auth import SASLCredentials, SSLCredentials

    check(kafka)
    context = _Context(kafka) if _has_tls(kafka) else None
    if _has_sasl(kafka):
        return SASLCredentials(  # Faust takes TLS exactly when there is a context
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return SSLCredentials(context) if context else None


def tls_context(kafka: Kafka) -> ssl.SSLContext | None:
    """What our clients trust and show; None on a plain connection. Raises ConfigurationError."""
    check(kafka)
    return _Context(kafka) if _has_tls(kafka) else None


def identity(kafka: Kafka) -> str:
    """As whom Kafka knows us, in a sentence."""
    if _has_sasl(kafka):
        return f"user {kafka.sasl_username}"
    if kafka.ssl_certificate_location:
        return f"user of the certificate {kafka.ssl_certificate_location}"
    return "user ANONYMOUS"


def addresses(kafka: Kafka) -> Iterator[tuple[str, int]]:
    """Host and port of each bootstrap server. Raises ConfigurationError."""
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(
                f"DOCSUM_KAFKA__BOOTSTRAP_SERVERS holds {server.strip()!r}: write host:port, by comma."
            )
        yield host.strip("[]"), int(port)


# -- what goes together ------------------------------------------------------------------------------------


def check(kafka: Kafka) -> None:
    """Raises ConfigurationError, one sentence, for settings that do not go together."""
    protocol = kafka.security_protocol
    if protocol not in PROTOCOLS:
        raise ConfigurationError(
            f"DOCSUM_KAFKA__SECURITY_PROTOCOL is {protocol!r}: it must be one of {', '.join(PROTOCOLS)}."
        )
    _check_files(kafka)
    if _has_sasl(kafka):
        _check_login(kafka)
    elif kafka.sasl_username or kafka.sasl_password.get_secret_value() or kafka.sasl_mechanism:
        raise ConfigurationError(
            f"DOCSUM_KAFKA__SASL_* is set, but DOCSUM_KAFKA__SECURITY_PROTOCOL={protocol} logs nobody in: "
            "set it to SASL_SSL."
        )


def _check_login(kafka: Kafka) -> None:
    if kafka.sasl_mechanism not in MECHANISMS:
        is_now = f", not {kafka.sasl_mechanism!r}" if kafka.sasl_mechanism else ""
        raise ConfigurationError(
            f"{kafka.security_protocol} needs DOCSUM_KAFKA__SASL_MECHANISM: "
            f"one of {', '.join(MECHANISMS)}{is_now}."
        )
    if not kafka.sasl_username or not kafka.sasl_password.get_secret_value():
        raise ConfigurationError(
            f"{kafka.security_protocol} needs DOCSUM_KAFKA__SASL_USERNAME and DOCSUM_KAFKA__SASL_PASSWORD."
        )
    if _has_tls(kafka) or kafka.allow_plaintext_password:
        return
    for host, _ in addresses(kafka):
        if not _is_loopback(host):
            raise ConfigurationError(
                f"SASL_PLAINTEXT would send the password to {host} unencrypted: set "
                "DOCSUM_KAFKA__SECURITY_PROTOCOL=SASL_SSL, or DOCSUM_KAFKA__ALLOW_PLAINTEXT_PASSWORD=true."
            )


def _check_files(kafka: Kafka) -> None:
    has_key = kafka.ssl_key_location or kafka.ssl_key_password.get_secret_value()
    if not _has_tls(kafka) and (kafka.ssl_ca_location or kafka.ssl_certificate_location or has_key):
        raise ConfigurationError(
            f"DOCSUM_KAFKA__SSL_* is set, but DOCSUM_KAFKA__SECURITY_PROTOCOL={kafka.security_protocol} "
            f"encrypts nothing: set it to {'SASL_SSL' if _has_sasl(kafka) else 'SSL'}."
        )
    if has_key and not kafka.ssl_certificate_location:
        raise ConfigurationError(f"A key needs its certificate: set {_CERTIFICATE} too.")


def _has_sasl(kafka: Kafka) -> bool:
    return kafka.security_protocol.startswith("SASL_")


def _has_tls(kafka: Kafka) -> bool:
    return kafka.security_protocol.endswith("SSL")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_location(kafka: Kafka) -> str:
    """One file may hold both."""
    return kafka.ssl_key_location or kafka.ssl_certificate_location


# -- the context -------------------------------------------------------------------------------------------


class _Context(ssl.SSLContext):
    """Trusts the authority and shows the certificate of the settings, as their files are at each handshake.

    A renewal that is half written, such as a certificate whose key is still the old one, is left for the next
    handshake: until then what was read last is shown.
    """

    _kafka: Kafka
    _read: dict[str, tuple[int, int, int]]  # file -> what it looked like when it was read

    def __new__(cls, kafka: Kafka) -> _Context:
        """Raises ConfigurationError."""
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context._kafka = kafka
        context._read = {}
        if not kafka.ssl_ca_location:
            context.load_default_certs()
        context._load()
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio for each connection."""
        try:
            if self._read != self._state():
                self._load()
        except (ConfigurationError, OSError) as error:
            log.warning("renewed certificates cannot be used yet", action="certificates", message=str(error))
        return super().wrap_bio(*arguments, **options)

    def _load(self) -> None:
        state = self._state()
        # Tried elsewhere first: OpenSSL drops the old key when it meets a certificate of another one.
        _fill(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self._kafka)
        _fill(self, self._kafka)
        self._read = state

    def _state(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for setting, name in _files(self._kafka).items():
            _refuse_unreadable(setting, name)
            status = Path(name).stat()
            found[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _fill(context: ssl.SSLContext, kafka: Kafka) -> None:
    if kafka.ssl_ca_location:
        try:
            context.load_verify_locations(kafka.ssl_ca_location)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"The file of {_CA}, {kafka.ssl_ca_location}, holds no certificate in PEM form."
            ) from error
    if not kafka.ssl_certificate_location:
        return
    password = kafka.ssl_key_password.get_secret_value()
    try:
        # With a function, or OpenSSL asks on the terminal.
        context.load_cert_chain(kafka.ssl_certificate_location, _key_location(kafka), lambda: password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(_wrong_pair(kafka, str(error), password)) from error


def _wrong_pair(kafka: Kafka, said: str, password: str) -> str:
    if "MISMATCH" in said:
        return f"The key of {_KEY} is not that of the certificate of {_CERTIFICATE}."
    if password:
        return (
            f"The files of {_CERTIFICATE} and {_KEY} cannot be read with DOCSUM_KAFKA__SSL_KEY_PASSWORD: "
            "it is wrong, or they are not in PEM form."
        )
    if b"ENCRYPTED" in Path(_key_location(kafka)).read_bytes():
        return f"The key of {_KEY} is encrypted: set DOCSUM_KAFKA__SSL_KEY_PASSWORD."
    return f"The files of {_CERTIFICATE} and {_KEY} hold no certificate with its key in PEM form."


def _files(kafka: Kafka) -> dict[str, str]:
    """Setting -> file, of those that are set."""
    all_of_them = {
        _CA: kafka.ssl_ca_location,
        _CERTIFICATE: kafka.ssl_certificate_location,
        _KEY: kafka.ssl_key_location,
    }
    return {setting: name for setting, name in all_of_them.items() if name}


def _refuse_unreadable(setting: str, name: str) -> None:
    try:
        Path(name).read_bytes()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{setting} names {name}, which does not exist.") from error
    except OSError as error:
        raise ConfigurationError(
            f"{setting} names {name}, which cannot be read: {error.strerror}."
        ) from error
