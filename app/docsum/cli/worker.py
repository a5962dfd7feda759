"""`docsum worker`, and the local model server."""

from __future__ import annotations

from typing import Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, finish
from docsum.models import Lane


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum worker`, or the hidden `docsum model-server`, which reads its own options."""
    if name == "worker":
        app.command(name)(worker)
    else:
        as_they_are = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(name, hidden=True, add_help_option=False, context_settings=as_they_are)(model_server)


def worker(
    lane: Annotated[
        str,
        typer.Option(metavar="live|batch", help="live: live events and runs; batch: runs at half the price."),
    ] = "live",
    set_up: Annotated[
        bool, typer.Option("--set-up", hidden=True, help="Make topics and tables first: the local stack's.")
    ] = False,
) -> None:
    """Be one worker of the group, until SIGTERM: it then finishes what it has paid for.

    \b
      docsum worker
      DOCSUM_WORKER__INSTANCE_ID=$HOSTNAME DOCSUM_WORKER__PORT=9090 docsum worker

    Ends with 78 when the configuration is wrong: starting it again would not help.
    """
    if lane not in ("live", "batch"):
        raise WrongUsage(f"There is no worker for the lane {lane!r}: live (for backfill, too) or batch.")
    finish(_worker(lane, set_up), logs=True)


async def _worker(lane: str, set_up: bool) -> Code:
    from docsum.serve import serve_worker

    await serve_worker(reached(), lane=Lane(lane), set_up=set_up)
    return Code.OK


def model_server(context: typer.Context) -> None:
    """A local server that speaks the Messages API."""
    from docsum.local.model_server import main

    main(context.args)
