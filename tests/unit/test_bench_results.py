"""The pure parts of the bench of results: ratios and the table."""

from __future__ import annotations

import json
from dataclasses import asdict

from tests.bench.report import markdown
from tests.bench.results import TOLD, UNTOLD, ratios, tables
from tests.bench.scaling import Turn


def turn(rate: float, cpu_ms: float) -> Turn:
    others = {"broker": 0.1, "engine host": 1.5, "model server": 0.4}
    return Turn(1, 6_000, [6_000], rate, cpu_ms, others, [160.0], dict.fromkeys(others, 200.0))


ROUNDS = [
    {UNTOLD: turn(400, 2.0), TOLD: turn(380, 2.2)},
    {UNTOLD: turn(300, 2.1), TOLD: turn(297, 2.3)},
]


def test_a_ratio_is_of_the_two_turns_of_a_round() -> None:
    assert ratios(ROUNDS) == [0.95, 0.99]


def test_what_was_found_becomes_a_table() -> None:
    rounds = [{name: asdict(each) for name, each in turns.items()} for turns in ROUNDS]
    found = json.loads(json.dumps({"latency": 0.1, "in_flight": 128, "documents": 6_000, "rounds": rounds}))
    assert [*markdown(tables(found))] == [
        "0.1 s a call, 128 in flight, 6,000 documents a round:",
        "",
        "|  | documents/s | told / untold | CPU ms/document: worker | broker | engine host |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| no results | 350 (300-400) |  | 2.05 (2.00-2.10) | 0.10 | 1.50 |",
        "| results | 338 (297-380) | 0.97 (0.95-0.99) | 2.25 (2.20-2.30) | 0.10 | 1.50 |",
    ]
