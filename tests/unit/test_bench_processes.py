"""The pure parts of the bench of processes: tallies, turns, tables and options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.bench.member import Tally
from tests.bench.processes import arguments, markdown, scaling_as_json, starts_as_json, tables
from tests.bench.scaling import Turn, settled, turn_of, when
from tests.bench.stand import BenchFailed, Load
from tests.bench.starts import READY, Start
from tests.support.deployment import ROOT

LOAD = Load(latency=0.1, documents=6000, in_flight=128)
REST = {"worker": 160.0, "broker": 190.0, "engine host": 340.0, "model server": 90.0}


def turn(workers: int, rate: float) -> Turn:
    others = {name: megabytes + 10 for name, megabytes in REST.items() if name != "worker"}
    return Turn(
        workers=workers,
        documents=6000,
        shares=[6000 // workers] * workers,
        rate=rate,
        cpu_ms=2.5,
        others_cpu_ms=dict.fromkeys(others, 0.5),
        worker_mb=[165.0 + number for number in range(workers)],
        others_mb=others,
    )


def found(*rounds: Mapping[int, float]) -> dict[str, object]:
    """As it is read from a file: rates by the number of workers, of each round."""
    turns = [{workers: turn(workers, rate) for workers, rate in each.items()} for each in rounds]
    starts = [{READY: Start(seconds, 1.5, 160.4)} for seconds in (3.0, 2.0, 4.0)]
    whole = {"scaling": scaling_as_json(LOAD, REST, turns), "start": starts_as_json(starts)}
    return dict(json.loads(json.dumps(whole)))


def test_a_turn_is_from_the_first_document_of_any_worker_to_the_last_of_any() -> None:
    tallies = [
        Tally(30, began=10.0, ended=12.0, cpu=(1.0, 1.3)),
        Tally(70, began=10.5, ended=15.0, cpu=(2.0, 2.2)),
        Tally(),  # its partitions were empty
    ]
    peaks = {"worker-0": 160e6, "worker-1": 170e6, "worker-2": 150e6, "broker": 200e6}
    seen = turn_of(100, tallies, {"broker": 0.1}, peaks)
    assert (seen.rate, seen.workers, seen.shares) == (20.0, 3, [30, 70, 0])
    assert seen.cpu_ms == pytest.approx(5.0)
    assert seen.worker_mb == [160.0, 170.0, 150.0]
    assert (seen.others_cpu_ms, seen.others_mb) == ({"broker": 1.0}, {"broker": 200.0})
    assert seen.cores == pytest.approx(20 * 6 / 1000)


def test_the_clocks_of_a_tally_start_with_the_first_document_alone() -> None:
    tally = Tally()
    tally.begin()
    first = tally.began, tally.cpu[0]
    tally.begin()
    tally.end()
    tally.end()
    assert (tally.deliveries, (tally.began, tally.cpu[0])) == (2, first)
    assert tally.ended > tally.began


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([["a[0]", "a[1]"], ["a[2]"]], True),
        ([["a[0]", "a[1]", "a[2]"], []], False),  # the second one is not there yet
        ([["a[0]", "a[1]", "a[2]"], ["a[2]"]], False),  # the first one does not know of it yet
        ([["a[0]"], ["a[2]"]], False),
    ],
)
def test_workers_have_settled_when_each_has_a_part_and_none_is_missing(
    shares: list[list[str]], expected: bool
) -> None:
    assert settled(shares, topics=1, partitions=3) is expected


def test_a_ratio_is_to_the_fewest_workers_of_the_same_round() -> None:
    (_, _, rows), *_ = tables(found({1: 400.0, 2: 600.0}, {1: 200.0, 2: 400.0}))
    assert [row[:3] for row in rows] == [
        ("1", "300 (200-400)", ""),
        ("2", "500 (400-600)", "1.75 (1.50-2.00)"),
    ]


def test_what_was_found_becomes_markdown_tables() -> None:
    lines = [*markdown(found({1: 400.0, 2: 600.0}))]
    assert lines[0] == "0.1 s a call, 128 in flight in each worker, 6,000 documents a turn:"
    assert lines[2] == (
        "| workers | documents/s | rate / 1 | CPU ms/document: workers | broker | engine host | model server "
        "| cores busy |"
    )
    assert "| 2 | 600 (600-600) | 1.50 (1.50-1.50) | 2.50 (2.50-2.50) | 0.50 | 0.50 | 0.50 | 2.40 |" in lines
    assert "| worker | 160 | 165 (165-165) | 166 (165-166) |" in lines
    assert "| broker | 190 | 200 (200-200) | 200 (200-200) |" in lines
    assert lines[-1] == f"| {READY} | 3.00 (2.00-4.00) | 1.50 (1.50-1.50) | 160 (160-160) |"


def test_one_part_alone_has_its_own_tables() -> None:
    starts = {"start": found({1: 1.0})["start"]}
    assert [title for title, _, _ in tables(starts)] == ["Starts, 3 times each"]


def test_the_numbers_of_workers_are_in_order_and_no_more_than_partitions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert arguments(["--workers", "4,1,2,1"]).workers == [1, 2, 4]
    assert (arguments([]).workers, arguments([]).in_flight) == ([1, 2, 4], 128)
    with pytest.raises(SystemExit):
        arguments(["--workers", "13"])
    assert "more than the 12 partitions" in capsys.readouterr().err


def test_a_wait_for_what_never_comes_fails_the_bench() -> None:
    with pytest.raises(BenchFailed, match=r"Not within 0\.02 s: it rains"):
        when(lambda: False, (), "it rains", within=0.02, every=0.01)


def test_the_launcher_tells_what_a_command_takes_and_ends_as_it_did() -> None:
    command = [sys.executable, "-m", "tests.bench.launch", sys.executable, "-S", "-c", "raise SystemExit(3)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    start = Start(**json.loads(done.stdout))
    assert done.returncode == 3
    assert 0 < start.cpu < start.seconds + 1
    assert 1 < start.mb < 100
