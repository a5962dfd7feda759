"""The rate limits of the local model server: token buckets, and the headers that tell of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from docsum.local.model_api import ApiError

#: What an unlimited account is told; nothing is taken from such a bucket.
UNLIMITED = {"requests": 1_000_000, "input-tokens": 10_000_000_000, "output-tokens": 10_000_000_000}
_ROUNDING = 1e-6  # of a request or token


class Bucket:
    """A token bucket: filled evenly to a minute's limit, of which one second's worth may go at once.

    The public API says that 60 a minute may be enforced as one a second. So does this one, from the first
    request on: a bucket that gives a full minute at once lets twice the limit through in its first minute.
    """

    __slots__ = ("_at", "_left", "_ready", "_second", "limit", "limited")

    def __init__(self, limit: int | None, shown: int, now: float) -> None:
        self.limited = limit is not None
        self.limit = shown if limit is None else limit
        self._second = max(1.0, self.limit / 60)
        self._left = float(self.limit)
        self._ready = self._second  # of what is left: what may go now
        self._at = now

    def left(self, now: float) -> float:
        """What is left of the minute; below zero after more was taken than was there."""
        filled = (now - self._at) * self.limit / 60
        self._left = min(self.limit, self._left + filled)
        self._ready = min(self._second, self._ready + filled)
        self._at = now
        return self._left

    def take(self, amount: int, now: float) -> None:
        if self.limited:
            self._left = self.left(now) - amount
            self._ready -= amount

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` can be taken; 60 where it never can.

        What is larger than a second's worth goes when that is full, and the next ones wait the debt off.
        """
        if not self.limited:
            return 0
        if amount > self.limit:
            return 60
        self.left(now)
        missing = min(amount, self._second) - self._ready
        return missing * 60 / self.limit if missing > _ROUNDING else 0

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
        self.rejected = 0  # requests that got a 429

    def admit(self, input_tokens: int, now: float) -> None:
        """Take a request and its input tokens, or raise a 429; output is charged when it is known."""
        if not self._enforced:
            return
        # One output token must be left: the answer then overdraws the bucket, as it does at the public API.
        needs = {"requests": 1, "input-tokens": input_tokens, "output-tokens": 1}
        waits = {name: self._buckets[name].wait(amount, now) for name, amount in needs.items()}
        name = max(waits, key=lambda key: waits[key])
        if waits[name]:
            self.rejected += 1
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
