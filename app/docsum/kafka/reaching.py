"""Why Kafka cannot be reached, in one sentence: both libraries only say that a broker is away."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from docsum.errors import BrokerUnavailable, ConfigurationError, DocsumError
from docsum.kafka.security import addresses, tls_context
from docsum.settings import Kafka

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

_PROTOCOL = "DOCSUM_KAFKA__SECURITY_PROTOCOL"
_CA = "DOCSUM_KAFKA__SSL_CA_LOCATION"
_CERTIFICATE = "DOCSUM_KAFKA__SSL_CERTIFICATE_LOCATION"
#: A broker that does not like our certificate says so after the handshake of TLS 1.3, or keeps silent.
_AFTERTHOUGHT = 0.5
#: A request for metadata, version 0: whoever wants a login first hangs up.
_QUESTION = bytes.fromhex("0000000e 0003 0000 00000001 ffff 00000000")
_EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAMES = (62, 64)  # its codes for a host and for an IP address that the certificate does not name


def login_refused(kafka: Kafka, errors: Sequence[KafkaError]) -> ConfigurationError | None:
    """What librdkafka's connections have met, where it is the login."""
    from confluent_kafka import KafkaError as Code

    said = next((error.str() for error in errors if error.code() == Code._AUTHENTICATION), None)
    if said is None:
        return None
    where = kafka.bootstrap_servers
    if "mechanism handshake failed" not in said:
        return ConfigurationError(
            f"Kafka at {where} does not accept the user {kafka.sasl_username} with this password: "
            "correct DOCSUM_KAFKA__SASL_USERNAME or DOCSUM_KAFKA__SASL_PASSWORD."
        )
    if supported := said.partition("supported mechanisms: ")[2].partition(" (after")[0].strip():
        return ConfigurationError(
            f"Kafka at {where} takes no logins by {kafka.sasl_mechanism}, but by {supported}: "
            "correct DOCSUM_KAFKA__SASL_MECHANISM."
        )
    return ConfigurationError(
        f"Kafka at {where} takes no logins: set {_PROTOCOL}=SSL, or name the port that takes them."
    )


def unreachable(kafka: Kafka, patience: timedelta) -> DocsumError:
    """Tries each address by hand, as far as the login. Blocks for `patience` at most.

    One that is as it should be says that the settings are right, whatever the others are.
    """
    try:
        places = list(addresses(kafka))
        context = tls_context(kafka)
    except ConfigurationError as error:
        return error
    found = [_tried(place, context, kafka, patience.total_seconds() / len(places)) for place in places]
    problems = [error for error in found if error is not None]
    if len(problems) < len(found):
        return _silent(kafka)
    return next((error for error in problems if isinstance(error, ConfigurationError)), problems[0])


def _tried(
    place: tuple[str, int], context: ssl.SSLContext | None, kafka: Kafka, seconds: float
) -> DocsumError | None:
    where = f"{place[0]}:{place[1]}"
    try:
        plain = socket.create_connection(place, seconds)
    except socket.gaierror:
        return BrokerUnavailable(f"Kafka cannot be reached: the name {place[0]} is not known here.")
    except OSError:
        return _silent(kafka)
    with plain:
        try:
            return _spoken(plain, place, context, kafka)
        except ssl.SSLCertVerificationError as error:
            return ConfigurationError(_distrusted(error, where, kafka))
        except ssl.SSLError as error:
            return ConfigurationError(_alerted(error, where, kafka))
        except ConnectionResetError:
            return _no_tls(where) if context else None
        except OSError:  # such as the time-out of a broker that has nothing to say
            return None


def _spoken(
    plain: socket.socket, place: tuple[str, int], context: ssl.SSLContext | None, kafka: Kafka
) -> DocsumError | None:
    where = f"{place[0]}:{place[1]}"
    if context is None:
        return _speaks_tls(plain, where, kafka)
    with context.wrap_socket(plain, server_hostname=place[0]) as secured:
        secured.settimeout(_AFTERTHOUGHT)
        if kafka.security_protocol == "SSL":
            secured.sendall(_QUESTION)
        return None if secured.recv(1) else _closed(where, kafka)


def _silent(kafka: Kafka) -> BrokerUnavailable:
    return BrokerUnavailable(f"Kafka at {kafka.bootstrap_servers} does not answer.")


def _closed(where: str, kafka: Kafka) -> DocsumError | None:
    """TLS is as it should be, and the broker hangs up."""
    if kafka.security_protocol == "SSL":
        return ConfigurationError(
            f"The broker at {where} closes the connection: if it wants a login, set {_PROTOCOL}=SASL_SSL."
        )
    return None


def _no_tls(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"The TLS handshake with {where} fails, it speaks no TLS: correct the port, or {_PROTOCOL}."
    )


def _speaks_tls(plain: socket.socket, where: str, kafka: Kafka) -> ConfigurationError | None:
    curious = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    curious.check_hostname, curious.verify_mode = False, ssl.CERT_NONE
    try:
        with curious.wrap_socket(plain):
            now = kafka.security_protocol
            better = "SASL_SSL" if now.startswith("SASL_") else "SSL or SASL_SSL"
            return ConfigurationError(
                f"The broker at {where} speaks TLS, but {_PROTOCOL} is {now}: set it to {better}."
            )
    except OSError:
        return None


def _distrusted(error: ssl.SSLCertVerificationError, where: str, kafka: Kafka) -> str:
    begin = f"The TLS handshake with {where} fails: the broker's certificate"
    if error.verify_code == _EXPIRED:
        return f"{begin} has expired: renew it on the broker."
    if error.verify_code in _OTHER_NAMES:
        return f"{begin} is for other names: correct DOCSUM_KAFKA__BOOTSTRAP_SERVERS, or the certificate."
    of = kafka.ssl_ca_location or "this system"
    return f"{begin} is of no authority that {of} trusts ({error.verify_message}): correct {_CA}."


def _alerted(error: ssl.SSLError, where: str, kafka: Kafka) -> str:
    begin = f"The TLS handshake with {where} fails:"
    said = str(error).upper().replace(" ", "_")
    if "CERTIFICATE_REQUIRED" in said or ("ALERT" in said and not kafka.ssl_certificate_location):
        return f"{begin} the broker wants a certificate of ours: set {_CERTIFICATE}."
    if "ALERT" in said and "CERTIFICATE" in said:
        return (
            f"{begin} the broker does not accept the certificate {kafka.ssl_certificate_location}: "
            f"look whether it has expired and who has signed it, and correct {_CERTIFICATE}."
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "WRONG_VERSION" in said:
        return str(_no_tls(where))
    return f"{begin} {error.reason or error}: check {_PROTOCOL} and {_CA}."
