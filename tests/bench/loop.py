"""The bare loop: the SDK and a semaphore, nothing stored. A process of its own for each round."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anthropic import AsyncAnthropic, DefaultAioHttpClient

from docsum.models import Recipe
from docsum.summarisers.prompt import render
from tests.bench.measured import Meter


async def summarise_all(
    client: AsyncAnthropic, texts: Sequence[str], *, recipe: Recipe, in_flight: int, meter: Meter
) -> None:
    places = asyncio.Semaphore(in_flight)

    async def summarise(text: str) -> None:
        async with places:
            meter.begin()
            # Any: the SDK's overloads do not take a mapping.
            request: dict[str, Any] = render(recipe, text, secrets.token_hex(8)).params()
            sent_at = time.perf_counter()
            message = await client.messages.create(**request)
            assert message.content
            meter.end(time.perf_counter() - sent_at)

    await asyncio.gather(*map(summarise, texts))


async def run(transport: str, url: str, texts: Sequence[str], **how: Any) -> None:  # Any: of the above
    """Both clients are as the SDK makes them: a loop that nobody has tuned."""
    http_client = DefaultAioHttpClient() if transport == "aiohttp" else None
    async with AsyncAnthropic(api_key="local", base_url=url, http_client=http_client) as client:
        await summarise_all(client, texts, **how)


def main() -> None:
    transport, url, model, in_flight, folder, out = sys.argv[1:]
    texts = [path.read_text() for path in sorted(Path(folder).iterdir())]  # before the clock starts
    meter = Meter()
    asyncio.run(run(transport, url, texts, recipe=Recipe(model), in_flight=int(in_flight), meter=meter))
    meter.save(Path(out))


if __name__ == "__main__":
    main()
