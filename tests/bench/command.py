"""What the commands of the benches have in common: where results go, what is said, how they begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from docsum.errors import DocsumError
from tests.bench import report
from tests.bench.stand import BenchFailed
from tests.support.deployment import ROOT


def result_path(part: str = "") -> Path:
    """Where the results go unless the command line says otherwise."""
    return ROOT / "bench-results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}{part and f'-{part}'}.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def carry_out(work: Callable[[Path], Mapping[str, object]], out: Path) -> int:
    """Does the work in a folder that is its own, and saves what it found; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends every process, as Ctrl-C does
    for name in list(os.environ):
        if name.startswith(("DOCSUM_", "ANTHROPIC_")):
            del os.environ[name]  # the bench measures the defaults, and knows no key
    found = report.circumstances()
    with tempfile.TemporaryDirectory(prefix="docsum-bench-", ignore_cleanup_errors=True) as folder:
        try:
            found |= work(Path(folder).resolve())
        except (BenchFailed, DocsumError, subprocess.TimeoutExpired) as error:
            say(str(error))
            return 1
        except KeyboardInterrupt:
            return 130
    report.save(out, found)
    say(f"Written to {out}.")
    return 0
