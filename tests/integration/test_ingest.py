"""`docsum ingest` as a user runs it, killed at any moment; and events in topics of others."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from docsum.bootstrap import open_admin
from docsum.fetchers.file import file_version
from docsum.models import DeadLetterFilter, Known, State, SummaryRow
from docsum.settings import Fetch
from docsum.sources import file_id
from docsum.stores.clickhouse import ClickHouseStore
from tests.integration.test_bad_events import headers_of, known
from tests.support.broker import Broker
from tests.support.deployment import ROOT, Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.object_store import Fault, FaultProxy, S3Server, environment, s3_server
from tests.unit.test_notifications import CEPH, MINIO, changed

pytestmark = pytest.mark.timeout(600)

FOLLOW = ("--follow", "--deletes", "--rescan", "15s", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    served = ModelServer(tmp_path_factory.mktemp("model"), "--fast")
    yield served
    served.close()


@pytest.fixture(scope="module")
def fleet(
    broker: Broker, engine: Engine, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("ingest"), broker, engine, model)
    try:
        made.start_workers("only")
        yield made
    finally:
        made.close()


# -- a folder that never rests -------------------------------------------------------------------------------


@dataclass
class Folder:
    """Files to which anything happens."""

    path: Path
    luck: random.Random
    written: dict[Path, str] = field(default_factory=dict)  # what only its newest text says
    gone: set[Path] = field(default_factory=set)
    numbers: int = 0

    def create(self) -> None:
        self.numbers += 1
        parent = self.path / self.luck.choice(("", "in", "in/deep", f"new{self.numbers % 7}"))
        self._write(parent / f"{self.numbers:04}.txt")

    def change(self) -> None:
        self._write(self._one())

    def rename(self) -> None:
        old = self._one()
        self.numbers += 1
        new = self.path / self.luck.choice(("", "in")) / f"{self.numbers:04}.txt"
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        self._is_gone(old, new)

    def delete(self) -> None:
        path = self._one()
        path.unlink()
        self.written.pop(path)
        self.gone.add(path)

    def rename_folder(self) -> None:
        """With all that is in it."""
        folders = [path for path in self.path.iterdir() if path.is_dir() and path.name.startswith("new")]
        if not folders:
            return
        old = self.luck.choice(folders)
        self.numbers += 1
        new = self.path / f"moved{self.numbers}"
        old.rename(new)
        for path in [path for path in self.written if path.is_relative_to(old)]:
            self._is_gone(path, new / path.relative_to(old))

    def anything(self) -> None:
        deeds = (self.create, self.change, self.change, self.rename, self.delete, self.rename_folder)
        self.luck.choices(deeds, (4, 4, 4, 2, 2, 0.3))[0]()

    def _one(self) -> Path:
        return self.luck.choice(sorted(self.written))

    def _write(self, path: Path) -> None:
        self.numbers += 1
        text = f"The harbour {self.numbers} is closed on Monday. Nobody repairs wall {self.numbers}.\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:  # in two parts, as writers do
            file.write(text[:20])
            file.flush()
            file.write(text[20:])
        self.written[path] = f"harbour {self.numbers} is"
        self.gone.discard(path)

    def _is_gone(self, old: Path, new: Path) -> None:
        self.written[new] = self.written.pop(old)
        self.gone.add(old)
        self.gone.discard(new)


class Follower:
    """`docsum ingest --follow`, killed and begun again."""

    def __init__(self, fleet: Fleet, path: Path) -> None:
        self.fleet = fleet
        self.path = path
        self.kills = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return self.fleet.start("ingest", str(self.path), *FOLLOW)

    def kill(self) -> None:
        assert self.process.poll() is None, self.process.communicate()
        self.process.kill()
        self.process.communicate()
        self.kills += 1
        self.process = self._start()

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


Found = tuple[Known | None, SummaryRow | None]


def stored(fleet: Fleet, paths: list[Path]) -> dict[Path, Found]:
    async def ask(store: ClickHouseStore) -> list[Found]:
        async def one(path: Path) -> Found:
            name = file_id(str(path))
            return await store.known(name), await store.summary(name)

        return await asyncio.gather(*map(one, paths))

    return dict(zip(paths, fleet.ask(ask), strict=True))


def wrong(fleet: Fleet, folder: Folder) -> list[str]:
    """What is not yet as the folder is."""
    found = stored(fleet, [*folder.written, *folder.gone])
    problems = []
    for path, text in folder.written.items():
        before, row = found[path]
        if row is None or row.summary is None:
            problems.append(f"{path.name} has no summary: {before}")
        elif row.source_version != file_version(path.stat()) or text not in row.summary.summary:
            problems.append(f"{path.name} has an old one: {row.summary.summary}")
    problems += [
        f"{path.name} is not deleted"
        for path in folder.gone
        if (state := found[path][0]) and not state.deleted
    ]
    return problems


def test_a_followed_folder_ends_as_it_is_whatever_was_killed(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    files, seed = int(request.config.getoption("--ingest-files")), request.config.getoption("--ingest-seed")
    folder = Folder(fleet.folder / "followed", random.Random(f"ingest {seed}"))
    folder.path.mkdir()
    for _ in range(files):
        folder.create()
    follower = Follower(fleet, folder.path)
    try:
        deeds = max(files * 2, 60)
        kills = sorted(folder.luck.sample(range(deeds), 6))
        for deed in range(deeds):
            folder.anything()
            if folder.luck.random() < 0.3:  # the pace of what happens is part of the seed
                time.sleep(folder.luck.random() * 0.5)
            if deed in kills:
                follower.kill()
                time.sleep(folder.luck.random() * 5)
        until(lambda: not wrong(fleet, folder), 120 + files / 2, "all is as it is in the folder")
    except AssertionError:
        follower.process.kill()
        raise AssertionError(wrong(fleet, folder)[:20], follower.process.communicate()) from None
    code, out, err = follower.stop()
    assert code == 130, err
    assert json.loads(out)["source"] == str(folder.path)
    assert follower.kills == 6
    assert fleet.model.paid_again == {}
    # What was gone before a worker came to it failed, and its deletion has settled that.
    letters = fleet.ask(lambda store: store.dead_letter_groups(DeadLetterFilter(states=())))
    assert {(each.reason, each.state) for each in letters} <= {("source_not_found", "resolved")}
    again = json.loads(fleet.docsum("ingest", str(folder.path), "--deletes", "--json"))
    assert (again["new"], again["changed"], again["deleted"]) == (0, 0, 0)
    assert again["unchanged"] == len(folder.written)


def test_a_second_time_nothing_is_announced_and_what_is_piped_in_always_is(fleet: Fleet) -> None:
    folder = fleet.folder / "twice"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"The bridge {number} is open. Everybody crosses it.\n")
    first = json.loads(fleet.docsum("ingest", str(folder), "--json"))
    second = json.loads(fleet.docsum("ingest", str(folder), "--json"))
    assert [(each["new"], each["unchanged"]) for each in (first, second)] == [(3, 0), (0, 3)]
    paths = sorted(folder.iterdir())
    until(lambda: all(row for _, row in stored(fleet, paths).values()), 60, "they are summarised")
    billed = fleet.model.billed
    lines = "".join(
        json.dumps({"document_id": file_id(str(path)), "uri": path.as_uri()}) + "\n" for path in paths
    )
    done = subprocess.run(
        [sys.executable, "-m", "docsum", "ingest", "-", "--json"],
        env=fleet.environment,
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["new"] == 3
    until(fleet.has_caught_up, 60, "the events are worked off")
    assert fleet.model.billed == billed


def test_half_of_a_folder_is_not_deleted_without_a_yes(fleet: Fleet) -> None:
    folder = fleet.folder / "halved"
    folder.mkdir()
    paths = [folder / f"{number:02}.txt" for number in range(30)]
    for path in paths:
        path.write_text(f"The tower {path.stem} is closed. Nobody climbs it.\n")
    fleet.docsum("ingest", str(folder), "--deletes")
    for path in paths[:20]:
        path.unlink()
    refused = json.loads(fleet.docsum("ingest", str(folder), "--deletes", "--json", ok=(6,)))
    assert (refused["deleted"], refused["kept"]) == (0, 20)
    assert json.loads(fleet.docsum("ingest", str(folder), "--deletes", "--yes", "--json"))["deleted"] == 20
    gone = [file_id(str(path)) for path in paths[:20]]
    until(lambda: all(each and each.deleted for each in known(fleet, gone).values()), 60, "they are deleted")


# -- topics of others ----------------------------------------------------------------------------------------


NONE: Mapping[str, str] = {}
Place = tuple[Path, Broker, Engine, ModelServer]


class Theirs:
    """A topic of somebody else, and a bucket; beside a deployment that reads both."""

    partitions = 5

    def __init__(self, place: Place, s3: S3Server, proxy: FaultProxy) -> None:
        folder, broker, engine, model = place
        self.s3, self.proxy = s3, proxy
        self.bucket = s3.bucket()
        self.topic = f"theirs-{uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers})
        admin.create_topics([NewTopic(self.topic, self.partitions, 1)])[self.topic].result(30)
        fetch = Fetch(file_roots=(str(folder),), buckets=(f"s3://{self.bucket}",))
        self.fleet = Fleet(folder, broker, engine, model, partitions=3, fetch=fetch, inputs=(self.topic,))
        self.fleet.environment.update(environment(proxy.url))

    def publish(
        self, value: bytes | None, key: bytes, partition: int = -1, headers: Mapping[str, str] = NONE
    ) -> None:
        producer = Producer({"bootstrap.servers": self.fleet.brokers})
        producer.produce(
            self.topic, value, key, partition,
            headers=[(name, text.encode()) for name, text in headers.items()],
        )  # fmt: skip
        assert producer.flush(30) == 0

    def put(self, key: str, text: str) -> str:
        """An object; its etag."""
        self.s3.put(self.bucket, key, text.encode())
        return hashlib.md5(text.encode()).hexdigest()

    def notify(self, message: dict[str, Any], key: str, etag: str, **fields: object) -> bytes:
        """A notification of now, published under the key that MinIO takes."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        found = changed(message, key=key, eTag=etag, eventTime=now, **fields)
        found["Records"][0]["s3"]["bucket"]["name"] = self.bucket
        value = json.dumps(found).encode()
        self.publish(value, f"{self.bucket}/{key}".encode(), headers=CLOUD_EVENT)
        return value

    def known(self, document_id: str) -> Known | None:
        return known(self.fleet, [document_id])[document_id]

    def is_done(self, document_id: str, version: str | None = None) -> bool:
        found = self.known(document_id)
        return found is not None and found.state is State.DONE and version in (None, found.source_version)

    def dead_letter(self, value: bytes) -> Message | None:
        return next((each for each in self.fleet.dead_letters() if each.value() == value), None)


CLOUD_EVENT = {
    "ce_specversion": "1.0",
    "ce_id": "A-1",
    "ce_type": "com.example.changed",
    "traceparent": "00-4bf9-01",
}


@pytest.fixture(scope="module")
def theirs(
    broker: Broker, engine: Engine, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Theirs]:
    folder = tmp_path_factory.mktemp("theirs")
    with s3_server(folder) as s3, FaultProxy(s3.url) as proxy:
        made = Theirs((folder, broker, engine, model), s3, proxy)
        try:
            made.fleet.start_workers("only")
            yield made
        finally:
            made.fleet.close()


def carried(message: Message) -> dict[str, str]:
    """What a copy has of the headers that its producer gave it."""
    return {name: (value or b"").decode() for name, value in headers_of(message) if name in CLOUD_EVENT}


def test_minimal_events_in_every_partition_of_a_foreign_topic_are_summarised(theirs: Theirs) -> None:
    names = [f"row {number}" for number in range(theirs.partitions)]
    for number, name in enumerate(names):
        path = theirs.fleet.folder / f"{name}.txt"
        path.write_text(f"The quay {number} is closed. Nobody moors there.\n")
        event = json.dumps({"document_id": name, "uri": path.as_uri()}).encode()
        theirs.publish(event, b"customer-7", number)
    until(lambda: all(map(theirs.is_done, names)), 60, "all are done")
    settings = theirs.fleet.reached

    def behind() -> dict[int, int]:
        lag = asyncio.run(open_admin(settings).lag(settings.kafka.group_id, settings.topology()))
        return {each.partition: each.lag for each in lag if each.topic == theirs.topic}

    until(lambda: behind() == dict.fromkeys(range(theirs.partitions), 0), 30, "they are committed")
    theirs.publish(None, names[0].encode())
    until(lambda: (found := theirs.known(names[0])) is not None and found.deleted, 30, "a null value deletes")


@pytest.mark.parametrize(
    ("message", "key", "written"),
    [
        (MINIO, "minio/may report+1.txt", "minio%2Fmay+report%2B1.txt"),
        (CEPH, "ceph/may report+1.txt", "ceph/may report+1.txt"),
    ],
)
def test_an_object_is_summarised_as_it_is_notified_and_deleted_when_it_is_removed(
    theirs: Theirs, message: dict[str, Any], key: str, written: str
) -> None:
    name = f"s3://{theirs.bucket}/{key}"
    for text in (f"The ferry of {key} is late. Nobody waits.\n", f"The ferry of {key} is early. All wait.\n"):
        etag = theirs.put(key, text)
        theirs.notify(message, written, etag)
        until(lambda etag=etag: theirs.is_done(name, etag), 60, "this state is summarised")  # type: ignore[misc]
    listed = json.loads(theirs.fleet.docsum("ingest", f"s3://{theirs.bucket}/{key}", "--json"))
    assert listed["new"] == 1
    until(theirs.fleet.has_caught_up, 30, "it is as it was notified")
    assert theirs.fleet.model.paid_again == {}
    theirs.notify(message, written, "", eventName="s3:ObjectRemoved:Delete")
    until(lambda: (found := theirs.known(name)) is not None and found.deleted, 60, "it is deleted")


def test_two_records_in_one_message_are_a_dead_letter_with_all_that_came(theirs: Theirs) -> None:
    value = json.dumps({"Records": MINIO["Records"] * 2}).encode()
    theirs.publish(value, b"reports/2026", headers=CLOUD_EVENT)
    until(lambda: theirs.dead_letter(value) is not None, 60, "it is a dead letter")
    copy = theirs.dead_letter(value)
    assert copy is not None
    headers = dict(headers_of(copy))
    assert (headers["docsum-reason"], headers["docsum-orig-topic"]) == (
        b"invalid_event",
        theirs.topic.encode(),
    )
    assert "has 2 records" in (headers["docsum-error-message"] or b"").decode()
    assert (copy.key(), carried(copy)) == (b"reports/2026", CLOUD_EVENT)


def test_retries_dead_letters_and_replays_keep_what_others_wrote(theirs: Theirs) -> None:
    key, text = "later/report.txt", "The lighthouse is dark. Nobody lights it.\n"
    name, etag = f"s3://{theirs.bucket}/{key}", theirs.put("elsewhere.txt", text)
    theirs.proxy.faults = [Fault(r"later/report\.txt", status=500, code="InternalError", times=3)]
    value = theirs.notify(MINIO, key, etag)
    until(lambda: theirs.dead_letter(value) is not None, 120, "it is a dead letter")
    theirs.proxy.faults = []
    retried = [each for topic in theirs.fleet.topology.retries for each in theirs.fleet.records(topic)]
    copy = theirs.dead_letter(value)
    assert copy is not None
    for each in (copy, *(each for each in retried if each.value() == value)):
        assert (each.key(), carried(each)) == (f"{theirs.bucket}/{key}".encode(), CLOUD_EVENT)
    assert [each for each in retried if each.value() == value], "it was tried again before"
    theirs.put(key, text)
    replayed = json.loads(theirs.fleet.docsum("dlq", "replay", "--document", name, "--yes", "--json"))
    assert replayed["replayed"] == 1
    until(lambda: theirs.is_done(name, etag), 60, "it is summarised")
