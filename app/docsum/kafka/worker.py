"""Everything that knows Faust.

Faust gives membership, the consumer thread and the lifecycle. Its own acknowledgement, commit, pause and
error paths lose messages (faust-streaming 0.15.3: `Consumer._new_offset` jumps over an unfinished head, an
agent that raises acknowledges its event, `pause_partitions` drops records that were fetched already), so
none of them is used: raw bytes come out of `stream.noack().events()`, each partition has a queue with an
offset tracker, and the finished prefix is committed explicitly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import faust
import faust.transport.drivers.aiokafka as faust_driver
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP
from mode.threads import WorkerThread

from docsum.errors import BrokerUnavailable, DocsumError
from docsum.kafka.headers import delivery_of
from docsum.kafka.partition_queue import Doors, PartitionQueue, QueueState
from docsum.kafka.records import read_any_header
from docsum.kafka.refusals import right_missing
from docsum.models import Outcome
from docsum.pipeline import Deferred, Trip
from docsum.ports import Clock

COMMIT_EVERY = timedelta(seconds=0.5)
COMMIT_TIMEOUT = timedelta(seconds=10)
WATCH_EVERY = timedelta(seconds=5)
FETCH_WAIT = timedelta(milliseconds=200)
#: Partitions that belong to nobody at two looks in a row are asked for.
LOOK_FOR_UNOWNED_EVERY = timedelta(seconds=15)
#: Work that waits for nobody, while no delivery ends for so long, is stuck.
STALLED_AFTER = timedelta(minutes=10)
#: A rebalance, or a life outside the group, that lasts longer than this is a fault of the client.
LOST_AFTER = timedelta(minutes=5)
YEAR = timedelta(days=365)

log = structlog.get_logger(__name__)

Process = Callable[[Trip], Awaitable[Outcome | Deferred]]


@dataclass(frozen=True, slots=True)
class Membership:
    """How this worker takes part in its group."""

    brokers: str
    group: str
    topics: Sequence[str]
    retries: Sequence[str]  # further topics, whose records wait for their not-before time
    partitions: int  # of each of our topics
    slots: int  # deliveries at once from one partition
    drain: timedelta
    waiting: int = 0  # deliveries of one partition that may be set aside
    name: str = "docsum"  # under which the broker lists it
    instance_id: str = ""  # set: static membership, which is listed under this one
    credentials: Any = None  # Any: one of Faust's credential classes, or None
    who: str = "user ANONYMOUS"  # as Kafka knows it
    datadir: Path = Path("/nonexistent")

    @property
    def session(self) -> timedelta:
        """A killed dynamic member stops the whole group until its session ends: keep that short."""
        return timedelta(seconds=30 if self.instance_id else 10)

    @property
    def high(self) -> int:
        """Deliveries of a partition held before fetching stops.

        Enough to keep the slots busy over a fetch; more would only delay the first ones of other partitions,
        for Faust hands out one partition's records before the next one's.
        """
        return max(48, 3 * self.slots, self.waiting)


class KafkaWorker:
    """One member of the consumer group. `run` returns after a clean stop and raises when it must crash."""

    def __init__(
        self,
        membership: Membership,
        process: Process,
        clock: Clock,
        on_share: Callable[[float], None],
        unowned: Callable[[], Awaitable[frozenset[str]]] | None = None,
        *,
        on_rebalance: Callable[[], None] = lambda: None,
        on_expired: Callable[[str, int], None] = lambda topic, count: None,
    ) -> None:
        """`on_share` is told what part of the partitions is ours, whenever that changes. `unowned` looks for
        partitions, as `topic[n]`, that no member of the group has. `on_expired` is told of records that
        retention has deleted unread.
        """
        self._membership = membership
        self._clock = clock
        self._on_share = on_share
        self._unowned = unowned
        self._on_rebalance = on_rebalance
        self._on_expired = on_expired
        self._numbers: frozenset[int] = frozenset()  # of partitions, as last assigned
        self._share: float | None = None
        self._missing: frozenset[str] = frozenset()  # at the last look
        self._process = process
        self._doors = Doors(self._work, self._full, self._room, self._crash)
        self._queues: dict[TP, PartitionQueue] = {}
        self._crashed: asyncio.Future[None] | None = None
        self._stopping = False
        self._closing = False
        self._close_lock = asyncio.Lock()
        self._commit_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._moved = time.monotonic()
        self._in_group = time.monotonic()
        self._app: Any = None  # Any: Faust is not typed

    # -- what others may see ----------------------------------------------------------------------------

    @property
    def partitions(self) -> tuple[str, ...]:
        """Every partition that this worker owns, as `topic[n]`."""
        return tuple(sorted(f"{tp.topic}[{tp.partition}]" for tp in self._assignment()))

    @property
    def owned(self) -> frozenset[int]:
        """The numbers of those partitions: the same of every topic."""
        return frozenset(tp.partition for tp in self._assignment())

    @property
    def running(self) -> tuple[Trip, ...]:
        """The deliveries at work."""
        return tuple(trip for queue in self._queues.values() for trip in queue.running.values())

    @property
    def is_member(self) -> bool:
        coordinator = self._coordinator()
        return bool(
            coordinator and coordinator.member_id and not self._app.rebalancing and not self._stopping
        )

    # -- life -------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then drain, commit and leave. Raises what made it crash."""
        self._crashed = asyncio.get_running_loop().create_future()
        self._app = self._faust_app()
        timers = [
            asyncio.create_task(self._every(COMMIT_EVERY, self._commit_all)),
            asyncio.create_task(self._every(WATCH_EVERY, self._watch)),
            asyncio.create_task(self._every(LOOK_FOR_UNOWNED_EVERY, self._ask_for_unowned)),
        ]
        start = asyncio.create_task(self._start())
        stopped = asyncio.create_task(stop.wait())
        fallen = asyncio.create_task(self._fallen())
        try:
            ends: set[asyncio.Future[Any]] = {stopped, fallen, self._crashed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._crashed.done():
                self._crashed.result()
            if fallen.done():
                reason = self._app.crash_reason
                raise self._refused(reason) or BrokerUnavailable(
                    f"The consumer crashed: {reason!r}"
                ) from reason
        finally:
            self._stopping = True
            for task in (*timers, stopped, fallen):
                task.cancel()
            await self._leave(start)

    async def _start(self) -> None:
        try:
            await self._app.start()
        except Exception as error:
            failed = self._refused(error) or BrokerUnavailable(f"The consumer could not start: {error!r}")
            failed.__cause__ = error
            self._crash(failed)

    async def _fallen(self) -> None:
        await self._app._crashed.wait()

    async def _leave(self, start: asyncio.Task[Any]) -> None:
        # Bounded: with the broker gone, Faust and aiokafka wait up to two minutes for it.
        bound = self._membership.drain + timedelta(seconds=20)
        stop = asyncio.create_task(self._app.stop())
        await asyncio.wait({stop}, timeout=bound.total_seconds())
        for task in (stop, start):
            if not task.done():
                task.cancel()
        await asyncio.gather(stop, start, return_exceptions=True)
        # A crashed Faust starts its agent again when that is cancelled: the process would never end.
        for _ in range(50):
            left = _tasks_of_faust()
            for task in left:
                task.cancel()
            if not left:
                return
            await asyncio.wait(left, timeout=0.1)

    def _faust_app(self) -> Any:
        # Faust names the round-robin assignor itself. Range over topics of equal partition counts gives
        # partition n of every topic to one worker, which keeps two deliveries of a document together.
        faust_driver.RoundRobinPartitionAssignor = RangePartitionAssignor  # type: ignore[attr-defined]  # its own import
        read_any_header()
        AIOKafkaConsumer.seek_to_committed = seek_to_committed
        faust_driver.AIOKafkaConsumerThread.Worker = _Thread
        member = self._membership
        rebalance = member.drain + timedelta(seconds=45)
        app: Any = faust.App(
            member.group,
            broker=[f"kafka://{server.strip()}" for server in member.brokers.split(",")],
            broker_credentials=member.credentials,
            broker_client_id=member.name,
            datadir=str(member.datadir),
            topic_disable_leader=True,
            topic_allow_declare=False,
            table_standby_replicas=0,
            store="memory://",
            stream_wait_empty=False,
            stream_buffer_maxsize=200,
            broker_max_poll_records=40,  # at most a fifth of the buffer: one poll must not overshoot it
            broker_max_poll_interval=YEAR.total_seconds(),  # Faust never rejoins once this has passed
            broker_session_timeout=member.session.total_seconds(),
            broker_heartbeat_interval=3,
            broker_rebalance_timeout=rebalance.total_seconds(),
            broker_request_timeout=(rebalance + timedelta(seconds=30)).total_seconds(),
            stream_processing_timeout=YEAR.total_seconds(),
            broker_commit_livelock_soft_timeout=YEAR.total_seconds(),
            consumer_auto_offset_reset="earliest",
            consumer_metadata_max_age_ms=10_000,
            consumer_max_fetch_size=128 * 1024,
            consumer_group_instance_id=member.instance_id or None,
            web_enabled=False,
            web_router_enabled=False,
            web_tables_enabled=False,
        )
        raw: dict[str, Any] = {
            "key_type": bytes,
            "value_type": bytes,
            "key_serializer": "raw",
            "value_serializer": "raw",
        }
        app.agent(app.topic(*member.topics, *member.retries, **raw), name="deliveries")(self._take)
        app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        app.on_before_shutdown.connect(self._on_shutdown, weak=False)
        return app

    async def _every(self, period: timedelta, act: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(period.total_seconds())
            try:
                await act()
            except Exception as error:
                self._crash(error)

    def ends_with(self, task: asyncio.Task[None]) -> None:
        """For tasks that no worker can be without: what one of them fails with, `run` raises."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)

    def _refused(self, error: BaseException | None) -> DocsumError | None:
        """A right that was taken away: starting again would not help."""
        if error is None:
            return None
        return right_missing(error, self._membership.who, group=self._membership.group)

    def _crash(self, error: BaseException) -> None:
        error = self._refused(error) or error
        if self._crashed is not None and not self._crashed.done():
            log.error("the worker must stop", action="crash", error=repr(error), exc_info=error)
            self._crashed.set_exception(error)

    # -- intake -----------------------------------------------------------------------------------------

    async def _take(self, stream: Any) -> None:
        """The one agent: hands records over and never waits."""
        async for event in stream.noack().events():
            if self._stopping or self._closing:
                continue  # not ours any more: nothing was committed for it
            message = event.message
            queue = self._queue(message)
            queue.put(
                delivery_of(
                    message.topic,
                    message.partition,
                    message.offset,
                    message.key,
                    message.value,
                    message.headers,
                    -1 if message.timestamp is None else round(message.timestamp * 1000),
                )
            )

    def _queue(self, message: Any) -> PartitionQueue:
        tp = TP(message.topic, message.partition)
        queue = self._queues.get(tp)
        if queue is not None and queue.generation == message.generation_id:
            if message.offset > queue.tracker.last:
                return queue
            # An offset seen again in one generation: a fresh tracker, never a mixed one.
            log.warning("an offset came again", action="reread", topic=tp.topic, partition=tp.partition)
            if queue.paused:
                self._room(*tp)
        if queue is not None:
            queue.die()
        member = self._membership
        queue = PartitionQueue(
            topic=tp.topic,
            partition=tp.partition,
            generation=message.generation_id,
            slots=member.slots,
            high=member.high,
            low=member.high // 2,
            doors=self._doors,
            clock=self._clock,
            delays=tp.topic in member.retries,
        )
        self._queues[tp] = queue
        return queue

    async def _work(self, trip: Trip) -> Outcome | Deferred:
        try:
            return await self._process(trip)
        finally:
            self._moved = time.monotonic()

    # `on_buffer_full` leaves what was fetched in place; `pause_partitions` would drop it.
    def _full(self, topic: str, partition: int) -> None:
        self._app.consumer.on_buffer_full(TP(topic, partition))

    def _room(self, topic: str, partition: int) -> None:
        self._app.consumer.on_buffer_drop(TP(topic, partition))

    # -- commits ----------------------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        if not (self._app.rebalancing or self._stopping or self._closing):
            await self._commit(self._queues.values(), COMMIT_TIMEOUT)

    async def _commit(self, queues: Iterable[PartitionQueue], timeout: timedelta) -> bool:
        """Store the finished prefixes; False: not stored, the next tick tries again."""
        async with self._commit_lock:
            due = {
                TP(queue.topic, queue.partition): (queue, offset)
                for queue in queues
                if queue.state is not QueueState.DEAD and (offset := queue.uncommitted) is not None
            }
            if not due:
                return True
            offsets = {tp: offset for tp, (_, offset) in due.items()}
            if not await self._commit_offsets(offsets, timeout):
                return False
            for queue, offset in due.values():
                queue.committed = offset
            return True

    async def _commit_offsets(self, offsets: dict[TP, int], timeout: timedelta) -> bool:
        """Bounded on the consumer thread itself.

        aiokafka repeats a commit for ever while the broker is away; one left behind would store an old
        offset in a topic that was made anew, and its records would be lost.
        """
        thread = self._app.consumer._thread
        consumer = thread._consumer

        async def once() -> bool:
            subscription = consumer._subscription.subscription
            assignment = subscription.assignment if subscription is not None else None
            if assignment is None:
                return False
            wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
            if not wanted.keys() <= assignment.tps:
                return False
            try:
                await asyncio.wait_for(
                    consumer._coordinator.commit_offsets(assignment, wanted), timeout.total_seconds()
                )
            except (TimeoutError, CommitFailedError):
                return False
            except KafkaError as error:
                if error.retriable:
                    return False
                raise
            return True

        stored = await self._on_thread(once(), timeout + timedelta(seconds=2))
        return bool(stored)

    async def _on_thread(self, work: Awaitable[Any], timeout: timedelta) -> Any:
        """Run on the consumer thread; None when the thread does not answer in time."""

        async def call() -> Any:
            return await work

        task = asyncio.create_task(self._app.consumer._thread.call_thread(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=timeout.total_seconds())
        if not task.done():
            task.cancel()
            log.warning("the consumer thread does not answer", action="commit")
            return None
        return task.result()

    # -- rebalances and the end -------------------------------------------------------------------------

    async def _on_revoked(self, app: Any, revoked: Any, **_: Any) -> None:
        await self._close("rebalance")  # the protocol is eager: everything is revoked

    async def _on_shutdown(self, app: Any, **_: Any) -> None:
        self._stopping = True
        await self._close("shutdown")

    async def _close(self, why: str) -> None:
        """Start nothing more, let paid calls finish within the drain time-out, commit, forget."""
        self._closing = True
        async with self._close_lock:  # a stop during a rebalance waits for its drain: one at a time
            queues = list(self._queues.values())
            self._queues.clear()
            for queue in queues:
                queue.drain()
            started = time.monotonic()
            deadline = started + self._membership.drain.total_seconds()
            while any(queue.running for queue in queues) and time.monotonic() < deadline:
                await self._wait_for_change(queues)
                await self._commit(queues, timedelta(seconds=2))  # so that a kill in here costs little
            stored = await self._commit(queues, timedelta(seconds=5))
            late = list(self._queues.values())  # slipped in meanwhile: must not outlive the generation
            self._queues.clear()
            if queues:
                log.info(
                    "partitions let go",
                    action="drain",
                    why=why,
                    partitions=len(queues),
                    unfinished=sum(len(queue.running) for queue in queues),
                    committed=stored,
                    seconds=round(time.monotonic() - started, 2),
                )
            for queue in (*queues, *late):
                queue.die()
            self._closing = False

    async def _wait_for_change(self, queues: Sequence[PartitionQueue]) -> None:
        running = [task for queue in queues for task in queue.running]
        if running:
            await asyncio.wait(
                running, timeout=COMMIT_EVERY.total_seconds(), return_when=asyncio.FIRST_COMPLETED
            )

    async def _on_assigned(self, app: Any, assigned: Any, **_: Any) -> None:
        self._numbers = frozenset(tp.partition for tp in assigned)
        self._on_rebalance()
        self._tell_share()
        # Faust says 1.5 s. A partition is not asked for while what came of it is handed over, and then not
        # before the long poll of all the others has ended: its next record would wait for as long.
        self._consumer()._fetcher._fetch_max_wait_ms = round(FETCH_WAIT.total_seconds() * 1000)
        self._in_group = time.monotonic()
        log.info(
            "partitions assigned",
            action="assign",
            partitions=sorted(self._numbers),
            share=round(self._share or 0, 3),
        )
        if assigned:
            task = asyncio.create_task(self._mark_starts([TopicPartition(*tp) for tp in assigned]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _tell_share(self) -> None:
        """Of the numbers that topics have by now: they may have grown since this worker was configured."""
        consumer = self._consumer()
        known = [len(consumer.partitions_for_topic(topic) or ()) for topic in self._membership.topics]
        seen = max(self._numbers, default=0) + 1  # metadata may be on their way
        share = len(self._numbers) / max(self._membership.partitions, seen, *known)
        if share != self._share:
            self._share = share
            self._on_share(share)

    async def _mark_starts(self, partitions: Sequence[TopicPartition]) -> None:
        """Commit the start of partitions that have no offset yet: lag scalers count those wrongly.

        Also tells when retention has deleted records that nobody had read.
        """
        consumer = self._consumer()

        async def look() -> dict[TopicPartition, tuple[int | None, int]]:
            starts = await consumer.beginning_offsets(partitions)
            committed = await committed_offsets(consumer, partitions)
            return {tp: (committed[tp], starts[tp]) for tp in partitions}

        try:
            async with self._commit_lock:
                found = await self._on_thread(look(), timedelta(seconds=30)) or {}
                fresh = {
                    TP(tp.topic, tp.partition): start
                    for tp, (committed, start) in found.items()
                    if committed is None
                }
                if fresh:
                    await self._commit_offsets(fresh, COMMIT_TIMEOUT)
        except KafkaError as error:
            log.warning("could not look at the committed offsets", action="assign", error=repr(error))
            return
        for tp, (committed, start) in found.items():
            if committed is not None and committed < start:
                self._on_expired(tp.topic, start - committed)
                log.error(
                    "records were deleted by retention before they were read",
                    action="expired",
                    topic=tp.topic,
                    partition=tp.partition,
                    committed=committed,
                    log_start=start,
                )

    # -- the watchdog -----------------------------------------------------------------------------------

    def _consumer(self) -> Any:
        """aiokafka's; None before Faust has made it."""
        thread = getattr(getattr(self._app, "consumer", None), "_thread", None)
        return getattr(thread, "_consumer", None)

    def _coordinator(self) -> Any:
        return getattr(self._consumer(), "_coordinator", None)

    def _assignment(self) -> Iterable[Any]:
        consumer = self._consumer()
        return consumer.assignment() if consumer is not None else ()

    async def _watch(self) -> None:
        """Notices what Faust does not: an unread group error, a lost membership, work that stands still."""
        coordinator = self._coordinator()
        if coordinator is None or self._stopping:
            return
        parked = coordinator._pending_exception is not None
        ended = coordinator._coordination_task is not None and coordinator._coordination_task.done()
        if parked or ended:

            async def check() -> None:
                coordinator.check_errors()  # reading the error lets aiokafka go on

            await self._on_thread(check(), timedelta(seconds=5))
        now = time.monotonic()
        if coordinator.member_id and not self._app.rebalancing:
            self._in_group = now
            self._tell_share()
        if now - self._in_group > LOST_AFTER.total_seconds():
            raise BrokerUnavailable(f"No member of {self._membership.group} for {LOST_AFTER}.")
        if not any(is_working(trip) for trip in self.running):
            self._moved = now
        if now - self._moved > STALLED_AFTER.total_seconds():
            raise RuntimeError(f"Nothing has finished for {STALLED_AFTER} although documents are at work.")

    async def _ask_for_unowned(self) -> None:
        """Joins again where partitions belong to nobody.

        A static member that comes back is given its old assignment, and no member knows that it is the leader
        and has to look at the topics (KIP-814; aiokafka 0.14 sends an older JoinGroup). Partitions that were
        added meanwhile would never be read. A leader that joins again makes the broker assign anew.
        """
        if self._unowned is None or not self.is_member:
            return
        before, self._missing = self._missing, frozenset()
        with suppress(BrokerUnavailable):
            self._missing = await self._unowned()
        if lost := before & self._missing:
            log.warning("partitions belong to nobody", action="rejoin", partitions=sorted(lost)[:10])
            self._missing = frozenset()
            coordinator = self._coordinator()

            async def join_again() -> None:
                coordinator.request_rejoin()

            await self._on_thread(join_again(), timedelta(seconds=5))


class _Thread(WorkerThread):
    """Faust's consumer: a crash may leave it running, and then it must not keep the process.

    What counts has been committed by then, and its place in the group ends with its session.
    """

    def __init__(self, service: Any, **options: Any) -> None:  # Any: mode is not typed
        super().__init__(service, **options)
        self.daemon = True


def _tasks_of_faust() -> set[asyncio.Task[Any]]:
    """By where their code is: Faust and mode keep no list of them."""
    return {task for task in asyncio.all_tasks() if _home(task) in ("faust", "mode")}


def _home(task: asyncio.Task[Any]) -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    parts = Path(code.co_filename).parts if code is not None else ()
    return parts[parts.index("site-packages") + 1] if "site-packages" in parts else ""


def is_working(trip: Trip) -> bool:
    """True while a delivery should be moving: not held, and not at a step that waits for others.

    Those are the turn after another delivery, the room for its text, the model (limits may allow one call a
    minute, and every call ends by itself) and the store, which waits out its own trouble and says so itself.
    """
    return trip.held is None and trip.stage not in ("turn", "room", "summarise", "store")


async def seek_to_committed(consumer: Any) -> dict[TopicPartition, int | None]:
    """In place of aiokafka's, which leaves the position of a partition alone that has no offset, or offset 0.

    What Faust has fetched in the middle of a rebalance it throws away, and calls this to have it again: the
    first records of a new partition were never read, and later commits passed over them.
    """
    partitions = consumer._subscription.assigned_partitions()
    offsets = await committed_offsets(consumer, partitions)
    for tp in partitions & consumer._subscription.assigned_partitions():
        consumer._fetcher.seek_to(tp, offsets[tp] or 0)  # before the log's start: begins there
    return offsets


async def committed_offsets(
    consumer: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, int | None]:
    """None where nothing was committed. One request, where aiokafka's `committed` makes one a partition."""
    found = await consumer._coordinator.fetch_committed_offsets(partitions)
    return {tp: found[tp].offset if tp in found else None for tp in partitions}
