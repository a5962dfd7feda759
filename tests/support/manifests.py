"""What the files under deploy/ and docker-compose.yml say, read for tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: `${NAME}`, `${NAME:-default}` and `${NAME:?what to do}`
_REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")
_VARIABLE = re.compile(r"\bDOCSUM_[A-Z0-9_]*[A-Z0-9]\b")


def compose() -> dict[str, Any]:
    """The file with its anchors filled in and its variables not."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def filled(text: str, given: dict[str, str]) -> str:
    """A text of docker-compose.yml with its variables, as compose fills them in."""
    return _REFERENCE.sub(lambda found: given.get(found["name"], found["default"] or ""), text)


def variables_in(path: Path) -> set[str]:
    """Every DOCSUM_ variable that a file names, comments included."""
    return set(_VARIABLE.findall(path.read_text()))


def deployment_files() -> Iterator[Path]:
    """All that is written for operators, but for dashboards and rules."""
    yield COMPOSE
    for path in sorted((ROOT / "deploy").rglob("*")):
        if path.is_file() and path.suffix not in (".json", ".pyc"):
            yield path
