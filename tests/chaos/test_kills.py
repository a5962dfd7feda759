"""Kill anything in the middle: started again it finishes, nothing is lost, nothing stored is bought again."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, ModelServer, until
from tests.support.texts import write_documents


@pytest.mark.timeout(1800)
def test_whatever_is_killed_the_run_finishes_and_nothing_is_paid_twice(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count = int(pytestconfig.getoption("--chaos-documents"))
    seed = int(pytestconfig.getoption("--chaos-seed"))
    chance, in_flight = random.Random(seed), 16
    model = ModelServer(tmp_path / "model", "--fast", "--latency=1.0")
    deployment = Deployment(
        tmp_path,
        ANTHROPIC_API_KEY="a-key",
        ANTHROPIC_BASE_URL=model.url,
        DOCSUM_MODEL__NAME="local-extractive-1",
        DOCSUM_WORKER__MAX_IN_FLIGHT=str(in_flight),
        DOCSUM_WORKER__SHUTDOWN_TIMEOUT="10s",
    )
    documents = tmp_path / "documents"
    write_documents(documents, count)
    killed_workers = 0
    try:
        run_id = json.loads(deployment.docsum("run", str(documents), "--no-wait", "--json"))["run_id"]
        victims = [("worker-1",), ("worker-1", "worker-2"), ("kafka",), ("clickhouse",), ("supervisor",)] * 2
        chance.shuffle(victims)
        accepted = 0
        for number, names in enumerate(victims):
            goal = accepted + max(in_flight, count // (len(victims) + 4))
            until(lambda goal=goal: model.billed["accepted"] >= goal, 180, f"work before {names}")  # type: ignore[misc]  # bound now
            time.sleep(chance.random())
            for name in names:
                dead = deployment.kill(name)
                killed_workers += dead * (2 if name == "supervisor" else name.startswith("worker"))
            if names == ("supervisor",):
                deployment.docsum("up", "-d")
            accepted = model.billed["accepted"]
            assert accepted < 3 * count, f"runaway after {number + 1} kills"
        # 4: the store was killed a moment ago and is not back; trying again helps.
        until(lambda: deployment.ends("runs", "watch", run_id, ok=(0, 4)) == 0, 600, "the run's end")
        shown = deployment.run_of(run_id)
        assert (shown["done"], shown["dead_lettered"], shown["remaining"]) == (count, 0, 0)
        billed = model.billed
        bound = count + billed["lost"] + killed_workers * in_flight
        assert billed["accepted"] <= bound
        print(
            f"{count} documents, {len(victims)} kills, accepted {billed['accepted']}, bound {bound}, {billed}"
        )
        # The same folder again: every answer is there.
        deployment.docsum("run", str(documents), "--json")
        assert model.billed["accepted"] == billed["accepted"]
    finally:
        deployment.close()
        model.close()
