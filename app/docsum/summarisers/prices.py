"""What a call costs, from a dated table. An unknown model is an error, never free."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any
from uuid import UUID

from docsum.errors import ModelUnknown
from docsum.models import Lane, Usage

_DATED = re.compile(r"-\d{8}$")  # a pinned snapshot costs what its model costs


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal

    def of(self, usage: Usage) -> Decimal:
        """Dollars, exactly."""
        total = self.input * usage.input_tokens + self.output * usage.output_tokens
        if usage.cache_read_tokens or usage.cache_write_tokens:
            total += self.cache_read * usage.cache_read_tokens + self.cache_write * usage.cache_write_tokens
        return total.scaleb(-6)


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The rates of a model, and the dearer ones of prompts over a threshold, where it has one."""

    base: Rates
    threshold: int = 0  # prompt tokens; 0 = none
    above: Rates | None = None

    def rates(self, prompt_tokens: int) -> Rates:
        return self.above if self.above is not None and prompt_tokens > self.threshold else self.base


@dataclass(frozen=True, slots=True)
class Prices:
    """The table, and its date."""

    version: str
    models: Mapping[str, ModelPrice]

    @classmethod
    def load(cls) -> Prices:
        """The table that comes with this version of docsum."""
        text = resources.files(__package__).joinpath("prices.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text, parse_float=Decimal)
        return cls(table["version"], {name: _price(row) for name, row in table["models"].items()})

    def of(self, model: str) -> ModelPrice:
        """Raises ModelUnknown, a ConfigurationError, for a model that the table does not have."""
        price = self.models.get(model) or self.models.get(_DATED.sub("", model))
        if price is None:
            known = ", ".join(self.models)
            raise ModelUnknown(f"There is no price for the model {model!r}: choose one of {known}.")
        return price

    def cost(self, model: str, usage: Usage, lane: Lane) -> Decimal:
        """US dollars for one call; the batch lane is half. Raises ModelUnknown."""
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        cost = self.of(model).rates(prompt).of(usage)
        return cost / 2 if lane is Lane.BATCH else cost


class OnTheirWay:
    """What was ordered and is not answered yet, in estimated US dollars by run; a free model's, too."""

    def __init__(self) -> None:
        self._runs: dict[UUID | None, tuple[int, Decimal]] = {}  # so many, and their cost

    def add(self, run_id: UUID | None, cost: Decimal) -> None:
        count, total = self._runs.get(run_id, (0, Decimal(0)))
        self._runs[run_id] = (count + 1, total + cost)

    def remove(self, run_id: UUID | None, cost: Decimal) -> None:
        """Raises KeyError for what was not added."""
        count, total = self._runs.pop(run_id)
        if count > 1:
            self._runs[run_id] = (count - 1, total - cost)

    def of(self, run_id: UUID | None) -> Decimal:
        """None: of everything."""
        if run_id is None:
            return sum((total for _, total in self._runs.values()), Decimal(0))
        return self._runs.get(run_id, (0, Decimal(0)))[1]


def _price(row: Mapping[str, Any]) -> ModelPrice:  # Any: TOML values
    above = row.get("above")
    return (
        ModelPrice(_rates(row))
        if above is None
        else ModelPrice(_rates(row), above["prompt_tokens"], _rates(above))
    )


def _rates(row: Mapping[str, Any]) -> Rates:  # Any: TOML values
    return Rates(row["input"], row["output"], row["cache_read"], row["cache_write"])
