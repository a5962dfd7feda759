"""What a run will probably cost, told from a sample of its documents. Pure: no clock, no files, no network.

One pass over a listing keeps, in bounded memory, some documents of every stratum: a kind and a band of sizes.
What those turn out to need is scaled up by a ratio to size within each stratum (Cochran, Sampling Techniques,
chapter 6), with its variance, so that every figure has a 95 % interval. The same text is paid for once, so
the number of different texts is estimated too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from random import Random
from typing import Generic, NamedTuple, TypeVar

from docsum.models import Lane, Usage
from docsum.sources import Listed

T = TypeVar("T")

READ = 200  # documents that are read for a quote, at least
READ_ALL = 400  # of so few, all are read; also the most that are kept of one stratum
_EACH = 2  # of every stratum at least: one has no variance
_EACH_OF_SIMPLE = 5  # in a simple random sample, where that is as it happens to be
_KINDS = 12  # told apart; what comes after them is one kind
_OTHER = "other"
#: What a document costs whatever its size, as bytes of text: the prompt around it and the answer.
_OVERHEAD = 8_192
_UNKNOWN = 4 * _OVERHEAD  # in place of a size that the listing does not tell

_PLAIN = frozenset("txt text plain md markdown rst log csv html htm xhtml xml json".split())
_BYTES_PER_TOKEN = 2.5  # as `prompt.estimate_tokens` counts: more tokens than there are
_PACKED = 10  # so many bytes of text in one byte of a compressed format, at most


# -- the listing ---------------------------------------------------------------------------------------------


class Stratum(NamedTuple):
    """Documents that are alike as far as a listing tells."""

    kind: str  # ending of the name, else the media type
    band: int  # of sizes, by powers of four; -1 = unknown


@dataclass(slots=True)
class Count:
    """How much there is in a stratum."""

    documents: int = 0
    weight: int = 0  # of all of them together, see `weight_of`


class Tally:
    """The strata of a listing. Bounded: a dozen kinds, some twenty bands."""

    def __init__(self, strata: Mapping[Stratum, Count] | None = None) -> None:
        self.strata: dict[Stratum, Count] = dict(strata or {})
        self._kinds = {stratum.kind for stratum in self.strata}

    @property
    def documents(self) -> int:
        return sum(count.documents for count in self.strata.values())

    def place(self, listed: Listed) -> Stratum:
        """Where a document belongs."""
        kind, size = kind_of(listed), listed.size_bytes
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _OTHER
        return Stratum(kind, -1 if size is None else (size.bit_length() + 1) // 2)

    def add(self, listed: Listed) -> Stratum:
        stratum = self.place(listed)
        self._kinds.add(stratum.kind)
        count = self.strata.setdefault(stratum, Count())
        count.documents += 1
        count.weight += weight_of(listed)
        return stratum


def kind_of(listed: Listed) -> str:
    """The ending of the name without its dot, else what the media type says, else nothing."""
    name = listed.uri.partition("?")[0].rpartition("/")[2]
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending.isalnum() and len(ending) <= 8:
        return ending
    return (listed.media_type or "").partition(";")[0].rpartition("/")[2].strip().lower()


def weight_of(listed: Listed) -> int:
    """What the cost of a document is about proportional to, within its kind."""
    return _UNKNOWN if listed.size_bytes is None else listed.size_bytes + _OVERHEAD


class Reservoir(Generic[T]):
    """A simple random sample of a stream of unknown length (Vitter's algorithm R)."""

    def __init__(self, capacity: int, random: Random) -> None:
        self.kept: list[T] = []
        self._capacity = capacity
        self._random = random
        self._seen = 0

    def add(self, item: T) -> None:
        self._seen += 1
        if len(self.kept) < self._capacity:
            self.kept.append(item)
        elif (place := self._random.randrange(self._seen)) < self._capacity:
            self.kept[place] = item


class StratifiedSample:
    """Documents of every stratum of a listing, the more the more their stratum will cost."""

    def __init__(self, random: Random) -> None:
        self.tally = Tally()
        self._random = random
        self._reservoirs: dict[Stratum, Reservoir[Listed]] = {}

    def add(self, listed: Listed) -> None:
        stratum = self.tally.add(listed)
        reservoir = self._reservoirs.setdefault(stratum, Reservoir(READ_ALL, self._random))
        reservoir.add(listed)

    def drawn(self) -> list[Listed]:
        """Those to be read."""
        sizes = allocated(self.tally.strata)
        return [
            listed
            for stratum, reservoir in self._reservoirs.items()
            for listed in self._random.sample(reservoir.kept, sizes[stratum])
        ]


def allocated(strata: Mapping[Stratum, Count]) -> dict[Stratum, int]:
    """How many documents are read of each stratum: at least two, the others by what it weighs."""
    documents = sum(count.documents for count in strata.values())
    if documents <= READ_ALL:
        return {stratum: count.documents for stratum, count in strata.items()}
    weight, wanted = sum(count.weight for count in strata.values()), float(READ)
    while True:
        chosen = {
            stratum: min(count.documents, READ_ALL, max(_EACH, math.ceil(wanted * count.weight / weight)))
            for stratum, count in strata.items()
        }
        if sum(chosen.values()) >= READ:
            return chosen
        wanted *= 1.2  # a small stratum of huge documents could not take its share


# -- what the sample needs -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """A sampled document as it turned out to be."""

    stratum: Stratum
    weight: int
    text: str = ""  # names what is asked: of the same text twice, one is paid for
    calls: tuple[Usage, ...] = ()  # that it needs, in estimated tokens; none where nothing will be bought
    pages: int = 0  # that are sent as pictures
    reason: str = ""  # why there is nothing to summarise


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its standard error."""

    value: float
    error: float

    def raised(self) -> Measured:
        """By its error."""
        return replace(self, value=self.value + self.error)


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many tokens there really are where so many were estimated."""

    estimated_fixed: int  # of a prompt without a document
    fixed: float  # what it really has
    text: Measured  # real tokens for each estimated one
    answer: Measured = Measured(1.0, 0.2)  # of `usual_answer`
    page: Measured = Measured(2_250, 375)  # the provider says 1,500 to 3,000 tokens a page

    @classmethod
    def uncounted(cls, estimated_fixed: int) -> Tokens:
        """Where nobody could count: a token of a text has 2.7 to 3.9 bytes, where 2.5 are estimated."""
        text = Measured(0.79, 0.08)
        return cls(estimated_fixed, text.value * estimated_fixed, text)

    @classmethod
    def counted(cls, estimated_fixed: int, fixed: int, ratios: Sequence[float]) -> Tokens:
        """From exact counts: of an empty prompt, and of texts drawn in proportion to their length."""
        if not ratios:
            return replace(cls.uncounted(estimated_fixed), fixed=float(fixed))
        mean, error = mean_and_error(ratios)
        return cls(estimated_fixed, float(fixed), Measured(mean, max(error, 0.01 * mean)))

    @classmethod
    def answered(cls, estimated_fixed: int, ratios: Sequence[float]) -> Tokens:
        """From what earlier requests had in all, for each token that was estimated; at least one."""
        mean, error = mean_and_error(ratios)
        return cls(estimated_fixed, mean * estimated_fixed, Measured(mean, max(error, 0.03 * mean)))

    def of(self, reading: Reading) -> list[Usage]:
        """What its calls will be billed."""
        return [self._usage(call, reading.pages) for call in reading.calls]

    def _usage(self, call: Usage, pages: int) -> Usage:
        text = max(0, call.input_tokens - self.estimated_fixed)
        content = text * self.text.value + pages * self.page.value
        answer = self.answer.value * usual_answer(call.output_tokens, content)
        return Usage(round(self.fixed + content), round(answer))

    def shifted(self) -> Iterator[Tokens]:
        """Each of what was measured, one standard error further."""
        yield replace(self, text=self.text.raised())
        yield replace(self, answer=self.answer.raised())
        yield replace(self, page=self.page.raised())


def usual_answer(expected: int, content: float) -> float:
    """Tokens of an answer: what is planned for is generous, and a short text has no long summary."""
    return min(0.75 * expected, 120 + 0.75 * content)


def answer_ratio(answers: Sequence[tuple[float, float]]) -> Measured:
    """Of answers that were given, real and usual tokens; at least one. Others may differ a little."""
    ratio = sum(real for real, _ in answers) / sum(usual for _, usual in answers)
    _, error = mean_and_error([real - ratio * usual for real, usual in answers])
    mean = sum(usual for _, usual in answers) / len(answers)
    return Measured(ratio, max(error / mean, 0.04 * ratio, 0.2 * ratio / math.sqrt(len(answers))))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; of one value as large as itself."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, abs(mean)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


# -- the whole -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quote:
    """What a source will need."""

    documents: int  # that would be worked on
    read: int
    summarised: Estimate
    unreadable: Mapping[str, Estimate]  # reason -> documents, the most first
    calls: Estimate
    input_tokens: Estimate
    output_tokens: Estimate
    live: Estimate  # US dollars
    batch: Estimate


Cost = Callable[[Usage, Lane], float]


def quote(strata: Mapping[Stratum, Count], readings: Sequence[Reading], tokens: Tokens, cost: Cost) -> Quote:
    """The quote for a listing; `cost` is in US dollars."""

    def figure(of: Callable[[Usage], float]) -> Estimate:
        def scaled(assumed: Tokens) -> _Total:
            return _scaled(strata, readings, [sum(map(of, assumed.of(reading))) for reading in readings])

        total = scaled(tokens)
        return total.estimate(sum((scaled(other).value - total.value) ** 2 for other in tokens.shifted()))

    def counted(reason: str) -> Estimate:
        found = [float(reading.reason == reason) for reading in readings]
        count = _scaled(strata, readings, found, countable=True).estimate()
        return replace(count, low=max(count.low, sum(found)), high=min(count.high, float(documents)))

    documents = sum(count.documents for count in strata.values())
    reasons = {reading.reason for reading in readings if reading.reason}
    unreadable = {reason: counted(reason) for reason in reasons}
    return Quote(
        documents=documents,
        read=len(readings),
        summarised=counted(""),
        unreadable=dict(sorted(unreadable.items(), key=lambda item: -item[1].value)),
        calls=figure(lambda _: 1.0),
        input_tokens=figure(lambda usage: usage.input_tokens),
        output_tokens=figure(lambda usage: usage.output_tokens),
        live=figure(lambda usage: cost(usage, Lane.LIVE)),
        batch=figure(lambda usage: cost(usage, Lane.BATCH)),
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the speed; 0 = nothing is known to."""

    requests_per_minute: int = 0
    input_tokens_per_minute: int = 0
    output_tokens_per_minute: int = 0
    calls_at_once: int = 0  # of all workers together
    seconds_per_call: float = 0.0  # as measured


def duration(quoted: Quote, limits: Limits) -> tuple[float, str] | None:
    """Seconds that it will take at least, and what makes it so long; None where nothing is known."""
    found = []
    for needed, limit, name in (
        (quoted.calls, limits.requests_per_minute, "requests"),
        (quoted.input_tokens, limits.input_tokens_per_minute, "input tokens"),
        (quoted.output_tokens, limits.output_tokens_per_minute, "output tokens"),
    ):
        if limit:
            found.append((60 * needed.value / limit, f"at {limit:,} {name} a minute"))
    if limits.calls_at_once and limits.seconds_per_call:
        seconds = quoted.calls.value * limits.seconds_per_call / limits.calls_at_once
        each = f"of {limits.seconds_per_call:.2g} s each"
        found.append((seconds, f"with {limits.calls_at_once:,} calls at once {each}"))
    return max(found, default=None)


def projected(
    strata: Mapping[Stratum, Count], readings: Sequence[Reading], spent: Sequence[float]
) -> Estimate:
    """What all documents of a listing will cost, as these have: a simple random sample of it."""
    return _scaled(strata, readings, spent, least=_EACH_OF_SIMPLE).estimate()


def most_expensive(
    listed: Listed,
    cost: Callable[[Usage], float],
    *,
    fixed: int,
    longest: int,
    answer: int,
    pictures: bool = False,
) -> float:
    """US dollars that a document hardly costs more than, by its size; infinite where that tells nothing.

    `longest` text of one request, and the `fixed` tokens and the longest `answer` of each; `pictures`: pages
    that are pictures are sent as they are.
    """
    plain = kind_of(listed) in _PLAIN
    if listed.size_bytes is None or (pictures and not plain):
        return math.inf
    text = listed.size_bytes * (1 if plain else _PACKED) / _BYTES_PER_TOKEN
    if text <= longest:
        return cost(Usage(math.ceil(text) + fixed, answer))
    calls = 2 * math.ceil(text / longest) + 1  # parts and what merges them, which reads their answers
    return calls * cost(Usage(math.ceil(text / calls) + fixed + answer, answer))


@dataclass(slots=True)
class _Group:
    """What one ratio is taken of: a stratum, or neighbouring ones whose sample would be too small."""

    count: Count = field(default_factory=Count)
    readings: list[int] = field(default_factory=list)  # places in the sample

    def take(self, count: Count, readings: Sequence[int]) -> None:
        self.count = Count(self.count.documents + count.documents, self.count.weight + count.weight)
        self.readings.extend(readings)

    def suffices(self, least: int) -> bool:
        return len(self.readings) >= min(least, self.count.documents)


def _groups(strata: Mapping[Stratum, Count], readings: Sequence[Reading], least: int) -> list[_Group]:
    """Neighbouring bands of a kind are put together until there are `least` readings; small kinds too."""
    places: dict[Stratum, list[int]] = {}
    for place, reading in enumerate(readings):
        places.setdefault(reading.stratum, []).append(place)
    found: list[_Group] = []
    rest = _Group()
    for _, members in groupby(sorted(strata), key=lambda stratum: stratum.kind):
        of_kind: list[_Group] = []
        group = _Group()
        for stratum in members:
            group.take(strata[stratum], places.get(stratum, ()))
            if group.suffices(least):
                of_kind.append(group)
                group = _Group()
        (of_kind[-1] if of_kind else rest).take(group.count, group.readings)
        found += of_kind
    if rest.suffices(least) or not found:
        return [*found, rest] if rest.count.documents else found
    max(found, key=lambda group: group.count.documents).take(rest.count, rest.readings)
    return found


@dataclass(slots=True)
class _Total:
    """A sum over strata with its variance, as it is being added up."""

    value: float = 0.0
    variance: float = 0.0
    fourth: float = 0.0  # for the degrees of freedom
    without_copies: float = 0.0  # the sum if no text stood behind more documents than were seen with it

    def estimate(self, model: float = 0.0) -> Estimate:
        """`model`: the variance that comes of what was assumed of every document alike."""
        freedom = self.variance**2 / self.fourth if self.fourth else math.inf  # Satterthwaite
        copies = self.without_copies - self.value
        half = math.sqrt(_student(freedom) ** 2 * self.variance + 4 * model + copies**2)
        return Estimate(self.value, max(0.0, self.value - half), self.value + half)


def _scaled(
    strata: Mapping[Stratum, Count],
    readings: Sequence[Reading],
    values: Sequence[float],
    *,
    countable: bool = False,
    least: int = _EACH,
) -> _Total:
    """The values of the sample scaled up: in proportion to weight, or, `countable`, to documents."""
    total = _Total()
    groups = _groups(strata, readings, least) if readings else []
    copies = [_Copies() if countable else _Copies.among(readings, group) for group in groups]
    excess = _excess(copies)
    for group, same in zip(groups, copies, strict=True):
        whole = float(group.count.documents if countable else group.count.weight)
        xs = [1.0 if countable else float(readings[place].weight) for place in group.readings]
        ys = [values[place] / same.counts.get(readings[place].text, 1) for place in group.readings]
        count, ratio = len(xs), sum(ys) / sum(xs)
        residuals = sum((y - ratio * x) ** 2 for x, y in zip(xs, ys, strict=True))
        spread = residuals / (count - 1) if count > 1 else sum(ys) ** 2
        missing = 1 - count / group.count.documents
        factor = same.factor(excess)
        variance = missing * (factor * whole * count / sum(xs)) ** 2 * spread / count
        total.value += factor * whole * ratio
        total.without_copies += same.factor(0.0) * whole * ratio
        total.variance += variance
        total.fourth += variance**2 / max(1, count - 1)
    return total


@dataclass(frozen=True, slots=True)
class _Copies:
    """How often the texts of a stratum were seen in its sample."""

    counts: Mapping[str, int] = field(default_factory=dict)  # text -> documents
    read: float = 1.0  # share of the stratum that was read

    @classmethod
    def among(cls, readings: Sequence[Reading], group: _Group) -> _Copies:
        texts = (readings[place].text for place in group.readings)
        return cls(Counter(text for text in texts if text), len(group.readings) / group.count.documents)

    def seen(self, times: int) -> int:
        """Texts that were seen so often."""
        return sum(count == times for count in self.counts.values())

    def factor(self, excess: float) -> float:
        """Different texts of the stratum, for each that the plain scaling up of the sampled ones gives."""
        if not self.counts:
            return 1.0
        unseen = self.seen(1) * (1 - self.read) / self.read / (1 + excess)
        return self.read * (1 + unseen / len(self.counts))


def _excess(copies: Sequence[_Copies]) -> float:
    """How many more copies a text has that was seen once, as told by those that were seen twice.

    With it the texts that were not seen are as in Chao and Lin (2012), Biometrics 68, pooled over strata: a
    lower bound that is sharp where all texts have the same number of copies.
    """
    sampled = [same for same in copies if same.read < 1]
    twice = sum(same.seen(2) for same in sampled)
    by_chance = sum(same.seen(1) * same.read / (1 - same.read) for same in sampled)
    return 2 * twice / by_chance if by_chance else 0.0


def _student(freedom: float) -> float:
    """The 97.5 % point of Student's t, by its expansion around the normal one; good to 2 % from 2 on."""
    z, n = 1.959964, max(2.0, freedom)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
