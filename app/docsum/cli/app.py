"""All commands in one application."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from docsum import __version__

_HELP = """Summarise all our documents, as a stream that finishes.

\b
  docsum demo              see it work on the samples: no key, no account
  docsum run FOLDER        summarise a folder
  docsum status            what runs, what waits, what holds

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with dead letters,
4 something is unreachable (trying again may help), 5 time-out, 6 paused (a
person must look), 78 wrong configuration (trying again never helps), 130
interrupted.
"""

#: Command -> module, and what the list of commands says of it.
COMMANDS = {
    "demo": ("demo", "Summarise the samples, free of charge, on this machine."),
    "run": ("run", "Summarise every document of a source."),
    "ingest": ("ingest", "Announce what is new in a source, and follow it."),
    "runs": ("runs", "Runs: list, show, watch, pause, resume, cancel."),
    "pause": ("controls", "Stop taking work, everywhere."),
    "resume": ("controls", "Take work again."),
    "status": ("status", "What runs, what waits, what holds."),
    "documents": ("documents", "One document: show it, delete it."),
    "dlq": ("dlq", "Dead letters: list, show, replay, discard."),
    "export": ("export", "Every document of a run with state and summary."),
    "cost": ("cost", "What was paid, for what."),
    "up": ("stack", "Run everything on this machine."),
    "down": ("stack", "Stop what runs on this machine."),
    "doctor": ("doctor", "Check everything, and say what to do."),
    "config": ("config", "Settings: what is set, and where."),
    "setup": ("setup", "Make or check topics and tables."),
    "worker": ("worker", "Be one worker of the group."),
    "api": ("api", "Serve the HTTP API and the page."),
    "tokens": ("tokens", "Who may use the API."),
    "model-server": ("worker", ""),
}
_HIDDEN = ("model-server",)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"docsum {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Its options act by themselves: `--debug` is read before anything else, see `execute`."""


def application(arguments: Sequence[str] | None = None) -> typer.Typer:
    """The command line as typer takes it: for these arguments, or, without, with all its commands.

    Only the module of the command that is asked for is imported, and help is plain: rich's takes half a
    second more.
    """
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
    app.callback(help=_HELP)(_root)
    everything = arguments is None or "_DOCSUM_COMPLETE" in os.environ
    asked = next((argument for argument in arguments or () if not argument.startswith("-")), "")
    for name, (module, summary) in COMMANDS.items():
        if everything or name == asked:
            import_module(f"docsum.cli.{module}").register(app, name)
        else:
            app.command(name, help=summary, hidden=name in _HIDDEN)(_elsewhere)
    return app


def _elsewhere() -> None:
    """Stands in the list for a command that is not the one that was asked for."""
