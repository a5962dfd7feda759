"""A consumer group member whose work is written down: one process of the worker tests.

Each line of the journal is one `write` of `ACT topic partition offset pid milliseconds`, so that it is whole
whatever kills the process. ACT is S (started), F (finished), L (let go), O (owns the partition).
A record's value is what to do: seconds to take, or `raise` to fail the first time it is met.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from docsum.kafka.worker import KafkaWorker, Membership
from docsum.models import Outcome, Skipped, SkipReason
from docsum.pipeline import Trip
from docsum.ports import SystemClock
from docsum.telemetry import logs


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, act: str, topic: str, partition: int, offset: int) -> None:
        line = f"{act} {topic} {partition} {offset} {os.getpid()} {time.time_ns() // 1_000_000}\n"
        os.write(self._file, line.encode())


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--topics", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--drain", type=float, default=15.0)
    parser.add_argument("--instance-id", default="")
    options = parser.parse_args()
    logs.configure("info", "json")
    journal = Journal(options.journal)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def process(trip: Trip) -> Outcome:
        at = trip.delivery.at
        journal.write("S", at.topic, at.partition, at.offset)
        wish = (trip.delivery.value or b"0").decode()
        trip.paid = True  # what is at work may finish
        try:
            if wish == "raise":
                marker = options.journal.with_suffix(".raised")
                if not marker.exists():
                    marker.touch()
                    raise RuntimeError("as the record wished")
            else:
                await asyncio.sleep(float(wish))
        except asyncio.CancelledError:
            journal.write("L", at.topic, at.partition, at.offset)
            raise
        journal.write("F", at.topic, at.partition, at.offset)
        return Skipped(SkipReason.UNCHANGED)

    def on_share(share: float) -> None:
        for owned in worker.partitions:
            topic, _, number = owned.rstrip("]").partition("[")
            journal.write("O", topic, int(number), round(share * 1000))

    worker = KafkaWorker(
        Membership(
            brokers=options.brokers,
            group=options.group,
            topics=(),
            retries=options.topics.split(","),
            partitions=options.partitions,
            slots=options.slots,
            drain=timedelta(seconds=options.drain),
            instance_id=options.instance_id,
            datadir=options.journal.parent / f"faust-{os.getpid()}",
        ),
        process,
        SystemClock(),
        on_share,
    )
    await worker.run(stop)


if __name__ == "__main__":
    asyncio.run(main())
