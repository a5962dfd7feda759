"""One worker that tells upstreams its results beside one that does not, turn by turn on the same work.

Both are as in the bench of processes: real Kafka, the ClickHouse engine and the stub server, small documents
of about 1 KB, the run announced before the worker begins. A document that is told ends when its record in
`docsum.summaries` is acknowledged, one round trip to the broker after its rows are durable. The ratio is of
the two turns of a round, so that whatever else the machine does touches both.

Nothing is asserted but that every document was bought once, stored, and told where that was asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from docsum.bootstrap import setup_topics
from docsum.local.model_server import whole_number
from docsum.settings import Settings
from tests.bench import report
from tests.bench.command import carry_out, result_path, say
from tests.bench.processes import spread
from tests.bench.scaling import Scale, Turn
from tests.bench.stand import BenchFailed, Load, model_server, parts
from tests.support.deployment import ends

UNTOLD, TOLD = "no results", "results"
COLUMNS = ("", "documents/s", "told / untold", "CPU ms/document: worker", "broker", "engine host")
Rounds = Sequence[Mapping[str, Turn]]
_Found = Mapping[str, Any]  # Any: what `measure` gave, perhaps read from a file again


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Raises BenchFailed."""
    load = Load(options.latency, options.documents, options.in_flight)
    say("Starting Kafka and the ClickHouse engine.")
    with parts(folder) as there, model_server(folder / "model", load.latency) as server:
        topics = there.settings.topics.model_copy(update={"summaries": True})
        telling = there.settings.model_copy(update={"topics": topics})
        asyncio.run(setup_topics(telling))
        scales = {
            UNTOLD: Scale(folder, there, server, load),
            TOLD: Scale(folder, replace(there, settings=telling), server, load),
        }
        rounds = [_round(scales, number) for number in range(options.rounds)]
        told = _told(telling)
    if told != load.documents * options.rounds:
        raise BenchFailed(f"{told} results were told of {load.documents} documents in each round.")
    return {
        **asdict(load),
        "told_over_untold": median(ratios(rounds)),
        "rounds": [{name: asdict(turn) for name, turn in turns.items()} for turns in rounds],
    }


def _round(scales: Mapping[str, Scale], number: int) -> Mapping[str, Turn]:
    """A turn for each, on texts of its own; every other round begins with the other one."""
    turns = {}
    for name in sorted(scales, reverse=bool(number % 2)):
        (turns[name],) = scales[name].round(2 * number + (name == TOLD), [1])
        say(f"{name}, round {number + 1}: {turns[name].rate:,.0f} documents/s")
    return turns


def _told(settings: Settings) -> int:
    topology = settings.topology()
    places = ends(settings.kafka.bootstrap_servers, topology.summaries, topology.partitions)
    return sum(end - first for first, end in places)


def ratios(rounds: Rounds) -> list[float]:
    return [turns[TOLD].rate / turns[UNTOLD].rate for turns in rounds]


def tables(found: _Found) -> Iterator[report.Titled]:
    rounds = [{name: Turn(**turn) for name, turn in turns.items()} for turns in found["rounds"]]
    load = Load(found["latency"], found["documents"], found["in_flight"])
    yield report.title(load), COLUMNS, [_row(rounds, name) for name in (UNTOLD, TOLD)]


def _row(rounds: Rounds, name: str) -> tuple[str, ...]:
    turns = [each[name] for each in rounds]
    return (
        name,
        spread((turn.rate for turn in turns), 0),
        spread(ratios(rounds), 2) if name == TOLD else "",
        spread((turn.cpu_ms for turn in turns), 2),
        *(f"{median(turn.others_cpu_ms[other] for turn in turns):.2f}" for other in COLUMNS[-2:]),
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--documents", type=whole_number, default=6_000, metavar="N", help="a turn; default 6000")
    add("--rounds", type=whole_number, default=5, metavar="N", help="default 5")
    add("--latency", type=float, default=0.1, metavar="S", help="of a call; default 0.1")
    add("--in-flight", type=whole_number, default=128, metavar="N", help="calls at once; default 128")
    add(
        "--json",
        type=Path,
        default=result_path("results"),
        metavar="PATH",
        help="default bench-results/DATE-results.json",
    )
    return parser.parse_args(argv)


def main() -> int:
    options = arguments()

    def work(folder: Path) -> Mapping[str, object]:
        found = measure(options, folder)
        report.show_tables(tables(found))
        return {"results": found}

    return carry_out(work, options.json)


if __name__ == "__main__":
    sys.exit(main())
