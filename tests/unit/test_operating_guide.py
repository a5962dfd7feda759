"""deploy/README.md: its commands are ours, as they are now, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from docsum.cli.app import application
from tests.support.manifests import ROOT

GUIDE = ROOT / "deploy/README.md"
_BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def quoted() -> list[str]:
    """Every command line of ours, in blocks and in sentences."""
    text = GUIDE.read_text()
    pieces = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    pieces += _INLINE.findall(_BLOCK.sub("", text))
    found = (part.strip() for piece in pieces for part in re.split(r"&&|\||;|#", piece))
    ours = (re.sub(r"^((\w+=\S*|docker compose exec \w+) )+(?=docsum )", "", each) for each in found)
    return sorted({each for each in ours if each.startswith("docsum ")})


def options(command: Any) -> Iterator[str]:  # Any: typer brings its own copy of click
    for each in command.params:
        yield from (*each.opts, *each.secondary_opts)


def test_there_are_commands_in_the_guide() -> None:
    assert len(quoted()) > 20


@pytest.mark.parametrize("line", quoted())
def test_every_command_of_the_guide_is_one(line: str) -> None:
    command: Any = typer.main.get_command(application())
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"{line}: there is no {name}"
        command = command.commands[name]
    assert not hasattr(command, "commands") or command.invoke_without_command, f"{line}: of what?"
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in options(command), f"{line}: there is no {word}"


def test_every_link_of_the_guide_leads_somewhere() -> None:
    text = GUIDE.read_text()
    heads = {
        re.sub(r"[^\w -]", "", head).lower().replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in heads, target
        elif not target.startswith("http"):
            assert (GUIDE.parent / target).exists(), target
