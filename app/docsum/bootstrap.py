"""Settings to adapters: what the commands open. A worker is put together in `serve.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from docsum.errors import BrokerUnavailable, DocsumError, StoreUnavailable
from docsum.health import Health, Stored, ask
from docsum.models import Backlog
from docsum.ports import SummaryStore, SystemClock
from docsum.sources import Entry, Lister, Now

# Adapters are imported where they are opened: most commands need one or two of them, and at once.
if TYPE_CHECKING:
    from docsum.kafka.admin import KafkaAdmin
    from docsum.kafka.producer import KafkaProducer
    from docsum.settings import Settings
    from docsum.stores.clickhouse import ClickHouseStore
    from docsum.stores.group_commit import Flushed

T = TypeVar("T")

PATIENCE = timedelta(seconds=3.5)  # for each part of a look, all at once


@asynccontextmanager
async def open_store(settings: Settings, flushed: Flushed | None = None) -> AsyncIterator[ClickHouseStore]:
    """The store, its schema checked; `flushed` hears of inserts.

    Raises StoreUnavailable or StoreMisconfigured.
    """
    from docsum.stores.clickhouse import ClickHouseStore

    async with ClickHouseStore(settings.clickhouse, settings.store.flush_interval, flushed) as store:
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


def open_lister() -> Lister:
    """Lists what the workers will fetch."""
    from docsum.fetchers.file import file_version

    def list_objects(url: str, now: Now) -> Iterator[Entry]:
        from docsum.fetchers import object_store  # not for everyone who names a folder: it takes a while

        return object_store.list_objects(url, now)

    return Lister(now=lambda: datetime.now(UTC), file_version=file_version, list_objects=list_objects)


async def when_there(stop: asyncio.Event, enter: Callable[[], Awaitable[T]]) -> T:
    """Wait for a dependency to come up; ends with the error itself when a stop is asked for meanwhile."""
    import structlog

    log = structlog.get_logger(__name__)
    wait, told = 0.25, ""
    while True:
        try:
            return await enter()
        except (BrokerUnavailable, StoreUnavailable) as error:
            if stop.is_set():
                raise
            if str(error) != told:
                told = str(error)
                log.warning("waiting for a dependency", action="start", message=told)
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            wait = min(wait * 1.2, 5.0)


# -- one look at everything --------------------------------------------------------------------------------


async def look_at(settings: Settings, store: SummaryStore | None = None, *, with_runs: bool = True) -> Health:
    """Broker and store, asked at the same time; neither is waited for longer than `PATIENCE`.

    `store`: one that is open already. `with_runs`: whether the progress of runs is asked for.
    """
    opened = open_store(settings) if store is None else nullcontext(store)
    (backlog, no_broker), (stored, no_store) = await asyncio.gather(
        _broker(settings), _stored(settings, opened, with_runs)
    )
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


async def _stored(
    settings: Settings, opened: AbstractAsyncContextManager[SummaryStore], with_runs: bool
) -> tuple[Stored, DocsumError | None]:
    stored, where = Stored(), f"ClickHouse at {settings.clickhouse.url}"
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()), opened as store:
            await ask(store, SystemClock(), stored, with_runs=with_runs)
    except TimeoutError:
        how = "does not answer." if stored.is_empty else "is slow: not all of this could be asked in time."
        return stored, StoreUnavailable(f"{where} {how}")
    except DocsumError as error:
        return stored, error
    return stored, None
