"""What the settings of Kafka become for each client, and which of them do not go together."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from faust.auth import SASLCredentials, SSLCredentials
from pydantic import SecretStr

from docsum.cli.config import described
from docsum.errors import ConfigurationError
from docsum.kafka.security import aiokafka_security, client_config, faust_credentials, identity
from docsum.settings import Kafka, Settings
from tests.support.certificates import Authority

BROKER = "kafka.example.org:9093"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def kafka(**settings: Any) -> Kafka:
    return Kafka(**{"bootstrap_servers": BROKER, **settings})


def login(**settings: Any) -> Kafka:
    return kafka(
        **{
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "docsum-worker",
            "sasl_password": SecretStr("a-secret"),
            **settings,
        }
    )


def mutual(authority: Authority, password: str = "", **settings: Any) -> Kafka:
    pair = authority.sign("docsum-worker", password=password)
    return kafka(
        **{
            "security_protocol": "SSL",
            "ssl_ca_location": str(authority.trusted),
            "ssl_certificate_location": str(pair.certificate),
            "ssl_key_location": str(pair.key),
            "ssl_key_password": SecretStr(password),
            **settings,
        }
    )


def test_a_plain_connection_needs_nothing() -> None:
    assert client_config(kafka())["security.protocol"] == "PLAINTEXT"
    assert aiokafka_security(kafka()) == {"security_protocol": "PLAINTEXT"}
    assert faust_credentials(kafka()) is None


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_all_clients_log_in_from_the_same_settings(mechanism: str, authority: Authority) -> None:
    settings = login(sasl_mechanism=mechanism, ssl_ca_location=str(authority.trusted))
    config = client_config(settings)
    assert (config["sasl.mechanism"], config["sasl.username"]) == (mechanism, "docsum-worker")
    assert (config["sasl.password"], config["ssl.ca.location"]) == ("a-secret", str(authority.trusted))
    options = aiokafka_security(settings)
    assert (options["sasl_mechanism"], options["sasl_plain_password"]) == (mechanism, "a-secret")
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname
    credentials = faust_credentials(settings)
    assert isinstance(credentials, SASLCredentials)
    assert (credentials.username, credentials.password) == ("docsum-worker", "a-secret")
    assert identity(settings) == "user docsum-worker"


@pytest.mark.parametrize("password", ["", "key-secret"])
def test_all_clients_show_the_same_certificate(password: str, authority: Authority) -> None:
    settings = mutual(authority, password)
    config = client_config(settings)
    assert config["ssl.certificate.location"] == settings.ssl_certificate_location
    assert config["ssl.key.location"] == settings.ssl_key_location
    assert config.get("ssl.key.password", "") == password
    assert isinstance(aiokafka_security(settings)["ssl_context"], ssl.SSLContext)
    assert isinstance(faust_credentials(settings), SSLCredentials)


def test_one_file_may_hold_certificate_and_key(authority: Authority) -> None:
    pair = authority.sign("both")
    pair.certificate.write_text(pair.certificate.read_text() + pair.key.read_text())
    settings = mutual(authority, ssl_certificate_location=str(pair.certificate), ssl_key_location="")
    assert client_config(settings)["ssl.key.location"] == str(pair.certificate)


def test_a_password_goes_unencrypted_only_to_this_machine_or_when_that_is_allowed() -> None:
    plain = login(security_protocol="SASL_PLAINTEXT")
    with pytest.raises(
        ConfigurationError, match=r"password to kafka\.example\.org unencrypted.*ALLOW_PLAINTEXT"
    ):
        client_config(plain)
    for here in ("127.0.0.1:9092", "localhost:9092", "[::1]:9092"):
        client_config(plain.model_copy(update={"bootstrap_servers": here}))
    with pytest.raises(ConfigurationError, match="unencrypted"):
        aiokafka_security(plain.model_copy(update={"bootstrap_servers": f"127.0.0.1:9092, {BROKER}"}))
    assert faust_credentials(plain.model_copy(update={"allow_plaintext_password": True})) is not None


def test_what_does_not_go_together_is_one_sentence(authority: Authority, tmp_path: Path) -> None:
    nothing, folder = tmp_path / "nothing.pem", tmp_path / "no-certificate.pem"
    folder.write_text("hello")
    other = authority.sign("other")
    ca, certificate, key = (f"DOCSUM_KAFKA__SSL_{name}_LOCATION" for name in ("CA", "CERTIFICATE", "KEY"))
    cases = {
        "DOCSUM_KAFKA__SECURITY_PROTOCOL is 'SSL_SASL'": kafka(security_protocol="SSL_SASL"),
        "needs DOCSUM_KAFKA__SASL_MECHANISM: one of PLAIN": login(sasl_mechanism=""),
        "not 'SCRAM'.": login(sasl_mechanism="SCRAM"),
        "needs DOCSUM_KAFKA__SASL_USERNAME and": login(sasl_password=SecretStr("")),
        "logs nobody in: set it to SASL_SSL.": login(security_protocol="SSL"),
        "encrypts nothing: set it to SSL.": kafka(ssl_ca_location=str(authority.trusted)),
        f"A key needs its certificate: set {certificate} too.": mutual(
            authority, ssl_certificate_location=""
        ),
        f"{ca} names {nothing}, which does not exist.": mutual(authority, ssl_ca_location=str(nothing)),
        f"{key} names {nothing}, which does not exist.": mutual(authority, ssl_key_location=str(nothing)),
        f"{certificate} names {tmp_path}, which cannot be read": mutual(
            authority, ssl_certificate_location=str(tmp_path)
        ),
        f"{ca}, {folder}, holds no certificate": mutual(authority, ssl_ca_location=str(folder)),
        "hold no certificate with its key": mutual(authority, ssl_certificate_location=str(folder)),
        "is not that of the certificate": mutual(authority, ssl_key_location=str(other.key)),
        "is encrypted: set DOCSUM_KAFKA__SSL_KEY_PASSWORD.": mutual(
            authority, "a-password", ssl_key_password=SecretStr("")
        ),
        "cannot be read with DOCSUM_KAFKA__SSL_KEY_PASSWORD": mutual(
            authority, "a-password", ssl_key_password=SecretStr("another")
        ),
    }
    # The pair of the last case is on the disk: each case writes its own files again.
    for words, settings in cases.items():
        if settings.ssl_certificate_location.endswith("docsum-worker.pem"):
            authority.sign("docsum-worker", password="a-password" if "PASSWORD" in words else "")
        for ask in (client_config, aiokafka_security, faust_credentials):
            with pytest.raises(ConfigurationError) as caught:
                ask(settings)
            said = str(caught.value)
            assert words in said
            assert said.endswith(".")
            assert "a-secret" not in said


def test_a_renewed_certificate_is_shown_at_the_next_handshake(authority: Authority, tmp_path: Path) -> None:
    settings = mutual(authority)
    context = aiokafka_security(settings)["ssl_context"]
    first = shown(context, authority)
    assert shown(context, authority) == first
    key = Path(settings.ssl_key_location)
    old = key.read_bytes()
    authority.sign("docsum-worker")  # a renewal takes the same files
    new = key.read_bytes()
    key.write_bytes(old)  # half-written: the key has not come yet
    assert shown(context, authority) == first
    key.write_bytes(new)
    second = shown(context, authority)
    assert second != first
    key.unlink()
    assert shown(context, authority) == second


def test_an_authority_that_is_added_is_trusted_at_the_next_handshake(
    authority: Authority, tmp_path: Path
) -> None:
    settings = mutual(authority)
    context = aiokafka_security(settings)["ssl_context"]
    later = Authority(tmp_path / "later", "the next authority")
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(context, later, authority)
    authority.trusted.write_text(authority.trusted.read_text() + later.trusted.read_text())
    assert shown(context, later, authority)


def shown(context: ssl.SSLContext, authority: Authority, client_authority: Authority | None = None) -> int:
    """The serial number of the certificate that a server with a certificate of `authority` is shown."""
    pair = authority.sign("server", "127.0.0.1")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(pair.certificate, pair.key)
    server_context.load_verify_locations((client_authority or authority).trusted)
    server_context.verify_mode = ssl.CERT_REQUIRED
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    server = server_context.wrap_bio(outgoing, incoming, server_side=True)
    done = set()
    for _ in range(20):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            break
    found = server.getpeercert()
    assert found
    return int(str(found["serialNumber"]), 16)


def test_secrets_are_masked_and_places_are_shown(authority: Authority) -> None:
    settings = Settings(kafka=mutual(authority, "key-secret", sasl_password=SecretStr("a-secret")))
    shown = {setting.name: setting.value for setting in described(settings)}
    assert shown["DOCSUM_KAFKA__SASL_PASSWORD"] == shown["DOCSUM_KAFKA__SSL_KEY_PASSWORD"] == "********"
    assert shown["DOCSUM_KAFKA__SSL_KEY_LOCATION"] == settings.kafka.ssl_key_location
    assert not {"a-secret", "key-secret"}.intersection(" ".join(shown.values()).split())
