"""Sends webhook messages: only to checked addresses, never further than where they were addressed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from docsum import __version__
from docsum.errors import SourceNotAllowed
from docsum.fetchers.addresses import AddressGuard, Target
from docsum.fetchers.http import TIMEOUT, TRANSLATIONS, cause, checked_connector, retry_after
from docsum.models import WebhookAnswer

SETTING = "DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"
_WITHIN = timedelta(seconds=20)  # the whole attempt
_LONGEST_RETRY_AFTER = timedelta(days=1)
_HEADERS = {"User-Agent": f"docsum/{__version__}", "Content-Type": "application/json"}


class WebhookSender:
    """Posts to https at public addresses; to the `private_hosts` at internal ones and by http, too.

    Enter it: it owns connections.
    """

    def __init__(
        self,
        private_hosts: Sequence[str],
        *,
        within: timedelta = _WITHIN,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Raises ConfigurationError."""
        self._guard = AddressGuard(None, private_hosts, SETTING)
        self._within = within
        self._resolver = resolver
        self._session: aiohttp.ClientSession

    def check(self, url: str) -> None:
        """Asks nobody: what a name leads to is checked at every attempt. Raises SourceNotAllowed."""
        self._target(url)

    def _target(self, url: str) -> Target:
        target = self._guard.target(url)
        if target.scheme == "http" and not self._guard.may_be_private(target.host, target.port):
            raise SourceNotAllowed(
                f"{target.shown!r} is refused: webhooks go by https, by http only to hosts that {SETTING} "
                "names."
            )
        return target

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookAnswer:
        """One attempt. Redirects are not followed, and what the receiver says besides is not read."""
        try:
            target = self._target(url)
            async with asyncio.timeout(self._within.total_seconds()) as whole:
                response = await self._session.post(
                    URL(target.url, encoded=True), data=body, headers=headers, allow_redirects=False
                )
                response.close()
        except SourceNotAllowed as error:
            return WebhookAnswer(None, str(error))
        except tuple(TRANSLATIONS) as error:
            if whole.expired():
                return WebhookAnswer(None, f"There was no answer within {self._within.total_seconds():g} s.")
            why = cause(error)
            return WebhookAnswer(None, f"{why[0].upper()}{why[1:]}.")
        wait = retry_after(response.headers, datetime.now(UTC), _LONGEST_RETRY_AFTER)
        return WebhookAnswer(response.status, retry_after=wait)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=await checked_connector(self._guard, self._resolver, keep_alive=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=TIMEOUT,
            trust_env=False,  # a proxy would resolve the name once more, unchecked
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
