"""Webhooks over real connections: every way that a receiver can answer, and an API that is killed."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from docsum.api.webhooks import CLAIM, Webhooks, keys_of
from docsum.fetchers.webhook import WebhookSender
from docsum.local.loopback import free_port
from docsum.models import DeliveryState, Lane, Recipe, Run, RunState, WebhookDelivery
from docsum.stores.memory import MemoryStore
from tests.support.api_process import ApiProcess
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.receiver import HANG, Receiver
from tests.support.texts import write_documents
from tests.support.waiting import eventually

SECRET, OTHER = ("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
HERE = ("127.0.0.1",)


class ShiftedClock:
    """The real time, and as much later as the test says: a wait of minutes need not be waited for."""

    def __init__(self) -> None:
        self.shift = timedelta(0)
        self.rests = 0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def monotonic(self) -> float:
        return time.monotonic() + self.shift.total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.rests += 1
        await asyncio.sleep(0.02)


class Names(AbstractResolver):
    """Leads every name to these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None: ...


class World:
    def __init__(self) -> None:
        self.clock = ShiftedClock()
        self.store = MemoryStore()

    @asynccontextmanager
    async def running(self, sender: WebhookSender) -> AsyncIterator[None]:
        async with sender:
            webhooks = Webhooks(self.store, self.clock, sender, keys_of(f"{SECRET},{OTHER}"), Random(1))
            task = asyncio.create_task(webhooks.run())
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def has_run(self, webhook: str) -> Run:
        """One that is finished."""
        now = datetime.now(UTC) - timedelta(minutes=1)
        recipe = Recipe("local-extractive-1")
        run = Run(uuid4(), "r", "/r", recipe, Lane.BACKFILL, RunState.PUBLISHED, now, now, webhook=webhook)
        await self.store.save_run(run)
        return run

    async def row(self, state: DeliveryState, attempts: int) -> WebhookDelivery:
        """The only message, once it is so."""
        found: list[WebhookDelivery] = []

        async def there() -> bool:
            found[:] = await self.store.webhook_deliveries()
            return [(row.state, row.attempts) for row in found] == [(state, attempts)] and bool(
                found[0].answer
            )

        await eventually(there)
        return found[0]

    def later(self, by: timedelta = timedelta(seconds=30)) -> None:
        self.clock.shift += by


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (500, "The receiver answered 500 (Internal Server Error)."),
        (404, "The receiver answered 404 (Not Found)."),
        (302, "The receiver answered 302 (Found); redirects are not followed."),
        (307, "The receiver answered 307 (Temporary Redirect); redirects are not followed."),
        (HANG, "There was no answer within 0.3 s."),
    ],
)
async def test_a_receiver_that_has_a_bad_moment_gets_the_same_message_again(
    world: World, status: int, sentence: str
) -> None:
    with Receiver(status) as receiver:
        run = await world.has_run(receiver.url())
        async with world.running(WebhookSender(HERE, within=timedelta(seconds=0.3))):
            row = await world.row(DeliveryState.PENDING, 1)
            assert row.answer == sentence
            world.later()
            row = await world.row(DeliveryState.DELIVERED, 2)
        first, second = receiver.requests
        assert first.path == second.path == "/hook"
        assert first.id == second.id == row.message_id and first.body == second.body == row.body
        assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"]
        assert second.headers["content-type"] == "application/json"
        assert second.headers["user-agent"].startswith("docsum/")
        for secret in (SECRET, OTHER):
            body = first.verified(secret)
            assert second.verified(secret) == body
        data = body["data"]
        assert body["type"] == "run.finished" and isinstance(data, dict) and data["run_id"] == str(run.id)
        assert "private" not in row.answer


async def test_a_receiver_that_asks_for_two_hours_gets_them(world: World) -> None:
    with Receiver(503) as receiver:
        await world.has_run(receiver.url())
        async with world.running(WebhookSender(HERE)):
            row = await world.row(DeliveryState.PENDING, 1)
    wait = row.next_attempt_at - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < wait <= timedelta(hours=2)


async def test_a_receiver_that_is_gone_gets_nothing_more(world: World) -> None:
    with Receiver(410) as receiver:
        await world.has_run(receiver.url())
        async with world.running(WebhookSender(HERE)):
            await world.row(DeliveryState.DISABLED, 1)
            for _ in range(3):
                world.later(timedelta(days=1))
                looks = world.clock.rests + 3
                await eventually(lambda looks=looks: world.clock.rests > looks)  # type: ignore[misc]  # a default binds
        assert len(receiver.requests) == 1


async def test_a_receiver_that_comes_up_later_gets_it(world: World) -> None:
    port = free_port()
    await world.has_run(f"http://127.0.0.1:{port}/hook")
    async with world.running(WebhookSender(HERE)):
        row = await world.row(DeliveryState.PENDING, 1)
        assert row.answer.startswith("There is no connection")
        with Receiver(port=port) as receiver:
            world.later()
            await world.row(DeliveryState.DELIVERED, 2)
    assert len(receiver.requests) == 1


async def test_nothing_is_sent_to_a_private_address_that_no_setting_names(world: World) -> None:
    with Receiver() as receiver:
        await world.has_run(f"https://127.0.0.1:{receiver.port}/hook")
        async with world.running(WebhookSender(())):
            row = await world.row(DeliveryState.PENDING, 1)
        assert "DOCSUM_API__WEBHOOK_PRIVATE_HOSTS" in row.answer
        assert not receiver.requests


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("93.184.216.34", "10.0.0.7"), ("169.254.169.254",)])
async def test_every_address_of_a_name_is_checked_at_each_attempt(
    world: World, addresses: tuple[str, ...]
) -> None:
    names = Names(*addresses)
    with Receiver() as receiver:
        await world.has_run(f"https://receiver.example:{receiver.port}/hook")
        async with world.running(WebhookSender((), resolver=names)):
            row = await world.row(DeliveryState.PENDING, 1)
            world.later()
            await eventually(lambda: names.asked == 2)
        assert "'receiver.example' is refused" in row.answer
        assert not receiver.requests


async def test_an_internal_receiver_is_told_by_its_name(world: World) -> None:
    with Receiver() as receiver:
        await world.has_run(f"http://hooks.internal.example:{receiver.port}/hook?token=a%2Fb")
        sender = WebhookSender(("*.internal.example",), resolver=Names("127.0.0.1"))
        async with world.running(sender):
            await world.row(DeliveryState.DELIVERED, 1)
        [request] = receiver.requests
        assert request.path == "/hook?token=a%2Fb"
        assert request.headers["host"] == f"hooks.internal.example:{receiver.port}"


# -- the real API ------------------------------------------------------------------------------------------


@contextmanager
def deployment(folder: Path, broker: Broker, engine: Engine) -> Iterator[tuple[Fleet, ApiProcess]]:
    model = ModelServer(folder / "model", "--fast")
    try:
        fleet = Fleet(folder, broker, engine, model)
        settings = {
            "DOCSUM_API__WEBHOOK_SECRETS": SECRET,
            "DOCSUM_API__WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
        }
        api = ApiProcess(folder, fleet.environment | settings)
        try:
            yield fleet, api
        finally:
            api.kill()
            fleet.close()
    finally:
        model.close()


def begin(api: ApiProcess, body: Mapping[str, object]) -> dict[str, object]:
    """A run, as the API shows it."""
    status, begun = api.ask("POST", "/v1/runs", body)
    assert status == 202
    return dict(begun)


@pytest.mark.timeout(300)
def test_an_api_that_is_killed_at_any_moment_tells_the_end_of_a_run(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    write_documents(tmp_path / "texts", 5, seed=1)
    with deployment(tmp_path, broker, engine) as (fleet, api), Receiver(HANG) as receiver:
        api.start()
        begun = begin(api, {"source": str(tmp_path / "texts"), "webhook": receiver.url()})
        run_id = str(begun["run_id"])
        until(lambda: api.get(f"/v1/runs/{run_id}")["state"] == "running", 60, "all is announced")
        api.kill()  # before it could see the end
        fleet.start_workers("worker-1")
        until(lambda: fleet.remaining(run_id) == 0, 120, "the run is finished")
        assert not receiver.requests

        api.start()
        until(lambda: len(receiver.requests) == 1, 60, "the end is told, to a receiver that hangs")
        api.kill()  # within the attempt
        api.start()
        waited = until(lambda: len(receiver.requests) == 2, 120, "it is told again")
        assert waited < CLAIM.total_seconds() + 60
        until(lambda: api.get(f"/v1/runs/{run_id}/webhooks")["deliveries"] != [], 10, "it is shown")

        def delivered() -> bool:
            [row] = fleet.run_of(run_id)["webhooks"]
            return bool(row["state"] == "delivered")

        until(delivered, 60, "the command says that it has arrived")
        [row] = fleet.run_of(run_id)["webhooks"]
        assert (row["event"], row["attempts"]) == ("run.finished", 2)
        assert "run.finished" in fleet.docsum("runs", "show", run_id)
        first, second = receiver.requests
        assert first.id == second.id == row["message_id"]
        data = second.verified(SECRET)["data"]
        assert isinstance(data, dict)
        assert (data["run_id"], data["state"], data["done"]) == (run_id, "finished", 5)
        api.kill()
        api.start()
        assert len(receiver.requests) == 2


@pytest.mark.timeout(300)
def test_a_run_whose_source_is_gone_is_told_as_failed_and_its_cancellation_as_its_end(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    write_documents(tmp_path / "texts", 5, seed=1)
    with deployment(tmp_path, broker, engine) as (_, api), Receiver() as receiver:
        api.environment["DOCSUM_API__MAX_LAG"] = "1"  # and no worker: announcing does not come to its end
        api.start()
        begun = begin(api, {"source": str(tmp_path / "texts"), "webhook": receiver.url()})
        run = f"/v1/runs/{begun['run_id']}"
        until(lambda: api.get(run)["total"] == 1, 60, "the first is announced")
        api.kill()
        shutil.rmtree(tmp_path / "texts")
        api.start()
        until(lambda: len(receiver.requests) == 1, 120, "the failure is told")
        api.ask("POST", f"{run}/cancel", {"reason": "It is gone."})
        until(lambda: len(receiver.requests) == 2, 60, "the end is told")
    failed, over = (request.verified(SECRET) for request in receiver.requests)
    assert (failed["type"], over["type"]) == ("run.failed", "run.finished")
    assert isinstance(failed["data"], dict) and isinstance(over["data"], dict)
    assert str(tmp_path / "texts") in failed["data"]["problem"]
    assert (over["data"]["state"], over["data"]["why"]) == ("cancelled", "It is gone.")
    assert over["data"]["cancelled"] == 1


@pytest.mark.timeout(120)
def test_a_webhook_that_cannot_be_told_is_refused_when_the_run_is_begun(
    tmp_path: Path, broker: Broker, engine: Engine
) -> None:
    with deployment(tmp_path, broker, engine) as (_, api):
        api.start()

        def refusal(webhook: str) -> str:
            status, said = api.ask("POST", "/v1/runs", {"webhook": webhook})
            assert status == 422
            return str(said["detail"])

        assert "DOCSUM_API__WEBHOOK_PRIVATE_HOSTS" in refusal("https://10.0.0.7/hook")
        assert "https" in refusal("http://receiver.example/hook")
        assert "password" in refusal("https://ada:secret@receiver.example/hook")
        api.kill()
        api.environment["DOCSUM_API__WEBHOOK_SECRETS"] = ""
        api.start()
        assert "DOCSUM_API__WEBHOOK_SECRETS" in refusal("https://receiver.example/hook")
        api.kill()
        api.environment["DOCSUM_API__WEBHOOK_SECRETS"] = "hunter2"
        done = subprocess.run(
            [sys.executable, "-m", "docsum", "api", "--open"],
            env=api.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 78 and "DOCSUM_API__WEBHOOK_SECRETS" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
