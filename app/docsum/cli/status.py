"""`docsum status`: what happens, why, what happens next and what to do, also while parts are down."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import UUID

import typer

from docsum.cli.deployment import reached
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, code_of, console, emit, finish, next_step
from docsum.cli.progress import Pace

if TYPE_CHECKING:
    from docsum.health import Health
    from docsum.settings import Settings

_EVERY = 2.0  # seconds between two looks


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum status`."""
    app.command(name)(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    json: JsonObject = False,
) -> None:
    """What is wrong and what to do; what waits and since when; workers, runs, the money of today.

    Whatever is down, it says so within about six seconds and shows what the others know.

    \b
      docsum status
      docsum status --watch
      docsum status --json | jq .lanes

    Ends with 4 when Kafka or ClickHouse does not answer, or events wait and no worker is there; with 6 when
    all work is paused or the budget of the day is spent; with 0 otherwise, also when single runs are paused.
    """
    finish(_status(watch, json))


async def _status(watch: bool, json: bool) -> Code:
    from docsum.cli.looking import look
    from docsum.settings import load

    settings, local = reached(), not load().explicit
    if not watch:
        health = await look(settings, local=local)
        _show(health, settings, json)
        return ends_with(health)
    if not json and sys.stdout.isatty():
        await _watch(settings, local)
    while True:
        _show(await look(settings, local=local), settings, json)
        await asyncio.sleep(_EVERY)


async def _watch(settings: Settings, local: bool) -> NoReturn:
    from rich.console import Group
    from rich.live import Live

    from docsum.cli.looking import look
    from docsum.cli.status_view import picture
    from docsum.troubles import troubles

    paces = _Paces()
    with Live("Looking…", console=console(), screen=True, auto_refresh=False) as live:
        while True:
            health = await look(settings, local=local)
            parts = picture(health, troubles(health), settings, paces.rates(health), console().width)
            live.update(Group(f"{health.at:%H:%M:%S} UTC, Ctrl-C ends", *parts), refresh=True)
            await asyncio.sleep(_EVERY)


class _Paces:
    """How fast the runs are, for whoever looks more than once."""

    def __init__(self) -> None:
        self._paces: dict[UUID, Pace] = {}

    def rates(self, health: Health) -> Mapping[UUID, float]:
        """Documents a second by run, with this look."""
        for run, progress in health.stored.runs or ():
            pace = self._paces.setdefault(run.id, Pace())
            pace.add(time.monotonic(), progress.total - progress.remaining)
        return {run_id: pace.rate for run_id, pace in self._paces.items()}


def ends_with(health: Health) -> Code:
    """The exit code that sums it up."""
    if health.errors:
        return code_of(health.errors[0])
    if health.nobody_works:
        return Code.UNREACHABLE
    return Code.PAUSED if health.rests else Code.OK


def _show(health: Health, settings: Settings, json: bool) -> None:
    from docsum.cli.status_view import fields, picture
    from docsum.troubles import next_command, troubles

    found = troubles(health)
    if json:
        emit(fields(health, found, settings))
        return
    for part in picture(health, found, settings, {}, console().width):
        console().print(part)
    if found:
        next_step(next_command(found))
    elif health.stored.runs:
        next_step(f"`docsum runs show {str(health.stored.runs[0][0].id)[:8]}`")
    else:
        next_step("`docsum run FOLDER`")
