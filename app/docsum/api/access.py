"""Who may do what: tokens, of which only digests are kept, and the scopes that each has."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from docsum.api.problems import Refused
from docsum.api.service import Service
from docsum.models import Scope, Token

PREFIX = "docsum_"  # so that a token is recognised wherever it leaks to
#: Names that the local stack is reached by: a page elsewhere that names it otherwise is refused.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

_bearer = HTTPBearer(auto_error=False, description="A token of `docsum tokens create`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request."""

    name: str
    scopes: frozenset[Scope]


LOCAL = Caller("local", frozenset(Scope))


def new_token(name: str, scopes: Iterable[Scope], now: datetime, who: str) -> tuple[str, Token]:
    """A token, shown once, and what is kept of it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Token(name, digest_of(secret), frozenset(scopes), now, who, changed_at=now)


def revoked(token: Token, now: datetime) -> Token:
    """The same token, of no more use."""
    return replace(token, revoked=True, changed_at=max(now, token.changed_at))


def digest_of(secret: str) -> str:
    """Tokens have 256 random bits, so a plain digest keeps them: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def caller_of(secret: str, tokens: Sequence[Token]) -> Caller | None:
    """Whose token it is. Takes the same time whichever it is."""
    digest, found = digest_of(secret), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest) and not token.revoked:
            found = Caller(token.name, token.scopes)
    return found


def service_of(request: Request) -> Service:
    """What the app stands on."""
    service: Service = request.app.state.service
    return service


async def caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Raises 401 without a valid token, where one is needed."""
    service = service_of(request)
    if credentials is None and service.is_open:
        return LOCAL
    found = caller_of(credentials.credentials, await service.store.tokens()) if credentials else None
    if found is None:
        what = "The token is not valid." if credentials else "A token is needed."
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            f"{what} Send `Authorization: Bearer TOKEN`; `docsum tokens create NAME` makes one.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found


def needs(scope: Scope) -> Callable[..., Coroutine[Any, Any, Caller]]:
    """A dependency: the caller, who has this scope. Raises 401 or 403."""

    async def allowed(who: Annotated[Caller, Depends(caller)]) -> Caller:
        if scope not in who.scopes:
            raise Refused(HTTPStatus.FORBIDDEN, f"The token {who.name!r} has not the scope {scope.value!r}.")
        return who

    return allowed


Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
Needed = Annotated[Service, Depends(service_of)]
