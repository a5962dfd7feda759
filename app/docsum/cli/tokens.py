"""`docsum tokens`: who may use the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.audit import audit, who
from docsum.cli.deployment import reached
from docsum.cli.options import JsonLines, JsonObject
from docsum.cli.output import Code, WrongUsage, console, emit, finish, next_step, say, table
from docsum.models import Scope
from docsum.words import clean

if TYPE_CHECKING:
    from docsum.models import Token

_LONGEST = 100  # characters of a name

Name = Annotated[str, typer.Argument(help="Whose it is: a team, a service.")]


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum tokens ...`."""
    group = typer.Typer(
        help="Tokens of the API: create, ls, revoke.", rich_markup_mode=None, no_args_is_help=True
    )
    group.command("create")(create)
    group.command("ls")(list_)
    group.command("revoke")(revoke)
    app.add_typer(group, name=name)


def create(
    name: Name,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="submit|read|admin",
            help="What it allows; repeatable; submit and read unless told otherwise. admin deletes documents,"
            " moves dead letters and pauses everything, and includes neither of the others.",
        ),
    ] = None,
    json: JsonObject = False,
) -> None:
    """Make a token. It is shown once, on stdout: only a digest is kept.

    \b
      docsum tokens create reports-team
      docsum tokens create dashboard --scope read
      export TOKEN=$(docsum tokens create ops --scope read --scope admin)
    """
    if not name.strip() or len(name) > _LONGEST or not name.isprintable():
        raise WrongUsage(f"A name has 1 to {_LONGEST} printable characters.")
    scopes = scope or [Scope.SUBMIT, Scope.READ]
    unknown = next((each for each in scopes if each not in list(Scope)), None)
    if unknown is not None:
        raise WrongUsage(f"There is no scope {unknown!r}: choose {', '.join(Scope)}.")
    finish(_create(name.strip(), [Scope(each) for each in scopes], json))


async def _create(name: str, scopes: list[Scope], json: bool) -> Code:
    from docsum.api.access import new_token
    from docsum.bootstrap import open_store

    async with open_store(reached()) as store:
        if any(token.name == name and not token.revoked for token in await store.tokens()):
            raise WrongUsage(f"There is a token {name!r}: `docsum tokens revoke` it first, or choose a name.")
        secret, token = new_token(name, scopes, datetime.now(UTC), who())
        await store.save_token(token)
        await audit(store, "tokens create", f"{name}: {', '.join(sorted(scopes))}", 1)
    if json:
        emit({**_fields(token), "token": secret})
        return Code.OK
    typer.echo(secret)
    say(f"This is the only time that the token of {name} is shown. It allows: {', '.join(sorted(scopes))}.")
    return Code.OK


def list_(json: JsonLines = False) -> None:
    """All tokens that were ever made.

    \b
      docsum tokens ls
    """
    finish(_list(json))


async def _list(json: bool) -> Code:
    from docsum.bootstrap import open_store

    async with open_store(reached()) as store:
        tokens = await store.tokens()
    if json:
        for token in tokens:
            emit(_fields(token))
        return Code.OK
    if not tokens:
        say("There are no tokens yet.")
        next_step("`docsum tokens create NAME`")
        return Code.OK
    found = table("name", "scopes", "created", "by", "state")
    for token in tokens:
        found.add_row(
            clean(token.name),
            ", ".join(sorted(token.scopes)),
            f"{token.created_at.astimezone():%Y-%m-%d %H:%M}",
            clean(token.created_by),
            "revoked" if token.revoked else "valid",
        )
    console().print(found)
    return Code.OK


def revoke(name: Name) -> None:
    """Make a token useless, within seconds and for good.

    \b
      docsum tokens revoke reports-team
    """
    finish(_revoke(name))


async def _revoke(name: str) -> Code:
    from docsum.api.access import revoked
    from docsum.bootstrap import open_store

    async with open_store(reached()) as store:
        found = next((token for token in await store.tokens() if token.name == name), None)
        if found is None:
            raise WrongUsage(
                f"There is no token {clean(name)!r}: `docsum tokens ls` shows those that there are."
            )
        await store.save_token(revoked(found, datetime.now(UTC)))
        await audit(store, "tokens revoke", name, 1)
    say(f"The token of {name} is revoked.")
    return Code.OK


def _fields(token: Token) -> dict[str, object]:
    return {
        "name": token.name,
        "scopes": sorted(token.scopes),
        "created_at": token.created_at,
        "created_by": token.created_by,
        "revoked": token.revoked,
    }
