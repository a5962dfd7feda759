"""A short selection of the chaos suite; `make chaos SEEDS=20` runs many more, and longer ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.laws import judge
from tests.chaos.schedule import schedule
from tests.chaos.world import Ground, World, enough

SECONDS = 15.0


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("ground") / "parts")
    yield made
    made.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [4, pytest.param(1, marks=pytest.mark.long)])
def test_the_laws_hold_whatever_goes_wrong(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    faults = schedule(seed, SECONDS)
    world = World(tmp_path_factory.mktemp("world") / str(seed), ground, enough(SECONDS, 2), workers=2)
    try:
        world.live_through(faults, patience=200)
        verdict = judge(world)
        assert not verdict.broken, f"{verdict.broken}; {world.keep_evidence(faults)}"
    finally:
        world.close()
