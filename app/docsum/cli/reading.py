"""A source as workers would list and read it, up to the point where money would be spent."""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from docsum.errors import Disposition, DocsumError, Scanned, row_of
from docsum.models import Answer, DocumentReference, Known, Recipe
from docsum.pipeline import MOST_SCANNED_BYTES, MOST_SCANNED_PAGES
from docsum.quote import Reading, StratifiedSample, Stratum, Tally, weight_of
from docsum.reading_ahead import batches
from docsum.sources import Entry, Listed, Source, Unreadable, limited
from docsum.summarisers import chunking, prompt
from docsum.summarisers.prompt import Request

if TYPE_CHECKING:
    from rich.progress import Progress

    from docsum.ports import Extractor, Fetcher, SummaryStore
    from docsum.settings import Fetch, Settings

_PAGE = 500  # entries of a listing at once
_AT_ONCE = 8  # documents being read
_EXCERPTS = 19  # texts whose beginning is kept, to have their tokens counted
_EXCERPT = 60_000  # characters


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be priced."""

    source: Source
    settings: Settings
    fetch: Fetch  # what the workers may read, see `readable`
    recipe: Recipe
    limit: int | None = None
    force: bool = False
    store: SummaryStore | None = None  # of a deployment that runs


def readable(settings: Settings, source: Source) -> Fetch:
    """What the local workers may read, or will be allowed to when a run of the source begins."""
    from docsum.fetchers import allowance
    from docsum.local.compose import worker_environment

    told, (place, entry) = worker_environment(settings, "", 0), allowance(source.place)
    allowed = {
        kind: tuple(filter(None, told.get(f"DOCSUM_FETCH__{kind.upper()}", "").split(",")))
        for kind in ("file_roots", "buckets", "hosts")
    }
    return settings.fetch.model_copy(update={**allowed, place: (*allowed[place], entry)})


@dataclass(slots=True)
class Listing:
    """What a source holds."""

    sample: StratifiedSample
    unchanged: int = 0
    passed_over: int = 0


async def list_source(asked: Asked, random: Random, bar: Progress) -> Listing:
    """One pass over the source; what has not changed since its summary was made is only counted."""
    listing, task = Listing(StratifiedSample(random)), bar.add_task("Listing", total=None)
    async with pages_of(asked) as pages:
        async for page in pages:
            listed = [entry for entry in page if isinstance(entry, Listed)]
            listing.passed_over += sum(isinstance(entry, Unreadable) for entry in page)
            for entry, known in zip(listed, await _known(listed, asked), strict=True):
                if known is not None and _is_unchanged(entry, known, asked.recipe.id):
                    listing.unchanged += 1
                else:
                    listing.sample.add(entry)
            bar.advance(task, len(listed))
    bar.remove_task(task)
    return listing


def pages_of(asked: Asked) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Entry]]]:
    return aclosing(batches(limited(asked.source.entries(), asked.limit), _PAGE))


async def _known(listed: Sequence[Listed], asked: Asked) -> Sequence[Known | None]:
    if asked.store is None or asked.force:
        return [None] * len(listed)
    return await asyncio.gather(*(asked.store.known(entry.document_id) for entry in listed))


def _is_unchanged(listed: Listed, known: Known, recipe: str) -> bool:
    same = bool(listed.source_version) and listed.source_version == known.source_version
    return same and known.recipe == recipe and not known.deleted


@dataclass(slots=True)
class Reader:
    """Reads documents as a worker would, up to the point where money would be spent."""

    asked: Asked
    fetcher: Fetcher
    extractor: Extractor
    tally: Tally
    random: Random
    empty: Request  # without a document
    excerpts: list[tuple[float, str]] = field(default_factory=list)  # a heap: rank, beginning of a text
    ratios: list[float] = field(default_factory=list)  # of earlier requests: real tokens for an estimated one
    _stands_for: dict[Stratum, float] = field(default_factory=dict)  # so many documents each one that is read

    async def read_all(self, chosen: Sequence[Listed], bar: Progress) -> list[Reading]:
        """Several at a time. Raises what would stop every document."""
        task, waiting, readings = bar.add_task("Reading", total=len(chosen)), iter(chosen), list[Reading]()
        read = Counter(map(self.tally.place, chosen))
        self._stands_for = {place: self.tally.strata[place].documents / n for place, n in read.items()}

        async def work() -> None:
            for listed in waiting:
                readings.append(await self._read(listed))
                bar.advance(task)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(work())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return readings

    async def _read(self, listed: Listed) -> Reading:
        stratum, weight = self.tally.place(listed), weight_of(listed)
        try:
            text, pages = await self._text_of(listed)
        except DocsumError as error:
            row = row_of(error)
            if row.disposition not in (Disposition.DEAD_LETTER, Disposition.RETRY):
                raise
            return Reading(stratum, weight, reason=row.reason)
        recipe = self.asked.recipe
        calls = tuple(await asyncio.to_thread(chunking.expected_calls, text, recipe))
        if pages:
            return Reading(stratum, weight, listed.document_id, calls, pages)
        request = prompt.render(recipe, text, secrets.token_hex(8))
        self._keep(text, self._stands_for[stratum] * request.input_tokens)
        if self.asked.force:
            return Reading(stratum, weight, listed.document_id, calls)
        name = prompt.fingerprint(request, self.asked.settings.model.reuse_scope)
        bought = len(calls) == 1 and await self._bought(request, name)
        return Reading(stratum, weight, name, () if bought else calls)

    async def _text_of(self, listed: Listed) -> tuple[str, int]:
        """The text, or how many pages go to the model as pictures. Raises as a worker would."""
        document = await self.fetcher.fetch(_reference(listed))
        try:
            return (await self.extractor.extract(document)).text, 0
        except Scanned as scanned:
            pages = scanned.pages or MOST_SCANNED_PAGES
            fits = document.size <= MOST_SCANNED_BYTES and pages <= MOST_SCANNED_PAGES
            if self.asked.recipe.scanned != "send-pdf" or not fits:
                raise
            return "", pages
        finally:
            document.discard()

    async def _bought(self, request: Request, fingerprint: str) -> bool:
        """Whether the answer is there already: a run uses it again."""
        if self.asked.store is None:
            return False
        usable = [answer for answer in await self.asked.store.answers(fingerprint) if answer.usable]
        self.ratios += [prompt_tokens(answer) / request.input_tokens for answer in usable[:1]]
        return bool(usable)

    def _keep(self, text: str, size: float) -> None:
        """A reservoir in proportion to size (Efraimidis and Spirakis): the long texts make the price."""
        heapq.heappush(self.excerpts, (self.random.random() ** (1 / size), text[:_EXCERPT]))
        if len(self.excerpts) > _EXCERPTS:
            heapq.heappop(self.excerpts)


@asynccontextmanager
async def open_reader(asked: Asked, tally: Tally, random: Random) -> AsyncIterator[Reader]:
    """With the fetchers, limits and child processes of a worker."""
    from docsum.extractors import DocumentExtractor
    from docsum.extractors.sandbox import Sandbox
    from docsum.fetchers import DocumentFetcher

    extract, empty = asked.settings.extract, prompt.render(asked.recipe, "", "0" * 16)
    async with (
        DocumentExtractor(Sandbox(extract.processes, extract.timeout, extract.memory)) as extractor,
        DocumentFetcher(asked.fetch) as fetcher,
    ):
        yield Reader(asked, fetcher, extractor, tally, random, empty)


def _reference(listed: Listed) -> DocumentReference:
    """As a worker would get it."""
    return DocumentReference(
        event_id="",
        document_id=listed.document_id,
        uri=listed.uri,
        occurred_at=listed.occurred_at,
        version=0,
        source_version=listed.source_version,
        media_type=listed.media_type,
        size_bytes=listed.size_bytes,
    )


def prompt_tokens(answer: Answer) -> int:
    """Of the whole prompt, cached or not."""
    usage = answer.usage
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
