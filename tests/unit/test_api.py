"""The HTTP API over a store in memory: what it takes, refuses and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID, uuid4

import httpx2
import pytest
from starlette.requests import ClientDisconnect

from docsum.api.access import digest_of, new_token, revoked
from docsum.api.app import MOST_BYTES, application
from docsum.api.service import Service
from docsum.errors import StoreMisconfigured, StoreUnavailable
from docsum.models import (
    API,
    Backlog,
    ControlState,
    Coordinates,
    DeadLetterRow,
    Delivery,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    Scope,
    State,
    Waiting,
)
from docsum.settings import Api
from docsum.sources import Entry, Listed, UnusableSource
from docsum.stores.memory import MemoryStore
from tests.support.fakes import START, FakeClock
from tests.support.service import FakeService
from tests.support.waiting import eventually

URL = "http://127.0.0.1:8080"
REFERENCE = {"document_id": "a.pdf", "uri": "s3://reports/a.pdf"}

Client = httpx2.AsyncClient


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(fake: FakeService) -> AsyncIterator[Client]:
    async with opened(fake.build()) as client:
        yield client


def opened(service: Service, **options: Any) -> Client:  # Any: of the client
    transport = httpx2.ASGITransport(application(service), raise_app_exceptions=False)
    return Client(transport=transport, base_url=URL, **options)


def listed(*names: str) -> Callable[[], list[Entry]]:
    return lambda: [Listed(name, f"s3://reports/{name}", datetime.now(UTC)) for name in names]


async def is_published(fake: FakeService, run_id: str) -> None:
    async def published() -> bool:
        run = await fake.store.run(UUID(run_id))
        return run is not None and run.state is RunState.PUBLISHED

    await eventually(published)


async def refused(client: Client, body: object, path: str = "/v1/runs") -> str:
    """The sentence of a problem, whose form is checked."""
    answer = await client.post(path, json=body)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert problem["status"] == answer.status_code == 422, answer.text
    return str(problem["detail"])


# -- beginning a run -----------------------------------------------------------------------------------------


async def test_a_source_is_accepted_at_once_and_announced_in_the_background(
    fake: FakeService, client: Client
) -> None:
    fake.sources["s3://reports"] = listed("a.pdf", "b.pdf")
    answer = await client.post("/v1/runs", json={"source": "s3://reports", "name": "reports", "lane": "live"})
    run_id = answer.json()["run_id"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/runs/{run_id}")
    await is_published(fake, run_id)
    assert [entry.document_id for _, entry in fake.announce.runs] == ["a.pdf", "b.pdf"]
    found = (await client.get(answer.headers["location"])).json()
    assert (found["state"], found["total"], found["queued"], found["lane"]) == ("running", 2, 2, "live")


async def test_references_in_the_body_are_announced_before_the_answer(
    fake: FakeService, client: Client
) -> None:
    documents = [REFERENCE, {**REFERENCE, "document_id": "b.pdf", "attributes": {"team": "legal"}}]
    answer = await client.post("/v1/runs", json={"documents": documents, "recipe": {"words": 80}})
    assert answer.json() | {"run_id": ""} == {
        "run_id": "",
        "state": "running",
        "total": 2,
        "passed_over": [],
        "passed_over_count": 0,
    }
    (run, _), (_, second) = fake.announce.runs
    assert (run.recipe.words, second.attributes) == (80, {"team": "legal"})


async def test_the_same_key_is_the_same_run(fake: FakeService, client: Client) -> None:
    key = {"Idempotency-Key": "order 7"}
    body = {"documents": [REFERENCE]}
    first = await client.post("/v1/runs", json=body, headers=key)
    again = await client.post("/v1/runs", json=body, headers=key)
    assert first.json()["run_id"] == again.json()["run_id"]
    assert len(fake.announce.runs) == 1
    other = await client.post("/v1/runs", json={"documents": [{**REFERENCE, "title": "x"}]}, headers=key)
    assert (other.status_code, "choose a new key" in other.json()["detail"]) == (422, True)
    assert (await client.post("/v1/runs", json=body)).json()["run_id"] != first.json()["run_id"]


async def test_a_key_that_is_sent_again_goes_on_where_kafka_had_failed(
    fake: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.runs.PATIENCE", timedelta(0))
    monkeypatch.setattr("docsum.runs.PAUSE", timedelta(0))
    fake.announce.down = True
    body, key = {"documents": [REFERENCE]}, {"Idempotency-Key": "7"}
    failed = await client.post("/v1/runs", json=body, headers=key)
    assert (failed.status_code, failed.headers["retry-after"]) == (503, "5")
    fake.announce.down = False
    again = await client.post("/v1/runs", json=body, headers=key)
    assert (again.status_code, again.json()["total"], again.json()["state"]) == (202, 1, "running")


async def test_keys_of_two_tokens_do_not_meet(fake: FakeService) -> None:
    fake.is_open = False
    ids = []
    for name in ("one", "two"):
        secret, token = new_token(name, [Scope.SUBMIT], datetime.now(UTC), "test")
        await fake.store.save_token(token)
        headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "1"}
        async with opened(fake.build(), headers=headers) as client:
            ids.append((await client.post("/v1/runs", json={"documents": [REFERENCE]})).json()["run_id"])
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"source": "s3://a", "documents": [REFERENCE]}, "not both"),
        ({"source": "reports"}, "absolute path"),
        ({"source": "-"}, "absolute path"),
        ({"source": "/etc"}, "DOCSUM_FETCH__FILE_ROOTS"),
        ({"source": "s3://a\x00"}, "control character"),
        ({"source": "s3://a\u202eb"}, "printed"),
        ({"documents": []}, "at least 1"),
        ({"documents": [REFERENCE] * 1001}, "at most 1000"),
        ({"documents": [{"document_id": "a"}]}, "uri"),
        ({"documents": [{**REFERENCE, "uri": "javascript:alert(1)"}]}, "uri"),
        ({"documents": [{**REFERENCE, "document_id": "a\nb\x00"}]}, "control character"),
        ({"documents": [{**REFERENCE, "document_id": "x" * 513}]}, "512"),
        ({"documents": [{**REFERENCE, "tittle": "a"}]}, "tittle"),
        ({"recipe": {"model": "gpt-9"}}, "no price"),
        ({"recipe": {"words": 5}}, "words"),
        ({"recipe": {"language": "../etc"}}, "language"),
        ({"lane": "fast"}, "lane"),
        ({"by": "2030-01-01T07:00:00Z"}, "lane batch"),
        ({"budget_usd": 0}, "budget_usd"),
        ({"budget_usd": "NaN"}, "budget_usd"),
        ({"webhook": "ftp://example.org"}, "https"),
        ({"limit": 0}, "limit"),
        ([], "body"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_a_sentence(
    client: Client, fake: FakeService, body: object, said: str
) -> None:
    assert said in await refused(client, body)
    assert await fake.store.runs() == []


async def test_a_budget_is_there_before_the_first_document(fake: FakeService, client: Client) -> None:
    answer = await client.post("/v1/runs", json={"documents": [REFERENCE], "budget_usd": 12.5})
    run = await fake.store.run(UUID(answer.json()["run_id"]))
    assert run is not None
    assert run.control is not None
    assert run.control.budget == Decimal("12.5")


async def test_new_work_is_refused_while_the_workers_are_far_behind(fake: FakeService) -> None:
    fake.settings = Api(max_lag=100)
    fake.backlog = Backlog((Waiting("docsum.backfill", 60), Waiting("docsum.documents", 40)), 0, 0, ())
    async with opened(fake.build()) as client:
        for path, body in (("/v1/runs", {"documents": [REFERENCE]}), ("/v1/documents", REFERENCE)):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        batch = await client.post("/v1/runs", json={"documents": [REFERENCE], "lane": "batch"})
        assert batch.status_code == 202
    assert len(fake.announce.runs) == 1


async def test_a_source_that_cannot_be_listed_ends_the_publisher_and_says_why(
    fake: FakeService, client: Client
) -> None:
    def nothing() -> list[Entry]:
        raise UnusableSource("There is nothing at 's3://gone'.")

    fake.sources["s3://gone"] = nothing
    run_id = (await client.post("/v1/runs", json={"source": "s3://gone"})).json()["run_id"]

    async def told() -> bool:
        found = (await client.get(f"/v1/runs/{run_id}")).json()
        return bool(found["problem"] == "There is nothing at 's3://gone'." and found["waits_for"])

    await eventually(told)
    assert [run.id for run in await fake.store.unpublished(API)] == []
    fake.sources["s3://gone"] = listed("a.pdf")
    assert (await client.post(f"/v1/runs/{run_id}/resume")).status_code == 200
    await is_published(fake, run_id)
    assert (await client.get(f"/v1/runs/{run_id}")).json()["problem"] == ""


async def test_what_a_killed_api_was_announcing_is_taken_up(fake: FakeService) -> None:
    """Its row has been silent for longer than a publisher ever is."""
    fake.sources["s3://reports"] = listed("a.pdf", "b.pdf")
    service = fake.build()
    async with opened(service) as client:
        run_id = (await client.post("/v1/runs", json={})).json()["run_id"]
    run = await fake.store.run(UUID(run_id))
    assert run is not None
    old = datetime.now(UTC) - timedelta(minutes=1)
    fake.store._runs[run.id] = type(run)(
        **{name: getattr(run, name) for name in run.__slots__}
        | {"source": "s3://reports", "publisher": API, "updated_at": old}
    )
    async with background(service):
        await is_published(fake, run_id)
    assert [entry.document_id for _, entry in fake.announce.runs] == ["a.pdf", "b.pdf"]


async def test_whatever_a_look_raises_what_nobody_announces_is_taken_up_later() -> None:
    class Failing(MemoryStore):
        errors: ClassVar[list[Exception]] = [
            StoreUnavailable("ClickHouse does not answer."),
            KeyError("odd"),
            StoreMisconfigured("The table runs lacks a column: run `docsum setup store`."),
        ]

        async def unpublished(self, publisher: str) -> Sequence[Run]:
            if self.errors:
                raise self.errors.pop()
            return await super().unpublished(publisher)

    clock = FakeClock()
    fake = FakeService(store=Failing(clock.now), clock=clock)
    fake.sources["s3://reports"] = listed("a.pdf")
    long_ago, run_id = START - timedelta(minutes=1), uuid4()
    run = Run(
        run_id, "reports", "s3://reports", Recipe("m"), Lane.LIVE, RunState.PUBLISHING, long_ago, long_ago
    )
    await fake.store.save_run(replace(run, publisher=API))
    async with background(fake.build()):
        await is_published(fake, str(run_id))


class background:  # noqa: N801 - used as a function
    def __init__(self, service: Service) -> None:
        self._service = service

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._service.publishing.run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


# -- lists that are sent -------------------------------------------------------------------------------------


def lines(*names: str) -> bytes:
    return b"".join(
        json.dumps({"document_id": name, "uri": f"s3://b/{name}"}).encode() + b"\n" for name in names
    )


async def test_lists_are_sent_in_parts_and_the_last_one_ends_the_publishing(
    fake: FakeService, client: Client
) -> None:
    run_id = (await client.post("/v1/runs", json={"name": "parts"})).json()["run_id"]
    path = f"/v1/runs/{run_id}/documents"
    first = await client.post(path, content=lines("a", "b"), params={"more": "true"})
    assert (first.status_code, first.json()["state"], first.json()["total"]) == (202, "publishing", 2)
    last = await client.post(path, content=lines("b", "c") + b'{"uri": "x"}\n')
    assert last.json() | {"run_id": ""} == {
        "run_id": "",
        "state": "running",
        "total": 3,
        "passed_over": ["line 3: document_id is missing"],
        "passed_over_count": 1,
    }
    more = await client.post(path, content=lines("d"))
    assert (more.status_code, "last list" in more.json()["detail"]) == (409, True)


async def test_a_list_that_is_cut_short_announces_nothing(fake: FakeService, client: Client) -> None:
    run_id = (await client.post("/v1/runs", json={})).json()["run_id"]

    async def cut() -> AsyncIterator[bytes]:
        yield lines("a")
        raise ClientDisconnect  # as the server tells it

    answer = await client.post(f"/v1/runs/{run_id}/documents", content=cut())
    assert answer.status_code == 400
    run = await fake.store.run(UUID(run_id))
    assert run is not None
    assert (run.state, fake.announce.runs) == (RunState.INTERRUPTED, [])
    again = await client.post(f"/v1/runs/{run_id}/documents", content=lines("a"))
    assert again.json()["state"] == "running"


async def test_a_list_that_stalls_and_is_cut_undoes_nothing_of_the_one_that_was_sent_again(
    fake: FakeService, client: Client
) -> None:
    run_id = (await client.post("/v1/runs", json={})).json()["run_id"]
    path, stalled, cut = f"/v1/runs/{run_id}/documents", asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield lines("a")
        stalled.set()
        await cut.wait()
        raise ClientDisconnect

    first = asyncio.create_task(client.post(path, content=slow()))
    await asyncio.wait_for(stalled.wait(), 10)
    assert (await client.post(path, content=lines("a", "b"))).status_code == 202
    await eventually_later(fake)
    cut.set()
    assert (await first).status_code == 400
    run = await fake.store.run(UUID(run_id))
    assert run is not None
    assert (run.state, len(fake.announce.runs)) == (RunState.PUBLISHED, 2)


async def test_a_list_may_be_a_csv_and_must_not_be_too_large(fake: FakeService) -> None:
    fake.settings = Api(max_upload=200)
    async with opened(fake.build()) as client:
        run_id = (await client.post("/v1/runs", json={})).json()["run_id"]
        path = f"/v1/runs/{run_id}/documents"
        large = await client.post(path, content=lines(*map(str, range(50))))
        assert (large.status_code, "DOCSUM_API__MAX_UPLOAD" in large.json()["detail"]) == (413, True)
        assert (await client.post(path, content=b"name,place\n1,2\n")).status_code == 422
        csv = await client.post(path, content=b"document_id,uri\na,s3://b/a\n")
        assert (csv.status_code, csv.json()["total"]) == (202, 1)


async def test_a_run_with_a_source_takes_no_list(fake: FakeService, client: Client) -> None:
    fake.sources["s3://reports"] = listed("a.pdf")
    run_id = (await client.post("/v1/runs", json={"source": "s3://reports"})).json()["run_id"]
    answer = await client.post(f"/v1/runs/{run_id}/documents", content=lines("b"))
    assert (answer.status_code, "s3://reports" in answer.json()["detail"]) == (409, True)
    assert (await client.post(f"/v1/runs/{uuid4()}/documents", content=b"")).status_code == 404


# -- looking and steering ------------------------------------------------------------------------------------


async def test_runs_come_in_pages(fake: FakeService, client: Client) -> None:
    for number in range(5):
        await client.post("/v1/runs", json={"name": f"run {number}"})
    names, cursor = [], None
    while True:
        page = (
            await client.get("/v1/runs", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        ).json()
        names += [run["name"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(names) == [f"run {number}" for number in range(5)]
    assert (await client.get("/v1/runs", params={"cursor": "!!"})).status_code == 422
    assert (await client.get("/v1/runs", params={"limit": 0})).status_code == 422


async def test_documents_of_a_run_by_state(fake: FakeService, client: Client) -> None:
    answer = await client.post(
        "/v1/runs", json={"documents": [REFERENCE, {**REFERENCE, "document_id": "b.pdf"}]}
    )
    run_id = answer.json()["run_id"]
    done = RunDocumentRow(UUID(run_id), "a.pdf", State.DONE, "u", 1, "", "", datetime.now(UTC))
    await fake.store.write(Rows(run_documents=(done,)))
    path = f"/v1/runs/{run_id}/documents"
    page = (await client.get(path, params={"state": ["done", "held"]})).json()
    assert ([each["document_id"] for each in page["documents"]], page["next_cursor"]) == (["a.pdf"], None)
    first = (await client.get(path, params={"limit": 1})).json()
    rest = (await client.get(path, params={"limit": 9, "cursor": first["next_cursor"]})).json()
    assert [each["document_id"] for each in rest["documents"]] == ["b.pdf"]
    assert (await client.get(path, params={"state": "lost"})).status_code == 422


async def test_a_run_is_paused_resumed_and_cancelled_and_the_audit_says_by_whom(
    fake: FakeService, client: Client
) -> None:
    run_id = (await client.post("/v1/runs", json={"documents": [REFERENCE]})).json()["run_id"]
    path = f"/v1/runs/{run_id}"
    assert (await client.post(f"{path}/pause", json={"reason": "a check"})).json()["state"] == "paused"
    assert "It is paused: a check" in (await client.get(path)).json()["waits_for"]
    assert (await client.post(f"{path}/resume")).json()["state"] == "running"
    cancelled = (await client.post(f"{path}/cancel")).json()
    assert (cancelled["state"], cancelled["cancelled"], cancelled["why"]) == (
        "cancelled",
        1,
        "Cancelled by local.",
    )
    for verb in ("pause", "resume", "cancel"):
        answer = await client.post(f"{path}/{verb}")
        assert (answer.status_code, "final" in answer.json()["detail"]) == (409, True)
    actions = [(row.who, row.action) for row in await fake.store.audits()]
    assert sorted(actions) == [("local", "runs cancel"), ("local", "runs pause"), ("local", "runs resume")]


async def test_a_run_behind_another_says_so(fake: FakeService, client: Client) -> None:
    first = (await client.post("/v1/runs", json={"documents": [REFERENCE]})).json()["run_id"]
    await eventually_later(fake)
    second = (await client.post("/v1/runs", json={"documents": [REFERENCE]})).json()["run_id"]
    found = (await client.get(f"/v1/runs/{second}")).json()
    assert (found["behind"], f"The run {first} was announced before it." in found["waits_for"]) == (
        first,
        True,
    )
    assert (await client.get(f"/v1/runs/{first}")).json()["behind"] is None


async def eventually_later(fake: FakeService) -> None:
    """The clock shows another millisecond."""
    now = fake.clock.now()

    async def later() -> bool:
        return fake.clock.now() - now > timedelta(milliseconds=2)

    await eventually(later)


# -- documents -----------------------------------------------------------------------------------------------


async def test_one_document_is_a_live_event(fake: FakeService, client: Client) -> None:
    body = {**REFERENCE, "occurred_at": "2026-11-01T10:00:00+01:00", "force": True}
    answer = await client.post("/v1/documents", json=body)
    assert (answer.status_code, answer.json()["event_id"], answer.json()["partition"]) == (202, "event-1", 3)
    ((entry, operation, force),) = fake.announce.events
    assert (entry.document_id, entry.occurred_at, operation.value, force) == (
        "a.pdf",
        datetime(2026, 11, 1, 9, tzinfo=UTC),
        "UPSERT",
        True,
    )
    assert (await client.post("/v1/documents", json={**REFERENCE, "operation": "DROP"})).status_code == 422


async def test_a_document_is_found_and_deleted_by_an_id_full_of_slashes(
    fake: FakeService, client: Client
) -> None:
    name = "file:///srv/a b/../%41?x=1#y.pdf"
    row = RunDocumentRow(uuid4(), name, State.DONE, "u", 1, "", "", datetime.now(UTC))
    await fake.store.write(Rows(run_documents=(row,)))
    found = await client.get("/v1/documents", params={"id": name})
    assert (found.status_code, found.json()["document_id"]) == (200, name)
    assert (await client.delete("/v1/documents", params={"id": name})).json()["purged"] is False
    assert (await client.get("/v1/documents", params={"id": name})).json()["deleted"] is True
    assert (await client.get("/v1/documents", params={"id": "unknown"})).status_code == 404
    assert [audit.action for audit in await fake.store.audits()] == ["documents delete"]


# -- dead letters --------------------------------------------------------------------------------------------


async def dead_letter(
    fake: FakeService, offset: int, reason: str = "source_forbidden", **fields: Any
) -> Coordinates:  # Any: a builder takes any field
    origin, copy = Coordinates("docsum.documents", 0, offset), Coordinates("docsum.dlq", 0, offset)
    now = datetime.now(UTC)
    row = DeadLetterRow(origin, copy, f"{offset}.pdf", 1, None, reason, "No.", "fetch", 4, now, now)
    await fake.store.write(Rows(dead_letters=(replace(row, **fields),)))
    fake.records[copy] = Delivery(copy, b"k", b"v", (("docsum-attempt", b"4"),), 0, origin, 0)
    return copy


async def test_dead_letters_are_listed_shown_replayed_and_discarded(
    fake: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.replay.SAMPLE_WITHIN", timedelta(0))
    for offset in range(3):
        await dead_letter(fake, offset)
    page = (await client.get("/v1/dead-letters", params={"limit": 2})).json()
    assert [each["id"] for each in page["dead_letters"]] == ["docsum.dlq[0]@0", "docsum.dlq[0]@1"]
    rest = (await client.get("/v1/dead-letters", params={"cursor": page["next_cursor"]})).json()
    assert [each["id"] for each in rest["dead_letters"]] == ["docsum.dlq[0]@2"]

    plan = await client.post("/v1/dead-letters/replay", json={"everything": True, "dry_run": True})
    assert plan.json()["reasons"] == [{"reason": "source_forbidden", "replay": 3, "park": 0, "stay": 0}]
    assert fake.publisher.copies == []

    begun = await client.post(
        "/v1/dead-letters/replay", json={"ids": ["docsum.dlq[0]@0"], "sample": False, "rate": 1000}
    )
    path = f"/v1/dead-letters/replays/{begun.json()['replay_id']}"

    async def done() -> bool:
        return bool((await client.get(path)).json()["state"] == "done")

    await eventually(done)
    assert len(fake.publisher.copies) == 1

    refusal = await client.post("/v1/dead-letters/discard", json={"everything": True})
    assert (refusal.status_code, "reason" in refusal.json()["detail"]) == (422, True)
    wish = {"everything": True, "reason": "They are gone for good."}
    assert (await client.post("/v1/dead-letters/discard", json={**wish, "dry_run": True})).json() == {
        "discarded": 2,
        "dry_run": True,
    }
    assert (await client.post("/v1/dead-letters/discard", json=wish)).json()["discarded"] == 2
    assert {row.action for row in await fake.store.audits()} == {"dlq replay", "dlq discard"}


async def test_what_fails_from_now_on_is_not_discarded(fake: FakeService, client: Client) -> None:
    await dead_letter(fake, 0)
    await dead_letter(fake, 1, failed_at=datetime.now(UTC) + timedelta(hours=1))
    wish = {"everything": True, "reason": "Gone.", "until": "2999-01-01T00:00:00Z"}
    assert (await client.post("/v1/dead-letters/discard", json=wish)).json()["discarded"] == 1
    early = {"everything": True, "reason": "Gone.", "until": "2000-01-01T00:00:00Z"}
    assert (await client.post("/v1/dead-letters/discard", json=early)).json()["discarded"] == 0


async def test_one_that_was_replayed_is_discarded_by_its_place_and_not_among_others(
    fake: FakeService, client: Client
) -> None:
    place = await dead_letter(fake, 0, state="replayed")
    await dead_letter(fake, 1, state="parked")

    async def discarded(**which: object) -> int:
        answer = await client.post("/v1/dead-letters/discard", json={"reason": "Gone.", **which})
        return int(answer.json()["discarded"])

    assert await discarded(everything=True) == 1
    assert await discarded(ids=[str(place)]) == 1
    assert await discarded(ids=[str(place)]) == 0


async def test_a_discard_that_is_cut_short_is_in_the_audit_as_far_as_it_came(
    fake: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docsum.replay.AT_ONCE", 2)
    for offset in range(5):
        await dead_letter(fake, offset)
    write = fake.store.write

    async def writes_once(rows: Rows) -> None:
        monkeypatch.setattr(fake.store, "write", down)
        await write(rows)

    async def down(rows: Rows) -> None:
        raise StoreUnavailable("ClickHouse at http://store does not answer.")

    monkeypatch.setattr(fake.store, "write", writes_once)
    answer = await client.post("/v1/dead-letters/discard", json={"everything": True, "reason": "Gone"})
    assert answer.status_code == 503
    (row,) = await fake.store.audits()
    assert (row.who, row.count, row.detail[-19:]) == ("local", 2, ": Gone, interrupted")


@pytest.mark.parametrize("path", ["/v1/dead-letters/replay", "/v1/dead-letters/discard"])
async def test_a_selection_must_say_which(client: Client, path: str) -> None:
    body = {"reason": "x"} if path.endswith("discard") else {}
    assert "Say which" in await refused(client, body, path)
    assert "no place" in await refused(client, {**body, "ids": ["../../etc"]}, path)


# -- who may -------------------------------------------------------------------------------------------------

#: What each scope is needed for.
NEEDED = {
    Scope.READ: [
        ("GET", "/v1/runs"),
        ("GET", f"/v1/runs/{UUID(int=1)}"),
        ("GET", f"/v1/runs/{UUID(int=1)}/documents"),
        ("GET", f"/v1/runs/{UUID(int=1)}/webhooks"),
        ("GET", "/v1/documents?id=a"),
        ("GET", "/v1/documents/a"),
        ("GET", "/v1/dead-letters"),
        ("GET", "/v1/dead-letters/docsum.dlq[0]@1"),
        ("GET", f"/v1/dead-letters/replays/{UUID(int=1)}"),
    ],
    Scope.SUBMIT: [
        ("POST", "/v1/runs"),
        ("POST", f"/v1/runs/{UUID(int=1)}/documents"),
        ("POST", f"/v1/runs/{UUID(int=1)}/pause"),
        ("POST", f"/v1/runs/{UUID(int=1)}/resume"),
        ("POST", f"/v1/runs/{UUID(int=1)}/cancel"),
        ("POST", "/v1/documents"),
    ],
    Scope.ADMIN: [
        ("DELETE", "/v1/documents?id=a"),
        ("DELETE", "/v1/documents/a"),
        ("POST", "/v1/dead-letters/replay"),
        ("POST", "/v1/dead-letters/discard"),
    ],
}


async def test_every_operation_needs_its_scope_and_no_other_will_do(fake: FakeService) -> None:
    fake.is_open = False
    secrets = {}
    for scope in Scope:
        secrets[scope], token = new_token(scope.value, [scope], datetime.now(UTC), "test")
        await fake.store.save_token(token)
    async with opened(fake.build()) as client:
        for scope, operations in NEEDED.items():
            for method, path in operations:
                nobody = await client.request(method, path)
                assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer"), path
                for other, secret in secrets.items():
                    answer = await client.request(method, path, headers={"Authorization": f"Bearer {secret}"})
                    assert (answer.status_code == 403) is (other is not scope), (path, other, answer.text)
                    assert answer.status_code != 401


async def test_every_operation_of_the_api_is_in_that_list(fake: FakeService) -> None:
    """A new route cannot forget to ask for a scope."""
    document = application(fake.build()).openapi()
    given = {(method, path.partition("?")[0]) for each in NEEDED.values() for method, path in each}

    def shape(path: str) -> int:
        return path.count("/")

    known = {(method, path.split("/")[2], shape(path)) for method, path in given}
    for path, operations in document["paths"].items():
        for method in operations:
            if path.startswith("/v1/") and path != "/v1/health":
                assert (method.upper(), path.split("/")[2], shape(path)) in known, path


@pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer ", "Basic YTpi", "bearer", "Bearer \u00e9"])
async def test_a_token_that_is_none_is_refused(fake: FakeService, header: str) -> None:
    fake.is_open = False
    async with opened(fake.build()) as client:
        answer = await client.get("/v1/runs", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_revoked_token_is_of_no_use_and_only_a_digest_is_kept(fake: FakeService) -> None:
    fake.is_open = False
    secret, token = new_token("ops", list(Scope), datetime.now(UTC), "test")
    assert token.digest == digest_of(secret)
    assert secret not in repr(token)
    await fake.store.save_token(token)
    async with opened(fake.build(), headers={"Authorization": f"Bearer {secret}"}) as client:
        assert (await client.get("/v1/runs")).status_code == 200
        await fake.store.save_token(revoked(token, datetime.now(UTC)))
        assert (await client.get("/v1/runs")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_without_tokens_no_page_of_others_gets_through(client: Client, headers: dict[str, str]) -> None:
    """DNS that points at this machine, and a form elsewhere that posts to it."""
    answer = await client.post("/v1/runs", json={}, headers=headers)
    assert answer.status_code == 403


# -- limits and outages --------------------------------------------------------------------------------------


async def test_a_body_is_never_larger_than_the_cap(client: Client) -> None:
    async def large() -> AsyncIterator[bytes]:
        for _ in range(MOST_BYTES // 1_000_000 + 2):
            yield b" " * 1_000_000

    for content in (b" " * (MOST_BYTES + 1), large()):
        answer = await client.post("/v1/runs", content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff\xfe", b'{"name": "\\ud800"}', b"null", b""])
async def test_a_body_that_is_no_json_is_refused(client: Client, content: bytes) -> None:
    answer = await client.post("/v1/runs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_outage_of_the_store_is_a_503_that_says_when_to_come_again(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object) -> None:
        raise StoreUnavailable("ClickHouse at http://store does not answer.")

    monkeypatch.setattr(fake.store, "runs_before", down)
    async with opened(fake.build()) as client:
        answer = await client.get("/v1/runs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == "ClickHouse at http://store does not answer."


async def test_a_bug_is_a_500_without_its_inside(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(fake.store, "runs_before", broken)
    async with opened(fake.build()) as client:
        answer = await client.get("/v1/runs")
    assert (answer.status_code, "secret" in answer.text) == (500, False)


async def test_metrics_need_no_token_and_no_store(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.is_open = False
    async with opened(fake.build()) as client:
        assert (await client.get("/v1/runs")).status_code == 401
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'docsum_dependency_up{dependency="kafka"} 1.0' in answer.text

    async def down(*_: object) -> None:
        raise StoreUnavailable("ClickHouse at http://store does not answer.")

    for question in ("tokens", "workers", "spent"):
        monkeypatch.setattr(fake.store, question, down)
    async with opened(fake.build()) as client:
        answer = await client.get("/metrics")
    assert 'docsum_dependency_up{dependency="clickhouse"} 0.0' in answer.text


async def test_answers_carry_the_headers_that_keep_a_browser_safe(client: Client) -> None:
    for path in ("/v1/runs", "/nope", "/livez"):
        headers = (await client.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_states_of_controls_are_all_told() -> None:
    assert {state.value for state in ControlState} == {"running", "paused", "cancelled"}
