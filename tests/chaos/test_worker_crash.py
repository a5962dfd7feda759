"""A document that ends every worker that reads it: it alone is given up, and it does not take long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.fragile_worker import POISON
from tests.support.texts import write_documents

COUNT = 60


@pytest.mark.timeout(300)
def test_a_document_that_ends_its_workers_becomes_a_dead_letter(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    model = ModelServer(tmp_path / "model", "--fast", "--latency=0.2")
    fleet = Fleet(tmp_path, broker, engine, model)
    lives = 0
    try:
        documents = tmp_path / "documents"
        write_documents(documents, COUNT)
        (documents / "poison.txt").write_bytes(b"Dear reader, " + POISON)
        run_id = fleet.announce(str(documents))

        def is_over() -> bool:
            nonlocal lives
            for name in ("worker-1", "worker-2"):
                worker = fleet.workers.get(name)
                if worker is None or worker.poll() is not None:
                    fleet.start_worker(name, "tests.support.fragile_worker")
                    lives += 1
            return fleet.counts(run_id) == {"dead_lettered": 1, "done": COUNT}

        until(is_over, 200, "everything has an end")
        (failed,) = [row for row in fleet.rows(run_id) if row.state.value == "dead_lettered"]
        assert (Path(failed.document_id).name, failed.reason) == ("poison.txt", "worker_crash")
        assert len(fleet.dead_letters()) == 1
        assert lives <= 2 + 6  # each worker may meet it before it hears of the other's deaths
        deaths = lives - 2
        assert model.billed["accepted"] <= COUNT + deaths * fleet.settings.worker.max_in_flight
    finally:
        fleet.close()
        model.close()
