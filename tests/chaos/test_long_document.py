"""A worker that ends in order in the middle of a long document: all that it has paid for is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsum.models import CostBy
from tests.contract.test_long_documents import report
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine


@pytest.mark.timeout(300)
def test_a_clean_stop_in_the_middle_of_a_long_document_loses_nothing_and_repeats_nothing(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    """Four calls of 2 s at once, forty parts: more than could be read while the partitions are let go."""
    model = ModelServer(tmp_path / "model", "--fast", "--latency=2")
    fleet = Fleet(tmp_path, broker, engine, model)
    fleet.environment["DOCSUM_MODEL__SINGLE_SHOT_TOKENS"] = "4000"
    try:
        fleet.start_workers("one")
        documents = tmp_path / "documents"
        documents.mkdir()
        (documents / "harbours.txt").write_text(report(920))
        run_id = fleet.announce(str(documents))
        until(lambda: model.billed["accepted"] >= 6, 60, "some parts are bought")
        fleet.stop_worker("one")
        bought = model.billed["accepted"]
        assert bought <= 20  # what was in flight and a little more; in 15 s of letting go it would be 36
        assert fleet.ask(lambda store: store.costs(CostBy.MODEL)).total.calls == bought
        assert "paid answers were not stored" not in fleet.said("one")

        fleet.start_workers("two")
        until(lambda: fleet.counts(run_id) == {"done": 1}, 120, "it is done")
        assert model.paid_again == {}
    finally:
        fleet.close()
        model.close()
