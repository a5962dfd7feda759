"""A fleet with a queue of documents, for tests in which something is out of order for a while."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.texts import write_documents

WORKERS = ("one", "two")
IN_FLIGHT = 16


class Outage:
    """Two workers at work, and what an operator and the provider can tell of them."""

    def __init__(self, fleet: Fleet, config: pytest.Config) -> None:
        self.fleet = fleet
        self.model = fleet.model
        self.full_size = config.getoption("--outage-documents") is not None
        self._config = config
        fleet.start_workers(*WORKERS)

    def documents(self, count: int) -> int:
        """So many, unless the command line says how many."""
        return int(self._config.getoption("--outage-documents") or count)

    def seconds(self, count: float) -> float:
        return float(self._config.getoption("--outage-seconds") or count)

    def run(self, count: int, *arguments: str, name: str = "documents") -> str:
        """Announces a run of so many documents; returns its id."""
        folder = self.fleet.folder / name
        write_documents(folder, count, seed=len(name))
        return self.fleet.announce(str(folder), *arguments)

    @property
    def accepted(self) -> int:
        return int(self.model.billed["accepted"])

    def reaches(self, goal: int, within: float = 120) -> float:
        """Waits until the provider has accepted so many calls; returns how many a second these were."""
        before = self.accepted
        seconds = until(lambda: self.accepted >= goal, within, f"{goal} accepted calls")
        return (self.accepted - before) / (seconds or 1)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.fleet.docsum("status", "--json", ok=(0, 4)))
        return found

    def tells(self, reason: str, *names: str) -> bool:
        """Whether `docsum status` says what these workers, or all, wait for, since when, until when."""
        holds = {worker["worker"]: " ".join(worker["holds"]) for worker in self.status()["workers"]}
        return all(
            f"{reason} since" in holds.get(name, "") and "next try" in holds[name]
            for name in names or WORKERS
        )

    def logged(self, reason: str) -> bool:
        """Whether the logs say the same."""
        held = [line for line in self.lines(*WORKERS) if line.get("action") == "hold"]
        return any(line["reason"] == reason and line["since"] for line in held)

    def lines(self, *names: str) -> list[dict[str, Any]]:
        """What these workers have logged."""
        log = self.fleet.said(*names)
        return [json.loads(line) for line in log.splitlines() if line.startswith("{")]

    def waits(self, name: str) -> bool:
        """Whether a worker has said that it waits, and not yet that nothing waits any more."""
        said = [line["action"] for line in self.lines(name) if line.get("action") in ("hold", "release")]
        return said[-1:] == ["hold"]

    def nothing_spent(self) -> bool:
        """Whether no document has been on a retry topic or is dead."""
        topology = self.fleet.topology
        return not any(self.fleet.size(topic) for topic in (*topology.retries, topology.dead_letters))

    def finishes(self, run_id: str, count: int, within: float = 120) -> None:
        """All are done, at their first attempt."""
        until(lambda: self.fleet.counts(run_id) == {"done": count}, within, f"{count} are done")
        assert {row.attempt for row in self.fleet.rows(run_id)} == {1}
        assert self.nothing_spent()


Prepare = Callable[..., Outage]


@pytest.fixture
def prepared(
    tmp_path: Path, broker: Broker, engine: Engine, pytestconfig: pytest.Config
) -> Iterator[Prepare]:
    """Starts a fleet with a model server of its own, by that server's options and the parts of `Fleet`."""
    with ExitStack() as stack:

        def prepare(*options: str, **parts: Any) -> Outage:
            model = ModelServer(tmp_path / "model", "--fast", *options)
            stack.callback(model.close)
            fleet = Fleet(tmp_path, broker, engine, model, in_flight=IN_FLIGHT, **parts)
            stack.callback(fleet.close)
            return Outage(fleet, pytestconfig)

        yield prepare
