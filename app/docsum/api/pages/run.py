"""One run: how far it is, why it waits, what is slow or dear, its documents; and steering it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from docsum.api import cursors
from docsum.api import runs as api
from docsum.api.pages.charts import Chart, chart_of, counts_of, step_of
from docsum.api.pages.confirm import Ask, Field, why
from docsum.api.pages.errors import asked
from docsum.api.pages.looks import cut, dollars, percent, visible
from docsum.api.pages.runs import RunLine, line_of, run_path
from docsum.api.pages.session import Looking, Sent, Steering, to
from docsum.api.problems import Refused
from docsum.api.service import Service
from docsum.api.shapes import PauseIn, ResumeIn
from docsum.controls import dollars as amount_of
from docsum.models import ControlState, Run, RunProgress, State

router = APIRouter(prefix="/runs", include_in_schema=False)

PAGE = 50
_FEW = 5  # of the slowest and dearest


@router.get("/{run_id}")
async def page(
    run_id: UUID,
    looks: Looking,
    *,
    state: Annotated[State | None, Query()] = None,
    q: Annotated[str, Query(max_length=512)] = "",
    after: Annotated[str, Query(max_length=2_000)] = "",
) -> Response:
    """The part that is asked for every two seconds."""
    service, store = looks.service, looks.service.store
    run = await asked(api.found_run(run_id, service))
    progress, health, documents = await asked(
        asyncio.gather(
            store.progress(run.id),
            service.look(),
            store.documents_of(
                run.id, (state,) if state else (), text=q, after=cursors.text(after), limit=PAGE
            ),
        )
    )
    line = await asked(line_of(run, progress, service))
    chart = await asked(_chart(line, service))
    return looks.page(
        "run",
        title_of(line),
        line=line,
        run=run,
        progress=progress,
        counts=counts_of(progress),
        waits=api.waits_for(run, progress, health),
        chart=chart,
        documents=documents,
        state=state,
        q=q,
        is_first=not after,
        next=cursors.after_text(documents[-1].document_id) if len(documents) == PAGE else "",
        can=allowed(run, progress),
    )


@router.get("/{run_id}/more")
async def more(run_id: UUID, looks: Looking) -> Response:
    """What is asked for less often: it reads the ledger."""
    store = looks.service.store
    run = await asked(api.found_run(run_id, looks.service))
    slowest, dearest, batches, messages, progress = await asked(
        asyncio.gather(
            store.expensive(run.id, _FEW, slowest=True),
            store.expensive(run.id, _FEW, slowest=False),
            store.batches(run.id),
            store.webhook_deliveries(run.id),
            store.progress(run.id),
        )
    )
    line = await asked(line_of(run, progress, looks.service))
    return looks.part(
        "run_more", run=run, line=line, slowest=slowest, dearest=dearest, batches=batches, messages=messages
    )


async def _chart(line: RunLine, service: Service) -> Chart | None:
    """Of one that has ended long ago, in steps that fit the time it took."""
    begun, now = line.run.created_at, service.clock.now()
    step = step_of(begun, now)
    found = await service.store.throughput(line.run.id, begun, step)
    if not line.is_over:
        return chart_of(found, begun, step, now)
    if found and (finer := step_of(begun, found[-1].begins + step)) < step:
        step, found = finer, await service.store.throughput(line.run.id, begun, finer)
    return chart_of(found, begun, step)


def title_of(line: RunLine) -> str:
    """The state first: it is what a narrow tab shows."""
    share = percent(line.bar.share)
    state = {"running": share, "finished": "Finished"}.get(line.state)
    return f"{state or f'{line.state.capitalize()} at {share}'} · {visible(cut(line.run.name, 80))}"


def allowed(run: Run, progress: RunProgress) -> frozenset[str]:
    """What can be done to a run as it stands."""
    if run.wanted is ControlState.CANCELLED:
        return frozenset()
    over = run.state.value == "published" and not progress.remaining
    if over:
        return frozenset()
    if run.wanted is ControlState.PAUSED:
        return frozenset({"resume", "cancel"})
    more = {"resume"} if run.problem or run.state.value == "publishing-interrupted" else set()
    return frozenset({"pause", "cancel"} | more)


# -- steering ----------------------------------------------------------------------------------------------


@router.get("/{run_id}/pause")
async def ask_pause(run_id: UUID, looks: Steering) -> Response:
    run = await asked(api.found_run(run_id, looks.service))
    return looks.confirm(
        Ask(
            title=f"Pause {run.name}?",
            says="Its documents rest in a topic of their own and stand in nobody's way. "
            "Calls that were sent are finished and stored.",
            button="Pause the run",
            back=run_path(run.id),
            fields=(why("Whoever looks at the run is told."),),
        ),
    )


@router.post("/{run_id}/pause")
async def pause(run_id: UUID, looks: Steering, sent: Sent) -> Response:
    await api.pause(run_id, looks.who, looks.service, PauseIn(reason=sent.reason()))
    return to(run_path(run_id))


@router.get("/{run_id}/resume")
async def ask_resume(run_id: UUID, looks: Steering) -> Response:
    run = await asked(api.found_run(run_id, looks.service))
    progress = await asked(looks.service.store.progress(run.id))
    budget = run.control.budget if run.control else None
    spent = budget is not None and progress.cost >= budget
    fields = [
        Field(
            "budget",
            "Budget in US dollars",
            f"It has ${progress.cost:.2f} spent of ${budget:.2f}."
            if budget is not None
            else "Empty: no limit of its own.",
            value=dollars(2 * budget if spent else budget) if budget is not None else "",
            kind="number",
        ),
        Field(
            "accept",
            "Accept its dead letters",
            "Do not pause it again because most of its documents fail.",
            kind="checkbox",
        ),
    ]
    paused = f"It was paused: {run.control.reason}" if run.control and run.control.reason else ""
    return looks.confirm(
        Ask(
            title=f"Go on with {run.name}?",
            says=paused or run.problem or "Its documents that wait are worked on again.",
            button="Go on",
            back=run_path(run.id),
            fields=tuple(fields),
        ),
    )


@router.post("/{run_id}/resume")
async def resume(run_id: UUID, looks: Steering, sent: Sent) -> Response:
    budget = amount_of(sent.text("budget")) if sent.text("budget") else None
    if sent.text("budget") and budget is None:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Budget: write an amount of US dollars, such as 12.50."
        )
    wish = ResumeIn(budget_usd=budget, accept_dead_letters=sent.ticked("accept"))
    await api.resume(run_id, looks.who, looks.service, wish)
    return to(run_path(run_id))


@router.get("/{run_id}/cancel")
async def ask_cancel(run_id: UUID, looks: Steering) -> Response:
    run = await asked(api.found_run(run_id, looks.service))
    progress = await asked(looks.service.store.progress(run.id))
    return looks.confirm(
        Ask(
            title=f"Cancel {run.name} for good?",
            says=f"{progress.remaining:,} documents that have no end yet never get one. "
            "Summaries that are there stay. This cannot be undone; pausing can.",
            button="Cancel the run for good",
            back=run_path(run.id),
            fields=(why("Whoever looks at the run is told."),),
            danger=True,
        ),
    )


@router.post("/{run_id}/cancel")
async def cancel(run_id: UUID, looks: Steering, sent: Sent) -> Response:
    await api.cancel(run_id, looks.who, looks.service, PauseIn(reason=sent.reason()))
    return to(run_path(run_id))
