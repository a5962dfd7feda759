"""docsum beside bare SDK loops and beside its peers, on this machine, in one run.

All contenders summarise the same small text files against one stub Messages server, each in a process of its
own, one after the other, round by round, each round beginning with another one:

  AsyncAnthropic           a bare loop on the SDK's default transport; stores nothing
  AsyncAnthropic, aiohttp  the same with DefaultAioHttpClient
  taskiq                   InMemoryBroker, a task a document around the SDK; results in memory for a while
  litellm                  acompletion in a bare loop; stores nothing
  async-batch-llm          CallableStrategy around the SDK; results in memory
  ... checkpoints          the same with its JsonlArtifactStore: a line for each answer, not synced to disk
  docsum                   one worker with real Kafka and the ClickHouse engine, everything on: answers,
                           summaries and costs stored, then offsets committed; the documents are announced
                           before it starts, so that the rate is the worker's

So docsum alone reads its work from a broker and its files from a disk, and keeps what it has paid for; the
others get ready requests. Peers that call the SDK do so on aiohttp. They live in .venv/peers.

The time is from the first document begun to the last one finished (docsum: stored and durable), processor
time is that of the contender's own process: Kafka and ClickHouse are not in it. `added` is what docsum spends
on a document around its model call: decode, look-ups, fetch, extract and store, without the wait for one of
the places in flight. Texts are distinct, so no answer is reused. Nothing is asserted but that every contender
bought all of the same work, once.

Before that, in less than a minute, the extractors beside the bare calls of the libraries that they use, on
reports in five formats that are written from a fixed seed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from docsum.local.model_server import whole_number
from tests.bench import extraction, report
from tests.bench.command import carry_out, result_path, say
from tests.bench.contenders import BY_ID
from tests.bench.stand import BenchFailed, Load, Stand, backend, model_server

_SECONDS = 16  # about how long a turn lasts
_FASTEST = 400  # documents a second: about what the slower contenders reach where latency is no limit
_QUICK = {"only": "loops", "rounds": 2, "documents": 1_000, "latency": "0.1", "in_flight": "64"}
_SHAPES = 2  # of the request for a document: litellm writes the texts as blocks
_EXAMPLES = """\
examples:
  make bench                                        5 rounds at 1 s and at 0.1 s, about 40 minutes
  python -m tests.bench --quick                     two minutes for a first look
  python -m tests.bench --only extraction           the extractors alone, less than a minute
  python -m tests.bench --rounds 3 --in-flight 64,256
  python -m tests.bench.table bench-results/X.json  the table of a result, for a README
"""


def bench(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What was asked for, with its tables on the way."""
    found: dict[str, object] = {}
    if options.only != "loops":
        found["extraction"] = asyncio.run(bench_extraction(options.rounds))
    if options.only != "extraction":
        found["results"] = bench_loops(options, folder)
    return found


async def bench_extraction(rounds: int) -> list[dict[str, object]]:
    found = [each async for each in extraction.measure(rounds, say)]
    report.show_extraction(found)
    return [report.extraction_as_json(each) for each in found]


def bench_loops(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Every latency, with every number of calls in flight."""
    results = []
    say("Starting Kafka and the ClickHouse engine.")
    with backend(folder) as settings:
        for latency, in_flight in product(options.latency, options.in_flight):
            # Enough for a turn that is long beside its start and its end.
            ideal = round(_SECONDS * min(in_flight / latency, _FASTEST))
            load = Load(latency, options.documents or ideal, in_flight)
            with model_server(folder / f"model-{load}", latency) as server:
                rounds = rounds_of(Stand(folder, settings, server, load), options.rounds)
                asked = server.get("/_billing/fingerprints")["distinct"]  # whatever their random ids
            if asked != _SHAPES * load.documents * options.rounds:
                raise BenchFailed(
                    f"The contenders sent {asked} different requests: that is not the same work."
                )
            report.show(load, rounds)
            results.append(report.as_json(load, rounds))
    return results


def rounds_of(stand: Stand, count: int) -> report.Rounds:
    rounds = []
    for number in range(count):
        measured = {}
        for name, turn in stand.round(number):
            measured[name] = turn
            where = f"{stand.load.latency:g} s, {stand.load.in_flight} in flight, round {number + 1}"
            say(f"{where}, {BY_ID[name].title}: {turn.rate:,.0f} documents/s")
        rounds.append(measured)
    return rounds


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only",
        choices=("extraction", "loops"),
        help="one of the two parts; default: both; loops: with the peers",
    )
    add("--documents", type=whole_number, metavar="N", help="a round; default: enough for 12 to 20 s")
    add("--rounds", type=whole_number, default=5, metavar="N", help="default 5")
    add("--latency", type=_seconds, default="1.0,0.1", metavar="S,...", help="of a call; default 1.0,0.1")
    add("--in-flight", type=_counts, default="256", metavar="N,...", help="calls at once; default 256")
    add("--quick", action="store_true", help="two short rounds of the loops at 0.1 s, 64 in flight")
    add("--json", type=Path, default=result_path(), metavar="PATH", help="default bench-results/DATE.json")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**_QUICK)  # what is said besides still counts
    return parser.parse_args(argv)


def _counts(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _seconds(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each <= 60 for each in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seconds, such as 1.0,0.1")
    return found


def main() -> int:
    options = arguments()
    return carry_out(partial(bench, options), options.json)


if __name__ == "__main__":
    sys.exit(main())
