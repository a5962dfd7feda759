"""What a person or a program reads: results on stdout, everything else on stderr, one sentence an error."""

from __future__ import annotations

import asyncio
import enum
import json
import signal
import sys
import traceback
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import typer

from docsum.errors import Disposition, DocsumError, row_of
from docsum.models import RunProgress
from docsum.words import money, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN_WIDTH = 160  # columns where nobody has a window


class Code(enum.IntEnum):
    """What a command ends with; a public interface."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DEAD_LETTERS = 3  # finished, but some documents failed
    UNREACHABLE = 4  # trying again may help
    TIMEOUT = 5
    PAUSED = 6  # a person must look, or grant a larger budget
    CONFIGURATION = 78  # trying again never helps
    INTERRUPTED = 130


class WrongUsage(DocsumError):
    """The command line asks for something that does not go together."""


class NothingRuns(DocsumError):
    """There is no local stack, and no other deployment is configured."""


def code_of(error: BaseException) -> Code:
    """By the failure table, but for what only a command meets."""
    from docsum.controls import ControlRefused
    from docsum.local.jars import DownloadFailed
    from docsum.local.stack_state import StackFailed
    from docsum.manifests import NoManifest
    from docsum.runs import UnknownRun
    from docsum.sources import UnusableSource

    match error:
        case WrongUsage() | ControlRefused() | UnusableSource() | NoManifest() | UnknownRun():
            return Code.USAGE
        case NothingRuns() | DownloadFailed():
            return Code.UNREACHABLE
        case StackFailed(process=process) if process.exit_code == Code.CONFIGURATION:
            return Code.CONFIGURATION
        case TimeoutError():
            return Code.TIMEOUT
        case DocsumError():
            return _BY_DISPOSITION.get(row_of(error).disposition, Code.FAILURE)
        case _:
            return Code.FAILURE


_BY_DISPOSITION = {
    Disposition.STOP: Code.CONFIGURATION,
    Disposition.PAUSE: Code.UNREACHABLE,
    Disposition.HOLD: Code.UNREACHABLE,
}


def explain(error: Exception, debug: bool) -> Code:
    """Says what went wrong in a sentence, and what to do where the sentence does not; the exit code."""
    code = code_of(error)
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    if isinstance(error, DocsumError):
        message = str(error)
        if code is Code.CONFIGURATION and "`" not in message and "DOCSUM_" not in message:
            message += f" {row_of(error).hint}"
    elif isinstance(error, BrokenPipeError):  # the reader, such as `head`, has enough
        return Code.OK
    elif isinstance(error, TimeoutError):
        message = "It took too long. Look at `docsum status`, then try again."
    else:
        message = f"docsum failed unexpectedly ({type(error).__name__}: {error}). "
        message += "Report it with the output of the same command and --debug."
    say(f"Error: {message}")
    return code


def finish(main: Coroutine[Any, Any, Code | None], *, logs: bool = False) -> None:
    """Runs the body of a command, to its exit code. Ctrl-C and SIGTERM cancel it, so that it can tidy up.

    Without `logs` the libraries are silent: what they would say, a command says in its own words.
    """
    from docsum.telemetry.logs import configure

    if not logs:
        configure("critical", "auto")

    async def body() -> Code | None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        code = asyncio.run(body())
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = Code.INTERRUPTED
    raise typer.Exit(code or Code.OK)


def say(text: str) -> None:
    """A sentence to the person, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def next_step(text: str) -> None:
    """How every command ends, for a person: with the next useful one."""
    if sys.stderr.isatty():
        say(f"Next: {text}")


def emit(value: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout.

    What could steer a terminal is escaped, which JSON reads back the same.
    """
    text = json.dumps(value, ensure_ascii=False, default=plain)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """Colours only on a terminal and without NO_COLOR; nothing is cut where there is no window."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, soft_wrap=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        found.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return found


def count_cells(progress: RunProgress) -> tuple[str, ...]:
    """The cells done, skipped, retrying, failed, waiting and cost of a table."""
    return (
        f"{progress.done:,}",
        f"{progress.skipped:,}",
        f"{progress.retrying:,}",
        f"{progress.dead_lettered:,}",
        f"{progress.queued + progress.held:,}",
        money(progress.cost),
    )


async def agreed(question: str) -> bool:
    """A person's yes, on the terminal. Waits in the event loop, so that Ctrl-C ends it at once."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline().strip().lower() in ("y", "yes")
