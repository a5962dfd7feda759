"""Signing in and out, the files of the page, and what is not there."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from docsum.api.access import caller_of, service_of
from docsum.api.pages.looks import static
from docsum.api.pages.session import (
    TOKEN,
    Sent,
    checked,
    keep_token,
    render,
    stranger,
    to,
)
from docsum.api.problems import Refused
from docsum.models import Scope

router = APIRouter(include_in_schema=False)

_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")  # printable ASCII without a backslash: no other site
_CACHED = {"Cache-Control": "public, max-age=31536000, immutable"}  # their addresses change with them


@router.get("/static/{name}")
async def file(name: str) -> Response:
    """Style, scripts and their licence."""
    found = static(name)
    if found is None:
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such file.")
    content, media_type = found
    return Response(content, media_type=media_type, headers=_CACHED)


@router.get("/favicon.ico")
async def icon() -> Response:
    """None: browsers ask anyway."""
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/sign-in")
async def sign_in_page(request: Request, next: str = "/") -> Response:
    if service_of(request).is_open:
        return to("/")
    return render(request, "sign_in.html", stranger(request), title="Sign in", next=own_path(next), wrong="")


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """The token goes into a cookie of this browser, and nowhere else."""
    unknown = stranger(request)
    form = await checked(request, unknown.secret)
    after, token = own_path(form.text("next")), form.text("token")
    who = caller_of(token, await unknown.service.store.tokens())
    wrong = ""
    if who is None:
        wrong = "This token is not valid: it is mistyped, or it was revoked."
    elif Scope.READ not in who.scopes:
        wrong = f"The token {who.name!r} may not read, and these pages are for reading first."
    if wrong:
        return render(
            request,
            "sign_in.html",
            unknown,
            status=HTTPStatus.FORBIDDEN,
            title="Sign in",
            next=after,
            wrong=wrong,
        )
    answer = to(after)
    keep_token(answer, request, token)
    return answer


@router.post("/sign-out")
async def sign_out(_: Sent) -> RedirectResponse:
    answer = to("/sign-in")
    answer.delete_cookie(TOKEN, path="/", httponly=True, samesite="strict")
    return answer


def own_path(text: str) -> str:
    """A path of this page; `/` for everything else."""
    return text if _OWN_PATH.fullmatch(text) else "/"
