"""Every metric, declared once: name, kind, labels and a sentence. No label is unbounded."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Seconds; with its model call a delivery takes from a quarter of a second to two minutes.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The catalogue. One per process, on a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.documents = Counter(
            "docsum_documents",
            "Deliveries that ended, by original topic and outcome",
            ["topic", "outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "docsum_failures",
            "Deliveries that failed at a step, by stage and reason",
            ["stage", "reason"],
            registry=registry,
        )
        self.holds = Counter(
            "docsum_holds",
            "Times a delivery was held at its step because a dependency was in trouble, by reason",
            ["reason"],
            registry=registry,
        )
        self.held = Gauge(
            "docsum_held_documents", "Deliveries held at their step right now", registry=registry
        )
        self.in_flight = Gauge(
            "docsum_in_flight_documents", "Deliveries at work right now", registry=registry
        )
        self.partitions = Gauge(
            "docsum_worker_assigned_partitions", "Partitions that this worker owns", registry=registry
        )
        self.processing = Histogram(
            "docsum_processing_seconds",
            "Seconds from start of work on a delivery to its durable outcome",
            ["outcome"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.unstored = Gauge(
            "docsum_store_buffered_rows", "Rows that wait for the next flush", registry=registry
        )

    def follow(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let a gauge read its value when it is scraped."""
        gauge.set_function(read)
