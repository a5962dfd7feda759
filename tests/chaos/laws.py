"""The laws, as they can be judged from outside: the billing ledger, the broker's offsets and the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Message

from docsum.kafka.admin import PartitionLag
from docsum.kafka.results import VERSION
from docsum.models import DeadLetterFilter, DeadLetterRow, RunProgress
from docsum.stores.clickhouse import ClickHouseStore
from tests.chaos.world import IN_FLIGHT, POISON, Sample, World
from tests.support.results import read_result

#: Seconds without progress, while work is due and nothing is down, that are too many.
STANDSTILL = 60.0


@dataclass(frozen=True, slots=True)
class Money:
    """What was billed, and how it is explained."""

    billed: int
    distinct: int  # requests that differ
    lost: int  # replies that did not arrive
    undurable: int  # answered, but the worker died with the answer
    late: int  # stored twice: the worker had lost the partition while it waited
    marked_lost: int  # rows of docsum's own, for replies that it never saw
    wrong: int  # rows that differ from the bill

    @property
    def again(self) -> int:
        return self.billed - self.distinct


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a seed."""

    broken: tuple[str, ...]
    money: Money
    seconds: float


def judge(world: World) -> Verdict:
    """Which laws were broken, one sentence each."""
    progress, money = world.ask(lambda store: store.progress(world.run_id)), money_of(world)
    entries, topic = world.ask(_entries), world.dead_letters()
    broken = [
        *lost(progress, world.count),
        *dead_letters(entries, {(message.key() or b"").decode() for message in topic}),
        *bill(money, world.deaths),
        *offsets(world.lags()),
        *told(newest_results(world.records(world.topology.summaries)), count=world.count),
        *standstill(world.samples, world.calm_since),
        *(f"the harness could not do its part: {trouble}" for trouble in world.troubles),
    ]
    return Verdict(tuple(broken), money, world.elapsed())


async def _entries(store: ClickHouseStore) -> list[DeadLetterRow]:
    return list(await store.dead_letters(DeadLetterFilter(states=()), None, 1_000))


def lost(progress: RunProgress, count: int) -> Iterator[str]:
    """Every document that is fine is done, and every other one has its dead letter."""
    if (progress.done, progress.dead_lettered, progress.total) != (count, POISON, count + POISON):
        yield f"{count} documents were to be done and {POISON} dead letters: {progress}"


def dead_letters(entries: Sequence[DeadLetterRow], topic: Collection[str]) -> Iterator[str]:
    """None of a document that is fine or stored; `topic`: the keys of its records."""
    if wrong := [row for row in entries if "poison" not in row.document_id or row.reason != "empty"]:
        yield f"dead letters of documents that are fine: {wrong[:3]}"
    if stored := [row for row in entries if row.state != "open"]:
        yield f"dead letters of documents that are stored: {stored[:3]}"
    if set(topic) != {row.document_id for row in entries}:
        yield "the index of dead letters differs from the topic"


def money_of(world: World) -> Money:
    """Call by call: what the server has billed beside what docsum has written down."""
    billed = world.model.entries()
    for entry in billed:
        entry["id"] = entry["request_id"].replace("req_", "msg_", 1)

    async def stored(store: ClickHouseStore) -> dict[str, tuple[int, int]]:
        rows = await store._query("SELECT request_id, input_tokens, output_tokens FROM answers")
        return {row[0]: (row[1], row[2]) for row in rows}

    kept = world.ask(stored)
    times = Counter(entry["fingerprint"] for entry in billed)
    durable = Counter(entry["fingerprint"] for entry in billed if entry["id"] in kept)
    missing = [entry for entry in billed if entry["id"] not in kept]
    return Money(
        billed=len(billed),
        distinct=len(times),
        lost=sum(entry["outcome"] == "lost" for entry in missing),
        undurable=sum(entry["outcome"] != "lost" for entry in missing),
        late=sum(count - 1 for count in durable.values()),
        marked_lost=sum(name.startswith("lost-") for name in kept),
        wrong=sum(
            kept[entry["id"]] != (entry["input_tokens"], entry["output_tokens"])
            for entry in billed
            if entry["id"] in kept
        ),
    )


def bill(money: Money, deaths: int) -> Iterator[str]:
    """Nothing is bought again that was stored, and every call is accounted for."""
    if money.wrong:
        yield f"{money.wrong} rows of the ledger differ from the bill"
    explained = money.lost + money.undurable + money.late
    if money.again > explained:
        yield f"{money.again} calls were bought again, {explained} of them are explained: {money}"
    most = deaths * 2 * IN_FLIGHT  # in flight, or answered and waiting for the next flush
    if money.undurable + money.late > most:
        yield f"{deaths} deaths explain {most} calls at the most: {money}"
    if not deaths and money.lost != money.marked_lost:
        yield f"nobody died, and yet the ledger is not the bill: {money}"


def offsets(lags: Sequence[PartitionLag]) -> Iterator[str]:
    """All is committed to the end."""
    if behind := [lag for lag in lags if lag.lag]:
        yield f"not committed to the end: {behind[:3]}"


def newest_results(records: Iterable[Message]) -> dict[str, dict[str, Any]]:
    """By document, as an upstream reads the topic; None would be a deletion."""
    found: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for record in records:
        headers: dict[str, Any] = dict(record.headers() or ())
        key, version = (record.key() or b"").decode(), headers[VERSION]
        if version >= found.get(key, (b"", None))[0]:
            found[key] = version, read_result(record.value() or b"")
    return {key: result for key, (_, result) in found.items()}


def told(results: Mapping[str, Mapping[str, Any]], count: int) -> Iterator[str]:
    """Upstreams know of every document what has become of it, though workers were killed before they told."""
    failed = [name for name, result in results.items() if result["outcome"] == "dead_lettered"]
    stored = [name for name, result in results.items() if name not in failed and result["summary"]]
    if (len(stored), len(failed), len(results)) != (count, POISON, count + POISON):
        yield f"{count} summaries and {POISON} failures were to be told: {len(stored)} and {len(failed)} were"
    if wrong := [name for name in failed if "poison" not in name]:
        yield f"documents that are fine were told as failed: {wrong[:3]}"


def standstill(samples: Sequence[Sample], calm_since: float) -> Iterator[str]:
    """Once nothing is down any more, something always moves until nothing is left."""
    moved, remaining = calm_since, None
    for sample in samples:
        if sample.progress is None:
            continue
        if sample.progress.remaining != remaining or not remaining:
            moved, remaining = max(calm_since, sample.at), sample.progress.remaining
        if sample.at - moved > STANDSTILL:
            yield f"no progress from second {moved:.0f} to {sample.at:.0f}: {sample.progress}"
            return
