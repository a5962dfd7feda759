"""What a call costs."""

from __future__ import annotations

import re
from decimal import Decimal
from uuid import uuid4

import pytest

from docsum.errors import ConfigurationError
from docsum.models import Lane, Recipe, Usage
from docsum.settings import Model
from docsum.summarisers.prices import OnTheirWay, Prices

PRICES = Prices.load()


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        ("claude-haiku-5-5", Usage(3_000, 300), "0.00045"),
        ("claude-haiku-5-5", Usage(99_000, 1_000), "0.0104"),
        ("claude-haiku-5-5", Usage(100_000, 0), "0.01"),
        ("claude-haiku-5-5", Usage(101_000, 1_000), "0.053"),
        ("claude-haiku-5-5", Usage(1_000, 0, cache_read_tokens=100_000), "0.0055"),  # cached tokens count
        ("claude-haiku-5-5", Usage(1_000, 0, 1_000, 1_000), "0.000235"),
        ("claude-sonnet-5-5", Usage(3_000, 300), "0.009"),
        ("claude-haiku-4-5-20251001", Usage(1_000_000, 0), "1"),
        ("local-extractive-1", Usage(1_000_000, 1_000_000), "0"),
    ],
)
def test_a_call_costs_what_the_table_says(model: str, usage: Usage, dollars: str) -> None:
    assert (
        PRICES.cost(model, usage, Lane.LIVE) == PRICES.cost(model, usage, Lane.BACKFILL) == Decimal(dollars)
    )
    assert PRICES.cost(model, usage, Lane.BATCH) == Decimal(dollars) / 2


def test_a_million_documents_cost_what_was_planned() -> None:
    assert 1_000_000 * PRICES.cost("claude-haiku-5-5", Usage(3_000, 300), Lane.BATCH) == 225


def test_an_unknown_model_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'gpt-9'.*claude-haiku-5-5.*local-extractive-1"):
        PRICES.cost("gpt-9", Usage(1, 1), Lane.LIVE)


def test_the_table_is_dated_and_has_the_default_model() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", PRICES.version)
    default = Model().name
    assert PRICES.of(default).base.input > 0
    assert PRICES.of(Recipe("local-extractive-1").model).base.input == 0


@pytest.mark.parametrize("model", list(PRICES.models))
def test_every_price_fits_the_column_without_rounding(model: str) -> None:
    cost = PRICES.cost(model, Usage(1, 1, 1), Lane.BATCH)
    assert cost == cost.quantize(Decimal("1E-9"))


def test_what_is_on_its_way_is_counted_by_run_whatever_it_costs() -> None:
    run, other, tally = uuid4(), uuid4(), OnTheirWay()
    for run_id, cost in ((run, "0.25"), (run, "0.5"), (other, "0"), (other, "0"), (None, "1")):
        tally.add(run_id, Decimal(cost))
    assert [*map(tally.of, (run, other, None))] == [Decimal("0.75"), Decimal(0), Decimal("1.75")]
    for run_id, cost in ((run, "0.25"), (other, "0"), (other, "0"), (None, "1")):
        tally.remove(run_id, Decimal(cost))
    assert [*map(tally.of, (run, other, None))] == [Decimal("0.5"), Decimal(0), Decimal("0.5")]
    with pytest.raises(KeyError):
        tally.remove(other, Decimal(0))
