"""`docsum demo`: the samples on the local model, one shot."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import typer

from docsum.bootstrap import open_lister
from docsum.cli.deployment import deployment_for, download
from docsum.cli.output import Code, console, finish, say, table
from docsum.cli.report import report_failed, short_name
from docsum.errors import ConfigurationError
from docsum.models import Lane, Run, RunState
from docsum.words import money, one_line, span

if TYPE_CHECKING:
    from docsum.ports import SummaryStore
    from docsum.runs import Snapshot
    from docsum.settings import Settings


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum demo`."""
    app.command(name)(demo)


def demo() -> None:
    """See it work: summarises the sample documents on this machine, without a key and free of charge.

    Starts real Kafka, the ClickHouse engine and a local model where they do not run yet, and stops what it
    has started. Some samples fail on purpose, to show what that looks like. Its state is kept in
    DOCSUM_HOME: a second time nothing is summarised again.

    \b
      docsum demo
      DOCSUM_HOME=/tmp/docsum-demo docsum demo
    """
    from docsum.settings import load

    settings = load()
    if settings.explicit:
        raise ConfigurationError(
            "The demo uses a Kafka of its own: unset DOCSUM_KAFKA__BOOTSTRAP_SERVERS for it."
        )
    download(settings)
    finish(_demo(settings))


def samples_folder() -> Path:
    """Beside the code in an installed package, at the root of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "samples" / "documents"
    return checkout if checkout.is_dir() else package / "samples"


async def _demo(settings: Settings) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.execution import Execution, Manner
    from docsum.local.compose import stop_stack
    from docsum.ports import SystemClock

    started, clock = time.monotonic(), SystemClock()
    source = open_lister().open(str(samples_folder()), sys.stdin.buffer)
    deployment = await deployment_for(settings, source, local_model=True)
    say(f"The samples are summarised by {deployment.settings.model.name}: extracts, free of charge.")
    try:
        async with open_store(deployment.settings) as store:
            run = Run(
                id=uuid4(),
                name="demo",
                source=source.name,
                recipe=deployment.settings.recipe(),
                lane=Lane.BACKFILL,
                state=RunState.PUBLISHING,
                created_at=clock.now(),
                updated_at=clock.now(),
            )
            snapshot = await Execution(source, deployment, store, clock, Manner()).follow(run)
            await _show(snapshot, store)
    finally:
        if deployment.started:
            say("Stopping docsum.")
            await stop_stack(settings)
    progress = snapshot.progress
    say(
        f"{progress.done} summarised, {progress.skipped} skipped because nothing has changed, "
        f"{progress.dead_lettered} failed on purpose, {money(progress.cost)}, "
        f"{span(time.monotonic() - started)} in all."
    )
    say("Next: `docsum run FOLDER` summarises your own documents; with ANTHROPIC_API_KEY set, by Claude.")
    return Code.OK


async def _show(snapshot: Snapshot, store: SummaryStore) -> None:
    run = snapshot.run
    found = table("document", "title", "summary", "model", "cost", right=("cost",))
    async for row, stored in store.run_rows(run.id):
        if row.state.terminal and stored is not None and stored.summary is not None:
            summary = stored.summary
            found.add_row(
                short_name(run, row.document_id),
                one_line(summary.title, 60),
                one_line(summary.summary, 90),
                summary.model,
                money(summary.cost),
            )
    console().print(found)
    if snapshot.progress.dead_lettered:
        await report_failed(run, snapshot.progress.dead_lettered, store)
