"""A whole deployment on a Kafka that grants each role what `docsum setup --print kafka` says, and no more."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from docsum.bootstrap import setup_store
from docsum.errors import BrokerRefused, RightMissing
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.producer import KafkaProducer
from docsum.kafka.rights import DESCRIBING, Kind, Operation, Right, Role, principal, rights_of
from docsum.kafka.security import client_config
from docsum.models import RecordCopy
from docsum.settings import Batch, Kafka, Settings
from tests.support.api_process import ApiProcess
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.secured_broker import SecuredBroker
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(400)

LONG = pytest.mark.long
_OPERATIONS = {operation.value: operation for operation in Operation}


class Secured(Fleet):
    """Every process is the user of a role; the tests themselves come in by the broker's own door."""

    def __init__(self, folder: Path, broker: SecuredBroker, engine: Engine, model: ModelServer) -> None:
        self.broker = broker
        soon = Batch(quiet=timedelta(seconds=1), poll=timedelta(seconds=1))
        super().__init__(folder, broker, engine, model, partitions=2, summaries=True, batch=soon)
        self.own = self.environment

    def prepare(self) -> None:
        """Users, rights as printed, and topics."""
        self.broker.know(*(self.user(role) for role in Role))
        for user, right in printed(self.docsum("setup", "--print", "kafka")):
            self.broker.grant(user, [right])
        self.become(Role.SETUP)
        assert self.ends("setup", "--check", ok=(78,))
        assert "Created" in self.docsum("setup")
        assert self.docsum("setup", "--check").splitlines() == [
            "The topics are as they should be.",
            "The tables are as they should be.",
        ]
        self.become(Role.OPERATOR)

    async def _set_up(self) -> None:
        await setup_store(self._direct)  # topics are made by their role

    def user(self, role: Role) -> str:
        return principal(role, self.topology)

    def kafka(self, role: Role) -> Kafka:
        """The settings of a role, by its password."""
        groups = self.settings.kafka
        return self.broker.login(self.user(role)).model_copy(
            update={"group_id": groups.group_id, "batch_group_id": groups.batch_group_id}
        )

    def rights(self, role: Role) -> tuple[Right, ...]:
        return rights_of(role, self.topology, self.settings.kafka)

    def become(self, role: Role) -> None:
        """Whatever is started from now on."""
        settings = Settings(kafka=self.kafka(role)).environment()
        self.environment = self.own | {name: value for name, value in settings.items() if "KAFKA__" in name}

    def starts(self, role: Role, name: str, *arguments: str) -> None:
        before = self.environment
        self.become(role)
        self.start_worker(name, "docsum", *arguments)
        self.environment = before

    def ended(self, *arguments: str, within: float = 60) -> tuple[int, str]:
        """The exit code of a command and all that it said."""
        done = self._run(arguments, within, range(256))
        return done.returncode, done.stdout + done.stderr


def printed(text: str) -> Iterator[tuple[str, Right]]:
    """User and right of each command for `kafka-acls.sh`."""
    for line in text.splitlines():
        if not line.startswith("kafka-acls.sh"):
            continue
        words = shlex.split(line)[4:]  # behind the address and --add
        options = list(zip(words[::2], words[1::2], strict=True))
        (user,) = [value.removeprefix("User:") for name, value in options if name == "--allow-principal"]
        prefixed = ("--resource-pattern-type", "prefixed") in options
        for name, value in options:
            if name in ("--topic", "--group"):
                kind: Kind = "topic" if name == "--topic" else "group"
                for option, operation in options:
                    if option == "--operation":
                        yield user, Right(_OPERATIONS[operation], kind, value, prefixed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(tmp_path_factory.mktemp("model"), "--fast")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, model: ModelServer
) -> Iterator[Secured]:
    broker = SecuredBroker(tmp_path_factory.mktemp("secured") / "data")
    try:
        asyncio.run(broker.start())
        fleet = Secured(tmp_path_factory.mktemp("fleet"), broker, engine, model)
        try:
            fleet.prepare()
            yield fleet
        finally:
            fleet.close()
    finally:
        broker.kill()


@pytest.fixture
def workers(secured: Secured) -> Secured:
    """With one worker of each lane, whatever other tests have taken from them."""
    for role, name, arguments in ((Role.WORKER, "live", ()), (Role.BATCH, "batch", ("--lane", "batch"))):
        if name not in secured.workers or secured.workers[name].poll() is not None:
            secured.starts(role, name, *arguments)
    until(lambda: secured.is_member("live") and secured.is_member("batch"), 60, "both are members")
    return secured


def test_with_the_printed_rights_everything_works(workers: Secured) -> None:
    fleet, topology = workers, workers.topology
    documents = fleet.folder / "documents"
    write_documents(documents, 6, seed=1)
    (documents / "empty.txt").touch()
    late = documents / "00000.txt"
    manifest = fleet.folder / "announced-too-early.jsonl"  # through the retry topics, to the dead letters
    version = f"{time.time_ns() + 10**13}:1:1"
    line = {"document_id": "early", "uri": late.as_uri(), "source_version": version}
    manifest.write_text(json.dumps(line) + "\n")

    shown = json.loads(fleet.docsum("run", str(documents), "--json", ok=(3,)))
    assert (shown["done"], shown["dead_lettered"]) == (6, 1)
    assert json.loads(fleet.docsum("run", str(manifest), "--json", ok=(3,)))["dead_lettered"] == 1

    batched = fleet.folder / "batched"
    write_documents(batched, 3, seed=2)
    assert json.loads(fleet.docsum("run", str(batched), "--lane", "batch", "--json"))["done"] == 3

    (documents / "empty.txt").write_text("The harbour is open again. The northern wall has been repaired.\n")
    replayed = json.loads(fleet.docsum("dlq", "replay", "--reason", "empty", "--yes", "--json"))
    assert replayed["replayed"] == 1
    followed = fleet.folder / "followed"
    write_documents(followed, 2, seed=3)
    fleet.docsum("ingest", str(followed))

    def is_stored(path: Path) -> bool:
        told = fleet.docsum("documents", "show", str(path), "--json", ok=(0, 1))
        return bool(told and json.loads(told)["summary"])

    until(lambda: is_stored(documents / "empty.txt"), 30, "the replayed document is stored")
    until(lambda: is_stored(followed / "00001.txt"), 30, "what was ingested is stored")
    fleet.docsum("documents", "delete", str(followed / "00001.txt"))

    rested = fleet.folder / "rested"
    write_documents(rested, 3, seed=4)
    fleet.model.fail(
        {"match": {}, "status": 429, "error_type": "rate_limit_error", "retry_after": 1, "times": 9}
    )
    run_id = fleet.announce(str(rested))
    fleet.docsum("runs", "pause", run_id)
    until(lambda: fleet.size(topology.held) > 0 or not fleet.remaining(run_id), 30, "deliveries rest")
    fleet.docsum("runs", "resume", run_id)
    until(lambda: not fleet.remaining(run_id), 60, "the run is over")

    api = ApiProcess(fleet.folder, fleet.environment | environment_of(fleet, Role.API))
    try:
        api.start()
        new = fleet.folder / "by-the-api.txt"
        new.write_text("A letter about the harbour. The board has agreed to repair the wall.\n")
        status, _ = api.ask("POST", "/v1/documents", {"document_id": "by-api", "uri": new.as_uri()})
        assert status == 202
        until(lambda: api.ask("GET", "/v1/documents?id=by-api")[0] == 200, 30, "it is stored")
        until(lambda: api.get("/v1/health")["troubles"] == [], 30, "nothing is wrong")
    finally:
        assert api.stop() == 0

    told = results(fleet)
    assert {"by-api", (documents / "empty.txt").as_uri()} <= told.keys()
    assert told[(followed / "00001.txt").as_uri()] is None  # it was deleted
    asyncio.run(publish(fleet, Role.UPSTREAM, topology.documents))

    fleet.become(Role.VIEWER)
    code, said = fleet.ended("status")
    assert code == 0, said
    fleet.become(Role.OPERATOR)
    assert fleet.ended("setup", "topics", "--check")[0] == 0


def environment_of(fleet: Secured, role: Role) -> dict[str, str]:
    settings = Settings(kafka=fleet.kafka(role)).environment()
    return {name: value for name, value in settings.items() if "KAFKA__" in name}


def results(fleet: Secured) -> dict[str, bytes | None]:
    """What an upstream reads on the results topic, as a member of a group."""
    config = client_config(fleet.kafka(Role.UPSTREAM)) | {
        "group.id": f"{fleet.user(Role.UPSTREAM)}-1",
        "auto.offset.reset": "earliest",
    }
    wanted, found, read = fleet.size(fleet.topology.summaries), {}, 0
    consumer = Consumer(config)
    try:
        consumer.subscribe([fleet.topology.summaries])
        while read < wanted:
            message = consumer.poll(20)
            assert message is not None and message.error() is None, message and message.error()
            found[(message.key() or b"").decode()] = message.value()
            read += 1
    finally:
        consumer.close()
    return found


async def publish(fleet: Secured, role: Role, topic: str) -> None:
    async with KafkaProducer(fleet.kafka(role), timedelta(seconds=10)) as producer:
        await producer.publish(RecordCopy(topic, None, b"doc", b"no event", ()))


# -- one right less ----------------------------------------------------------------------------------------


def names(right: Right, said: str) -> bool:
    """Whether a sentence names the right, and what it is missing on."""
    return (
        f"lacks {right.operation}" in said.replace(" and ", " lacks ")
        and f"on {right.kind} {right.name}" in said
    )


@pytest.mark.parametrize("role", [Role.WORKER, Role.BATCH, Role.API, Role.OPERATOR, Role.VIEWER])
def test_every_right_that_is_missing_is_named(secured: Secured, role: Role) -> None:
    """What workers and the API do first, for each right; `--long` starts the commands themselves."""
    kafka, rights = secured.kafka(role), secured.rights(role)
    admin = KafkaAdmin(kafka)

    async def lacking() -> list[str]:
        return await admin.missing(rights, secured.topology)

    assert asyncio.run(lacking()) == []
    for right in rights:
        secured.broker.revoke(secured.user(role), right)
        try:
            until(lambda: bool(asyncio.run(lacking())), 10, f"{right} is gone")
            said = asyncio.run(lacking())
            assert all(names(right, each) for each in said), said
            with pytest.raises(RightMissing):
                asyncio.run(admin.prove(rights, secured.topology))
        finally:
            secured.broker.grant(secured.user(role), [right])
        until(lambda: not asyncio.run(lacking()), 10, f"{right} is back")


def test_a_topic_is_not_made_by_who_may_not(secured: Secured) -> None:
    secured.become(Role.SETUP)
    try:
        for right in secured.rights(Role.SETUP):
            secured.broker.revoke(secured.user(Role.SETUP), right)
            try:
                if right.operation is Operation.CREATE:
                    secured.environment = secured.environment | {"DOCSUM_RETRY__DELAYS": "1s,2s,3s"}
                code, said = secured.ended("setup", "topics")
                assert code == 78, said
                assert f"lacks {right.operation} on topic {right.name}" in said
            finally:
                secured.broker.grant(secured.user(Role.SETUP), [right])
                secured.become(Role.SETUP)
    finally:
        secured.become(Role.OPERATOR)


def test_who_may_not_announce_is_told_so(secured: Secured) -> None:
    (right, *_) = secured.rights(Role.UPSTREAM)
    secured.broker.revoke(secured.user(Role.UPSTREAM), right)
    try:
        with pytest.raises(
            BrokerRefused, match=f"upstream lacks Write on topic {secured.topology.documents}"
        ):
            asyncio.run(publish(secured, Role.UPSTREAM, secured.topology.documents))
    finally:
        secured.broker.grant(secured.user(Role.UPSTREAM), [right])


def test_the_doctor_says_as_whom_it_came_and_what_is_missing(secured: Secured) -> None:
    user = secured.user(Role.OPERATOR)
    said = secured.ended("doctor")[1]
    assert f"Kafka: answers, by SASL_SSL, as the user {user}" in said
    assert "ok      rights in Kafka: those of operator" in said
    assert "ok      topics: as they should be" in said
    group = next(right for right in secured.rights(Role.OPERATOR) if right.kind == "group")
    secured.broker.revoke(user, group)
    try:
        code, said = secured.ended("doctor")
        assert code == 1
        assert (
            f"problem rights in Kafka: not all of operator: The Kafka user {user} lacks Describe on" in said
        )
    finally:
        secured.broker.grant(user, [group])


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("role", [Role.WORKER, Role.BATCH, Role.API])
def test_a_process_that_lacks_a_right_ends_with_one_sentence(secured: Secured, role: Role) -> None:
    command = {Role.WORKER: ["worker"], Role.BATCH: ["worker", "--lane", "batch"], Role.API: ["api"]}[role]
    secured.become(role)
    try:
        for right in secured.rights(role):
            secured.broker.revoke(secured.user(role), right)
            try:
                code, said = secured.ended(*command)
                assert code == 78, said
                assert names(right, said), said
                assert "Traceback" not in said
            finally:
                secured.broker.grant(secured.user(role), [right])
    finally:
        secured.become(Role.OPERATOR)


# -- a right that is taken from a running worker ------------------------------------------------------------


def right_of(fleet: Secured, operation: Operation, name: str) -> Right:
    (found,) = [
        right
        for right in fleet.rights(Role.WORKER)
        if right.operation is operation
        and right.covers(name)
        and right.name.startswith(fleet.topology.prefix)
    ]
    return found


@pytest.mark.parametrize(
    "kind", ["dead letters", *(pytest.param(name, marks=LONG) for name in ("retries", "results"))]
)
def test_a_worker_that_may_not_write_any_more_holds_its_work_and_loses_none(
    workers: Secured, kind: str
) -> None:
    fleet, topology = workers, workers.topology
    folder = fleet.folder / f"without {kind}"
    write_documents(folder, 2, seed=len(kind))
    if kind == "dead letters":
        (folder / "none.txt").touch()
    if kind == "retries":
        early = {"document_id": f"early-{kind}", "uri": (folder / "00000.txt").as_uri()}
        early["source_version"] = f"{time.time_ns() + 10**13}:1:1"
        (folder / "list.jsonl").write_text(json.dumps(early) + "\n")
    topic = {
        "dead letters": topology.dead_letters,
        "retries": topology.retries[0],
        "results": topology.summaries,
    }[kind]
    right, user = right_of(fleet, Operation.WRITE, topic), fleet.user(Role.WORKER)
    fleet.broker.revoke(user, right)
    try:
        run_id = fleet.announce(str(folder / "list.jsonl" if kind == "retries" else folder))
        said = f"The Kafka user {user} lacks Write on topic {topic}"
        until(lambda: any(said in hold for hold in fleet.holds()), 40, "the hold names the right")
        assert said in fleet.ended("status")[1].replace("\n", " ")
        assert fleet.workers["live"].poll() is None
    finally:
        fleet.broker.grant(user, [right])
    until(lambda: not fleet.remaining(run_id), 90, "all of it has ended")
    assert fleet.model.paid_again == {}


@pytest.mark.parametrize(
    "kind", ["topic", pytest.param("retries", marks=LONG), pytest.param("group", marks=LONG)]
)
def test_a_worker_that_may_not_read_any_more_ends_with_78_and_loses_nothing(
    workers: Secured, kind: str
) -> None:
    fleet, topology = workers, workers.topology
    name = {
        "topic": topology.backfill,
        "retries": topology.retries[0],
        "group": fleet.kafka(Role.WORKER).group_id,
    }[kind]
    right, user = right_of(fleet, Operation.READ, name), fleet.user(Role.WORKER)
    until(lambda: fleet.is_member("live"), 60, "it is a member")
    before = len(fleet.said("live"))
    fleet.broker.revoke(user, right)
    try:
        folder = fleet.folder / f"without reading {kind}"
        write_documents(folder, 3, seed=30 + len(kind))
        run_id = fleet.announce(str(folder))
        assert fleet.workers["live"].wait(60) == 78
        # A right to a prefix is that of every retry topic: whichever is fetched first is named.
        assert f"{user} lacks Read on {right.kind} {right.name}" in fleet.said("live")[before:]
    finally:
        fleet.broker.grant(user, [right])
    fleet.starts(Role.WORKER, "live")
    until(lambda: not fleet.remaining(run_id), 60, "all of it has ended")
    assert fleet.counts(run_id) == {"done": 3}
    assert fleet.model.paid_again == {}


@LONG
def test_an_api_whose_producer_is_refused_as_a_whole_ends_and_the_next_one_says_why(
    secured: Secured,
) -> None:
    """It was started while Kafka was away, and its rights are gone: that producer would never work again."""
    user = secured.user(Role.API)
    rights = [right for right in secured.rights(Role.API) if right.operation is Operation.WRITE]
    for right in rights:
        secured.broker.revoke(user, right)
    secured.broker.kill()
    secured.become(Role.API)
    api = ApiProcess(secured.folder, secured.environment)
    try:
        api.start()
        asyncio.run(secured.broker.start())
        assert api.ends(60) == 4
        assert "Kafka's client has given up" in api.said()
        code, said = secured.ended("api")
        assert code == 78 and any(names(right, said) for right in rights), said
    finally:
        api.kill()
        for right in rights:
            secured.broker.grant(user, [right])
        secured.become(Role.OPERATOR)


async def leave_waiting(fleet: Secured, topics: Sequence[str]) -> None:
    async with KafkaProducer(fleet.broker.settings, timedelta(seconds=10)) as producer:
        for topic in topics:
            await producer.publish(RecordCopy(topic, None, b"doc", b"no event", ()))


# -- a person's commands ------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_command_that_lacks_a_right_ends_with_one_sentence(workers: Secured) -> None:
    fleet, topology = workers, workers.topology
    folder = fleet.folder / "by the operator"
    write_documents(folder, 1, seed=50)
    one, empty = str(folder / "00000.txt"), folder / "empty.txt"
    empty.touch()
    fleet.docsum("run", str(folder), ok=(3,))
    for name in ("live", "batch"):
        fleet.stop_worker(name)
    looked_at = (topology.documents, topology.backfill, topology.batch, topology.held, topology.retries[0])
    asyncio.run(
        leave_waiting(fleet, looked_at)
    )  # whose age `status` looks up: it reads where something waits
    commands = {
        (Operation.WRITE, topology.documents): ("ingest", one),
        (Operation.WRITE, topology.backfill): ("run", one, "--force"),
        (Operation.WRITE, topology.batch): ("run", one, "--force", "--lane", "batch", "--no-wait"),
        (Operation.WRITE, topology.summaries): ("documents", "delete", one),
        (Operation.READ, topology.dead_letters): ("dlq", "replay", "--all", "--yes"),
        (Operation.DESCRIBE_CONFIGS, f"{topology.prefix}."): ("setup", "topics", "--check"),
    }
    for right in fleet.rights(Role.OPERATOR):
        command = commands.get((right.operation, right.name), ("status",))
        fleet.broker.revoke(fleet.user(Role.OPERATOR), right)
        try:
            code, said = fleet.ended(*command)
            said = " ".join(said.split())
            assert code in (4, 78), f"{right}: {command} ends with {code}: {said}"
            # Whoever may read may describe: without the right both are missing, and describing comes first.
            first = (
                {right.operation, Operation.DESCRIBE} if right.operation in DESCRIBING else {right.operation}
            )
            names = [f"lacks {operation} on {right.kind} {right.name}" for operation in first]
            assert any(name in said for name in names), f"{right}: {said}"
            assert "Traceback" not in said
        finally:
            fleet.broker.grant(fleet.user(Role.OPERATOR), [right])
