"""`docsum runs`: what was asked for, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from docsum.bootstrap import open_lister
from docsum.cli.audit import who
from docsum.cli.controls import Budget, Reason, dollars, told_why
from docsum.cli.deployment import deployment_for, download, reached
from docsum.cli.options import MAX_LAG, JsonLines, JsonObject, MaxLag, NoWait
from docsum.cli.output import Code, WrongUsage, agreed, console, emit, finish, next_step, say, table
from docsum.controls import cancel_run, pause_run, resume_run
from docsum.models import ControlState, DeliveryState, Lane, Run, RunState, WebhookDelivery
from docsum.runs import run_fields, standing, webhook_fields
from docsum.sources import STDIN
from docsum.words import money, one_line

if TYPE_CHECKING:
    from rich.table import Table

    from docsum.cli.execution import Manner
    from docsum.ports import SummaryStore

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a run, or how it begins, or `last`.")]
_MOST_BATCHES = 10_000
_RECENT = 1_000  # runs that a part of an id is looked for in


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum runs ...`."""
    group = typer.Typer(
        help="Runs: list, show, watch, pause, resume, cancel.", rich_markup_mode=None, no_args_is_help=True
    )
    group.command("ls")(list_)
    group.command("show")(show)
    group.command("watch")(watch)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("cancel")(cancel)
    app.add_typer(group, name=name)


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The newest so many.")] = 20,
    json: JsonLines = False,
) -> None:
    """The newest runs.

    \b
      docsum runs ls
      docsum runs ls --json | jq -r .run_id
    """
    finish(_list(limit, json))


async def _list(limit: int, json: bool) -> Code:
    from docsum.bootstrap import open_store

    async with open_store(reached()) as store:
        runs = await store.runs(limit)
        rows = [(run, await store.progress(run.id)) for run in runs]
    if json:
        for run, progress in rows:
            emit(run_fields(run, progress))
        return Code.OK
    if not rows:
        say("There are no runs yet.")
        next_step("`docsum run FOLDER`")
        return Code.OK
    found = table(
        "id", "name", "state", "model", "started", "done", "skipped", "failed", "waiting", "cost",
        right=("done", "skipped", "failed", "waiting", "cost"),
    )  # fmt: skip
    for run, progress in rows:
        found.add_row(
            str(run.id)[:8],
            run.name,
            standing(run, progress),
            run.recipe.model,
            f"{run.created_at.astimezone():%Y-%m-%d %H:%M}",
            f"{progress.done:,}",
            f"{progress.skipped:,}",
            f"{progress.dead_lettered:,}",
            f"{progress.remaining:,}",
            money(progress.cost),
        )
    console().print(found)
    next_step(f"`docsum runs show {str(rows[0][0].id)[:8]}`")
    return Code.OK


def show(
    run_id: Id,
    batches: Annotated[
        bool, typer.Option("--batches", help="Its batches at the provider, the newest first.")
    ] = False,
    json: JsonObject = False,
) -> None:
    """How far a run is, and what failed.

    With --batches and --json a line for every batch.

    \b
      docsum runs show 3f2a91c0
      docsum runs show last --json
      docsum runs show last --batches
    """
    finish(_batches(run_id, json) if batches else _show(run_id, json))


async def _batches(run_id: str, json: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.batches import fields, view

    async with open_store(reached()) as store:
        run = await find(run_id, store)
        found = await store.batches(run.id, _MOST_BATCHES)
    if json:
        for batch in found:
            emit(fields(batch))
    elif found:
        console().print(view(found))
    else:
        say("It has no batches" + (" yet." if run.lane is Lane.BATCH else f": its lane is {run.lane}."))
    return Code.OK


async def _show(run_id: str, json: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.report import report
    from docsum.runs import Snapshot

    async with open_store(reached()) as store:
        run = await find(run_id, store)
        progress = await store.progress(run.id)
        messages = await store.webhook_deliveries(run.id) if run.webhook else []
        if json:
            emit({**run_fields(run, progress), "webhooks": [webhook_fields(each) for each in messages]})
            return Code.OK
        recipe = run.recipe
        details = table("run", str(run.id))
        details.add_row("name", run.name)
        details.add_row("source", run.source)
        by = f", by {run.by.astimezone():%Y-%m-%d %H:%M}" if run.by else ""
        details.add_row("lane", f"{run.lane.value}{by}")
        details.add_row("model", recipe.model)
        details.add_row("wish", f"about {recipe.words} words, language {recipe.language}")
        if recipe.instructions:
            details.add_row("instructions", recipe.instructions)
        if run.control is not None and run.control.budget is not None:
            details.add_row("budget", money(run.control.budget))
        if run.control is not None and run.wanted is not ControlState.RUNNING:
            details.add_row(run.wanted.value, run.control.reason)
        details.add_row("listed", f"{run.listed:,}, {run.unreadable:,} of them could not be announced")
        console().print(details)
        if messages:
            console().print(_told(messages))
        await report(Snapshot(run, progress), store)
    if run.state is RunState.INTERRUPTED:
        next_step(f"`docsum runs resume {run.id}`")
    return Code.OK


def _told(messages: Sequence[WebhookDelivery]) -> Table:
    """What its webhook was told, the newest first."""
    found = table("webhook", "state", "attempts", "what came of it", "next", right=("attempts",))
    for each in messages:
        waits = each.state is DeliveryState.PENDING
        found.add_row(
            each.event,
            each.state.value,
            str(each.attempts),
            one_line(each.answer, 200),
            f"{each.next_attempt_at.astimezone():%Y-%m-%d %H:%M:%S}" if waits else "",
        )
    return found


def watch(run_id: Id, json: JsonLines = False) -> None:
    """Watch a run until it is finished.

    With --json a line for every look.

    \b
      docsum runs watch last
      docsum runs watch 3f2a91c0 --json | jq .remaining
    """
    finish(_watch(run_id, json))


async def _watch(run_id: str, json: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.progress import Watch
    from docsum.cli.report import report
    from docsum.ports import SystemClock
    from docsum.runs import follow

    async with open_store(reached()) as store:
        run = await find(run_id, store)
        with Watch() as view:
            async for snapshot in follow(run.id, store, SystemClock()):
                if json:
                    emit(run_fields(snapshot.run, snapshot.progress))
                else:
                    view.show(snapshot, publishing=snapshot.run.state is not RunState.PUBLISHED)
        if not json:
            await report(snapshot, store)
        if stopped := told_why(snapshot.run, snapshot.progress):
            return stopped
        if snapshot.run.state is RunState.INTERRUPTED:
            say(f"Not everything has been announced. `docsum runs resume {run.id}` goes on.")
            return Code.FAILURE
    return Code.DEAD_LETTERS if snapshot.progress.dead_lettered else Code.OK


def pause(run_id: Id, reason: Reason = "") -> None:
    """Let a run rest: its documents wait in a topic of their own and stand in nobody's way.

    No attempt is spent, calls that were sent are finished. Nothing more is announced meanwhile.

    \b
      docsum runs pause 3f2a91c0 --reason 'the contract is being checked'
    """
    finish(_pause(run_id, reason))


async def _pause(run_id: str, reason: str) -> Code:
    from docsum.bootstrap import open_store
    from docsum.ports import SystemClock

    async with open_store(reached()) as store:
        run = await find(run_id, store)
        await pause_run(store, SystemClock(), run, reason, who=who())
    say(f"Run {run.id} ({run.name}) is paused; calls that were sent are finished.")
    next_step(f"`docsum runs resume {str(run.id)[:8]}`")
    return Code.OK


def cancel(
    run_id: Id,
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """End a run for good: what has not been started never is. Summaries that are there stay.

    \b
      docsum runs cancel 3f2a91c0
    """
    finish(_cancel(run_id, reason, yes))


async def _cancel(run_id: str, reason: str, yes: bool) -> Code:
    from docsum.bootstrap import open_store
    from docsum.ports import SystemClock

    async with open_store(reached()) as store:
        run = await find(run_id, store)
        waiting = (await store.progress(run.id)).remaining
        question = f"Cancel {waiting:,} waiting documents of {run.name} for good?"
        if not yes and sys.stdin.isatty() and not await agreed(question):
            say("Nothing is cancelled.")
            return Code.FAILURE
        count = await cancel_run(store, SystemClock(), run, reason, who=who())
    say(f"Run {run.id} ({run.name}) is cancelled: {count:,} documents.")
    next_step(f"`docsum export --run {str(run.id)[:8]} -o summaries.csv`")
    return Code.OK


def resume(
    run_id: Id,
    *,
    budget: Budget = None,
    accept_dead_letters: Annotated[
        bool,
        typer.Option("--accept-dead-letters", help="Go on although most documents fail for the same reason."),
    ] = False,
    no_wait: NoWait = False,
    max_lag: MaxLag = MAX_LAG,
    json: JsonObject = False,
) -> None:
    """Go on with a run that was paused, or whose announcing was interrupted.

    Its source is listed again; what was announced already is not announced twice. A run that stopped at its
    budget needs a larger one.

    \b
      docsum runs resume 3f2a91c0
      docsum runs resume last --budget 20
    """
    from docsum.cli.execution import Manner
    from docsum.settings import load

    download(load())
    wish = _Wish(dollars(budget), accept_dead_letters)
    finish(_resume(run_id, wish, Manner(not no_wait, max_lag, json)))


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a resumed run is granted."""

    budget: Decimal | None
    accept_dead_letters: bool


async def _resume(run_id: str, wish: _Wish, manner: Manner) -> Code:
    from docsum.bootstrap import open_store
    from docsum.cli.execution import Execution
    from docsum.ports import SystemClock
    from docsum.settings import load

    settings = load()
    deployment = await deployment_for(settings, None)
    async with open_store(deployment.settings) as store:
        run = await find(run_id, store)
        granted = wish.budget is not None or wish.accept_dead_letters
        goes_on = granted or run.wanted is not ControlState.RUNNING
        if goes_on:
            await resume_run(store, SystemClock(), run, wish.budget, wish.accept_dead_letters, who=who())
            say(f"Run {run.id} ({run.name}) goes on.")
    if run.source == STDIN and run.state is RunState.INTERRUPTED:
        raise WrongUsage(f"Standard input cannot be read again: pipe it into `docsum run - --id {run.id}`.")
    if run.state is RunState.PUBLISHING and goes_on:
        next_step(f"`docsum runs watch {run.id}`")
        return Code.OK
    if run.state is RunState.PUBLISHING:
        raise WrongUsage(f"Another command is announcing this run: `docsum runs watch {run.id}` shows it.")
    if run.state is RunState.PUBLISHED:
        if not goes_on:
            say("Everything of this run has been announced already.")
        next_step(f"`docsum runs watch {run.id}`")
        return Code.OK
    source = open_lister().open(run.source, sys.stdin.buffer)
    deployment = await deployment_for(settings, source)
    async with open_store(deployment.settings) as store:
        return await Execution(source, deployment, store, SystemClock(), manner).carry_out(run)


async def find(text: str, store: SummaryStore) -> Run:
    """The run that a person means. Raises UnknownRun or WrongUsage."""
    from docsum.runs import UnknownRun

    try:
        run = await store.run(UUID(text))
        found = [run] if run else []
    except ValueError:
        runs = await store.runs(1 if text == "last" else _RECENT)
        found = [run for run in runs if text == "last" or str(run.id).startswith(text.lower())]
    if not found:
        raise UnknownRun(f"There is no run {text}: `docsum runs ls` shows those that there are.")
    if len(found) > 1:
        raise WrongUsage(f"{len(found)} runs begin with {text}: write more of the id.")
    return found[0]
