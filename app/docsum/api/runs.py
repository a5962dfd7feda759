"""Runs: begin one, add to it, look at it, pause, resume, cancel."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4, uuid5

from fastapi import APIRouter, Header, Query, Response

from docsum.api import cursors
from docsum.api.access import Needed, Reader, Submitter
from docsum.api.problems import Refused
from docsum.api.service import Service
from docsum.api.shapes import (
    PauseIn,
    RecipeIn,
    ReferenceIn,
    ResumeIn,
    RunAccepted,
    RunDetail,
    RunDocument,
    RunDocumentPage,
    RunIn,
    RunOut,
    RunPage,
    WebhookOut,
    WebhookPage,
)
from docsum.controls import cancel_run, pause_run, resume_run, set_budget
from docsum.health import Health, is_over
from docsum.models import (
    API,
    ControlState,
    Lane,
    Recipe,
    Run,
    RunProgress,
    RunState,
    State,
    from_ms,
    to_ms,
)
from docsum.runs import UnknownRun, following, run_fields, standing, webhook_fields
from docsum.sources import Listed
from docsum.troubles import troubles

router = APIRouter(prefix="/v1/runs", tags=["runs"])

UPLOAD = "upload"  # the source of a run whose references are sent
_KEYS = UUID("5d0f7a52-3c0e-4b52-9a9e-1f2f6f1f0c11")  # name space of run ids that a key gives
_RATE_OVER = timedelta(minutes=1)
_TOLD = 100  # entries that were passed over are told one by one
_BUSY = {"Retry-After": "30"}

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Sent twice, it is one run. The run's id is derived from it.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Cursor = Annotated[str | None, Query(max_length=2_000, description="`next_cursor` of the page before.")]


@router.post("", status_code=202, summary="Begin a run")
async def begin(
    body: RunIn, who: Submitter, service: Needed, response: Response, key: Key = None
) -> RunAccepted:
    """Give a `source` that docsum lists, or up to 1,000 `documents`, or neither: then upload a list.

    The answer comes at once; a source is listed and announced in the background, also after a restart.
    """
    wanted = await check(body, who.name, service, key)
    earlier = await service.store.run(wanted.id) if key else None
    if earlier is not None and earlier.request != wanted.request:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"This Idempotency-Key began run {earlier.id} with another request: choose a new key.",
        )
    run = earlier or wanted
    if earlier is None:
        await refuse_lag(service, run.lane)
        if body.budget_usd is not None:
            await set_budget(service.store, service.clock, run, body.budget_usd)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    if earlier is None and body.source is not None:
        await service.publishing.begin(run)
    elif earlier is None:
        await service.store.save_run(run)
    if run.state is not RunState.PUBLISHED and body.documents is not None:
        entries = iter([listed(each, service.clock.now()) for each in body.documents])
        done = await service.publishing.announce_now(run, entries, ends=True, is_new=earlier is None)
        return await accepted(done.run, done.passed_over, service, None if earlier else done.count)
    if earlier is not None:
        return await accepted(run, [], service)
    return RunAccepted(run_id=run.id, state=run.state, total=0)


async def check(body: RunIn, who: str, service: Service, key: str | None = None) -> Run:
    """The run that a request asks for; nothing is begun. Raises 422 or a DocsumError for what cannot be."""
    if body.source is not None and body.documents is not None:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Give a source or documents, not both.")
    recipe = recipe_of(body.recipe, service.recipe)
    service.check_model(recipe)
    if body.webhook is not None:
        service.check_webhook(body.webhook)
    now = from_ms(to_ms(service.clock.now()))  # as the store keeps it, for pages are cut by it
    by = body.by if body.by is None or body.by.tzinfo else body.by.replace(tzinfo=UTC)
    if by is not None and body.lane is not Lane.BATCH:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "`by` is for the lane batch: the others buy at once.")
    source = UPLOAD if body.source is None else await _checked(body.source, service)
    name = body.name or Path(source).name or source
    return Run(
        id=uuid5(_KEYS, f"{who}\n{key}") if key else uuid4(),
        name=name[:200],
        source=source,
        recipe=recipe,
        lane=body.lane,
        state=RunState.PUBLISHING,
        created_at=now,
        updated_at=now,
        limit=body.limit,
        force=body.force,
        by=by,
        publisher=API if body.source is not None else "",
        webhook=body.webhook or "",
        request=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
    )


async def _checked(source: str, service: Service) -> str:
    is_path = source.startswith("/")
    if not is_path and "://" not in source:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "source: give an absolute path, or an address.")
    return await asyncio.to_thread(service.check_source, source)


def recipe_of(wish: RecipeIn, base: Recipe) -> Recipe:
    """The settings' recipe, but for what the request says."""
    return replace(base, **{name: value for name, value in wish.model_dump().items() if value is not None})


def listed(reference: ReferenceIn, now: datetime) -> Listed:
    """The document that a reference names, as seen now."""
    return Listed(
        reference.document_id,
        reference.uri,
        now,
        source_version=reference.source_version,
        media_type=reference.media_type,
        size_bytes=reference.size_bytes,
        title=reference.title,
        attributes=reference.attributes,
    )


async def refuse_lag(service: Service, lane: Lane) -> None:
    """Raises 429 while the workers are far behind. What waits in the batch topic is behind nobody."""
    backlog = (await service.look()).backlog
    if backlog is None or lane is Lane.BATCH:
        return
    batch = service.topology.batch
    waiting = sum(topic.events for topic in backlog.topics if topic.topic != batch)
    if waiting >= service.settings.max_lag:
        raise Refused(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"{waiting:,} events are waiting for the workers; new work is taken below "
            f"{service.settings.max_lag:,} (DOCSUM_API__MAX_LAG).",
            headers=_BUSY,
        )


async def accepted(
    run: Run, passed_over: Sequence[str], service: Service, total: int | None = None
) -> RunAccepted:
    """`total`: how many documents the run has, where that is known; they are counted otherwise."""
    progress = RunProgress(run.id, queued=total or 0) if total else await service.store.progress(run.id)
    return RunAccepted(
        run_id=run.id,
        state=standing(run, progress),
        total=progress.total,
        passed_over=list(passed_over[:_TOLD]),
        passed_over_count=len(passed_over),
    )


# -- looking -----------------------------------------------------------------------------------------------


@router.get("", summary="Runs, the newest first")
async def page(_: Reader, service: Needed, limit: Limit = 50, cursor: Cursor = None) -> RunPage:
    """A page; `next_cursor` of its answer gives the one after it."""
    runs = await service.store.runs_before(cursors.run(cursor), limit)
    progress = await asyncio.gather(*(service.store.progress(run.id) for run in runs))
    last = runs[-1] if len(runs) == limit else None
    return RunPage(
        runs=[RunOut.model_validate(shown(run, counts)) for run, counts in zip(runs, progress, strict=True)],
        next_cursor=cursors.after_run(last.created_at, last.id) if last else None,
    )


@router.get("/{run_id}", summary="How far a run is")
async def detail(run_id: UUID, _: Reader, service: Needed) -> RunDetail:
    """The counts are exact at `as_of`; what it waits for is a few seconds old at most."""
    run = await found_run(run_id, service)
    progress, rate, health = await asyncio.gather(
        service.store.progress(run.id), rate_of(run, service), service.look()
    )
    return RunDetail.model_validate(
        {
            **shown(run, progress),
            "rate_per_second": rate,
            "eta_seconds": eta(run, progress, rate),
            "waits_for": waits_for(run, progress, health),
            "behind": ahead_of(run, health) if progress.remaining else None,
        }
    )


def shown(run: Run, progress: RunProgress) -> dict[str, Any]:  # Any: JSON
    """A run as the API tells it."""
    return {**run_fields(run, progress), "problem": run.problem, "webhook": run.webhook}


async def rate_of(run: Run, service: Service) -> float:
    """Documents a second that had their end in the last minute."""
    now = service.clock.now()
    since = max(run.created_at, now - _RATE_OVER)
    found = await service.store.throughput(run.id, since, _RATE_OVER)
    seconds = max(1.0, (now - since).total_seconds())
    return round(sum(each.ended for each in found) / seconds, 3)


def eta(run: Run, progress: RunProgress, rate: float) -> float | None:
    """Seconds until nothing is left; None where there is no telling."""
    if not progress.remaining and run.state is RunState.PUBLISHED:
        return 0.0
    if rate <= 0 or run.state is not RunState.PUBLISHED or run.wanted is not ControlState.RUNNING:
        return None
    return round(progress.remaining / rate, 1)


def waits_for(run: Run, progress: RunProgress, health: Health) -> list[str]:
    """Why it does not go on, or not faster: one sentence each; empty when it simply runs."""
    if is_over(run, progress):
        return []
    found = [run.problem] if run.problem else []
    if run.wanted is ControlState.PAUSED and run.control:
        found.append(f"It is paused: {run.control.reason}")
    elif run.state is not RunState.PUBLISHED and run.source == UPLOAD:
        found.append("The last of its lists has not been sent yet.")
    elif run.state is RunState.INTERRUPTED and not run.problem:
        found.append("Its announcing was interrupted.")
    if progress.remaining and (ahead := ahead_of(run, health)):
        found.append(f"The run {ahead} was announced before it.")
    return found + [str(trouble) for trouble in troubles(health, about_runs=False)]


def ahead_of(run: Run, health: Health) -> UUID | None:
    """The nearest earlier run of the same lane with documents that nobody has taken yet."""
    if run.lane is Lane.BATCH:
        return None
    earlier = [
        other
        for other, counts in health.stored.runs or ()
        if other.lane is run.lane
        and other.created_at < run.created_at
        and counts.queued
        and other.wanted is ControlState.RUNNING
    ]
    return max(earlier, key=lambda other: other.created_at).id if earlier else None


@router.get("/{run_id}/documents", summary="The documents of a run")
async def documents(
    run_id: UUID,
    _: Reader,
    service: Needed,
    *,
    state: Annotated[list[State] | None, Query(description="Only those in this state; repeatable.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> RunDocumentPage:
    """By document id."""
    await found_run(run_id, service)
    rows = await service.store.documents_of(run_id, state or (), after=cursors.text(cursor), limit=limit)
    return RunDocumentPage(
        documents=[RunDocument.model_validate(row, from_attributes=True) for row in rows],
        next_cursor=cursors.after_text(rows[-1].document_id) if len(rows) == limit else None,
    )


@router.get("/{run_id}/webhooks", summary="What was told of a run")
async def webhooks(run_id: UUID, _: Reader, service: Needed) -> WebhookPage:
    """Every message to its webhook, the newest first, with what came of it."""
    await found_run(run_id, service)
    found = await service.store.webhook_deliveries(run_id)
    return WebhookPage(deliveries=[WebhookOut.model_validate(webhook_fields(each)) for each in found])


# -- steering ----------------------------------------------------------------------------------------------


@router.post("/{run_id}/pause", summary="Let a run rest")
async def pause(run_id: UUID, who: Submitter, service: Needed, body: PauseIn | None = None) -> RunOut:
    """Its documents wait in a topic of their own; calls that were sent are finished."""
    run = await found_run(run_id, service)
    await pause_run(service.store, service.clock, run, body.reason if body else "", who=who.name)
    return await _now(run_id, service)


@router.post("/{run_id}/resume", summary="Go on with a run")
async def resume(run_id: UUID, who: Submitter, service: Needed, body: ResumeIn | None = None) -> RunOut:
    """After a pause, a spent budget (give a larger one), or a source that could not be listed."""
    run, wish = await found_run(run_id, service), body or ResumeIn()
    await resume_run(
        service.store, service.clock, run, wish.budget_usd, wish.accept_dead_letters, who=who.name
    )
    if run.publisher == API and run.state is RunState.INTERRUPTED:
        row = following(run, RunState.PUBLISHING, service.clock.now())
        await service.publishing.begin(row, is_new=False)
    return await _now(run_id, service)


@router.post("/{run_id}/cancel", summary="End a run for good")
async def cancel(run_id: UUID, who: Submitter, service: Needed, body: PauseIn | None = None) -> RunOut:
    """What has not been started never is. Summaries that are there stay."""
    run = await found_run(run_id, service)
    await cancel_run(service.store, service.clock, run, body.reason if body else "", who=who.name)
    return await _now(run_id, service)


async def found_run(run_id: UUID, service: Service) -> Run:
    run = await service.store.run(run_id)
    if run is None:
        raise UnknownRun(f"There is no run {run_id}.")
    return run


async def _now(run_id: UUID, service: Service) -> RunOut:
    run = await found_run(run_id, service)
    return RunOut.model_validate(shown(run, await service.store.progress(run_id)))
