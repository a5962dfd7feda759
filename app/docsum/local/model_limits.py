"""The rate limits of the local model server: token buckets, and the headers that tell of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from docsum.local.model_api import ApiError

#: What an unlimited account is told; nothing is taken from such a bucket.
UNLIMITED = {"requests": 1_000_000, "input-tokens": 10_000_000_000, "output-tokens": 10_000_000_000}


class Bucket:
    """A token bucket: full at the start, filled again evenly over a minute."""

    __slots__ = ("_at", "_left", "limit", "limited")

    def __init__(self, limit: int | None, shown: int, now: float) -> None:
        self.limited = limit is not None
        self.limit = shown if limit is None else limit
        self._left = float(self.limit)
        self._at = now

    def left(self, now: float) -> float:
        """What may be taken now; below zero after more was taken than was there."""
        self._left = min(self.limit, self._left + (now - self._at) * self.limit / 60)
        self._at = now
        return self._left

    def take(self, amount: int, now: float) -> None:
        if self.limited:
            self._left = self.left(now) - amount

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` can be taken; 60 where it never can."""
        if not self.limited or amount <= self.left(now):
            return 0
        return (amount - self.left(now)) * 60 / self.limit if amount <= self.limit else 60

    def full_after(self, now: float) -> float:
        """Seconds until it is full."""
        return (self.limit - self.left(now)) * 60 / self.limit


class RateLimits:
    """Requests, input tokens and output tokens per minute, and the headers that tell of them."""

    def __init__(
        self, requests: int | None, input_tokens: int | None, output_tokens: int | None, now: float
    ) -> None:
        limits = zip(UNLIMITED.items(), (requests, input_tokens, output_tokens), strict=True)
        self._buckets = {name: Bucket(limit, shown, now) for (name, shown), limit in limits}
        self._enforced = any(bucket.limited for bucket in self._buckets.values())
        self._told: tuple[int, dict[str, str]] = (-1, {})

    def admit(self, input_tokens: int, now: float) -> None:
        """Take a request and its input tokens, or raise a 429; output is charged when it is known."""
        if not self._enforced:
            return
        # One output token must be left: the answer then overdraws the bucket, as it does at the public API.
        needs = {"requests": 1, "input-tokens": input_tokens, "output-tokens": 1}
        waits = {name: self._buckets[name].wait(amount, now) for name, amount in needs.items()}
        name = max(waits, key=lambda key: waits[key])
        if waits[name]:
            limit, unit = self._buckets[name].limit, name.replace("-", " ")
            message = f"This request would exceed your rate limit of {limit:,} {unit} per minute."
            raise ApiError(429, "rate_limit_error", message, retry_after=math.ceil(waits[name]))
        self._buckets["requests"].take(1, now)
        self._buckets["input-tokens"].take(input_tokens, now)

    def charge(self, output_tokens: int, now: float) -> None:
        self._buckets["output-tokens"].take(output_tokens, now)

    def headers(self, now: float, wall: float) -> Mapping[str, str]:
        """The `anthropic-ratelimit-*` headers; tokens are rounded to thousands, `wall` is a Unix time."""
        if not self._enforced and self._told[0] == int(wall):
            return self._told[1]  # nothing moves but the clock
        told: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            told |= limit_headers(name, bucket.limit, bucket.left(now), wall + bucket.full_after(now))
        both = [self._buckets["input-tokens"], self._buckets["output-tokens"]]
        reset = wall + max(bucket.full_after(now) for bucket in both)
        told |= limit_headers("tokens", sum(b.limit for b in both), sum(b.left(now) for b in both), reset)
        self._told = (int(wall), told)
        return told


def limit_headers(name: str, limit: int, left: float, reset: float) -> dict[str, str]:
    remaining = max(0, math.floor(left)) if name == "requests" else max(0, round(left, -3))
    prefix = f"anthropic-ratelimit-{name}"
    return {
        f"{prefix}-limit": str(limit),
        f"{prefix}-remaining": str(int(remaining)),
        f"{prefix}-reset": datetime.fromtimestamp(math.ceil(reset), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
