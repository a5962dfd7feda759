"""Dead letters: list them, look at one, send them back, give them up."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query

from docsum.api import cursors
from docsum.api.access import Admin, Needed, Reader
from docsum.api.problems import Refused
from docsum.api.replays import Job
from docsum.api.shapes import (
    DeadLetterDetail,
    DeadLetterOut,
    DeadLetterPage,
    Discarded,
    DiscardIn,
    Fates,
    ReplayIn,
    ReplayOut,
    SampleOut,
    SelectionIn,
    Stays,
)
from docsum.models import AuditRow, Coordinates, DeadLetterFilter
from docsum.replay import DISCARDABLE, Fate, Selection, chosen, discard
from docsum.triage import entry_fields, entry_of, place_of, shown_fields

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"])
_WAITING = ("open", "parked")  # for a person; those that are under way are given up one by one
StateName = Literal["open", "replayed", "parked", "discarded", "resolved"]


@router.get("", summary="Dead letters")
async def page(
    _: Reader,
    service: Needed,
    *,
    state: Annotated[list[StateName] | None, Query(description="`open` without; repeatable.")] = None,
    reason: Annotated[list[str] | None, Query(max_length=100)] = None,
    run_id: Annotated[UUID | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
) -> DeadLetterPage:
    """In the order of the dead-letter topic."""
    meant = DeadLetterFilter(states=tuple(state or ("open",)), reasons=tuple(reason or ()), run_id=run_id)
    rows = await service.store.dead_letters(meant, cursors.place(cursor), limit)
    return DeadLetterPage(
        dead_letters=[DeadLetterOut.model_validate(entry_fields(row)) for row in rows],
        next_cursor=cursors.after_place(rows[-1].dead_letter) if len(rows) == limit else None,
    )


@router.get("/replays/{replay_id}", summary="How far a replay is")
async def replay_state(replay_id: UUID, _: Reader, service: Needed) -> ReplayOut:
    """Of the last hundred that this process has begun."""
    job = service.replays.get(str(replay_id))
    if job is None:
        raise Refused(
            HTTPStatus.NOT_FOUND, f"There is no replay {replay_id} here; what it moved stays moved."
        )
    return shown(job)


@router.get("/{dead_letter:path}", summary="One dead letter")
async def show(dead_letter: str, _: Reader, service: Needed) -> DeadLetterDetail:
    """By its place, such as `docsum.dlq[3]@17`: the event, every attempt, the headers, and what to do."""
    place = _place(dead_letter)
    async with service.dead_letters() as (records, codec):
        found = await entry_of(service.store, records, codec, service.topology.dead_letters, place=place)
    if found is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no dead letter {place}.")
    return DeadLetterDetail.model_validate(shown_fields(found))


@router.post("/replay", status_code=202, summary="Send dead letters back")
async def replay(body: ReplayIn, who: Admin, service: Needed) -> ReplayOut:
    """To where they came from, once their cause is fixed. Ten go first; when they fail again, it stops there.

    Goes on in the background; a replay that is killed has lost nothing: send the same again.
    """
    selection = selection_of(body, ("open",), body.limit)
    job = Job(str(uuid4()), selection)
    if body.dry_run:
        await service.replays.plan(job)
    else:
        await service.replays.begin(job, who.name, body.rate, sample=body.sample)
    return shown(job)


@router.post("/discard", summary="Give dead letters up")
async def give_up(body: DiscardIn, who: Admin, service: Needed) -> Discarded:
    """They stay in Kafka until their retention ends, and are asked about no more."""
    # What fails from now on is not meant.
    selection = selection_of(body, _WAITING).before(service.clock.now())
    count, how = 0, ", interrupted"
    if body.dry_run:
        async for _ in chosen(service.store, selection, DISCARDABLE):
            count += 1
        return Discarded(discarded=count, dry_run=True)
    try:
        async for some in discard(service.store, selection, DISCARDABLE):
            count += some
        how = ""
    finally:
        if count:
            detail = f"{selection}: {body.reason}{how}"
            row = AuditRow(service.clock.now(), who.name, "dlq discard", detail, count)
            await service.store.audit(row)
    return Discarded(discarded=count, dry_run=False)


def selection_of(wanted: SelectionIn, states: tuple[str, ...], limit: int | None = None) -> Selection:
    """The entries that a request means. Raises 422 where it does not say which."""
    filters = (wanted.reasons, wanted.documents, wanted.run_id, wanted.since, wanted.until)
    if not (wanted.ids or any(filters) or wanted.everything):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Say which: ids, filters, or `everything` for all that are open."
        )
    if wanted.ids:
        return Selection(None, tuple(_place(text) for text in wanted.ids), limit)
    meant = DeadLetterFilter(
        states=states,
        reasons=tuple(wanted.reasons),
        documents=tuple(wanted.documents),
        run_id=wanted.run_id,
        since=_aware(wanted.since),
        until=_aware(wanted.until),
    )
    return Selection(meant, (), limit)


def _aware(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _place(text: str) -> Coordinates:
    place = place_of(text)
    if place is None:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{text[:200]!r} is no place of a dead letter: it looks like docsum.dlq[3]@17.",
        )
    return place


def shown(job: Job) -> ReplayOut:
    """A replay as the API tells it."""
    proof = job.progress.proof
    return ReplayOut(
        replay_id=job.replay_id,
        state=job.state,
        selection=str(job.selection),
        replayed=job.progress.replayed,
        parked=job.progress.parked,
        gone=job.progress.gone,
        sample=SampleOut(
            sent=proof.sent,
            helped=proof.helped,
            failed=proof.failed,
            waiting=proof.waiting,
            cause_remains=proof.cause_remains,
        )
        if proof
        else None,
        reasons=[
            Fates(reason=reason, replay=fates[Fate.REPLAY], park=fates[Fate.PARK], stay=fates[Fate.STAY])
            for reason, fates in (job.plan.tally.items() if job.plan else ())
        ],
        stays=[Stays(why=why, entries=count) for why, count in (job.plan.stays.items() if job.plan else ())],
        problem=job.problem,
    )
