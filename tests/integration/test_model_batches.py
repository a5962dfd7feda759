"""Message Batches of the local model server, asked by the official SDK: shapes, limits and faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from docsum.local.extractive import ExtractiveModel
from docsum.local.model_batches import MAX_REQUESTS, RESULTS_KEPT
from docsum.local.model_latency import Latency
from docsum.local.model_server import Options, serving
from tests.support.model_caller import HEADERS, Caller, Json, Start, ask, calling, starting
from tests.support.waiting import eventually

DAY = 24 * 3600
PATH = "/v1/messages/batches"


@pytest.fixture(scope="module")
def model() -> ExtractiveModel:
    return ExtractiveModel()


@pytest.fixture
async def start(tmp_path: Path, model: ExtractiveModel) -> AsyncIterator[Start]:
    """Batches take an hour unless the options say otherwise."""
    async with starting(tmp_path, model, fast=True, batch_time=Latency.parse("3600")) as start:
        yield start


def requests(count: int, **changes: Json) -> list[Json]:
    return [
        {"custom_id": f"doc-{number}", "params": ask(f"Report {number}. The harbour is deep.", **changes)}
        for number in range(count)
    ]


async def create(caller: Caller, count: int = 3) -> MessageBatch:
    batch: MessageBatch = await caller.sdk.messages.batches.create(requests=requests(count))
    return batch


async def advance(caller: Caller, seconds: float) -> None:
    async with caller.http.post(f"{caller.url}/_clock", json={"advance": seconds}) as response:
        assert response.status == 200


async def ended(caller: Caller, name: str) -> MessageBatch:
    """The batch, once it has ended."""

    async def is_over() -> bool:
        found = await caller.sdk.messages.batches.retrieve(name)
        return found.processing_status == "ended"

    await eventually(is_over)
    return await caller.sdk.messages.batches.retrieve(name)


async def results(caller: Caller, name: str) -> list[MessageBatchIndividualResponse]:
    return [line async for line in await caller.sdk.messages.batches.results(name)]


async def spoil(caller: Caller, endpoint: str, **rule: Json) -> None:
    match = {"endpoint": endpoint, **rule.pop("match", {})}
    await caller.spoil(match=match, **rule)


async def test_a_batch_is_answered_as_a_whole_and_billed_at_half_the_price(start: Start) -> None:
    caller = await start()
    batch = await create(caller)
    assert batch.id.startswith("msgbatch_")
    assert (batch.processing_status, batch.results_url, batch.ended_at) == ("in_progress", None, None)
    assert (batch.expires_at - batch.created_at).total_seconds() == DAY
    await advance(caller, 3500)
    counts = (await caller.sdk.messages.batches.retrieve(batch.id)).request_counts
    assert (counts.processing, counts.succeeded) == (3, 0)
    with pytest.raises(anthropic.AnthropicError):
        await results(caller, batch.id)
    await advance(caller, 100)
    over = await ended(caller, batch.id)
    assert (over.request_counts.processing, over.request_counts.succeeded) == (0, 3)
    lines = await results(caller, batch.id)
    assert {line.custom_id for line in lines} == {"doc-0", "doc-1", "doc-2"}
    for line in lines:
        assert line.result.type == "succeeded"
        assert line.result.message.usage.service_tier == "batch"
    billed = await caller.entries()
    assert {entry["service_tier"] for entry in billed} == {"batch"}
    assert {entry["request_id"].replace("req_", "msg_") for entry in billed} == {
        line.result.message.id for line in lines if line.result.type == "succeeded"
    }


async def test_results_come_in_another_order_than_the_requests(start: Start) -> None:
    caller = await start()
    batch = await create(caller, 40)
    await advance(caller, 3600)
    await ended(caller, batch.id)
    names = [line.custom_id for line in await results(caller, batch.id)]
    assert sorted(names) == sorted(f"doc-{number}" for number in range(40))
    assert names != [f"doc-{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"requests": []}, "at least 1 item"),
        ({}, "at least 1 item"),
        ([], "an object with requests"),
        ({"requests": [{"custom_id": "a/b", "params": {}}]}, "requests.0.custom_id: String should match"),
        ({"requests": [{"custom_id": "x" * 65, "params": {}}]}, "requests.0.custom_id: String should match"),
        ({"requests": [{"custom_id": "ä", "params": {}}]}, "requests.0.custom_id: String should match"),
        ({"requests": [{"custom_id": "a", "params": {}}] * 2}, "requests.1.custom_id: a is there twice"),
        ({"requests": [{"custom_id": "a"}]}, "custom_id and params are required"),
        ({"requests": [{"custom_id": "a", "params": 1}]}, "requests.0.params: Input should be an object"),
        ({"requests": [{}] * (MAX_REQUESTS + 1)}, "at most 100000 items"),
    ],
)
async def test_one_bad_request_refuses_the_whole_batch(start: Start, body: Json, sentence: str) -> None:
    caller = await start()
    status, answer = await caller.post(body, path=PATH)
    assert status == 400
    assert sentence in answer["error"]["message"]
    assert (await caller.sdk.messages.batches.list()).data == []


async def test_bad_parameters_are_found_when_a_request_has_its_turn(start: Start) -> None:
    caller = await start()
    bad = [
        {"stream": True},
        {"max_tokens": 0},
        {"model": "no-such-model"},
        {"temperature": 1},
        {"messages": []},
    ]
    asked = [
        *requests(1),
        *({"custom_id": f"bad-{n}", "params": ask() | wrong} for n, wrong in enumerate(bad)),
    ]
    status, batch = await caller.post({"requests": asked}, path=PATH)
    assert status == 200
    await advance(caller, 3600)
    assert (await ended(caller, batch["id"])).request_counts.errored == len(bad)
    kinds = {line.custom_id: line.result for line in await results(caller, batch["id"])}
    assert kinds.pop("doc-0").type == "succeeded"
    for name, result in kinds.items():
        assert result.type == "errored"
        expected = "not_found_error" if name == "bad-2" else "invalid_request_error"
        assert result.error.error.type == expected
    assert len(await caller.entries()) == 1


async def test_what_is_not_answered_within_a_day_expires(start: Start) -> None:
    caller = await start(batch_time=Latency.parse(str(2 * DAY)))
    batch = await create(caller, 10)
    await advance(caller, DAY)
    over = await ended(caller, batch.id)
    assert (over.request_counts.succeeded, over.request_counts.expired) == (5, 5)
    assert Counter(line.result.type for line in await results(caller, batch.id)) == {
        "succeeded": 5,
        "expired": 5,
    }
    assert len(await caller.entries()) == 5


async def test_a_canceled_batch_ends_and_keeps_what_was_answered(start: Start) -> None:
    caller = await start()
    batch = await create(caller, 10)
    with pytest.raises(anthropic.BadRequestError, match="cancel it first"):
        await caller.sdk.messages.batches.delete(batch.id)
    await advance(caller, 1800)
    canceling = await caller.sdk.messages.batches.cancel(batch.id)
    assert canceling.processing_status in ("canceling", "ended")
    over = await ended(caller, batch.id)
    assert over.cancel_initiated_at is not None
    assert (over.request_counts.succeeded, over.request_counts.canceled) == (5, 5)
    assert (await caller.sdk.messages.batches.delete(batch.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await caller.sdk.messages.batches.retrieve(batch.id)


async def test_results_are_archived_after_29_days(start: Start) -> None:
    caller = await start()
    batch = await create(caller)
    await advance(caller, 3600)
    assert (await ended(caller, batch.id)).archived_at is None
    await advance(caller, RESULTS_KEPT)
    over = await caller.sdk.messages.batches.retrieve(batch.id)
    assert over.archived_at is not None
    assert over.results_url is None
    async with caller.http.get(f"{caller.url}{PATH}/{batch.id}/results", headers=HEADERS) as response:
        assert response.status == 404


async def test_the_list_is_paged_newest_first(start: Start) -> None:
    caller = await start()
    names = [(await create(caller, 1)).id for _ in range(5)]
    page = await caller.sdk.messages.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [names[4], names[3]]
    assert (page.has_more, page.first_id, page.last_id) == (True, names[4], names[3])
    assert [batch.id async for batch in caller.sdk.messages.batches.list(limit=2)] == names[::-1]
    newer = await caller.sdk.messages.batches.list(limit=2, before_id=names[1])
    assert [batch.id for batch in newer.data] == [names[3], names[2]]
    with pytest.raises(anthropic.BadRequestError):
        await caller.sdk.messages.batches.list(after_id="msgbatch_unknown")


async def test_no_id_comes_twice_whatever_was_deleted(start: Start) -> None:
    caller = await start(batch_time=Latency.parse("0"))
    first, second = await create(caller, 1), await create(caller, 1)
    await ended(caller, first.id)
    await caller.sdk.messages.batches.delete(first.id)
    assert (await create(caller, 1)).id not in (first.id, second.id)


async def test_batches_outlive_the_server(tmp_path: Path, model: ExtractiveModel) -> None:
    options = Options(tmp_path, fast=True, batch_time=Latency.parse("0.3"))
    async with serving(options, model) as url, calling(url) as caller:
        batch = await create(caller, 20)
    async with serving(options, model) as url, calling(url) as caller:
        assert (await ended(caller, batch.id)).request_counts.succeeded == 20
        assert len(await caller.entries()) == 20
    async with serving(options, model) as url, calling(url) as caller:
        assert len(await results(caller, batch.id)) == 20


async def test_a_server_that_died_in_the_middle_goes_on_without_billing_again(
    tmp_path: Path, model: ExtractiveModel
) -> None:
    options = Options(tmp_path, fast=True, batch_time=Latency.parse("0"))
    async with serving(options, model) as url, calling(url) as caller:
        batch = await create(caller, 400)
        await eventually(caller.some_billed)
    async with serving(options, model) as url, calling(url) as caller:
        assert (await ended(caller, batch.id)).request_counts.succeeded == 400
        assert len({line.custom_id for line in await results(caller, batch.id)}) == 400
        assert len(await caller.entries()) == 400


# -- faults --------------------------------------------------------------------------------------------------


async def test_a_create_whose_reply_is_lost_has_made_a_batch(start: Start) -> None:
    caller = await start()
    await spoil(caller, "batches.create", kind="reset_after_accept", times=1)
    with pytest.raises(anthropic.APIConnectionError):
        await create(caller)
    assert len((await caller.sdk.messages.batches.list()).data) == 1
    await spoil(caller, "batches.create", kind="reset", times=1)
    with pytest.raises(anthropic.APIConnectionError):
        await create(caller)
    assert len((await caller.sdk.messages.batches.list()).data) == 1


async def test_rules_for_messages_leave_batches_alone(start: Start) -> None:
    caller = await start()
    await caller.spoil(status=500)
    batch = await create(caller)
    await advance(caller, 3600)
    assert (await ended(caller, batch.id)).request_counts.succeeded == 3


async def test_a_young_batch_is_not_found_and_not_listed(start: Start) -> None:
    caller = await start()
    for endpoint in ("batches.retrieve", "batches.list"):
        await spoil(caller, endpoint, kind="hidden", seconds=60)
        batch = await create(caller)
        if endpoint == "batches.list":
            assert batch.id not in [each.id for each in (await caller.sdk.messages.batches.list()).data]
        else:
            with pytest.raises(anthropic.NotFoundError):
                await caller.sdk.messages.batches.retrieve(batch.id)
        await advance(caller, 61)
        assert batch.id in [each.id for each in (await caller.sdk.messages.batches.list()).data]
        assert (await caller.sdk.messages.batches.retrieve(batch.id)).id == batch.id


async def test_single_requests_fail_expire_go_missing_or_come_twice(start: Start) -> None:
    caller = await start()
    kinds: dict[str, Json] = {
        "doc-1": {"kind": "credit_too_low"},
        "doc-2": {"kind": "expired"},
        "doc-3": {"kind": "canceled"},
        "doc-4": {"kind": "missing"},
        "doc-5": {"kind": "duplicated"},
        "doc-6": {"status": 529},
        "doc-7": {"kind": "refusal"},
    }
    rules = [
        {"match": {"endpoint": "batches.item", "contains": name}, **rule} for name, rule in kinds.items()
    ]
    async with caller.http.put(f"{caller.url}/_faults", json=rules) as response:
        assert response.status == 200, await response.text()
    batch = await create(caller, 8)
    await advance(caller, 3600)
    counts = (await ended(caller, batch.id)).request_counts
    assert (counts.succeeded, counts.errored, counts.expired, counts.canceled) == (4, 2, 1, 1)
    lines = await results(caller, batch.id)
    seen = Counter(line.custom_id for line in lines)
    assert (seen["doc-4"], seen["doc-5"], len(lines)) == (0, 2, 8)
    errors = {line.custom_id: line.result.error.error.type for line in lines if line.result.type == "errored"}
    assert errors == {"doc-1": "invalid_request_error", "doc-6": "overloaded_error"}
    assert len(await caller.entries()) == 4  # the one that went missing, too
    assert (await caller.get("/_billing"))["lost"] == 1


async def test_results_may_end_in_the_middle_of_a_line(start: Start) -> None:
    caller = await start()
    batch = await create(caller, 20)
    await advance(caller, 3600)
    await ended(caller, batch.id)
    await spoil(caller, "batches.results", kind="cut", times=1)
    whole = []
    with pytest.raises(httpx2.ReadError):  # the SDK passes it on as it is
        async for line in await caller.sdk.messages.batches.results(batch.id):
            whole.append(line)
    assert 0 < len(whole) < 20
    assert len(await results(caller, batch.id)) == 20


async def test_a_batch_that_never_ends_expires(start: Start) -> None:
    caller = await start(batch_time=Latency.parse("0"))
    await spoil(caller, "batches.create", kind="never_ends", times=1)
    batch = await create(caller)
    assert (await caller.sdk.messages.batches.retrieve(batch.id)).processing_status == "in_progress"
    await advance(caller, DAY)
    assert (await ended(caller, batch.id)).request_counts.expired == 3
    assert await caller.entries() == []


@pytest.mark.parametrize("act", ["retrieve", "list", "cancel", "results"])
async def test_every_endpoint_may_fail(start: Start, act: str) -> None:
    caller = await start(batch_time=Latency.parse("0"))
    batch = await create(caller)
    await ended(caller, batch.id)
    await spoil(caller, f"batches.{act}", status=529)
    with pytest.raises(anthropic.APIStatusError) as failure:
        match act:
            case "retrieve":
                await caller.sdk.messages.batches.retrieve(batch.id)
            case "list":
                await caller.sdk.messages.batches.list()
            case "cancel":
                await caller.sdk.messages.batches.cancel(batch.id)
            case _:
                await results(caller, batch.id)
    assert failure.value.status_code == 529
