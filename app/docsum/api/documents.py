"""Documents: announce one, look at one, delete one."""

from __future__ import annotations

from datetime import UTC
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from docsum.api.access import Admin, Needed, Reader, Submitter
from docsum.api.problems import Refused
from docsum.api.runs import listed, refuse_lag
from docsum.api.shapes import DocumentDeleted, DocumentOut, EventAccepted, EventIn
from docsum.documents import document_fields, tombstone
from docsum.models import AuditRow, Lane, Rows

router = APIRouter(prefix="/v1/documents", tags=["documents"])

# A document id is often an address: it travels as a parameter, for slashes end a part of a path.
Id = Annotated[str, Query(alias="id", min_length=1, max_length=512, description="The document's id.")]


@router.post("", status_code=202, summary="Announce one document")
async def announce(body: EventIn, _: Submitter, service: Needed) -> EventAccepted:
    """A live event: it goes before every run. Answered once Kafka has acknowledged it."""
    await refuse_lag(service, Lane.LIVE)
    moment = body.occurred_at or service.clock.now()
    reference = listed(body, moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    event_id, place = await service.announce.live(reference, body.operation, force=body.force)
    return EventAccepted(
        event_id=event_id,
        document_id=body.document_id,
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
    )


@router.get("", summary="A document: its state in every run, and its summary")
async def by_id(document_id: Id, _: Reader, service: Needed) -> DocumentOut:
    """The newest summary, and what became of the document in every run."""
    known, stored = await service.store.known(document_id), await service.store.summary(document_id)
    states = await service.store.document_runs(document_id)
    if known is None and not states:
        raise Refused(HTTPStatus.NOT_FOUND, f"Nothing is known of a document {document_id[:200]!r}.")
    return DocumentOut.model_validate(document_fields(document_id, known, stored, states))


@router.get("/{document_id:path}", summary="The same, with the id in the path")
async def in_path(document_id: str, who: Reader, service: Needed) -> DocumentOut:
    """For ids that survive in a path; `%2F` and `/` both stand for a slash."""
    return await by_id(document_id, who, service)


@router.delete("", summary="Delete the summary of a document")
async def delete(
    document_id: Id,
    who: Admin,
    service: Needed,
    purge: Annotated[bool, Query(description="Take its words out of every table, for good.")] = False,
) -> DocumentDeleted:
    """Nothing happens at the source: the next run over it, or a later event, makes the summary anew."""
    known = await service.store.known(document_id)
    if known is None and not await service.store.document_runs(document_id):
        raise Refused(HTTPStatus.NOT_FOUND, f"Nothing is known of a document {document_id[:200]!r}.")
    row = tombstone(document_id, known, service.clock.now())
    await service.store.write(Rows(summaries=(row,)))
    await service.take_back(row)
    if purge:
        await service.store.purge(document_id, row.version)
    action = "documents purge" if purge else "documents delete"
    await service.store.audit(AuditRow(service.clock.now(), who.name, action, document_id, 1))
    return DocumentDeleted(document_id=document_id, purged=purge)


@router.delete("/{document_id:path}", summary="The same, with the id in the path")
async def delete_in_path(
    document_id: str, who: Admin, service: Needed, purge: Annotated[bool, Query()] = False
) -> DocumentDeleted:
    """For ids that survive in a path."""
    return await delete(document_id, who, service, purge)
