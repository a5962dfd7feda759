"""A real Kafka broker with TLS, logins and an authorizer that denies what nobody has granted.

Its plain listener, where everybody is a super user, is the tests' own door and that of the broker itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import confluent_kafka.admin
from pydantic import SecretStr

from docsum.kafka.rights import Right
from docsum.local.loopback import HOST, free_port
from docsum.settings import Kafka
from tests.support.broker import Broker
from tests.support.certificates import Authority, Pair

api: Any = confluent_kafka.admin  # mypy does not see what it exports

PASSWORD = "a secret; with = and / in it"
#: Known to the broker by name and PASSWORD, by PLAIN and by both kinds of SCRAM.
USERS = ("docsum-setup", "docsum-worker", "docsum-batch", "docsum-api", "docsum-operator", "docsum-upstream")

_LISTENERS = """\
listeners=PLAINTEXT://{host}:{port},TLS://{host}:{tls},MUTUAL://{host}:{mutual},LOGIN://{host}:{login},\
CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port},TLS://{host}:{tls},MUTUAL://{host}:{mutual},LOGIN://{host}:{login}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MUTUAL:SSL,LOGIN:SASL_SSL
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location=tls/keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=tls/truststore.pem
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.principal.mapping.rules=RULE:^CN=(.*?)$/$1/,DEFAULT
listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
{users};
listener.name.login.scram-sha-256.sasl.jaas.config={scram};
listener.name.login.scram-sha-512.sasl.jaas.config={scram};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
connection.failed.authentication.delay.ms=10
"""


@dataclass
class SecuredBroker(Broker):
    """Listeners for TLS alone, for client certificates and for users with passwords."""

    tls_port: int = field(default_factory=free_port)
    mutual_port: int = field(default_factory=free_port)
    login_port: int = field(default_factory=free_port)

    @property
    def authority(self) -> Authority:
        return self._authority

    def __post_init__(self) -> None:
        self._authority = Authority(self.data.parent / "authority")
        self._server = self._authority.sign("broker", HOST)

    # -- settings of clients -----------------------------------------------------------------------------

    @property
    def tls(self) -> Kafka:
        """Encrypted, and nobody in particular: may do nothing."""
        return Kafka(
            bootstrap_servers=f"{HOST}:{self.tls_port}",
            security_protocol="SSL",
            ssl_ca_location=str(self._authority.trusted),
        )

    def mutual(self, pair: Pair, password: str = "") -> Kafka:
        """Known by a certificate."""
        return self.tls.model_copy(
            update={
                "bootstrap_servers": f"{HOST}:{self.mutual_port}",
                "ssl_certificate_location": str(pair.certificate),
                "ssl_key_location": str(pair.key),
                "ssl_key_password": SecretStr(password),
            }
        )

    def login(self, user: str, mechanism: str = "SCRAM-SHA-512", password: str = PASSWORD) -> Kafka:
        """Known by a password."""
        return self.tls.model_copy(
            update={
                "bootstrap_servers": f"{HOST}:{self.login_port}",
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": mechanism,
                "sasl_username": user,
                "sasl_password": SecretStr(password),
            }
        )

    # -- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when it answers and knows its users."""
        await super().start()
        await asyncio.to_thread(self.know, *USERS)

    def configure(self) -> None:
        """Written at every start: the broker's own preparation begins it anew."""
        folder = self.data / "tls"
        folder.mkdir(exist_ok=True)
        key, chain = self._server.key.read_text(), self._server.certificate.read_text()
        (folder / "keystore.pem").write_text(key + chain)
        (folder / "truststore.pem").write_text(self._authority.trusted.read_text())
        users = " ".join(f'user_{user}="{PASSWORD}"' for user in USERS)
        more = _LISTENERS.format(
            host=HOST,
            port=self.port,
            tls=self.tls_port,
            mutual=self.mutual_port,
            login=self.login_port,
            controller=self.controller_port,
            users=users,
            scram="org.apache.kafka.common.security.scram.ScramLoginModule required",
        )
        properties = self.data / "server.properties"
        replaced = ("listeners=", "advertised.listeners=", "listener.security.protocol.map=")
        kept = [line for line in properties.read_text().splitlines() if not line.startswith(replaced)]
        properties.write_text("\n".join([*kept, more]))

    def know(self, *users: str) -> None:
        """Adds users with PASSWORD, for both kinds of SCRAM."""
        with self.admin() as client:
            # A user only once in a request, says the broker.
            for mechanism in (api.ScramMechanism.SCRAM_SHA_256, api.ScramMechanism.SCRAM_SHA_512):
                credential = api.ScramCredentialInfo(mechanism, 4096)
                wanted = [
                    api.UserScramCredentialUpsertion(user, credential, PASSWORD.encode()) for user in users
                ]
                for future in client.alter_user_scram_credentials(wanted).values():
                    future.result(20)

    # -- rights ------------------------------------------------------------------------------------------

    def admin(self) -> Any:  # Any: mypy does not see that it is a context manager
        """A super user."""
        return api.AdminClient({"bootstrap.servers": self.settings.bootstrap_servers})

    def grant(self, user: str, rights: Iterable[Right]) -> None:
        with self.admin() as client:
            for future in client.create_acls([_binding(user, right) for right in rights]).values():
                future.result(20)

    def revoke(self, user: str, right: Right) -> None:
        wanted = _binding(user, right)
        same = (wanted.restype, wanted.name, wanted.resource_pattern_type, wanted.principal, wanted.host)
        chosen = api.AclBindingFilter(*same, wanted.operation, wanted.permission_type)
        with self.admin() as client:
            (future,) = client.delete_acls([chosen]).values()
            assert len(future.result(20)) == 1

    def trust(self, user: str) -> None:
        """May do everything."""
        kinds = {
            api.ResourceType.TOPIC: "*",
            api.ResourceType.GROUP: "*",
            api.ResourceType.BROKER: "kafka-cluster",
        }
        rules = [
            api.AclBinding(
                kind,
                name,
                api.ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                api.AclOperation.ALL,
                api.AclPermissionType.ALLOW,
            )
            for kind, name in kinds.items()
        ]
        with self.admin() as client:
            for future in client.create_acls(rules).values():
                future.result(20)


def _binding(user: str, right: Right) -> Any:
    operation = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in right.operation)
    return api.AclBinding(
        api.ResourceType[right.kind.upper()],
        right.name,
        api.ResourcePatternType.PREFIXED if right.prefixed else api.ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        api.AclOperation[operation.lstrip("_")],
        api.AclPermissionType.ALLOW,
    )
