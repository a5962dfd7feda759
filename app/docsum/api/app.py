"""The application: routes, errors as problems, size limits, and the headers that keep a browser safe."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from docsum import __version__
from docsum.api import access, dead_letters, documents, problems, runs, uploads
from docsum.api.access import LOOPBACK, Needed, caller
from docsum.api.pages import errors
from docsum.api.pages import site as pages
from docsum.api.service import Service
from docsum.api.shapes import Healthy, Problem
from docsum.troubles import Trouble, troubles

MOST_BYTES = 10_000_000  # of a request's body, but for lists of documents, which go to disk
_UNBOUND = "/documents"  # how the paths end that take those
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _CONTENT_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",  # without any, browsers send our own forms with `Origin: null`
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}
_DESCRIPTION = """Summaries of all your documents: begin a run, watch it, read what came of it.

Errors are `application/problem+json`. Pages go on with `next_cursor`. Moments are UTC."""


def application(service: Service) -> FastAPI:
    """The ASGI app; it holds nothing but the service."""
    app = FastAPI(
        title="docsum",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses=_ERRORS,
        generate_unique_id_function=_operation_id,
    )
    app.state.service = service
    problems.handle(app)
    for router in (runs.router, uploads.router, documents.router, dead_letters.router):
        app.include_router(router)
    _add_health(app)
    pages.add(app)
    app.add_middleware(Guard, is_open=service.is_open)
    return app


#: Every operation may answer these; each is a problem.
_ERRORS: dict[int | str, dict[str, Any]] = {  # Any: OpenAPI
    int(status): {
        "description": status.phrase,
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "model": Problem,
    }
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0] if route.tags else 'docsum'}_{route.name}".replace(" ", "_")


def _add_health(app: FastAPI) -> None:
    @app.get("/livez", tags=["health"], summary="Whether this process answers")
    async def alive() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", tags=["health"], summary="Whether Kafka and ClickHouse answer")
    async def ready(service: Needed, response: Response) -> dict[str, bool]:
        health = await service.look()
        if health.errors:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return {"ready": not health.errors}

    # Without a token, as the worker's: tokens are in ClickHouse, and this must answer while that is down. It
    # tells numbers, never ids or texts.
    @app.get("/metrics", include_in_schema=False)
    async def metrics(service: Needed, accept: Annotated[str, Header()] = "") -> Response:
        body, kind = await service.scrape(accept)
        return Response(body, media_type=kind)

    @app.get("/v1/health", tags=["health"], summary="What is wrong, and what to do")
    async def health(service: Needed, _: Annotated[access.Caller, Depends(caller)]) -> Healthy:
        found = [str(trouble) for trouble in troubles(await service.look())]
        return Healthy(status="trouble" if found else "ok", troubles=found)


class Guard:
    """Before every request: its size and, where nobody needs a token, that it is from our own page.

    Any page in a browser may send requests to 127.0.0.1; it cannot forge Host and Origin.
    """

    def __init__(self, app: ASGIApp, is_open: bool) -> None:
        self._app = app
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(headers):
            await _refused(scope, HTTPStatus.FORBIDDEN, refusal)(scope, receive, _with_headers(send))
            return
        if not (scope["path"].startswith("/v1/runs/") and scope["path"].endswith(_UNBOUND)):
            receive = _Limited(receive, MOST_BYTES)
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > MOST_BYTES:
                answer = _refused(
                    scope,
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The body has more than {MOST_BYTES:,} bytes.",
                )
                await answer(scope, receive, _with_headers(send))
                return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, headers: dict[str, str]) -> str:
        if not self._is_open:
            return ""
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            return "This docsum needs no token, so it answers to 127.0.0.1 and localhost only."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "This docsum needs no token, so it takes no requests from the pages of others."
        return ""


def _refused(scope: Scope, status: HTTPStatus, detail: str) -> Response:
    """A page for a person, a problem for a program."""
    if errors.is_page(scope["path"]):
        return errors.page_of(Request(scope), None, status, Trouble(detail, ""))
    return problems.answer(status, detail)


class _Limited:
    """A body that ends with an error where it becomes too long."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise problems.Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {MOST_BYTES:,} bytes."
            )
        return message


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name, value) for name, value in _HEADERS.items() if name not in given),
            ]
        await send(message)

    return sent
