"""Dead letters: the index in both stores, and the records on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from docsum.errors import BrokerUnavailable
from docsum.kafka.admin import KafkaAdmin
from docsum.kafka.dead_letters import DeadLetterTopic, replay_copy
from docsum.kafka.headers import dead_letter_headers, delivery_of
from docsum.kafka.producer import KafkaProducer
from docsum.local.loopback import HOST, free_port
from docsum.models import (
    Answer,
    AuditRow,
    Coordinates,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterRow,
    Delivery,
    Failure,
    RecordCopy,
    Rows,
    Usage,
)
from docsum.ports import SummaryStore
from docsum.replay import entries, entry_at
from docsum.settings import Kafka
from docsum.stores import migrate
from docsum.stores.clickhouse import ClickHouseStore
from docsum.stores.memory import MemoryStore
from docsum.topics import Topology
from tests.contract.test_store import summary_row
from tests.support.broker import Broker
from tests.support.fakes import delivery

pytestmark = pytest.mark.timeout(120)

NOW = datetime.now(UTC).replace(microsecond=123_000)  # the stores keep milliseconds
RUN, OTHER_RUN = uuid4(), uuid4()
EVERY = DeadLetterFilter(states=())


def letter(number: int, **fields: Any) -> DeadLetterRow:  # Any: a builder takes any field
    given: dict[str, Any] = {
        "origin": Coordinates("docsum.documents", number % 12, 2**40 + number),
        "dead_letter": Coordinates("docsum.dlq", number % 12, number),
        "document_id": f"größe {number}.pdf",
        "document_version": 1 << 127 | number,
        "run_id": None,
        "reason": "scanned",
        "message": "Pages are pictures: \U0001f4c4 'quoted'\n\x1b[31m",
        "stage": "extract",
        "attempts": 4,
        "first_failed_at": NOW - timedelta(hours=1),
        "failed_at": NOW + timedelta(milliseconds=number),
        **fields,
    }
    return DeadLetterRow(**given)


@pytest.fixture(params=["memory", "clickhouse"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SummaryStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    settings = request.getfixturevalue("engine").settings
    await migrate.setup(settings)
    async with ClickHouseStore(settings, timedelta(milliseconds=20)) as opened:
        yield opened


async def write(store: SummaryStore, *rows: DeadLetterRow) -> None:
    await store.write(Rows(dead_letters=rows))


async def found(store: SummaryStore, meant: DeadLetterFilter) -> list[DeadLetterRow]:
    return [row async for row in entries(store, meant)]


# -- the index ---------------------------------------------------------------------------------------------


async def test_nothing_is_listed_of_an_empty_topic(store: SummaryStore) -> None:
    assert list(await store.dead_letter_groups(EVERY)) == []
    assert list(await store.newest_dead_letters(EVERY, 10)) == []
    assert await found(store, EVERY) == []
    assert await entry_at(store, Coordinates("docsum.dlq", 0, 0)) is None
    assert list(await store.audits()) == []


async def test_an_entry_reads_back_as_it_was_written(store: SummaryStore) -> None:
    row = letter(0, run_id=RUN, replay_count=2, state="parked")
    await write(store, row)
    assert await found(store, EVERY) == [row]
    assert list(await store.newest_dead_letters(EVERY, 1)) == [row]


async def test_groups_count_by_reason_and_state_the_largest_first(store: SummaryStore) -> None:
    await write(
        store,
        letter(1, document_id="a.pdf"),
        letter(2, document_id="a.pdf", message="the newest"),
        letter(3, document_id="b.pdf", failed_at=NOW - timedelta(days=2)),
        letter(4, reason="timeout"),
        letter(5, reason="timeout", state="parked", message="other"),
        letter(6, reason="timeout"),
    )
    first, *others = await store.dead_letter_groups(EVERY)
    assert first == DeadLetterGroup(
        "scanned", "open", 3, 2, NOW - timedelta(days=2), NOW + timedelta(milliseconds=2), "the newest"
    )
    assert [(group.reason, group.state, group.count) for group in others] == [
        ("timeout", "open", 2),
        ("timeout", "parked", 1),
    ]


@pytest.mark.parametrize(
    ("meant", "numbers"),
    [
        (DeadLetterFilter(), [0, 1, 2, 3]),
        (EVERY, [0, 1, 2, 3, 4, 5]),
        (DeadLetterFilter(states=("parked", "discarded")), [4, 5]),
        (DeadLetterFilter(reasons=("timeout", "empty")), [1, 2]),
        (DeadLetterFilter(documents=("größe 1.pdf", "größe 3.pdf", "none")), [1, 3]),
        (DeadLetterFilter(documents=("",)), [2]),
        (DeadLetterFilter(run_id=RUN), [3]),
        (DeadLetterFilter(run_id=UUID(int=9)), []),
        (DeadLetterFilter(since=NOW + timedelta(milliseconds=2)), [2, 3]),
        (DeadLetterFilter(until=NOW + timedelta(milliseconds=2)), [0, 1]),
        (DeadLetterFilter(states=(), since=NOW, until=NOW + timedelta(milliseconds=1)), [0]),
        (DeadLetterFilter(reasons=("scanned",), run_id=RUN, since=NOW), [3]),
    ],
)
async def test_filters_choose_what_they_say(
    store: SummaryStore, meant: DeadLetterFilter, numbers: list[int]
) -> None:
    await write(
        store,
        letter(0, run_id=OTHER_RUN),
        letter(1, reason="timeout"),
        letter(2, reason="empty", document_id="", document_version=0),
        letter(3, run_id=RUN),
        letter(4, state="parked"),
        letter(5, state="discarded"),
    )
    assert sorted(row.dead_letter.offset for row in await found(store, meant)) == numbers
    assert len(await store.newest_dead_letters(meant, 100)) == len(numbers)
    assert sum(group.count for group in await store.dead_letter_groups(meant)) == len(numbers)


async def test_the_newest_come_first(store: SummaryStore) -> None:
    await write(store, *(letter(number) for number in range(30)))
    newest = await store.newest_dead_letters(EVERY, 3)
    assert [row.dead_letter.offset for row in newest] == [29, 28, 27]


async def test_pages_go_through_the_topic_in_its_order_without_gap_or_repetition(store: SummaryStore) -> None:
    rows = [letter(number) for number in range(100)]
    await write(store, *rows[::-1])
    seen: list[DeadLetterRow] = []
    while page := await store.dead_letters(EVERY, seen[-1].dead_letter if seen else None, 7):
        seen += page
    assert [row.dead_letter for row in seen] == sorted(row.dead_letter for row in rows)


async def test_what_leaves_the_filter_meanwhile_moves_no_page(
    store: SummaryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.replay.PAGE", 50)
    await write(store, *(letter(number) for number in range(220)))
    seen = 0
    async for row in entries(store, DeadLetterFilter()):
        seen += 1
        if seen % 10 == 0:
            await write(store, replace(row, state="replayed"))
    assert seen == 220
    assert len(await found(store, DeadLetterFilter())) == 198


async def test_an_entry_is_found_by_the_coordinates_of_its_record(store: SummaryStore) -> None:
    rows = [letter(number) for number in (0, 12, 36)]  # one partition
    await write(store, *rows)
    assert [await entry_at(store, row.dead_letter) for row in rows] == rows
    assert await entry_at(store, Coordinates("docsum.dlq", 0, 13)) is None
    assert await entry_at(store, Coordinates("other.dlq", 0, 12)) is None


@pytest.mark.parametrize("late", [False, True])
async def test_an_entry_that_comes_back_from_a_replay_is_open_whichever_row_was_written_first(
    store: SummaryStore, late: bool
) -> None:
    was = letter(1)
    went = replace(was, state="replayed")
    back = replace(was, dead_letter=Coordinates("docsum.dlq", 1, 99), replay_count=1, message="again")
    await write(store, was)
    for row in (back, went) if late else (went, back):
        await write(store, row)
    assert await found(store, EVERY) == [back]
    await write(store, replace(back, state="replayed"))
    assert [row.state for row in await found(store, EVERY)] == ["replayed"]
    await write(store, replace(back, replay_count=2))
    await write(store, replace(back, replay_count=2, state="parked"))
    await write(store, replace(back, replay_count=2))  # the same delivery once more
    assert [row.state for row in await found(store, EVERY)] == ["parked"]


async def test_what_was_stored_as_new_or_newer_is_resolved_whether_replayed_or_not(
    store: SummaryStore,
) -> None:
    await store.write(
        Rows(
            summaries=(summary_row("a.pdf", version=5), summary_row("b.pdf", version=6, summary=None)),
            dead_letters=(
                letter(1, document_id="a.pdf", document_version=5),
                letter(2, document_id="b.pdf", document_version=5, state="replayed"),
                letter(3, document_id="a.pdf", document_version=6),
                letter(4, document_id="a.pdf", document_version=5, state="parked"),
                letter(5, document_id="", document_version=0),
            ),
        )
    )
    states = {row.dead_letter.offset: row.state for row in await found(store, EVERY)}
    assert states == {1: "resolved", 2: "resolved", 3: "open", 4: "parked", 5: "open"}
    assert len(await store.newest_dead_letters(DeadLetterFilter(states=("resolved",)), 10)) == 2
    groups = await store.dead_letter_groups(DeadLetterFilter())
    assert [(group.count, group.documents) for group in groups] == [(2, 2)]


async def test_what_a_document_has_cost_counts_every_answer_in_one_run_or_ever(store: SummaryStore) -> None:
    def paid(number: int, cost: str, name: str, run_id: UUID | None) -> Answer:
        return Answer(
            f"{number:064x}", "msg", "m", "{}", Usage(10, 5), Decimal(cost), "1", "ok", NOW, 1, name, run_id
        )

    name = "größe 'a'.pdf"
    await store.write(
        Rows(
            answers=(
                paid(1, "0.0100", name, RUN),
                paid(2, "0.0023", name, RUN),
                paid(3, "0.5", name, OTHER_RUN),
                paid(4, "1", name, None),
                paid(5, "9", "other.pdf", RUN),
            )
        )
    )
    assert await store.paid_for(name) == Decimal("1.5123")
    assert await store.paid_for(name, RUN) == Decimal("0.0123")
    assert await store.paid_for(name, uuid4()) == await store.paid_for("none.pdf") == 0


async def test_the_audit_keeps_every_line_the_newest_first(store: SummaryStore) -> None:
    rows = [
        AuditRow(NOW + timedelta(seconds=n), "größe", "dlq replay", f"open entries: {n} replayed", n)
        for n in range(5)
    ]
    for row in rows:
        await store.audit(row)
    assert list(await store.audits()) == rows[::-1]
    assert list(await store.audits(2)) == rows[:2:-1]


# -- the records -------------------------------------------------------------------------------------------


def dead(number: int, value: bytes | None = b"event") -> RecordCopy:
    """A dead letter as a worker publishes it."""
    original = delivery(1_000 + number, partition=number % 3, value=value, headers=(("traceparent", b"00"),))
    failure = Failure("scanned", "Pictures.", "extract", "Scanned")
    headers = dead_letter_headers(original, failure, NOW, max_attempts=4, group="docsum-worker")
    return RecordCopy("", number % 3, b"doc", value, headers)


async def filled(broker: Broker, topology: Topology, copies: Sequence[RecordCopy]) -> list[Coordinates]:
    await KafkaAdmin(broker.settings).setup(topology)
    async with KafkaProducer(broker.settings) as producer:
        sent = [await producer.submit(replace(copy, topic=topology.dead_letters)) for copy in copies]
        return list(await asyncio.gather(*sent))


async def read(
    broker: Broker, topology: Topology, places: Sequence[Coordinates]
) -> list[tuple[Coordinates, Delivery | None]]:
    async with DeadLetterTopic(broker.settings, topology.dead_letters) as records:
        return [pair async for pair in records.read(places)]


async def delete_before(broker: Broker, at: Coordinates) -> None:
    admin = AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers})
    (future,) = admin.delete_records([TopicPartition(at.topic, at.partition, at.offset)]).values()
    await asyncio.to_thread(future.result, 20)


async def test_records_come_once_each_in_the_order_of_the_topic(broker: Broker, topology: Topology) -> None:
    places = await filled(broker, topology, [dead(n, str(n).encode()) for n in range(60)])
    wanted = places[50:] + places[:7] + places[:3]

    pairs = await read(broker, topology, wanted)

    assert [place for place, _ in pairs] == sorted(set(wanted))
    values = {place: each.value for place, each in pairs if each}
    assert values == {place: str(n).encode() for n, place in enumerate(places) if place in wanted}
    assert all(each and each.at == place for place, each in pairs)


async def test_a_record_tells_where_it_came_from_and_goes_back_there(
    broker: Broker, topology: Topology
) -> None:
    (place,) = await filled(broker, topology, [dead(4, b"\x00\xff")])

    ((_, got),) = await read(broker, topology, [place])

    assert got is not None
    assert (got.origin, got.attempt_log) == (
        Coordinates("docsum.documents", 1, 1_004),
        f"{NOW:%Y-%m-%dT%H:%M:%SZ},extract,scanned,Scanned",
    )
    copy = replay_copy(got, "replay-1", "docsum-worker")
    assert (copy.topic, copy.partition, copy.key, copy.value) == ("docsum.documents", 1, b"doc", b"\x00\xff")
    back = delivery_of("docsum.documents", 1, 2_000, copy.key, copy.value, copy.headers, 0)
    assert (back.origin, back.attempt, back.replay_count) == (got.origin, 1, 1)
    assert back.origin_timestamp_ms == got.origin_timestamp_ms
    assert dict(back.headers)["docsum-replayed-from"] == str(place).encode()
    assert dict(back.headers)["traceparent"] == b"00"


async def test_wanted_records_that_lie_far_apart_are_jumped_to(broker: Broker, topology: Topology) -> None:
    copies = [replace(dead(3 * n, str(n).encode()), partition=0) for n in range(5_000)]
    places = await filled(broker, topology, copies)
    wanted = [places[n] for n in (0, 1, 1_500, 1_501, 4_999)]

    pairs = await read(broker, topology, wanted)

    assert [each.value for _, each in pairs if each] == [b"0", b"1", b"1500", b"1501", b"4999"]


async def test_records_that_retention_has_deleted_are_told(broker: Broker, topology: Topology) -> None:
    places = await filled(broker, topology, [replace(dead(n), partition=n % 2) for n in range(20)])
    await delete_before(broker, places[10])  # five of partition 0
    unknown = [replace(places[0], offset=99), replace(places[0], partition=7)]

    pairs = await read(broker, topology, [*places, *unknown])

    gone = {place for place, each in pairs if each is None}
    assert gone == {*places[0:10:2], *unknown}
    assert len(pairs) == 22
    async with DeadLetterTopic(broker.settings, topology.dead_letters) as records:
        assert await records.offsets() == {0: range(5, 10), 1: range(10), 2: range(0)}


async def test_a_record_that_is_deleted_while_it_is_looked_for_is_told(
    broker: Broker, topology: Topology
) -> None:
    places = await filled(broker, topology, [replace(dead(n), partition=n % 2) for n in range(20)])
    pairs: list[tuple[Coordinates, bool]] = []
    async with DeadLetterTopic(broker.settings, topology.dead_letters) as records:
        async for place, each in records.read(places):
            if not pairs:
                await delete_before(broker, replace(places[1], offset=10))  # all of partition 1
            pairs.append((place, each is None))
    assert pairs == [(place, place.partition == 1) for place in sorted(places)]


async def test_a_null_value_and_a_large_one_come_as_they_are(broker: Broker, topology: Topology) -> None:
    large = b"x" * 1_000_000
    places = await filled(broker, topology, [dead(0, None), dead(0, large), dead(0)])
    pairs = await read(broker, topology, places)
    assert [each.value for _, each in pairs if each] == [None, large, b"event"]


async def test_reading_joins_no_group(broker: Broker, topology: Topology) -> None:
    places = await filled(broker, topology, [dead(0)])
    admin = AdminClient({"bootstrap.servers": broker.settings.bootstrap_servers})

    def groups() -> set[str]:
        return {group.group_id for group in admin.list_consumer_groups().result(20).valid}

    before = await asyncio.to_thread(groups)
    await read(broker, topology, places)
    assert await asyncio.to_thread(groups) == before


async def test_a_topic_that_is_not_there_and_a_broker_that_is_away_are_one_sentence(
    broker: Broker, topology: Topology
) -> None:
    with pytest.raises(BrokerUnavailable, match=r"no topic .*\.dlq for us; run `docsum setup topics`"):
        await read(broker, topology, [Coordinates(topology.dead_letters, 0, 0)])
    away = Kafka(bootstrap_servers=f"{HOST}:{free_port()}")
    with pytest.raises(BrokerUnavailable, match=r"does not answer"):
        async with DeadLetterTopic(away, topology.dead_letters):
            pass
