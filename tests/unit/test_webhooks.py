"""Webhooks: what a run is to be told, in which words, when again, and that no end of a process loses any."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from docsum.api.webhooks import (
    AT_ONCE,
    CLAIM,
    DELAYS,
    JITTER,
    SETTLES,
    STANDS,
    TO_ONE_HOST,
    Notice,
    Webhooks,
    begun,
    due,
    ended,
    headers,
    keys_of,
    may_be_due,
    message,
    refuse_unsigned,
    said,
)
from docsum.errors import ConfigurationError, SourceNotAllowed, StoreUnavailable
from docsum.fetchers.webhook import WebhookSender
from docsum.models import (
    API,
    Control,
    ControlState,
    DeliveryState,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
    WebhookAnswer,
    WebhookDelivery,
)
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock
from tests.support.waiting import within_turns

ID = UUID(int=7)
OLD, NEW = ("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
URL = "https://receiver.example/hooks?token=abc"
OK = WebhookAnswer(200)
LATER = START + timedelta(hours=1)


def a_run(**fields: object) -> Run:
    values: dict[str, object] = {
        "id": ID,
        "name": "contracts",
        "source": "/srv/contracts",
        "recipe": Recipe("local-extractive-1"),
        "lane": Lane.BACKFILL,
        "state": RunState.PUBLISHED,
        "created_at": START,
        "updated_at": START,
        "publisher": API,
        "webhook": URL,
        **fields,
    }
    return Run(**values)  # type: ignore[arg-type]  # a builder takes any field


def paused(at: datetime = START, reason: str = "The contract is being checked.") -> Control:
    return Control(ID, ControlState.PAUSED, reason, changed_at=at)


def cancelled(at: datetime = START) -> Control:
    return Control(ID, ControlState.CANCELLED, "Not needed.", changed_at=at)


def delivery(**fields: object) -> WebhookDelivery:
    values: dict[str, object] = {
        "message_id": "msg_1",
        "run_id": ID,
        "event": "run.finished",
        "url": URL,
        "body": '{"type":"run.finished"}',
        "created_at": START,
        "changed_at": START,
        "next_attempt_at": START,
        **fields,
    }
    return WebhookDelivery(**values)  # type: ignore[arg-type]  # as above


# -- what is due -------------------------------------------------------------------------------------------

WAITING, OVER = RunProgress(ID, queued=1), RunProgress(ID, done=2)


@pytest.mark.parametrize(
    ("run", "progress", "events"),
    [
        (a_run(), WAITING, []),
        (a_run(), OVER, ["run.finished"]),
        (a_run(), RunProgress(ID), ["run.finished"]),
        (a_run(state=RunState.PUBLISHING), OVER, []),
        (a_run(state=RunState.INTERRUPTED), OVER, []),
        (a_run(state=RunState.INTERRUPTED, problem="It is no folder."), OVER, ["run.failed"]),
        (a_run(control=paused()), WAITING, ["run.paused"]),
        (a_run(control=paused()), OVER, ["run.finished"]),
        (a_run(control=paused(), state=RunState.PUBLISHING), OVER, ["run.paused"]),
        (a_run(control=paused(LATER - STANDS / 2)), WAITING, []),
        (
            a_run(control=paused(), state=RunState.INTERRUPTED, problem="It is no folder."),
            WAITING,
            ["run.failed", "run.paused"],
        ),
        (a_run(control=Control(ID, budget=Decimal(5), changed_at=START)), WAITING, []),
        (a_run(control=cancelled(), state=RunState.PUBLISHING), OVER, ["run.finished"]),
        (a_run(control=cancelled(LATER - SETTLES / 2)), WAITING, []),
        (a_run(control=cancelled(LATER - SETTLES)), WAITING, ["run.finished"]),
        (a_run(control=cancelled(), problem="It is no folder."), OVER, ["run.finished"]),
    ],
)
def test_what_a_run_is_to_be_told(run: Run, progress: RunProgress, events: Sequence[str]) -> None:
    found = due(run, progress, LATER)
    assert [notice.event for notice in found] == events
    assert may_be_due(run) or not events, "what nobody counts is never due"


def test_a_message_has_one_id_whoever_looks_and_each_pause_has_its_own() -> None:
    def ids(run: Run, progress: RunProgress, now: datetime) -> list[str]:
        return [notice.message_id(run.id) for notice in due(run, progress, now)]

    run = a_run()
    assert ids(run, OVER, LATER) == ids(replace(run, updated_at=LATER), OVER, LATER + timedelta(days=1))
    first, second = paused(), paused(START + timedelta(milliseconds=1))
    assert ids(a_run(control=first), WAITING, LATER) != ids(a_run(control=second), WAITING, LATER)
    assert ids(run, OVER, LATER) != ids(replace(run, id=UUID(int=8)), OVER, LATER)
    assert all(len(each) == 36 and each.startswith("msg_") for each in ids(run, OVER, LATER))


def test_the_body_says_the_run_as_the_api_shows_it() -> None:
    run = a_run(name="Größe \udc80", control=paused(reason="Its budget of $5 is spent."))
    progress = RunProgress(ID, held=3, done=2, cost=Decimal("5.01"), as_of=LATER)
    row = message(Notice("run.paused", START), run, progress, LATER, disabled=False)
    body = json.loads(row.body)
    assert (body["type"], body["timestamp"]) == ("run.paused", "2026-11-23T13:00:00Z")
    data = body["data"]
    assert (data["run_id"], data["state"], data["why"]) == (str(ID), "paused", "Its budget of $5 is spent.")
    assert (data["held"], data["done"], data["remaining"], data["cost_usd"]) == (3, 2, 3, 5.01)
    assert data["name"] == "Größe ?", "whatever a name holds, the body is UTF-8"
    assert (row.state, row.next_attempt_at) == (DeliveryState.PENDING, LATER)
    assert row.changed_at == START, "written again by another process, it hides no attempt"


def test_a_failed_run_says_why() -> None:
    run = a_run(state=RunState.INTERRUPTED, problem="It is no folder.")
    row = message(Notice("run.failed", START), run, WAITING, LATER, disabled=False)
    assert json.loads(row.body)["data"]["problem"] == "It is no folder."


# -- what an answer means ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "sentence"),
    [
        (WebhookAnswer(200), DeliveryState.DELIVERED, "The receiver answered 200 (OK)."),
        (WebhookAnswer(204), DeliveryState.DELIVERED, "The receiver answered 204 (No Content)."),
        (WebhookAnswer(299), DeliveryState.DELIVERED, "The receiver answered 299."),
        (WebhookAnswer(410), DeliveryState.DISABLED, "The receiver answered 410 (Gone)."),
        (
            WebhookAnswer(302),
            DeliveryState.PENDING,
            "The receiver answered 302 (Found); redirects are not followed.",
        ),
        (WebhookAnswer(400), DeliveryState.PENDING, "The receiver answered 400 (Bad Request)."),
        (WebhookAnswer(500), DeliveryState.PENDING, "The receiver answered 500 (Internal Server Error)."),
        (WebhookAnswer(None, "There is no connection."), DeliveryState.PENDING, "There is no connection."),
    ],
)
def test_what_an_answer_means(answer: WebhookAnswer, state: DeliveryState, sentence: str) -> None:
    after = ended(begun(delivery(), START), answer, START, 0.0)
    assert (after.state, after.answer, after.attempts) == (state, sentence, 1)
    assert said(answer) == sentence


def test_attempts_are_made_over_three_days_and_then_no_more() -> None:
    row, now, waits = delivery(), START, []
    while row.state is DeliveryState.PENDING:
        row = ended(begun(row, now), WebhookAnswer(500), now, 0.0)
        waits.append(row.next_attempt_at - now)
        now = row.next_attempt_at
    assert tuple(waits[:-1]) == DELAYS
    assert (row.state, row.attempts) == (DeliveryState.FAILED, 10)
    assert timedelta(days=3) < sum(DELAYS, timedelta(0)) < timedelta(days=4)


@given(st.floats(0, 1), st.integers(1, len(DELAYS)))
def test_a_wait_is_longer_by_a_fifth_at_most(chance: float, attempts: int) -> None:
    row = ended(delivery(attempts=attempts), WebhookAnswer(500), START, chance)
    wait = DELAYS[attempts - 1]
    assert wait <= row.next_attempt_at - START <= wait * (1 + JITTER)


@pytest.mark.parametrize(
    ("status", "asked", "wait"),
    [
        (429, timedelta(hours=2), timedelta(hours=2)),
        (503, timedelta(minutes=1), timedelta(minutes=1)),
        (503, timedelta(seconds=1), DELAYS[0]),
        (503, None, DELAYS[0]),
        (500, timedelta(hours=2), DELAYS[0]),
    ],
)
def test_a_receiver_that_asks_for_time_gets_it(status: int, asked: timedelta | None, wait: timedelta) -> None:
    row = ended(begun(delivery(), START), WebhookAnswer(status, retry_after=asked), START, 0.0)
    assert row.next_attempt_at - START == wait


def test_every_row_is_newer_than_the_one_before_even_where_the_clock_goes_back() -> None:
    before = delivery(changed_at=LATER)
    first = begun(before, START)
    assert before.changed_at < first.changed_at < ended(first, OK, START, 0.0).changed_at


# -- signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_a_message_is_signed_by_every_secret(secret: str) -> None:
    row, now = delivery(body='{"name":"Größe"}'), datetime.now(UTC)
    signed = headers(row, keys_of(f"{OLD}, {NEW}"), now)
    assert Webhook(secret).verify(row.body, signed) == {"name": "Größe"}
    assert signed["webhook-id"] == row.message_id
    assert len(signed["webhook-signature"].split(" ")) == 2


def _encoded(size: int) -> str:
    return "whsec_" + base64.b64encode(b"k" * size).decode()


def test_secrets_have_a_prefix_and_24_to_64_bytes() -> None:
    assert len(keys_of(f"{_encoded(24)},{_encoded(64)},")) == 2
    assert len(keys_of(_encoded(32).rstrip("="))) == 1
    assert keys_of("") == []


@pytest.mark.parametrize("bad", ["hunter2", _encoded(23), _encoded(65), "whsec_", "whsec_a*b", OLD[6:]])
def test_a_wrong_secret_is_told_by_the_name_of_its_setting_and_not_shown(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_API__WEBHOOK_SECRETS") as raised:
        keys_of(f"{NEW},{bad}")
    assert bad.removeprefix("whsec_") not in str(raised.value) or bad == "whsec_"


def test_without_a_secret_no_webhook_is_taken() -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_API__WEBHOOK_SECRETS"):
        refuse_unsigned([])
    refuse_unsigned(keys_of(OLD))


# -- addresses ---------------------------------------------------------------------------------------------

SENDER = WebhookSender(["internal.example", "127.0.0.1", "localhost:8443"])


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example/hooks?token=abc",
        "https://receiver.example:8443",
        "https://93.184.216.34/",
        "https://internal.example/",
        "http://internal.example:8000/",
        "http://127.0.0.1:9/",
        "http://localhost:8443/",
    ],
)
def test_receivers_may_be_anywhere_in_public_and_where_the_setting_says(url: str) -> None:
    SENDER.check(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://receiver.example/", "by https.*DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"),
        ("http://localhost:8000/", "by https.*DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"),
        ("http://93.184.216.34/", "by https"),
        ("https://10.0.0.7/", "a private address, and DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"),
        ("https://[::1]/", "a loopback address, and DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"),
        ("https://169.254.169.254/", "whatever DOCSUM_API__WEBHOOK_PRIVATE_HOSTS names"),
        ("https://ada:secret@receiver.example/", "a user name or password"),
        ("ftp://receiver.example/", "does not begin with http"),
        ("receiver.example", "does not begin with http"),
        ("https://2130706433/", "a number, not an address"),
    ],
)
def test_other_addresses_are_refused_in_one_sentence(url: str, why: str) -> None:
    with pytest.raises(SourceNotAllowed, match=why) as raised:
        SENDER.check(url)
    assert "secret" not in str(raised.value) and "FETCH" not in str(raised.value)


def test_a_wrong_entry_is_told_by_the_name_of_its_setting() -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"):
        WebhookSender(["not a host"])


# -- the loop ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    url: str
    body: str
    headers: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Answering = Callable[[Sent], Awaitable[WebhookAnswer]]


@dataclass
class FakeSender:
    """Answers as it is told, then 200."""

    answers: list[WebhookAnswer] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)
    stalled: set[str] = field(default_factory=set)  # addresses that do not answer until `over`
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookAnswer:
        self.sent.append(Sent(url, body.decode(), headers))
        self.under_way.append(url)
        try:
            await asyncio.sleep(0)  # others may look meanwhile
            if url in self.stalled:
                await self.over.wait()
            return self.answers.pop(0) if self.answers else OK
        finally:
            self.under_way.remove(url)


@dataclass
class World:
    clock: FakeClock = field(default_factory=FakeClock)
    sender: FakeSender = field(default_factory=FakeSender)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock.now)

    def webhooks(self, store: MemoryStore | None = None) -> Webhooks:
        return Webhooks(store or self.store, self.clock, self.sender, keys_of(OLD), Random(1))

    @asynccontextmanager
    async def running(self, store: MemoryStore | None = None) -> AsyncIterator[None]:
        task = asyncio.create_task(self.webhooks(store).run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def has_run(self, **fields: object) -> Run:
        run = a_run(**{"created_at": self.clock.now(), "updated_at": self.clock.now(), **fields})
        await self.store.save_run(run)
        return run

    async def document(self, run: Run, state: State) -> None:
        row = RunDocumentRow(run.id, "a.pdf", state, "file:///a.pdf", 1, "", "", self.clock.now())
        await self.store.write(Rows(run_documents=(row,)))

    async def rows(self) -> list[WebhookDelivery]:
        return list(await self.store.webhook_deliveries(limit=1_000))

    async def until(self, *states: DeliveryState, turns: int = 20_000) -> list[WebhookDelivery]:
        """The messages, the oldest first, once they are in these states."""
        rows: list[WebhookDelivery] = []
        for _ in range(turns):
            rows = sorted(await self.rows(), key=lambda row: row.created_at)
            if [row.state for row in rows] == list(states):
                return rows
            await asyncio.sleep(0)
        raise AssertionError(f"not within {turns} turns of the loop: {[row.state for row in rows]}")


@pytest.fixture
def world() -> World:
    return World()


async def test_a_run_that_ends_is_told_once(world: World) -> None:
    run = await world.has_run()
    await world.document(run, State.QUEUED)
    async with world.running():
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=1))
        assert not world.sender.sent
        await world.document(run, State.DONE)
        await world.until(DeliveryState.DELIVERED)
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
    assert len(world.sender.sent) == 1
    body = json.loads(world.sender.sent[0].body)
    assert (body["type"], body["data"]["state"], body["data"]["done"]) == ("run.finished", "finished", 1)


async def test_each_pause_is_told_and_then_the_end(world: World) -> None:
    run = await world.has_run()
    await world.document(run, State.HELD)
    async with world.running():
        for number in range(2):
            await world.store.save_control(paused(world.clock.now(), f"Pause {number}."))
            await world.until(*[DeliveryState.DELIVERED] * (number + 1))
            await world.store.save_control(Control(ID, changed_at=world.clock.now()))
        await world.document(run, State.DONE)
        await world.until(*[DeliveryState.DELIVERED] * 3)
    bodies = [json.loads(sent.body) for sent in world.sender.sent]
    assert [(body["type"], body["data"]["why"]) for body in bodies] == [
        ("run.paused", "Pause 0."),
        ("run.paused", "Pause 1."),
        ("run.finished", ""),
    ]


async def test_a_pause_that_several_workers_write_is_one(world: World) -> None:
    run = await world.has_run()
    await world.document(run, State.HELD)
    async with world.running():
        for number in range(3):
            await world.store.save_control(paused(world.clock.now(), f"Worker {number} says so."))
            await asyncio.sleep(0)
        await world.until(DeliveryState.DELIVERED)
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
    assert len(world.sender.sent) == 1


async def test_a_run_that_failed_and_was_mended_is_told_both(world: World) -> None:
    run = await world.has_run(state=RunState.INTERRUPTED, problem="It is no folder.")
    async with world.running():
        await world.until(DeliveryState.DELIVERED)
        await world.store.save_run(
            replace(run, state=RunState.PUBLISHED, problem="", updated_at=world.clock.now())
        )
        await world.until(*[DeliveryState.DELIVERED] * 2)
    assert [json.loads(sent.body)["type"] for sent in world.sender.sent] == ["run.failed", "run.finished"]


async def test_runs_without_a_webhook_are_told_nowhere(world: World) -> None:
    await world.has_run(webhook="")
    async with world.running():
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
    assert not world.sender.sent and not await world.rows()


async def test_a_receiver_that_is_down_for_hours_gets_the_same_message_later(world: World) -> None:
    await world.has_run()
    world.sender.answers = [WebhookAnswer(None, "There is no connection."), *[WebhookAnswer(500)] * 2]
    async with world.running():
        [row] = await world.until(DeliveryState.DELIVERED)
    assert (row.attempts, row.answer) == (4, "The receiver answered 200 (OK).")
    assert len({(sent.id, sent.body) for sent in world.sender.sent}) == 1
    stamps = [int(sent.headers["webhook-timestamp"]) for sent in world.sender.sent]
    assert stamps == sorted(set(stamps)), "each attempt is dated anew: receivers refuse old ones"


async def test_after_days_it_is_given_up(world: World) -> None:
    await world.has_run()
    world.sender.answers = [WebhookAnswer(500)] * 100
    async with world.running():
        for attempt in range(1, len(DELAYS) + 2):

            def is_over(attempt: int = attempt) -> bool:
                return len(world.sender.sent) == attempt and not world.sender.under_way

            await within_turns(is_over)
            world.clock.advance(timedelta(days=2))
        [row] = await world.until(DeliveryState.FAILED)
        world.clock.advance(timedelta(days=30))
        now = world.clock.now()
        await within_turns(lambda: world.clock.now() > now + timedelta(minutes=10))
    assert row.attempts == len(world.sender.sent) == len(DELAYS) + 1


async def test_a_receiver_that_is_gone_is_told_nothing_more_of_that_run(world: World) -> None:
    run = await world.has_run()
    await world.document(run, State.HELD)
    await world.store.save_control(paused())
    world.sender.answers = [WebhookAnswer(410)]
    async with world.running():
        await world.until(DeliveryState.DISABLED)
        await world.document(run, State.DONE)
        rows = await world.until(DeliveryState.DISABLED, DeliveryState.DISABLED)
        other = await world.has_run(id=UUID(int=8))
        await world.until(*[DeliveryState.DISABLED] * 2, DeliveryState.DELIVERED)
    assert [(row.event, row.attempts) for row in rows] == [("run.paused", 1), ("run.finished", 0)]
    assert "410" in rows[1].answer
    assert len(world.sender.sent) == 2 and json.loads(world.sender.sent[1].body)["data"]["run_id"] == str(
        other.id
    )


async def test_what_waits_is_not_sent_to_a_receiver_that_is_gone(world: World) -> None:
    await world.store.save_webhook_delivery(
        delivery(message_id="msg_0", state=DeliveryState.DISABLED, event="run.paused")
    )
    await world.store.save_webhook_delivery(delivery())
    async with world.running():
        await world.until(DeliveryState.DISABLED, DeliveryState.DISABLED)
    assert not world.sender.sent


async def test_slow_receivers_hold_up_nobody_else(world: World) -> None:
    slow = [f"https://slow-{host}.example/{n}" for host in range(5) for n in range(20)]
    world.sender.stalled = set(slow)
    for number, url in enumerate([*slow, "https://quick.example/"]):
        await world.store.save_webhook_delivery(
            delivery(message_id=f"msg_{number:03}", url=url, run_id=UUID(int=number + 1))
        )
    async with world.running():
        await within_turns(lambda: "https://quick.example/" in [sent.url for sent in world.sender.sent])
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
        assert len(world.sender.under_way) == 5 * TO_ONE_HOST
        world.sender.over.set()


async def test_no_more_than_a_few_are_under_way_at_once(world: World) -> None:
    urls = [f"https://slow-{host}.example/" for host in range(40)]
    world.sender.stalled = set(urls)
    for number, url in enumerate(urls):
        await world.store.save_webhook_delivery(
            delivery(message_id=f"msg_{number:03}", url=url, run_id=UUID(int=number + 1))
        )
    async with world.running():
        await within_turns(lambda: len(world.sender.sent) == AT_ONCE)
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
        assert len(world.sender.under_way) == AT_ONCE
        world.sender.over.set()


async def test_processes_side_by_side_send_once(world: World) -> None:
    for number in range(20):
        await world.has_run(id=UUID(int=number + 1), webhook=f"https://receiver-{number}.example/")
    async with world.running(), world.running():
        await world.until(*[DeliveryState.DELIVERED] * 20)
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=10))
    assert sorted(sent.id for sent in world.sender.sent) == sorted({sent.id for sent in world.sender.sent})


async def test_an_outage_of_the_store_ends_nothing(world: World) -> None:
    class Failing(MemoryStore):
        fails = True

        async def runs_to_tell(self) -> Sequence[Run]:
            if self.fails:
                raise StoreUnavailable
            return await super().runs_to_tell()

    world.store = store = Failing(world.clock.now)
    await world.has_run()
    async with world.running():
        await within_turns(lambda: world.clock.now() > START + timedelta(minutes=1))
        store.fails = False
        await world.until(DeliveryState.DELIVERED)


async def test_a_run_that_cannot_be_told_holds_up_no_other(world: World) -> None:
    class Odd(MemoryStore):
        async def progress(self, run_id: UUID) -> RunProgress:
            if run_id == ID:
                raise ValueError("odd")
            return await super().progress(run_id)

    world.store = Odd(world.clock.now)
    await world.has_run()
    await world.has_run(id=UUID(int=8))
    async with world.running():
        [row] = await world.until(DeliveryState.DELIVERED)
    assert row.run_id == UUID(int=8)


class DyingStore(MemoryStore):
    """Its process is killed before or after the n-th of the steps that change something outside."""

    def __init__(self, kept: MemoryStore, sender: FakeSender, step: int, *, after: bool) -> None:
        super().__init__(kept._now)
        self.__dict__.update(kept.__dict__)  # the same tables: what was durable stays
        self.left = step
        self.after = after
        self.dead = asyncio.Event()
        self.sender = sender

    async def step(self, what: Awaitable[WebhookAnswer | None]) -> WebhookAnswer | None:
        if self.dead.is_set():
            await asyncio.Event().wait()  # nothing runs in a dead process
        self.left -= 1
        if self.left and not self.dead.is_set():
            return await what
        if self.after:
            await what
        else:
            asyncio.ensure_future(what).cancel()
        self.dead.set()
        await asyncio.Event().wait()
        return None

    async def save_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        await self.step(super().save_webhook_delivery(delivery))

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookAnswer:
        answer = await self.step(self.sender.send(url, body, headers))
        assert answer is not None
        return answer


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, 8))
async def test_whenever_a_process_is_killed_the_message_arrives_under_the_same_id(
    world: World, step: int, after: bool
) -> None:
    await world.has_run()
    world.sender.answers = [WebhookAnswer(500)]
    dying = DyingStore(world.store, world.sender, step, after=after)
    doomed = Webhooks(dying, world.clock, dying, keys_of(OLD), Random(1))
    task = asyncio.create_task(doomed.run())
    with suppress(AssertionError):
        await within_turns(dying.dead.is_set)
    for _, attempt in doomed._attempts.values():
        attempt.cancel()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    async with world.running():
        [row] = await world.until(DeliveryState.DELIVERED)
        now = world.clock.now()
        await within_turns(lambda: world.clock.now() > now + timedelta(minutes=10))
    arrived = {sent.id for sent in world.sender.sent}
    assert arrived == {row.message_id}
    assert row.attempts <= 4


async def test_an_attempt_is_not_repeated_before_the_claim_of_the_dead_is_over(world: World) -> None:
    claimed = begun(delivery(), START)
    await world.store.save_webhook_delivery(claimed)
    async with world.running():
        await world.until(DeliveryState.DELIVERED)
    assert world.clock.now() >= START + CLAIM
