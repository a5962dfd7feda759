"""What is asked before something is done: a page with a form, so that it works without scripts too."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_REASON = 1_000  # characters, as the API's requests have it


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form."""

    name: str
    label: str
    help: str = ""
    value: str = ""
    kind: str = "text"  # or number, checkbox
    needed: bool = False
    ticked: bool = False
    most: int = 200  # characters


def why(help: str, *, needed: bool = False) -> Field:
    """The reason for what is about to be done; `Form.reason` reads it."""
    return Field("reason", "Why", help, needed=needed, most=LONGEST_REASON)


@dataclass(frozen=True, slots=True)
class Ask:
    """The question. The form goes to the address that it stands at."""

    title: str
    says: str
    button: str
    back: str
    fields: tuple[Field, ...] = ()
    danger: bool = False
    hidden: tuple[tuple[str, str], ...] = ()
