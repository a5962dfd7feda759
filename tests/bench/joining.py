"""Workers that join a group at work: 1, then 2, then 4, on one run.

Time to rebalance: from the start of a process (with all that it imports) until every partition of every topic
has an owner and every worker a part of them. The rate of each step is taken after that, over so many seconds.
Nothing is asserted but that every document was bought once and stored.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from docsum.bootstrap import open_store
from docsum.local.loopback import free_port
from docsum.local.model_server import whole_number
from tests.bench.command import carry_out, result_path, say
from tests.bench.scaling import Member, settings_for, settled, when
from tests.bench.stand import BenchFailed, Bill, Children, model_server, parts, write_documents

STEPS = (1, 2, 4)
_IN_FLIGHT = 16  # calls of a worker at once: of a second each, so that the model is what it waits for
_LONGEST = 600.0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What was asked for, as it goes into a file. Raises BenchFailed."""
    say("Starting Kafka and the ClickHouse engine.")
    documents, children = folder / "documents", Children(folder)
    write_documents(documents, options.documents)
    with parts(folder) as there, model_server(folder / "model", 1.0) as model, ExitStack() as stack:
        settings = settings_for(there.settings, model, _IN_FLIGHT, max(STEPS))
        topology, members, found = settings.topology(), list[Member](), list[dict[str, float]]()
        topics = len((topology.documents, *topology.inputs, topology.backfill, *topology.retries))
        arguments = ("run", str(documents), "--no-wait", "--json", "--yes")
        with children.started("run", "docsum", *arguments, env=settings.environment()) as process:
            process.wait(_LONGEST)
        run_id = UUID(str(children.said("run")["run_id"]))
        for workers in STEPS:
            began = time.monotonic()
            while len(members) < workers:
                name, port = f"worker-{len(members)}", free_port()
                env = settings.environment() | {"DOCSUM_WORKER__PORT": str(port)}
                started = stack.enter_context(children.started(name, "docsum", "worker", env=env))
                members.append(Member(name, port, started, children.log(name)))
            when(
                lambda: settled([member.share for member in members], topics, topology.partitions),
                [member.process for member in members],
                f"{workers} workers have shared the partitions out",
            )
            rebalanced, before, since = time.monotonic() - began, Bill.of(model), time.monotonic()
            time.sleep(options.seconds)
            rate = Bill.of(model).since(before).accepted / (time.monotonic() - since)
            found.append({"workers": workers, "rebalance_seconds": rebalanced, "documents_per_second": rate})
            say(f"{workers} workers: {rate:.1f} documents/s, joined in {rebalanced:.1f} s")

        async def left() -> int:
            async with open_store(settings) as store:
                return (await store.progress(run_id)).remaining

        if not asyncio.run(left()):
            raise BenchFailed("The run was over before all had joined: ask for more documents.")
        when(lambda: not asyncio.run(left()), (), "all summaries are stored", within=_LONGEST, every=1.0)
        paid = Bill.of(model).accepted
        say(f"{paid:,} calls were paid for {options.documents:,} documents.")
        if paid != options.documents:
            raise BenchFailed("A document was paid for twice, or not at all.")
    return {"steps": found, "documents": options.documents, "calls": paid}


def main(arguments: Sequence[str]) -> int:
    """`python -m tests.bench.joining`; the exit code."""
    command = argparse.ArgumentParser(
        prog="python -m tests.bench.joining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--documents", type=whole_number, default=4_000, help="of the run (default 4000)")
    command.add_argument("--seconds", type=whole_number, default=15, help="of each step (default 15)")
    command.add_argument("--out", type=Path, help="the file of the results")
    options = command.parse_args(arguments)
    return carry_out(lambda folder: measure(options, folder), options.out or result_path("joining"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
