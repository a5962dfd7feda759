"""`docsum api`: the HTTP API and the page."""

from __future__ import annotations

from typing import Annotated

import typer

from docsum.cli.deployment import reached
from docsum.cli.output import Code, finish


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum api`."""
    app.command(name)(api)


def api(
    is_open: Annotated[
        bool, typer.Option("--open", hidden=True, help="Without tokens: the local stack's.")
    ] = False,
    set_up: Annotated[
        bool, typer.Option("--set-up", hidden=True, help="Make topics and tables first: the local stack's.")
    ] = False,
) -> None:
    """Serve the HTTP API and the page, until SIGTERM. The local stack has one already: see `docsum status`.

    Everybody needs a token of `docsum tokens create`; the page asks for it. Put a proxy with TLS in front.

    \b
      docsum api
      DOCSUM_API__HOST=0.0.0.0 DOCSUM_API__PORT=80 docsum api
      curl -H "Authorization: Bearer $TOKEN" http://localhost:8080/v1/runs

    Its own description is at /v1/openapi.json. Any number may run side by side; what a killed one was
    announcing, another takes up within a minute.
    """
    finish(_api(is_open, set_up), logs=True)


async def _api(is_open: bool, set_up: bool) -> Code:
    from docsum.serve_api import serve_api
    from docsum.settings import load

    local = not load().explicit
    await serve_api(reached(), is_open=is_open or local, set_up=set_up)
    return Code.OK
