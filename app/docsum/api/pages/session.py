"""Who looks at the page, and proof that a form is ours.

A token of `docsum tokens create` is kept in a cookie that only these pages read: /v1 never does.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from docsum.api.access import LOCAL, Caller, caller_of, service_of
from docsum.api.pages.confirm import LONGEST_REASON, Ask
from docsum.api.pages.looks import environment, has, query
from docsum.api.problems import Refused
from docsum.api.service import Service
from docsum.models import Scope

TOKEN, NONCE = "docsum_token", "docsum_form"  # names of cookies
FIELD = "form"  # what proves that a form is ours
_STAYS = 30 * 86_400  # seconds that a browser keeps the token
_MOST_FIELDS = 200
_LONGEST_TOKEN = 200


class SignInFirst(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whoever looks at a page, and what that page stands on."""

    request: Request
    service: Service
    who: Caller
    secret: str  # of the browser: the token, or a number drawn for it

    @property
    def is_open(self) -> bool:
        return self.service.is_open

    @property
    def steers(self) -> bool:
        return Scope.SUBMIT in self.who.scopes

    @property
    def rules(self) -> bool:
        return Scope.ADMIN in self.who.scopes

    @property
    def form_token(self) -> str:
        return form_token(self.secret)

    @property
    def wants_part(self) -> bool:
        """Whether htmx asks for the living part alone."""
        return self.request.headers.get("hx-request") == "true"

    def page(self, name: str, title: str, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
        """`runs` is runs.html, or _runs.html where the living part is asked for."""
        template = f"_{name}.html" if self.wants_part and has(f"_{name}.html") else f"{name}.html"
        return render(self.request, template, self, status=status, title=title, **values)

    def confirm(self, ask: Ask) -> HTMLResponse:
        """The question before something is done."""
        return self.page("confirm", ask.title, ask=ask)

    def part(self, name: str, **values: Any) -> HTMLResponse:
        """A living part that has an address of its own."""
        return render(self.request, f"_{name}.html", self, title="", **values)


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form that was sent; its token was right."""

    fields: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """Without spaces around it; empty where it is missing."""
        return self.fields.get(name, "").replace("\r\n", "\n").strip()

    def reason(self, *, needed: bool = False) -> str:
        """Why something is done; empty where it need not be said. Raises 422."""
        why = self.text("reason")
        if len(why) > LONGEST_REASON or not why.replace("\n", " ").isprintable() or (needed and not why):
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"Say why, in at most {LONGEST_REASON:,} characters that can be printed: whoever asks later "
                "is told.",
            )
        return why

    def ticked(self, name: str) -> bool:
        return bool(self.fields.get(name))

    def number(self, name: str, what: str) -> int | None:
        """None where the field is empty. Raises 422."""
        text = self.text(name).replace(",", "")
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{what}: write a whole number.")
        return int(text)


def render(
    request: Request, template: str, viewer: Viewer | None, *, status: int = HTTPStatus.OK, **values: Any
) -> HTMLResponse:  # Any: what templates print
    """A page. A browser without a number of its own is given one."""
    text = environment().get_template(template).render(
        viewer=viewer,
        here=request.url.path + query(dict(request.query_params)),
        path=request.url.path,
        now=service_of(request).clock.now(),
        **values,
    )  # fmt: skip
    answer = HTMLResponse(text, status)
    if viewer is not None and viewer.secret not in (request.cookies.get(TOKEN), request.cookies.get(NONCE)):
        keep(answer, request, NONCE, viewer.secret)
    return answer


def keep(answer: Response, request: Request, name: str, text: str, seconds: int | None = None) -> None:
    """Sets a cookie that no script reads and no other site sends."""
    answer.set_cookie(
        name, text, max_age=seconds, path="/", secure=is_https(request), httponly=True, samesite="strict"
    )


def keep_token(answer: Response, request: Request, token: str) -> None:
    keep(answer, request, TOKEN, token, _STAYS)


def is_https(request: Request) -> bool:
    """Also behind a proxy: whoever lies about that gets a cookie which http does not send back."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def form_token(secret: str) -> str:
    """Only who knows the cookie can make it, so no other site can; any process can check it."""
    return hmac.new(secret.encode(), b"docsum form", sha256).hexdigest()


def stranger(request: Request) -> Viewer:
    """Somebody who has not signed in: may do nothing but that."""
    secret = request.cookies.get(NONCE) or secrets.token_urlsafe(24)
    return Viewer(request, service_of(request), Caller("", frozenset()), secret)


async def viewer(request: Request) -> Viewer:
    """Raises SignInFirst, 403 for a token that may not read, and StoreUnavailable."""
    service = service_of(request)
    if service.is_open:  # the cookies of a loopback address are those of every port of it
        secret = request.cookies.get(NONCE) or secrets.token_urlsafe(24)
        return Viewer(request, service, LOCAL, secret)
    token = request.cookies.get(TOKEN, "")
    who = caller_of(token, await service.store.tokens()) if 0 < len(token) <= _LONGEST_TOKEN else None
    if who is None:
        raise SignInFirst
    if Scope.READ not in who.scopes:
        raise Refused(HTTPStatus.FORBIDDEN, _may_not(who, Scope.READ))
    return Viewer(request, service, who, token)


def needs(scope: Scope) -> Callable[..., Coroutine[Any, Any, Viewer]]:
    """A dependency: the viewer, whose token has this scope. Raises 403."""

    async def allowed(who: Annotated[Viewer, Depends(viewer)]) -> Viewer:
        if scope not in who.who.scopes:
            raise Refused(HTTPStatus.FORBIDDEN, _may_not(who.who, scope))
        return who

    return allowed


def _may_not(who: Caller, scope: Scope) -> str:
    return (
        f"The token {who.name!r} may not do this: it has not the scope {scope.value!r}. "
        f"Sign in with one that has; `docsum tokens create NAME --scope read --scope {scope.value}` makes it."
    )


async def sent(request: Request, looks: Annotated[Viewer, Depends(viewer)]) -> Form:
    """The form of whoever is signed in. Raises 403 for one that is not ours."""
    return await checked(request, looks.secret)


async def checked(request: Request, secret: str) -> Form:
    """The form that was sent. Raises 403 without the right token, 422 for what is no form."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "This is no form: use the page's own.")
    body = (await request.body()).decode("ascii", "replace")
    try:
        pairs = parse_qsl(body, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "The form has too many fields.") from error
    fields = dict(pairs)
    if not hmac.compare_digest(fields.pop(FIELD, "").encode(), form_token(secret).encode()):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            "This form was not made for you by this page, or it is too old: nothing was done. "
            "Go back, reload the page and try again.",
        )
    return Form(fields)


def to(path: str) -> RedirectResponse:
    """After something was done: the page that shows it."""
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)


Looking = Annotated[Viewer, Depends(viewer)]
Steering = Annotated[Viewer, Depends(needs(Scope.SUBMIT))]
Ruling = Annotated[Viewer, Depends(needs(Scope.ADMIN))]
Sent = Annotated[Form, Depends(sent)]
