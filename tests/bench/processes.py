"""What the processes of docsum take: several workers on one work, their starts, and everybody's memory.

scaling   1, 2 and 4 workers on small documents of about 1 KB, 0.1 s a model call, 128 calls in flight in each
          worker. Every turn has a run of its own; the workers have shared the partitions out and the run is
          announced before they all begin at once. The rate is of all workers, from the first document begun
          to the last one finished; a turn's ratio is to the fewest workers of the same round. Processor time
          of the workers is their own from their first document to their last one; that of the others from the
          beginning to the last call. All of them share this machine with the model server: where no core is
          left, more workers cannot be faster, and CPU ms a document is the figure to look at.
start     wall and processor time, and resident memory, of `docsum --version`, `--help` and `status`, and of
          a worker until its /readyz answers 200. The broker and the engine run, nothing waits.
memory    resident memory of every process: at rest with one worker that has nothing to do, and the peak while
          the workers of `scaling` are at work. The model server is the stub of the benches.

Nothing is asserted but that every document was bought once and stored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from docsum.local.model_server import whole_number
from tests.bench import report, starts
from tests.bench.command import carry_out, result_path, say
from tests.bench.scaling import WORKER, Scale, Turn, processes_of, ready_worker, settings_for
from tests.bench.stand import Children, Load, Parts, model_server, parts
from tests.bench.starts import Start
from tests.support.deployment import ModelServer

Rounds = Sequence[Mapping[int, Turn]]  # by the number of workers
Starts = Sequence[Mapping[str, Start]]
_Found = Mapping[str, Any]  # Any: what `measure` gave, perhaps read from a file again
_Rows = Iterator[tuple[str, ...]]
_PARTS = ("scaling", "start")
_EXAMPLES = """\
examples:
  python -m tests.bench.processes                     5 rounds, about ten minutes
  python -m tests.bench.processes --only start        less than a minute
  python -m tests.bench.processes --workers 1,2 --documents 500 --rounds 2
"""


# -- measuring -----------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What was asked for, as it goes into a file. Raises BenchFailed."""
    load = Load(options.latency, options.documents, options.in_flight)
    found: dict[str, object] = {}
    say("Starting Kafka and the ClickHouse engine.")
    with parts(folder) as there, model_server(folder / "model", load.latency) as server:
        if options.only != "scaling":
            env = settings_for(there.settings, server, load.in_flight, 1).environment()
            found["start"] = starts_as_json([*starts.measure(Children(folder), env, options.starts)])
        if options.only != "start":
            rest = at_rest(folder, there, server, options.rest)
            rounds = rounds_of(Scale(folder, there, server, load), options.workers, options.rounds)
            found["scaling"] = scaling_as_json(load, rest, rounds)
    return found


def at_rest(folder: Path, there: Parts, server: ModelServer, seconds: float) -> dict[str, float]:
    """Megabytes of every process, when a worker has been ready and idle for so long."""
    env = settings_for(there.settings, server, 1, 1).environment()
    with ready_worker(Children(folder), env) as worker:
        time.sleep(seconds)
        processes = {WORKER: psutil.Process(worker.pid), **processes_of(there, server)}
        return {name: process.memory_info().rss / 1e6 for name, process in processes.items()}


def rounds_of(scale: Scale, steps: Sequence[int], count: int) -> Rounds:
    rounds = []
    for number in range(count):
        turns = {}
        for turn in scale.round(number, steps):
            turns[turn.workers] = turn
            say(f"{_workers(turn.workers)}, round {number + 1}: {turn.rate:,.0f} documents/s")
        rounds.append({workers: turns[workers] for workers in steps})
    return rounds


def starts_as_json(found: Starts) -> list[dict[str, object]]:
    return [{title: asdict(start) for title, start in each.items()} for each in found]


def scaling_as_json(load: Load, rest: Mapping[str, float], rounds: Rounds) -> dict[str, object]:
    return {
        **asdict(load),
        "rest_mb": dict(rest),
        "over_fewest": {workers: median(ratios(rounds, workers)) for workers in rounds[0]},
        "rounds": [[asdict(turn) for turn in turns.values()] for turns in rounds],
    }


# -- what it says --------------------------------------------------------------------------------------------


def ratios(rounds: Rounds, workers: int) -> list[float]:
    """The rate of so many workers over that of the fewest, of each round."""
    return [turns[workers].rate / turns[min(turns)].rate for turns in rounds]


def tables(found: _Found) -> Iterator[tuple[str, tuple[str, ...], _Rows]]:
    """Each table that there are figures for: its title, its columns and its rows."""
    if "scaling" in found:
        scaling = found["scaling"]
        rounds = [{turn["workers"]: Turn(**turn) for turn in turns} for turns in scaling["rounds"]]
        others, fewest = tuple(rounds[0][min(rounds[0])].others_mb), min(rounds[0])
        columns = ("documents/s", f"rate / {fewest}", "CPU ms/document: workers")
        yield _title(scaling), ("workers", *columns, *others, "cores busy"), _scaling(rounds, others)
        loads = (f"peak, {_workers(workers)}" for workers in rounds[0])
        yield "Resident memory, MB", ("", "at rest", *loads), _memory(scaling["rest_mb"], rounds)
    if "start" in found:
        columns = ("seconds", "CPU seconds", "MB")
        yield f"Starts, {len(found['start'])} times each", ("", *columns), _starts(found["start"])


def _title(scaling: _Found) -> str:
    return (
        f"{scaling['latency']:g} s a call, {scaling['in_flight']} in flight in each worker, "
        f"{scaling['documents']:,} documents a turn"
    )


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _scaling(rounds: Rounds, others: Sequence[str]) -> _Rows:
    for workers in rounds[0]:
        turns = [each[workers] for each in rounds]
        yield (
            str(workers),
            spread((turn.rate for turn in turns), 0),
            spread(ratios(rounds, workers), 2) if workers != min(rounds[0]) else "",
            spread((turn.cpu_ms for turn in turns), 2),
            *(f"{median(turn.others_cpu_ms[name] for turn in turns):.2f}" for name in others),
            f"{median(turn.cores for turn in turns):.2f}",
        )


def _memory(rest: Mapping[str, float], rounds: Rounds) -> _Rows:
    for name, megabytes in rest.items():
        loads = []
        for workers in rounds[0]:
            turns = [each[workers] for each in rounds]
            if name == WORKER:
                loads.append(spread(chain.from_iterable(turn.worker_mb for turn in turns), 0))
            else:
                loads.append(spread((turn.others_mb[name] for turn in turns), 0))
        yield name, f"{megabytes:.0f}", *loads


def _starts(found: Sequence[_Found]) -> _Rows:
    for title in found[0]:
        each = [Start(**turn[title]) for turn in found]
        yield (
            title,
            spread((start.seconds for start in each), 2),
            spread((start.cpu for start in each), 2),
            spread((start.mb for start in each), 0),
        )


def spread(values: Iterable[float], digits: int) -> str:
    """The median, with the lowest and the highest."""
    ordered = sorted(values)
    return f"{median(ordered):,.{digits}f} ({ordered[0]:,.{digits}f}-{ordered[-1]:,.{digits}f})"


def show(found: _Found) -> None:
    report.show_tables(tables(found))


def markdown(found: _Found) -> Iterator[str]:
    """The lines of the tables, for a README."""
    return report.markdown(tables(found))


# -- the command ---------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.processes",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", choices=_PARTS, help="one of the two; default: both; memory comes with scaling")
    add("--workers", type=_counts, default="1,2,4", metavar="N,...", help="default 1,2,4; at most 12")
    add("--documents", type=whole_number, default=6_000, metavar="N", help="a turn; default 6000")
    add("--rounds", type=whole_number, default=5, metavar="N", help="of scaling; default 5")
    add("--latency", type=_seconds, default=0.1, metavar="S", help="of a call; default 0.1")
    add(
        "--in-flight",
        type=whole_number,
        default=128,
        metavar="N",
        help="calls at once in a worker; default 128",
    )
    add("--starts", type=whole_number, default=5, metavar="N", help="of each command; default 5")
    add("--rest", type=_seconds, default=10.0, metavar="S", help="before memory at rest; default 10")
    add(
        "--json",
        type=Path,
        default=result_path("processes"),
        metavar="PATH",
        help="default bench-results/DATE-processes.json",
    )
    return parser.parse_args(argv)


def _counts(text: str) -> list[int]:
    """Different numbers, the smallest first."""
    found = sorted({whole_number(part) for part in text.split(",")})
    if found[-1] > 12:  # partitions
        raise argparse.ArgumentTypeError(f"{found[-1]} workers are more than the 12 partitions")
    return found


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, such as 0.1")
    return found


def main() -> int:
    options = arguments()

    def work(folder: Path) -> Mapping[str, object]:
        found = measure(options, folder)
        show(found)
        return {"processes": found}

    return carry_out(work, options.json)


if __name__ == "__main__":
    sys.exit(main())
