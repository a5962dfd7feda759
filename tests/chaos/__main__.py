"""`make chaos SEEDS=20`: many schedules of faults, and a table of what came of them.

A schedule that breaks a law is run again with ever fewer faults, until none can be left out.

python -m tests.chaos --seeds 20            seeds 1 to 20
python -m tests.chaos --seed 7              that one
python -m tests.chaos --schedule FILE       the faults of a file, as a failing seed has left it
make soak                                   an hour of it: does a worker that lives through all that grow?
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.laws import Verdict, judge
from tests.chaos.resources import trends
from tests.chaos.schedule import EVERY, Kind, Schedule, read, schedule, shrink
from tests.chaos.world import LATENCY, Ground, World, enough

_TRIES = 5  # the same schedule may go another way: timing is not ours
_COLUMNS = "{:>6} {:>6} {:>7} {:>6} {:>6} {:>5} {:>4} {:>9} {:>4}  {}"
_HEAD = _COLUMNS.format(
    "seed", "faults", "seconds", "deaths", "billed", "again", "lost", "undurable", "late", "result"
)


class Bench:
    """Runs schedules, each in a world of its own on the same ground."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.documents = options.documents or enough(options.seconds, options.workers)
        self.ground = Ground(folder / "ground", options.latency)
        self._lives = 0

    def run(self, name: str, faults: Schedule) -> Verdict:
        """The evidence of a failure stays in the folder, that of a success goes."""
        self._lives += 1
        folder = self.folder / f"{self._lives:03}-{name}"
        world = World(folder, self.ground, self.documents, self.options.workers, self.options.spared)
        try:
            world.live_through(faults, self.options.patience)
            verdict = judge(world)
        finally:
            world.close()
        money, result = verdict.money, "; ".join(verdict.broken) or "kept"
        figures = (money.billed, money.again, money.lost, money.undurable, money.late)
        print(
            _COLUMNS.format(name, len(faults), round(verdict.seconds), world.deaths, *figures, result),
            flush=True,
        )
        for line in trends(world.footprints, verdict.seconds) if self.options.spared else ():
            print(f"       {line}", flush=True)
        if verdict.broken:
            print(f"       see {world.keep_evidence(faults)}", flush=True)
        else:
            shutil.rmtree(folder)
        return verdict

    def fails(self, name: str, faults: Schedule) -> bool:
        return any(self.run(name, faults).broken for _ in range(_TRIES))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="so many")
    parser.add_argument("--first", type=int, default=1, help="the first of them; default 1")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--schedule", type=Path, help="faults from a file")
    parser.add_argument("--seconds", type=float, default=60, help="in which faults begin")
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between two, on the average")
    parser.add_argument("--documents", type=int, help="default: enough for that time")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--spared", type=int, default=0, help="of them, so many live to the end; tell how they grow"
    )
    parser.add_argument("--patience", type=float, default=300, help="seconds from the last fault to the end")
    parser.add_argument("--latency", default=LATENCY, help="of a call, as the model server takes it")
    parser.add_argument("--only", nargs="*", type=Kind, default=list(Kind), help="these kinds of faults")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="docsum-chaos-"))
    bench = Bench(folder, options)
    print(
        f"{bench.documents} documents, {options.workers} workers; what fails is kept in {folder}\n{_HEAD}",
        flush=True,
    )
    try:
        failed = _run_all(bench, options)
    finally:
        bench.ground.close()
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def _run_all(bench: Bench, options: argparse.Namespace) -> bool:
    if options.schedule:
        return bench.fails("file", read(json.loads(options.schedule.read_text())))
    seeds: Sequence[int] = (
        [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    )
    failed = False
    for seed in seeds:
        faults = schedule(seed, options.seconds, options.only, options.every)
        if not bench.run(str(seed), faults).broken:
            continue
        failed = True
        if not options.no_shrink:
            short = shrink(faults, lambda fewer, seed=seed: bench.fails(f"{seed}*", fewer))  # type: ignore[misc]
            print(f"       shortest that failed: {', '.join(map(str, short))}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
