"""The API's process: settings to adapters to the app that uvicorn serves."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from io import BytesIO
from ipaddress import ip_address
from random import SystemRandom

import structlog
import uvicorn

from docsum.api.app import application
from docsum.api.publishing import BackgroundPublisher
from docsum.api.replays import Replays
from docsum.api.service import Service
from docsum.api.webhooks import Webhooks, keys_of, refuse_unsigned
from docsum.bootstrap import (
    look_at,
    open_admin,
    open_lister,
    open_producer,
    open_store,
    setup_store,
    setup_topics,
    when_there,
)
from docsum.errors import BrokerUnavailable, ConfigurationError, DocsumError
from docsum.fetchers import check_allowed
from docsum.fetchers.webhook import WebhookSender
from docsum.health import Health
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.announcer import Announcer
from docsum.kafka.codec import EventCodec
from docsum.kafka.dead_letters import DeadLetterTopic, replay_copy
from docsum.kafka.producer import KafkaProducer
from docsum.kafka.results import deletion
from docsum.kafka.rights import Role, rights_of
from docsum.models import Recipe, SummaryRow
from docsum.ports import Clock, Codec, SystemClock
from docsum.replay import DeadLetterRecords, Replay
from docsum.settings import Api, Settings
from docsum.sources import Source
from docsum.stores.clickhouse import ClickHouseStore
from docsum.summarisers.prices import Prices
from docsum.telemetry import logs
from docsum.telemetry.metrics import DeploymentMetrics, exposed
from docsum.topics import Topology

log = structlog.get_logger(__name__)

LOOK_AGE = timedelta(seconds=2)  # so long one look serves all who ask
LOOK_STALE = timedelta(seconds=10)  # an older one is waited for; one in between is renewed meanwhile
RETENTION_AGE = timedelta(minutes=1)
_PATIENCE = timedelta(seconds=3)  # for Kafka, at the start
_GRACE = 5  # seconds that requests get to end after SIGTERM


async def serve_api(settings: Settings, *, is_open: bool = False, set_up: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Raises a DocsumError that ends the process.

    `is_open`: nobody needs a token, so only this machine may ask. `set_up`: make topics and tables first.
    """
    logs.configure(settings.log.level, settings.log.format)
    if is_open and not ip_address(settings.api.host).is_loopback:
        raise ConfigurationError(
            f"Without tokens only this machine may ask: DOCSUM_API__HOST is {settings.api.host}, "
            "set it to 127.0.0.1."
        )
    keys = keys_of(settings.api.webhook_secrets.get_secret_value())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        sender = await enter(WebhookSender(settings.api.webhook_private_hosts))
        producer = await enter(open_producer(settings))  # first: what is set wrongly waits for nothing
        if set_up:
            await when_there(stop, lambda: setup_topics(settings))
            await when_there(stop, lambda: setup_store(settings))
        await _prove_rights(settings)
        store = await when_there(stop, lambda: enter(open_store(settings)))
        codec = await enter(EventCodec(settings.kafka.schema_registry_url))

        def check_webhook(url: str) -> None:
            refuse_unsigned(keys)
            sender.check(url)

        service = _service(settings, store, producer, codec, check_webhook, is_open=is_open)
        background: list[asyncio.Task[object]] = [asyncio.create_task(service.publishing.run())]
        if keys:  # what was written down earlier waits for a key
            webhooks = Webhooks(store, service.clock, sender, keys, SystemRandom())
            background.append(asyncio.create_task(webhooks.run()))
        given_up = asyncio.create_task(producer.given_up())
        background.append(given_up)
        given_up.add_done_callback(lambda _: stop.set())
        try:
            await _serve(settings, service, stop)
            if given_up.done():  # the next process says whether a right is missing
                raise given_up.result()
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await service.replays.close()


async def _prove_rights(settings: Settings) -> None:
    """Raises ConfigurationError. A Kafka that is away stops nobody: the page says so."""
    admin, topology = KafkaAdmin(settings.kafka, _PATIENCE), settings.topology()
    try:
        await admin.prove(rights_of(Role.API, topology, settings.kafka), topology)
    except BrokerUnavailable as error:
        log.warning("what may be done in Kafka is not known", action="start", message=str(error))


async def _serve(settings: Settings, service: Service, stop: asyncio.Event) -> None:
    """Until `stop` is set. Raises ConfigurationError where nobody can listen at the address."""
    server = _Server(
        uvicorn.Config(
            application(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE,
        )
    )
    with _listening(settings.api) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        asked = asyncio.create_task(stop.wait())
        log.info("api started", action="start", host=settings.api.host, port=listener.getsockname()[1])
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        asked.cancel()
        await serving
    log.info("api stopped", action="stop")


def _listening(api: Api) -> socket.socket:
    # With its protocol named: only then asyncio sends small answers at once, instead of 40 ms later.
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((api.host, api.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"{api.host}:{api.port} cannot be listened on ({error.strerror}): choose another "
            "DOCSUM_API__PORT, or an address of this machine as DOCSUM_API__HOST."
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them once more when it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _service(
    settings: Settings,
    store: ClickHouseStore,
    producer: KafkaProducer,
    codec: EventCodec,
    check_webhook: Callable[[str], None],
    *,
    is_open: bool,
) -> Service:
    clock, topology, prices = SystemClock(), settings.topology(), Prices.load()
    announce = Announcer(producer, codec, topology, clock)
    lister, admin = open_lister(), open_admin(settings)
    lag = partial(admin.waiting, topology)

    def open_source(name: str) -> Source:
        source = lister.open(name, BytesIO())
        if not source.manifest:
            check_allowed(settings.fetch, source.place)
        return source

    def check_source(text: str) -> str:
        """Of a bucket or an address nobody is asked: what is wrong there is told when it is listed."""
        if text.startswith("/"):
            return open_source(text).name
        check_allowed(settings.fetch, text)
        return text

    @asynccontextmanager
    async def dead_letters() -> AsyncIterator[tuple[DeadLetterRecords, Codec]]:
        async with DeadLetterTopic(settings.kafka, topology.dead_letters) as records:
            yield records, codec

    @asynccontextmanager
    async def replay(replay_id: str, rate: int) -> AsyncIterator[Replay]:
        async with DeadLetterTopic(settings.kafka, topology.dead_letters) as records:
            yield Replay(
                store=store,
                records=records,
                publisher=producer,
                codec=codec,
                clock=clock,
                topology=topology,
                copy=lambda delivery: replay_copy(delivery, replay_id, settings.kafka.group_id),
                rate=rate,
                random=SystemRandom(),
            )

    async def take_back(row: SummaryRow) -> None:
        if topology.results:
            await producer.publish(deletion(topology.summaries, row.document_id, row.version))

    def check_model(recipe: Recipe) -> None:
        prices.of(recipe.model)

    # Every 15 seconds, also while nobody looks: without the progress of runs, which no metric tells.
    glance = Recent(lambda: look_at(settings, store, with_runs=False), clock.monotonic)
    metrics, retention = DeploymentMetrics(topology), Retention(admin, topology, clock)

    async def scrape(accept: str) -> tuple[bytes, str]:
        metrics.show(await glance(), await retention.now())
        return exposed(metrics.registry, accept)

    return Service(
        store=store,
        clock=clock,
        settings=settings.api,
        topology=topology,
        recipe=settings.recipe(),
        daily_budget=settings.budget.daily_usd,
        is_open=is_open,
        announce=announce,
        publishing=BackgroundPublisher(store, clock, announce, lag, settings.api.max_lag, open_source),
        check_source=check_source,
        check_webhook=check_webhook,
        check_model=check_model,
        look=Recent(lambda: look_at(settings, store), clock.monotonic),
        scrape=scrape,
        take_back=take_back,
        dead_letters=dead_letters,
        replays=Replays(store, clock, replay),
    )


@dataclass
class Retention:
    """How long topics are kept: asked now and then, what was heard last where the broker does not answer."""

    admin: KafkaAdmin
    topology: Topology
    clock: Clock
    _last: Mapping[str, timedelta | None] = field(default_factory=dict)
    _ask_at: float = float("-inf")

    async def now(self) -> Mapping[str, timedelta | None]:
        """By topic; None: for ever."""
        if self.clock.monotonic() >= self._ask_at:
            self._ask_at = self.clock.monotonic() + RETENTION_AGE.total_seconds()
            with suppress(DocsumError, TimeoutError):
                self._last = await asyncio.wait_for(self.admin.retention(self.topology), 2)
        return self._last


@dataclass
class Recent:
    """One look for all who ask within a while; a little later they still get the last one, at once."""

    ask: Callable[[], Awaitable[Health]]
    now: Callable[[], float]
    _asked: float = float("-inf")
    _last: Health | None = None
    _next: asyncio.Future[Health] | None = None

    async def __call__(self) -> Health:
        age = self.now() - self._asked
        if self._next is None and age > LOOK_AGE.total_seconds():
            self._next = asyncio.ensure_future(self._look())
        if self._last is not None and age < LOOK_STALE.total_seconds():
            return self._last
        assert self._next is not None
        return await asyncio.shield(self._next)

    async def _look(self) -> Health:
        try:
            self._last, self._asked = await self.ask(), self.now()
            return self._last
        finally:
            self._next = None
