"""docsum's own Kafka worker with a no-op in place of the pipeline, in a process of its own, on a real broker.

  noop      a million events wait in the backfill topic: events a second and processor time an event, by
            quarters of them (does the millionth cost more than the first?), and memory after each quarter
  lateness  100,000 records wait in the retry topics and are then due, 3,000 a second: how late each is begun,
            and what a worker costs while all of them wait

Events and copies are made by docsum's own code, published before the worker starts, and committed by it: the
bench fails unless the broker has an offset for every one. Of a partition the worker holds 48 records, all
others wait in the broker, whose processor time is not counted. `late` is from the moment in a record's header
to the first step of its work, by the wall clock; records are due in the order of their offsets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from docsum.bootstrap import setup_topics
from docsum.kafka.codec import EventCodec, new_event
from docsum.kafka.copies import RecordCopies
from docsum.kafka.headers import delivery_of
from docsum.kafka.security import client_config
from docsum.models import Failure, RecordCopy, Retried, from_ms, to_ms
from docsum.ports import SystemClock
from docsum.settings import Kafka, Settings
from docsum.topics import Topology
from tests.bench import report
from tests.bench.command import carry_out, result_path, say
from tests.bench.intake_worker import REST, SETTLE, Mark
from tests.bench.stand import BenchFailed
from tests.support.broker import Broker
from tests.support.deployment import ROOT

NOOP_COLUMNS = ("events/s", "CPU µs/event", "MB after it")
LATENESS_COLUMNS = ("late ms p50", "p99", "most", "least", "CPU % while all wait", "MB then", "MB at the end")
_QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter")
_START = timedelta(seconds=20)  # for a worker's process to have its partitions
_PUBLISHED = 2_000  # copies a second are made and acknowledged, at least
_FAILURE = Failure("source_unavailable", "The source did not answer.", "fetch", "SourceUnavailable")
_FLUSH = 60.0  # seconds

_Found = Mapping[str, Any]  # Any: what was read from JSON


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do."""

    events: int  # 0: no measurement of these
    waiting: int  # records in the retry topics; 0: the same
    due: int  # of them, a second


@dataclass(frozen=True, slots=True)
class Stretch:
    """The process over some of its events."""

    rate: float  # events a second
    cpu_us: float  # user and system time, microseconds an event
    mb: float  # resident memory at its end


@dataclass(frozen=True, slots=True)
class Noop:
    events: int
    again: int  # events that were begun once more
    mb_before: float  # when the first event was begun
    quarters: tuple[Stretch, ...]
    all: Stretch  # from the first event begun to the last offset committed


@dataclass(frozen=True, slots=True)
class Lateness:
    """Milliseconds; below 0 is early."""

    waiting: int
    due: int  # a second
    again: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    least_ms: float
    resting_percent: float  # of a core, while all wait
    mb_resting: float
    mb: float  # when all are committed


# -- what was seen -----------------------------------------------------------------------------------------


def stretch(before: Mark, after: Mark) -> Stretch:
    count = after.begun - before.begun
    cpu_us = 1e6 * (after.cpu - before.cpu) / count
    return Stretch(count / (after.seconds - before.seconds), cpu_us, after.rss / 1e6)


def noop_of(events: int, marks: Sequence[Mark]) -> Noop:
    """Of marks at the first event, after each quarter, and when all were committed."""
    first, *_, end = marks
    return Noop(
        events=events,
        again=end.begun - events,
        mb_before=first.rss / 1e6,
        quarters=tuple(stretch(*each) for each in pairwise(marks[:-1])),
        all=stretch(first, end),
    )


def lateness_of(load: Load, late_ms: Sequence[float], marks: Sequence[Mark]) -> Lateness:
    """Of marks at both ends of the rest, and when all were committed."""
    before, rested, end = marks
    ordered = sorted(late_ms)
    return Lateness(
        waiting=load.waiting,
        due=load.due,
        again=len(ordered) - load.waiting,
        p50_ms=ordered[len(ordered) // 2],
        p99_ms=ordered[len(ordered) * 99 // 100],
        most_ms=ordered[-1],
        least_ms=ordered[0],
        resting_percent=100 * (rested.cpu - before.cpu) / (rested.seconds - before.seconds),
        mb_resting=rested.rss / 1e6,
        mb=end.rss / 1e6,
    )


# -- what waits --------------------------------------------------------------------------------------------


async def events(topology: Topology, count: int) -> AsyncIterator[RecordCopy]:
    """Events of a backfill, as `docsum run` makes them; about 200 bytes each."""
    topic, now = topology.backfill, SystemClock().now()
    async with EventCodec() as codec:
        for number in range(count):
            document_id = f"reports/2026/{number:07d}.txt"
            event = new_event(
                document_id,
                f"file:///srv/documents/{document_id}",
                occurred_at=now,
                source_version=f"{number:064x}",
                media_type="text/plain",
                size_bytes=1024,
                title=f"Report {number}",
            )
            yield RecordCopy(topic, None, document_id.encode(), await codec.encode(event, topic), ())


async def retries(
    topology: Topology, group: str, count: int, first_due_ms: int, due: int
) -> AsyncIterator[RecordCopy]:
    """Copies as after a failed fetch, for all retry topics in turn; `due` a second, from that moment on."""
    clock, number = SystemClock(), 0
    copies = RecordCopies(topology, group, clock)
    now_ms = to_ms(clock.now())
    async with EventCodec() as codec:
        async for event in events(topology, count):
            topic, partition, offset = place(topology, number)
            at = (topology.backfill, partition, offset)
            delivery = delivery_of(*at, event.key, event.value, (), now_ms)
            not_before = from_ms(due_ms(number, first_due_ms, due))
            failed = Retried(topic, not_before, _FAILURE)
            copy = copies.of(delivery, await codec.decode(delivery), failed)
            assert copy is not None
            yield copy
            number += 1


def place(topology: Topology, number: int) -> tuple[str, int, int]:
    """Retry topic, partition, and offset in it, of a record: every partition of every topic has its turn."""
    round_, topic = divmod(number, len(topology.retries))
    offset, partition = divmod(round_, topology.partitions)
    return topology.retries[topic], partition, offset


def due_ms(number: int, first_due_ms: int, due: int) -> int:
    """Later with every record, so within a partition in the order of its offsets."""
    return first_due_ms + 1000 * number // due


def lead(waiting: int) -> timedelta:
    """From the first record made to the first one due: all are published by then, and a worker rests."""
    return timedelta(seconds=waiting / _PUBLISHED) + _START + SETTLE + REST


async def publish(kafka: Kafka, records: AsyncIterator[RecordCopy]) -> None:
    """All of them, in order; faster than our own producer, which tells of each. Raises BenchFailed."""
    from confluent_kafka import KafkaError, Producer

    failed: list[KafkaError] = []

    def acknowledged(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    own = {"enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 20, "log_level": 3}
    producer = Producer(client_config(kafka) | own)
    async for record in records:
        while True:
            try:
                producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    -1 if record.partition is None else record.partition,
                    on_delivery=acknowledged,
                    headers=list(record.headers),
                )
                break
            except BufferError:
                producer.poll(0.1)  # a record that is not acknowledged in time fails, and leaves its room
        producer.poll(0)
    if producer.flush(_FLUSH) or failed:
        raise BenchFailed(f"Kafka did not take every record: {failed[:1]}")


# -- the measurements --------------------------------------------------------------------------------------


def measure(folder: Path, load: Load, say: Callable[[str], None]) -> dict[str, object]:
    """`noop` and `lateness`, each unless the load has none. Raises BenchFailed."""
    found: dict[str, object] = {}
    say("Starting Kafka.")
    with _kafka(folder) as settings:
        if load.events:
            found["noop"] = asdict(_noop(folder, settings, load, say))
        if load.waiting:
            found["lateness"] = asdict(_lateness(folder, settings, load, say))
    return found


@contextmanager
def _kafka(folder: Path) -> Iterator[Settings]:
    """A broker with our topics, and the settings that reach it."""
    broker = Broker(folder / "kafka-intake")
    try:
        asyncio.run(broker.start())
        settings = Settings(_env_file=None, home=folder, kafka=broker.settings)
        asyncio.run(setup_topics(settings))
        yield settings
    finally:
        broker.kill()


def _noop(folder: Path, settings: Settings, load: Load, say: Callable[[str], None]) -> Noop:
    say(f"Publishing {load.events:,} events.")
    asyncio.run(publish(settings.kafka, events(settings.topology(), load.events)))
    say("A worker does nothing for each of them.")
    seen = _worker(folder, settings, 120 + load.events / 500, "noop", str(load.events))
    return noop_of(load.events, [Mark(**mark) for mark in seen["marks"]])


def _lateness(folder: Path, settings: Settings, load: Load, say: Callable[[str], None]) -> Lateness:
    say(f"Publishing {load.waiting:,} records for later.")
    first_due = time.time() + lead(load.waiting).total_seconds()
    copies = retries(
        settings.topology(), settings.kafka.group_id, load.waiting, round(1000 * first_due), load.due
    )
    asyncio.run(publish(settings.kafka, copies))
    left = first_due - time.time()
    say(f"A worker waits with them; the first is due in {left:.0f} s.")
    longest = left + load.waiting / load.due + 120
    seen = _worker(folder, settings, longest, "lateness", str(load.waiting), str(first_due))
    return lateness_of(load, seen["late_ms"], [Mark(**mark) for mark in seen["marks"]])


def _worker(folder: Path, settings: Settings, longest: float, *arguments: str) -> _Found:
    """What the worker's process saw; it is killed after `longest` seconds, and whenever this is left."""
    out, log = folder / "intake.json", folder / "intake.log"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with log.open("wb") as lines:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.intake_worker", *arguments, str(out)],
            env={**kept, **settings.environment(), "PYTHONPATH": str(ROOT)},
            cwd=folder,  # where no .env is
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            timeout=longest,
            check=False,
        )
    if done.returncode != 0:
        last = log.read_text(errors="replace").splitlines()[-20:]
        raise BenchFailed("\n".join(["The worker failed. Its last words:", *last]))
    found: _Found = json.loads(out.read_text())
    return found


# -- tables ------------------------------------------------------------------------------------------------


def show(found: _Found) -> None:
    report.show_tables(_tables(found))


def markdown(found: _Found) -> Iterator[str]:
    """The lines of both tables, for a README."""
    return report.markdown(_tables(found))


def _tables(found: _Found) -> Iterator[report.Titled]:
    """Title, head and rows of what was measured."""
    if noop := found.get("noop"):
        again = f", {noop['again']:,} of them twice" if noop["again"] else ""
        rows = [
            ["before the first", "", "", f"{noop['mb_before']:.0f}"],
            *([name, *_cells(each)] for name, each in zip(_QUARTERS, noop["quarters"], strict=True)),
            ["all, until committed", *_cells(noop["all"])],
        ]
        yield f"{noop['events']:,} events, nothing done for each{again}", ["", *NOOP_COLUMNS], rows
    if late := found.get("lateness"):
        again = f", {late['again']:,} of them twice" if late["again"] else ""
        names = ("p50_ms", "p99_ms", "most_ms", "least_ms", "resting_percent")
        row = [
            "retry topics",
            *(f"{late[name]:,.1f}" for name in names),
            f"{late['mb_resting']:.0f}",
            f"{late['mb']:.0f}",
        ]
        title = f"{late['waiting']:,} records waiting, then due at {late['due']:,}/s{again}"
        yield title, ["", *LATENESS_COLUMNS], [row]


def _cells(each: _Found) -> tuple[str, ...]:
    return f"{each['rate']:,.0f}", f"{each['cpu_us']:.0f}", f"{each['mb']:.0f}"


# -- the command -------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.intake",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", choices=("noop", "lateness"), help="one of the two; default: both")
    add("--events", type=_size, default=1_000_000, metavar="N", help="default 1000000")
    add("--waiting", type=_size, default=100_000, metavar="N", help="default 100000")
    add("--due", type=_size, default=3_000, metavar="N", help="of those, a second; default 3000")
    add(
        "--json",
        type=Path,
        default=result_path("intake"),
        metavar="PATH",
        help="default bench-results/DATE-intake.json",
    )
    return parser.parse_args(argv)


def load_of(options: argparse.Namespace) -> Load:
    return Load(
        events=0 if options.only == "lateness" else options.events,
        waiting=0 if options.only == "noop" else options.waiting,
        due=options.due,
    )


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 100")
    return int(text)


def main() -> int:
    options = arguments()

    def work(folder: Path) -> Mapping[str, object]:
        found = measure(folder, load_of(options), say)
        show(found)
        return {"intake": found}

    return carry_out(work, options.json)


if __name__ == "__main__":
    sys.exit(main())
