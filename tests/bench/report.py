"""The results of a bench: ratios by round, medians and spreads, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.contenders import BY_ID, DOCSUM, RIVALS
from tests.bench.extraction import MEANINGS, Extraction
from tests.bench.measured import Measured
from tests.bench.stand import Load
from tests.support.deployment import ROOT

Rounds = Sequence[Mapping[str, Measured]]
COLUMNS = ("documents/s", "docsum / it", "CPU ms/document", "peak MB")
_TIMES = ("call ms p50, p99", "added ms p50, p99")
_EXTRACTION_COLUMNS = ("documents/s", "MB/s", "its rate / bare", "CPU ms/document", "child's peak MB")


#: Title, columns and rows of a table; the first column is text, the others are figures.
Titled = tuple[str, Sequence[str], Iterable[Sequence[str]]]


def show_tables(tables: Iterable[Titled]) -> None:
    """On standard output."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    for heading, columns, rows in tables:
        table = Table(*columns[:1], title=heading, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns[1:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(tables: Iterable[Titled]) -> Iterator[str]:
    """The lines of the tables, for a README."""
    for number, (heading, columns, rows) in enumerate(tables):
        yield from ([""] if number else [])
        yield from (f"{heading}:", "", markdown_row(columns))
        yield markdown_row(["---", *["---:" for _ in columns[1:]]])
        yield from map(markdown_row, rows)


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show(load: Load, rounds: Rounds) -> None:
    """A table: medians of the rounds, with the lowest and the highest; and what each contender keeps."""
    table = Table("", *COLUMNS, *_TIMES, title=title(load), title_justify="left", box=box.SIMPLE_HEAD)
    for name, cells in lines(rounds):
        turns = [each[name] for each in rounds]
        added = _pair(turn.added_ms for turn in turns) if name == DOCSUM else ""
        table.add_row(BY_ID[name].title, *cells, _pair(turn.call_ms for turn in turns), added)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for contender in BY_ID.values():
        console.print(f"  {contender.title} keeps {contender.keeps}.", highlight=False)


def title(load: Load) -> str:
    return f"{load.latency:g} s a call, {load.in_flight} in flight, {load.documents:,} documents a round"


def lines(rounds: Rounds) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each contender that took part, docsum last, with a cell for each of COLUMNS."""
    for name in (name for name in BY_ID if name in rounds[0]):
        turns = [each[name] for each in rounds]
        yield (
            name,
            (
                _spread((turn.rate for turn in turns), 0),
                _spread(ratios(rounds, name), 2) if name != DOCSUM else "",
                _spread((turn.cpu_ms for turn in turns), 2),
                f"{max(turn.peak_mb for turn in turns):.0f}",
            ),
        )


def ratios(rounds: Rounds, name: str) -> list[float]:
    """docsum's rate over that contender's, of each round."""
    return [each[DOCSUM].rate / each[name].rate for each in rounds]


def show_extraction(found: Sequence[Extraction]) -> None:
    """A table of all formats: medians of the rounds, the lowest and the highest; and what each line means."""
    table = Table(
        "", "", *_EXTRACTION_COLUMNS, title="Text extraction", title_justify="left", box=box.SIMPLE_HEAD
    )
    for extraction in found:
        for number, name in enumerate(extraction.rounds[0]):  # in the order of the contenders
            turns = [turns[name] for turns in extraction.rounds]
            peak = max(turn.peak_mb for turn in turns)
            table.add_row(
                "" if number else extraction.format,
                name,
                _spread((turn.rate for turn in turns), 0),
                _spread((turn.megabytes for turn in turns), 1),
                _spread(extraction.over_bare(name), 2) if name != extraction.bare else "",
                _spread((turn.cpu_ms for turn in turns), 2),
                f"{peak:.0f}" if peak else "",
            )
        table.add_section()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for name, meaning in MEANINGS.items():
        console.print(f"  {name}: {meaning}", highlight=False)


def extraction_as_json(extraction: Extraction) -> dict[str, object]:
    names = [name for name in extraction.rounds[0] if name != extraction.bare]
    return {
        "format": extraction.format,
        "files": extraction.files,
        "bytes": extraction.size,
        "bare": extraction.bare,
        "over_bare": {name: median(extraction.over_bare(name)) for name in names},
        "rounds": [{name: asdict(turn) for name, turn in turns.items()} for turns in extraction.rounds],
    }


def _spread(values: Iterable[float], digits: int) -> str:
    low, *_, high = ordered = sorted(values) * 2  # twice: one value is a spread, too
    return f"{median(ordered):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def _pair(times: Iterable[tuple[float, float]]) -> str:
    return ", ".join(f"{median(each):,.0f}" for each in zip(*times, strict=True))


def as_json(load: Load, rounds: Rounds) -> dict[str, object]:
    return {
        **asdict(load),
        "docsum_over": {name: median(ratios(rounds, name)) for name in RIVALS},
        "rounds": [{name: asdict(turn) for name, turn in each.items()} for each in rounds],
    }


def circumstances() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the SDK and the peers: they are installed as their lock says."""
    lock = (ROOT / "requirements" / "peers.txt").read_text()
    pinned = dict(re.findall(r"^(\S+)==(\S+)", lock, re.MULTILINE))
    return {name: pinned[name] for name in ("anthropic", "taskiq", "litellm", "async-batch-llm")}


def _git(*arguments: str) -> str:
    """Empty where this is no repository, or has no commit."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def save(path: Path, found: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
