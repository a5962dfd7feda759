"""The batch lane: requests at half the price, answered within a day, bought once whatever is killed.

    collect -> submit -> poll -> apply

The lane holds references, never texts. A delivery whose answer is not there is set aside (`Later`): its
request goes into the spool of its partition, and when the answer is in the ledger the delivery is worked
anew, as any other, and finds it there. Offsets stay uncommitted meanwhile, also for days, so that a kill
loses nothing.

What was bought is durable before the money: a row for the batch, under an id of ours that begins the id of
every item, and a row for every item. A batch belongs to one partition, so that after a rebalance exactly one
new owner adopts it. Nobody knows whether a batch exists whose create reply was lost: it is looked for among
the provider's batches until one of them is ours, and only when none has been for a while are its items asked
again.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import anthropic
import httpx2
import structlog

from docsum import settings
from docsum.errors import ConfigurationError, DocsumError, ModelFaltered, StoreError, TooLong
from docsum.models import (
    Answer,
    Batch,
    BatchItem,
    BatchState,
    ControlState,
    Lane,
    Rows,
    Usage,
)
from docsum.ports import BatchStore, Clock, Later
from docsum.summarisers import prompt
from docsum.summarisers.prices import OnTheirWay, Prices
from docsum.summarisers.prompt import Reply
from docsum.summarisers.provider_errors import reply_lost, translate, translate_item

log = structlog.get_logger(__name__)

MAX_BYTES = 16_000_000  # of a create's body; the API takes 256 MB, which no worker should hold
_CREATE_TIMEOUT = 120.0  # seconds
_FRESH = 5.0  # seconds from the moment when an intent is begun to the one when its request leaves
_CLOCKS_DIFFER = timedelta(minutes=5)  # ours and the provider's
_DURABLE_AT_ONCE = 100  # answers
_READINGS = 3  # of results that lack some of the items
_LOOK_AGAIN = 1.0  # seconds
_WAIT = timedelta(seconds=10)  # after a refusal that does not say how long
#: What comes of an answer that is none of the API's.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)

Json = Any


@dataclass(slots=True)
class _Order:
    """An item, and the deliveries that wait for it."""

    item: BatchItem
    cost: Decimal  # US dollars, estimated
    answered: asyncio.Future[None]
    documents: set[tuple[str, int]] = field(default_factory=set)  # id and version
    places: int = 0  # spools and open batches that it is in


@dataclass(slots=True)
class _Spool:
    """What a partition collects: the bodies in a file, the rest in memory."""

    begun: float  # by the monotonic clock, as the next one
    grown: float
    file: io.FileIO
    orders: list[_Order] = field(default_factory=list)
    runs: set[UUID | None] = field(default_factory=set)
    bytes: int = 0


@dataclass(slots=True)
class _Open:
    """A batch that was sent, perhaps."""

    batch: Batch
    orders: dict[str, _Order]  # by custom id
    sent: bool = True  # perhaps; False: certainly not
    look_at: float = 0.0  # by the monotonic clock: not earlier
    readings: int = 0
    strangers: set[str] = field(default_factory=set)  # batches that look like it and are not


def _boot_time() -> float:
    """Seconds that go on while the machine sleeps; a frozen process cannot be late without noticing."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class BatchLane:
    """All batches of one worker. `run` does the work; `find` and `order` are asked by deliveries."""

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        store: BatchStore,
        clock: Clock,
        prices: Prices,
        limits: settings.Batch,
        *,
        owned: Callable[[], frozenset[int]],
        wanted: Callable[[UUID | None], Awaitable[bool]],
        answered: Callable[[str], None] = lambda model: None,
        boot_time: Callable[[], float] = _boot_time,
    ) -> None:
        """`owned`: partition numbers of this worker; `wanted`: whether a run still wants to buy; `answered`
        is told of a model that has answered; `boot_time`: seconds that go on while the machine sleeps.
        """
        self._client = client
        self._store = store
        self._clock = clock
        self._prices = prices
        self._limits = limits
        self._owned = owned
        self._wanted = wanted
        self._answered = answered
        self._boot_time = boot_time
        self._orders: dict[str, _Order] = {}  # by fingerprint
        self._documents: dict[tuple[str, int], set[str]] = defaultdict(set)  # fingerprints, by id and version
        self._on_their_way = OnTheirWay()
        self._failures: dict[str, DocsumError] = {}  # of items, until their delivery asks
        self._spools: dict[int, _Spool] = {}
        self._open: dict[str, _Open] = {}
        self._adopted: frozenset[int] = frozenset()
        self._adopt_at = 0.0  # by the monotonic clock: look again, at the latest
        self._rest_until = 0.0
        self._sending = asyncio.Lock()
        self._hold = ""  # why nothing is sent at the moment, one sentence
        self._store_trouble = ""  # as that

    def __str__(self) -> str:
        """What a person wants to know: what is collected, what is open, what is wrong."""
        collected = sum(len(spool.orders) for spool in self._spools.values())
        waiting = sum(each.batch.size for each in self._open.values())
        doubtful = sum(each.batch.state is BatchState.IN_DOUBT for each in self._open.values())
        parts = (
            f"{len(self._open)} batches open with {waiting} requests",
            f"{collected} collected",
            f"{doubtful} in doubt" if doubtful else "",
            self._store_trouble,
            self._hold,
        )
        return ", ".join(filter(None, parts))

    async def settled(self, timeout: timedelta) -> None:
        """Returns when no create is under way, or after that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout.total_seconds()), self._sending:
                pass

    # -- what deliveries ask -----------------------------------------------------------------------------

    async def find(self, partition: int, document_id: str, version: int) -> Later | None:
        """What a version of a document waits for already: it need not be fetched for that.

        Returns when it is known what an earlier owner of the partition has bought.
        """
        while partition not in self._adopted and partition in self._owned():
            await self._clock.sleep(0.1)
        waiting = [self._orders[name].answered for name in self._documents.get((document_id, version), ())]
        return Later(waiting) if waiting else None

    def order(self, partition: int, item: BatchItem, params: Json) -> Later:
        """A request for the next batch of the partition, or the one that is on its way with the same text.

        Raises what the provider said of this item before, and OSError where it cannot be collected.
        """
        if failure := self._failures.pop(item.fingerprint, None):
            raise failure
        if (order := self._orders.get(item.fingerprint)) is None:
            order = self._note(item)
            try:
                self._collect(partition, order, params)
            except OSError:
                self._forget([order])
                raise
        self._is_waited_for(order, item)
        return Later([order.answered])

    async def is_late(self, run_id: UUID | None) -> bool:
        """Whether a run does not wait for the half price any more."""
        run = await self._store.run(run_id) if run_id else None
        return run is not None and run.by is not None and self._clock.now() >= run.by

    def committed(self, run_id: UUID | None) -> Decimal:
        """US dollars, estimated, of what was ordered and is not answered; None: of all runs."""
        return self._on_their_way.of(run_id)

    def _collect(self, partition: int, order: _Order, params: Json) -> None:
        line = json.dumps(params).encode() + b"\n"
        spool = self._spools.get(partition)
        if spool is None:
            # It is closed when it was sent.
            file = tempfile.TemporaryFile(prefix="docsum-batch-", buffering=0)  # noqa: SIM115
            now = self._clock.monotonic()
            spool = self._spools[partition] = _Spool(now, now, file)
        spool.file.seek(spool.bytes)  # a full disk may have cut the line that was to be here
        if spool.file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        spool.grown = self._clock.monotonic()
        spool.orders.append(order)
        order.places += 1
        spool.runs.add(order.item.run_id)
        spool.bytes += len(line)

    def _note(self, item: BatchItem) -> _Order:
        cost = self._prices.cost(item.model, _expected(item), Lane.BATCH)
        order = _Order(item, cost, asyncio.get_running_loop().create_future())
        self._orders[item.fingerprint] = order
        self._on_their_way.add(item.run_id, cost)
        return order

    def _is_waited_for(self, order: _Order, item: BatchItem) -> None:
        """`item`: as another document asks for it, perhaps, which has the same text."""
        order.documents.add((item.document_id, item.version))
        self._documents[item.document_id, item.version].add(item.fingerprint)

    # -- the work ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever; to be cancelled."""
        try:
            while True:
                trouble = ""
                try:
                    await self._turn()
                except (StoreError, ConfigurationError) as error:
                    trouble = str(error)
                    if trouble != self._store_trouble:
                        log.warning("the batch lane holds", action="batch", message=trouble)
                self._store_trouble = trouble
                await self._clock.sleep(min(_LOOK_AGAIN, self._limits.poll.total_seconds()))
        finally:
            for spool in self._spools.values():
                spool.file.close()

    async def _turn(self) -> None:
        await self._adopt()
        for partition, spool in [*self._spools.items()]:
            if self._is_due(spool) or any([await self.is_late(run_id) for run_id in spool.runs]):
                await self._submit(partition)
        for each in [*self._open.values()]:
            if each.look_at <= self._clock.monotonic():
                await self._look(each)

    async def _adopt(self) -> None:
        """Batches of partitions that are new here are ours from now on, those of others are not any more.

        Now and then of all partitions: a worker that was frozen may have sent one that was given up.
        """
        owned = self._owned()
        for partition in self._adopted - owned:
            self._let_go(partition)
        self._adopted &= owned
        fresh, now = owned - self._adopted, self._clock.monotonic()
        if not owned or (not fresh and now < self._adopt_at):
            return
        for found, items in await self._store.open_batches(owned, self._open.keys()):
            batch = found
            if batch.state is BatchState.SUBMITTING:  # its owner ended in between
                batch = await self._saved(batch, BatchState.IN_DOUBT, detail="its worker ended")
            orders = {}
            for item in items:
                order = orders[item.custom_id] = self._orders.get(item.fingerprint) or self._note(item)
                self._is_waited_for(order, item)
            self._keep_open(_Open(batch, orders))
        self._adopted |= fresh
        self._adopt_at = now + self._limits.doubt.total_seconds()
        if fresh and self._open:
            log.info("batches adopted", action="batch", partitions=sorted(fresh), open=len(self._open))

    def _let_go(self, partition: int) -> None:
        if spool := self._spools.pop(partition, None):
            spool.file.close()
            self._leave(spool.orders)
        for each in [each for each in self._open.values() if each.batch.partition == partition]:
            self._close(each)

    def _keep_open(self, each: _Open) -> None:
        self._open[each.batch.intent] = each
        for order in each.orders.values():
            order.places += 1

    def _close(self, each: _Open) -> None:
        del self._open[each.batch.intent]
        self._leave(each.orders.values())

    def _leave(self, orders: Collection[_Order]) -> None:
        """Their spool or batch is over: those that are in no other one are asked again.

        An intent that shows late, when its requests were collected again, has the same orders as another.
        """
        for order in orders:
            order.places -= 1
        self._forget(order for order in orders if not order.places)

    def _forget(self, orders: Iterable[_Order]) -> None:
        """They are answered, or nobody will: whoever waits asks again."""
        for order in orders:
            name = order.item.fingerprint
            if self._orders.get(name) is not order:
                continue
            del self._orders[name]
            self._on_their_way.remove(order.item.run_id, order.cost)
            for key in order.documents:
                self._documents[key].discard(name)
                if not self._documents[key]:
                    del self._documents[key]
            order.answered.set_result(None)

    def _is_due(self, spool: _Spool) -> bool:
        now, limits = self._clock.monotonic(), self._limits
        if now < self._rest_until:
            return False
        if now - spool.grown >= limits.quiet.total_seconds():
            return True
        old = now - spool.begun >= limits.max_age.total_seconds()
        return old or len(spool.orders) >= limits.max_requests or spool.bytes >= MAX_BYTES

    # -- submitting --------------------------------------------------------------------------------------

    async def _submit(self, partition: int) -> None:
        """Sends what was collected, in parts that are small enough. What is not sent is asked again."""
        spool = self._spools.pop(partition)
        try:
            # Much may have been asked for while they were collected.
            wanted = {
                run_id: await self._wanted(run_id) and not await self.is_late(run_id) for run_id in spool.runs
            }
            spool.file.seek(0)
            # Not strict: a full disk may have left a part of a line at the end.
            lines = zip(spool.orders, io.BufferedReader(spool.file), strict=False)
            bought = (
                (order, line)
                for order, line in lines
                if wanted[order.item.run_id] and order.places == 1 and not order.answered.done()
            )
            for part in _parts(bought, self._limits.max_requests):
                await self._buy(partition, part)
        finally:
            spool.file.close()
            self._leave(spool.orders)

    async def _buy(self, partition: int, part: Sequence[tuple[_Order, bytes]]) -> None:
        now, intent = self._clock.now(), secrets.token_hex(6)
        batch = Batch(intent, partition, BatchState.SUBMITTING, len(part), now, now)
        for order, _ in part:
            name = custom_id(intent, order.item.fingerprint)
            order.item = replace(order.item, intent=intent, custom_id=name)
        each = _Open(batch, {order.item.custom_id: order for order, _ in part}, sent=False)
        self._keep_open(each)  # from here on: the store may know of it although it does not say so
        begun = self._boot_time()
        await self._store.add_batch(batch, [order.item for order, _ in part])
        if partition not in self._owned() or self._boot_time() - begun > _FRESH:
            await self._give_back(each, BatchState.ABANDONED, "another worker may have its partition by now")
            return
        async with self._sending:
            each.sent = True
            await self._send(each, part)

    async def _send(self, each: _Open, part: Sequence[tuple[_Order, bytes]]) -> None:
        try:
            async with asyncio.timeout(_CREATE_TIMEOUT):
                response = await self._client.post(
                    "/v1/messages/batches",
                    content=_body(part),
                    cast_to=httpx2.Response,
                    options={"headers": {"Content-Type": "application/json"}},
                )
            created = str(json.loads(response.content)["id"])
        except (anthropic.AnthropicError, httpx2.HTTPError, TimeoutError, *_MALFORMED) as error:
            await self._not_created(each, error)
            return
        await self._submitted(each, created)

    async def _not_created(self, each: _Open, error: Exception) -> None:
        if not _is_refused(error):
            each.look_at = self._clock.monotonic() + self._limits.poll.total_seconds()
            each.batch = await self._saved(each.batch, BatchState.IN_DOUBT, detail=type(error).__name__)
            return
        failure = translate(error)
        await self._give_back(each, BatchState.REJECTED, str(failure))
        if isinstance(failure, TooLong) and len(each.orders) > 1:
            smaller = {"max_requests": len(each.orders) // 2}
            self._limits = self._limits.model_copy(update=smaller)
        wait = getattr(failure, "retry_after", None) or _WAIT
        self._rest_until = self._clock.monotonic() + wait.total_seconds()
        self._hold = str(failure)

    async def _submitted(self, each: _Open, provider_id: str) -> None:
        self._hold = ""
        each.batch = replace(each.batch, provider_id=provider_id)
        each.batch = await self._saved(each.batch, BatchState.SUBMITTED)
        each.look_at = self._clock.monotonic() + self._limits.poll.total_seconds()
        log.info(
            "batch submitted",
            action="batch",
            batch=each.batch.intent,
            provider_id=provider_id,
            partition=each.batch.partition,
            items=each.batch.size,
        )

    async def _give_back(self, each: _Open, state: BatchState, detail: str) -> None:
        """It does not exist: its items are asked again by their deliveries, once the store knows that."""
        each.batch = await self._saved(each.batch, state, detail=detail)
        self._close(each)
        log.warning("batch not made", action="batch", batch=each.batch.intent, state=state, message=detail)

    async def _saved(self, batch: Batch, state: BatchState, **changes: Any) -> Batch:
        batch = replace(batch, state=state, changed_at=self._clock.now(), **changes)
        await self._store.save_batch(batch)
        return batch

    # -- polling -----------------------------------------------------------------------------------------

    async def _look(self, each: _Open) -> None:
        each.look_at = self._clock.monotonic() + self._limits.poll.total_seconds()
        try:
            if each.batch.provider_id:
                found = await self._client.messages.batches.retrieve(each.batch.provider_id)
                if self._clock.monotonic() >= self._rest_until:
                    self._hold = ""
                if found.processing_status == "ended":
                    await self._apply(each)
                elif found.cancel_initiated_at is None and await self._is_cancelled(each):
                    await self._client.messages.batches.cancel(each.batch.provider_id)
                    log.info("batch cancelled with its run", action="batch", batch=each.batch.intent)
            else:
                await self._resolve(each)
        except anthropic.NotFoundError:
            if self._clock.now() - each.batch.changed_at > self._limits.doubt:  # younger ones may be unknown
                # To ask its items again would buy them twice if it is only the key that does not fit.
                unknown = each.batch.provider_id
                self._hold = f"the provider does not know {unknown}: use a key of the workspace that made it"
        except (anthropic.AnthropicError, httpx2.HTTPError, TimeoutError) as error:
            self._hold = str(translate(error)) if isinstance(error, anthropic.AnthropicError) else str(error)
            log.warning(
                "could not look at a batch", action="batch", batch=each.batch.intent, error=repr(error)
            )
        except _MALFORMED as error:
            # Neither applied nor asked again: what cannot be read was paid for.
            name = each.batch.provider_id or each.batch.intent
            self._hold = (
                f"the provider's answer about {name} cannot be read: its requests wait and are not "
                "bought again; report it, and update docsum"
            )
            log.error(  # noqa: TRY400 - a stack may show the answer
                "an answer about a batch cannot be read",
                action="batch",
                batch=each.batch.intent,
                error=repr(error),
                message=self._hold,
            )

    async def _is_cancelled(self, each: _Open) -> bool:
        """Whether all of it was for one run, which was cancelled."""
        runs = {order.item.run_id for order in each.orders.values()}
        if len(runs) != 1 or (run_id := runs.pop()) is None:
            return False
        run = await self._store.run(run_id)
        return run is not None and run.wanted is ControlState.CANCELLED

    async def _resolve(self, each: _Open) -> None:
        """Was it created? Among the provider's batches of that time, one whose first result is ours."""
        if not each.sent:
            await self._give_back(each, BatchState.ABANDONED, "the store did not confirm it: it was not sent")
            return
        began = each.batch.created_at
        known = await self._store.provider_batches(began - _CLOCKS_DIFFER)
        if name := next((name for name, intent in known.items() if intent == each.batch.intent), None):
            await self._submitted(each, name)  # its former owner has heard of it after all
            return
        waiting = False
        async for found in self._client.messages.batches.list(limit=100):
            if found.created_at < began - _CLOCKS_DIFFER:
                break
            counts = found.request_counts
            size = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if size != each.batch.size or found.id in known or found.id in each.strangers:
                continue
            if found.processing_status != "ended":
                waiting = True
            elif await self._is_ours(found.id, each):
                log.info("batch found again", action="batch", batch=each.batch.intent, provider_id=found.id)
                await self._submitted(each, found.id)
                return
            else:
                each.strangers.add(found.id)
        doubtful_for = self._clock.now() - each.batch.changed_at
        if not waiting and doubtful_for > self._limits.doubt:
            await self._give_back(each, BatchState.ABANDONED, "it was never created")

    async def _is_ours(self, provider_id: str, each: _Open) -> bool:
        async for line in self._results(provider_id):
            return str(line["custom_id"]).startswith(f"{each.batch.intent}-")
        return False

    # -- applying ----------------------------------------------------------------------------------------

    async def _apply(self, each: _Open) -> None:
        """Every answer into the ledger, then the batch is done with, then its deliveries go on."""
        ends: dict[str, str] = {}  # by custom id
        cost, ready = Decimal(0), []
        async for line in self._results(each.batch.provider_id):
            order, result = each.orders.get(line["custom_id"]), line["result"]
            if order is None:
                log.error("a result that nobody asked for", action="batch", custom_id=line["custom_id"])
                continue
            if line["custom_id"] not in ends and result["type"] == "succeeded":
                answer = self._answer(order.item, prompt.read_message(result["message"]))
                cost += answer.cost
                ready.append(answer)
            elif result["type"] == "errored":
                self._note_failure(order.item, result["error"])
            ends[line["custom_id"]] = result["type"]
            if len(ready) >= _DURABLE_AT_ONCE:
                await self._store.write(Rows(answers=tuple(ready)))
                ready = []
        missing = [order for name, order in each.orders.items() if name not in ends]
        if missing and each.readings < _READINGS:
            each.readings += 1
            return
        ready += [self._answer(order.item, _lost(order.item)) for order in missing]
        if ready:
            await self._store.write(Rows(answers=tuple(ready)))
        counts = Counter(ends.values())
        each.batch = await self._saved(
            each.batch,
            BatchState.APPLIED,
            ended_at=self._clock.now(),
            succeeded=counts["succeeded"],
            errored=counts["errored"],
            canceled=counts["canceled"],
            expired=counts["expired"],
            missing=len(missing),
            cost=cost,
        )
        succeeded = [order for name, order in each.orders.items() if ends.get(name) == "succeeded"]
        for model in {order.item.model for order in succeeded}:
            self._answered(model)
        self._forget(succeeded)
        self._close(each)
        log.info("batch applied", action="batch", batch=each.batch.intent, missing=len(missing), **counts)

    async def _results(self, provider_id: str) -> AsyncIterator[Mapping[str, Json]]:
        """Line by line, as plain objects: the SDK's models would double the work."""
        response = await self._client.get(
            f"/v1/messages/batches/{provider_id}/results",
            cast_to=httpx2.Response,
            options={"headers": {"Accept": "application/x-jsonl"}},
            stream=False,
        )
        async for text in response.aiter_lines():
            if text.strip():
                yield json.loads(text)

    def _answer(self, item: BatchItem, reply: Reply) -> Answer:
        return Answer(
            fingerprint=item.fingerprint,
            request_id=reply.id,
            model=item.model,
            raw=reply.text,
            usage=reply.usage,
            cost=self._prices.cost(item.model, reply.usage, Lane.BATCH),
            price_version=self._prices.version,
            status=reply.status,
            answered_at=self._clock.now(),
            latency_ms=0,
            document_id=item.document_id,
            run_id=item.run_id,
            chunk=item.chunk,
            lane=Lane.BATCH,
            detail=reply.detail,
        )

    def _note_failure(self, item: BatchItem, error: Mapping[str, Json]) -> None:
        """What is this document's own, or the account's, its delivery is told; the rest is asked again."""
        failure = translate_item(error)
        if not isinstance(failure, ModelFaltered):
            self._failures[item.fingerprint] = failure


def _lost(item: BatchItem) -> Reply:
    """In place of a result that never came: it may have been paid for."""
    return Reply(f"lost-{item.custom_id}", "", _expected(item), "lost", "no result")


def _expected(item: BatchItem) -> Usage:
    return Usage(item.input_tokens, item.output_tokens)


def _parts(lines: Iterable[tuple[_Order, bytes]], most: int) -> Iterator[list[tuple[_Order, bytes]]]:
    """In order, at most so many and MAX_BYTES in each."""
    part: list[tuple[_Order, bytes]] = []
    size = 0
    for order, line in lines:
        if part and (len(part) == most or size + len(line) > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append((order, line))
        size += len(line)
    if part:
        yield part


def _body(part: Sequence[tuple[_Order, bytes]]) -> bytes:
    """Of a create: the bodies are JSON already."""
    requests = (
        b'{"custom_id":"%s","params":%s}' % (order.item.custom_id.encode(), line) for order, line in part
    )
    return b'{"requests":[%s]}' % b",".join(requests)


def custom_id(intent: str, fingerprint: str) -> str:
    """Valid at the API by construction, the same for the same request, and it says whose it is."""
    digest = hashlib.sha256(fingerprint.encode()).digest()
    return f"{intent}-{base64.b32encode(digest).decode()[:40].lower()}"


def _is_refused(error: Exception) -> bool:
    """Whether the provider has said that it made nothing."""
    if isinstance(error, anthropic.APIStatusError):
        return 400 <= error.status_code < 500 and error.status_code not in (408, 409, 499)
    return isinstance(error, anthropic.AnthropicError) and not reply_lost(error)
