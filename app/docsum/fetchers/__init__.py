"""The port `Fetcher`: one implementation a kind of address, each with an allow-list of its own."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from docsum.errors import SourceNotAllowed
from docsum.fetchers.spool import TemporaryFolder, remove_stale_folders
from docsum.models import Document, DocumentReference
from docsum.settings import Fetch


def allowance(place: str) -> tuple[str, str]:
    """The allow-list of `Fetch` that a place belongs to, and its entry there."""
    if place.startswith("/"):
        return "file_roots", place
    if web := re.match(r"https?://([^/?#]*)", place, re.IGNORECASE):
        return "hosts", web[1]
    return "buckets", place.rstrip("/")


def check_allowed(settings: Fetch, place: str) -> None:
    """Of a folder, a bucket's prefix or a web address: would workers with these settings read there?

    Asks nobody. Raises SourceNotAllowed, and ConfigurationError for an allow-list that cannot be read.
    """
    match allowance(place)[0]:
        case "file_roots":
            if not any(Path(place).is_relative_to(root) for root in settings.file_roots):
                raise SourceNotAllowed(f"{place!r} is outside the folders of DOCSUM_FETCH__FILE_ROOTS.")
        case "hosts":
            from docsum.fetchers.addresses import AddressGuard

            AddressGuard(settings.hosts, settings.private_hosts).target(place)
        case _:
            from docsum.fetchers.object_store import BucketGuard, ObjectAddress

            BucketGuard(settings.buckets).check(ObjectAddress.named(place))


class DocumentFetcher:
    """Every kind of address. Enter it: it owns threads, connections and the one temporary folder."""

    def __init__(self, settings: Fetch) -> None:
        """Raises ConfigurationError for an allow-list that cannot be read."""
        # Here, since whoever only lists files also imports this package.
        from docsum.fetchers.file import FileFetcher
        from docsum.fetchers.http import HttpFetcher
        from docsum.fetchers.object_store import ObjectStoreFetcher

        self._folder = folder = TemporaryFolder()
        largest, timeout = settings.max_bytes, settings.timeout
        self._files = FileFetcher([Path(root) for root in settings.file_roots], largest, folder)
        self._objects = ObjectStoreFetcher(settings.buckets, largest, timeout, folder)
        self._pages = HttpFetcher(settings.hosts, settings.private_hosts, largest, timeout, folder)

    async def fetch(self, reference: DocumentReference) -> Document:
        """Raises a FetchError. The caller discards the document."""
        match reference.uri.partition(":")[0].lower():
            case "file":
                return await self._files.fetch(reference)
            case "s3" | "gs" | "az":
                return await self._objects.fetch(reference)
            case "http" | "https":
                return await self._pages.fetch(reference)
        raise SourceNotAllowed(f"{reference.uri!r} is not an address that can be read.")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(remove_stale_folders)
        await self._pages.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        try:
            await self._pages.__aexit__(kind, error, trace)
        finally:
            await asyncio.to_thread(self._folder.remove)
