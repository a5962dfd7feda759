"""Who works and what waits, what was bought together, what was spent, and pausing all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response

from docsum.api.pages.confirm import Ask, why
from docsum.api.pages.errors import asked
from docsum.api.pages.session import Looking, Ruling, Sent, to
from docsum.controls import pause_all, resume_all
from docsum.health import Health, state_of
from docsum.models import ALL_WORK, LIVE_EVENTS, CostBy, CostLine, Waiting, midnight
from docsum.ports import ServiceStore
from docsum.topics import Topology, lane_of
from docsum.troubles import compact, too_many_workers, troubles
from docsum.words import ANSWERED

router = APIRouter(include_in_schema=False)

_BATCHES = 100
_AUDITS = 20
Since = Literal["today", "week", "month", "ever"]
_SPANS = {"week": timedelta(days=7), "month": timedelta(days=30)}


# -- workers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """A topic that the workers read."""

    lane: str
    waiting: Waiting


@router.get("/workers")
async def workers(looks: Looking) -> Response:
    """Needs neither Kafka nor ClickHouse to be drawn: what they do not tell is missing, and it says so."""
    health = await looks.service.look()
    return looks.page(
        "workers",
        "Workers",
        health=health,
        troubles=troubles(health, about_runs=False),
        queues=queues_of(health, looks.service.topology),
        states={each.worker: state_of(each, health) for each in health.workers},
        compact=compact,
        too_many=list(too_many_workers(health)),
        open_letters=open_letters(health),
        rests=rests(health),
    )


def queues_of(health: Health, topology: Topology) -> list[Queue]:
    """In the order in which they are worked on: live, backfill, batch, retries."""
    topics = health.backlog.topics if health.backlog else ()
    order = ("live", "backfill", "batch", "retry")
    found = [Queue(lane_of(topic.topic, topology), topic) for topic in topics]
    return sorted(found, key=lambda queue: order.index(queue.lane))


def rests(health: Health) -> bool | None:
    """Whether `resume --all` would change anything; None where the store does not tell."""
    if health.stored.controls is None:
        return None
    return health.rests or health.paused(LIVE_EVENTS) is not None


def open_letters(health: Health) -> int | None:
    """None where the store does not tell."""
    groups = health.stored.dead_letters
    return None if groups is None else sum(group.count for group in groups)


# -- batches -----------------------------------------------------------------------------------------------


@router.get("/batches")
async def batches(looks: Looking) -> Response:
    """The newest first; the open ones before those that are done with."""
    found = await asked(looks.service.store.batches(limit=_BATCHES))
    return looks.page(
        "batches",
        "Batches",
        open=[each for each in found if each.state.is_open],
        closed=[each for each in found if not each.state.is_open],
    )


# -- money -------------------------------------------------------------------------------------------------


@router.get("/spend")
async def spend(
    looks: Looking, by: CostBy = CostBy.RUN, since: Annotated[Since, Query()] = "month"
) -> Response:
    store, now = looks.service.store, looks.service.clock.now()
    costs, health, audits = await asked(
        asyncio.gather(store.costs(by, since_of(since, now)), looks.service.look(), store.audits(_AUDITS))
    )
    names = await asked(_names(costs.lines, store)) if by is CostBy.RUN else {}
    return looks.page(
        "spend",
        "Spend",
        costs=costs,
        by=by,
        since=since,
        names=names,
        meanings=ANSWERED,
        health=health,
        today=health.stored.spent_today,
        budget=health.budget_today,
        columns=columns_of(costs.lines) if by is CostBy.DAY else [],
        audits=audits,
    )


def since_of(since: Since, now: datetime) -> datetime | None:
    """None: from the beginning."""
    if since == "today":
        return midnight(now.astimezone(UTC))
    return now - _SPANS[since] if since in _SPANS else None


def columns_of(lines: Sequence[CostLine]) -> list[tuple[str, float]]:
    """Days and how high their column is, in percent."""
    most = max((line.cost for line in lines), default=None)
    return [(line.key, float(100 * line.cost / most)) for line in lines] if most else []


async def _names(lines: Sequence[CostLine], store: ServiceStore) -> Mapping[str, str]:
    runs = await asyncio.gather(*(store.run(UUID(line.key)) for line in lines if line.key))
    return {str(run.id): run.name for run in runs if run}


# -- all work ----------------------------------------------------------------------------------------------


@router.get("/pause-all")
async def ask_pause_all(looks: Ruling) -> Response:
    return looks.confirm(
        Ask(
            title="Pause all work?",
            says="Nothing is begun any more, anywhere: live events and every run wait where they are. "
            "Calls that were sent are finished and stored.",
            button="Pause all work",
            back="/workers",
            fields=(why("Whoever finds everything standing still is told.", needed=True),),
            danger=True,
        ),
    )


@router.post("/pause-all")
async def pause_everything(looks: Ruling, sent: Sent) -> Response:
    service = looks.service
    await pause_all(service.store, service.clock, sent.reason(needed=True), who=looks.who.name)
    return to("/workers")


@router.get("/resume-all")
async def ask_resume_all(looks: Ruling) -> Response:
    health = await looks.service.look()
    paused = health.paused(ALL_WORK) or health.paused(LIVE_EVENTS)
    says = f"It was paused: {paused.reason}" if paused else "Nothing is paused as far as it is known."
    if health.budget_is_spent:
        says = "The budget of today is spent: this grants the same once more, for today."
    return looks.confirm(
        Ask(
            title="Go on with all work?",
            says=f"{says} Runs that were paused by themselves stay so.",
            button="Go on with all work",
            back="/workers",
        ),
    )


@router.post("/resume-all")
async def resume_everything(looks: Ruling, _: Sent) -> Response:
    service = looks.service
    await resume_all(service.store, service.clock, service.daily_budget, who=looks.who.name)
    return to("/workers")
