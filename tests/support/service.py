"""The API over a store in memory and fakes of everything else, and a client that speaks to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any

from docsum.api.publishing import BackgroundPublisher
from docsum.api.replays import Replays
from docsum.api.service import Service
from docsum.errors import BrokerUnavailable, ConfigurationError, DocsumError, ModelUnknown, SourceNotAllowed
from docsum.health import Health, Stored, ask
from docsum.models import (
    Backlog,
    Coordinates,
    Delivery,
    DocumentReference,
    Lane,
    Operation,
    Recipe,
    RecordCopy,
    Run,
    SummaryRow,
)
from docsum.ports import Clock, Codec, SystemClock
from docsum.replay import DeadLetterRecords, Replay
from docsum.settings import Api
from docsum.sources import Entry, Listed, Source
from docsum.stores.memory import MemoryStore
from docsum.telemetry.metrics import DeploymentMetrics, exposed
from docsum.topics import Topology
from tests.support.fakes import FakePublisher

MODEL = "claude-haiku-5-5"


def scraped(
    look: Callable[[], Awaitable[Health]], topology: Topology
) -> Callable[[str], Awaitable[tuple[bytes, str]]]:
    """What the API answers to a scrape after such a look."""
    metrics = DeploymentMetrics(topology)

    async def scrape(accept: str) -> tuple[bytes, str]:
        metrics.show(await look(), {topology.documents: topology.retention})
        return exposed(metrics.registry, accept)

    return scrape


@dataclass
class FakeAnnouncer:
    """Keeps what was announced."""

    clock: Clock
    runs: list[tuple[Run, Listed]] = field(default_factory=list)
    events: list[tuple[Listed, Operation, bool]] = field(default_factory=list)
    down: bool = False

    async def __call__(self, run: Run, listed: Sequence[Listed]) -> list[datetime | DocsumError]:
        if self.down:
            return [BrokerUnavailable("Kafka at broker:9092 does not answer.") for _ in listed]
        self.runs += [(run, entry) for entry in listed]
        return [self.clock.now() for _ in listed]

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        if self.down:
            raise BrokerUnavailable("Kafka at broker:9092 does not answer.")
        self.events.append((listed, operation, force))
        return f"event-{len(self.events)}", Coordinates("docsum.documents", 3, len(self.events) - 1)


@dataclass
class FakeService:
    """What a test turns: the sources that there are, what waits in Kafka, who is down."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=SystemClock)
    topology: Topology = field(default_factory=Topology)
    sources: dict[str, Callable[[], list[Entry]]] = field(default_factory=dict)
    records: dict[Coordinates, Delivery] = field(default_factory=dict)
    events: dict[Coordinates, DocumentReference] = field(default_factory=dict)
    backlog: Backlog | None = field(default_factory=lambda: Backlog((), 0, 0, ()))
    errors: list[Any] = field(default_factory=list)  # Any: errors of ours
    is_open: bool = True
    settings: Api = field(default_factory=Api)
    daily_budget: Decimal | None = None
    taken_back: list[SummaryRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.announce = FakeAnnouncer(self.clock)
        self.publisher = FakePublisher()

    def build(self) -> Service:
        async def lag(lane: Lane) -> int:
            return 0

        @asynccontextmanager
        async def dead_letters() -> AsyncIterator[tuple[DeadLetterRecords, Codec]]:
            yield _Records(self.records), _Decoder(self.events)

        @asynccontextmanager
        async def replay(replay_id: str, rate: int) -> AsyncIterator[Replay]:
            yield Replay(
                store=self.store,
                records=_Records(self.records),
                publisher=self.publisher,
                codec=_Decoder(self.events),
                clock=self.clock,
                topology=self.topology,
                copy=lambda delivery: RecordCopy(delivery.origin.topic, 0, delivery.key, delivery.value, ()),
                rate=rate,
                random=Random(7),
            )

        return Service(
            store=self.store,
            clock=self.clock,
            settings=self.settings,
            topology=self.topology,
            recipe=Recipe(MODEL),
            daily_budget=self.daily_budget,
            is_open=self.is_open,
            announce=self.announce,
            publishing=BackgroundPublisher(
                self.store, self.clock, self.announce, lag, self.settings.max_lag, self.open_source
            ),
            check_source=lambda name: self.open_source(name).name,
            check_webhook=_check_webhook,
            check_model=_check_model,
            look=self.look,
            scrape=scraped(self.look, self.topology),
            take_back=self.take_back,
            dead_letters=dead_letters,
            replays=Replays(self.store, self.clock, replay),
        )

    def open_source(self, name: str) -> Source:
        if name not in self.sources:
            raise SourceNotAllowed(f"{name!r} is outside the folders of DOCSUM_FETCH__FILE_ROOTS.")
        return Source(name, name, lambda: iter(self.sources[name]()))

    async def take_back(self, row: SummaryRow) -> None:
        self.taken_back.append(row)

    async def look(self) -> Health:
        stored, errors = Stored(), [*self.errors]
        try:
            await ask(self.store, self.clock, stored)
        except DocsumError as error:
            errors.append(error)
        return Health(
            self.clock.now(),
            backlog=self.backlog,
            stored=stored,
            errors=errors,
            daily_budget=self.daily_budget,
        )


@dataclass
class _Records:
    records: dict[Coordinates, Delivery]

    async def offsets(self) -> dict[int, range]:
        return {number: range(1_000_000) for number in range(12)}

    async def read(
        self, places: Collection[Coordinates]
    ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
        for place in sorted(places):
            yield place, self.records.get(place)


@dataclass
class _Decoder:
    events: dict[Coordinates, DocumentReference]

    async def decode(self, delivery: Delivery) -> DocumentReference:
        return self.events[delivery.at]


def _check_model(recipe: Recipe) -> None:
    if recipe.model != MODEL:
        raise ModelUnknown(f"There is no price for the model {recipe.model!r}.")


def _check_webhook(url: str) -> None:
    if not url.startswith("https://"):
        raise ConfigurationError(f"{url!r} is no address of a webhook: it must begin with https.")
