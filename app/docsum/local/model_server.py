"""The local model: a server on loopback that speaks the Anthropic Messages protocol, answering with extracts.

The answers are real extracts of the documents that were sent (`extractive.py`). Requests are checked,
limited, billed and answered in the shapes of the public API, so that the client under test is the one of
production. Every accepted request is written to a billing ledger before it is answered: what was bought can
be compared with what the client believes it bought, also after a SIGKILL on either side.

Beside `/v1/...` it serves `GET /health`, the ledger (`/_billing`) and fault rules (`/_faults`).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import secrets
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from docsum.local.extractive import ExtractiveModel
from docsum.local.loopback import HOST
from docsum.local.model_api import MODELS, ApiError, Json, compact, invalid
from docsum.local.model_batches import MAX_BODY_BYTES as MAX_BATCH_BYTES
from docsum.local.model_batches import Batch, Batches, check_requests, lines_of
from docsum.local.model_billing import Ledger, Outcome
from docsum.local.model_faults import Dice, Endpoint, Fault, FaultKind, texts_of, write_slowly
from docsum.local.model_latency import Latency
from docsum.local.model_limits import RateLimits
from docsum.local.model_replies import Reply, answer, message_body
from docsum.local.model_requests import Ask, check_headers, known_model, parse_ask

MAX_BODY_BYTES = 32 * 1024 * 1024
#: Longer texts are summarised in a thread: at this length that takes about 10 ms, which the loop can spare.
INLINE_CHARACTERS = 20_000
_BATCHES = "/v1/messages/batches"


@dataclass(frozen=True, slots=True)
class Options:
    """How a model server behaves; None is without a limit."""

    home: Path
    port: int = 0
    host: str = HOST
    latency: Latency = field(default_factory=lambda: Latency.parse("0"))
    batch_time: Latency = field(default_factory=lambda: Latency.parse("5"))
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    seed: int = 0
    fast: bool = False
    faults: Sequence[Json] = ()


Handler = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]


class ModelServer:
    """Answers requests; made inside a running loop, and closed when the last request is done."""

    def __init__(self, options: Options, model: ExtractiveModel) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        options.home.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(options.home / "billing.ndjson")
        self._model = model
        # One thread: two long texts at once would only share the interpreter, and starve the loop more.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="extract")
        self._limits = RateLimits(
            options.requests_per_minute,
            options.input_tokens_per_minute,
            options.output_tokens_per_minute,
            self._loop.time(),
        )
        self._dice = Dice([Fault.parse(rule, self._loop.time()) for rule in options.faults], options.seed)
        self._latency_chance = random.Random(options.seed)  # noqa: S311 - repeatable, no secret
        # Request ids are keys of the client's ledger, so they never repeat over restarts, whatever the seed.
        self._id_prefix = f"01{secrets.token_hex(4)}"
        self._requests = 0
        self._batches = Batches(
            options.home / "batches",
            self._ledger,
            self._answer,
            self._draw,
            duration=options.batch_time,
            chance=random.Random(options.seed),  # noqa: S311 - repeatable, no secret
            prefix=self._id_prefix,
        )
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("GET", "/v1/models"): self._list_models,
            ("POST", _BATCHES): self._create_batch,
            ("GET", _BATCHES): self._list_batches,
            ("POST", "/_clock"): self._advance,
            ("GET", "/health"): self._health,
            ("GET", "/_billing"): self._show_billing,
            ("DELETE", "/_billing"): self._reset_billing,
            ("GET", "/_billing/fingerprints"): self._show_fingerprints,
            ("GET", "/_faults"): self._show_faults,
            ("PUT", "/_faults"): self._put_faults,
            ("DELETE", "/_faults"): self._delete_faults,
        }
        self._of_a_batch: dict[tuple[str, str], Handler] = {  # by what follows its id
            ("GET", ""): self._show_batch,
            ("DELETE", ""): self._delete_batch,
            ("POST", "cancel"): self._cancel_batch,
            ("GET", "results"): self._batch_results,
        }

    def close(self) -> None:
        self._batches.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._ledger.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; errors of the API become their bodies here and nowhere else."""
        self._requests += 1
        request_id = f"req_{self._id_prefix}{self._requests:010x}"
        try:
            return await self._route(request.method, request.path)(request, request_id)
        except ApiError as error:
            return self._error(error, request_id)
        except web.HTTPRequestEntityTooLarge:
            most = _most_bytes(request.path) // 1024**2
            too_large = ApiError(413, "request_too_large", f"Request exceeds the maximum size of {most} MB")
            return self._error(too_large, request_id)

    def _route(self, method: str, path: str) -> Handler:
        if handler := self._routes.get((method, path)):
            return handler
        if method == "GET" and path.startswith("/v1/models/"):
            return self._show_model
        if path.startswith(f"{_BATCHES}/"):
            what = path.removeprefix(f"{_BATCHES}/").partition("/")[2]
            if handler := self._of_a_batch.get((method, what)):
                return handler
        raise ApiError(404, "not_found_error", f"{method} {path} does not exist here")

    def _error(self, error: ApiError, request_id: str) -> web.Response:
        if error.page is not None:  # the API itself has not seen the request
            response = web.Response(text=error.page, content_type="text/html", status=error.status)
        else:
            response = self._json(error.body(request_id), request_id, status=error.status)
        if error.retry_after is not None:
            response.headers["retry-after"] = f"{error.retry_after:g}"
        return response

    def _json(self, body: Json, request_id: str, *, status: int = 200) -> web.Response:
        headers = {
            **self._limits.headers(self._loop.time(), time.time()),
            "request-id": request_id,
            "content-type": "application/json",
        }
        return web.Response(body=compact(body).encode(), status=status, headers=headers)

    async def _messages(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        ask = parse_ask(await read_json(request), check_headers(request.headers))
        fault = self._draw(Endpoint.MESSAGES, texts_of(ask), ask.model.id)
        if gone := await self._spoilt(request, fault):
            return gone
        self._limits.admit(ask.input_tokens, self._loop.time())
        reply = await self._answer(ask)
        reply = fault.bend(reply) if fault else reply
        self._limits.charge(reply.output_tokens, self._loop.time())
        receipt = self._ledger.accept(ask, reply, request_id)
        body = message_body(ask, reply, request_id)
        response = self._json(fault.decorate(body) if fault else body, request_id)
        try:
            if delay := self._options.latency.draw(self._latency_chance):
                await asyncio.sleep(delay)
            if fault and fault.kind is FaultKind.RESET_AFTER_ACCEPT:
                self._ledger.settle(receipt, Outcome.LOST)
                return reset(request)
            sent = await send(request, response, fault)
        except asyncio.CancelledError:
            self._ledger.settle(receipt, Outcome.LOST)
            raise
        except ConnectionError:
            self._ledger.settle(receipt, Outcome.LOST)
            return response
        self._ledger.settle(receipt, Outcome.SERVED)
        return sent

    def _draw(self, endpoint: Endpoint, texts: Sequence[str] = (), model: str = "") -> Fault | None:
        return self._dice.draw(endpoint, texts, model, self._loop.time())

    async def _answer(self, ask: Ask) -> Reply:
        work = partial(answer, self._model, ask, fast=self._options.fast)
        if self._options.fast or len(ask.texts[-1]) <= INLINE_CHARACTERS:
            return work()
        return await self._loop.run_in_executor(self._thread, work)

    # -- Message Batches ---------------------------------------------------------------------------------

    async def _create_batch(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        version = check_headers(request.headers)
        requests = check_requests(await read_json(request))
        fault = self._draw(Endpoint.BATCH_CREATE, [item["custom_id"] for item in requests])
        if gone := await self._spoilt(request, fault):
            return gone
        never_ends = bool(fault and fault.kind is FaultKind.NEVER_ENDS)
        batch = self._batches.create(requests, version, never_ends=never_ends)
        if fault and fault.kind is FaultKind.RESET_AFTER_ACCEPT:
            return reset(request)
        return await send(request, self._batch(request, batch, request_id), fault)

    async def _list_batches(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        check_headers(request.headers)
        fault = self._draw(Endpoint.BATCH_LIST)
        if gone := await self._spoilt(request, fault):
            return gone
        query = request.query
        limit = query.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise invalid("limit: Input should be a whole number from 1 to 1000")
        youngest = fault.seconds if fault and fault.kind is FaultKind.HIDDEN else 0.0
        found, more = self._batches.page(int(limit), query.get("after_id"), query.get("before_id"), youngest)
        page = {
            "data": [batch.body(_url(request), self._batches.now()) for batch in found],
            "has_more": more,
            "first_id": found[0].id if found else None,
            "last_id": found[-1].id if found else None,
        }
        return self._json(page, request_id)

    async def _show_batch(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        batch, fault = self._asked_for(request, Endpoint.BATCH_RETRIEVE)
        if gone := await self._spoilt(request, fault):
            return gone
        if fault and fault.kind is FaultKind.HIDDEN and self._batches.age(batch) < fault.seconds:
            raise ApiError(404, "not_found_error", f"Message batch {batch.id} not found")
        return self._batch(request, batch, request_id)

    async def _cancel_batch(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        batch, fault = self._asked_for(request, Endpoint.BATCH_CANCEL)
        if gone := await self._spoilt(request, fault):
            return gone
        self._batches.cancel(batch)
        return self._batch(request, batch, request_id)

    async def _delete_batch(self, request: web.BaseRequest, request_id: str) -> web.Response:
        batch, _ = self._asked_for(request, None)
        self._batches.delete(batch)
        return self._json({"id": batch.id, "type": "message_batch_deleted"}, request_id)

    async def _batch_results(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        batch, fault = self._asked_for(request, Endpoint.BATCH_RESULTS)
        if gone := await self._spoilt(request, fault):
            return gone
        path = self._batches.results(batch)
        headers = {"content-type": "application/x-jsonl", "request-id": request_id}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        left = path.stat().st_size // 2 if fault and fault.kind is FaultKind.CUT else None
        for line in lines_of(path):
            if left is not None and len(line) >= left:
                await response.write(line[: left // 2])
                return reset(request)
            left = left if left is None else left - len(line)
            await response.write(line)
        await response.write_eof()
        return response

    def _asked_for(self, request: web.BaseRequest, endpoint: Endpoint | None) -> tuple[Batch, Fault | None]:
        check_headers(request.headers)
        name = request.path.removeprefix(f"{_BATCHES}/").partition("/")[0]
        return self._batches.get(name), self._draw(endpoint, (name,)) if endpoint else None

    def _batch(self, request: web.BaseRequest, batch: Batch, request_id: str) -> web.Response:
        return self._json(batch.body(_url(request), self._batches.now()), request_id)

    async def _spoilt(self, request: web.BaseRequest, fault: Fault | None) -> web.Response | None:
        """Before anything is done: raises an error, hangs or drops the connection, as the fault wants it."""
        kind = fault.kind if fault else None
        if fault and kind is FaultKind.ERROR:
            raise fault.error()
        if kind is FaultKind.HANG:
            await self._loop.create_future()  # until the client or this server gives up
        return reset(request) if kind is FaultKind.RESET else None

    async def _advance(self, request: web.BaseRequest, request_id: str) -> web.Response:
        seconds = (await read_json(request) or {}).get("advance")
        if not isinstance(seconds, int | float) or seconds < 0:
            raise invalid('POST /_clock takes {"advance": SECONDS}')
        self._batches.advance(seconds)
        return self._json({"now": self._batches.now()}, request_id)

    # -- the rest of the API, and what tests ask -----------------------------------------------------------

    async def _count_tokens(self, request: web.BaseRequest, request_id: str) -> web.Response:
        ask = parse_ask(await read_json(request), check_headers(request.headers), counting=True)
        return self._json({"input_tokens": ask.input_tokens}, request_id)

    async def _list_models(self, request: web.BaseRequest, request_id: str) -> web.Response:
        check_headers(request.headers)
        data = [model.info() for model in MODELS.values()]
        page = {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return self._json(page, request_id)

    async def _show_model(self, request: web.BaseRequest, request_id: str) -> web.Response:
        check_headers(request.headers)
        return self._json(known_model(request.path.removeprefix("/v1/models/")).info(), request_id)

    async def _health(self, _request: web.BaseRequest, request_id: str) -> web.Response:
        return self._json({"status": "ready"}, request_id)

    async def _show_billing(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        if not request.query.get("entries"):
            return self._totals(request_id)
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        for piece in self._ledger.entries():
            await response.write(piece)
        await response.write_eof()
        return response

    async def _reset_billing(self, _request: web.BaseRequest, request_id: str) -> web.Response:
        self._ledger.reset()
        self._limits.rejected = 0
        return self._totals(request_id)

    def _totals(self, request_id: str) -> web.Response:
        totals = {**self._ledger.totals(), "rejected": self._limits.rejected}
        return self._json(totals, request_id)

    async def _show_fingerprints(self, _request: web.BaseRequest, request_id: str) -> web.Response:
        return self._json(await asyncio.to_thread(self._ledger.fingerprints()), request_id)

    async def _show_faults(self, _request: web.BaseRequest, request_id: str) -> web.Response:
        return self._json([rule.shown() for rule in self._dice.rules], request_id)

    async def _put_faults(self, request: web.BaseRequest, request_id: str) -> web.Response:
        rules = await read_json(request)
        if not isinstance(rules, list):
            raise invalid("PUT /_faults takes a list of rules")
        self._dice.rules = [Fault.parse(rule, self._loop.time()) for rule in rules]
        return await self._show_faults(request, request_id)

    async def _delete_faults(self, request: web.BaseRequest, request_id: str) -> web.Response:
        self._dice.rules = []
        return await self._show_faults(request, request_id)


def _url(request: web.BaseRequest) -> str:
    """Of this server, as the client has it."""
    return f"http://{request.host}"


def _most_bytes(path: str) -> int:
    return MAX_BATCH_BYTES if path == _BATCHES else MAX_BODY_BYTES


async def read_json(request: web.BaseRequest) -> Json:
    try:
        body = await request.read()
        return await asyncio.to_thread(json.loads, body) if len(body) > 1_000_000 else json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error


async def send(request: web.BaseRequest, response: web.Response, fault: Fault | None) -> web.StreamResponse:
    """The whole reply, as slowly as the fault wants it."""
    if fault and fault.kind is FaultKind.SLOW_HEADERS:
        await asyncio.sleep(fault.seconds)
    if fault and fault.kind is FaultKind.SLOW_BODY:
        body = response.body
        assert isinstance(body, bytes)
        slow = web.StreamResponse(status=response.status, headers=response.headers)
        await slow.prepare(request)
        await write_slowly(slow, body, fault.seconds)
        await slow.write_eof()
        return slow
    await response.prepare(request)
    await response.write_eof()
    return response


def reset(request: web.BaseRequest) -> web.Response:
    """Drop the connection with a TCP reset; the response that is returned goes nowhere."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


@asynccontextmanager
async def serving(options: Options, model: ExtractiveModel) -> AsyncIterator[str]:
    """Serve, and yield the base URL for this machine; on leaving, requests in flight get up to a second."""
    answering = ModelServer(options, model)
    loop = asyncio.get_running_loop()

    # Any: these five types are private to aiohttp; only the size limit is ours.
    def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        most = _most_bytes(message.path)
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=most)

    # Cancellation on disconnect tells at once that a reply is lost, and ends a hanging request.
    server = web.Server(
        answering.handle,
        request_factory=make_request,
        handler_cancellation=True,
        access_log=None,
        lingering_time=5,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.5)  # aiohttp waits twice for this long
    try:
        await runner.setup()
        await web.TCPSite(runner, options.host, options.port, backlog=1024).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        answering.close()


async def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(options, ExtractiveModel()) as url:
        # The models stay for good, so no collection need walk through them; requests leave hardly any cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)
        sys.stdout.write(f"model server ready on {url}\n")
        sys.stdout.flush()
        await stop.wait()


_EPILOG = """\
endpoints beside the API:
  GET    /health                  200 when ready
  GET    /_billing                totals: accepted, served, lost, in flight, tokens; rejected by the limits
  GET    /_billing?entries=1      every billed request as NDJSON
  GET    /_billing/fingerprints   requests that were paid for more than once
  DELETE /_billing                forget them
  GET, PUT, DELETE /_faults       show, replace or clear the fault rules
  POST   /_clock                  {"advance": 86400}: let so many seconds pass for Message Batches

a fault rule, the first that matches a request counts; every field is optional:
  {"match": {"contains": "Q3", "model": "claude-haiku-5-5", "nth": 3}, "kind": "error", "status": 429,
   "retry_after": 2, "error_type": "rate_limit_error", "error_code": "ramp_limit_exceeded", "message": "...",
   "probability": 0.05, "times": 3, "after": 10, "for": 20}
  endpoint    in "match": what is spoilt: messages (the default), batches.create, batches.retrieve,
              batches.list, batches.cancel, batches.results, batches.item (one request of a batch)
  nth         of the requests that match otherwise, from 1
  after, for  seconds since the rule was set: an outage that begins and ends by itself
  kind        not billed: error, reset, hang
              billed: reset_after_accept, slow_headers, slow_body (both take "seconds"), invalid_json,
              truncated, context_exceeded, refusal, thinking_first, unknown
              of batches: never_ends (create), hidden (list, retrieve: those younger than "seconds"),
              cut (results), expired, canceled, missing, duplicated (item)
              errors with a name: credit_too_low, usage_limit, ramp_limit, enforced_spend_limit,
              contract_spend_limit, too_large, bad_gateway
  body        HTML that is sent in place of the error object

limits are kept from the first request on: of 600 a minute ten may come at once, then ten every second.
"""


def parse_arguments(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="docsum model-server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    count = whole_number
    parser.add_argument("--host", default=HOST, help="address; 0.0.0.0 in a container; default 127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--home", type=Path, required=True, help="folder of the billing ledger")
    parser.add_argument(
        "--latency", "--latency-profile", dest="latency", type=latency, default="0", metavar="PROFILE",
        help="seconds until an answer: 0.1, 0.5..2.0 (even) or lognormal:MEDIAN,P99; default 0",
    )  # fmt: skip
    parser.add_argument(
        "--batch-time", type=latency, default="5", metavar="PROFILE",
        help="seconds until a Message Batch has ended, as --latency; default 5",
    )  # fmt: skip
    parser.add_argument("--requests-per-minute", type=count, metavar="N", help="default: no limit")
    parser.add_argument("--input-tokens-per-minute", type=count, metavar="N", help="default: no limit")
    parser.add_argument("--output-tokens-per-minute", type=count, metavar="N", help="default: no limit")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and fault probabilities; default 0")
    parser.add_argument("--faults", type=fault_file, default=[], metavar="FILE", help="a JSON list of rules")
    parser.add_argument(
        "--fault",
        type=fault_rule,
        action="append",
        default=[],
        metavar="RULE",
        help="a rule; may be repeated",
    )
    parser.add_argument("--fast", action="store_true", help="first sentences instead of LexRank, for benches")
    given = vars(parser.parse_args(argv))
    given["faults"] = [*given["faults"], *given.pop("fault")]
    return Options(**given)


def latency(text: str) -> Latency:
    try:
        return Latency.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no latency: {error}") from error


def fault_rule(text: str) -> Json:
    try:
        rule = json.loads(text)
        Fault.parse(rule)
    except (ValueError, ApiError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no fault rule: {error}") from error
    return rule


def fault_file(name: str) -> list[Json]:
    try:
        rules = json.loads(Path(name).read_text())
        for rule in rules:
            Fault.parse(rule)
    except (OSError, ValueError, TypeError, ApiError) as error:
        raise argparse.ArgumentTypeError(f"{name} holds no list of fault rules: {error}") from error
    return list(rules)


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM; leaves the process with 0, 1 (cannot start) or 2 (usage)."""
    options = parse_arguments(argv)
    try:
        asyncio.run(run(options))
    except OSError as error:
        sys.exit(f"docsum model-server: {error}")
    sys.exit(0)


if __name__ == "__main__":
    main()
