"""The worker on a real broker: nothing is lost by any end, nothing is repeated by an orderly one."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from docsum.local.loopback import free_port
from tests.support.broker import Broker
from tests.support.waiting import eventually

PARTITIONS = 12


@dataclass(frozen=True)
class Line:
    act: str
    topic: str
    partition: int
    offset: int
    pid: int
    at_ms: int

    @property
    def record(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset


class Group:
    """Workers of one group, each a process, and what they have written down."""

    def __init__(self, brokers: str, folder: Path, topics: tuple[str, ...]) -> None:
        self.brokers = brokers
        self.topics = topics
        self.name = f"group-{uuid4().hex[:8]}"
        self.journal = folder / "journal"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5})
        self.sent = 0

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.journal.parent / f"worker-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.worker_process",
                f"--brokers={self.brokers}",
                f"--group={self.name}",
                f"--topics={','.join(self.topics)}",
                f"--journal={self.journal}",
                f"--partitions={PARTITIONS}",
                *arguments,
            ],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
        log.close()
        self.processes.append(process)
        return process

    def send(self, topic: str, partition: int, value: str, **headers: str) -> None:
        pairs: dict[str, str | bytes | None] = {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        self.producer.produce(topic, value.encode(), partition=partition, headers=pairs)
        self.producer.poll(0)
        self.sent += 1

    def lines(self, act: str = "") -> list[Line]:
        if not self.journal.exists():
            return []
        found = []
        whole, _, _ = self.journal.read_text().rpartition("\n")  # the last line may be half written as yet
        for text in whole.splitlines():
            one, topic, *numbers = text.split()
            found.append(Line(one, topic, *map(int, numbers)))
        return [line for line in found if not act or line.act == act]

    def finished(self) -> dict[tuple[str, int, int], int]:
        counts: dict[tuple[str, int, int], int] = defaultdict(int)
        for line in self.lines("F"):
            counts[line.record] += 1
        return counts

    def owners(self) -> dict[int, dict[str, set[int]]]:
        """Living worker -> topic -> partition numbers, as of its last assignment."""
        living = {process.pid for process in self.processes if process.poll() is None}
        last: dict[int, int] = {}
        for line in self.lines("O"):
            last[line.pid] = max(last.get(line.pid, 0), line.at_ms)
        found: dict[int, dict[str, set[int]]] = {pid: defaultdict(set) for pid in living}
        for line in self.lines("O"):
            if line.pid in living and last[line.pid] - line.at_ms < 1000:
                found[line.pid][line.topic].add(line.partition)
        return found

    def committed(self) -> dict[tuple[str, int], int]:
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": self.name})
        wanted = [TopicPartition(topic, n) for topic in self.topics for n in range(PARTITIONS)]
        try:
            return {(tp.topic, tp.partition): tp.offset for tp in consumer.committed(wanted, timeout=10)}
        finally:
            consumer.close()

    def ends(self) -> dict[tuple[str, int], int]:
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": f"{self.name}-look"})
        try:
            return {
                (topic, n): consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1]
                for topic in self.topics
                for n in range(PARTITIONS)
            }
        finally:
            consumer.close()

    def stop(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
        process.send_signal(how)
        return process.wait(60)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)


@pytest.fixture
def group(broker: Broker, tmp_path: Path) -> Iterator[Group]:
    made = Group(
        broker.settings.bootstrap_servers, tmp_path, make_topics(broker.settings.bootstrap_servers, 1)
    )
    yield made
    made.close()


def make_topics(brokers: str, count: int) -> tuple[str, ...]:
    names = tuple(f"t-{uuid4().hex[:8]}" for _ in range(count))
    admin = AdminClient({"bootstrap.servers": brokers})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        future.result(20)
    return names


async def all_finished(group: Group, within: float = 60) -> None:
    group.producer.flush(20)
    await eventually(lambda: len(group.finished()) == group.sent, within, "every record finished")


async def feed(group: Group) -> None:
    """Records without end, a hundred a second."""
    for number in itertools.count():
        group.send(group.topics[0], number % PARTITIONS, "0.1")
        await asyncio.sleep(0.01)


async def test_a_clean_stop_a_join_and_a_leave_lose_nothing_and_repeat_nothing(group: Group) -> None:
    feeding = asyncio.create_task(feed(group))

    async def at_work(process: subprocess.Popen[bytes]) -> None:
        await eventually(lambda: any(line.pid == process.pid for line in group.lines("F")), 45)

    first = group.start("--instance-id=a")
    await at_work(first)
    second = group.start("--instance-id=b")  # a join
    await at_work(second)
    assert group.stop(first) == 0  # a clean stop: a static member may come back
    third = group.start("--instance-id=a")
    await at_work(third)
    feeding.cancel()
    await all_finished(group)
    assert set(group.finished().values()) == {1}
    for process in (second, third):
        assert group.stop(process) == 0
    assert group.committed() == group.ends()


@pytest.mark.parametrize("how", ["raise", "SIGTERM", "SIGKILL"])
async def test_the_end_of_a_worker_in_the_middle_loses_nothing(group: Group, how: str) -> None:
    (topic,) = group.topics
    for number in range(240):
        group.send(topic, number % PARTITIONS, "raise" if how == "raise" and number == 50 else "0.1")
    worker = group.start("--instance-id=a")
    await eventually(lambda: len(group.lines("F")) > 30, 30)
    if how == "raise":
        await eventually(lambda: worker.poll() is not None, 60, "the worker ended by itself")
        assert worker.returncode != 0
    else:
        group.stop(worker, signal.Signals[how])
    group.start("--instance-id=a")
    await all_finished(group)
    await eventually(lambda: group.committed() == group.ends(), 10, "everything committed")


async def test_a_committed_offset_never_passes_an_unfinished_record(group: Group) -> None:
    (topic,) = group.topics
    group.send(topic, 0, "5")  # a slow head
    for _ in range(30):
        group.send(topic, 0, "0.01")
    worker = group.start("--instance-id=a")
    await eventually(lambda: len(group.lines("F")) >= 25, 30)
    group.stop(worker, signal.SIGKILL)
    assert group.committed()[topic, 0] == 0
    group.start("--instance-id=a")
    await all_finished(group)


async def test_one_stuck_partition_does_not_slow_the_others(group: Group) -> None:
    (topic,) = group.topics
    for _ in range(100):
        group.send(topic, 0, "20")
    group.start()
    await eventually(lambda: len(group.lines("S")) >= 4, 30)
    begun = time.monotonic()
    for number in range(550):
        group.send(topic, 1 + number % (PARTITIONS - 1), "0.02")
    group.producer.flush(20)
    await eventually(lambda: len(group.finished()) >= 550, 30, "the other partitions finished")
    assert time.monotonic() - begun < 15


async def test_a_retry_copy_is_never_started_early(group: Group) -> None:
    (topic,) = group.topics
    group.start()
    await eventually(lambda: bool(group.lines("O")), 30)
    due: dict[tuple[str, int, int], int] = {}
    now_ms = time.time_ns() // 1_000_000
    for number in range(PARTITIONS * 5):
        partition, offset = number % PARTITIONS, number // PARTITIONS
        not_before = now_ms + 1_000 + 400 * offset
        due[topic, partition, offset] = not_before
        group.send(topic, partition, "0", docsum_not_before_ms=str(not_before))
    await all_finished(group)
    late = [line.at_ms - due[line.record] for line in group.lines("S")]
    assert min(late) >= 0
    assert sorted(late)[len(late) // 2] < 500  # a lazy bound: the machine may be busy


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
async def test_partition_n_of_every_topic_belongs_to_one_worker(
    broker: Broker, tmp_path: Path, workers: int
) -> None:
    group = Group(
        broker.settings.bootstrap_servers, tmp_path, make_topics(broker.settings.bootstrap_servers, 3)
    )
    try:
        for number in range(workers):
            group.start(f"--instance-id=w{number}")

        def shared_out() -> bool:
            owners = group.owners()
            numbers = [n for topics in owners.values() for n in topics.get(group.topics[0], set())]
            return len(owners) == workers and sorted(numbers) == list(range(PARTITIONS))

        await eventually(shared_out, 45, "all partitions shared out")
        for topics in group.owners().values():
            first, *others = (topics[name] for name in group.topics)
            assert all(numbers == first for numbers in others)
    finally:
        group.close()


async def test_partitions_without_an_offset_get_one_on_assignment(group: Group) -> None:
    group.start()
    await eventually(
        lambda: set(group.committed().values()) == {0}, 30, "a committed offset on every partition"
    )


async def test_a_worker_that_cannot_reach_the_broker_ends_so_that_it_is_started_again(
    broker: Broker, tmp_path: Path
) -> None:
    group = Group(broker.settings.bootstrap_servers, tmp_path, ("none",))
    group.brokers = f"127.0.0.1:{free_port()}"
    worker = group.start()
    await eventually(lambda: worker.poll() is not None, 90, "the worker ended")
    assert worker.returncode == 1
