"""Dead letters: sent back to where they came from, with proof that it helps; or given up.

A copy is acknowledged before its entry is written as `replayed`, so a replay that is killed has lost nothing:
the next one takes those that are still open, and copies at most one batch a second time. That is harmless,
for an event is the same event however often it comes.

The `replay_count` of an entry says how often its event had been replayed when it arrived in the dead-letter
topic, so one that comes back shows over its own `replayed` row.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from random import Random
from typing import Any, Protocol
from uuid import UUID

from docsum.errors import (
    BrokerError,
    BrokerUnavailable,
    DocsumError,
    InvalidEvent,
    StoreUnavailable,
    WorkPaused,
)
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    ControlState,
    Coordinates,
    DeadLetterFilter,
    DeadLetterRow,
    Delivery,
    RecordCopy,
    Rows,
    Run,
)
from docsum.ports import Clock, Codec, Publisher, SummaryStore
from docsum.topics import Topology

MOST_REPLAYS = 2  # after that an entry is parked: it would come back for ever
SAMPLE = 10  # entries that go first
SAMPLE_WITHIN = timedelta(minutes=5)  # longer than the retry topics take with their usual delays
LOOK_EVERY = timedelta(seconds=1)
PAGE = 5_000  # entries that one question to the store brings: it costs about the same for one as for all
AT_ONCE = 1_000  # entries in one write
BATCH_BYTES = 16_000_000  # of records in flight
WRITE_WITHIN, GOODBYE = timedelta(seconds=60), timedelta(seconds=5)
_BURST = 0.1  # seconds whose share may go at once


class DeadLetterRecords(Protocol):
    """The dead-letter topic itself."""

    async def offsets(self) -> Mapping[int, range]:
        """Partition -> the offsets that it has at this moment. Raises BrokerUnavailable."""

    def read(
        self, places: Collection[Coordinates]
    ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
        """Each record once, in the order of the topic; None for one that Kafka has deleted."""


class Unsettled(enum.StrEnum):
    """The states of entries that can be given up. One that was replayed need not come back, nor be stored."""

    OPEN = "open"
    REPLAYED = "replayed"
    PARKED = "parked"


DISCARDABLE = tuple(each.value for each in Unsettled)


class Fate(enum.StrEnum):
    """What a replay does with an entry."""

    REPLAY = "replay"
    PARK = "park"
    STAY = "stay"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fate of one entry; of one that stays, why, in a sentence."""

    fate: Fate
    why: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries that a person means: those that a filter finds, and single ones by their coordinates."""

    meant: DeadLetterFilter | None
    places: tuple[Coordinates, ...] = ()  # in the dead-letter topic
    limit: int | None = None  # no more are replayed

    def before(self, moment: datetime) -> Selection:
        """Without what fails from then on: nobody has seen it."""
        if self.meant is None:
            return self
        return replace(self, meant=replace(self.meant, until=min(self.meant.until or moment, moment)))

    def __str__(self) -> str:
        parts = [told(self.meant)] if self.meant else []
        parts += [str(place) for place in self.places]
        return " and ".join(parts) + (f", at most {self.limit:,}" if self.limit is not None else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would do."""

    selection: Selection
    tally: Mapping[str, Counter[Fate]]  # by reason
    stays: Mapping[str, int]  # why entries stay -> how many
    sample: tuple[DeadLetterRow, ...]
    offsets: Mapping[int, range]  # of the topic when it was made: what arrives later is no part of it

    def count(self, fate: Fate) -> int:
        return sum(fates[fate] for fates in self.tally.values())

    @property
    def moves(self) -> int:
        """Entries that would change their state."""
        return self.count(Fate.REPLAY) + self.count(Fate.PARK)


@dataclass(frozen=True, slots=True)
class Proof:
    """How the sample has fared so far."""

    sent: int = 0
    helped: int = 0  # the document is stored as new as the event, or newer
    failed: int = 0  # dead-lettered again

    @property
    def waiting(self) -> int:
        return self.sent - self.helped - self.failed

    @property
    def cause_remains(self) -> bool:
        return self.failed * 2 > self.sent

    @property
    def good(self) -> bool:
        """However the others end, no more than half can fail."""
        return (self.sent - self.helped) * 2 <= self.sent


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come."""

    replayed: int = 0
    parked: int = 0
    gone: int = 0  # their records could not be read any more
    proof: Proof | None = None
    proving: bool = False


def judge(row: DeadLetterRow, topology: Topology, offsets: Mapping[int, range], run: Run | None) -> Verdict:
    """What a replay does with an entry; `run` is the entry's. Pure."""
    origin, copy = row.origin.topic, row.dead_letter
    if row.replay_count >= MOST_REPLAYS:
        return Verdict(Fate.PARK)
    if origin not in (topology.documents, topology.backfill, topology.batch, *topology.inputs):
        return Verdict(
            Fate.STAY, f"{origin} is no input of this deployment: add it to DOCSUM_TOPICS__INPUTS to replay."
        )
    if copy.topic != topology.dead_letters:
        return Verdict(
            Fate.STAY,
            f"It is in {copy.topic}, this deployment's dead letters are in {topology.dead_letters}.",
        )
    if copy.offset not in offsets.get(copy.partition, range(0)):
        return Verdict(Fate.STAY, "Kafka has deleted its record: announce the document again.")
    if run is not None and run.wanted is ControlState.CANCELLED:
        return Verdict(Fate.STAY, f"Its run {run.id} is cancelled, and that is final: discard it.")
    if run is not None and run.wanted is ControlState.PAUSED:
        return Verdict(Fate.STAY, f"Its run is paused: `docsum runs resume {run.id}` first.")
    return Verdict(Fate.REPLAY)


def sample_of(
    drawn: Mapping[str, Sequence[DeadLetterRow]], counts: Mapping[str, int], size: int = SAMPLE
) -> tuple[DeadLetterRow, ...]:
    """One of each reason, the most frequent first, then in proportion to how many there are of each. Pure.

    `drawn` are up to `size` of each reason.
    """
    shares = dict.fromkeys(sorted(drawn, key=lambda reason: -counts[reason])[:size], 1)
    for _ in range(size - len(shares)):
        with_more = [reason for reason in shares if shares[reason] < len(drawn[reason])]
        if with_more:
            shares[max(with_more, key=lambda reason: counts[reason] / (shares[reason] + 1))] += 1
    return tuple(row for reason, share in shares.items() for row in drawn[reason][:share])


def told(meant: DeadLetterFilter) -> str:
    """A filter in words."""
    parts = [" or ".join(meant.states) or "all", "entries"]
    if meant.reasons:
        parts.append(f"that failed with {' or '.join(meant.reasons)}")
    if meant.documents:
        parts.append(f"of {' or '.join(meant.documents)}")
    if meant.run_id:
        parts.append(f"of run {meant.run_id}")
    if meant.since:
        parts.append(f"since {meant.since:%Y-%m-%d %H:%M} UTC")
    if meant.until:
        parts.append(f"until {meant.until:%Y-%m-%d %H:%M} UTC")
    return " ".join(parts)


# -- entries -----------------------------------------------------------------------------------------------


async def entries(store: SummaryStore, meant: DeadLetterFilter) -> AsyncGenerator[DeadLetterRow, None]:
    """Every entry, in the order of the topic, a page in memory at a time."""
    after: Coordinates | None = None
    while True:
        page = await store.dead_letters(meant, after, PAGE)
        for row in page:
            yield row
        if len(page) < PAGE:
            return
        after = page[-1].dead_letter


async def entry_at(store: SummaryStore, place: Coordinates) -> DeadLetterRow | None:
    """The entry whose record is at these coordinates of the dead-letter topic, in whatever state."""
    before = replace(place, offset=place.offset - 1)
    page = await store.dead_letters(DeadLetterFilter(states=()), before, 1)
    return page[0] if page and page[0].dead_letter == place else None


async def chosen(
    store: SummaryStore, selection: Selection, states: Collection[str]
) -> AsyncGenerator[DeadLetterRow, None]:
    """The entries of a selection that are in one of these states."""
    for place in selection.places:
        row = await entry_at(store, place)
        if row is not None and row.state in states:
            yield row
    if selection.meant is not None:
        async with aclosing(entries(store, selection.meant)) as found:
            async for row in found:
                yield row


async def discard(
    store: SummaryStore, selection: Selection, states: Collection[str]
) -> AsyncGenerator[int, None]:
    """Writes the entries as discarded; yields how many, page by page, each once it is durable."""
    page: list[DeadLetterRow] = []
    async with aclosing(chosen(store, selection, states)) as found:
        async for row in found:
            page.append(replace(row, state="discarded"))
            if len(page) == AT_ONCE:
                await _write(store, page)
                yield len(page)
                page = []
    if page:
        await _write(store, page)
        yield len(page)


async def _write(
    store: SummaryStore, rows: Sequence[DeadLetterRow], within: timedelta = WRITE_WITHIN
) -> None:
    try:
        async with asyncio.timeout(within.total_seconds()):
            await store.write(Rows(dead_letters=tuple(rows)))
    except TimeoutError as error:
        raise StoreUnavailable(
            "ClickHouse does not take the new states; the same command goes on later."
        ) from error


# -- replay ------------------------------------------------------------------------------------------------


class Replay:
    """One call of `docsum dlq replay`. `progress` is right at any moment, also after an interruption."""

    def __init__(
        self,
        *,
        store: SummaryStore,
        records: DeadLetterRecords,
        publisher: Publisher,
        codec: Codec,
        clock: Clock,
        topology: Topology,
        copy: Callable[[Delivery], RecordCopy],
        rate: int,
        random: Random,
    ) -> None:
        """`rate`: copies a second; `random` draws the sample."""
        self._store = store
        self._records = records
        self._publisher = publisher
        self._codec = codec
        self._clock = clock
        self._topology = topology
        self._copy = copy
        self._rate = rate
        self._random = random
        self._tell: Callable[[Progress], None] = lambda _progress: None
        self._due = clock.monotonic()
        self._runs: dict[UUID, Run | None] = {}
        self.progress = Progress()

    async def plan(self, selection: Selection) -> Plan:
        """Looks at every entry of the selection; changes nothing."""
        offsets = await self._records.offsets()
        tally: defaultdict[str, Counter[Fate]] = defaultdict(Counter)
        stays: Counter[str] = Counter()
        drawn: defaultdict[str, list[DeadLetterRow]] = defaultdict(list)
        async with aclosing(chosen(self._store, selection, ("open",))) as found:
            async for row in found:
                verdict = await self._judge(row, offsets)
                tally[row.reason][verdict.fate] += 1
                if verdict.fate is Fate.STAY:
                    stays[verdict.why] += 1
                elif verdict.fate is Fate.REPLAY:
                    self._draw(row, drawn[row.reason], tally[row.reason][Fate.REPLAY])
                    if sum(fates[Fate.REPLAY] for fates in tally.values()) == selection.limit:
                        break
        counts = {reason: fates[Fate.REPLAY] for reason, fates in tally.items()}
        return Plan(selection, dict(tally), stays, sample_of(drawn, counts), offsets)

    def _draw(self, row: DeadLetterRow, drawn: list[DeadLetterRow], seen: int) -> None:
        """Keeps ten of all that were seen of a reason, each with the same chance (a reservoir)."""
        if len(drawn) < SAMPLE:
            drawn.append(row)
        elif (place := self._random.randrange(seen)) < SAMPLE:
            drawn[place] = row

    async def carry_out(
        self, plan: Plan, tell: Callable[[Progress], None], *, sample: bool = True
    ) -> Proof | None:
        """The sample first and, when it does not fail, the rest. The rest has gone if the proof is `good`.

        `tell` hears of every step.

        Raises WorkPaused where a sample could not have an end, BrokerUnavailable and StoreError; what has
        gone until then is written down, also when it is cancelled.
        """
        self._tell, proof = tell, None
        if sample and plan.sample:
            proof = await self._prove(plan)
            if not proof.good:
                return proof
        await self._send_rest(plan)
        return proof

    async def _judge(self, row: DeadLetterRow, offsets: Mapping[int, range]) -> Verdict:
        if row.run_id is not None and row.run_id not in self._runs:
            self._runs[row.run_id] = await self._store.run(row.run_id)
        run = self._runs[row.run_id] if row.run_id else None
        return judge(row, self._topology, offsets, run)

    # -- the sample -------------------------------------------------------------------------------------

    async def _prove(self, plan: Plan) -> Proof:
        await self._refuse_paused(plan.sample)
        self._told(proving=True)
        waiting = {row.origin: row for row in await self._send(plan.sample)}
        documents = {row.document_id for row in chain(plan.sample, waiting.values())}
        proof, is_all = Proof(len(waiting)), plan.count(Fate.REPLAY) == len(plan.sample)
        deadline = self._clock.monotonic() + SAMPLE_WITHIN.total_seconds()
        while proof.waiting and (is_all or not (proof.good or proof.cause_remains)):
            self._told(proof=proof)
            if self._clock.monotonic() > deadline:
                break
            await self._clock.sleep(LOOK_EVERY.total_seconds())
            with suppress(StoreUnavailable):  # the workers wait for it too
                proof = await self._looked_at(proof, waiting, documents)
        self._told(proof=proof, proving=False)
        return proof

    async def _refuse_paused(self, sample: Sequence[DeadLetterRow]) -> None:
        is_live = any(row.run_id is None for row in sample)
        for target in (ALL_WORK, LIVE_EVENTS) if is_live else (ALL_WORK,):
            wish = await self._store.control(target)
            if wish.state is ControlState.PAUSED:
                what = "All work is" if target == ALL_WORK else "Live events are"
                raise WorkPaused(
                    f"{what} paused ({wish.reason.rstrip('.')}), so no sample would have an end: "
                    "`docsum resume --all` first, or replay with --no-sample."
                )

    async def _looked_at(
        self, proof: Proof, waiting: dict[Coordinates, DeadLetterRow], documents: Collection[str]
    ) -> Proof:
        """Takes out of `waiting` what has an end now."""
        meant = DeadLetterFilter(states=("open",), documents=tuple(documents))
        back = {row.origin: row.replay_count for row in await self._store.newest_dead_letters(meant, PAGE)}
        all_known = await asyncio.gather(*(self._store.known(row.document_id) for row in waiting.values()))
        helped = failed = 0
        for (origin, row), known in zip(list(waiting.items()), all_known, strict=True):
            if row.document_id and known is not None and known.version >= row.document_version:
                helped += 1
            elif back.get(origin, -1) > row.replay_count:
                failed += 1
            else:
                continue
            del waiting[origin]
        return replace(proof, helped=proof.helped + helped, failed=proof.failed + failed)

    # -- all --------------------------------------------------------------------------------------------

    async def _send_rest(self, plan: Plan) -> None:
        """What is still open of the plan. A batch takes about a second: no more of it can go twice."""
        size = max(10, min(AT_ONCE, self._rate))
        room = plan.count(Fate.REPLAY) - self.progress.replayed - self.progress.gone
        going: list[DeadLetterRow] = []
        parked: list[DeadLetterRow] = []
        async with aclosing(chosen(self._store, plan.selection, ("open",))) as found:
            async for row in found:
                fate = (await self._judge(row, plan.offsets)).fate
                if fate is Fate.PARK:
                    parked.append(replace(row, state="parked"))
                elif fate is Fate.REPLAY and room:
                    going.append(row)
                    room -= 1
                if len(parked) == AT_ONCE:
                    await self._park(parked)
                    parked.clear()
                if len(going) == size:
                    await self._send(going)
                    going.clear()
                if not room and plan.selection.limit is not None:
                    break
        await self._park(parked)
        await self._send(going)

    async def _park(self, rows: Sequence[DeadLetterRow]) -> None:
        if rows:
            await _write(self._store, rows)
            self._told(parked=self.progress.parked + len(rows))

    async def _send(self, rows: Sequence[DeadLetterRow]) -> list[DeadLetterRow]:
        """Copies them to where they came from; the rows of those that went, durable."""
        wanted = {row.dead_letter: row for row in rows}
        sending: dict[asyncio.Task[Coordinates], DeadLetterRow] = {}
        sent: list[DeadLetterRow] = []
        weight = 0
        try:
            async with aclosing(self._records.read(wanted)) as found:
                async for place, delivery in found:
                    row = wanted[place]
                    # Another record at its place: the topic was made anew.
                    if delivery is None or delivery.origin != row.origin:
                        self._told(gone=self.progress.gone + 1)
                        continue
                    await self._turn()
                    went = await self._replayed(row, delivery)
                    sending[asyncio.create_task(self._publish(delivery))] = went
                    weight += len(delivery.value or b"")
                    if weight > BATCH_BYTES:
                        sent += await self._written_down(sending)
                        weight = 0
            sent += await self._written_down(sending)
        except BaseException:
            with suppress(DocsumError):
                await self._written_down(sending, GOODBYE)
            raise
        return sent

    async def _publish(self, delivery: Delivery) -> Coordinates:
        return await self._publisher.publish(self._copy(delivery))

    async def _turn(self) -> None:
        """Waits for the next moment that the rate allows."""
        now = self._clock.monotonic()
        self._due = max(self._due, now - _BURST) + 1 / self._rate
        if self._due > now:
            await self._clock.sleep(self._due - now)

    async def _replayed(self, row: DeadLetterRow, delivery: Delivery) -> DeadLetterRow:
        """The row after the copy. An event that could not be decoded may tell its document by now."""
        went = replace(row, state="replayed")
        if row.document_id:
            return went
        try:
            reference = await self._codec.decode(delivery)
        except (InvalidEvent, BrokerError):
            return went
        return replace(
            went,
            document_id=reference.document_id,
            document_version=reference.version,
            run_id=reference.run_id,
        )

    async def _written_down(
        self, sending: dict[asyncio.Task[Coordinates], DeadLetterRow], within: timedelta = WRITE_WITHIN
    ) -> list[DeadLetterRow]:
        """The rows of the copies that are acknowledged, durable; `sending` is empty then.

        Raises what stood in the way of the others.
        """
        if not sending:
            return []
        _, late = await asyncio.wait(sending, timeout=within.total_seconds())
        for task in late:
            task.cancel()
        results = await asyncio.gather(*sending, return_exceptions=True)
        ended = list(zip(results, sending.values(), strict=True))
        rows = [row for result, row in ended if isinstance(result, Coordinates)]
        if rows:
            await _write(self._store, rows, within)
            self._told(replayed=self.progress.replayed + len(rows))
        sending.clear()
        for result in results:
            if isinstance(result, asyncio.CancelledError):
                raise BrokerUnavailable("Kafka did not acknowledge every copy in time.")
            if isinstance(result, BaseException):
                raise result
        return rows

    def _told(self, **changes: Any) -> None:  # Any: fields of `Progress`
        self.progress = replace(self.progress, **changes)
        self._tell(self.progress)
