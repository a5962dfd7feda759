"""Lists of documents that are sent to a run: on disk first, then announced, then answered."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Annotated, BinaryIO, cast
from uuid import UUID

from fastapi import APIRouter, Query, Request

from docsum.api.access import Needed, Submitter
from docsum.api.problems import Refused
from docsum.api.runs import UPLOAD, accepted, found_run, refuse_lag
from docsum.api.service import Service
from docsum.api.shapes import RunAccepted
from docsum.manifests import Head, Line, read_head, read_lines
from docsum.models import ControlState, Run, RunState
from docsum.ports import Clock
from docsum.runs import following
from docsum.sources import Entry, Listed, Unreadable

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.post(
    "/{run_id}/documents",
    status_code=202,
    summary="Send a run's documents",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A JSON object a line, as in `documents` of a run; or a CSV with these columns.",
            "content": {
                "application/x-ndjson": {"schema": {"type": "string"}},
                "text/csv": {"schema": {"type": "string"}},
            },
        }
    },
)
async def send_documents(
    run_id: UUID,
    request: Request,
    _: Submitter,
    service: Needed,
    more: Annotated[bool, Query(description="Further lists will follow.")] = False,
) -> RunAccepted:
    """Of a run that was begun without a source. A list that was cut short announces nothing.

    What the run has already is passed over, so the same list may be sent again.
    """
    run = await found_run(run_id, service)
    _refuse_unfit(run, service)
    await refuse_lag(service, run.lane)
    with tempfile.TemporaryFile(prefix="docsum-upload-") as file:
        spool = cast(BinaryIO, file)
        try:
            await _spooled(request.stream(), spool, service.settings.max_upload)
        except BaseException:
            await asyncio.shield(_cut_short(run_id, service))
            raise
        spool.seek(0)
        head = read_head(spool, "The list")
        done = await service.publishing.announce_now(run, _entries(spool, head, service.clock), ends=not more)
    return await accepted(done.run, done.passed_over, service)


async def _cut_short(run_id: UUID, service: Service) -> None:
    """Written down, unless the same list was sent again meanwhile, and to its end."""
    run = await found_run(run_id, service)
    if run.state is not RunState.PUBLISHED:
        await service.store.save_run(following(run, RunState.INTERRUPTED, service.clock.now()))


async def _spooled(pieces: AsyncIterator[bytes], spool: BinaryIO, most: int) -> None:
    """On disk, so that no list is too long for memory. Raises 413."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > most:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The list has more than {most:,} bytes (DOCSUM_API__MAX_UPLOAD): send parts with ?more.",
            )
        spool.write(piece)


def _entries(spool: BinaryIO, head: Head, clock: Clock) -> Iterator[Entry]:
    for number, line in read_lines(spool, head):
        if isinstance(line, Line):
            yield Listed(
                line.document_id,
                line.uri,
                clock.now(),
                source_version=line.source_version,
                media_type=line.media_type,
                size_bytes=line.size_bytes,
                title=line.title,
                attributes=line.attributes,
            )
        else:
            yield Unreadable(f"line {number}", line.problem)


def _refuse_unfit(run: Run, service: Service) -> None:
    """Raises 409 for a run that takes no list."""
    why = ""
    if run.source != UPLOAD:
        why = f"Its documents are those of {run.source}: begin a run without a source to send them."
    elif run.wanted is ControlState.CANCELLED:
        why = "It is cancelled, and that is final: begin a new one."
    elif run.state is RunState.PUBLISHED:
        why = "Its last list has been sent: begin a new run."
    elif service.publishing.is_busy_with(run.id):
        why = "Another list of it is being read: send this one when that has been answered."
    if why:
        raise Refused(HTTPStatus.CONFLICT, why)
