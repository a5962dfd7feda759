"""`python -m tests.bench.table bench-results/X.json ...`: what was measured as Markdown, for a README."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import intake, processes, report, store
from tests.bench.contenders import BY_ID
from tests.bench.measured import Measured
from tests.bench.stand import Load

_Found = Mapping[str, Any]  # Any: what report.save wrote


def markdown(found: _Found) -> Iterator[str]:
    """The lines: what it was measured on, then a table for each load."""
    versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
    yield (
        f"{found['date']}, commit {found['commit'][:10]}, {found['cores']} cores, Python {found['python']}"
        + (f", {versions}." if versions else ".")
    )
    for part, lines in _PARTS.items():
        if part in found:
            yield from ("", *lines(found[part]))


def _beside_peers(results: Sequence[_Found]) -> Iterator[str]:
    yield f"Medians of {len(results[0]['rounds'])} rounds, with the lowest and the highest."
    for result in results:
        yield from ("", *_table(result))


def _table(result: _Found) -> Iterator[str]:
    load = Load(result["latency"], result["documents"], result["in_flight"])
    rounds = [{name: Measured(**turn) for name, turn in turns.items()} for turns in result["rounds"]]
    yield from (f"{report.title(load)}:", "")
    yield report.markdown_row(("", *report.COLUMNS, "what is left after a kill"))
    yield report.markdown_row(("---", *["---:" for _ in report.COLUMNS], "---"))
    for name, cells in report.lines(rounds):
        yield report.markdown_row((BY_ID[name].title, *cells, BY_ID[name].keeps))


#: What a file may hold, by its name there.
_PARTS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "results": _beside_peers,
    "intake": intake.markdown,
    "store": store.markdown,
    "processes": processes.markdown,
}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    for number, path in enumerate(map(Path, sys.argv[1:])):
        print("\n" * bool(number) + "\n".join(markdown(json.loads(path.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
