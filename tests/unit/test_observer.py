"""What an operator is told: metrics, holds in words."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
import structlog

from docsum.errors import StoreUnavailable
from docsum.models import (
    Answer,
    Coordinates,
    DeadLettered,
    Failure,
    Lane,
    Rows,
    Skipped,
    SkipReason,
    Stored,
    Usage,
)
from docsum.telemetry import logs
from docsum.telemetry.metrics import HOLDS, WorkerMetrics
from docsum.telemetry.observer import WorkerObserver, trace_of
from docsum.topics import Topology
from tests.support.fakes import START, FakeClock, delivery, reference, summary

TOPOLOGY, MODEL, RUN = Topology(), "claude-haiku-5-5", UUID(int=7)
DOWN = Failure("store_unavailable", "ClickHouse cannot be reached.", "store", "StoreUnavailable")
KEY = Failure("model_key_rejected", "The provider answered 401.", "summarise", "ModelKeyRejected")


def test_holds_say_how_many_since_when_and_when_next() -> None:
    clock = FakeClock()
    observer = observer_of(WorkerMetrics(TOPOLOGY, MODEL), clock)
    for offset in range(3):
        observer.started(delivery(offset))
        observer.holding(delivery(offset), DOWN, timedelta(seconds=5))
    assert observer.holds() == (
        "3 held at store: store_unavailable since 12:00:00 UTC, next try 12:00:05 UTC."
        " ClickHouse cannot be reached.",
    )
    clock.advance(timedelta(seconds=5))
    observer.holding(delivery(0), DOWN, timedelta(seconds=10))
    assert "since 12:00:00 UTC" in observer.holds()[0]
    for offset in range(3):
        observer.released(delivery(offset))
    assert observer.holds() == ()


def test_a_delivery_that_is_let_go_holds_nothing_any_more() -> None:
    observer = observer_of()
    observer.started(delivery(0))
    observer.holding(delivery(0), DOWN, timedelta(seconds=5))
    observer.ended(delivery(0))
    assert observer.holds() == ()


def test_a_worker_is_stopped_while_it_holds_for_a_setting_and_not_in_an_outage() -> None:
    observer = observer_of()
    observer.holding(delivery(0), DOWN, timedelta(seconds=5))
    assert not observer.is_stopped()
    observer.holding(delivery(1), KEY, timedelta(seconds=5))
    observer.holding(delivery(2), KEY, timedelta(seconds=5))
    observer.released(delivery(1))
    assert observer.is_stopped()
    observer.ended(delivery(2))
    assert not observer.is_stopped()


def test_outcomes_are_counted_by_topic_and_reason_and_no_label_grows_with_documents() -> None:
    metrics = WorkerMetrics(TOPOLOGY, MODEL)
    observer, value = observer_of(metrics), metrics.registry.get_sample_value
    before = series(metrics)
    failed = DeadLettered(Failure("encrypted", "The PDF needs a password.", "extract", "Encrypted"))
    for offset in range(50):
        outcome = failed if offset == 0 else Skipped(SkipReason.UNCHANGED)
        observer.started(delivery(offset))
        observer.finished(delivery(offset), outcome)
        observer.ended(delivery(offset))
    assert value("docsum_documents_total", {"topic": "docsum.documents", "outcome": "skipped"}) == 49
    assert value("docsum_failures_total", {"outcome": "dead_lettered", "reason": "encrypted"}) == 1
    assert series(metrics) == before


def test_a_forged_origin_makes_no_label() -> None:
    metrics = WorkerMetrics(TOPOLOGY, MODEL)
    observer, before = observer_of(metrics), series(metrics)
    for number in range(20):
        forged = delivery(number, origin=Coordinates(f"made-up-{number}", 0, 0))
        observer.finished(forged, Skipped(SkipReason.UNCHANGED))
    assert metrics.registry.get_sample_value(
        "docsum_documents_total", {"topic": "other", "outcome": "skipped"}
    ) == pytest.approx(20)
    assert series(metrics) == before


def test_the_age_of_a_summary_counts_from_its_first_publication_and_not_for_replays() -> None:
    metrics, clock = WorkerMetrics(TOPOLOGY, MODEL), FakeClock()
    observer, stored = observer_of(metrics, clock), Stored(summary(), "v1")
    clock.advance(timedelta(seconds=90))
    observer.finished(delivery(0, topic="docsum.retry.30s", origin=delivery(7).at), stored)
    observer.finished(delivery(1, replay_count=1), stored)
    observer.finished(delivery(2), Stored(None, "", redelivered=True))
    value = metrics.registry.get_sample_value
    assert value("docsum_end_to_end_seconds_count", {"lane": "live"}) == 1
    assert value("docsum_end_to_end_seconds_sum", {"lane": "live"}) == 90
    assert value("docsum_end_to_end_seconds_bucket", {"lane": "live", "le": "120.0"}) == 1
    assert value("docsum_end_to_end_seconds_bucket", {"lane": "live", "le": "60.0"}) == 0


def test_money_and_tokens_are_counted_when_their_rows_are_stored() -> None:
    metrics = WorkerMetrics(TOPOLOGY, MODEL)
    observer, value = observer_of(metrics), metrics.registry.get_sample_value
    rows = Rows(answers=(paid("0.25", Usage(1000, 200)), paid("0.5", Usage(10, 20, cache_read_tokens=5))))
    observer.flushed(rows, 0.02, StoreUnavailable())
    labels = {"lane": "live", "model": MODEL}
    assert value("docsum_model_cost_usd_total", labels) == 0
    assert value("docsum_store_flush_failures_total", {"reason": "store_unavailable"}) == 1
    observer.flushed(rows, 0.02, None)
    assert value("docsum_model_cost_usd_total", labels) == 0.75
    assert value("docsum_model_tokens_total", {**labels, "type": "input"}) == 1010
    assert value("docsum_model_tokens_total", {**labels, "type": "cache_read"}) == 5
    assert value("docsum_store_rows_total", {"table": "answers"}) == 2
    assert value("docsum_store_flush_duration_seconds_count") == 1


def test_calls_are_counted_by_how_they_ended() -> None:
    metrics = WorkerMetrics(TOPOLOGY, MODEL)
    observer, value, before = observer_of(metrics), metrics.registry.get_sample_value, series(metrics)
    for reason in ("ok", "ok", "truncated", "rate_limited", "model_faltered"):
        observer.called(Lane.BACKFILL, reason, 1.5)
    counted = {
        (outcome, reason): value(
            "docsum_model_requests_total", {"lane": "backfill", "outcome": outcome, "reason": reason}
        )
        for outcome, reason in (
            ("ok", "ok"),
            ("unusable", "truncated"),
            ("rate_limited", "rate_limited"),
            ("failed", "model_faltered"),
        )
    }
    assert [*counted.values()] == [2, 1, 1, 1]
    assert value("docsum_model_request_duration_seconds_sum", {"lane": "backfill", "outcome": "ok"}) == 3.0
    assert series(metrics) == before


def test_what_is_held_is_counted_by_reason() -> None:
    metrics = WorkerMetrics(TOPOLOGY, MODEL)
    observer, value = observer_of(metrics), metrics.registry.get_sample_value
    observer.holding(delivery(0), DOWN, timedelta(seconds=5))
    observer.holding(delivery(1), DOWN, timedelta(seconds=5))
    observer.holding(delivery(2), KEY, timedelta(seconds=5))
    held = {reason: value("docsum_held_documents", {"reason": reason}) for reason in HOLDS}
    assert {reason: count for reason, count in held.items() if count} == {
        "store_unavailable": 2,
        "model_key_rejected": 1,
    }
    assert value("docsum_holds_total", {"reason": "store_unavailable"}) == 2


TRACEPARENT = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


@contextmanager
def logging_as_a_worker_does() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.contextvars.clear_contextvars()
    logs.configure("info", "json")
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_the_log_lines_of_a_delivery_say_which_one_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(number: int) -> None:
        mine = delivery(number, partition=3, attempt=2, headers=(TRACEPARENT,))
        observer.started(mine)
        observer.decoded(reference(f"doc-{number}", run_id=RUN))
        await asyncio.sleep(0)  # the other one has its turn
        structlog.get_logger("anywhere").warning("something happened")

    async def both() -> None:
        await asyncio.gather(work(10), work(11))
        structlog.get_logger("elsewhere").warning("of no delivery")

    observer = observer_of()
    with logging_as_a_worker_does():
        asyncio.run(both())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for line, number in zip(lines, (10, 11), strict=False):
        told = {name: line[name] for name in ("run", "document", "topic", "partition", "offset")}
        assert told == {
            "run": str(RUN),
            "document": f"doc-{number}",
            "topic": "docsum.documents",
            "partition": 3,
            "offset": number,
        }
        assert (line["attempt"], line["trace"]) == (2, "4bf92f3577b34da6a3ce929d0e0e4736")
    assert not {"document", "offset", "trace"} & lines[2].keys()


@pytest.mark.parametrize("value", [None, b"", b"00-xyz-1-01", b"\xff" * 55, b"00-4bf92f3577b34da6-1-01"])
def test_a_broken_traceparent_is_no_trace(value: bytes | None) -> None:
    assert trace_of(delivery(headers=(("traceparent", value),))) == ""


def observer_of(metrics: WorkerMetrics | None = None, clock: FakeClock | None = None) -> WorkerObserver:
    return WorkerObserver(metrics or WorkerMetrics(TOPOLOGY, MODEL), clock or FakeClock(), TOPOLOGY)


def series(metrics: WorkerMetrics) -> int:
    """Of ours: what Linux says of the process may come and go."""
    families = metrics.registry.collect()
    return sum(len(family.samples) for family in families if family.name.startswith("docsum_"))


def paid(cost: str, usage: Usage) -> Answer:
    return Answer("f" * 64, "msg", MODEL, "{}", usage, Decimal(cost), "1", "ok", START, 1, "doc-1")
