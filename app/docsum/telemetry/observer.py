"""Turns what happens in the pipeline into metrics, log lines and the holds of a heartbeat."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from docsum.errors import REASONS, Disposition
from docsum.models import Coordinates, DeadLettered, Delivery, Failure, Outcome, Retried
from docsum.ports import Clock
from docsum.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_NAMES = {
    "Stored": "done",
    "Skipped": "skipped",
    "Retried": "retrying",
    "DeadLettered": "dead_lettered",
    "Held": "held",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """A delivery that waits at its step for a dependency."""

    failure: Failure
    since: datetime
    next_try: datetime


class WorkerObserver:
    """The observer of a worker: implements `ports.Observer`."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._started: dict[Coordinates, float] = {}
        self._holds: dict[Coordinates, Hold] = {}
        self._told: dict[str, float] = {}
        metrics.follow(metrics.held, lambda: len(self._holds))

    def started(self, delivery: Delivery) -> None:
        self._started[delivery.at] = time.monotonic()

    def ended(self, delivery: Delivery) -> None:
        """It left the worker, finished or let go."""
        self._started.pop(delivery.at, None)
        self._holds.pop(delivery.at, None)

    def finished(self, delivery: Delivery, outcome: Outcome) -> None:
        name = _NAMES[type(outcome).__name__]
        self._metrics.documents.labels(delivery.origin.topic, name).inc()
        begun = self._started.get(delivery.at)
        if begun is not None:
            self._metrics.processing.labels(name).observe(time.monotonic() - begun)
        if isinstance(outcome, Retried | DeadLettered):
            failure = outcome.failure
            self._metrics.failures.labels(failure.stage, failure.reason).inc()
            log.warning(
                "a document failed",
                action=name,
                reason=failure.reason,
                message=failure.message,
                stage=failure.stage,
                origin=str(delivery.origin),
                attempt=delivery.attempt,
                **({"stack": failure.stacktrace} if failure.stacktrace else {}),
            )

    def holding(self, delivery: Delivery, failure: Failure, wait: timedelta) -> None:
        now = self._clock.now()
        before = self._holds.get(delivery.at)
        since = before.since if before else now
        self._holds[delivery.at] = Hold(failure, since, now + wait)
        if before is None:
            self._metrics.holds.labels(failure.reason).inc()
        # A whole worker may be held by one outage: one line a reason every ten seconds says it.
        if time.monotonic() - self._told.get(failure.reason, -10.0) >= 10.0:
            self._told[failure.reason] = time.monotonic()
            log.warning(
                "waiting for a dependency",
                action="hold",
                reason=failure.reason,
                message=failure.message,
                stage=failure.stage,
                held=len(self._holds),
                since=since.isoformat(timespec="seconds"),
                next_try_seconds=round(wait.total_seconds(), 1),
            )

    def released(self, delivery: Delivery) -> None:
        if self._holds.pop(delivery.at, None) is not None and not self._holds:
            log.info("nothing waits any more", action="release")
            self._told.clear()

    def is_stopped(self) -> bool:
        """True while something waits for a person to correct the settings."""
        reasons = {hold.failure.reason for hold in self._holds.values()}
        return any(REASONS[reason].disposition is Disposition.STOP for reason in reasons)

    def holds(self) -> tuple[str, ...]:
        """One sentence for each reason that holds deliveries now: what a heartbeat says."""
        by_reason: dict[str, list[Hold]] = {}
        for hold in self._holds.values():
            by_reason.setdefault(hold.failure.reason, []).append(hold)
        return tuple(
            f"{len(holds)} held at {holds[0].failure.stage}: {reason} since"
            f" {min(hold.since for hold in holds):%H:%M:%S} UTC, next try"
            f" {min(hold.next_try for hold in holds):%H:%M:%S} UTC. {holds[0].failure.message}"
            for reason, holds in sorted(by_reason.items())
        )
