"""A command line over a store in memory: what a person types, and what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from docsum.cli import execute
from docsum.settings import Settings
from docsum.stores.memory import MemoryStore


def deployed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds this store, and a deployment that is not the local stack."""

    @asynccontextmanager
    async def open_store(settings: Settings) -> AsyncIterator[MemoryStore]:
        yield store

    monkeypatch.setattr("docsum.bootstrap.open_store", open_store)
    monkeypatch.setenv("DOCSUM_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("DOCSUM_CLICKHOUSE__URL", "http://127.0.0.1:1")
    monkeypatch.setenv("COLUMNS", "200")


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = execute(arguments)
    out, err = capsys.readouterr()
    return code, out, err
