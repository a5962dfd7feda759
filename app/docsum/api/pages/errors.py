"""Errors of the page as pages: one sentence, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from docsum.api.pages.session import SignInFirst, Viewer, render, stranger, viewer
from docsum.api.problems import status_of
from docsum.errors import REASONS, DocsumError, StoreUnavailable, row_of
from docsum.troubles import Trouble, troubles

T = TypeVar("T")
_OTHERS = ("/v1/", "/livez", "/readyz", "/metrics", "/static/")  # whoever asks there is no person
_PATIENCE = timedelta(seconds=4)
_GLANCE = timedelta(seconds=1)  # for what else is wrong: who waited for an error waits no longer for that
_AGAIN = "5"  # seconds


async def asked(question: Awaitable[T]) -> T:
    """What the store answers in time. Raises StoreUnavailable."""
    try:
        return await asyncio.wait_for(question, _PATIENCE.total_seconds())
    except TimeoutError as error:
        raise StoreUnavailable("ClickHouse does not answer in time.") from error


def handle(app: FastAPI) -> None:
    """What goes wrong on a page leaves as a page; everything else as it did."""
    kinds = (HTTPException, RequestValidationError, DocsumError, Exception)
    for kind in kinds:
        app.exception_handlers[kind] = _page_or(app.exception_handlers[kind])
    app.exception_handlers[SignInFirst] = _sign_in_first


def is_page(path: str) -> bool:
    """Whether a person asks there."""
    return not path.startswith(_OTHERS)


def _page_or(other: Callable[..., Any]) -> Callable[..., Any]:  # Any: starlette's handlers
    async def answer(request: Request, error: Exception) -> Response:
        if not is_page(request.url.path):
            found: Response = await other(request, error)
            return found
        if not isinstance(error, HTTPException | RequestValidationError | DocsumError):
            await other(request, error)  # it is logged there
        return await error_page(request, error)

    return answer


async def error_page(request: Request, error: Exception) -> Response:
    """Also for whoever is not signed in, and while the store is down."""
    who = stranger(request)
    with suppress(Exception):  # whoever it is: an error page must not fail itself
        who = await viewer(request)
    status, found = _told(error)
    again = status == HTTPStatus.SERVICE_UNAVAILABLE
    others = await _others(who, error) if again and who.who.scopes else []
    if others and row_of(error).reason == "store_unavailable":
        found, *others = others  # it names the server too
    template = "_error.html" if who.wants_part else "error.html"
    answer = page_of(request, who, status, found, others=others, template=template)
    if again:
        answer.headers["Retry-After"] = _AGAIN
    return answer


def page_of(
    request: Request,
    who: Viewer | None,
    status: int,
    found: Trouble,
    *,
    others: Sequence[Trouble] = (),
    template: str = "error.html",
) -> Response:
    """One thing that went wrong, and what else does."""
    again = status == HTTPStatus.SERVICE_UNAVAILABLE
    title = "Something does not answer" if again else HTTPStatus(status).phrase.capitalize()
    return render(request, template, who, status=status, title=title, found=found, others=others, again=again)


async def _others(who: Viewer, error: Exception) -> list[Trouble]:
    """What else is wrong, ClickHouse first where that is the error."""
    with suppress(TimeoutError):
        health = await asyncio.wait_for(who.service.look(), _GLANCE.total_seconds())
        kind = row_of(error).reason
        first = [each for each in health.errors if row_of(each).reason == kind]
        return sorted(troubles(health), key=lambda each: not any(str(known) in each.what for known in first))
    return []


def _told(error: Exception) -> tuple[int, Trouble]:
    if isinstance(error, HTTPException):
        return error.status_code, Trouble(str(error.detail), "")
    if isinstance(error, RequestValidationError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, Trouble(
            "This address is not complete, or holds what does not belong there.",
            "Follow a link of the page instead.",
        )
    if isinstance(error, DocsumError):
        status = status_of(error)
        hint = REASONS[row_of(error).reason].hint if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        return status, Trouble(str(error), hint)
    return HTTPStatus.INTERNAL_SERVER_ERROR, Trouble(
        f"docsum failed unexpectedly ({type(error).__name__}).", "Its log says more."
    )


async def _sign_in_first(request: Request, _: Exception) -> Response:
    """And then back to what was asked for, unless that was to do something."""
    if request.headers.get("hx-request") == "true":
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Refresh": "true"})
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    after = "" if request.method != "GET" or wanted == "/" else f"?next={quote(wanted)}"
    return RedirectResponse(f"/sign-in{after}", HTTPStatus.SEE_OTHER)
