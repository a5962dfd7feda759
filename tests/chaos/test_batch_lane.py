"""The batch lane, end to end: a group of its own, half the price, and kills that cost nothing but time."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from docsum.kafka.admin import KafkaAdmin
from docsum.models import Batch, Lane
from docsum.settings import Batch as BatchSettings
from docsum.stores.clickhouse import ClickHouseStore
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.dying_worker import STEPS
from tests.support.engine import Engine
from tests.support.texts import write_documents

COUNT, KILLS = 240, 6
ITEMS = 170
#: The steps that `make test` has time for; `--long` has all nine.
OFTEN = ("after the request has left", "in the middle of the results", "before the commit")
BATCH = BatchSettings(
    max_requests=10,
    quiet=timedelta(seconds=1),
    poll=timedelta(seconds=0.5),
    doubt=timedelta(seconds=5),
)


def batches_of(fleet: Fleet) -> list[Batch]:
    return list(fleet.ask(lambda store: store.batches(limit=10_000)))


@pytest.mark.timeout(600)
def test_workers_of_the_batch_lane_are_killed_and_nothing_is_lost_or_bought_twice(
    tmp_path: Path, broker: Broker, engine: Engine, pytestconfig: pytest.Config
) -> None:
    model = ModelServer(tmp_path / "model", "--fast", "--batch-time=2..12")
    fleet = Fleet(tmp_path, broker, engine, model, batch=BATCH)
    names = ("batch-1", "batch-2")
    chance = random.Random(int(pytestconfig.getoption("--chaos-seed")))
    try:
        for name in names:
            fleet.start_worker(name, "docsum", "--lane=batch")
        until(lambda: all(map(fleet.is_member, names)), 60, "the workers are members")
        write_documents(tmp_path / "documents", COUNT)
        run_id = fleet.announce(str(tmp_path / "documents"), "--lane=batch")
        for _ in range(KILLS):
            before = states(fleet)
            until(lambda before=before: states(fleet) != before, 120, "a batch goes on")  # type: ignore[misc]
            name = chance.choice(names)
            fleet.workers[name].kill()
            fleet.workers[name].wait(20)
            fleet.start_worker(name, "docsum", "--lane=batch")
        until(lambda: fleet.remaining(run_id) == 0, 300, "nothing remains")
        assert fleet.counts(run_id) == {"done": COUNT}
        judge(fleet, model, COUNT)
    finally:
        fleet.close()
        model.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "step",
    [step if step in OFTEN else pytest.param(step, marks=pytest.mark.long) for step in STEPS],
)
def test_a_worker_that_dies_at_this_step_loses_nothing_and_buys_nothing_twice(
    tmp_path: Path, broker: Broker, engine: Engine, pytestconfig: pytest.Config, step: str
) -> None:
    """A batch of 150 and one of a few: the first hundred answers of the large one are durable early."""
    model = ModelServer(tmp_path / "model", "--fast", "--batch-time=1..2")
    batch = BATCH.model_copy(update={"max_requests": 150})
    fleet = Fleet(tmp_path, broker, engine, model, batch=batch, partitions=1)
    fleet.environment |= {"DIE_AT": step, "DIE_SEED": pytestconfig.getoption("--chaos-seed")}
    try:
        fleet.start_worker("batch", "tests.support.dying_worker", "--lane=batch")
        write_documents(tmp_path / "documents", ITEMS)
        run_id = fleet.announce(str(tmp_path / "documents"), "--lane=batch")
        until(lambda: fleet.workers["batch"].poll() is not None, 120, f"it dies {step}")
        assert fleet.workers["batch"].returncode == -signal.SIGKILL, fleet.said("batch")[-3000:]
        fleet.start_worker("batch", "docsum", "--lane=batch")
        until(lambda: fleet.remaining(run_id) == 0, 180, "nothing remains")
        assert fleet.counts(run_id) == {"done": ITEMS}
        judge(fleet, model, ITEMS)
    finally:
        fleet.close()
        model.close()


def states(fleet: Fleet) -> Counter[str]:
    """What is killed may be anything from before the first batch to after the last."""
    return Counter(batch.state.value for batch in batches_of(fleet))


def judge(fleet: Fleet, model: ModelServer, count: int) -> None:
    """The bill beside the ledger, call by call; every batch reconciled; everything committed."""
    billed = model.entries()
    assert {entry["service_tier"] for entry in billed} == {"batch"}
    again = {name: times for name, times in Counter(e["fingerprint"] for e in billed).items() if times > 1}
    assert not again
    assert len(billed) == count

    async def stored(store: ClickHouseStore) -> set[str]:
        return {row[0] for row in await store._query("SELECT request_id FROM answers WHERE lane = 'batch'")}

    assert fleet.ask(stored) == {entry["request_id"].replace("req_", "msg_", 1) for entry in billed}
    for batch in batches_of(fleet):
        ends = batch.succeeded + batch.errored + batch.canceled + batch.expired + batch.missing
        assert not batch.state.is_open
        assert ends == (batch.size if batch.provider_id else 0), batch
    admin, kafka = KafkaAdmin(fleet.settings.kafka), fleet.settings.kafka

    def lag() -> int:
        found = asyncio.run(admin.lag(kafka.batch_group_id, fleet.topology, Lane.BATCH))
        return sum(place.lag for place in found)

    until(lambda: lag() == 0, 30, "committed to the end")
