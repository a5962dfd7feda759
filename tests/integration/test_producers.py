"""The programs of schemas/examples as they are: what they announce is summarised, and they read it back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.partitioner import murmur2
from confluent_kafka import Message

from docsum.bootstrap import open_producer
from docsum.kafka.results import VERSION
from docsum.models import RecordCopy
from docsum.stores.clickhouse import ClickHouseStore
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.registry import register, schema_registry
from tests.support.tools import java_class_path, node_modules, tool

pytestmark = pytest.mark.timeout(300)

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = SCHEMAS / "examples"
#: Announced by every program; each must come to the same partition from each.
KEYS = (
    *(f"doc-{number}" for number in range(8)),
    "rechnung 7",
    "договор",
    'a "quoted" name',
    "back\\slash",
    "s3://b/ü?x=1",
)


def python(*options: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / "publish.py"), *options, "SERVERS", "TOPIC"]


def java(*options: str) -> list[str]:
    tool("javac", "default-jdk-headless")  # a runtime alone runs no source
    program = str(EXAMPLES / "Publish.java")
    return [
        tool("java", "default-jdk-headless"),
        "-cp",
        java_class_path(),
        program,
        "SERVERS",
        "TOPIC",
        *options,
    ]


def kcat() -> list[str]:
    tool("kcat", "kcat")
    return ["sh", str(EXAMPLES / "publish.sh"), "SERVERS", "TOPIC"]


PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "python-avro": python,
    "python-json": lambda: python("--json"),
    "java-avro": lambda: java(str(SCHEMAS / "document_reference.v1.avsc")),
    "java-json": lambda: java("--json"),
    "kcat": kcat,
    "node": lambda: [tool("node", "nodejs"), "publish.mjs", "SERVERS", "TOPIC"],
}


class House:
    """One worker for all programs; it tells its results by way of a schema registry."""

    def __init__(self, folder: Path, broker: Broker, engine: Engine, registry: str) -> None:
        self.folder, self.registry = folder, registry
        self.model = ModelServer(folder / "model", "--fast")
        self.fleet = Fleet(folder, broker, engine, self.model, registry=registry, summaries=True)
        self.documents = self.fleet.topology.documents
        self.summaries = self.fleet.topology.summaries
        asyncio.run(register(registry, self.fleet.topology))
        self.fleet.start_workers("worker-1")
        self._seen: set[tuple[int | None, int | None]] = set()

    def run(self, words: list[str], topic: str, text: str = "", cwd: Path | None = None) -> str:
        """What a program prints; it must end well."""
        names = {"SERVERS": self.fleet.brokers, "TOPIC": topic}
        command = [names.get(word, word) for word in words]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=60, cwd=cwd, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def new_records(self) -> list[Message]:
        """Events that were not there the last time."""
        there = {(each.partition(), each.offset()): each for each in self.fleet.records(self.documents)}
        found = [message for place, message in there.items() if place not in self._seen]
        self._seen.update(there)
        return found

    def close(self) -> None:
        self.fleet.close()
        self.model.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, broker: Broker, engine: Engine) -> Iterator[House]:
    with schema_registry() as registry:
        made = House(tmp_path_factory.mktemp("producers"), broker, engine, registry.url)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_announces_is_summarised(house: House, name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]()
    cwd = node_modules(EXAMPLES / "node", tmp_path / "node") if name == "node" else None
    own, gone = f"only from {name}", f"gone from {name}"
    document = house.folder / f"{name}.txt"
    document.write_text(f"The harbour of {name} is closed until the northern wall has been repaired.\n")
    lines = [f"{key}\t{document.as_uri()}\n" for key in KEYS] + [
        f"{own}\t{document.as_uri()}\tv1\n",
        f"{gone}\n",
    ]
    house.run(program, house.documents, "".join(lines), cwd)

    records = house.new_records()
    assert {_key(record).decode() for record in records} == {*KEYS, own, gone}
    partitions = house.fleet.topology.partitions
    for record in records:
        assert record.partition() == (murmur2(_key(record)) & 0x7FFF_FFFF) % partitions, _key(record)
        assert record.timestamp()[1] > 0

    async def summarised(store: ClickHouseStore) -> bool:
        rows = [await store.summary(key) for key in (*KEYS, own)]
        known = await store.known(gone)
        return (
            all(row and row.summary and name in row.summary.summary for row in rows)
            and known is not None
            and known.deleted
        )

    until(lambda: house.fleet.ask(summarised), 60, f"{name}'s documents are summarised")
    assert house.fleet.dead_letters() == []


def _key(record: Message) -> bytes:
    key = record.key()
    assert key is not None
    return key


def results_python() -> list[str]:
    return [sys.executable, str(EXAMPLES / "results.py"), "SERVERS", "TOPIC"]


def results_java() -> list[str]:
    tool("javac", "default-jdk-headless")
    program, schema = str(EXAMPLES / "Results.java"), str(SCHEMAS / "summary_result.v1.avsc")
    java = tool("java", "default-jdk-headless")
    return [java, "-cp", java_class_path(), program, "SERVERS", "TOPIC", schema]


@pytest.mark.parametrize("name", ["python", "java"])
def test_a_program_reads_what_has_become_of_its_documents(house: House, name: str) -> None:
    """Framed ones by way of the registry, those in single-object encoding by the file."""
    reader = {"python": results_python, "java": results_java}[name]()
    document = house.folder / "told.txt"
    document.write_text("The library opens on Saturdays from March on.\n")
    ids = [f"told to {name}", f"broken for {name}"]
    lines = f"{ids[0]}\t{document.as_uri()}\n{ids[1]}\tfile:///etc/passwd\n"
    house.run(python("--json"), house.documents, lines)
    example = RecordCopy(
        house.summaries,
        None,
        f"by hand for {name}".encode(),
        (EXAMPLES / "results" / "done.bin").read_bytes(),
        ((VERSION, b"0" * 32),),
    )

    async def publish() -> None:
        async with open_producer(house.fleet.settings) as producer:
            await producer.publish(example)

    asyncio.run(publish())
    until(lambda: _told(house, ids), 60, "both are told")
    lines = house.run([*reader, house.registry], house.summaries)
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines.splitlines()}
    assert rows[ids[0]][:2] == ["done", ""] and rows[ids[0]][2]
    assert rows[ids[1]] == ["dead_lettered", "source_not_allowed", ""]
    assert rows[f"by hand for {name}"] == ["done", "", "Mietvertrag"]


def _told(house: House, ids: list[str]) -> bool:
    return {_key(each).decode() for each in house.fleet.records(house.summaries)}.issuperset(ids)
