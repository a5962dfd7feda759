"""`docsum up` and `down`: the local stack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.deployment import download, starting
from docsum.cli.looking import processes_of
from docsum.cli.output import Code, console, finish, next_step, say, table
from docsum.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from docsum.health import LocalProcess
    from docsum.local.stack_state import StackState
    from docsum.settings import Settings


WORKERS = 2  # processes, unless told otherwise


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum up` or `docsum down`."""
    app.command(name)(up if name == "up" else down)


def up(
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="In the background, once it is ready.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            show_default="2",
            help="Worker processes; of a running docsum: changes their number.",
        ),
    ] = None,
    local_model: Annotated[bool, typer.Option("--local-model", hidden=True)] = False,
) -> None:
    """Run everything on this machine: Kafka, the ClickHouse engine, a local model server and workers.

    Ctrl-C stops all of it in order. What was announced and stored is kept in DOCSUM_HOME.

    \b
      docsum up
      docsum up -d
      docsum up --workers 4
    """
    from docsum.local.stack_state import find
    from docsum.settings import load

    settings = load()
    if settings.explicit:
        raise ConfigurationError(
            "DOCSUM_KAFKA__BOOTSTRAP_SERVERS names a deployment of your own: unset it for the local stack."
        )
    download(settings)
    scales = workers is not None and find(settings.home) is not None
    finish((_detached if detach or scales else _here)(settings, workers, local_model))


async def _detached(settings: Settings, workers: int | None, local_model: bool) -> Code:
    from docsum.local.compose import ensure_stack, scale_stack

    with starting() as seen:
        stack = await ensure_stack(settings, workers=workers or WORKERS, local_model=local_model, seen=seen)
    before = len(stack.state.workers)
    if workers not in (None, before):
        say(
            f"Changing the number of workers from {before} to {workers}: those that leave finish their calls."
        )
        await scale_stack(settings, workers, local_model=local_model)
    count, partitions = workers or before, settings.topics.partitions
    kept = f"{count} {'worker' if count == 1 else 'workers'}"
    say(f"docsum runs in {settings.home} with {kept}. {stack.model_line}")
    say(f"The page and the API: {stack.state.addresses['api']}")
    if count > partitions:
        say(f"The topics have {partitions} partitions: more workers than that have nothing to do.")
    next_step("`docsum run FOLDER`, `docsum status`, `docsum down`")
    return Code.OK


async def _here(settings: Settings, workers: int | None, local_model: bool) -> Code:
    from docsum.local.compose import run_stack

    say(f"Starting docsum in {settings.home}; Ctrl-C stops it.")
    with _shown() as seen:
        await run_stack(settings, workers=workers or WORKERS, local_model=local_model, seen=seen)
    say("docsum is stopped; `docsum up` goes on where it was.")
    return Code.OK


@contextmanager
def _shown() -> Iterator[Callable[[StackState], None]]:
    """One table on a terminal, else a line for every change."""
    if not sys.stderr.isatty():
        yield _Changes().tell
        return
    from rich.live import Live

    with Live(console=console(stderr=True), refresh_per_second=4) as live:
        yield lambda state: live.update(processes(processes_of(state)))


class _Changes:
    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def tell(self, state: StackState) -> None:
        for process in state.processes:
            line = f"{process.name}: {process.state}{f' ({process.problem})' if process.problem else ''}"
            if self._told.get(process.name) != line:
                self._told[process.name] = line
                say(line)


def processes(stack: Sequence[LocalProcess]) -> Table:
    """The processes of the stack as a table."""
    found = table("process", "state", "pid", "port", "restarts", "problem", right=("pid", "port", "restarts"))
    for process in stack:
        found.add_row(
            process.name,
            process.state,
            str(process.pid or ""),
            str(process.port or ""),
            str(process.restarts),
            f"{process.problem}; see {process.log}" if process.problem else "",
        )
    return found


def down() -> None:
    """Stop what runs on this machine, in order. Nothing is lost: `docsum up` goes on where it was.

    \b
      docsum down
    """
    from docsum.settings import load

    finish(_down(load()))


async def _down(settings: Settings) -> Code:
    from docsum.local.compose import attach, stop_stack

    if attach(settings) is None:
        say(f"No docsum runs in {settings.home}.")
        return Code.OK
    say("Stopping docsum: workers finish the calls that they have paid for.")
    await stop_stack(settings)
    say("docsum is stopped.")
    next_step("`docsum up -d`")
    return Code.OK
