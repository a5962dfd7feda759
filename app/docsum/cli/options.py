"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

MAX_LAG = 100_000

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once everything is announced.")]
MaxLag = Annotated[int, typer.Option(min=1, help="Announce no more while so many events wait.")]
JsonObject = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
JsonLines = Annotated[bool, typer.Option("--json", help="A JSON object a line on stdout.")]
