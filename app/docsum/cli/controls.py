"""Pause and resume all work, and what the commands of a run share with them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import typer

from docsum.cli.audit import who
from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, finish, next_step, say
from docsum.controls import dollars as amount_of
from docsum.controls import larger_budget
from docsum.models import ControlState, Run, RunProgress
from docsum.words import money, sentence

Reason = Annotated[str, typer.Option("--reason", help="Why: whoever looks at it is told.")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="USD", help="Pause when so many US dollars have been spent.")
]


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum pause` or `docsum resume`."""
    app.command(name)({"pause": pause, "resume": resume}[name])


def pause(
    all_: Annotated[bool, typer.Option("--all", help="All work: live events and every run.")] = False,
    reason: Reason = "",
) -> None:
    """Stop taking work, everywhere, until `docsum resume --all`.

    What is being worked on waits where it is, calls that were sent are finished and stored. One run alone is
    paused by `docsum runs pause ID`.

    \b
      docsum pause --all --reason 'the provider is being changed'
    """
    _need_all(all_, "pause")
    if not reason.strip():
        raise WrongUsage("Say why with --reason TEXT: whoever finds everything standing still is told.")
    finish(_pause_all(reason.strip()))


async def _pause_all(reason: str) -> Code:
    from docsum.bootstrap import open_store
    from docsum.controls import pause_all
    from docsum.ports import SystemClock

    async with open_store(reached()) as store:
        await pause_all(store, SystemClock(), reason, who=who())
    say("All work is paused.")
    next_step("`docsum resume --all`")
    return Code.OK


def resume(
    all_: Annotated[bool, typer.Option("--all", help="All work: live events and every run.")] = False,
) -> None:
    """Take work again after `docsum pause --all`, a spent daily budget or a stop by the flood guard.

    Where the day's budget is spent, it grants the same once more for today. Runs that were paused by
    themselves stay so: `docsum runs resume ID`.

    \b
      docsum resume --all
    """
    _need_all(all_, "resume")
    finish(_resume_all())


async def _resume_all() -> Code:
    from docsum.bootstrap import open_store
    from docsum.controls import resume_all
    from docsum.ports import SystemClock

    settings = reached()
    async with open_store(settings) as store:
        paused, granted = await resume_all(store, SystemClock(), settings.budget.daily_usd, who=who())
    say("Work goes on." if paused or granted else "Nothing was paused.")
    if granted:
        say(f"Today {money(granted)} may be spent in all.")
    next_step("`docsum status`")
    return Code.OK


def _need_all(all_: bool, verb: str) -> None:
    if not all_:
        raise WrongUsage(f"Say --all to {verb} all work; one run: `docsum runs {verb} ID`.")


def told_why(run: Run, progress: RunProgress) -> Code | None:
    """Says why a run has stopped before its end, and how it goes on; None where it has not."""
    if run.wanted is ControlState.CANCELLED:
        say(f"The run is cancelled: {_reason(run)}")
        return Code.FAILURE
    if run.wanted is not ControlState.PAUSED or not progress.remaining:
        return None
    more = larger_budget(run, progress)
    say(f"The run is paused: {_reason(run)} `docsum runs resume {run.id}{more}` goes on.")
    return Code.PAUSED


def _reason(run: Run) -> str:
    return sentence(run.control.reason if run.control else "")


def dollars(text: str | None) -> Decimal | None:
    """The amount of a --budget. Raises WrongUsage."""
    if text is None:
        return None
    amount = amount_of(text)
    if amount is None:
        raise WrongUsage(f"{text!r} is no amount: write more than nothing, such as --budget 12.50.")
    return amount
