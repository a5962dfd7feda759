"""How long the local model server takes for an answer."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes, in seconds from the moment it is billed."""

    draw: Callable[[random.Random], float]

    @classmethod
    def parse(cls, text: str) -> Latency:
        """Read `0.1`, `0.5..2.0` (even) or `lognormal:MEDIAN,P99`; raises ValueError."""
        if text.startswith("lognormal:"):
            median, p99 = (seconds(part) for part in text.removeprefix("lognormal:").split(","))
            if not 0 < median < p99:
                raise ValueError("lognormal needs 0 < MEDIAN < P99")
            spread = math.log(p99 / median) / 2.3263  # the 99th percentile of the normal distribution
            return cls(lambda chance: chance.lognormvariate(math.log(median), spread))
        low, between, high = text.partition("..")
        first, last = seconds(low), seconds(high if between else low)
        return cls(lambda chance: chance.uniform(first, last) if last else 0.0)


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("seconds must be zero or more")
    return value
