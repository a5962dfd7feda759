"""Every client on a broker that asks who they are, over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from docsum.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from docsum.kafka import backlog
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.dead_letters import DeadLetterTopic
from docsum.kafka.producer import KafkaProducer
from docsum.kafka.publisher import CopyPublisher
from docsum.kafka.rights import Operation, Right
from docsum.kafka.security import faust_credentials
from docsum.kafka.worker import KafkaWorker, Membership
from docsum.models import Outcome, RecordCopy, Skipped, SkipReason
from docsum.pipeline import Trip
from docsum.ports import SystemClock
from docsum.settings import Kafka
from docsum.topics import Topology
from tests.support.certificates import Authority
from tests.support.secured_broker import SecuredBroker
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)

#: How a client may be known to the broker: settings of a client of `docsum-worker`.
WAYS: dict[str, Callable[[SecuredBroker], Kafka]] = {
    "SASL_SSL, PLAIN": lambda broker: broker.login("docsum-worker", "PLAIN"),
    "SASL_SSL, SCRAM-SHA-256": lambda broker: broker.login("docsum-worker", "SCRAM-SHA-256"),
    "SASL_SSL, SCRAM-SHA-512": lambda broker: broker.login("docsum-worker", "SCRAM-SHA-512"),
    "mutual TLS": lambda broker: broker.mutual(broker.authority.sign("docsum-worker")),
    "mutual TLS, encrypted key": lambda broker: broker.mutual(
        broker.authority.sign("docsum-worker-too", password="a-key"), "a-key"
    ),
    "TLS alone": lambda broker: broker.tls,
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    broker = SecuredBroker(tmp_path_factory.mktemp("secured") / "data")
    try:
        asyncio.run(broker.start())
        for user in ("docsum-worker", "docsum-worker-too", "ANONYMOUS"):
            broker.trust(user)
        yield broker
    finally:
        broker.kill()


@pytest.mark.parametrize("way", WAYS)
async def test_all_clients_work_in_every_way(secured: SecuredBroker, topology: Topology, way: str) -> None:
    kafka = WAYS[way](secured)
    await KafkaAdmin(kafka).setup(topology)
    assert await KafkaAdmin(kafka).check(topology) == []
    async with KafkaProducer(kafka) as producer:
        first = await producer.publish(RecordCopy(topology.documents, None, b"doc-1", b"v", ()))
    async with CopyPublisher(kafka) as publisher:
        letter = await publisher.publish(RecordCopy(topology.dead_letters, 0, b"doc-1", b"v", ()))
    async with DeadLetterTopic(kafka, topology.dead_letters) as letters:
        assert [place async for place, found in letters.read([letter]) if found] == [letter]
    assert await taken(kafka, topology) == [str(first)]
    look = await backlog.look(kafka, topology, timedelta(seconds=10))
    assert (sum(topic.events for topic in look.topics), look.dead_letters) == (0, 1)


async def taken(kafka: Kafka, topology: Topology) -> list[str]:
    """What a worker was given; it has committed it when this returns."""
    seen: list[str] = []

    async def process(trip: Trip) -> Outcome:
        seen.append(str(trip.delivery.at))
        return Skipped(SkipReason.UNCHANGED)

    member = Membership(
        brokers=kafka.bootstrap_servers,
        group=kafka.group_id,
        topics=(topology.documents,),
        retries=(),
        partitions=topology.partitions,
        slots=4,
        drain=timedelta(seconds=5),
        credentials=faust_credentials(kafka),
    )
    worker, stop = KafkaWorker(member, process, SystemClock(), lambda _share: None), asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    try:
        await eventually(lambda: bool(seen) or running.done(), 30, "a record was given to the worker")
    finally:
        stop.set()
        await running
    return seen


async def test_a_wrong_password_is_one_sentence(secured: SecuredBroker, topology: Topology) -> None:
    for mechanism in ("PLAIN", "SCRAM-SHA-512"):
        wrong = secured.login("docsum-worker", mechanism, "another password")
        with pytest.raises(ConfigurationError, match="does not accept the user docsum-worker"):
            await KafkaAdmin(wrong, timedelta(seconds=5)).check(topology)
        with pytest.raises(ConfigurationError, match="does not accept the user docsum-worker"):
            await backlog.look(wrong, topology, timedelta(seconds=5))


async def test_who_may_write_nowhere_is_told_so_for_every_record(
    secured: SecuredBroker, topology: Topology
) -> None:
    """The broker then refuses the whole producer, in the middle of nowhere: no record may wait for ever."""
    await KafkaAdmin(secured.login("docsum-worker")).setup(topology)
    secured.know("docsum-guest")
    secured.grant("docsum-guest", [Right(Operation.DESCRIBE, "topic", topology.documents)])
    async with KafkaProducer(secured.login("docsum-guest")) as producer, asyncio.timeout(20):
        for _ in range(3):
            with pytest.raises(BrokerRefused, match=f"lacks Write on topic {topology.documents}"):
                await producer.publish(RecordCopy(topology.documents, None, b"doc-1", b"v", ()))


async def test_a_broker_that_nobody_vouches_for_is_one_sentence(
    secured: SecuredBroker, topology: Topology, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Authority(tmp_path_factory.mktemp("other"))
    wrong = secured.tls.model_copy(update={"ssl_ca_location": str(other.trusted)})
    with pytest.raises(ConfigurationError, match=r"TLS handshake with .* fails"):
        await KafkaAdmin(wrong, timedelta(seconds=5)).check(topology)
    with pytest.raises(ConfigurationError, match=r"TLS handshake with .* fails"):
        await backlog.look(wrong, topology, timedelta(seconds=5))


async def test_a_broker_that_wants_a_certificate_is_one_sentence(
    secured: SecuredBroker, topology: Topology
) -> None:
    nobody = secured.tls.model_copy(update={"bootstrap_servers": f"127.0.0.1:{secured.mutual_port}"})
    with pytest.raises(ConfigurationError, match=r"TLS handshake with .* fails"):
        await KafkaAdmin(nobody, timedelta(seconds=5)).check(topology)
    expired = secured.mutual(secured.authority.sign("docsum-late", days=-1))
    with pytest.raises(ConfigurationError, match=r"TLS handshake with .* fails"):
        await KafkaAdmin(expired, timedelta(seconds=5)).check(topology)
    for wrong in (nobody, expired):
        with pytest.raises((ConfigurationError, BrokerUnavailable)):
            await backlog.look(wrong, topology, timedelta(seconds=5))


async def test_what_a_door_does_not_take_is_one_sentence(secured: SecuredBroker, topology: Topology) -> None:
    def at(kafka: Kafka, port: int, host: str = "127.0.0.1", **changes: object) -> Kafka:
        return kafka.model_copy(update={"bootstrap_servers": f"{host}:{port}", **changes})

    login, plain = secured.login("docsum-worker"), Kafka()
    unencrypted = {"security_protocol": "SASL_PLAINTEXT", "ssl_ca_location": ""}
    cases = {
        "it speaks no TLS": at(secured.tls, secured.port),
        "speaks TLS, but DOCSUM_KAFKA__SECURITY_PROTOCOL is PLAINTEXT": at(plain, secured.tls_port),
        "set it to SASL_SSL.": at(login, secured.login_port, **unencrypted),
        "if it wants a login, set DOCSUM_KAFKA__SECURITY_PROTOCOL=SASL_SSL": at(
            secured.tls, secured.login_port
        ),
        "takes no logins": at(login, secured.tls_port),
        "is for other names": at(secured.tls, secured.tls_port, "localhost"),
        "is of no authority that this system trusts": at(secured.tls, secured.tls_port, ssl_ca_location=""),
    }
    for words, kafka in cases.items():
        with pytest.raises(ConfigurationError, match=words):
            await KafkaAdmin(kafka, timedelta(seconds=3)).check(topology)
