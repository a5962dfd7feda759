"""The peers, each as its own documentation would have it used. A process of its own for each turn.

This runs in an environment that knows the peers and the SDK and nothing of docsum. Where a peer calls the SDK
it is on aiohttp and without retries, the faster of the bare loops, so that what differs is the peer.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from anthropic import AsyncAnthropic, DefaultAioHttpClient

from tests.bench.measured import Body, Meter, take_turn


def _client(url: str) -> AsyncAnthropic:
    return AsyncAnthropic(api_key="local", base_url=url, max_retries=0, http_client=DefaultAioHttpClient())


async def by_litellm(url: str, bodies: Sequence[Body], in_flight: int, meter: Meter) -> None:
    """`acompletion` and a semaphore; it brings an HTTP client of its own."""
    # Otherwise its import asks the network for prices and header names.
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True"}
    import litellm

    places = asyncio.Semaphore(in_flight)

    async def summarise(body: Body) -> None:
        async with places:
            meter.begin()
            sent_at = time.perf_counter()
            answer = await litellm.acompletion(
                model=f"anthropic/{body['model']}",
                api_base=url,
                api_key="local",
                max_retries=0,
                max_tokens=body["max_tokens"],
                messages=[{"role": "system", "content": body["system"]}, *body["messages"]],
                output_config=body["output_config"],
            )
            assert answer.choices[0].message.content
            meter.end(time.perf_counter() - sent_at)

    await asyncio.gather(*map(summarise, bodies))


async def by_taskiq(url: str, bodies: Sequence[Body], in_flight: int, meter: Meter) -> None:
    """A task for each document, its result awaited.

    The broker runs a task where it is sent, else each waits up to 0.2 s more for the next look at its result.
    """
    from taskiq import InMemoryBroker

    places, calls = asyncio.Semaphore(in_flight), deque[float]()
    broker = InMemoryBroker(await_inplace=True, max_stored_results=2 * in_flight)
    async with _client(url) as client:

        @broker.task  # type: ignore[untyped-decorator]  # not installed where mypy runs
        async def ask(body: Body) -> str:
            sent_at = time.perf_counter()
            message = await client.messages.create(**body)
            calls.append(time.perf_counter() - sent_at)
            return _text(message)

        async def summarise(body: Body) -> None:
            async with places:
                meter.begin()
                result = await (await ask.kiq(body)).wait_result()
                result.raise_for_error()
                assert result.return_value
                meter.end(calls.popleft())

        await broker.startup()
        await asyncio.gather(*map(summarise, bodies))
        await broker.shutdown()


async def by_async_batch_llm(url: str, bodies: Sequence[Body], in_flight: int, meter: Meter) -> None:
    await _by_async_batch_llm(url, bodies, in_flight, meter, None)


async def by_async_batch_llm_with_checkpoints(
    url: str, bodies: Sequence[Body], in_flight: int, meter: Meter
) -> None:
    """What it needs to go on after a death: the outputs in a file."""
    from async_batch_llm import ArtifactIdentity, JsonlArtifactStore

    identity = ArtifactIdentity(provider="anthropic", model=bodies[0]["model"], prompt_version="1")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = JsonlArtifactStore(Path(folder, "checkpoints.jsonl"), identity=identity)
        await _by_async_batch_llm(url, bodies, in_flight, meter, store)
        await store.close()


async def _by_async_batch_llm(
    url: str,
    bodies: Sequence[Body],
    in_flight: int,
    meter: Meter,
    store: Any,  # Any: its library is imported in the turn
) -> None:
    """A document is finished when its result is handed out: kept, if there is a store."""
    from async_batch_llm import CallableStrategy, CallOutcome, process_stream

    calls = deque[float]()
    common = {name: value for name, value in bodies[0].items() if name != "messages"}
    async with _client(url) as client:

        async def ask(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:  # as above
            meter.begin()
            sent_at = time.perf_counter()
            message = await client.messages.create(**common, messages=[{"role": "user", "content": prompt}])
            calls.append(time.perf_counter() - sent_at)
            usage = {"input_tokens": message.usage.input_tokens, "output_tokens": message.usage.output_tokens}
            return CallOutcome(output=_text(message), token_usage=usage)

        prompts = [body["messages"][0]["content"] for body in bodies]
        results = process_stream(CallableStrategy(ask), prompts, concurrency=in_flight, artifact_store=store)
        async with aclosing(results):
            async for result in results:
                assert result.success and result.output, result.error
                meter.end(calls.popleft())


def _text(message: Any) -> str:  # Any: the answer to a request that was not written for mypy
    return str(message.content[0].text)


if __name__ == "__main__":
    take_turn(
        {
            "litellm": by_litellm,
            "taskiq": by_taskiq,
            "abl": by_async_batch_llm,
            "abl-file": by_async_batch_llm_with_checkpoints,
        }
    )
