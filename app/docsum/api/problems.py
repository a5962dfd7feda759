"""Errors as problem+json (RFC 9457): one sentence, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from docsum.api.shapes import Problem
from docsum.controls import ControlRefused
from docsum.errors import (
    BrokerUnavailable,
    ConfigurationError,
    DocsumError,
    InvalidEvent,
    ModelUnknown,
    SourceNotAllowed,
    StoreMisconfigured,
    StoreUnavailable,
    WorkPaused,
)
from docsum.manifests import NoManifest
from docsum.runs import UnknownRun
from docsum.sources import UnusableSource

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
_AGAIN = "5"  # seconds, where something does not answer

#: Our errors -> status; what is not here is 500. A subclass counts as its nearest ancestor here.
STATUS: Mapping[type[DocsumError], HTTPStatus] = {
    UnknownRun: HTTPStatus.NOT_FOUND,
    ControlRefused: HTTPStatus.CONFLICT,
    WorkPaused: HTTPStatus.CONFLICT,
    SourceNotAllowed: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnusableSource: HTTPStatus.UNPROCESSABLE_ENTITY,
    NoManifest: HTTPStatus.UNPROCESSABLE_ENTITY,
    ModelUnknown: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidEvent: HTTPStatus.UNPROCESSABLE_ENTITY,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    BrokerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreMisconfigured: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.UNPROCESSABLE_ENTITY,
}


class Refused(HTTPException):
    """A request that cannot be done as it is."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status.value, detail, dict(headers) if headers else None)


def status_of(error: DocsumError) -> HTTPStatus:
    """By the table above."""
    found = (STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS)
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR)


def answer(
    status: int, detail: str, *, errors: list[str] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem as a response."""
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])
    return JSONResponse(problem.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def handle(app: FastAPI) -> None:
    """Every error of the app leaves as a problem."""

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, error.detail, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_sentence(each) for each in error.errors()]
        return answer(HTTPStatus.UNPROCESSABLE_ENTITY, errors[0], errors=errors[:20])

    @app.exception_handler(DocsumError)
    async def ours(_: Request, error: DocsumError) -> JSONResponse:
        status = status_of(error)
        again = {"Retry-After": _AGAIN} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
        return answer(status, str(error), headers=again)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, _error: ClientDisconnect) -> JSONResponse:
        return answer(HTTPStatus.BAD_REQUEST, "The request was cut short.")  # to nobody, and no error of ours

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", action="request", path=request.url.path, exc_info=error)
        return answer(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"docsum failed unexpectedly ({type(error).__name__}); its log says more.",
        )


def _sentence(error: Mapping[str, object]) -> str:
    place = error.get("loc")
    where = ".".join(str(part) for part in place[1:]) if isinstance(place, tuple | list) else ""
    return f"{where or 'The body'}: {str(error.get('msg', 'it is wrong')).removeprefix('Value error, ')}."
