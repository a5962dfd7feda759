"""A model server to talk to: by the official SDK and, for what the SDK never sends, by plain HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from anthropic import AsyncAnthropic, DefaultAioHttpClient
from anthropic.types import Message, TextBlock

from docsum.local.extractive import ExtractiveModel
from docsum.local.model_server import Options, serving

Json = Any  # decoded JSON of any shape
HEADERS = {"x-api-key": "local", "anthropic-version": "2026-10-21"}
TEXT = (
    "# Harbour report\n\nThe harbour was dredged in May. Ships of twelve metres draught can now enter it. "
    "The work cost four million euros, one million less than planned. The fishing fleet stays at the old "
    "pier. A new crane will be built next year. The crane lifts containers of sixty tonnes."
)
STRING, STRINGS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
FIELDS = {
    "title": STRING,
    "summary": STRING,
    "key_points": STRINGS,
    "language": STRING,
    "document_type": STRING,
    "warnings": STRINGS,
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": [*FIELDS], "additionalProperties": False}


def ask(text: str = TEXT, *, boundary: str = "b7", **changes: Json) -> Json:
    """A request as the summariser renders it."""
    body = {
        "model": "local-extractive-1",
        "max_tokens": 1000,
        "system": "Write a summary of about 40 words. Answer in the language of the document.",
        "messages": [
            {"role": "user", "content": f'<document id="{boundary}">\n{text}\n</document id="{boundary}">'}
        ],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    }
    return {name: value for name, value in (body | changes).items() if value is not None}


def said(message: Message) -> str:
    """The text of an answer, which is one text block."""
    (block,) = message.content
    assert isinstance(block, TextBlock)
    return block.text


class Caller:
    """A server's URL with both ways to call it."""

    def __init__(self, url: str, http: aiohttp.ClientSession, sdk: AsyncAnthropic) -> None:
        self.url = url
        self.http = http
        self.sdk = sdk

    async def create(self, text: str = TEXT, **changes: Json) -> Message:
        message: Message = await self.sdk.messages.create(**ask(text, **changes))
        return message

    async def post(
        self, body: Json, headers: Mapping[str, str] = HEADERS, path: str = "/v1/messages"
    ) -> tuple[int, Json]:
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Json:
        async with self.http.get(self.url + path) as response:
            return await response.json()

    async def entries(self) -> list[Json]:
        async with self.http.get(f"{self.url}/_billing?entries=1") as response:
            return [json.loads(line) for line in (await response.text()).splitlines()]

    async def spoil(self, **rule: Json) -> None:
        async with self.http.put(f"{self.url}/_faults", json=[rule]) as response:
            assert response.status == 200, await response.text()

    async def some_billed(self) -> bool:
        return bool((await self.get("/_billing"))["accepted"])

    def billed(self, **wanted: int) -> Callable[[], Awaitable[bool]]:
        """A check: do the totals have these numbers?"""

        async def check() -> bool:
            return bool(wanted.items() <= (await self.get("/_billing")).items())

        return check


Start = Callable[..., Awaitable[Caller]]


@asynccontextmanager
async def starting(home: Path, model: ExtractiveModel, **always: Json) -> AsyncIterator[Start]:
    """Starts servers in this process, with these options and those that are named each time."""
    async with AsyncExitStack() as stack:

        async def started(**options: Json) -> Caller:
            url = await stack.enter_async_context(serving(Options(home, **(always | options)), model))
            return await stack.enter_async_context(calling(url))

        yield started


class calling:  # noqa: N801 - used as a context manager, reads as a verb
    """The clients of one server, closed at the end."""

    def __init__(self, url: str) -> None:
        self._caller = Caller(
            url,
            aiohttp.ClientSession(),
            AsyncAnthropic(base_url=url, api_key="local", max_retries=0, http_client=DefaultAioHttpClient()),
        )

    async def __aenter__(self) -> Caller:
        return self._caller

    async def __aexit__(self, *_: object) -> None:
        await self._caller.http.close()
        await self._caller.sdk.close()
