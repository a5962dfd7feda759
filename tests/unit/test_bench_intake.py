"""The pure parts of the bench of the intake: marks, lateness, what is published, tables and options."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta

import pytest

from docsum.kafka.codec import EventCodec
from docsum.kafka.headers import delivery_of
from docsum.models import Coordinates, Delivery
from docsum.pipeline import Trip
from docsum.topics import Topology
from tests.bench.intake import (
    Lateness,
    Load,
    Noop,
    Stretch,
    arguments,
    due_ms,
    events,
    lateness_of,
    lead,
    load_of,
    markdown,
    noop_of,
    place,
    retries,
)
from tests.bench.intake_worker import REST, SETTLE, Counted, Mark, Timed

LOAD = Load(events=0, waiting=100, due=3_000)
TOPOLOGY = Topology(partitions=2)


def marks(*figures: tuple[int, float, float, int]) -> list[Mark]:
    return [Mark(*each) for each in figures]


def trip(not_before_ms: int | None = None) -> Trip:
    at = Coordinates("docsum.retry.10s", 0, 7)
    return Trip(
        Delivery(at, b"k", b"v", (), 0, origin=at, origin_timestamp_ms=0, not_before_ms=not_before_ms)
    )


def test_every_quarter_has_its_own_figures_and_all_counts_until_the_commit() -> None:
    found = noop_of(
        400,
        marks(
            (0, 10.0, 5.0, 80_000_000),
            (100, 11.0, 5.01, 81_000_000),
            (200, 13.0, 5.03, 82_000_000),
            (300, 14.0, 5.04, 82_000_000),
            (400, 15.0, 5.05, 82_000_000),
            (400, 15.5, 5.06, 83_000_000),
        ),
    )
    assert [round(each.rate) for each in found.quarters] == [100, 50, 100, 100]
    assert [round(each.cpu_us) for each in found.quarters] == [100, 200, 100, 100]
    assert [each.mb for each in found.quarters] == [81.0, 82.0, 82.0, 82.0]
    assert (round(found.all.rate, 1), round(found.all.cpu_us), found.all.mb) == (72.7, 150, 83.0)
    assert (found.again, found.mb_before) == (0, 80.0)


def test_lateness_is_told_in_milliseconds_and_early_ones_show() -> None:
    ends = marks((0, 20.0, 6.0, 90_000_000), (0, 30.0, 6.2, 90_000_000), (101, 70.0, 9.0, 95_000_000))
    found = lateness_of(LOAD, [*map(float, range(100)), -0.4], ends)
    assert (found.least_ms, found.p50_ms, found.p99_ms, found.most_ms) == (-0.4, 49.0, 98.0, 99.0)
    assert round(found.resting_percent, 6) == 2.0
    assert (found.again, found.mb_resting, found.mb) == (1, 90.0, 95.0)


async def test_the_no_op_marks_the_first_event_each_quarter_and_the_last() -> None:
    counted = Counted(101)
    for _ in range(100):
        await counted(trip())
    assert not counted.all_begun.is_set()
    await counted(trip())
    assert counted.all_begun.is_set()
    assert [mark.begun for mark in counted.marks] == [0, 25, 50, 75, 101]
    await counted(trip())  # an event that came again
    assert (counted.begun, len(counted.marks)) == (102, 5)


async def test_a_record_of_1970_is_late() -> None:
    timed = Timed(1)
    await timed(trip(not_before_ms=0))
    assert timed.late_ms[0] > 0
    assert timed.all_begun.is_set()


async def test_an_event_has_about_200_bytes_and_is_one_that_the_worker_takes() -> None:
    async with EventCodec() as codec:
        async for record in events(TOPOLOGY, 3):
            assert record.topic == TOPOLOGY.backfill
            assert record.value is not None
            assert 180 < len(record.value) < 300
            delivery = delivery_of(record.topic, 0, 0, record.key, record.value, (), 4_000_000_000_000)
            assert record.key == (await codec.decode(delivery)).document_id.encode()


async def test_records_of_a_partition_are_due_in_the_order_of_their_offsets() -> None:
    seen: dict[tuple[str, int | None], list[int | None]] = {}
    async for record in retries(TOPOLOGY, "docsum", 60, first_due_ms=5_000, due=1_000):
        delivery = delivery_of(record.topic, 0, 0, record.key, record.value, record.headers, 0)
        assert delivery.attempt == 2
        seen.setdefault((record.topic, record.partition), []).append(delivery.not_before_ms)
    assert seen.keys() == {(topic, partition) for topic in TOPOLOGY.retries for partition in (0, 1)}
    assert seen[TOPOLOGY.retries[0], 1] == [5_003 + 6 * step for step in range(10)]


def test_every_partition_of_every_retry_topic_has_its_turn() -> None:
    assert [place(TOPOLOGY, number)[1:] for number in (0, 3, 6, 9)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert len({place(TOPOLOGY, number) for number in range(1_000)}) == 1_000


def test_so_many_are_due_a_second_after_a_worker_had_time_to_start_and_to_rest() -> None:
    assert due_ms(2_999, 5_000, 3_000) == 5_999
    assert due_ms(3_000, 5_000, 3_000) == 6_000
    assert lead(100_000) - lead(0) == timedelta(seconds=50)
    assert lead(0) > REST + SETTLE


def test_a_result_becomes_two_markdown_tables() -> None:
    part = Stretch(rate=12_345.6, cpu_us=78.9, mb=101.2)
    noop = Noop(1_000_000, 0, 99.0, (part, part, part, part), part)
    late = Lateness(100_000, 3_000, 2, 1.25, 10.0, 1_234.5, -0.4, 1.5, 99.0, 101.0)
    lines = [*markdown(json.loads(json.dumps({"noop": asdict(noop), "lateness": asdict(late)})))]
    assert lines[0] == "1,000,000 events, nothing done for each:"
    assert "| 4th quarter | 12,346 | 79 | 101 |" in lines
    assert "100,000 records waiting, then due at 3,000/s, 2 of them twice:" in lines
    assert "| retry topics | 1.2 | 10.0 | 1,234.5 | -0.4 | 1.5 | 99 | 101 |" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 6 + 2 + 1


def test_one_of_the_two_can_be_left_out() -> None:
    assert load_of(arguments([])) == Load(1_000_000, 100_000, 3_000)
    assert load_of(arguments(["--only", "noop", "--events", "5000"])) == Load(5_000, 0, 3_000)
    assert load_of(arguments(["--only", "lateness"])).events == 0


@pytest.mark.parametrize("wrong", ["0", "99", "-1000", "many"])
def test_a_size_is_a_whole_number(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--events", wrong])
    assert "not a whole number of at least 100" in capsys.readouterr().err
