"""Documents: find one, and all that is known of it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from docsum.api import cursors
from docsum.api.pages.errors import asked
from docsum.api.pages.looks import squeeze, visible
from docsum.api.pages.session import Looking
from docsum.api.problems import Refused
from docsum.errors import REASONS
from docsum.models import DeadLetterFilter

router = APIRouter(prefix="/documents", include_in_schema=False)

PAGE = 50
_LETTERS = 20  # of one document
Id = Annotated[str, Query(alias="id", min_length=1, max_length=512)]


@router.get("")
async def page(
    looks: Looking,
    q: Annotated[str, Query(max_length=512)] = "",
    after: Annotated[str, Query(max_length=2_000)] = "",
) -> Response:
    """Those with a summary, by id."""
    found = await asked(looks.service.store.summaries_with(q, cursors.text(after), PAGE))
    return looks.page(
        "documents",
        "Documents",
        found=found,
        q=q,
        is_first=not after,
        next=cursors.after_text(found[-1].document_id) if len(found) == PAGE else "",
    )


@router.get("/show")
async def show(document_id: Id, looks: Looking) -> Response:
    """An id is often an address: it travels as a parameter."""
    store = looks.service.store
    known, stored, states, letters, paid = await asked(
        asyncio.gather(
            store.known(document_id),
            store.summary(document_id),
            store.document_runs(document_id),
            store.newest_dead_letters(DeadLetterFilter(states=(), documents=(document_id,)), _LETTERS),
            store.paid_for(document_id),
        )
    )
    if known is None and not states and not letters:
        raise Refused(HTTPStatus.NOT_FOUND, f"Nothing is known of a document {document_id!r}.")
    runs = await asked(asyncio.gather(*(store.run(row.run_id) for row in states)))
    return looks.page(
        "document",
        visible(squeeze(document_id, 80)),
        id=document_id,
        deleted=bool(known and known.deleted),
        stored=stored,
        states=list(zip(states, runs, strict=True)),
        letters=letters,
        paid=paid,
        reasons=REASONS,
    )
