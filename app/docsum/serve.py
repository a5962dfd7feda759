"""A worker process: settings to adapters to pipeline to group member. The only module that knows them all."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from docsum.bootstrap import open_admin, open_store, setup_store, setup_topics, when_there
from docsum.breakers import Breakers
from docsum.crashes import CrashGuard
from docsum.errors import ConfigurationError
from docsum.extractors import DocumentExtractor
from docsum.extractors.sandbox import Sandbox
from docsum.fetchers import DocumentFetcher
from docsum.heartbeat import Heart
from docsum.kafka import backlog
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.codec import EventCodec
from docsum.kafka.copies import RecordCopies
from docsum.kafka.held import HeldTopic
from docsum.kafka.publisher import CopyPublisher
from docsum.kafka.results import ResultRecords
from docsum.kafka.rights import Role, rights_of
from docsum.kafka.security import faust_credentials, identity
from docsum.kafka.worker import KafkaWorker, Membership
from docsum.models import Lane, Outcome, WorkerStatus
from docsum.pipeline import Deferred, Pipeline, Trip
from docsum.ports import Clock, SystemClock
from docsum.settings import Settings
from docsum.stores.clickhouse import ClickHouseStore
from docsum.summarisers.anthropic import AnthropicSummariser, make_client
from docsum.summarisers.batched import BatchSummariser
from docsum.summarisers.batches import BatchLane
from docsum.summarisers.gate import CallGate
from docsum.summarisers.prices import Prices
from docsum.summarisers.quality import language
from docsum.telemetry import health, logs
from docsum.telemetry.metrics import UNITS, WorkerMetrics
from docsum.telemetry.observer import WorkerObserver

log = structlog.get_logger(__name__)


async def serve_worker(settings: Settings, *, lane: Lane = Lane.LIVE, set_up: bool = False) -> None:
    """Be a worker until SIGTERM or SIGINT. Raises a DocsumError that ends the process.

    Whatever is not there yet (broker, store) is waited for; what is configured wrongly is an error at once.
    `lane`: BATCH, or LIVE for live and backfill events. `set_up`: make topics and tables first.
    """
    logs.configure(settings.log.level, settings.log.format)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_work(settings, stop, lane, set_up))
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        # The longest clean stop: the drain and the leave, then the answers that are still to come.
        bound = settings.worker.drain_timeout + settings.worker.shutdown_timeout + timedelta(seconds=40)
        await asyncio.wait({work}, timeout=bound.total_seconds())
    asked.cancel()
    if not work.done():
        log.error("the worker did not stop in time", action="stop")
        os._exit(1)
    await work


async def _work(settings: Settings, stop: asyncio.Event, lane: Lane, set_up: bool) -> None:
    topology, clock = settings.topology(), SystemClock()
    metrics = WorkerMetrics(topology, settings.model.name)
    newborn, prices = _newborn(settings, lane, clock.now()), Prices.load()
    prices.of(settings.model.name)  # an unknown model is an error now, never a free call later
    client = make_client(settings.model, settings.worker.max_in_flight)
    gate, extract, is_batch = _gate(settings, clock), settings.extract, lane is Lane.BATCH
    observer, crashes = WorkerObserver(metrics, clock, topology), CrashGuard()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        admin = open_admin(settings)
        await _set_up(settings, stop, set_up)
        retries = await when_there(stop, lambda: _checked_topics(admin, settings, lane))
        store = await when_there(stop, lambda: enter(open_store(settings, observer.flushed)))
        publisher = await when_there(stop, lambda: enter(CopyPublisher(settings.kafka)))
        codec, results = (
            await enter(EventCodec(settings.kafka.schema_registry_url)),
            await enter(ResultRecords(topology.summaries, settings.kafka.schema_registry_url)),
        )
        extractor = await enter(
            DocumentExtractor(Sandbox(extract.processes, extract.timeout, extract.memory))
        )
        fetcher = await enter(DocumentFetcher(settings.fetch))
        batches = BatchLane(
            client,
            store,
            clock,
            prices,
            settings.batch,
            owned=lambda: worker.owned,
            wanted=lambda run_id: pipeline.still_wants(run_id),  # noqa: PLW0108 - it is made below
            answered=lambda model: pipeline.breakers.of(f"model {model}").succeeded("a batch"),
        )
        summariser = (partial(BatchSummariser, batches=batches) if is_batch else AnthropicSummariser)(
            client,
            gate,
            store,
            clock,
            prices,
            timeout=settings.model.timeout,
            reuse_scope=settings.model.reuse_scope,
            called=observer.called,
        )
        stack.push_async_callback(client.close)
        await asyncio.to_thread(language.load)  # better now than in front of the first document
        pipeline = Pipeline(
            codec=codec,
            fetcher=fetcher,
            extractor=extractor,
            summariser=summariser,
            store=store,
            publisher=publisher,
            observer=observer,
            clock=clock,
            topology=topology,
            recipe=settings.recipe(),
            copies=RecordCopies(topology, settings.kafka.group_of(lane), clock),
            worker=newborn.worker,
            max_age=settings.retry.max_age,
            daily_budget=settings.budget.daily_usd,
            crashes=crashes,
            results=results if topology.results else None,
        )

        async def process(trip: Trip) -> Outcome | Deferred:
            try:
                return await pipeline.process(trip)
            finally:
                observer.ended(trip.delivery)

        member = _membership(settings, lane, newborn.worker, retries)
        worker = KafkaWorker(
            member,
            process,
            clock,
            partial(setattr, gate, "share"),
            lambda: backlog.unowned(settings.kafka, member.group, (*member.topics, *member.retries)),
            on_rebalance=metrics.rebalances.inc,
            on_expired=lambda topic, count: metrics.expired.labels(topic).inc(count),
        )
        _follow(metrics, worker, store)
        _follow_model(metrics, gate, pipeline.breakers)

        def status(now: datetime, stopped: bool) -> WorkerStatus:
            return replace(
                newborn,
                beat_at=now,
                partitions=worker.partitions,
                in_flight=len(worker.running),
                holds=observer.holds(),
                breakers=tuple(map(str, pipeline.breakers.troubles())),
                gate=str(batches if is_batch else gate),
                cost_in_flight=summariser.committed(None),
                stopped=stopped,
            )

        heart = Heart(store, crashes, clock, status)
        port = await enter(
            health.serve(
                settings.worker.host,
                settings.worker.port,
                metrics,
                lambda: worker.is_member and not observer.is_stopped(),
                lambda: heart.told(clock.now()),
            )
        )
        _calm_the_collector()
        log.info(
            "worker started", action="start", worker=newborn.worker, model=settings.model.name, port=port
        )
        await when_there(stop, heart.wake)
        held = HeldTopic(
            settings.kafka,
            topology=topology,
            group=settings.kafka.group_id,
            codec=codec,
            publisher=publisher,
            store=store,
            clock=clock,
        )
        # The held topic has one reader, which is the live lane's.
        watch = partial(held.watch, lambda: worker.owned if worker.is_member else frozenset())
        aside = [
            _beside(worker, heart.run),
            _beside(worker, store.flushing),
            _beside(worker, batches.run if is_batch else watch),
        ]
        try:
            await worker.run(stop)
        finally:
            await batches.settled(settings.worker.shutdown_timeout)
            for task in aside:
                task.cancel()
            await _store_what_was_paid(summariser, store, settings.worker.shutdown_timeout)
            with suppress(TimeoutError):
                await asyncio.wait_for(heart.beat(stopped=True), 2)
            log.info("worker stopped", action="stop", worker=newborn.worker)


def _beside(worker: KafkaWorker, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
    """Goes on beside the worker, which cannot be without it."""
    task = asyncio.create_task(work())
    task.add_done_callback(worker.ends_with)
    return task


async def _set_up(settings: Settings, stop: asyncio.Event, wanted: bool) -> None:
    if wanted:
        await when_there(stop, lambda: setup_topics(settings))
        await when_there(stop, lambda: setup_store(settings))


def _newborn(settings: Settings, lane: Lane, now: datetime) -> WorkerStatus:
    """This worker before it has done anything."""
    host, pid = platform.node(), os.getpid()
    return WorkerStatus(settings.worker.instance_id or f"{host}-{pid}", host, pid, lane, now, now)


def _gate(settings: Settings, clock: Clock) -> CallGate:
    limits = settings.limits
    return CallGate(
        settings.worker.max_in_flight,
        clock,
        requests_per_minute=limits.requests_per_minute,
        input_tokens_per_minute=limits.input_tokens_per_minute,
        output_tokens_per_minute=limits.output_tokens_per_minute,
    )


def _follow(metrics: WorkerMetrics, worker: KafkaWorker, store: ClickHouseStore) -> None:
    metrics.follow(metrics.in_flight, lambda: len(worker.running))
    metrics.follow(metrics.unstored, lambda: store.buffered_rows)
    metrics.follow(metrics.store_down, lambda: store.unavailable_since is not None)
    metrics.follow(metrics.partitions, lambda: len(worker.partitions))
    metrics.follow(metrics.member, lambda: worker.is_member)


def _follow_model(metrics: WorkerMetrics, gate: CallGate, breakers: Breakers) -> None:
    metrics.follow(metrics.calls_now, lambda: gate.state().calls)
    metrics.follow(metrics.calls_waiting, lambda: gate.state().waiting)
    metrics.follow(metrics.places, lambda: gate.state().width)
    metrics.follow(metrics.retry_after, lambda: gate.state().cooling)
    for unit in UNITS:
        metrics.follow(metrics.limits.labels(unit), partial(_limit, gate, unit))
        metrics.follow(metrics.used.labels(unit), partial(_used, gate, unit))
    models, all_of_them = partial(breakers.count_open, "model "), partial(breakers.count_open, "")
    metrics.follow(metrics.breakers.labels("model"), models)
    metrics.follow(metrics.breakers.labels("source"), lambda: all_of_them() - models())


def _limit(gate: CallGate, unit: str) -> float:
    return gate.state().limits[unit.replace("_", "-")]  # as the provider's headers have it


def _used(gate: CallGate, unit: str) -> float:
    return gate.state().used[unit.replace("_", "-")]


def _calm_the_collector() -> None:
    """What start-up has made stays: without this, collections cost a sixth of a worker's processor time.

    Cycles of the work itself are still found, less often: memory stayed the same over thousands of documents.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _membership(settings: Settings, lane: Lane, name: str, retries: Sequence[str]) -> Membership:
    topology, kafka, is_batch = settings.topology(), settings.kafka, lane is Lane.BATCH
    live = (topology.documents, *topology.inputs, topology.backfill)
    return Membership(
        brokers=kafka.bootstrap_servers,
        group=kafka.group_of(lane),
        topics=(topology.batch,) if is_batch else live,
        retries=() if is_batch else retries,
        waiting=settings.batch.open_documents if is_batch else 0,
        partitions=topology.partitions,
        slots=settings.worker.slots_per_partition,
        drain=settings.worker.drain_timeout,
        name=name,
        instance_id=settings.worker.instance_id,
        credentials=faust_credentials(settings.kafka),
        who=identity(settings.kafka),
        datadir=state_folder(settings.home),
    )


def state_folder(home: Path) -> Path:
    """What Faust wants to have a folder for, made. Raises ConfigurationError where that cannot be."""
    folder = home / "faust"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be made ({error.strerror}): set DOCSUM_HOME to a folder that may be written to."
        ) from error
    return folder


async def _checked_topics(admin: KafkaAdmin, settings: Settings, lane: Lane) -> tuple[str, ...]:
    """The retry topics that exist, those of former delays included. Raises ConfigurationError.

    Rights come first: a topic that one may not describe looks like one that does not exist.
    """
    role, topology = Role.BATCH if lane is Lane.BATCH else Role.WORKER, settings.topology()
    await admin.prove(rights_of(role, topology, settings.kafka), topology)
    wrong = await admin.check(topology)
    if wrong:
        raise ConfigurationError(f"{wrong[0]} Run `docsum setup topics`.")
    return tuple(await admin.existing_retry_topics(topology))


async def _store_what_was_paid(
    summariser: AnthropicSummariser, store: ClickHouseStore, timeout: timedelta
) -> None:
    """After the group has been left: calls that were sent may answer, and what they cost is not lost."""
    deadline = time.monotonic() + timeout.total_seconds()
    missing = await summariser.drain(timeout)
    unstored = await store.drain(timedelta(seconds=max(1.0, deadline - time.monotonic())))
    if missing or unstored:
        log.error(
            "paid answers were not stored",
            action="stop",
            calls_without_answer=missing,
            answers_not_stored=unstored,
        )
