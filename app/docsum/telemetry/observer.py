"""Turns what happens in a worker into metrics, log lines and the holds of a heartbeat."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from docsum.errors import REASONS, Disposition, DocsumError, row_of
from docsum.models import (
    Coordinates,
    DeadLettered,
    Delivery,
    DocumentReference,
    Failure,
    Lane,
    Outcome,
    Retried,
    Rows,
    Stored,
    to_ms,
)
from docsum.ports import Clock
from docsum.telemetry.metrics import CALLS, HOLDS, OTHER, TABLES, TOKENS, WorkerMetrics
from docsum.topics import Topology

log = structlog.get_logger(__name__)

_NAMES = {
    "Stored": "done",
    "Skipped": "skipped",
    "Retried": "retrying",
    "DeadLettered": "dead_lettered",
    "Held": "held",
}
_OUTCOME_OF_CALL = {reason: outcome for outcome, reasons in CALLS.items() for reason in reasons}
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Hold:
    """A delivery that waits at its step for a dependency."""

    failure: Failure
    since: datetime
    next_try: datetime


class WorkerObserver:
    """The observer of a worker: implements `ports.Observer`, and hears of calls and inserts."""

    def __init__(self, metrics: WorkerMetrics, clock: Clock, topology: Topology) -> None:
        self._metrics = metrics
        self._clock = clock
        self._topology = topology
        self._started: dict[Coordinates, float] = {}
        self._holds: dict[Coordinates, Hold] = {}
        self._told: dict[str, float] = {}
        for reason in HOLDS:
            metrics.follow(metrics.held.labels(reason), self._held_by(reason))

    def _held_by(self, reason: str) -> Callable[[], float]:
        return lambda: sum(hold.failure.reason == reason for hold in self._holds.values())

    # -- deliveries --------------------------------------------------------------------------------------

    def started(self, delivery: Delivery) -> None:
        """Whatever the delivery's task writes to the log from here on says which one it is."""
        self._started[delivery.at] = time.monotonic()
        at, trace = delivery.at, trace_of(delivery)
        structlog.contextvars.bind_contextvars(
            topic=at.topic,
            partition=at.partition,
            offset=at.offset,
            attempt=delivery.attempt,
            **({"trace": trace} if trace else {}),
        )

    def decoded(self, reference: DocumentReference) -> None:
        """And which document, of which run."""
        run = {"run": str(reference.run_id)} if reference.run_id else {}
        structlog.contextvars.bind_contextvars(document=reference.document_id, **run)

    def ended(self, delivery: Delivery) -> None:
        """It left the worker, finished or let go."""
        self._started.pop(delivery.at, None)
        self._holds.pop(delivery.at, None)

    def finished(self, delivery: Delivery, outcome: Outcome) -> None:
        name = _NAMES[type(outcome).__name__]
        metrics, topic = self._metrics, delivery.origin.topic
        # Where it came from first, a header says: that may be forged.
        metrics.documents.labels(topic if topic in metrics.topics else OTHER, name).inc()
        begun = self._started.get(delivery.at)
        if begun is not None:
            metrics.processing.labels(name).observe(time.monotonic() - begun)
        if isinstance(outcome, Stored):
            self._note_stored(delivery, outcome)
        if isinstance(outcome, Retried | DeadLettered):
            failure = outcome.failure
            metrics.failures.labels(name, failure.reason).inc()
            log.warning(
                "a document failed",
                action=name,
                reason=failure.reason,
                message=failure.message,
                stage=failure.stage,
                origin=str(delivery.origin),
                **({"stack": failure.stacktrace} if failure.stacktrace else {}),
            )

    def _note_stored(self, delivery: Delivery, outcome: Stored) -> None:
        """A redelivery was stored before, and the age of a replay is a person's decision."""
        if outcome.redelivered or delivery.replay_count:
            return
        lane = self._topology.lane_of(delivery.origin.topic)
        # From the publication, not from `occurred_at`: that may be years ago where a producer says so.
        age = to_ms(self._clock.now()) - delivery.origin_timestamp_ms
        self._metrics.end_to_end.labels(lane.value).observe(max(0, age) / 1000)
        if outcome.summary is not None and outcome.summary.reused:
            self._metrics.reused.labels(lane.value).inc()

    def guarded(self, delivery: Delivery, failure: Failure) -> None:
        self._metrics.guard_trips.labels(failure.reason).inc()
        log.error(
            "the guard has paused what this document is of",
            action="pause",
            reason=failure.reason,
            message=failure.message,
            stage=failure.stage,
        )

    # -- calls and inserts -------------------------------------------------------------------------------

    def called(self, lane: Lane, reason: str, seconds: float) -> None:
        """A request at the model has ended: with an answer of this status, or a failure of this reason."""
        outcome = _OUTCOME_OF_CALL.get(reason, "failed")
        self._metrics.calls.labels(lane.value, outcome, reason).inc()
        self._metrics.call_seconds.labels(lane.value, outcome).observe(seconds)

    def flushed(self, rows: Rows, seconds: float, error: DocsumError | None) -> None:
        """An insert has ended. Money is counted when its row of the ledger is durable."""
        metrics = self._metrics
        if error is not None:
            metrics.flush_failures.labels(row_of(error).reason).inc()
            return
        metrics.flush_seconds.observe(seconds)
        for table in TABLES:
            if part := getattr(rows, table):
                metrics.rows.labels(table).inc(len(part))
        for answer in rows.answers:
            labels, usage = (answer.lane.value, answer.model), answer.usage
            metrics.cost.labels(*labels).inc(float(answer.cost))
            for kind in TOKENS:
                if tokens := getattr(usage, f"{kind}_tokens"):
                    metrics.tokens.labels(*labels, kind).inc(tokens)

    # -- holds -------------------------------------------------------------------------------------------

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


def trace_of(delivery: Delivery) -> str:
    """The trace id that the producer has sent (W3C Trace Context), empty without one."""
    for name, value in delivery.headers:
        if name.lower() == "traceparent":
            match = _TRACE.fullmatch(value or b"")
            return match[1].decode() if match else ""
    return ""
