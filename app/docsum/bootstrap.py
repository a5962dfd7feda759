"""Settings to adapters: what the commands open. A worker is put together in `serve.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from docsum.settings import Settings

# Adapters are imported where they are opened: most commands need one or two of them, and at once.
if TYPE_CHECKING:
    from docsum.kafka.admin import KafkaAdmin
    from docsum.kafka.producer import KafkaProducer
    from docsum.stores.clickhouse import ClickHouseStore


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
