"""The pure parts of the bench: ratios, tables, options, and what the contenders are given."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from docsum.local.model_requests import parse_ask
from tests.bench import report
from tests.bench.__main__ import arguments
from tests.bench.contenders import BY_ID, DOCSUM, RIVALS
from tests.bench.measured import Measured
from tests.bench.stand import Load, write_documents, write_requests
from tests.bench.table import markdown
from tests.support.deployment import ROOT

LOAD = Load(latency=0.1, documents=1000, in_flight=64)


def measured(rate: float) -> Measured:
    return Measured(1000, rate, cpu_ms=2.5, call_ms=(100.0, 110.0), added_ms=(0.0, 0.0), peak_mb=99.6)


def rounds_with(**rates: tuple[float, ...]) -> list[dict[str, Measured]]:
    turns = zip(*rates.values(), strict=True)
    return [dict(zip(rates, map(measured, turn), strict=True)) for turn in turns]


def test_a_ratio_is_of_one_round_and_not_of_medians() -> None:
    rounds = rounds_with(litellm=(100.0, 400.0, 50.0), docsum=(200.0, 200.0, 100.0))
    assert report.ratios(rounds, "litellm") == [2.0, 0.5, 2.0]
    assert dict(report.lines(rounds)) == {
        "litellm": ("100 (50-400)", "2.00 (0.50-2.00)", "2.50 (2.50-2.50)", "100"),
        "docsum": ("200 (100-200)", "", "2.50 (2.50-2.50)", "100"),
    }


def test_docsum_is_the_last_line_and_everyone_says_what_is_kept() -> None:
    assert [*BY_ID][-1] == DOCSUM
    assert DOCSUM not in RIVALS
    assert all(contender.keeps for contender in BY_ID.values())


def test_a_result_file_becomes_a_markdown_table() -> None:
    rounds = rounds_with(**dict.fromkeys(RIVALS, (100.0, 110.0)), docsum=(200.0, 220.0))
    found = {
        "date": "2026-11-28T20:00:00+00:00",
        "commit": "0123456789abcdef",
        "cores": 2,
        "python": "3.11.9",
        "versions": {"litellm": "1.110.2"},
        "results": [report.as_json(LOAD, rounds)],
    }
    lines = [*markdown(json.loads(json.dumps(found)))]
    assert (
        lines[0] == "2026-11-28T20:00:00+00:00, commit 0123456789, 2 cores, Python 3.11.9, litellm 1.110.2."
    )
    assert lines[4] == "0.1 s a call, 64 in flight, 1,000 documents a round:"
    table = lines[6:]
    assert table[0] == (
        "|  | documents/s | docsum / it | CPU ms/document | peak MB | what is left after a kill |"
    )
    assert "| litellm | 105 (100-110) | 2.00 (2.00-2.00) | 2.50 (2.50-2.50) | 100 | nothing |" in table
    assert len(table) == 2 + len(BY_ID)
    assert len({line.count("|") for line in table}) == 1


def test_a_result_from_before_the_peers_can_still_be_shown() -> None:
    old = {
        **asdict(LOAD),
        "rounds": [{name: asdict(measured(100.0)) for name in ("default", "aiohttp", "docsum")}],
    }
    found = {"date": "2026-11-01", "commit": "", "cores": 2, "python": "3.11.9", "results": [old]}
    assert len([line for line in markdown(found) if line.startswith("| ")]) == 2 + 3


def test_the_results_tell_which_peers_were_measured() -> None:
    versions = report.circumstances()["versions"]
    assert isinstance(versions, dict)
    assert versions.keys() == {"anthropic", "taskiq", "litellm", "async-batch-llm"}


def test_quick_is_one_short_load_and_what_is_said_besides_counts() -> None:
    quick = arguments(["--quick"])
    assert (quick.only, quick.rounds, quick.documents) == ("loops", 2, 1000)
    assert (quick.latency, quick.in_flight) == ([0.1], [64])
    assert arguments(["--quick", "--in-flight", "64,256"]).in_flight == [64, 256]
    assert arguments([]).in_flight == [256]


@pytest.mark.parametrize("wrong", ["0", "64,", "many", "64,-1"])
def test_calls_in_flight_are_whole_numbers(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--in-flight", wrong])
    assert "not a whole number above 0" in capsys.readouterr().err


def test_every_request_is_one_that_the_model_takes(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", 3)
    write_requests(tmp_path / "documents", "claude-haiku-5-5", tmp_path / "requests.jsonl")
    bodies = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    asked = [parse_ask(body, "2023-06-01").texts[-1] for body in bodies]
    assert all(f"Report {number}, documents." in text for number, text in enumerate(asked))
    # The peers hand the text over apart from the rest, which is therefore the same for all.
    assert len({json.dumps({**body, "messages": None}) for body in bodies}) == 1


@pytest.mark.parametrize("name", ["loop", "peers", "measured"])
def test_a_contender_imports_nothing_of_docsum(name: str) -> None:
    tree = ast.parse((ROOT / "tests" / "bench" / f"{name}.py").read_text())
    known = {"anthropic", "litellm", "taskiq", "async_batch_llm", "tests.bench.measured"}
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {
        each for each in imported - known if each and each.split(".")[0] not in sys.stdlib_module_names
    } == set()
