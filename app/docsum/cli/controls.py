"""Pause, resume and cancel: a run, or all work. Every worker follows within five seconds."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.audit import audit
from docsum.cli.deployment import reached
from docsum.cli.output import Code, WrongUsage, finish, larger_budget, money, next_step, say, sentence
from docsum.models import ALL_WORK, EPOCH, LIVE_EVENTS, Control, ControlState, Run, RunProgress

if TYPE_CHECKING:
    from docsum.ports import SummaryStore

Reason = Annotated[str, typer.Option("--reason", help="Why: whoever looks at it is told.")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="USD", help="Pause when so many US dollars have been spent.")
]


PAUSE, RESUME = "pause --all", "resume --all"  # in the audit


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

    async with open_store(reached()) as store:
        was = await store.control(ALL_WORK)
        granted = was.budget if was.changed_at >= midnight() else None  # yesterday's is over
        await _save(store, Control(ALL_WORK, ControlState.PAUSED, reason, granted))
        await audit(store, PAUSE, reason, 0)
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

    settings = reached()
    async with open_store(settings) as store:
        was = [await store.control(target) for target in (ALL_WORK, LIVE_EVENTS)]
        daily, granted = settings.budget.daily_usd, None
        if daily is not None:
            spent = await store.spent(None, midnight())
            granted = spent + daily if spent >= daily else None
        await _save(store, Control(ALL_WORK, budget=granted))
        if was[1].state is ControlState.PAUSED:
            await _save(store, Control(LIVE_EVENTS))
        await audit(store, RESUME, f"{money(granted)} for today" if granted else "", 0)
    paused = [control for control in was if control.state is ControlState.PAUSED]
    say("Work goes on." if paused or granted else "Nothing was paused.")
    if granted:
        say(f"Today {money(granted)} may be spent in all.")
    next_step("`docsum status`")
    return Code.OK


def midnight(now: datetime | None = None) -> datetime:
    """Of today, UTC: when the day's budget began."""
    from docsum.ports import SystemClock

    return (now or SystemClock().now()).replace(hour=0, minute=0, second=0, microsecond=0)


def _need_all(all_: bool, verb: str) -> None:
    if not all_:
        raise WrongUsage(f"Say --all to {verb} all work; one run: `docsum runs {verb} ID`.")


# -- one run -------------------------------------------------------------------------------------------------


async def pause_run(store: SummaryStore, run: Run, reason: str) -> None:
    """Raises WrongUsage for a run that is over."""
    _refuse_cancelled(run)
    wish = run.control or Control(run.id)
    await _save(store, replace(wish, state=ControlState.PAUSED, reason=reason or "Paused by hand."))


async def resume_run(
    store: SummaryStore, run: Run, budget: Decimal | None, accept_dead_letters: bool
) -> None:
    """Raises WrongUsage for a run that is over, or that would stop at once at its old budget."""
    _refuse_cancelled(run)
    wish = run.control or Control(run.id)
    budget = wish.budget if budget is None else budget
    spent = await store.spent(run.id)
    if budget is not None and spent >= budget:
        raise WrongUsage(
            f"{money(spent)} are spent and its budget is {money(budget)}: give a larger one with --budget."
        )
    unguarded = wish.unguarded or accept_dead_letters
    await _save(store, Control(run.id, budget=budget, unguarded=unguarded))


async def cancel_run(store: SummaryStore, run: Run, reason: str) -> None:
    """Final: what waits never starts. Raises WrongUsage where it is cancelled already."""
    from docsum.ports import SystemClock

    _refuse_cancelled(run)
    reason = reason or "Cancelled by hand."
    wish = run.control or Control(run.id)
    await _save(store, replace(wish, state=ControlState.CANCELLED, reason=reason))
    await store.cancel_rest(run.id, reason, SystemClock().now())


async def set_budget(store: SummaryStore, run: Run, budget: Decimal) -> None:
    """Of a run that begins."""
    await _save(store, replace(run.control or Control(run.id), budget=budget))


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
    try:
        amount = Decimal(text.strip().lstrip("$"))
    except InvalidOperation:
        raise WrongUsage(f"{text!r} is no amount: write --budget 12.50.") from None
    if not amount.is_finite() or not Decimal("0.000001") <= amount < 1_000_000_000:
        raise WrongUsage(f"{text!r} is no amount: it must be more than nothing.")
    return amount.quantize(Decimal("0.000001"))


async def _save(store: SummaryStore, control: Control) -> None:
    """Never older than what is there: the newest wish counts, whatever the clocks say."""
    from datetime import timedelta

    from docsum.ports import SystemClock

    before = (await store.control(control.target)).changed_at
    now = max(SystemClock().now(), before + timedelta(milliseconds=1) if before > EPOCH else before)
    await store.save_control(replace(control, changed_at=now))


def _refuse_cancelled(run: Run) -> None:
    if run.wanted is ControlState.CANCELLED:
        raise WrongUsage(f"The run {run.id} is cancelled, and that is final: `docsum run` starts a new one.")
