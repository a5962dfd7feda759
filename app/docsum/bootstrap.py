"""Settings to adapters: what the commands open. A worker is put together in `serve.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from docsum.errors import DocsumError, StoreUnavailable
from docsum.health import Health, Stored, ask
from docsum.models import Backlog
from docsum.ports import SystemClock
from docsum.settings import Settings

# Adapters are imported where they are opened: most commands need one or two of them, and at once.
if TYPE_CHECKING:
    from docsum.kafka.admin import KafkaAdmin
    from docsum.kafka.producer import KafkaProducer
    from docsum.stores.clickhouse import ClickHouseStore

PATIENCE = timedelta(seconds=3.5)  # for each part of a look, all at once


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[ClickHouseStore]:
    """The store, its schema checked. Raises StoreUnavailable or StoreMisconfigured."""
    from docsum.stores.clickhouse import ClickHouseStore

    async with ClickHouseStore(settings.clickhouse, settings.store.flush_interval) as store:
        await store.check()
        yield store


@asynccontextmanager
async def open_producer(settings: Settings) -> AsyncIterator[KafkaProducer]:
    """The producer of the publisher and the commands."""
    from docsum.kafka.producer import KafkaProducer

    async with KafkaProducer(settings.kafka) as producer:
        yield producer


def open_admin(settings: Settings) -> KafkaAdmin:
    """What looks after the topics. Raises ConfigurationError."""
    from docsum.kafka.admin import KafkaAdmin

    return KafkaAdmin(settings.kafka)


async def setup_store(settings: Settings) -> None:
    """Make the database, tables and views, or bring them up to date."""
    from docsum.stores import migrate

    await migrate.setup(settings.clickhouse)


async def setup_topics(settings: Settings) -> None:
    """Make the topics, or bring them up to date."""
    await open_admin(settings).setup(settings.topology(), settings.topics.replication_factor)


# -- one look at everything --------------------------------------------------------------------------------


async def look_at(settings: Settings) -> Health:
    """Broker and store, asked at the same time; neither is waited for longer than `PATIENCE`."""
    (backlog, no_broker), (stored, no_store) = await asyncio.gather(_broker(settings), _stored(settings))
    return Health(
        at=SystemClock().now(),
        backlog=backlog,
        stored=stored,
        errors=[error for error in (no_broker, no_store) if error],
        daily_budget=settings.budget.daily_usd,
    )


async def _broker(settings: Settings) -> tuple[Backlog | None, DocsumError | None]:
    from docsum.kafka import backlog

    try:
        return await backlog.look(settings.kafka, settings.topology(), PATIENCE), None
    except DocsumError as error:
        return None, error


async def _stored(settings: Settings) -> tuple[Stored, DocsumError | None]:
    stored, where = Stored(), f"ClickHouse at {settings.clickhouse.url}"
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()), open_store(settings) as store:
            await ask(store, SystemClock(), stored)
    except TimeoutError:
        how = "does not answer." if stored.is_empty else "is slow: not all of this could be asked in time."
        return stored, StoreUnavailable(f"{where} {how}")
    except DocsumError as error:
        return stored, error
    return stored, None
