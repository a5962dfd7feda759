"""One run through everything that an operator may do to it: its counts are exact at every step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from docsum.models import RunProgress
from tests.support.deployment import Deployment, ModelServer, until
from tests.support.texts import write_documents

#: Seconds: a wish reaches every worker within the first; a call takes the second.
EFFECTIVE, LATENCY = 5.0, 1.0
WORKERS = 2
pytestmark = pytest.mark.timeout(3_600)


class Stage:
    """A local stack with a priced model, and the run that the test is about."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.in_flight = 3 if count < 2_000 else 64  # so that a small run is not over before it is paused
        self.patience = 120 + count / 10  # seconds
        self.others = 0  # documents of other runs
        self.model = ModelServer(folder / "model", "--fast", f"--latency={LATENCY}")
        self.deployment = Deployment(
            folder,
            ANTHROPIC_API_KEY="a-key",
            ANTHROPIC_BASE_URL=self.model.url,
            DOCSUM_MODEL__NAME="claude-haiku-5-5",
            DOCSUM_WORKER__MAX_IN_FLIGHT=str(self.in_flight),
            DOCSUM_WORKER__SHUTDOWN_TIMEOUT="10s",
        )
        write_documents(folder / "documents", count)
        self.deployment.docsum("up", "-d", "--workers", str(WORKERS))
        self.id = str(self.run("documents", "--no-wait")["run_id"])

    def run(self, folder: str, *options: str) -> dict[str, Any]:
        told = self.deployment.docsum("run", str(self.folder / folder), "--yes", "--json", *options)
        found: dict[str, Any] = json.loads(told)
        return found

    @property
    def progress(self) -> RunProgress:
        """Every document has one state, whatever happens to the run."""
        now = self.deployment.ask(lambda store: store.progress(UUID(self.id)))
        assert now.total == self.count
        return now

    @property
    def bought(self) -> int:
        """Calls for this run."""
        return int(self.model.billed["accepted"]) - self.others

    def comes_to_rest(self) -> RunProgress:
        """Of a run that has just been paused: what was not bought by then lies in the held topic."""
        told_at, looks = time.monotonic(), [(0.0, self.bought)]

        def rests() -> bool:
            looks.append((time.monotonic() - told_at, self.bought))
            return self.progress.queued == 0 and self.progress.retrying == 0

        until(rests, self.patience, "it rests")
        late = {bought for at, bought in looks if at > EFFECTIVE}
        assert len(late) <= 1, "calls were made though everybody knew that it is paused"
        now = self.progress
        assert (now.done, now.held) == (self.bought, self.count - self.bought)
        return now

    def ends_with(self, code: int) -> None:
        """Watching it; 4 is a store that was asked while it was busy."""
        until(
            lambda: self.deployment.ends("runs", "watch", self.id, ok=(code, 4)) == code,
            self.patience,
            f"watching it ends with {code}",
        )

    def close(self) -> None:
        self.deployment.close()
        self.model.close()


@pytest.fixture
def stage(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Stage]:
    made = Stage(tmp_path, int(pytestconfig.getoption("--control-documents")))
    yield made
    made.close()


def test_a_run_is_paused_by_hand_and_by_its_budget_and_every_count_is_exact(stage: Stage) -> None:
    docsum = stage.deployment.docsum
    until(lambda: stage.progress.done >= stage.count // 4, stage.patience, "a quarter is done")
    docsum("runs", "pause", stage.id, "--reason", "the night shift needs the quota")
    paused = stage.comes_to_rest()

    # It stands in nobody's way, and it stays paused whoever is killed or joins.
    write_documents(stage.folder / "others", 10, seed=99)
    assert stage.run("others")["done"] == 10
    stage.others = 10
    assert stage.deployment.kill("worker-1")
    docsum("up", "--workers", str(WORKERS + 1))
    assert (stage.progress.done, stage.progress.held) == (paused.done, paused.held)
    assert stage.bought == paused.done

    # Money for half of the rest: it pauses by itself. More is bought only until every worker knows.
    each = paused.cost / paused.done
    budget = each * (paused.done + paused.held // 2)
    docsum("runs", "resume", stage.id, "--budget", f"{budget:.6f}")
    stage.ends_with(6)
    spent = stage.comes_to_rest()
    overshoot = each * int((WORKERS + 1) * stage.in_flight * (1 + EFFECTIVE / LATENCY))
    assert budget <= spent.cost <= budget + overshoot
    docsum("runs", "resume", stage.id, ok=(2,))  # it would stop at once

    docsum("runs", "resume", stage.id, "--budget", f"{10 * budget:.6f}")
    stage.ends_with(0)
    assert stage.progress.done == stage.bought == stage.count
    assert stage.model.paid_again == {}
