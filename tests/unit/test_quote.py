"""The quote: strata, the sample, what it says of the whole, against populations whose cost is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from random import Random

import pytest

from docsum.models import Lane, Recipe, Usage
from docsum.quote import (
    READ,
    READ_ALL,
    Count,
    Estimate,
    Limits,
    Measured,
    Quote,
    Reading,
    Reservoir,
    StratifiedSample,
    Stratum,
    Tally,
    Tokens,
    allocated,
    answer_ratio,
    duration,
    kind_of,
    most_expensive,
    projected,
    quote,
    weight_of,
)
from docsum.sources import Listed
from docsum.summarisers import chunking, prompt
from docsum.summarisers.prices import Prices
from tests.support.fakes import START

PRICES = Prices.load()
HAIKU = "claude-haiku-5-5"


def listed(name: str, size: int | None = 1_000, media_type: str | None = None) -> Listed:
    return Listed(name, f"file:///data/{name}", START, size_bytes=size, media_type=media_type)


def cost(usage: Usage, lane: Lane = Lane.LIVE) -> float:
    return float(PRICES.cost(HAIKU, usage, lane))


# -- strata and samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "media_type", "kind"),
    [
        ("a.PDF", None, "pdf"),
        ("a.tar.gz", None, "gz"),
        ("a", "application/pdf; charset=x", "pdf"),
        ("a.b c", "text/plain", "plain"),
        ("report.final-version", None, ""),
        ("a", None, ""),
    ],
)
def test_the_kind_is_the_ending_or_the_media_type(name: str, media_type: str | None, kind: str) -> None:
    assert kind_of(listed(name, media_type=media_type)) == kind


def test_bands_are_powers_of_four_and_unknown_sizes_are_one() -> None:
    tally = Tally()
    bands = [tally.add(listed("a.txt", size)).band for size in (0, 1, 3, 4, 15, 16, 1_000, 4_000, None)]
    assert bands == [0, 1, 1, 2, 2, 3, 5, 6, -1]
    assert tally.documents == 9


def test_endless_kinds_share_a_stratum() -> None:
    tally = Tally()
    for number in range(1_000):
        tally.add(listed(f"a.{number}"))
    assert len(tally.strata) <= 13
    assert tally.documents == 1_000


def test_a_reservoir_keeps_every_item_equally_often() -> None:
    kept: Counter[int] = Counter()
    for seed in range(400):
        reservoir = Reservoir[int](5, Random(seed))
        for item in range(20):
            reservoir.add(item)
        kept.update(reservoir.kept)
    assert sum(kept.values()) == 2_000
    assert all(60 < kept[item] < 145 for item in range(20))  # 100 each, a deviation is 9


def test_of_few_documents_all_are_read() -> None:
    sample = StratifiedSample(Random(1))
    for number in range(READ_ALL):
        sample.add(listed(f"{number}.txt", 10**number % 10**9))
    assert len({entry.document_id for entry in sample.drawn()}) == READ_ALL


def test_the_sample_of_a_long_listing_is_small_and_leaves_no_stratum_out() -> None:
    chance, sample = Random(2), StratifiedSample(Random(3))
    for number in range(20_000):
        kind = chance.choice(("txt", "pdf", "docx"))
        sample.add(listed(f"{number}.{kind}", int(chance.lognormvariate(9, 2))))
    drawn = sample.drawn()
    read = Counter(map(sample.tally.place, drawn))
    assert READ <= len(drawn) <= READ + 3 * len(sample.tally.strata)
    for stratum, count in sample.tally.strata.items():
        assert min(2, count.documents) <= read[stratum] <= count.documents
    heaviest = max(sample.tally.strata, key=lambda stratum: sample.tally.strata[stratum].weight)
    assert read[heaviest] == max(read.values())


def test_a_few_huge_documents_do_not_leave_the_sample_too_small() -> None:
    strata = {Stratum("pdf", 15): Count(3, 10**10), Stratum("txt", 5): Count(5_000, 10**6)}
    chosen = allocated(strata)
    assert chosen[Stratum("pdf", 15)] == 3
    assert sum(chosen.values()) >= READ


# -- what the sample says of the whole ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A document of a population, with what it really needs."""

    listed: Listed
    calls: tuple[Usage, ...]
    reason: str
    text: str


@cache
def population(seed: int, size: int, copies: int = 1) -> Sequence[Member]:
    """Heavy tails, five kinds, sizes that tell little of a PDF, and a few unreadable ones."""
    chance, members = Random(seed), list[Member]()
    for number in range(size // copies):
        kind = chance.choices(("txt", "md", "html", "pdf", "docx"), (3, 2, 2, 2, 1))[0]
        content = chance.lognormvariate(8.3, 1.2)
        bytes_ = {
            "html": 1.4 * content + 2_000,
            "pdf": 0.5 * content + chance.lognormvariate(8, 2),
            "docx": 0.3 * content + 30_000,
        }.get(kind, content)
        reason = "scanned" if chance.random() < (0.15 if kind == "pdf" else 0.03) else ""
        tokens = content / 3.2
        usage = Usage(round(270 + tokens), round(min(400, 80 + tokens / 2) * chance.uniform(0.8, 1.2)))
        for copy in range(copies):
            entry = listed(f"{number}-{copy}.{kind}", round(bytes_))
            members.append(Member(entry, () if reason else (usage,), reason, "" if reason else str(number)))
    chance.shuffle(members)
    return members


def really(members: Sequence[Member]) -> float:
    """What all of them cost: a text is paid for once."""
    return sum(cost(usage) for calls in {m.text: m.calls for m in members}.values() for usage in calls)


@dataclass(frozen=True, slots=True)
class Counted(Tokens):
    """Tokens that are as they were estimated."""

    def of(self, reading: Reading) -> list[Usage]:
        return list(reading.calls)


def reading(tally: Tally, member: Member) -> Reading:
    entry = member.listed
    return Reading(tally.place(entry), weight_of(entry), member.text, member.calls, reason=member.reason)


def quoted(members: Sequence[Member], seed: int) -> Quote:
    sample = StratifiedSample(Random(seed))
    for member in members:
        sample.add(member.listed)
    known = {member.listed.document_id: member for member in members}
    readings = [reading(sample.tally, known[entry.document_id]) for entry in sample.drawn()]
    return quote(sample.tally.strata, readings, Counted(0, 0.0, Measured(1.0, 0.0)), cost)


def holds(estimate: Estimate, real: float) -> bool:
    return estimate.low <= real * (1 + 1e-9) and real <= estimate.high * (1 + 1e-9)


def test_the_interval_holds_the_real_cost_nineteen_times_of_twenty() -> None:
    held = unreadable = 0
    for seed in range(40):
        members = population(seed, 1_000)
        found, real = quoted(members, seed), really(members)
        held += holds(found.live, real)
        unreadable += holds(found.unreadable["scanned"], sum(member.reason != "" for member in members))
        assert found.live.value == pytest.approx(real, rel=0.15)
        assert found.live.high - found.live.low < 0.35 * real
        assert found.batch.value == pytest.approx(found.live.value / 2)
    assert held >= 35
    assert unreadable >= 33


@pytest.mark.parametrize("copies", [2, 5, 50])
def test_copies_of_a_text_are_paid_for_once(copies: int) -> None:
    held = 0
    for seed in range(8):
        members = population(seed, 1_000, copies)
        held += holds(quoted(members, seed).live, really(members))
    assert held >= 7


def test_a_source_that_was_read_as_a_whole_has_no_interval() -> None:
    members = population(1, 300, copies=3)
    found = quoted(members, 1)
    assert found.live.low == pytest.approx(found.live.high)
    assert found.live.value == pytest.approx(really(members))
    assert found.calls.value == pytest.approx(len({member.text for member in members if member.text}))
    readable = sum(not member.reason for member in members)
    assert (found.summarised.low, found.summarised.high) == pytest.approx((readable, readable))


def test_an_empty_source_costs_nothing() -> None:
    found = quote({}, [], Tokens.uncounted(700), cost)
    assert (found.documents, found.live, found.unreadable) == (0, Estimate(0, 0, 0), {})


def test_a_simple_sample_tells_the_whole() -> None:
    held = 0
    for seed in range(40):
        members, tally, reservoir = population(seed, 1_000), Tally(), Reservoir[Member](60, Random(seed))
        for member in members:
            tally.add(member.listed)
            reservoir.add(member)
        readings = [reading(tally, member) for member in reservoir.kept]
        spent = [sum(map(cost, member.calls)) for member in reservoir.kept]
        held += holds(projected(tally.strata, readings, spent), really(members))
    assert held >= 32  # samples of so few miss heavy tails a little more often than they should


def test_one_document_says_nothing_for_sure() -> None:
    stratum = Stratum("txt", 5)
    found = projected({stratum: Count(100, 100_000)}, [Reading(stratum, 1_000, "a")], [0.01])
    assert found.value == pytest.approx(1.0)
    assert found.low == 0
    assert found.high == pytest.approx(1 + 4.2, rel=0.1)


# -- tokens ------------------------------------------------------------------------------------------------


def test_without_counts_the_interval_spans_what_tokenizers_do() -> None:
    members = [Reading(Stratum("txt", 7), 1, str(place), (Usage(10_700, 550),)) for place in range(5)]
    found = quote({Stratum("txt", 7): Count(5, 5)}, members, Tokens.uncounted(700), cost)
    most, least = (5 * 10_700 * 2.5 / width for width in (2.7, 3.9))
    assert found.input_tokens.low < least < most < found.input_tokens.high


def test_exact_counts_make_it_narrow() -> None:
    tokens = Tokens.counted(700, 300, [0.7, 0.72, 0.71])
    members = [Reading(Stratum("txt", 7), 1, "a", (Usage(10_700, 550),))]
    found = quote({Stratum("txt", 7): Count(1, 1)}, members, tokens, cost)
    assert found.input_tokens.value == pytest.approx(300 + 0.71 * 10_000)
    assert found.input_tokens.high - found.input_tokens.low < 0.05 * found.input_tokens.value


def test_a_short_text_has_a_short_answer() -> None:
    tokens = Tokens(700, 300, Measured(1.0, 0.0))
    short, long = (Reading(Stratum("txt", 1), 1, "a", (Usage(700 + text, 550),)) for text in (40, 9_000))
    assert tokens.of(short)[0].output_tokens < 200 < tokens.of(long)[0].output_tokens < 550


def test_earlier_answers_tell_the_length_of_the_next() -> None:
    ratio = answer_ratio([(300, 400), (330, 400), (270, 400)])
    assert ratio.value == pytest.approx(0.75)
    assert 0.03 <= ratio.error < 0.1


def test_pages_that_are_sent_as_pictures_cost_by_the_page() -> None:
    tokens = Tokens(700, 300, Measured(0.7, 0.0))
    (usage,) = tokens.of(Reading(Stratum("pdf", 9), 1, "a", (Usage(700, 550),), pages=10))
    assert usage.input_tokens == 300 + 10 * 2_250


def test_a_prompt_above_the_threshold_is_priced_call_by_call() -> None:
    tokens = Tokens(0, 0, Measured(1.0, 0.0))
    stratum = Stratum("txt", 10)

    def live(*prompts: int) -> float:
        calls = tuple(Usage(tokens, 0) for tokens in prompts)
        return quote({stratum: Count(1, 1)}, [Reading(stratum, 1, "a", calls)], tokens, cost).live.value

    assert live(120_000) == pytest.approx(5 * live(60_000, 60_000))


# -- time and the most it can be ---------------------------------------------------------------------------


def of(calls: float = 0, tokens_in: float = 0, tokens_out: float = 0) -> Quote:
    def exactly(value: float) -> Estimate:
        return Estimate(value, value, value)

    none = exactly(0)
    return Quote(0, 0, none, {}, exactly(calls), exactly(tokens_in), exactly(tokens_out), none, none)


@pytest.mark.parametrize(
    ("limits", "seconds", "why"),
    [
        (Limits(requests_per_minute=100), 600, "at 100 requests a minute"),
        (Limits(100, 1_000_000), 600, "at 100 requests a minute"),
        (Limits(100, 100_000), 1_200, "at 100,000 input tokens a minute"),
        (Limits(output_tokens_per_minute=400_000), 60, "at 400,000 output tokens a minute"),
        (Limits(calls_at_once=10, seconds_per_call=2.0), 200, "with 10 calls at once of 2 s each"),
    ],
)
def test_the_tightest_limit_makes_the_time(limits: Limits, seconds: float, why: str) -> None:
    assert duration(of(1_000, 2_000_000, 400_000), limits) == (seconds, why)


def test_without_limits_the_time_is_unknown() -> None:
    assert duration(of(1_000), Limits(calls_at_once=10)) is None


@pytest.mark.parametrize("size", [100, 20_000, 300_000, 2_000_000])
def test_no_text_of_a_size_costs_more_than_the_bound(size: int) -> None:
    recipe = Recipe(HAIKU)
    empty = prompt.render(recipe, "", "0" * 16)
    text = ("one two three four. " * (size // 20 + 1))[:size]
    real = sum(
        cost(Usage(call.input_tokens, call.output_tokens)) for call in chunking.expected_calls(text, recipe)
    )
    bound = most_expensive(
        listed("a.txt", size),
        cost,
        fixed=empty.input_tokens,
        longest=recipe.single_shot_tokens,
        answer=empty.max_tokens,
    )
    assert real <= bound < 4 * real + 0.01


def test_where_the_size_tells_nothing_there_is_no_bound() -> None:
    bounds = [
        most_expensive(entry, cost, fixed=800, longest=60_000, answer=2_000, pictures=pictures)
        for entry, pictures in (
            (listed("a.pdf", None), False),
            (listed("a.pdf", 100), True),
            (listed("a.txt", 100), True),
            (listed("a.pdf", 100), False),
        )
    ]
    assert [math.isinf(bound) for bound in bounds] == [True, True, False, False]
    assert bounds[3] > bounds[2]
    assert Decimal(bounds[3]) < Decimal("0.01")
