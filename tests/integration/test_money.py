"""Every dollar of the bill is in the ledger: both lanes, lost replies, the same texts again, a budget."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from docsum.settings import Batch
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(300)

HAIKU = "claude-haiku-5-5"
#: US dollars for a token in and out, of a prompt of less than 100,000 tokens (public price list, 2026-11).
RATES = Decimal("0.10") / 1_000_000, Decimal("0.50") / 1_000_000
COUNT, LOST = 40, 3
FAULTS = (
    {"kind": "reset_after_accept", "times": LOST},
    {"match": {"endpoint": "batches.item"}, "kind": "missing", "times": 2},
    {"match": {"endpoint": "batches.item"}, "kind": "expired", "times": 2},
    {"match": {"endpoint": "batches.item"}, "kind": "refusal", "times": 1},
)


class Shop:
    """A worker of each lane, and a model server with prices."""

    def __init__(self, folder: Path, broker: Broker, engine: Engine) -> None:
        self.folder = folder
        self.model = ModelServer(folder / "model", "--fast", "--batch-time=0.5..2")
        quick = Batch(max_requests=15, quiet=timedelta(seconds=1), poll=timedelta(seconds=0.5))
        self.fleet = Fleet(folder, broker, engine, self.model, batch=quick)
        self.fleet.start_worker("worker-1")
        self.fleet.start_worker("batch-1", "docsum", "--lane=batch")
        until(lambda: all(map(self.fleet.is_member, ("worker-1", "batch-1"))), 60, "both are members")

    def close(self) -> None:
        self.fleet.close()
        self.model.close()

    def run(self, folder: str, lane: str, *more: str) -> str:
        """Its id, once nothing remains."""
        run_id = self.fleet.announce(str(self.folder / folder), f"--lane={lane}", "--model", HAIKU, *more)
        until(lambda: self.fleet.remaining(run_id) == 0, 120, f"{folder} is finished")
        return run_id

    def calls(self) -> int:
        return int(self.model.billed["accepted"])

    def cost(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.fleet.docsum("cost", *arguments, "--json"))
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker: Broker, engine: Engine) -> Iterator[Shop]:
    opened = Shop(tmp_path_factory.mktemp("shop"), broker, engine)
    yield opened
    opened.close()


def bill(entries: list[dict[str, Any]]) -> Decimal:
    total = Decimal(0)
    for entry in entries:
        asked, told = RATES
        price = asked * entry["input_tokens"] + told * entry["output_tokens"]
        total += price / 2 if entry["service_tier"] == "batch" else price
    return total


def test_the_ledger_of_both_lanes_is_the_bill(shop: Shop) -> None:
    write_documents(shop.folder / "live", COUNT, seed=1)
    write_documents(shop.folder / "batch", COUNT, seed=2)
    long = "\n".join(path.read_text() for path in (shop.folder / "live").iterdir()) * 20
    (shop.folder / "batch" / "long.txt").write_text(long)
    shop.model.fail(*FAULTS)

    runs = {"standard": shop.run("live", "live"), "batch": shop.run("batch", "batch")}

    entries = shop.model.entries()
    assert {entry["service_tier"] for entry in entries} == set(runs)
    for tier, run_id in runs.items():
        part = [entry for entry in entries if entry["service_tier"] == tier]
        costs = shop.cost("--run", run_id, "--by", "reason")
        statuses = Counter(costs["total"]["statuses"])
        lost = statuses["lost"]
        if tier == "standard":
            assert lost == LOST
        assert sum(statuses.values()) == len(part), (tier, statuses)
        known = [line for line in costs["lines"] if line["reason"] != "lost"]
        served = [entry for entry in part if entry["outcome"] == "served"]
        assert len(served) == len(part) - lost, tier
        assert sum(Decimal(str(line["cost_usd"])) for line in known) == bill(served), tier


def test_the_same_texts_again_are_not_bought(shop: Shop) -> None:
    shop.model.fail()
    before = shop.calls()
    (shop.folder / "twins").mkdir()
    for path in sorted((shop.folder / "live").iterdir())[:5]:
        (shop.folder / "twins" / path.name).write_bytes(path.read_bytes())

    shop.run("twins", "batch")
    shop.run("batch", "batch")
    assert shop.calls() == before, "other documents of the same text; the same documents again"

    forced = shop.run("twins", "batch", "--force", "--limit", "1")
    assert shop.calls() == before + 1
    assert shop.cost("--run", forced)["total"]["calls"] == 1


def test_what_the_workers_tell_of_money_is_the_ledger(shop: Shop) -> None:
    told: dict[str, float] = dict.fromkeys(("live", "backfill", "batch"), 0.0)
    for name in ("worker-1", "batch-1"):
        with urllib.request.urlopen(f"http://{shop.fleet.page(name)}/metrics", timeout=20) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name == "docsum_model_cost_usd_total":
                        told[sample.labels["lane"]] += sample.value
    ledger = float(shop.cost()["total"]["cost_usd"])
    assert sum(told.values()) == pytest.approx(ledger, rel=1e-6)
    assert told["live"] > 0 and told["batch"] > 0


def test_a_budget_is_kept_but_for_what_was_begun_before_its_end_was_known(shop: Shop) -> None:
    write_documents(shop.folder / "many", 200, seed=3)
    shop.model.fail({"kind": "slow_headers", "seconds": 1})
    known, affordable = shop.model.entries(), 80
    budget = bill(known[:40]) * affordable / 40

    announced = shop.fleet.announce(
        str(shop.folder / "many"), "--lane=live", "--model", HAIKU, "--budget", f"{budget:.6f}"
    )
    until(lambda: shop.fleet.run_of(announced)["state"] == "paused", 60, "the budget has paused it")
    until(lambda: shop.model.billed["in_flight"] == 0, 10, "the calls have ended")

    bought = shop.model.entries()[len(known) :]
    at_once = shop.fleet.settings.worker.max_in_flight
    begun_meanwhile = 2 * at_once  # what is spent is asked for every 2 s, and a call takes one
    assert bill(bought) <= budget * (affordable + at_once + begun_meanwhile) / affordable
    assert len(bought) >= affordable - 2 * at_once, "what is on its way counts, at an estimate"
