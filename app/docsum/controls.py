"""Pause, resume and cancel: a run, or all work. What is wanted, and by whom, is written down; all follow."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal, InvalidOperation

from docsum.errors import DocsumError
from docsum.models import (
    ALL_WORK,
    EPOCH,
    LIVE_EVENTS,
    AuditRow,
    Control,
    ControlState,
    Run,
    RunProgress,
    midnight,
)
from docsum.ports import Clock, SummaryStore
from docsum.words import money

SMALLEST_BUDGET, LARGEST_BUDGET = Decimal("0.000001"), Decimal(1_000_000_000)  # US dollars
#: How the audit spells it.
PAUSE, RESUME = "pause --all", "resume --all"


class ControlRefused(DocsumError):
    """What is wanted of a run does not go together with how it stands."""


# -- one run -----------------------------------------------------------------------------------------------


async def pause_run(store: SummaryStore, clock: Clock, run: Run, reason: str, *, who: str) -> None:
    """Raises ControlRefused for a run that is cancelled."""
    _refuse_cancelled(run)
    reason = reason or f"Paused by {who}."
    wish = run.control or Control(run.id)
    await _save(store, clock, replace(wish, state=ControlState.PAUSED, reason=reason))
    await store.audit(AuditRow(clock.now(), who, "runs pause", _named(run, reason)))


async def resume_run(
    store: SummaryStore,
    clock: Clock,
    run: Run,
    budget: Decimal | None,
    accept_dead_letters: bool,
    *,
    who: str,
) -> None:
    """Raises ControlRefused for a run that is cancelled, or that would stop at once at its old budget."""
    _refuse_cancelled(run)
    wish = run.control or Control(run.id)
    budget = wish.budget if budget is None else budget
    spent = await store.spent(run.id)
    if budget is not None and spent >= budget:
        raise ControlRefused(
            f"{money(spent)} are spent and its budget is {money(budget)}: give a larger one with --budget."
        )
    unguarded = wish.unguarded or accept_dead_letters
    await _save(store, clock, Control(run.id, budget=budget, unguarded=unguarded))
    await store.audit(AuditRow(clock.now(), who, "runs resume", _named(run)))


async def cancel_run(store: SummaryStore, clock: Clock, run: Run, reason: str, *, who: str) -> int:
    """Final: what waits never starts. How many documents are cancelled.

    Raises ControlRefused where it is cancelled already.
    """
    _refuse_cancelled(run)
    reason = reason or f"Cancelled by {who}."
    wish = run.control or Control(run.id)
    await _save(store, clock, replace(wish, state=ControlState.CANCELLED, reason=reason))
    await store.cancel_rest(run.id, reason, clock.now())
    count = (await store.progress(run.id)).cancelled
    await store.audit(AuditRow(clock.now(), who, "runs cancel", _named(run, reason), count))
    return count


async def set_budget(store: SummaryStore, clock: Clock, run: Run, budget: Decimal) -> None:
    """Of a run that begins."""
    await _save(store, clock, replace(run.control or Control(run.id), budget=budget))


def is_budget(amount: Decimal) -> bool:
    """Whether a run can be given so many US dollars."""
    return amount.is_finite() and SMALLEST_BUDGET <= amount < LARGEST_BUDGET


def dollars(text: str) -> Decimal | None:
    """The amount that a person means; None where it is none."""
    try:
        amount = Decimal(text.strip().lstrip("$"))
    except InvalidOperation:
        return None
    return amount.quantize(SMALLEST_BUDGET) if is_budget(amount) else None


def larger_budget(run: Run, progress: RunProgress) -> str:
    """The option that a run needs to go on where its budget is spent; else empty."""
    budget = run.control.budget if run.control else None
    if budget is None or progress.cost < budget:
        return ""
    return f" --budget {(2 * budget).normalize():f}"


def _refuse_cancelled(run: Run) -> None:
    if run.wanted is ControlState.CANCELLED:
        raise ControlRefused(
            f"The run {run.id} is cancelled, and that is final: `docsum run` starts a new one."
        )


def _named(run: Run, reason: str = "") -> str:
    return f"{run.id} ({run.name})" + (f": {reason}" if reason else "")


# -- all work ----------------------------------------------------------------------------------------------


async def pause_all(store: SummaryStore, clock: Clock, reason: str, *, who: str) -> None:
    """Nothing is begun any more, anywhere."""
    was = await store.control(ALL_WORK)
    granted = was.budget if was.changed_at >= midnight(clock.now()) else None  # yesterday's is over
    await _save(store, clock, Control(ALL_WORK, ControlState.PAUSED, reason, granted))
    await store.audit(AuditRow(clock.now(), who, PAUSE, reason))


async def resume_all(
    store: SummaryStore, clock: Clock, daily_budget: Decimal | None, *, who: str
) -> tuple[bool, Decimal | None]:
    """Whether anything was paused, and what may be spent today in all where the day's budget was spent."""
    was = [await store.control(target) for target in (ALL_WORK, LIVE_EVENTS)]
    granted = None
    if daily_budget is not None:
        spent = await store.spent(None, midnight(clock.now()))
        granted = spent + daily_budget if spent >= daily_budget else None
    await _save(store, clock, Control(ALL_WORK, budget=granted))
    if was[1].state is ControlState.PAUSED:
        await _save(store, clock, Control(LIVE_EVENTS))
    detail = f"{money(granted)} for today" if granted else ""
    await store.audit(AuditRow(clock.now(), who, RESUME, detail))
    return any(control.state is ControlState.PAUSED for control in was), granted


async def _save(store: SummaryStore, clock: Clock, control: Control) -> None:
    """Never older than what is there: the newest wish counts, whatever the clocks say."""
    before = (await store.control(control.target)).changed_at
    now = max(clock.now(), before + timedelta(milliseconds=1) if before > EPOCH else before)
    await store.save_control(replace(control, changed_at=now))
