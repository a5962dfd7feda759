"""Fixtures known to every test, and the rule of the unit tests: no sockets."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from pytest_socket import disable_socket, enable_socket

# How long an example may take says nothing where others use the processor too.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
pytest_plugins = ["tests.support.broker", "tests.support.engine", "tests.support.outages"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-documents", default="300", help="documents of the kill test")
    parser.addoption("--chaos-seed", default="1", help="seed of the kill tests")
    parser.addoption(
        "--control-documents", default="200", help="documents of the run that is paused and resumed"
    )
    parser.addoption("--long", action="store_true", help="also tests that `make test` has no time for")
    parser.addoption("--outage-documents", help="documents of an outage test, 10000 for the full size")
    parser.addoption("--outage-seconds", help="how long its outage lasts, 600 for the full size")
    parser.addoption("--api-requests", default="1000", help="made-up requests to the API, 5000 in full")
    parser.addoption(
        "--ingest-files", default="60", help="files of the folder that is followed, 1000 in full"
    )
    parser.addoption("--ingest-seed", default="1", help="seed of what happens to them")
    parser.addoption("--held-documents", default="1000", help="documents of a paused run in the held topic")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DOCSUM_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if Path("tests/unit") in item.path.relative_to(item.config.rootpath).parents:
        disable_socket(allow_unix_socket=True)  # the event loop wakes itself through a pair of them
    else:
        enable_socket()
