"""What the API stands on: ports, settings, and the few things that only adapters can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from docsum.api.publishing import BackgroundPublisher
from docsum.api.replays import Replays
from docsum.health import Health
from docsum.models import Coordinates, Operation, Recipe, SummaryRow
from docsum.ports import Clock, Codec, ServiceStore
from docsum.replay import DeadLetterRecords
from docsum.runs import Announcer
from docsum.settings import Api
from docsum.sources import Listed
from docsum.topics import Topology


class LiveAnnouncer(Announcer, Protocol):
    """Announces documents of runs, and single ones."""

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        """The event's id and where it is, once acknowledged. Raises InvalidEvent or BrokerUnavailable."""


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that a request may need."""

    store: ServiceStore
    clock: Clock
    settings: Api
    topology: Topology
    recipe: Recipe  # what the options of a run start from
    daily_budget: Decimal | None
    is_open: bool  # nobody needs a token: on the local stack, where only this machine can ask
    announce: LiveAnnouncer
    publishing: BackgroundPublisher
    #: The full name of a source, if workers may read it; blocks, but asks nobody else. Raises a DocsumError.
    check_source: Callable[[str], str]
    #: Raises a DocsumError for an address that webhooks cannot go to.
    check_webhook: Callable[[str], None]
    #: Raises ModelUnknown for a model without a price.
    check_model: Callable[[Recipe], None]
    #: One look at everything, a few seconds old at most.
    look: Callable[[], Awaitable[Health]]
    #: The answer to a scrape by Prometheus and its media type, for the scraper's `Accept`.
    scrape: Callable[[str], Awaitable[tuple[bytes, str]]]
    #: Tells upstreams that the document of this tombstone is deleted, if they are told anything. Raises
    #: BrokerUnavailable.
    take_back: Callable[[SummaryRow], Awaitable[None]]
    #: The dead-letter topic and its decoder, for as long as it is open.
    dead_letters: Callable[[], AbstractAsyncContextManager[tuple[DeadLetterRecords, Codec]]]
    replays: Replays
