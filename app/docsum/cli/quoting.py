"""The price known before: lists a source, reads a sample of it, counts tokens. Buys and publishes nothing."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from docsum.cli import output
from docsum.cli.output import WrongUsage, console, say
from docsum.cli.reading import Asked, Reader, list_source, open_reader, pages_of, prompt_tokens
from docsum.errors import FAILURES, FetchError
from docsum.models import Answer, Lane, Usage
from docsum.quote import (
    Cost,
    Limits,
    Quote,
    Tokens,
    answer_ratio,
    duration,
    most_expensive,
    quote,
    usual_answer,
)
from docsum.sources import Listed
from docsum.summarisers import prompt
from docsum.summarisers.prompt import Request

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from rich.progress import Progress

    from docsum.settings import Settings

ASKS_ABOVE = 1.0  # US dollars
#: Why a document could not be fetched. From here, that is: workers elsewhere may well be able to.
_AWAY = {row.reason for kind, row in FAILURES.items() if issubclass(kind, FetchError)}
_AWAY_AT_MOST = 0.1  # of all documents, for a price to be believed
_COUNTING = 20.0  # seconds for all counts of tokens
_EARLIER = 200  # answers that the length of the next ones is told from
_RECENT_RUNS = 20
_ALIVE = timedelta(seconds=15)  # a heartbeat is written every 5 s


@dataclass(frozen=True, slots=True)
class Priced:
    """A quote, and what it stands on."""

    quote: Quote
    model: str
    unchanged: int  # documents whose summary is there already
    passed_over: int  # entries of the source that cannot be announced
    counted: int  # requests whose tokens the provider has counted
    answers: int  # earlier ones that the length of the next was told from
    time: tuple[float, str] | None  # see `quote.duration`
    seconds: float  # that it took to find out
    instead: tuple[str, Quote] | None = None  # of a free model: what another one would cost


def cost_of(model: str) -> Cost:
    """What a call costs, in US dollars. Raises ModelUnknown."""
    from docsum.summarisers.prices import Prices

    prices = Prices.load()
    prices.of(model)
    return lambda usage, lane: float(prices.cost(model, usage, lane))


def paid_instead(model: str) -> str:
    """The usual paid model where this one is free; empty where it is not."""
    from docsum.settings import Model

    free = not cost_of(model)(Usage(1_000_000, 1_000_000), Lane.LIVE)
    return str(Model.model_fields["name"].default) if free else ""


async def price(asked: Asked, random: Random | None = None) -> Priced:
    """Raises what stands in the way of every document, such as a folder that is not mounted."""
    started, random = time.monotonic(), random or Random()  # noqa: S311  (a sample needs no secrecy)
    with _progress() as bar:
        listing = await list_source(asked, random, bar)
        tally = listing.sample.tally
        async with open_reader(asked, tally, random) as reader:
            readings = await reader.read_all(listing.sample.drawn(), bar)
        tokens, counted = await _tokens(asked, reader)
        earlier = await _earlier_answers(asked)
    quoted = partial(quote, tally.strata, readings, _with_answers(tokens, earlier, reader.empty))
    main, other = quoted(cost_of(asked.recipe.model)), paid_instead(asked.recipe.model)
    return Priced(
        quote=main,
        model=asked.recipe.model,
        unchanged=listing.unchanged,
        passed_over=listing.passed_over,
        counted=counted,
        answers=len(earlier),
        time=duration(main, await _limits(asked, earlier)),
        seconds=time.monotonic() - started,
        instead=(other, quoted(cost_of(other))) if other else None,
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """On a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    silent = not sys.stderr.isatty()
    with Progress(*columns, console=console(stderr=True), disable=silent, transient=True) as bar:
        yield bar


# -- the question --------------------------------------------------------------------------------------------


async def agreed(asked: Asked, *, may_ask: bool) -> bool:
    """Whether the run may spend what it will probably cost. Raises WrongUsage where nobody can be asked."""
    if await _costs_little(asked):
        return True
    say("Finding out what it will cost.")
    found = (await price(asked)).quote
    away = sum(count.value for reason, count in found.unreadable.items() if reason in _AWAY)
    sentence = f"About ${found.live.value:,.2f} live or ${found.batch.value:,.2f} batch."
    if away > _AWAY_AT_MOST * found.documents:
        sentence += f" {away:,.0f} documents cannot be read from here, so what they cost is not in it."
    elif found.live.value <= ASKS_ABOVE:
        return True
    if not may_ask:
        raise WrongUsage(f"{sentence} Add --yes to agree to that.")
    return await output.agreed(f"{sentence} Go?")


async def _costs_little(asked: Asked) -> bool:
    """Whether even the most that documents of these sizes could cost needs no question."""
    empty, cost, total = prompt.render(asked.recipe, "", "0" * 16), cost_of(asked.recipe.model), 0.0
    async with pages_of(asked) as pages:
        async for page in pages:
            total += sum(
                most_expensive(
                    entry,
                    lambda usage: cost(usage, Lane.LIVE),
                    fixed=empty.input_tokens,
                    longest=asked.recipe.single_shot_tokens,
                    answer=empty.max_tokens,
                    pictures=asked.recipe.scanned != "fail",
                )
                for entry in page
                if isinstance(entry, Listed)
            )
            if total > ASKS_ABOVE:
                return False
    return True


# -- tokens --------------------------------------------------------------------------------------------------


async def _tokens(asked: Asked, reader: Reader) -> tuple[Tokens, int]:
    """How estimates are to be read, and how many requests the provider has counted for that, for nothing."""
    estimated = reader.empty.input_tokens
    requests = [prompt.render(asked.recipe, text, secrets.token_hex(8)) for _, text in reader.excerpts]
    counts = await _counted(asked.settings, [reader.empty, *requests])
    if counts:
        fixed, *real = counts
        ratios = [
            (count - fixed) / (request.input_tokens - estimated)
            for count, request in zip(real, requests, strict=True)
            if request.input_tokens > estimated
        ]
        return Tokens.counted(estimated, fixed, ratios), len(counts)
    if reader.ratios:
        return Tokens.answered(estimated, reader.ratios), 0
    return Tokens.uncounted(estimated), 0


async def _counted(settings: Settings, requests: Sequence[Request]) -> list[int]:
    """Exact counts, in the same order; empty where no provider can be asked from here."""
    if not (settings.model.api_key.get_secret_value() or settings.model.base_url):
        return []
    import anthropic

    from docsum.summarisers.anthropic import make_client
    from docsum.summarisers.provider_errors import translate

    client = make_client(settings.model, len(requests))
    try:
        async with asyncio.timeout(_COUNTING):
            return await asyncio.gather(*(_count(client, request) for request in requests))
    except (anthropic.AnthropicError, TimeoutError, ValueError) as error:
        say(f"Tokens could not be counted. {translate(error)}")
        return []
    finally:
        await client.close()


async def _count(client: AsyncAnthropic, request: Request) -> int:
    body: dict[str, Any] = request.params()  # Any: the SDK's types of each part
    del body["max_tokens"]
    return (await client.messages.count_tokens(**body)).input_tokens


async def _earlier_answers(asked: Asked) -> list[Answer]:
    """Recent answers of the same model to a request of the same kind."""
    if asked.store is None:
        return []
    fingerprints: set[str] = set()
    for run in await asked.store.runs(_RECENT_RUNS):
        if (run.recipe.model, run.recipe.words) != (asked.recipe.model, asked.recipe.words):
            continue
        async for _, row in asked.store.run_rows(run.id):
            made = row.summary if row is not None else None
            if made is not None and made.model == asked.recipe.model and made.chunks == 1:
                fingerprints.add(made.fingerprint)
            if len(fingerprints) >= _EARLIER:
                break
    found = await asyncio.gather(*map(asked.store.answers, fingerprints))
    return [answer for answers in found for answer in answers if answer.usable]


def _with_answers(tokens: Tokens, earlier: Sequence[Answer], empty: Request) -> Tokens:
    """The length of the next answers as that of earlier ones, where there are any."""
    if not earlier:
        return tokens
    usual = [
        usual_answer(empty.expected_tokens, max(0, prompt_tokens(answer) - tokens.fixed))
        for answer in earlier
    ]
    real = [float(answer.usage.output_tokens) for answer in earlier]
    return replace(tokens, answer=answer_ratio(list(zip(real, usual, strict=True))))


async def _limits(asked: Asked, earlier: Sequence[Answer]) -> Limits:
    """What is set, and what was measured."""
    limits, workers = asked.settings.limits, 0
    if asked.store is not None:
        now = datetime.now(UTC)
        beats = await asked.store.workers()
        workers = sum(not beat.stopped and now - beat.beat_at < _ALIVE for beat in beats)
    latency = sum(answer.latency_ms for answer in earlier) / 1000 / len(earlier) if earlier else 0.0
    return Limits(
        limits.requests_per_minute,
        limits.input_tokens_per_minute,
        limits.output_tokens_per_minute,
        workers * asked.settings.worker.max_in_flight,
        latency,
    )
