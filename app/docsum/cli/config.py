"""`docsum config show`: every setting, its value, and where it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from docsum.cli.options import JsonLines
from docsum.cli.output import console, emit, next_step, say, table

if TYPE_CHECKING:
    from docsum.settings import Settings

_MASK = "********"
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s]*@")  # of `http://user:password@host`
#: Names of others that are honoured where ours is not set.
_ALIASES = {
    "DOCSUM_MODEL__API_KEY": "ANTHROPIC_API_KEY",
    "DOCSUM_MODEL__BASE_URL": "ANTHROPIC_BASE_URL",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is now."""

    name: str
    value: str  # a secret is masked
    origin: str  # default, environment, .env, file, or the variable of others that gave it


def register(app: typer.Typer, name: str) -> None:
    """Adds `docsum config ...`."""
    group = typer.Typer(help="Settings: show them.", rich_markup_mode=None, no_args_is_help=True)
    group.callback()(_group)
    group.command("show")(show)
    app.add_typer(group, name=name)


def _group() -> None:
    """Settings come from the environment, from .env in the working directory and from files of secrets."""


def show(
    json: JsonLines = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
) -> None:
    """Every setting with its value and where that comes from; secrets are masked.

    \b
      docsum config show
      docsum config show --changed
    """
    from docsum.settings import load

    shown = [setting for setting in described(load()) if not changed or setting.origin != "default"]
    if json:
        for setting in shown:
            emit({"name": setting.name, "value": setting.value, "origin": setting.origin})
        return
    if not shown:
        say("Nothing is set: every setting has its default.")
        return
    found = table("setting", "value", "from")
    for setting in shown:
        found.add_row(setting.name, setting.value, setting.origin)
    console().print(found)
    next_step("`docsum doctor`")


def described(settings: Settings) -> Iterator[Setting]:
    """All settings, in the order of the groups."""
    from docsum.settings import dotenv, known_variables, secret_files

    places = {"environment": os.environ, ".env": dotenv(), "file": secret_files()}
    named = {place: {name.upper() for name in names} for place, names in places.items()}
    for name in known_variables():
        yield Setting(name, _value(settings, name), _origin(name, named))


def _origin(name: str, named: Mapping[str, set[str]]) -> str:
    for place, names in named.items():
        if name in names:
            return place
    alias = _ALIASES.get(name, "")
    return next((alias for place in ("environment", ".env") if alias in named[place]), "default")


def _value(settings: Settings, name: str) -> str:
    from pydantic import SecretStr

    from docsum.settings import text_of

    value: object = settings
    for part in name.removeprefix("DOCSUM_").lower().split("__"):
        value = getattr(value, part)
    if isinstance(value, SecretStr):
        return _MASK if value.get_secret_value() else ""
    return without_password(text_of(value))


def without_password(value: str) -> str:
    """An address with its password masked; anything else as it is."""
    return _PASSWORD.sub(rf"\1{_MASK}@", value)
