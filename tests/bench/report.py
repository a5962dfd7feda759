"""The results of a bench: ratios by round, medians and spreads, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.extraction import MEANINGS, Extraction
from tests.bench.measured import Measured
from tests.bench.stand import DOCSUM, LOOPS, Load
from tests.support.deployment import ROOT

Rounds = Sequence[Mapping[str, Measured]]
_COLUMNS = (
    "documents/s",
    "docsum / it",
    "CPU ms/document",
    "peak MB",
    "call ms p50, p99",
    "added ms p50, p99",
)
_EXTRACTION_COLUMNS = ("documents/s", "MB/s", "its rate / bare", "CPU ms/document", "child's peak MB")


def show(load: Load, rounds: Rounds) -> None:
    """A table: medians of the rounds, with the lowest and the highest."""
    title = f"{load.latency:g} s a call, {load.in_flight} in flight, {load.documents:,} documents a round"
    table = Table("", *_COLUMNS, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in (*LOOPS, DOCSUM):
        turns = [each[name] for each in rounds]
        table.add_row(
            LOOPS.get(name, name),
            _spread((turn.rate for turn in turns), 0),
            _spread(ratios(rounds, name), 2) if name in LOOPS else "",
            _spread((turn.cpu_ms for turn in turns), 2),
            f"{max(turn.peak_mb for turn in turns):.0f}",
            _pair(turn.call_ms for turn in turns),
            _pair(turn.added_ms for turn in turns) if name == DOCSUM else "",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def ratios(rounds: Rounds, name: str) -> list[float]:
    """docsum's rate over this loop's, of each round."""
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
        "docsum_over": {name: median(ratios(rounds, name)) for name in LOOPS},
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
    }


def _git(*arguments: str) -> str:
    """Empty where this is no repository, or has no commit."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def save(path: Path, found: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
