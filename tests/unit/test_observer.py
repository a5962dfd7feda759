"""What an operator is told: metrics, holds in words."""

from __future__ import annotations

from datetime import timedelta

from docsum.models import DeadLettered, Failure, Skipped, SkipReason
from docsum.telemetry.metrics import Metrics
from docsum.telemetry.observer import WorkerObserver
from tests.support.fakes import FakeClock, delivery

DOWN = Failure("store_unavailable", "ClickHouse cannot be reached.", "store", "StoreUnavailable")
KEY = Failure("model_key_rejected", "The provider answered 401.", "summarise", "ModelKeyRejected")


def test_holds_say_how_many_since_when_and_when_next() -> None:
    clock = FakeClock()
    observer = WorkerObserver(Metrics(), clock)
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
    observer = WorkerObserver(Metrics(), FakeClock())
    observer.started(delivery(0))
    observer.holding(delivery(0), DOWN, timedelta(seconds=5))
    observer.ended(delivery(0))
    assert observer.holds() == ()


def test_a_worker_is_stopped_while_it_holds_for_a_setting_and_not_in_an_outage() -> None:
    observer = WorkerObserver(Metrics(), FakeClock())
    observer.holding(delivery(0), DOWN, timedelta(seconds=5))
    assert not observer.is_stopped()
    observer.holding(delivery(1), KEY, timedelta(seconds=5))
    observer.holding(delivery(2), KEY, timedelta(seconds=5))
    observer.released(delivery(1))
    assert observer.is_stopped()
    observer.ended(delivery(2))
    assert not observer.is_stopped()


def test_outcomes_are_counted_by_topic_and_reason_and_no_label_grows_with_documents() -> None:
    metrics = Metrics()
    observer = WorkerObserver(metrics, FakeClock())
    failed = DeadLettered(Failure("encrypted", "The PDF needs a password.", "extract", "Encrypted"))
    for offset in range(50):
        outcome = failed if offset == 0 else Skipped(SkipReason.UNCHANGED)
        observer.started(delivery(offset))
        observer.finished(delivery(offset), outcome)
        observer.ended(delivery(offset))
    value = metrics.registry.get_sample_value
    assert value("docsum_documents_total", {"topic": "docsum.documents", "outcome": "skipped"}) == 49
    assert value("docsum_failures_total", {"stage": "extract", "reason": "encrypted"}) == 1
    series = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert len(series) < 40
