"""Every metric, declared once: name, kind, labels and a sentence. No label is unbounded.

A worker tells what it does itself (`WorkerMetrics`), the API what is true of the whole deployment, from the
offsets of the broker and the rows of the store (`DEPLOYMENT`), so that it is told while no worker lives.
Series are made at start wherever their labels are known: a rate over a series that begins with its first
event does not see that event. The names and labels are public; `deploy/README.md` lists them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import GaugeMetricFamily

from docsum import __version__
from docsum.errors import REASONS, Disposition
from docsum.health import Health
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    OPEN_BATCHES,
    Backlog,
    ControlState,
    Lane,
    OpenBatches,
    State,
    WorkerStatus,
)
from docsum.topics import RETRY, Topology, lane_of

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, which nobody reads

#: Seconds; with its model call a delivery takes from a quarter of a second to two minutes.
WORK = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
#: Seconds; 300 is the target age of the alerts.
AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)
FLUSHES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
#: Of topics that a forged header names: whatever it says is no label.
OTHER = "other"
#: How deliveries end; a rest with a paused run is one end of a delivery.
OUTCOMES = tuple(
    state.value for state in (State.DONE, State.SKIPPED, State.RETRYING, State.DEAD_LETTERED, State.HELD)
)
FAILED = (State.RETRYING.value, State.DEAD_LETTERED.value)
#: Why a delivery may be held at its step.
HOLDS = tuple(
    reason
    for reason, row in REASONS.items()
    if row.disposition in (Disposition.HOLD, Disposition.PAUSE, Disposition.STOP)
)
#: How requests at the model end: by the status of the answer, or the reason of the failure.
CALLS: Mapping[str, tuple[str, ...]] = {
    "ok": ("ok",),
    "unusable": ("invalid", "truncated", "refused"),
    "rate_limited": ("rate_limited",),
    "failed": (
        "model_faltered",
        "model_unreachable",
        "account_blocked",
        "model_key_rejected",
        "model_unknown",
        "model_rejected",
        "model_failed",
        "too_long",
        "internal_error",
    ),
}
GUARDED = ("extractor_crashed", "invalid_answer", "model_rejected", "model_unknown")
TOKENS = ("input", "output", "cache_read", "cache_write")  # of `Usage`, there followed by `_tokens`
TABLES = ("answers", "summaries", "run_documents", "dead_letters", "failures")  # the fields of `Rows`
UNITS = ("requests", "input_tokens", "output_tokens")
BREAKERS = ("model", "source")
WORKERS = ("alive", "silent", "stopped")
LANES = tuple(lane.value for lane in Lane)
PLACE = ("topic", "partition", "lane")  # the lane of retry topics is `retry`

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as the documentation has it."""

    name: str  # as it is scraped; of a histogram without its suffixes
    kind: str
    labels: tuple[str, ...]
    meaning: str


class _Metrics:
    """A registry, and what is told by every process of ours."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Described] = []
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes and its like, on Linux
        build = self._gauge("docsum_build_info", "1; its label is the version", {"version": (__version__,)})
        build.labels(__version__).set(1)

    def follow(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let a gauge read its value when it is scraped."""
        gauge.set_function(read)

    def _counter(self, name: str, meaning: str, labels: Mapping[str, Iterable[str]] | None = None) -> Counter:
        return self._made(Counter(name, meaning, [*(labels or ())], registry=self.registry), name, labels)

    def _gauge(self, name: str, meaning: str, labels: Mapping[str, Iterable[str]] | None = None) -> Gauge:
        return self._made(Gauge(name, meaning, [*(labels or ())], registry=self.registry), name, labels)

    def _histogram(
        self,
        name: str,
        meaning: str,
        buckets: tuple[float, ...],
        labels: Mapping[str, Iterable[str]] | None = None,
    ) -> Histogram:
        made = Histogram(name, meaning, [*(labels or ())], buckets=buckets, registry=self.registry)
        return self._made(made, name, labels)

    def _made(self, metric: M, name: str, labels: Mapping[str, Iterable[str]] | None) -> M:
        """Notes it down and makes the series of all known labels: none where a label has no known values."""
        if labels:
            for values in product(*labels.values()):
                metric.labels(*values)
        (family,) = metric.describe()
        self.described.append(Described(name, family.type, tuple(labels or ()), family.documentation))
        return metric


class WorkerMetrics(_Metrics):
    """What one worker tells."""

    def __init__(self, topology: Topology, model: str) -> None:
        super().__init__()
        inputs = (topology.documents, *topology.inputs, topology.backfill, topology.batch)
        self.topics = frozenset(inputs)
        topics, each_lane = (*inputs, OTHER), {"lane": LANES}
        self.documents = self._counter(
            "docsum_documents_total",
            "Deliveries that ended, by their original topic",
            {"topic": topics, "outcome": OUTCOMES},
        )
        self.failures = self._counter(
            "docsum_failures_total",
            "Deliveries that failed, by reason, and what became of them",
            {"outcome": FAILED, "reason": REASONS},
        )
        self.end_to_end = self._histogram(
            "docsum_end_to_end_seconds",
            "Seconds from an event's first publication to its stored summary; replays are left out",
            AGES,
            each_lane,
        )
        self.processing = self._histogram(
            "docsum_processing_seconds",
            "Seconds from the start of work on a delivery to its durable outcome, holds included",
            WORK,
            {"outcome": OUTCOMES},
        )
        self.in_flight = self._gauge("docsum_in_flight_documents", "Deliveries at work right now")
        self.holds = self._counter(
            "docsum_holds_total",
            "Times a delivery began to wait at its step because of everyone's trouble",
            {"reason": HOLDS},
        )
        self.held = self._gauge(
            "docsum_held_documents", "Deliveries that wait at their step right now", {"reason": HOLDS}
        )
        self.breakers = self._gauge(
            "docsum_open_breakers",
            "Dependencies that count as out of order: models, and hosts or buckets of documents",
            {"kind": BREAKERS},
        )
        self.guard_trips = self._counter(
            "docsum_guard_trips_total",
            "Times the flood guard paused a run, or the live events, in place of a failure",
            {"reason": GUARDED},
        )
        self._declare_model(model)
        self._declare_store()
        self.partitions = self._gauge(
            "docsum_worker_assigned_partitions", "Partitions of all topics that this worker owns"
        )
        self.member = self._gauge("docsum_worker_member", "1 while this worker is a member of its group")
        self.rebalances = self._counter(
            "docsum_rebalances_total", "Times this worker was given its partitions anew"
        )
        self.expired = self._counter(
            "docsum_expired_messages_total",
            "Records that retention had deleted before they were finished, found when a partition was taken",
            {"topic": (*inputs, *topology.retries)},
        )

    def _declare_model(self, model: str) -> None:
        each_lane = {"lane": LANES}
        self.calls = self._counter(
            "docsum_model_requests_total",
            "Requests that ended at the model; those of batches are not among them",
            {**each_lane, "outcome": (), "reason": ()},
        )
        for lane, (outcome, reasons) in product(LANES, CALLS.items()):
            for reason in reasons:
                self.calls.labels(lane, outcome, reason)
        self.call_seconds = self._histogram(
            "docsum_model_request_duration_seconds",
            "Seconds from sending a request to its last byte",
            WORK,
            {**each_lane, "outcome": CALLS},
        )
        self.cost = self._counter(
            "docsum_model_cost_usd_total",
            "US dollars of the answers that this worker has stored, from the price table",
            {**each_lane, "model": (model,)},
        )
        self.tokens = self._counter(
            "docsum_model_tokens_total",
            "Tokens of those answers, as the provider counted them",
            {**each_lane, "model": (model,), "type": TOKENS},
        )
        self.reused = self._counter(
            "docsum_model_reused_answers_total",
            "Summaries that were made of answers which were there already, and cost nothing",
            each_lane,
        )
        self.calls_now = self._gauge("docsum_model_requests_in_flight", "Requests at the model right now")
        self.calls_waiting = self._gauge(
            "docsum_model_requests_waiting", "Requests that wait for a place or for the limits"
        )
        self.places = self._gauge(
            "docsum_model_concurrency_limit", "Requests that this worker may have in flight, for now"
        )
        self.retry_after = self._gauge(
            "docsum_model_retry_after_seconds", "For so long no request starts: the provider asked for it"
        )
        self.limits = self._gauge(
            "docsum_model_limit_per_minute",
            "This worker's share of the limits; 0 where there is none, or none is known yet",
            {"unit": UNITS},
        )
        self.used = self._gauge(
            "docsum_model_used_per_minute",
            "What of them it took in the last minute; 0 where nothing is counted",
            {"unit": UNITS},
        )

    def _declare_store(self) -> None:
        self.flush_seconds = self._histogram(
            "docsum_store_flush_duration_seconds", "Seconds that an insert took which worked", FLUSHES
        )
        self.rows = self._counter("docsum_store_rows_total", "Rows that were stored", {"table": TABLES})
        self.flush_failures = self._counter(
            "docsum_store_flush_failures_total",
            "Inserts that failed; they are sent again, but for refused rows",
            {"reason": ("store_unavailable", "store_misconfigured", "row_refused", "store_failed")},
        )
        self.unstored = self._gauge(
            "docsum_store_buffered_rows", "Documents and answers that wait to be stored"
        )
        self.store_down = self._gauge(
            "docsum_store_unavailable", "1 while this worker cannot store anything, and buys nothing"
        )


#: What the API tells of everything. Whatever could not be learned has no series.
DEPLOYMENT = tuple(
    Described(name, "gauge", labels, meaning)
    for name, labels, meaning in (
        ("docsum_dependency_up", ("dependency",), "1 when it has answered the API in time"),
        ("docsum_consumer_lag_messages", PLACE, "Records that the group has not finished"),
        (
            "docsum_committed_offset",
            PLACE,
            "Where the group is: its committed offset, or the start of the log where that is later",
        ),
        (
            "docsum_oldest_unprocessed_timestamp_seconds",
            PLACE,
            "Timestamp of the record there; the moment of the look where the group has caught up",
        ),
        (
            "docsum_messages_below_log_start",
            ("topic",),
            "Records between the committed offset and the start of the log: deleted, and never finished",
        ),
        (
            "docsum_retention_seconds",
            ("topic",),
            "How long the broker keeps records; none where it is for ever",
        ),
        (
            "docsum_oldest_held_timestamp_seconds",
            (),
            "Timestamp of the oldest record of a paused run; the moment of the look where none is held",
        ),
        ("docsum_held_backlog_messages", (), "Records of paused runs, which rest until they are resumed"),
        (
            "docsum_dead_letter_backlog_messages",
            (),
            "Records in the dead-letter topic, settled ones too",
        ),
        (
            "docsum_open_dead_letters",
            ("reason",),
            "Dead letters that are neither replayed, parked, discarded nor resolved",
        ),
        ("docsum_workers", ("state",), "Workers, by their heartbeats of the last hour"),
        (
            "docsum_work_paused",
            ("lane",),
            "1 while nothing of a lane is begun: paused by a person or the guard, or the budget is spent",
        ),
        ("docsum_paused_runs", (), "Runs that rest until they are resumed"),
        ("docsum_spend_today_usd", (), "US dollars of the ledger since midnight UTC"),
        (
            "docsum_daily_budget_usd",
            (),
            "US dollars that may be spent today; none where there is no budget",
        ),
        ("docsum_open_batches", ("state",), "Batches whose answers are not stored yet"),
        ("docsum_open_batch_requests", ("state",), "Requests in them"),
        (
            "docsum_oldest_open_batch_timestamp_seconds",
            ("state",),
            "When the oldest of them was begun; the moment of the look where there is none",
        ),
    )
)
#: By name of the metric, and there by the values of its labels.
Samples = dict[str, dict[tuple[str, ...], float]]
Retention = Mapping[str, timedelta | None]  # by topic; None: for ever


class DeploymentMetrics(_Metrics):
    """What the API answers to a scrape, from one look at everything."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.described += DEPLOYMENT
        self._topology = topology
        self._samples: Samples = {}
        self.registry.register(self)

    def show(self, health: Health, retention: Retention) -> None:
        """What the next scrape is told."""
        self._samples = samples(health, retention, self._topology)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For the registry."""
        for metric in DEPLOYMENT:
            if found := self._samples.get(metric.name):
                family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, value in found.items():
                    family.add_metric(labels, value)
                yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """For the registry: the names, without a look."""
        for metric in DEPLOYMENT:
            yield GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)


def samples(health: Health, retention: Retention, topology: Topology) -> Samples:
    """The figures of a look; pure."""
    return {
        "docsum_dependency_up": {
            ("kafka",): float(health.backlog is not None),
            ("clickhouse",): float(health.stored.is_whole),
        },
        "docsum_retention_seconds": {
            (topic,): kept.total_seconds() for topic, kept in retention.items() if kept is not None
        },
        "docsum_daily_budget_usd": ({} if health.budget_today is None else {(): float(health.budget_today)}),
        **(_of_broker(health, health.backlog, topology) if health.backlog else {}),
        **_of_store(health),
    }


def _of_broker(health: Health, backlog: Backlog, topology: Topology) -> Samples:
    found = {
        (at.topic, str(at.partition), lane_of(at.topic, topology)): at
        for at in sorted(backlog.positions, key=lambda at: (at.topic, at.partition))
    }
    held_since = backlog.held_since if backlog.held else health.at
    oldest = {place: at.oldest if at.left else health.at for place, at in found.items()}
    return {
        "docsum_consumer_lag_messages": {place: at.left for place, at in found.items()},
        "docsum_committed_offset": {place: at.offset for place, at in found.items()},
        "docsum_oldest_unprocessed_timestamp_seconds": {
            place: moment.timestamp() for place, moment in oldest.items() if moment is not None
        },
        "docsum_messages_below_log_start": {(topic.topic,): topic.lost for topic in backlog.topics},
        "docsum_held_backlog_messages": {(): backlog.held},
        "docsum_oldest_held_timestamp_seconds": {(): held_since.timestamp()} if held_since else {},
        "docsum_dead_letter_backlog_messages": {(): backlog.dead_letters},
    }


def _of_store(health: Health) -> Samples:
    stored, told = health.stored, Samples()
    if stored.dead_letters is not None:
        counts: dict[tuple[str, ...], float] = {(reason,): 0.0 for reason in (*REASONS, OTHER)}
        for group in stored.dead_letters:
            counts[(group.reason if group.reason in REASONS else OTHER,)] += group.count
        told["docsum_open_dead_letters"] = counts
    if stored.workers is not None:
        states = [_state(worker, health) for worker in health.workers]
        told["docsum_workers"] = {(state,): states.count(state) for state in WORKERS}
    if stored.controls is not None:
        live = health.rests or health.paused(LIVE_EVENTS) is not None
        told["docsum_work_paused"] = {
            (lane,): float(live if lane == Lane.LIVE else health.rests) for lane in (*LANES, RETRY)
        }
        paused = {control.target for control in stored.controls if control.state is ControlState.PAUSED}
        told["docsum_paused_runs"] = {(): len(paused - {ALL_WORK, LIVE_EVENTS})}
    if stored.spent_today is not None:
        told["docsum_spend_today_usd"] = {(): float(stored.spent_today)}
    if stored.batches is not None:
        open_ones = {found.state: found for found in stored.batches}
        each = {state: open_ones.get(state, OpenBatches(state, 0, 0, health.at)) for state in OPEN_BATCHES}
        told["docsum_open_batches"] = {(state,): found.count for state, found in each.items()}
        told["docsum_open_batch_requests"] = {(state,): found.requests for state, found in each.items()}
        told["docsum_oldest_open_batch_timestamp_seconds"] = {
            (state,): found.oldest.timestamp() for state, found in each.items()
        }
    return told


def _state(worker: WorkerStatus, health: Health) -> str:
    if worker.stopped:
        return "stopped"
    return "silent" if health.is_silent(worker) else "alive"


def exposed(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The answer to a scrape and its media type, in the format that the scraper's `Accept` asks for."""
    encode, kind = exposition.choose_encoder(accept)
    return encode(registry), kind


def catalogue(topology: Topology | None = None) -> tuple[Described, ...]:
    """Every metric of ours, those of every process once, by name."""
    topology = topology or Topology()
    both = (*WorkerMetrics(topology, "").described, *DeploymentMetrics(topology).described)
    return tuple(sorted({metric.name: metric for metric in both}.values(), key=lambda metric: metric.name))
