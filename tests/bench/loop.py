"""The bare loops: the SDK as it comes and a semaphore, nothing stored. A process of its own for each turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from anthropic import AsyncAnthropic, DefaultAioHttpClient

from tests.bench.measured import Body, Meter, take_turn


async def by_default(url: str, bodies: Sequence[Body], in_flight: int, meter: Meter) -> None:
    async with AsyncAnthropic(api_key="local", base_url=url) as client:
        await _summarise_all(client, bodies, in_flight, meter)


async def by_aiohttp(url: str, bodies: Sequence[Body], in_flight: int, meter: Meter) -> None:
    async with AsyncAnthropic(api_key="local", base_url=url, http_client=DefaultAioHttpClient()) as client:
        await _summarise_all(client, bodies, in_flight, meter)


async def _summarise_all(
    client: AsyncAnthropic, bodies: Sequence[Body], in_flight: int, meter: Meter
) -> None:
    places = asyncio.Semaphore(in_flight)

    async def summarise(body: Body) -> None:
        async with places:
            meter.begin()
            sent_at = time.perf_counter()
            message = await client.messages.create(**body)
            assert message.content
            meter.end(time.perf_counter() - sent_at)

    await asyncio.gather(*map(summarise, bodies))


if __name__ == "__main__":
    take_turn({"default": by_default, "aiohttp": by_aiohttp})
