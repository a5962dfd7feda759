"""docsum beside bare SDK loops, on this machine, in one run.

Three contenders summarise the same small text files against one stub Messages server, each in a process of
its own, one after the other, round by round, each round beginning with another one:

  AsyncAnthropic           a bare loop on the SDK's default transport that stores nothing
  AsyncAnthropic, aiohttp  the same with DefaultAioHttpClient
  docsum                   one worker with real Kafka and the ClickHouse engine, everything on; the documents
                           are announced before it starts, so that the rate is the worker's

The time is from the first document begun to the last one finished (docsum: stored and durable), processor
time is that of the contender's own process. `added` is what docsum spends on a document around its model
call: decode, look-ups, fetch, extract and store, without the wait for one of the places in flight. Texts are
distinct, so no answer is reused. Nothing is asserted but that every contender did all of the same work.

Before that, in less than a minute, the extractors beside the bare calls of the libraries that they use, on
reports in five formats that are written from a fixed seed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import extraction, report
from tests.bench.stand import (
    DOCSUM,
    LOOPS,
    BenchFailed,
    Load,
    Stand,
    backend,
    model_server,
    write_documents,
)
from tests.support.deployment import ROOT

_SECONDS = 16  # about how long a turn lasts
_FASTEST = 400  # documents a second: about what the slower contenders reach where latency is no limit
_EXAMPLES = """\
examples:
  make bench                                          5 rounds at 1 s and at 0.1 s, about 15 minutes
  python -m tests.bench --only extraction             the extractors alone, less than a minute
  python -m tests.bench --rounds 1 --documents 500    a quick look
  python -m tests.bench --latency 0.1 --in-flight 64
"""


def bench(options: argparse.Namespace, folder: Path) -> None:
    """What was asked for, to the tables and the file."""
    found = report.circumstances()
    if options.only != "loops":
        found["extraction"] = asyncio.run(bench_extraction(options.rounds))
    if options.only != "extraction":
        found["results"] = bench_loops(options, folder)
    report.save(options.json, found)
    _say(f"Written to {options.json}.")


async def bench_extraction(rounds: int) -> list[dict[str, object]]:
    found = [each async for each in extraction.measure(rounds, _say)]
    report.show_extraction(found)
    return [report.extraction_as_json(each) for each in found]


def bench_loops(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Every latency."""
    results = []
    _say("Starting Kafka and the ClickHouse engine.")
    with backend(folder) as settings:
        for latency in options.latency:
            # Enough for a turn that is long beside its start and its end.
            ideal = round(_SECONDS * min(options.in_flight / latency, _FASTEST))
            load = Load(latency, options.documents or ideal, options.in_flight)
            with model_server(folder / f"model-{latency:g}", latency) as server:
                rounds = rounds_of(Stand(folder, settings, server.url, load), options.rounds)
                asked = server.get("/_billing/fingerprints")["distinct"]  # whatever their random ids
            if asked != load.documents * options.rounds:
                raise BenchFailed(
                    f"The contenders sent {asked} different requests: that is not the same work."
                )
            report.show(load, rounds)
            results.append(report.as_json(load, rounds))
    return results


def rounds_of(stand: Stand, count: int) -> report.Rounds:
    names, rounds = (*LOOPS, DOCSUM), []
    for number in range(count):
        documents = stand.folder / f"documents-{stand.load.latency:g}-{number}"
        write_documents(documents, stand.load.documents)
        first, measured = number % len(names), {}
        for name in (*names[first:], *names[:first]):
            measured[name] = turn = stand.turn(name, documents)
            _say(f"{stand.load.latency:g} s, round {number + 1}, {name}: {turn.rate:,.0f} documents/s")
        rounds.append(measured)
        shutil.rmtree(documents)
    return rounds


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = ROOT / "bench-results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    add = parser.add_argument
    add("--only", choices=("extraction", "loops"), help="one of the two parts; default: both")
    add("--documents", type=_count, metavar="N", help="a round; default: enough for 12 to 20 s")
    add("--rounds", type=_count, default=5, metavar="N", help="default 5")
    add("--latency", type=_seconds, default="1.0,0.1", metavar="S,...", help="of a call; default 1.0,0.1")
    add("--in-flight", type=_count, default=256, metavar="N", help="calls at once; default 256")
    add("--json", type=Path, default=path, metavar="PATH", help="default bench-results/DATE.json")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each <= 60 for each in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seconds, such as 1.0,0.1")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends every process, as Ctrl-C does
    for name in list(os.environ):
        if name.startswith(("DOCSUM_", "ANTHROPIC_")):
            del os.environ[name]  # the bench measures the defaults, and knows no key
    with tempfile.TemporaryDirectory(prefix="docsum-bench-", ignore_cleanup_errors=True) as folder:
        try:
            bench(options, Path(folder).resolve())
        except (BenchFailed, subprocess.TimeoutExpired) as error:
            _say(str(error))
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
