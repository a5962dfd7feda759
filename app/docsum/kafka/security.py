"""One set of settings, three clients: how each of them is told to reach and to trust the brokers."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from docsum.errors import ConfigurationError
from docsum.settings import Kafka

if TYPE_CHECKING:
    from faust.auth import Credentials

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def client_config(kafka: Kafka) -> dict[str, Any]:
    """For librdkafka (confluent-kafka). Raises ConfigurationError for settings that do not go together."""
    _check(kafka)
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
    if _has_tls(kafka) and kafka.ssl_ca_location:
        _context(kafka)  # a file that is missing or no certificate gets its sentence here
        config["ssl.ca.location"] = kafka.ssl_ca_location
    return config


def aiokafka_security(kafka: Kafka) -> dict[str, Any]:
    """For aiokafka's producer and consumer. Raises ConfigurationError."""
    _check(kafka)
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if _has_sasl(kafka):
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    if _has_tls(kafka):
        options["ssl_context"] = _context(kafka)
    return options


def faust_credentials(kafka: Kafka) -> Credentials | None:
    """For Faust's `broker_credentials`; None on a plain connection. Raises ConfigurationError."""
    from faust.auth import SASLCredentials, SSLCredentials

    _check(kafka)
    context = _context(kafka) if _has_tls(kafka) else None
    if _has_sasl(kafka):
        return SASLCredentials(  # Faust takes TLS exactly when there is a context
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return SSLCredentials(context) if context else None


def _has_sasl(kafka: Kafka) -> bool:
    return kafka.security_protocol.startswith("SASL_")


def _has_tls(kafka: Kafka) -> bool:
    return kafka.security_protocol.endswith("SSL")


def _check(kafka: Kafka) -> None:
    if kafka.security_protocol not in PROTOCOLS:
        raise ConfigurationError(f"DOCSUM_KAFKA__SECURITY_PROTOCOL must be one of {', '.join(PROTOCOLS)}.")
    if not _has_sasl(kafka):
        return
    if kafka.sasl_mechanism not in MECHANISMS:
        raise ConfigurationError(
            f"{kafka.security_protocol} needs DOCSUM_KAFKA__SASL_MECHANISM: one of {', '.join(MECHANISMS)}."
        )
    if not kafka.sasl_username or not kafka.sasl_password.get_secret_value():
        raise ConfigurationError(
            f"{kafka.security_protocol} needs DOCSUM_KAFKA__SASL_USERNAME and DOCSUM_KAFKA__SASL_PASSWORD."
        )


def _context(kafka: Kafka) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=kafka.ssl_ca_location or None)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            "The file of DOCSUM_KAFKA__SSL_CA_LOCATION is not there or holds no certificate."
        ) from error
