"""The generated parts of the READMEs: `python -m tests.support.readme` writes them, a unit test compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import typer.main
from pydantic import BaseModel, SecretStr

from docsum.cli.app import application
from docsum.settings import Settings, known_variables, text_of
from docsum.telemetry.metrics import DeploymentMetrics, WorkerMetrics, catalogue
from docsum.topics import Topology

README = Path(__file__).parents[2] / "README.md"
OPERATING = README.parent / "deploy" / "README.md"


def generated(text: str) -> str:
    """The README with its generated parts as they should be."""
    return filled(text, {"commands": commands(), "settings": settings()})


def operating(text: str) -> str:
    """The same of the operating guide."""
    return filled(text, {"metrics": metrics()})


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The text with these parts between their marks."""
    for name, body in parts.items():
        head, mark, rest = text.partition(f"<!-- {name}: ")
        first_line, _, rest = rest.partition("\n")
        _, end, tail = rest.partition("<!-- end -->")
        text = f"{head}{mark}{first_line}\n{body}\n{end}{tail}"
    return text


def commands() -> str:
    root = typer.main.get_command(application())
    rows = [f"| `docsum {name}` | {sentence} |" for name, sentence in _commands(root, "")]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _commands(group: object, prefix: str) -> Iterator[tuple[str, str]]:
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # a group has them
        if command.hidden:
            continue
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield f"{prefix}{name}", (command.help or "").strip().split("\n\n")[0].replace("\n", " ")
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")


def settings() -> str:
    rows = [f"| `{name}` | {_default(name)} | {sentence} |" for name, sentence in known_variables().items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def metrics() -> str:
    workers = {metric.name for metric in WorkerMetrics(Topology(), "").described}
    api = {metric.name for metric in DeploymentMetrics(Topology()).described}
    rows = []
    for metric in catalogue():
        told = " and ".join(who for who, names in (("worker", workers), ("API", api)) if metric.name in names)
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {told} | {metric.meaning} |")
    return "\n".join(["| metric | kind | labels | told by | meaning |", "|---|---|---|---|---|", *rows])


def _default(variable: str) -> str:
    group, _, name = variable.removeprefix("DOCSUM_").lower().partition("__")
    if not name:
        return f"`{Settings.model_fields[group].default}`"
    kind = Settings.model_fields[group].annotation
    assert isinstance(kind, type) and issubclass(kind, BaseModel)
    value = kind.model_fields[name].default
    if isinstance(value, SecretStr):
        return ""
    text = text_of(value)
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
    OPERATING.write_text(operating(OPERATING.read_text()))
