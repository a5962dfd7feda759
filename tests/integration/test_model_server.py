"""The local model server, asked by the official SDK and, for what the SDK never sends, by plain HTTP."""

import asyncio
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anthropic
import pytest

from docsum.local.extractive import ExtractiveModel
from docsum.local.model_faults import NAMED, Endpoint, Fault, FaultKind, texts_of
from docsum.local.model_latency import Latency
from docsum.local.model_limits import Bucket
from docsum.local.model_requests import parse_ask
from docsum.local.model_server import MAX_BODY_BYTES, Options, parse_arguments, serving
from docsum.summarisers.prompt import read_message
from tests.support.documents import encrypted_pdf, pdf, scanned_pdf
from tests.support.model_caller import (
    FIELDS,
    HEADERS,
    SCHEMA,
    STRINGS,
    TEXT,
    Caller,
    Json,
    Start,
    ask,
    calling,
    said,
    starting,
)
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def model() -> ExtractiveModel:
    return ExtractiveModel()


@pytest.fixture
async def start(tmp_path: Path, model: ExtractiveModel) -> AsyncIterator[Start]:
    async with starting(tmp_path, model) as start:
        yield start


# --- answers ----------------------------------------------------------------------------------------------


async def test_the_sdk_gets_a_real_extract_that_satisfies_the_schema(start: Start) -> None:
    caller = await start()
    raw = await caller.sdk.messages.with_raw_response.create(**ask())
    message = await raw.parse()
    answer = json.loads(said(message))
    assert sorted(answer) == sorted(FIELDS)
    assert answer["title"] == "Harbour report"
    assert answer["summary"].startswith("The harbour was dredged in May.")
    assert (answer["language"], answer["document_type"], answer["warnings"]) == ("en", "report", [])
    assert all(point in TEXT for point in answer["key_points"])
    assert message.stop_reason == "end_turn"
    assert message.id.startswith("msg_")
    assert message._request_id == raw.headers["request-id"]
    assert message.usage.service_tier == "standard"
    assert message.usage.cache_read_input_tokens == message.usage.cache_creation_input_tokens == 0


async def test_the_same_request_gets_the_same_answer_and_the_same_usage(start: Start) -> None:
    caller = await start()
    first, second = await caller.create(), await caller.create()
    assert (first.content, first.usage) == (second.content, second.usage)
    assert first.id != second.id


async def test_without_a_schema_the_answer_is_plain_text(start: Start) -> None:
    message = await (await start()).create(output_config=None)
    assert said(message).startswith("Harbour report\n\nThe harbour")


async def test_only_the_document_between_the_tags_is_summarised(start: Start) -> None:
    caller = await start()
    content = (
        f'Some words before.\n<document id="x1">\n{TEXT}\n</document id="x1">\nSome words after it here.'
    )
    message = await caller.create(messages=[{"role": "user", "content": [{"type": "text", "text": content}]}])
    assert "Some words" not in said(message)
    untagged = await caller.create(messages=[{"role": "user", "content": TEXT}])
    assert json.loads(said(untagged)) == json.loads(said(message))


async def test_an_answer_longer_than_max_tokens_is_cut_and_billed(start: Start) -> None:
    caller = await start()
    message = await caller.create(max_tokens=20)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 20
    assert len(said(message)) == 70
    assert (await caller.get("/_billing"))["output_tokens"] == 20


async def test_fast_mode_answers_with_the_first_sentences(start: Start) -> None:
    answer = json.loads(said(await (await start(fast=True)).create()))
    assert answer["title"] == "Harbour report"
    assert answer["summary"].startswith("The harbour was dredged in May. Ships of")


async def test_a_long_text_does_not_hold_up_others(start: Start) -> None:
    caller = await start()
    long_text = " ".join(f"Sentence {i} tells of ship {i * 7 % 1000} in the harbour." for i in range(20_000))
    slow = asyncio.create_task(caller.create(long_text))
    await eventually(caller.billed(accepted=0))
    answered = 0
    while not slow.done():
        await caller.get("/health")
        answered += 1
    assert answered >= 3
    assert json.loads(said(await slow))["summary"]


async def test_models_and_token_counts(start: Start) -> None:
    caller = await start()
    names = [info.id async for info in caller.sdk.models.list()]
    assert names[0] == "local-extractive-1"
    assert "claude-haiku-5-5" in names
    assert (await caller.sdk.models.retrieve("claude-haiku-4-5")).max_input_tokens == 200_000
    with pytest.raises(anthropic.NotFoundError):
        await caller.sdk.models.retrieve("claude-2")
    body = ask()
    counted = await caller.sdk.messages.count_tokens(
        model=body["model"], system=body["system"], messages=body["messages"]
    )
    assert counted.input_tokens == (await caller.create()).usage.input_tokens


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"x-api-key": "k", "anthropic-version": "2023-06-01"}, 200, ""),
        ({"Authorization": "Bearer k", "anthropic-version": "2026-10-21"}, 200, ""),
        ({"anthropic-version": "2026-10-21"}, 401, "authentication_error"),
        ({"Authorization": "Bearer ", "anthropic-version": "2026-10-21"}, 401, "authentication_error"),
        ({"x-api-key": "k"}, 400, "invalid_request_error"),
        ({"x-api-key": "k", "anthropic-version": "2031-01-01"}, 400, "invalid_request_error"),
    ],
)
async def test_a_key_and_a_known_version_are_needed(
    start: Start, headers: Mapping[str, str], status: int, kind: str
) -> None:
    found, body = await (await start()).post(ask(), headers)
    assert (found, body.get("error", {}).get("type", "")) == (status, kind)


def with_schema(**changes: Json) -> Json:
    return {"format": {"type": "json_schema", "schema": SCHEMA | changes}}


def with_property(spec: Json) -> Json:
    return with_schema(properties={"title": spec}, required=["title"])


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": None}, 400, "model: Field required"),
        ({"model": "gpt-1"}, 404, "model: gpt-1"),
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be"),
        ({"max_tokens": 128_001}, 400, "128001 > 128000"),
        ({"messages": None}, 400, "messages: Field required"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "reads text only"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, 'must use the "user" role'),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]},
            400,
            "prefill",
        ),
        ({"temperature": 0.5}, 400, "temperature: sampling parameters were removed"),
        ({"top_k": 5}, 400, "top_k"),
        ({"stream": True}, 400, "does not stream"),
        ({"tools": []}, 400, "tools: not supported by the local model server"),
        ({"colour": "red"}, 400, "colour: Extra inputs are not permitted"),
        ({"thinking": {"type": "deep"}}, 400, "thinking.type"),
        ({"metadata": {"user_id": 7}}, 400, "metadata.user_id"),
        ({"output_config": {"effort": "huge"}}, 400, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, 400, "json_schema"),
        ({"output_config": with_schema(additionalProperties=None)}, 400, "additionalProperties"),
        (
            {"output_config": with_property({"type": "string", "maxLength": 9})},
            400,
            "'maxLength' is not supported",
        ),
        ({"output_config": with_property({**STRINGS, "minItems": 3})}, 400, "minItems"),
        ({"output_config": with_property({"type": "number"})}, 400, "strings and arrays of strings"),
        ({"output_config": with_property({"type": "string", "enum": []})}, 400, "non-empty list"),
        ({"output_config": with_schema(properties=["title"])}, 400, "objects with properties"),
        ({"output_config": with_schema(required=["colour"])}, 400, "colour not among the properties"),
        ({"output_config": with_schema(required="title")}, 400, "should be a list"),
        ({"model": "claude-haiku-4-5", "system": "x" * 710_000}, 400, "prompt is too long"),
        ({"model": "claude-haiku-4-5", "system": "x" * 699_000}, 400, "exceed context limit"),
    ],
)
async def test_a_wrong_request_is_refused_as_the_public_api_does_and_not_billed(
    start: Start, changes: Json, status: int, message: str
) -> None:
    caller = await start()
    async with caller.http.post(
        f"{caller.url}/v1/messages", json=ask(**changes), headers=HEADERS
    ) as response:
        body = await response.json()
        assert response.status == status
        assert body["type"] == "error"
        assert message in body["error"]["message"]
        assert body["request_id"] == response.headers["request-id"]
    assert await caller.billed(accepted=0)()


async def test_sampling_is_still_taken_under_the_old_version(start: Start) -> None:
    headers = {**HEADERS, "anthropic-version": "2023-06-01"}
    assert (await (await start()).post(ask(temperature=0.5), headers))[0] == 200


async def test_a_body_over_32_mb_is_too_large(start: Start) -> None:
    caller = await start()
    body = b" " * (MAX_BODY_BYTES + 1)
    async with caller.http.post(
        f"{caller.url}/v1/messages", data=io.BytesIO(body), headers=HEADERS
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "request_too_large"


async def test_what_is_no_json_or_no_endpoint_is_told(start: Start) -> None:
    caller = await start()
    for data in (b"{", b"[" * 100_000):
        async with caller.http.post(f"{caller.url}/v1/messages", data=data, headers=HEADERS) as response:
            assert (response.status, "not valid JSON" in await response.text()) == (400, True)
    assert (await caller.post({}, path="/v1/complete"))[0] == 404


# --- limits and latency -----------------------------------------------------------------------------------


async def test_requests_over_the_limit_get_429_and_are_not_billed(start: Start) -> None:
    caller = await start(requests_per_minute=2)
    first = await caller.sdk.messages.with_raw_response.create(**ask())
    assert first.headers["anthropic-ratelimit-requests-limit"] == "2"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert "anthropic-ratelimit-tokens-remaining" in first.headers
    with pytest.raises(anthropic.RateLimitError) as refused:
        await caller.create()
    assert refused.value.type == "rate_limit_error"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
    assert await caller.billed(accepted=1, rejected=1)()
    async with caller.http.delete(f"{caller.url}/_billing") as response:
        assert (await response.json())["rejected"] == 0


async def test_a_minute_has_no_more_requests_than_its_limit_from_the_first_one_on(start: Start) -> None:
    caller = await start(requests_per_minute=600)
    answers = await asyncio.gather(*(caller.post(ask()) for _ in range(60)))
    accepted = [status for status, _ in answers].count(200)
    assert 10 <= accepted < 40  # ten at once, and ten for each second that the machine took
    assert await caller.billed(accepted=accepted, rejected=60 - accepted)()


@pytest.mark.parametrize("limit", [{"input_tokens_per_minute": 100}, {"output_tokens_per_minute": 100}])
async def test_tokens_are_limited_too(start: Start, limit: Mapping[str, int]) -> None:
    caller = await start(**limit)
    with pytest.raises(anthropic.RateLimitError):
        await caller.create()
        await caller.create()  # the first answer overdraws the output bucket


def test_a_bucket_fills_evenly_and_gives_a_seconds_worth_at_once() -> None:
    bucket = Bucket(600, 0, now=100)
    bucket.take(10, 100)
    assert bucket.wait(1, 100) == pytest.approx(0.1)
    assert bucket.wait(5, 100) == pytest.approx(0.5)
    assert bucket.wait(1, 100.1) == 0
    assert bucket.left(100) == 590
    assert bucket.left(1000) == 600
    assert bucket.wait(601, 1000) == 60


def test_what_is_larger_than_a_seconds_worth_goes_when_that_is_full_and_the_next_waits() -> None:
    bucket = Bucket(600, 0, now=100)
    assert bucket.wait(300, 100) == 0
    bucket.take(300, 100)
    assert bucket.wait(1, 100) == pytest.approx(29.1)
    assert bucket.wait(1, 130) == 0


@pytest.mark.parametrize(("text", "low", "high"), [("0.1", 0.1, 0.1), ("0.5..2.0", 0.5, 2.0), ("0", 0, 0)])
def test_latency_stays_within_its_range_and_repeats_with_its_seed(text: str, low: float, high: float) -> None:
    drawn = [Latency.parse(text).draw(random.Random(seed)) for seed in range(50)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert drawn == [Latency.parse(text).draw(random.Random(seed)) for seed in range(50)]


def test_a_lognormal_latency_has_its_median_and_its_99th_percentile() -> None:
    profile, chance = Latency.parse("lognormal:2,10"), random.Random(1)
    drawn = sorted(profile.draw(chance) for _ in range(20_000))
    assert statistics.median(drawn) == pytest.approx(2, rel=0.1)
    assert drawn[19_800] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("text", ["", "fast", "-1", "nan", "1..", "lognormal:3", "lognormal:5,1"])
def test_a_latency_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Latency.parse(text or "x")


async def test_an_answer_takes_its_latency(start: Start) -> None:
    caller = await start(latency=Latency.parse("0.2"))
    begun = asyncio.get_running_loop().time()
    await caller.create()
    assert asyncio.get_running_loop().time() - begun >= 0.2


# --- billing ----------------------------------------------------------------------------------------------


async def test_the_ledger_knows_what_was_bought(start: Start) -> None:
    caller = await start()
    message = await caller.create(model="claude-haiku-5-5", metadata={"user_id": "doc-1"})
    await eventually(caller.billed(accepted=1, served=1, lost=0, in_flight=0))
    (entry,) = await caller.entries()
    assert entry["n"] == 1
    assert entry["request_id"] == message._request_id
    assert entry["model"] == "claude-haiku-5-5"
    assert entry["user_id"] == "doc-1"
    assert (entry["input_tokens"], entry["output_tokens"]) == (
        message.usage.input_tokens,
        message.usage.output_tokens,
    )
    assert (entry["stop_reason"], entry["outcome"]) == ("end_turn", "served")
    assert len(entry["fingerprint"]) == 64


async def test_a_client_that_goes_away_has_paid_for_a_lost_reply(start: Start) -> None:
    caller = await start(latency=Latency.parse("60"))
    call = asyncio.create_task(caller.create())
    await eventually(caller.billed(accepted=1, in_flight=1))
    call.cancel()
    await eventually(caller.billed(lost=1, in_flight=0))
    assert [entry["outcome"] for entry in await caller.entries()] == ["lost"]


async def test_the_same_request_bought_twice_is_found_whatever_its_boundary_and_token_limit(
    start: Start,
) -> None:
    caller = await start()
    await caller.create(boundary="one", max_tokens=500)
    await caller.create(boundary="two", max_tokens=900)
    await caller.create("Another text with one sentence.", boundary="two")
    report = await caller.get("/_billing/fingerprints")
    bought = [entry["fingerprint"] for entry in await caller.entries()]
    assert report == {"distinct": 2, "repeated": 1, "paid_more_than_once": {bought[0]: 2}}
    assert bought[0] == bought[1] != bought[2]


async def test_a_reset_forgets_all_and_a_late_reply_does_not_disturb_it(start: Start) -> None:
    caller = await start(latency=Latency.parse("0.3"))
    call = asyncio.create_task(caller.create())
    await eventually(caller.billed(in_flight=1))
    async with caller.http.delete(f"{caller.url}/_billing") as response:
        assert (await response.json())["accepted"] == 0
    await call
    await caller.create()
    await eventually(caller.billed(accepted=1, served=1))
    assert [entry["n"] for entry in await caller.entries()] == [1]


async def test_a_half_written_line_is_dropped_at_the_next_start(
    tmp_path: Path, model: ExtractiveModel
) -> None:
    for _ in range(2):
        async with serving(Options(tmp_path), model) as url, calling(url) as caller:
            await caller.create()
            await eventually(caller.billed(in_flight=0))
        with (tmp_path / "billing.ndjson").open("ab") as file:
            file.write(b'{"n":9,"request_id":"req_')
    async with serving(Options(tmp_path), model) as url, calling(url) as caller:
        assert [entry["n"] for entry in await caller.entries()] == [1, 2]
        assert await caller.billed(accepted=2, served=2)()


# --- faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (402, anthropic.PaymentRequiredError, "billing_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (408, anthropic.RequestTimeoutError, "timeout_error"),
        (409, anthropic.ConflictError, "conflict_error"),
        (413, anthropic.ContentTooLargeError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (502, anthropic.InternalServerError, "api_error"),
        (503, anthropic.ServiceUnavailableError, "api_error"),
        (504, anthropic.GatewayTimeoutError, "timeout_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
async def test_an_error_rule_answers_with_that_error_and_bills_nothing(
    start: Start, status: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    caller = await start()
    await caller.spoil(status=status, message="on purpose", retry_after=7, error_code="some_code")
    with pytest.raises(error) as raised:
        await caller.create()
    assert (raised.value.status_code, raised.value.type, raised.value.api_message) == (
        status,
        kind,
        "on purpose",
    )
    assert raised.value.error_code == "some_code"
    assert raised.value.response.headers["retry-after"] == "7"
    assert await caller.billed(accepted=0)()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("credit_too_low", anthropic.BadRequestError, "credit balance is too low"),
        ("usage_limit", anthropic.BadRequestError, "specified API usage limits"),
        ("ramp_limit", anthropic.RampLimitExceededError, "ramp_limit_exceeded"),
        ("enforced_spend_limit", anthropic.EnforcedSpendLimitReachedError, "enforced_spend_limit_reached"),
        ("contract_spend_limit", anthropic.ContractSpendLimitReachedError, "contract_spend_limit_reached"),
        ("too_large", anthropic.ContentTooLargeError, "<h1>413 Request Entity Too Large</h1>"),
        ("bad_gateway", anthropic.InternalServerError, "<h1>502 Bad Gateway</h1>"),
    ],
)
async def test_an_error_with_a_name_is_the_one_that_the_api_or_its_edge_gives(
    start: Start, name: str, error: type[anthropic.APIStatusError], says: str
) -> None:
    caller = await start()
    await caller.spoil(kind=name)
    with pytest.raises(error) as raised:
        await caller.create()
    assert type(raised.value) is error
    assert says in raised.value.response.text
    assert ("retry-after" in raised.value.response.headers) is (name == "ramp_limit")
    assert says.startswith("<") is ("html" in raised.value.response.headers["content-type"])
    assert await caller.billed(accepted=0)()


def test_every_kind_of_fault_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    told = capsys.readouterr().out
    assert [kind for kind in (*FaultKind, *NAMED) if kind not in told] == []


async def test_a_rule_is_for_a_model_or_for_the_nth_request(start: Start) -> None:
    caller = await start()
    await caller.spoil(match={"model": "claude-haiku-5-5", "nth": 2}, status=500)
    wanted = [("claude-haiku-5-5", 200), ("claude-opus-5-5", 200), ("claude-haiku-5-5", 500)]
    for model, status in (*wanted, ("claude-haiku-5-5", 200)):
        assert (await caller.post(ask(model=model)))[0] == status


async def test_an_outage_begins_and_ends_by_itself(start: Start) -> None:
    caller = await start()
    async with caller.http.put(
        f"{caller.url}/_faults", json=[{"status": 529, "after": 0.2, "for": 0.3}]
    ) as response:
        (shown,) = await response.json()
    assert (shown["after"], shown["for"], shown["match"]) == (0.2, 0.3, {})

    async def answers(status: int) -> bool:
        return (await caller.post(ask()))[0] == status

    await eventually(lambda: answers(529))
    await eventually(lambda: answers(200))
    assert not await answers(529)


def test_a_window_is_counted_from_the_moment_when_the_rule_was_set() -> None:
    rule = Fault.parse({"after": 5, "for": 10}, now=100)
    request = parse_ask(ask(), "2026-10-21")
    texts = texts_of(request)
    seen = {
        at: rule.applies(Endpoint.MESSAGES, texts, request.model.id, at)
        for at in (100, 104.9, 105, 114.9, 115, 1000)
    }
    assert [at for at, applies in seen.items() if applies] == [105, 114.9]


@pytest.mark.parametrize(("kind", "first"), [("slow_headers", False), ("slow_body", True)])
async def test_a_slow_answer_is_billed_and_arrives_whole(start: Start, kind: str, first: bool) -> None:
    caller = await start()
    await caller.spoil(kind=kind, seconds=0.4)
    clock = asyncio.get_running_loop().time
    begun = clock()
    async with caller.http.post(f"{caller.url}/v1/messages", json=ask(), headers=HEADERS) as response:
        headers_after = clock() - begun
        assert (await response.json())["stop_reason"] == "end_turn"
    assert clock() - begun >= 0.4
    if not first:
        assert headers_after >= 0.4
    await eventually(caller.billed(accepted=1, served=1))


async def test_a_rule_fires_for_its_text_and_as_often_as_it_says(start: Start) -> None:
    caller = await start()
    await caller.spoil(match={"contains": "dredged"}, status=500, times=2)
    await caller.create("Another text with one sentence.")
    for _ in range(2):
        with pytest.raises(anthropic.InternalServerError):
            await caller.create()
    await caller.create()
    (rule,) = await caller.get("/_faults")
    assert (rule["times"], rule["fired"]) == (0, 2)
    async with caller.http.delete(f"{caller.url}/_faults") as response:
        assert await response.json() == []


async def test_probabilities_repeat_with_the_seed(
    start: Start, tmp_path: Path, model: ExtractiveModel
) -> None:
    async def statuses(caller: Caller) -> list[int]:
        await caller.spoil(status=500, probability=0.5)
        return [(await caller.post(ask()))[0] for _ in range(20)]

    first = await statuses(await start(seed=3))
    async with serving(Options(tmp_path / "other", seed=3), model) as url, calling(url) as caller:
        assert await statuses(caller) == first
    assert {200, 500} == set(first)


@pytest.mark.parametrize(("kind", "billed"), [("reset", 0), ("reset_after_accept", 1)])
async def test_a_reset_before_accept_is_free_and_one_after_it_is_not(
    start: Start, kind: str, billed: int
) -> None:
    caller = await start()
    await caller.spoil(kind=kind, times=1)
    with pytest.raises(anthropic.APIConnectionError):
        await caller.create()
    await eventually(caller.billed(accepted=billed, lost=billed))
    await caller.create()


async def test_a_hanging_request_ends_with_the_clients_patience(start: Start) -> None:
    caller = await start()
    await caller.spoil(kind="hang")
    with pytest.raises(anthropic.APITimeoutError):
        await caller.sdk.with_options(timeout=0.2).messages.create(**ask())
    assert await caller.billed(accepted=0)()


async def test_unusable_answers_are_billed(start: Start) -> None:
    caller = await start()
    await caller.spoil(kind="invalid_json")
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(said(await caller.create()))
    await caller.spoil(kind="truncated")
    cut = await caller.create()
    assert cut.stop_reason == "max_tokens"
    await caller.spoil(kind="refusal", message="no")
    refused = await caller.create()
    assert (refused.stop_reason, refused.content) == ("refusal", [])
    assert refused.stop_details is not None
    assert (refused.stop_details.category, refused.stop_details.explanation) == ("general_harms", "no")
    await caller.spoil(kind="context_exceeded")
    assert (await caller.create()).stop_reason == "model_context_window_exceeded"
    stops = [entry["stop_reason"] for entry in await caller.entries()]
    assert stops == ["end_turn", "max_tokens", "refusal", "model_context_window_exceeded"]


@pytest.mark.parametrize("kind", ["thinking_first", "unknown"])
async def test_an_answer_may_hold_what_nobody_has_asked_for(start: Start, kind: str) -> None:
    caller = await start()
    usual = await caller.create()
    await caller.spoil(kind=kind)
    _, body = await caller.post(ask())
    assert [block["type"] for block in body["content"]][1:] == ["text"]
    assert body["content"][0]["type"] in ("thinking", "a_later_block")
    assert body["content"][1]["text"] == said(usual)
    reply = read_message(body)
    assert (reply.status, reply.parsed is not None) == ("ok", True)


@pytest.mark.parametrize(
    "rule",
    [
        "x",
        {"colour": 1},
        {"kind": "explosion"},
        {"status": 200},
        {"status": "500"},
        {"probability": 2},
        {"match": {"colour": "x"}},
        {"match": {"nth": "first"}},
        {"for": -1},
        {"after": "soon"},
        {"times": "often"},
    ],
)
async def test_a_rule_that_is_none_is_refused(start: Start, rule: Json) -> None:
    caller = await start()
    async with caller.http.put(f"{caller.url}/_faults", json=[rule]) as response:
        assert response.status == 400
    assert await caller.get("/_faults") == []


# --- the process ------------------------------------------------------------------------------------------


class ServerProcess:
    """The server as a process of its own."""

    def __init__(self, home: Path, *options: str) -> None:
        argv = [sys.executable, "-m", "docsum.local.model_server", "--home", str(home), *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    async def url(self) -> str:
        assert self.process.stdout
        line = await asyncio.to_thread(self.process.stdout.readline)
        return line.rsplit(" ", 1)[-1].strip()

    async def ended(self, within: float) -> int:
        return await asyncio.to_thread(self.process.wait, within)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


async def test_what_was_billed_survives_a_kill_of_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--latency", "60") as server:
        async with calling(await server.url()) as caller:
            call = asyncio.create_task(caller.create())
            await eventually(caller.billed(accepted=1, in_flight=1))
            os.kill(server.process.pid, signal.SIGKILL)
            with pytest.raises(anthropic.APIConnectionError):
                await call
    with ServerProcess(tmp_path) as server:
        async with calling(await server.url()) as caller:
            assert await caller.billed(accepted=1, lost=1, in_flight=0)()
            await caller.create()
            await eventually(caller.billed(accepted=2, served=1, lost=1))
            first, second = await caller.entries()
    assert (first["n"], second["n"]) == (1, 2)
    assert first["fingerprint"] == second["fingerprint"]
    assert first["request_id"] != second["request_id"]


async def test_sigterm_ends_it_at_once_even_with_a_request_in_flight(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--latency", "60") as server:
        async with calling(await server.url()) as caller:
            call = asyncio.create_task(caller.create())
            await eventually(caller.billed(in_flight=1))
            begun = asyncio.get_running_loop().time()
            os.kill(server.process.pid, signal.SIGTERM)
            assert await server.ended(10) == 0
            assert asyncio.get_running_loop().time() - begun < 5
            with pytest.raises(anthropic.APIConnectionError):
                await call
        assert '"outcome":"lost"' in (tmp_path / "billing.ndjson").read_text()


async def test_two_servers_never_share_a_ledger(start: Start, tmp_path: Path) -> None:
    await start()
    with ServerProcess(tmp_path) as second:
        assert await second.ended(20) == 1
        assert second.process.stderr
        assert "another model server uses" in second.process.stderr.read()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--latency", "soon"], "is no latency"),
        (["--requests-per-minute", "0"], "whole number"),
        (["--fault", '{"status": 200}'], "is no fault rule"),
        (["--faults", "/nowhere.json"], "no list of fault rules"),
    ],
)
async def test_a_wrong_option_is_a_usage_error(tmp_path: Path, options: list[str], says: str) -> None:
    with ServerProcess(tmp_path, *options) as server:
        assert await server.ended(20) == 2
        assert server.process.stderr
        assert says in server.process.stderr.read()


async def test_faults_can_be_there_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    file.write_text(json.dumps([{"status": 529, "times": 1}]))
    options = ["--faults", str(file), "--fault", '{"status": 503}', "--fault", '{"status": 500}']
    with ServerProcess(tmp_path, *options) as server:
        async with calling(await server.url()) as caller:
            assert [(await caller.post(ask()))[0] for _ in range(2)] == [529, 503]
            assert [rule["status"] for rule in await caller.get("/_faults")] == [529, 503, 500]


async def test_a_pdf_is_counted_by_its_pages_and_read_as_far_as_its_text_goes(start: Start) -> None:
    caller = await start()

    def asked(content: bytes) -> Json:
        source = {"type": "base64", "media_type": "application/pdf", "data": b64encode(content).decode()}
        return [{"role": "user", "content": [{"type": "document", "source": source}]}]

    scan = await caller.create(messages=asked(scanned_pdf(2)))
    assert 4_000 <= scan.usage.input_tokens < 4_100
    assert "2 pages that are pictures" in json.loads(said(scan))["summary"]
    readable = await caller.create(messages=asked(pdf(1)))
    assert "pictures" not in said(readable)
    for content, told in ((b"%PDF-1.7 nothing", "not valid"), (encrypted_pdf(), "password protected")):
        status, body = await caller.post(ask(messages=asked(content)))
        assert status == 400 and told in body["error"]["message"]
