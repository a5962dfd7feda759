"""Dead letters: by reason, one by one, sent back with a look before, given up with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Response

from docsum.api import cursors
from docsum.api import dead_letters as api
from docsum.api.pages.confirm import Ask, why
from docsum.api.pages.errors import asked
from docsum.api.pages.looks import query
from docsum.api.pages.session import Form, Looking, Ruling, Sent, to
from docsum.api.problems import Refused
from docsum.api.replays import Job
from docsum.api.shapes import DiscardIn, ReplayIn
from docsum.errors import REASONS
from docsum.models import DEAD_LETTER_STATES, RESOLVED, DeadLetterFilter
from docsum.replay import DISCARDABLE, Fate
from docsum.triage import attempts_of, entry_of, event_fields, place_of, readable, replays_of

router = APIRouter(prefix="/dead-letters", include_in_schema=False)

PAGE = 50
STATES = (*DEAD_LETTER_STATES, RESOLVED)
_DUMPED = 256  # bytes of a value that cannot be decoded
_WIDTH = 16
StateName = Annotated[str, Query(pattern=f"^({'|'.join(STATES)}|all)$")]
Reason = Annotated[str, Query(max_length=100)]


@router.get("")
async def page(looks: Looking, state: StateName = "open", discarded: int | None = None) -> Response:
    """By reason, the largest group first."""
    groups = await asked(looks.service.store.dead_letter_groups(_meant(state)))
    return looks.page(
        "dead_letters",
        "Dead letters",
        groups=groups,
        state=state,
        states=("all", *STATES),
        reasons=REASONS,
        replays=looks.service.replays.newest[:10],
        discarded=discarded,
    )


@router.get("/list")
async def listed(
    looks: Looking,
    *,
    reason: Reason = "",
    run: UUID | None = None,
    state: StateName = "open",
    after: Annotated[str, Query(max_length=2_000)] = "",
) -> Response:
    """Of one reason, or of one run, in the order of the topic."""
    meant = _meant(state, reason, run)
    rows = await asked(looks.service.store.dead_letters(meant, cursors.place(after), PAGE))
    return looks.page(
        "dead_letter_list",
        f"{reason} · Dead letters" if reason else "Dead letters",
        rows=rows,
        reason=reason,
        known=REASONS.get(reason),
        run=run,
        state=state,
        states=("all", *STATES),
        is_first=not after,
        next=cursors.after_place(rows[-1].dead_letter) if len(rows) == PAGE else "",
    )


@router.get("/show")
async def show(letter: Annotated[str, Query(alias="id", max_length=600)], looks: Looking) -> Response:
    """The event, every attempt, the headers; bytes where there is no event in them."""
    service, place = looks.service, place_of(letter)
    if place is None:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "A dead letter is named like docsum.dlq[3]@17.")
    async with service.dead_letters() as (records, codec):
        found = await asked(
            entry_of(service.store, records, codec, service.topology.dead_letters, place=place)
        )
    if found is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no dead letter {place}.")
    delivery = found.delivery
    return looks.page(
        "dead_letter",
        f"{found.row.state.capitalize() if found.row else 'Unknown'} · {place}",
        id=str(place),
        entry=found,
        row=found.row,
        known=REASONS.get(found.row.reason) if found.row else None,
        replays=replays_of(found.row) if found.row else 0,
        event=event_fields(found.event) if found.event else None,
        attempts=attempts_of(delivery) if delivery else [],
        key=readable(delivery.key) if delivery else "",
        headers=[(name, readable(value)) for name, value in delivery.headers] if delivery else [],
        dump=dump((delivery.value or b"")[:_DUMPED]) if delivery and not found.event else [],
        size=len(delivery.value or b"") if delivery else None,
        discardable=bool(found.row and found.row.state in DISCARDABLE),
    )


def dump(content: bytes) -> list[str]:
    """As `hexdump -C` shows it."""
    lines = []
    for at in range(0, len(content), _WIDTH):
        row = content[at : at + _WIDTH]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        lines.append(f"{at:04x}  {row.hex(' '):<{3 * _WIDTH}} {text}")
    return lines


# -- sending back ------------------------------------------------------------------------------------------


@router.get("/replay")
async def ask_replay(
    looks: Ruling,
    *,
    letter: Annotated[str, Query(alias="id", max_length=600)] = "",
    reason: Reason = "",
    run: UUID | None = None,
    everything: bool = False,
) -> Response:
    """The dry run is the question: what would go, what would stay and why. Nothing is changed."""
    selected = _selected(letter, reason, str(run or ""), everything=everything)
    job = Job(str(uuid4()), api.selection_of(ReplayIn.model_validate(selected), ("open",)))
    await asked(looks.service.replays.plan(job))
    assert job.plan is not None
    return looks.page(
        "replay_confirm", "Replay?", job=job, plan=job.plan, Fate=Fate, selected=_hidden(selected)
    )


@router.post("/replay")
async def replay(looks: Ruling, sent: Sent) -> Response:
    """Goes on in the background."""
    selected = _selected_again(sent)
    limit, rate = sent.number("limit", "At most"), sent.number("rate", "A second") or 50
    if not 1 <= rate <= 10_000 or (limit is not None and not 1 <= limit <= 10_000_000):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "A rate is 1 to 10,000 a second, a limit at least 1.")
    wish = ReplayIn.model_validate(
        {**selected, "limit": limit, "rate": rate, "sample": sent.ticked("sample")}
    )
    begun = await api.replay(wish, looks.who, looks.service)
    return to(f"/dead-letters/replays/{begun.replay_id}")


@router.get("/replays/{replay_id}")
async def replay_state(replay_id: UUID, looks: Looking) -> Response:
    """Of the last hundred that this process has begun."""
    job = looks.service.replays.get(str(replay_id))
    if job is None:
        raise Refused(
            HTTPStatus.NOT_FOUND, f"There is no replay {replay_id} here; what it moved stays moved."
        )
    return looks.page(
        "replay",
        f"{job.state.capitalize()} · Replay",
        job=job,
        progress=job.progress,
        proof=job.progress.proof,
        Fate=Fate,
    )


# -- giving up ---------------------------------------------------------------------------------------------


@router.get("/discard")
async def ask_discard(
    looks: Ruling,
    *,
    letter: Annotated[str, Query(alias="id", max_length=600)] = "",
    reason: Reason = "",
    run: UUID | None = None,
) -> Response:
    """The answer is about what is counted here: what fails meanwhile stays."""
    selected = _selected(letter, reason, str(run or ""), until=looks.service.clock.now())
    wish = DiscardIn.model_validate({**selected, "reason": "-", "dry_run": True})
    number = (await asked(api.give_up(wish, looks.who, looks.service))).discarded
    if not number:
        raise Refused(
            HTTPStatus.CONFLICT,
            "There is nothing to discard: what is stored by now, or was discarded before, is settled.",
        )
    one = number == 1
    return looks.confirm(
        Ask(
            title=f"Discard {'this dead letter' if one else f'{number:,} dead letters'}?",
            says=f"{'It counts' if one else 'They count'} as settled and {'is' if one else 'are'} not "
            "replayed any more; Kafka keeps the record until its retention ends.",
            button="Discard it" if one else f"Discard {number:,} dead letters",
            back=f"/dead-letters/show{query({'id': letter})}" if letter else "/dead-letters",
            fields=(why("It stands in the audit, with your name.", needed=True),),
            hidden=tuple(_hidden(selected).items()),
            danger=True,
        ),
    )


@router.post("/discard")
async def discard(looks: Ruling, sent: Sent) -> Response:
    wish = DiscardIn.model_validate({**_selected_again(sent), "reason": sent.reason(needed=True)})
    done = await api.give_up(wish, looks.who, looks.service)
    return to(f"/dead-letters{query({'discarded': done.discarded})}")


# -- which -------------------------------------------------------------------------------------------------


def _meant(state: str, reason: str = "", run: UUID | None = None) -> DeadLetterFilter:
    states = () if state == "all" else (state,)
    return DeadLetterFilter(states=states, reasons=(reason,) if reason else (), run_id=run)


def _selected(
    letter: str, reason: str, run: str, *, everything: bool = False, until: datetime | None = None
) -> dict[str, object]:
    """What the API takes. Raises 422 where it does not say which, or is none."""
    if letter:
        if place_of(letter) is None:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "A dead letter is named like docsum.dlq[3]@17.")
        return {"ids": [letter]}
    if not (reason or run or everything):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Say which dead letters: follow a link of the page.")
    reasons = [reason] if reason else []
    return {"reasons": reasons, "run_id": run or None, "everything": everything, "until": until}


def _hidden(selected: Mapping[str, object]) -> dict[str, str]:
    """The same for the fields of a form."""
    lists = {"letter": selected.get("ids"), "of": selected.get("reasons")}
    firsts = {name: each[0] for name, each in lists.items() if isinstance(each, Sequence) and each}
    run = {"run": str(selected["run_id"])} if selected.get("run_id") else {}
    until = {"until": str(selected["until"])} if selected.get("until") else {}
    return firsts | run | until | ({"everything": "yes"} if selected.get("everything") else {})


def _selected_again(sent: Form) -> dict[str, object]:
    run, until = sent.text("run"), sent.text("until")
    try:
        if run:
            UUID(run)
        moment = datetime.fromisoformat(until) if until else None
    except ValueError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "This is no run's id, or no time.") from error
    everything = sent.ticked("everything")
    return _selected(sent.text("letter"), sent.text("of")[:100], run, everything=everything, until=moment)
