"""Which docsum a command talks to: one that is configured, or the local stack, started where it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docsum.cli.output import NothingRuns, console, say
from docsum.errors import ConfigurationError, SourceNotAllowed
from docsum.sources import Source

if TYPE_CHECKING:
    from docsum.local.stack_state import StackState
    from docsum.settings import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the work is done."""

    settings: Settings  # with addresses
    model_line: str  # which model does the work, in one sentence
    local: bool
    started: bool  # by this command

    def still_runs(self) -> bool:
        """False once the local stack was stopped."""
        from docsum.local.compose import attach

        return not self.local or attach(self.settings) is not None


def reached() -> Settings:
    """The settings of a deployment that runs. Raises NothingRuns."""
    from docsum.local.compose import attach
    from docsum.settings import load

    settings = load()
    if settings.explicit:
        return settings
    attached = attach(settings)
    if attached is None:
        raise NothingRuns(
            f"No docsum runs in {settings.home}: start it with `docsum up -d`, or `docsum run FOLDER`. "
            "To reach another deployment set DOCSUM_KAFKA__BOOTSTRAP_SERVERS and DOCSUM_CLICKHOUSE__URL."
        )
    return attached


async def deployment_for(
    settings: Settings, source: Source | None, *, local_model: bool = False
) -> Deployment:
    """A deployment whose workers may read the source; the local stack is started when none runs."""
    if settings.explicit:
        if source is not None:
            _refuse_unreadable(settings, source)
        line = f"Summaries are made by the workers of {settings.kafka.bootstrap_servers}."
        return Deployment(settings, line, local=False, started=False)
    from docsum.local.compose import ensure_stack
    from docsum.local.stack_state import find

    before, place = find(settings.home), source.place if source else None
    if before is None:
        say(f"Starting docsum in {settings.home} (Kafka, the ClickHouse engine, the model server, workers).")
    with starting() as seen:
        workers = 1 if local_model else 2  # the demo's few samples do not keep two busy
        stack = await ensure_stack(settings, place=place, workers=workers, local_model=local_model, seen=seen)
    if before is not None and _workers(before) != _workers(stack.state):
        say("Restarted the workers: what they may read, their settings, the key or credentials have changed.")
    return Deployment(stack.settings, stack.model_line, local=True, started=stack.started)


def _workers(state: StackState) -> list[int | None]:
    return [process.pid for process in state.workers]


def download(settings: Settings) -> None:
    """What the local stack lacks, with a bar; says how much comes before it comes. Raises DownloadFailed.

    Outside an event loop, so that Ctrl-C ends it at once.
    """
    from docsum.local.jars import cache_folder, download_size, ensure_jars

    cache = cache_folder(os.environ)
    size = 0 if settings.explicit else download_size(cache)
    if not size:
        return
    say(f"Downloading Apache Kafka, {size / 1e6:.0f} MB, once, to {cache}.")
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Kafka", total=None)
        ensure_jars(cache, lambda done, total: bar.update(task, completed=done, total=total))


def _refuse_unreadable(settings: Settings, source: Source) -> None:
    """Workers elsewhere read only what they are allowed to: better told now than a dead letter each."""
    from docsum.fetchers import allowance, check_allowed

    if source.manifest:
        return
    try:
        check_allowed(settings.fetch, source.place)
    except SourceNotAllowed as error:
        allowed = ", ".join(getattr(settings.fetch, allowance(source.place)[0])) or "nothing"
        raise ConfigurationError(
            f"{error} The workers may read {allowed}: change it here and for the workers."
        ) from error


@contextmanager
def starting() -> Iterator[Callable[[StackState], None]]:
    """What the processes of a starting stack do, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _state: None
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield lambda state: live.update(
            Text("  ".join(f"{process.name}: {process.state}" for process in state.processes))
        )
