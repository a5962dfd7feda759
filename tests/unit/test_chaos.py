"""The chaos suite itself: schedules are data, and every law notices when it is broken."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from docsum.kafka.admin import PartitionLag
from docsum.models import Coordinates, DeadLetterRow, RunProgress
from tests.chaos import laws
from tests.chaos.resources import Footprint, trend, trends
from tests.chaos.schedule import Fault, Kind, Schedule, read, schedule, shrink
from tests.chaos.world import IN_FLIGHT, POISON, Sample
from tests.support.fakes import START

PAID = laws.Money(billed=110, distinct=100, lost=4, undurable=5, late=1, marked_lost=4, wrong=0)


def test_a_seed_is_one_schedule_and_its_json_is_the_same() -> None:
    faults = schedule(7, 60)
    assert faults == schedule(7, 60) != schedule(8, 60)
    assert read([fault.as_json() for fault in faults]) == faults
    assert all(0 <= fault.at <= 60 for fault in faults)
    assert list(faults) == sorted(faults, key=lambda fault: fault.at)


def test_every_kind_of_fault_comes_up_and_two_come_at_once() -> None:
    many = [schedule(seed, 60) for seed in range(20)]
    assert {fault.kind for faults in many for fault in faults} == set(Kind)
    assert all(len({fault.at for fault in faults}) < len(faults) for faults in many)


def test_a_schedule_shrinks_to_the_faults_that_matter() -> None:
    faults = tuple(Fault(float(at), Kind.WORKER_KILL, 1, victim=at) for at in range(17))
    culprits = {3, 11}

    def fails(fewer: Schedule) -> bool:
        return culprits <= {fault.victim for fault in fewer}

    assert {fault.victim for fault in shrink(faults, fails)} == culprits
    assert shrink(faults[:1], lambda fewer: True) == faults[:1]


@pytest.mark.parametrize(
    ("money", "deaths", "broken"),
    [
        (PAID, 1, ""),
        (replace(PAID, billed=111), 1, "bought again"),
        (replace(PAID, wrong=1), 1, "differ from the bill"),
        (replace(PAID, undurable=2 * IN_FLIGHT), 1, "at the most"),
        (replace(PAID, undurable=2 * IN_FLIGHT), 2, ""),
        (PAID, 0, "at the most"),
        (laws.Money(104, 100, 4, 0, 0, 4, 0), 0, ""),
        (laws.Money(104, 100, 4, 0, 0, 3, 0), 0, "is not the bill"),
    ],
)
def test_money_is_accounted_for(money: laws.Money, deaths: int, broken: str) -> None:
    assert broken in "; ".join(laws.bill(money, deaths))
    assert bool(list(laws.bill(money, deaths))) is bool(broken)


def test_a_lost_document_is_noticed() -> None:
    whole = RunProgress(uuid4(), done=10, dead_lettered=POISON)
    assert not list(laws.lost(whole, 10))
    for wrong in (replace(whole, done=9), replace(whole, done=9, queued=1), replace(whole, skipped=1)):
        assert list(laws.lost(wrong, 10))


def test_a_dead_letter_of_a_good_document_is_noticed() -> None:
    at = Coordinates("docsum.dlq", 0, 1)
    row = DeadLetterRow(at, at, "poison-1.txt", 1, None, "empty", "", "extract", 1, START, START)
    assert not list(laws.dead_letters([row], {"poison-1.txt"}))
    for wrong in (
        replace(row, document_id="00001.txt"),
        replace(row, reason="internal_error"),
        replace(row, state="resolved"),
    ):
        assert list(laws.dead_letters([wrong], {wrong.document_id}))
    assert list(laws.dead_letters([row], {"poison-1.txt", "00001.txt"}))


def test_an_offset_behind_the_end_is_noticed() -> None:
    assert list(laws.offsets([PartitionLag("t", 0, 4, 0, 5)]))
    assert not list(laws.offsets([PartitionLag("t", 0, 5, 0, 5), PartitionLag("t", 1, None, 0, 0)]))


def seen(at: float, queued: int, done: int = 0) -> Sample:
    return Sample(at, RunProgress(uuid4(), queued=queued, done=done))


def test_a_standstill_is_noticed_once_nothing_is_down() -> None:
    still = [seen(float(at), 5) for at in range(100)]
    assert list(laws.standstill(still, calm_since=10))
    assert not list(laws.standstill(still, calm_since=50))
    assert not list(laws.standstill([seen(float(at), 0, 5) for at in range(200)], calm_since=0))
    assert not list(laws.standstill([seen(at * 10.0, 40 - at) for at in range(40)], calm_since=0))


def test_the_growth_of_a_process_is_told_without_its_warm_up() -> None:
    grows = [Footprint(at, 100.0 if at < 250 else 150.0 + at / 360, 20, 9) for at in map(float, range(1_000))]
    found = trend(grows)
    assert found is not None
    assert found.slope == pytest.approx(10.0)
    assert found.memory[0] > 150
    assert list(found.files) == [20, 20]
    assert trend(grows[:10]) is None


def test_only_processes_that_lived_long_are_told_of() -> None:
    long = [Footprint(float(at), 100.0, 20, 9) for at in range(100)]
    assert list(trends({"a": long, "b": long[:40]}, 99)) == [
        "a 99 s: memory 100 -> 100 MB (+0.0 MB/h), open files 20 -> 20, threads 9 -> 9"
    ]


def results(documents: int, poison: int, **others: dict[str, str]) -> dict[str, dict[str, str]]:
    done = {"outcome": "done", "summary": "It is closed."}
    return {
        **{f"{number}.txt": done for number in range(documents)},
        **{f"poison-{number}.txt": {"outcome": "dead_lettered", "summary": ""} for number in range(poison)},
        **others,
    }


def test_a_result_that_nobody_was_told_is_found() -> None:
    assert [*laws.told(results(20, POISON), 20)] == []
    skipped = {"1.txt": {"outcome": "skipped", "summary": "It is closed."}}
    assert [*laws.told(results(20, POISON) | skipped, 20)] == []
    assert "19 and" in "; ".join(laws.told(results(19, POISON), 20))
    assert f"20 and {POISON - 1} were" in "; ".join(laws.told(results(20, POISON - 1), 20))
    empty = {"1.txt": {"outcome": "done", "summary": ""}}
    assert "19 and" in "; ".join(laws.told(results(20, POISON) | empty, 20))
    failed = {"1.txt": {"outcome": "dead_lettered", "summary": ""}}
    assert "told as failed: ['1.txt']" in "; ".join(laws.told(results(20, POISON) | failed, 20))
