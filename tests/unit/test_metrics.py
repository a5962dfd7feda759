"""The catalogue, and what the API tells of a deployment."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from docsum.health import Health, Stored, ask
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Backlog,
    BatchState,
    Control,
    ControlState,
    DeadLetterGroup,
    Lane,
    OpenBatches,
    Position,
    Recipe,
    Run,
    RunProgress,
    RunState,
    Waiting,
    WorkerStatus,
)
from docsum.stores.memory import MemoryStore
from docsum.summarisers.gate import CallGate
from docsum.telemetry.metrics import DeploymentMetrics, Retention, catalogue, exposed, samples
from docsum.topics import Topology
from tests.support.fakes import START, FakeClock

TOPOLOGY = Topology()
OLD = START - timedelta(minutes=10)
BACKLOG = Backlog(
    (Waiting("docsum.documents", 3, lost=2, oldest=OLD), Waiting("docsum.retry.10s", 0)),
    held=4,
    dead_letters=5,
    members=(),
    positions=(
        Position("docsum.documents", 0, 10, 3, 2, OLD),
        Position("docsum.documents", 1, 20, 0, 0),
        Position("docsum.retry.10s", 0, 7, 0, 0),
    ),
    held_since=OLD,
)
WHOLE = Stored(workers=(), controls=(), runs=(), spent_today=Decimal("1.5"), dead_letters=(), batches=())
KEPT: Retention = {"docsum.documents": timedelta(days=45)}


def look(backlog: Backlog | None = BACKLOG, stored: Stored = WHOLE, budget: Decimal | None = None) -> Health:
    return Health(START, backlog=backlog, stored=stored, daily_budget=budget)


def told(health: Health) -> dict[str, dict[tuple[str, ...], float]]:
    return samples(health, KEPT, TOPOLOGY)


def test_lag_and_age_are_told_of_every_partition_and_a_partition_without_work_is_of_now() -> None:
    found = told(look())
    first, second, retry = (
        ("docsum.documents", "0", "live"),
        ("docsum.documents", "1", "live"),
        ("docsum.retry.10s", "0", "retry"),
    )
    assert found["docsum_consumer_lag_messages"] == {first: 3, second: 0, retry: 0}
    assert found["docsum_committed_offset"] == {first: 10, second: 20, retry: 7}
    now = START.timestamp()
    ages = {place: now - at for place, at in found["docsum_oldest_unprocessed_timestamp_seconds"].items()}
    assert ages == {first: 600, second: 0, retry: 0}
    assert found["docsum_messages_below_log_start"][("docsum.documents",)] == 2
    assert found["docsum_held_backlog_messages"] == {(): 4}
    assert found["docsum_oldest_held_timestamp_seconds"] == {(): OLD.timestamp()}
    nothing = told(look(replace(BACKLOG, held=0, held_since=None)))
    assert nothing["docsum_oldest_held_timestamp_seconds"] == {(): now}
    assert found["docsum_dead_letter_backlog_messages"] == {(): 5}
    assert found["docsum_retention_seconds"] == {("docsum.documents",): 45 * 86_400}


def test_what_could_not_be_learned_has_no_series() -> None:
    found = told(look(backlog=None, stored=Stored()))
    assert found["docsum_dependency_up"] == {("kafka",): 0, ("clickhouse",): 0}
    unknown = ("docsum_consumer_lag_messages", "docsum_held_backlog_messages", "docsum_spend_today_usd")
    assert not any(name in found for name in (*unknown, "docsum_workers", "docsum_open_batches"))
    partly = told(look(stored=Stored(spent_today=Decimal(1))))
    assert partly["docsum_dependency_up"] == {("kafka",): 1, ("clickhouse",): 0}
    assert partly["docsum_spend_today_usd"] == {(): 1}


async def test_a_scrape_does_not_ask_for_the_progress_of_runs_and_knows_all_it_needs() -> None:
    asked: list[UUID] = []

    class Watched(MemoryStore):
        async def progress(self, run_id: UUID) -> RunProgress:
            asked.append(run_id)
            return await super().progress(run_id)

    store, stored = Watched(), Stored()
    await store.save_run(
        Run(UUID(int=5), "", "/", Recipe("m"), Lane.BACKFILL, RunState.PUBLISHED, START, START)
    )
    await ask(store, FakeClock(), stored, with_runs=False)
    assert stored.is_whole and not asked
    await ask(store, FakeClock(), stored)
    assert asked == [UUID(int=5)]


def test_a_pause_of_the_live_events_rests_their_lane_and_a_spent_budget_rests_all() -> None:
    live = Control(LIVE_EVENTS, ControlState.PAUSED, "The guard.", changed_at=START)
    run = Control(UUID(int=5), ControlState.PAUSED, "By hand.", changed_at=START)
    everything = replace(live, target=ALL_WORK)
    found = told(look(stored=replace(WHOLE, controls=(live, run))))
    lanes = {"live": 1.0, "backfill": 0.0, "batch": 0.0, "retry": 0.0}
    assert found["docsum_work_paused"] == {(lane,): value for lane, value in lanes.items()}
    assert found["docsum_paused_runs"] == {(): 1}
    for health in (look(budget=Decimal(1)), look(stored=replace(WHOLE, controls=(everything,)))):
        assert set(told(health)["docsum_work_paused"].values()) == {1.0}
    assert told(look(budget=Decimal(1)))["docsum_daily_budget_usd"] == {(): 1}


def test_batches_workers_and_dead_letters_are_counted_by_what_they_are() -> None:
    def worker(name: str, seconds: float, stopped: bool = False) -> WorkerStatus:
        beat = START - timedelta(seconds=seconds)
        return WorkerStatus(name, "host", 1, Lane.LIVE, OLD, beat, stopped=stopped)

    stored = replace(
        WHOLE,
        batches=(OpenBatches(BatchState.SUBMITTED, 2, 900, OLD),),
        workers=(worker("a", 1), worker("b", 60), worker("c", 1, stopped=True)),
        dead_letters=(
            DeadLetterGroup("scanned", "open", 3, 3, OLD, START, ""),
            DeadLetterGroup("of_a_later_version", "open", 1, 1, OLD, START, ""),
        ),
    )
    found = told(look(stored=stored))
    assert found["docsum_open_batches"] == {("submitting",): 0, ("in_doubt",): 0, ("submitted",): 2}
    assert found["docsum_open_batch_requests"][("submitted",)] == 900
    oldest = found["docsum_oldest_open_batch_timestamp_seconds"]
    assert oldest[("submitted",)] == OLD.timestamp()
    assert oldest[("in_doubt",)] == START.timestamp()
    assert found["docsum_workers"] == {("alive",): 1, ("silent",): 1, ("stopped",): 1}
    assert found["docsum_open_dead_letters"][("scanned",)] == 3
    assert found["docsum_open_dead_letters"][("other",)] == 1


def test_what_the_api_tells_is_in_the_catalogue_and_keeps_its_labels() -> None:
    metrics = DeploymentMetrics(TOPOLOGY)
    metrics.show(look(), KEPT)
    known = {metric.name: set(metric.labels) for metric in catalogue()}
    families = [family for family in metrics.registry.collect() if family.name.startswith("docsum_")]
    assert {family.name for family in families} >= {name for name, found in told(look()).items() if found}
    for family in families:
        for sample in family.samples:
            assert sample.labels.keys() == known[sample.name]
    body, kind = exposed(metrics.registry, "")
    assert kind.startswith("text/plain")
    assert b'docsum_consumer_lag_messages{lane="live",partition="0",topic="docsum.documents"} 3.0' in body


@pytest.mark.parametrize("metric", catalogue(), ids=lambda metric: metric.name)
def test_names_follow_the_house(metric: object) -> None:
    name, kind, meaning = (getattr(metric, part) for part in ("name", "kind", "meaning"))
    assert re.fullmatch(r"docsum_[a-z_]+", name)
    assert name.endswith("_total") == (kind == "counter")
    assert not re.search(r"_(ms|minutes|hours|milliseconds|kb|mb)$", name)
    assert meaning and not meaning.endswith(".")


def test_a_gate_tells_of_its_places_and_limits() -> None:
    gate = CallGate(16, FakeClock(), requests_per_minute=60)
    gate.share = 0.5
    gate.cool_down(timedelta(seconds=7))
    state = gate.state()
    assert (state.calls, state.waiting, state.width, state.cooling) == (0, 0, 4, 7.0)
    assert state.limits == {"requests": 30, "input-tokens": 0, "output-tokens": 0}
