"""The first page: what is wrong, and the runs. And the form that starts one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from docsum.api import cursors
from docsum.api import runs as api
from docsum.api.pages.charts import Bar, bar_of
from docsum.api.pages.errors import asked
from docsum.api.pages.looks import plural
from docsum.api.pages.session import Form, Looking, Sent, Steering, Viewer, to
from docsum.api.service import Service
from docsum.api.shapes import RunIn
from docsum.controls import dollars
from docsum.errors import DocsumError, StoreError
from docsum.health import Health
from docsum.models import AuditRow, ControlState, Lane, Run, RunProgress, RunState
from docsum.runs import standing
from docsum.troubles import troubles

router = APIRouter(include_in_schema=False)

PAGE = 25
Cursor = Annotated[str, Query(max_length=2_000)]
_FIELDS = (
    "source", "documents", "name", "limit", "force", "lane", "by", "budget", "webhook", "instructions",
    "words", "language", "model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in the list."""

    run: Run
    progress: RunProgress
    bar: Bar
    state: str
    rate: float  # documents a second
    left: float | None  # seconds

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "cancelled")


async def line_of(run: Run, progress: RunProgress, service: Service) -> RunLine:
    """With a rate where there can be one."""
    is_busy = progress.remaining > 0 or run.state is RunState.PUBLISHING
    moves = progress.total > 0 and run.wanted is ControlState.RUNNING and is_busy
    rate = await api.rate_of(run, service) if moves else 0.0
    left = api.eta(run, progress, rate) if progress.remaining else None
    return RunLine(run, progress, bar_of(progress), standing(run, progress), rate, left)


@router.get("/")
async def page(looks: Looking, after: Cursor = "") -> Response:
    """Newest first. What the store does not tell is missing, and it says so."""
    service, health = looks.service, await looks.service.look()
    lines: Sequence[RunLine] | None = None
    if health.stored.runs is not None or not health.errors:
        try:
            lines = await asked(_lines(service, health, after))
        except StoreError:
            lines = None
    more = lines[-1] if lines and len(lines) == PAGE else None
    found = troubles(health)
    return looks.page(
        "runs",
        f"{plural(len(found), 'trouble')} · Runs" if found else "Runs",
        lines=lines,
        troubles=found,
        is_first=not after,
        next=cursors.after_run(more.run.created_at, more.run.id) if more else "",
        busy=sum(1 for line in lines or () if not line.is_over),
    )


async def _lines(service: Service, health: Health, after: str) -> list[RunLine]:
    """Counts that the last look has brought are not asked for again."""
    runs = await service.store.runs_before(cursors.run(after), PAGE)
    known = {run.id: progress for run, progress in health.stored.runs or ()}

    async def line(run: Run) -> RunLine:
        progress = known.get(run.id) or await service.store.progress(run.id)
        return await line_of(run, progress, service)

    return list(await asyncio.gather(*map(line, runs)))


# -- starting one ------------------------------------------------------------------------------------------


@router.get("/runs/new")
async def form(looks: Steering) -> Response:
    return _form(looks, {"lane": Lane.BACKFILL, "key": str(uuid4())})


@router.post("/runs/new")
async def start(looks: Steering, sent: Sent) -> Response:
    """First shows what would be started; with `confirmed`, starts it. The same form twice is one run."""
    fields = {name: sent.text(name) for name in _FIELDS} | {"key": sent.text("key")}
    if sent.ticked("back"):
        return _form(looks, fields)
    try:
        wanted = wanted_of(sent)
        checked = await api.check(wanted, looks.who.name, looks.service)
        if not sent.ticked("confirmed"):
            return looks.page("run_confirm", "Start a run?", run=checked, wanted=wanted, fields=fields)
        accepted = await api.begin(wanted, looks.who, looks.service, Response(), key=fields["key"] or None)
    except ValidationError as error:
        return _form(looks, fields, _sentence(error))
    except (DocsumError, HTTPException) as error:
        if isinstance(error, StoreError):
            raise
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        return _form(looks, fields, str(detail))
    service = looks.service
    detail = f"{accepted.run_id} ({checked.name}): {checked.source}"
    await service.store.audit(AuditRow(service.clock.now(), looks.who.name, "runs begin", detail))
    return to(f"/runs/{accepted.run_id}")


def _form(looks: Viewer, fields: Mapping[str, str], wrong: str = "") -> Response:
    status = HTTPStatus.UNPROCESSABLE_ENTITY if wrong else HTTPStatus.OK
    filled = dict.fromkeys(_FIELDS, "") | dict(fields)
    return looks.page(
        "run_form", "Start a run", status, fields=filled, wrong=wrong, recipe=looks.service.recipe
    )


def wanted_of(sent: Form) -> RunIn:
    """What the form asks for. Raises ValidationError, or 422 with a sentence."""
    source, documents = sent.text("source"), references(sent.text("documents"))
    if not source and not documents:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Say what to summarise: a source, or documents, one a line."
        )
    budget = dollars(sent.text("budget")) if sent.text("budget") else None
    if sent.text("budget") and budget is None:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Budget: write an amount of US dollars, such as 12.50."
        )
    recipe = {name: sent.text(name) for name in ("instructions", "language", "model") if sent.text(name)} | (
        {"words": sent.number("words", "Words")} if sent.text("words") else {}
    )
    return RunIn.model_validate(
        {
            "source": source or None,
            "documents": documents or None,
            "name": sent.text("name"),
            "limit": sent.number("limit", "Limit"),
            "force": sent.ticked("force"),
            "webhook": sent.text("webhook") or None,
            "lane": sent.text("lane") or Lane.BACKFILL.value,
            "by": sent.text("by") or None,
            "budget_usd": budget,
            "recipe": recipe,
        }
    )


def references(text: str) -> list[dict[str, str]]:
    """`id address` a line, or an address alone: then it is the id too."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, address = line.replace("\t", " ").rpartition(" ")
        found.append({"document_id": name.strip() or address, "uri": address})
    return found


def _sentence(error: ValidationError) -> str:
    """The first of what is wrong, in the words of the form."""
    first = error.errors()[0]
    place = first["loc"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if place[:1] == ("documents",) and len(place) > 1 and isinstance(place[1], int):
        if place[-1] == "uri":
            return (
                f"Documents, line {place[1] + 1}: the last word of a line is an address that begins with "
                "file:, s3:, gs:, az: or http(s):."
            )
        return f"Documents, line {place[1] + 1}: {message}."
    name = {"budget_usd": "budget"}.get(str(place[-1]), str(place[-1])) if place else "the form"
    if name == "language":
        return "Language: write `same`, or a code of two or three letters, such as en."
    return f"{name.capitalize()}: {message}."


def run_path(run_id: UUID) -> str:
    return f"/runs/{run_id}"
