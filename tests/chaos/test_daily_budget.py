"""The day's budget, end to end: work stops when it is spent, and goes on by itself at midnight UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from docsum.models import midnight
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, stays, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

HAIKU = "claude-haiku-5-5"
COUNT, AT_ONCE = 80, 4


@pytest.mark.timeout(240)
def test_what_the_budget_of_a_day_does_not_pay_for_waits_for_the_next(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    model = ModelServer(tmp_path / "model", "--fast")
    fleet = Fleet(tmp_path, broker, engine, model, in_flight=AT_ONCE)

    def shift(by: timedelta) -> None:
        (fleet.settings.home / f"clock-{fleet._ports['worker-1']}").write_text(str(by.total_seconds()))

    def bought() -> int:
        return int(model.billed["accepted"])

    try:
        write_documents(tmp_path / "first", AT_ONCE, seed=3)
        fleet.environment["DOCSUM_BUDGET__DAILY_USD"] = "1"
        start = datetime.now(UTC)
        begin = (
            midnight(start) + timedelta(days=1) - start
        )  # the first day of the test is tomorrow, from noon on
        fleet.settings.home.mkdir(exist_ok=True)
        fleet.start_worker("worker-1", "tests.support.chaos_worker")
        shift(begin + timedelta(hours=12))
        until(lambda: fleet.is_member("worker-1"), 60, "it is a member")
        first = fleet.announce(str(tmp_path / "first"), "--model", HAIKU)
        until(lambda: fleet.remaining(first) == 0, 60, "a few are bought, to know the price")
        price = Decimal(str(fleet.run_of(first)["cost_usd"])) / AT_ONCE
        fleet.stop_worker("worker-1")

        fleet.environment["DOCSUM_BUDGET__DAILY_USD"] = f"{price * (COUNT // 2):.9f}"
        fleet.start_worker("worker-1", "tests.support.chaos_worker")
        shift(begin + timedelta(hours=23, minutes=59, seconds=-60))
        model.fail({"kind": "slow_headers", "seconds": 0.5})  # what is spent is known every two seconds
        write_documents(tmp_path / "many", COUNT)
        run_id = fleet.announce(str(tmp_path / "many"), "--model", HAIKU)
        until(lambda: any("daily_budget" in hold for hold in fleet.holds()), 60, "the budget is spent")
        until(lambda: model.billed["in_flight"] == 0, 20, "the calls have ended")
        after_one_day = bought()
        assert COUNT // 2 - 2 * AT_ONCE <= after_one_day <= COUNT // 2 + 6 * AT_ONCE
        stays(lambda: bought() == after_one_day, 3, "nothing more is bought that day")

        shift(begin + timedelta(days=1, seconds=5))
        until(lambda: bought() > after_one_day, 30, "it goes on by itself after midnight")
        until(
            lambda: fleet.remaining(run_id) == 0 or bought() >= COUNT - 2 * AT_ONCE,
            90,
            "the second day's budget",
        )
        shift(begin + timedelta(days=2, seconds=5))
        until(lambda: fleet.remaining(run_id) == 0, 60, "the rest on the third")
        assert fleet.counts(run_id) == {"done": COUNT}
        assert bought() == COUNT + AT_ONCE
        assert fleet.dead_letters() == []
    finally:
        fleet.close()
        model.close()
