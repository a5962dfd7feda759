"""Outages of the model's provider: they cost time, never an attempt, never a dead letter, never money twice.

Scaled down; `--outage-documents=10000 --outage-seconds=600` is the full size, 3000 documents for the limits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from docsum.settings import Limits
from tests.support.deployment import stays, until
from tests.support.outages import IN_FLIGHT, WORKERS, Prepare

pytestmark = pytest.mark.timeout(2400)

PER_MINUTE = 600


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"status": 529}, "model_faltered"),
        pytest.param({"status": 500}, "model_faltered", marks=pytest.mark.long),
        pytest.param({"kind": "reset"}, "model_faltered", marks=pytest.mark.long),
        ({}, "model_unreachable"),
    ],
    ids=["overloaded", "errors", "resets", "refuses"],
)
def test_an_outage_of_the_provider_costs_nothing_but_its_time(
    prepared: Prepare, rule: Mapping[str, object], reason: str
) -> None:
    house = prepared("--latency=0.2")
    count, seconds = house.documents(300), house.seconds(10)
    run_id = house.run(count)
    before = house.reaches(count * 4 // 10, 600)

    began = time.monotonic()
    house.model.fail(rule) if rule else house.model.stop()
    until(lambda: house.tells(reason), 45, "`docsum status` tells of the outage")
    assert house.logged(reason)
    stays(house.nothing_spent, began + seconds - time.monotonic(), "nothing is spent")
    house.model.fail() if rule else house.model.start()

    recovered = until(lambda: not any(map(house.waits, WORKERS)), 60, "both workers go on")
    after = house.reaches(count, 600)
    house.finishes(run_id, count)
    # A server that is killed takes the replies with it that were under way.
    assert house.accepted <= count + (0 if rule else IN_FLIGHT * len(WORKERS))
    print(f"{count} documents, {seconds:g} s: {before=:.0f}/s, {recovered=:.1f} s, {after=:.0f}/s")
    if house.full_size:  # else hardly any are left by then
        assert after >= 0.8 * before


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=PER_MINUTE), None], ids=["known", "learned"])
def test_limits_are_kept_whoever_knows_them(prepared: Prepare, limits: Limits | None) -> None:
    house = prepared(f"--requests-per-minute={PER_MINUTE}", limits=limits)
    count = house.documents(200)
    run_id = house.run(count)
    house.finishes(run_id, count, 60 + 2 * 60 * count / PER_MINUTE)
    billed = house.model.billed
    print(f"{count} documents, {billed['rejected']} rejected")
    assert billed["accepted"] == count
    assert billed["rejected"] <= 0.02 * count


@pytest.mark.long
def test_a_group_stays_within_its_limits_while_workers_join_and_leave(prepared: Prepare) -> None:
    """Four workers, then five, then three; nobody but the provider knows the limits."""
    requests = 300
    house = prepared(f"--requests-per-minute={requests}", "--input-tokens-per-minute=200000", partitions=12)
    house.fleet.start_workers("three", "four")
    house.run(2_500)
    house.reaches(50)
    rates = []
    for name, act in (("", None), ("five", house.fleet.start_worker), ("two", house.fleet.stop_worker)):
        if act is not None:
            act(name)
        began, before = time.monotonic(), house.accepted
        until(lambda began=began: time.monotonic() - began > 90, 120, "a minute and a half")  # type: ignore[misc]
        rates.append((house.accepted - before) * 60 / (time.monotonic() - began))
    billed = house.model.billed
    print(f"accepted {[round(rate) for rate in rates]} a minute of {requests}, {billed['rejected']} rejected")
    assert rates[0] >= 0.9 * requests  # nobody comes or goes
    assert min(rates[1:]) >= 0.75 * requests  # a rebalance takes part of the time
    assert billed["rejected"] < 0.02 * billed["accepted"]
    assert house.nothing_spent()


def test_a_key_that_is_rejected_for_a_while_holds_the_workers_and_turns_readiness_red(
    prepared: Prepare,
) -> None:
    house = prepared("--latency=0.2")
    count, seconds = house.documents(150), house.seconds(5)
    run_id = house.run(count)
    house.reaches(count // 5)

    house.model.fail({"status": 401})
    until(lambda: not any(map(house.fleet.is_member, WORKERS)), 30, "no worker is ready")
    bought = house.accepted
    until(lambda: house.tells("model_key_rejected"), 30, "`docsum status` tells of the key")
    stays(lambda: not any(map(house.fleet.is_member, WORKERS)), seconds, "no worker is ready")
    assert house.nothing_spent() and house.accepted == bought
    house.model.fail()

    until(lambda: all(map(house.fleet.is_member, WORKERS)), 60, "both workers are ready")
    house.finishes(run_id, count)
    assert house.accepted == count


def test_a_prompt_that_the_provider_rejects_pauses_its_run_and_no_other(prepared: Prepare) -> None:
    house = prepared()
    count = house.documents(200)
    house.model.fail({"status": 400, "match": {"contains": "In rhymes, please."}})
    broken = house.run(count, "--instructions", "In rhymes, please.", name="broken")
    sound = house.run(count // 2, name="sound")

    until(lambda: house.fleet.run_of(broken)["state"] == "paused", 60, "the run is paused")
    until(lambda: house.fleet.counts(sound) == {"done": count // 2}, 120, "the other run is done")
    until(lambda: set(house.fleet.counts(broken)) <= {"held", "dead_lettered"}, 60, "the paused run rests")
    for name in WORKERS:
        dead = [line for line in house.lines(name) if line.get("action") == "dead_lettered"]
        assert len(dead) < 50
        assert {line["reason"] for line in dead} <= {"model_rejected"}
    assert len(house.fleet.dead_letters()) == house.fleet.counts(broken)["dead_lettered"] < 100
