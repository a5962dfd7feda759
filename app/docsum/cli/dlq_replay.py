"""`docsum dlq replay`: dead letters go back to where they came from."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from docsum.cli.audit import audit
from docsum.cli.deployment import reached
from docsum.cli.dlq_selection import (
    ASKS_ABOVE,
    All,
    Documents,
    DryRun,
    Filters,
    Ids,
    Reasons,
    Run,
    Since,
    Until,
    Wanted,
    Yes,
    need_somebody,
)
from docsum.cli.options import JsonObject
from docsum.cli.output import Code, agreed, console, emit, finish, next_step, say, table
from docsum.errors import REASONS, DocsumError
from docsum.replay import SAMPLE_WITHIN, Fate, Plan, Progress, Proof, Replay
from docsum.words import clean, span

if TYPE_CHECKING:
    from docsum.ports import SummaryStore

_NOTHING = "There is nothing to replay."
_PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a replay is carried out."""

    dry_run: bool
    limit: int | None
    rate: int
    sample: bool
    yes: bool
    json: bool


def replay(
    ids: Ids = None,
    *,
    reason: Reasons = None,
    run: Run = "",
    since: Since = "",
    until: Until = "",
    document: Documents = None,
    all_: All = False,
    dry_run: DryRun = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Replay no more than so many.")] = None,
    rate: Annotated[int, typer.Option(min=1, max=100_000, help="So many a second.")] = 50,
    no_sample: Annotated[
        bool, typer.Option("--no-sample", help="All at once, without waiting for ten to succeed.")
    ] = False,
    yes: Yes = False,
    json: JsonObject = False,
) -> None:
    """Send dead letters back to where they came from, once their cause is fixed.

    Ten go first, of as many reasons as there are. When more than half of them fail again,
    the cause is not fixed: it stops there, with exit code 3. What fails after two replays is
    parked. An event that is older than the stored summary costs nothing and changes nothing.

    It may be interrupted, even killed: the same command goes on with what is still open.

    \b
      docsum dlq replay --all --dry-run
      docsum dlq replay --reason source_forbidden --run last
      docsum dlq replay contracts/lease.pdf 'docsum.dlq[3]@17'
      docsum dlq replay --since 7d --rate 200 --yes --json
    """
    wanted = Wanted(ids, Filters(reason, run, since, until, document), all_)
    wanted.refuse_unclear("replay")
    need_somebody(yes or dry_run)
    finish(_replay(wanted, _Manner(dry_run, limit, rate, not no_sample, yes, json)))


async def _replay(wanted: Wanted, manner: _Manner) -> Code:
    from docsum.bootstrap import open_producer, open_store
    from docsum.kafka.codec import EventCodec
    from docsum.kafka.dead_letters import DeadLetterTopic, replay_copy
    from docsum.ports import SystemClock

    settings, replay_id = reached(), str(uuid4())
    topology = settings.topology()
    async with (
        open_store(settings) as store,
        DeadLetterTopic(settings.kafka, topology.dead_letters) as records,
        open_producer(settings) as producer,
        EventCodec(settings.kafka.schema_registry_url) as codec,
    ):
        selection = await wanted.selection(store, ("open",), manner.limit)
        work = Replay(
            store=store,
            records=records,
            publisher=producer,
            codec=codec,
            clock=SystemClock(),
            topology=topology,
            copy=lambda delivery: replay_copy(delivery, replay_id, settings.kafka.group_id),
            rate=manner.rate,
            random=SystemRandom(),
        )
        plan = await work.plan(selection)
        if manner.dry_run or not plan.moves:
            return _report(replay_id, plan, work.progress, manner)
        if plan.moves > ASKS_ABOVE and not manner.yes:
            _print_plan(plan, stderr=True)
            if not await agreed(f"Replay {_moves(plan)}?"):
                say("Nothing was replayed.")
                return Code.OK
        await _carried_out(work, plan, manner, store)
    return _report(replay_id, plan, work.progress, manner)


async def _carried_out(work: Replay, plan: Plan, manner: _Manner, store: SummaryStore) -> None:
    """Writes to the audit whatever has moved, however it ends."""
    how = ""
    try:
        with _bar(plan) as show:
            proof = await work.carry_out(plan, show, sample=manner.sample)
        how = "" if proof is None or proof.good else ", stopped by the sample"
    except (asyncio.CancelledError, DocsumError) as error:
        how = ", interrupted"
        done = work.progress
        if done.replayed or done.parked or not isinstance(error, DocsumError):
            say(
                f"{done.replayed:,} of {plan.count(Fate.REPLAY):,} were replayed, {done.parked:,} parked. "
                "The same command goes on with those that are still open."
            )
        raise
    finally:
        done = work.progress
        if done.replayed or done.parked:
            detail = f"{plan.selection}: {done.replayed:,} replayed, {done.parked:,} parked{how}"
            await audit(store, "dlq replay", detail, done.replayed + done.parked)


def _report(replay_id: str, plan: Plan, done: Progress, manner: _Manner) -> Code:
    """What has happened, or would."""
    if manner.json:
        emit(_replay_fields(replay_id, plan, done, manner.dry_run))
        return _code(plan, done, manner.dry_run)
    if manner.dry_run and plan.tally:
        _print_plan(plan)
    for why, count in sorted(plan.stays.items(), key=lambda item: -item[1]):
        say(f"{count:,} stay: {clean(why)}")
    if manner.dry_run:
        say(f"It would replay {_moves(plan)}; nothing was done." if plan.moves else _NOTHING)
    elif not plan.moves:
        say(_NOTHING)
    else:
        _say_done(plan, done)
    code = _code(plan, done, manner.dry_run)
    next_step(_after(plan, manner, code))
    return code


def _say_done(plan: Plan, done: Progress) -> None:
    proof = done.proof
    if proof is not None:
        waiting = f", {proof.waiting:,} have no end yet" if proof.waiting else ""
        say(f"Sample of {proof.sent:,}: {proof.helped:,} are done, {proof.failed:,} failed again{waiting}.")
    rest = plan.count(Fate.REPLAY) - done.replayed - done.gone
    if proof is not None and proof.cause_remains:
        others = f" The other {rest:,} were left where they are; --no-sample replays them all the same."
        say(f"More than half failed again: the cause is not fixed.{others if rest else ''}")
    elif proof is not None and not proof.good:
        others = f" The other {rest:,} were left where they are." if rest else ""
        say(f"The sample is still on its way after {span(SAMPLE_WITHIN.total_seconds())}.{others}")
    say(f"Replayed {done.replayed:,}, parked {done.parked:,}.")
    if done.gone:
        say(
            f"{done.gone:,} could not be read: Kafka has deleted their records. Announce the documents again."
        )


def _code(plan: Plan, done: Progress, dry_run: bool) -> Code:
    if dry_run or not plan.tally:
        return Code.OK
    if not plan.moves:
        return Code.FAILURE  # something was meant, and all of it stays
    if done.proof is None or done.proof.good:
        return Code.OK
    return Code.DEAD_LETTERS if done.proof.cause_remains else Code.TIMEOUT


def _after(plan: Plan, manner: _Manner, code: Code) -> str:
    if manner.dry_run and plan.moves:
        return "the same without --dry-run"
    if code is Code.TIMEOUT:
        return "`docsum status` shows what waits, then the same again"
    return "`docsum dlq ls`"


def _moves(plan: Plan) -> str:
    replayed, parked = plan.count(Fate.REPLAY), plan.count(Fate.PARK)
    return f"{replayed:,} dead letters" + (f" and park {parked:,}" if parked else "")


def _print_plan(plan: Plan, *, stderr: bool = False) -> None:
    found = table("reason", *Fate, "what to do", right=tuple(Fate))
    for reason, fates in sorted(plan.tally.items(), key=lambda item: -item[1].total()):
        hint = REASONS[reason].hint if reason in REASONS else ""
        found.add_row(clean(reason), *(f"{fates[fate]:,}" for fate in Fate), hint)
    console(stderr=stderr).print(found)


def _replay_fields(replay_id: str, plan: Plan, done: Progress, dry_run: bool) -> dict[str, object]:
    return {
        "replay_id": replay_id,
        "selection": str(plan.selection),
        "dry_run": dry_run,
        "replayed": done.replayed,
        "parked": done.parked,
        "gone": done.gone,
        "sample": _proof_fields(done.proof) if done.proof else None,
        "reasons": [
            {"reason": reason, **{fate.value: fates[fate] for fate in Fate}}
            for reason, fates in plan.tally.items()
        ],
        "stays": [{"why": why, "entries": count} for why, count in plan.stays.items()],
    }


def _proof_fields(proof: Proof) -> dict[str, object]:
    return {
        "sent": proof.sent,
        "helped": proof.helped,
        "failed": proof.failed,
        "waiting": proof.waiting,
        "cause_remains": proof.cause_remains,
    }


@contextmanager
def _bar(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    """Shows a replay on stderr: a bar on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    silent, said_at = not sys.stderr.isatty(), time.monotonic()
    with Bars(*columns, console=console(stderr=True), disable=silent, transient=True) as bars:
        task = bars.add_task("replaying", total=plan.moves)

        def show(done: Progress) -> None:
            words = "replaying"
            if done.proving:
                proof = done.proof or Proof()
                words = (
                    f"sample: {proof.helped} done, {proof.failed} failed again, {proof.waiting} on their way"
                )
            moved = done.replayed + done.parked + done.gone
            bars.update(task, completed=moved, description=words)
            nonlocal said_at
            if silent and time.monotonic() - said_at > _PLAIN_EVERY:
                said_at = time.monotonic()
                say(f"{words}; {moved:,} of {plan.moves:,}")

        yield show
