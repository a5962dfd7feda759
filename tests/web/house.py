"""The application on stores and topics in memory, and a browser without scripts that looks at it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from html import unescape
from random import Random
from uuid import UUID

import httpx2
from fastapi import FastAPI

from docsum.api.access import new_token
from docsum.api.app import application
from docsum.api.publishing import BackgroundPublisher
from docsum.api.replays import Replays
from docsum.api.service import Service
from docsum.errors import DocsumError, SourceNotAllowed, StoreUnavailable
from docsum.health import Health, Stored, ask
from docsum.models import (
    Answer,
    Backlog,
    Coordinates,
    DeadLetterRow,
    Delivery,
    Lane,
    Operation,
    Recipe,
    RecordCopy,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    Scope,
    State,
    SummaryRow,
    Usage,
    Waiting,
    WorkerStatus,
)
from docsum.ports import Codec
from docsum.replay import DeadLetterRecords, Replay
from docsum.settings import Api
from docsum.sources import Listed, Source
from docsum.stores.memory import MemoryStore
from docsum.topics import Topology
from tests.support.fakes import START, FakeClock, FakeCodec, FakePublisher, summary
from tests.support.service import scraped

RECIPE = Recipe("local-extractive-1")
HOST = "127.0.0.1:8080"
RUN = UUID(int=77)


class Store(MemoryStore):
    """Down when `error` is set: for whatever the pages ask."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock.now)
        self.error: DocsumError | None = None

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        is_question = not name.startswith("_") and name not in ("error", "unavailable_since")
        if is_question and callable(found) and super().__getattribute__("error") is not None:

            async def fails(*_: object, **__: object) -> None:
                raise super(Store, self).__getattribute__("error")

            return fails
        return found


class Records:
    """The dead-letter topic."""

    def __init__(self) -> None:
        self.found: dict[Coordinates, Delivery] = {}

    async def offsets(self) -> Mapping[int, range]:
        return dict.fromkeys(range(12), range(1_000))

    async def read(
        self, places: Collection[Coordinates]
    ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
        for place in sorted(places):
            yield place, self.found.get(place)


class Announcer:
    """Kafka, as far as runs know it."""

    async def __call__(self, run: Run, listed: Sequence[Listed]) -> list[datetime | DocsumError]:
        return [START for _ in listed]

    async def live(self, listed: Listed, operation: Operation, *, force: bool) -> tuple[str, Coordinates]:
        return "event", Coordinates("docsum.documents", 0, 0)


@dataclass
class House:
    """Everything that a test may set, and the app on it."""

    is_open: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    codec: FakeCodec = field(default_factory=FakeCodec)
    records: Records = field(default_factory=Records)
    publisher: FakePublisher = field(default_factory=FakePublisher)
    backlog: Backlog | None = field(
        default_factory=lambda: Backlog((Waiting("docsum.documents", 3, oldest=START),), 2, 5, ())
    )
    errors: list[DocsumError] = field(default_factory=list)
    daily_budget: Decimal | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.clock)
        self.app: FastAPI = application(self._service())

    def _service(self) -> Service:
        announce, clock, topology = Announcer(), self.clock, Topology()

        def open_source(name: str) -> Source:
            raise AssertionError(f"nobody lists {name} here")

        def check_source(name: str) -> str:
            if name.startswith("/secret"):
                raise SourceNotAllowed(
                    "The workers may not read /secret: add it to DOCSUM_FETCH__FILE_ROOTS."
                )
            return name

        async def nothing_waits(_: Lane) -> int:
            return 0

        async def look() -> Health:
            stored, errors = Stored(), list(self.errors)
            try:
                await ask(self.store, clock, stored)
            except DocsumError as error:
                errors.append(error)
            return Health(
                clock.now(), None, self.backlog, stored, errors=errors, daily_budget=self.daily_budget
            )

        @asynccontextmanager
        async def dead_letters() -> AsyncIterator[tuple[DeadLetterRecords, Codec]]:
            yield self.records, self.codec

        @asynccontextmanager
        async def replay(replay_id: str, rate: int) -> AsyncIterator[Replay]:
            yield Replay(
                store=self.store,
                records=self.records,
                publisher=self.publisher,
                codec=self.codec,
                clock=clock,
                topology=topology,
                copy=lambda each: RecordCopy(
                    each.origin.topic, each.origin.partition, each.key, each.value, ()
                ),
                rate=rate,
                random=Random(1),
            )

        async def take_back(_: object) -> None:
            return None

        return Service(
            store=self.store,
            clock=clock,
            settings=Api(),
            topology=topology,
            recipe=RECIPE,
            daily_budget=self.daily_budget,
            is_open=self.is_open,
            announce=announce,
            publishing=BackgroundPublisher(self.store, clock, announce, nothing_waits, 100, open_source),
            check_source=check_source,
            check_webhook=lambda _: None,
            check_model=lambda _: None,
            look=look,
            scrape=scraped(look, topology),
            dead_letters=dead_letters,
            take_back=take_back,
            replays=Replays(self.store, clock, replay),
        )

    def down(self) -> None:
        """ClickHouse does not answer."""
        self.store.error = StoreUnavailable("ClickHouse at http://store:8123 does not answer.")

    def browser(self, scheme: str = "http") -> Browser:
        return Browser(self, scheme)

    async def token(self, *scopes: Scope, name: str = "ops") -> str:
        secret, token = new_token(name, scopes, self.clock.now(), "test")
        await self.store.save_token(token)
        return secret

    # -- what is stored ---------------------------------------------------------------------------------

    async def run(self, *documents: RunDocumentRow, run_id: UUID = RUN, **fields: object) -> Run:
        run = Run(run_id, "letters", "/letters", RECIPE, Lane.BACKFILL, RunState.PUBLISHED, START, START)
        run = replace(run, **fields)  # type: ignore[arg-type]  # a builder
        await self.store.save_run(run)
        await self.store.write(Rows(run_documents=documents))
        return run

    async def dead_letter(
        self, offset: int = 0, document_id: str = "doc-1", reason: str = "encrypted", **fields: object
    ) -> Coordinates:
        """One that could be replayed: its record is there, its event decodes."""
        place, origin = Coordinates("docsum.dlq", 0, offset), Coordinates("docsum.documents", 0, offset)
        failed = START - timedelta(seconds=1)
        row = DeadLetterRow(
            origin, place, document_id, 5, None, reason, f"It is {reason}.", "extract", 1, failed, failed
        )
        await self.store.write(Rows(dead_letters=(replace(row, **fields),)))  # type: ignore[arg-type]
        value = b"event of " + document_id.encode("utf-8", "surrogatepass")
        self.records.found[place] = Delivery(
            at=place,
            key=b"a key",
            value=value,
            headers=((" docsum-reason", b"encrypted"), ("<b>", b"\xff")),
            timestamp_ms=0,
            origin=origin,
            origin_timestamp_ms=0,
            attempt_log="2026-11-23T12:00:00Z,extract,encrypted,The PDF needs a password.",
        )
        return place

    async def summary(self, document_id: str = "doc-1", text: str = "A summary.", **fields: object) -> None:
        made = replace(summary(text), **fields)  # type: ignore[arg-type]  # a builder
        row = SummaryRow(
            document_id, 9, State.DONE, "v1", f"file:///{document_id}", made, {"team": "law"}, None,
            Coordinates("docsum.documents", 0, 0), START, START,
        )  # fmt: skip
        await self.store.write(Rows(summaries=(row,)))

    def answer(self, document_id: str = "doc-1", cost: str = "0.25", run_id: UUID | None = None) -> None:
        usage = Usage(input_tokens=1_000, output_tokens=100)
        self.store.keep(
            Answer(
                document_id, document_id, "m", "{}", usage, Decimal(cost), "p", "ok", START, 1_500,
                document_id, run_id,
            )
        )  # fmt: skip


def row(document_id: str, state: State = State.DONE, run_id: UUID = RUN, **fields: object) -> RunDocumentRow:
    made = RunDocumentRow(run_id, document_id, state, f"file:///{document_id}", 1, "", "", START)
    return replace(made, **fields)  # type: ignore[arg-type]  # a builder


def worker(name: str = "worker-1", **fields: object) -> WorkerStatus:
    beat = WorkerStatus(
        name,
        "host",
        1,
        Lane.LIVE,
        START - timedelta(hours=1),
        START,
        ("docsum.documents[0]", "docsum.documents[1]"),
        3,
    )
    return replace(beat, **fields)  # type: ignore[arg-type]  # a builder


@dataclass
class Page:
    """An answer, as a person sees it."""

    status: int
    html: str
    headers: httpx2.Headers

    @property
    def text(self) -> str:
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", self.html)).split())

    @property
    def form_token(self) -> str:
        found = re.search(r'name="form" value="([0-9a-f]{64})"', self.html)
        assert found, self.text
        return found[1]

    def hidden(self) -> dict[str, str]:
        """The fields of its form that nobody sees."""
        pairs = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', self.html)
        return {name: unescape(value) for name, value in pairs}

    @property
    def title(self) -> str:
        found = re.search(r"<title>([^<]*)</title>", self.html)
        return unescape(found[1]) if found else ""


class Browser:
    """Keeps cookies and follows redirects; runs no scripts."""

    def __init__(self, house: House, scheme: str) -> None:
        self.house = house
        transport = httpx2.ASGITransport(app=house.app, raise_app_exceptions=False)
        self.client = httpx2.AsyncClient(
            transport=transport, base_url=f"{scheme}://{HOST}", follow_redirects=True
        )

    async def get(self, path: str, *, part: bool = False) -> Page:
        """`part`: as htmx asks."""
        headers = {"HX-Request": "true"} if part else {}
        return _page(await self.client.get(path, headers=headers))

    async def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Page:
        return _page(await self.client.post(path, data=dict(fields), headers=headers))

    async def confirm(self, path: str, **fields: str) -> Page:
        """Opens the question at this address, and answers it with its own form."""
        asked = await self.get(path)
        assert asked.status == 200, asked.text
        self.house.clock.advance(timedelta(seconds=1))
        return await self.post(path.partition("?")[0], {**asked.hidden(), **fields})

    async def sign_in(self, token: str, after: str = "/") -> Page:
        asked = await self.get("/sign-in")
        return await self.post("/sign-in", {"form": asked.form_token, "token": token, "next": after})

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self.client.cookies.jar}


def _page(answer: httpx2.Response) -> Page:
    return Page(answer.status_code, answer.text, answer.headers)
