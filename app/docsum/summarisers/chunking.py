"""Long texts: where they are cut, and which calls read them. Pure functions of the text and the sizes.

The same text and size give the same chunks at any time and in any worker, since the fingerprints of the
chunks are what lets a document go on where it was killed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from docsum.models import Recipe, Usage
from docsum.summarisers import prompt
from docsum.summarisers.prompt import BYTES_PER_TOKEN, Request

#: A chunk has at most so many tokens, whatever the recipe says: with system prompt and schema that stays well
#: under the 100,000 tokens of a prompt from which on some models cost five times as much.
MOST_TOKENS = 80_000

_LEAST_TOKENS = 16  # of a chunk: room for a few characters of any script
_FULL = 0.85  # chunks are this full on average, so that there is a choice of places to cut at


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text. It holds no copy: `text` is cut out when it is asked for."""

    source: str = field(repr=False)
    start: int
    end: int
    number: int  # from 1
    section: tuple[str, ...]  # the headings that it begins under, outermost first

    @property
    def text(self) -> str:
        return self.source[self.start : self.end]


# -- the calls -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls that read a long text: one for each chunk, then levels of merges, then one for the whole."""

    recipe: Recipe
    chunks: Sequence[Chunk]
    levels: Sequence[Sequence[range]]  # of merges: which nodes of the level before each one reads
    words: int  # of the notes on a chunk, and of merged ones
    most_tokens: int  # of the text in one prompt

    def part(self, chunk: Chunk, boundary: str) -> Request:
        """The request for notes on a chunk."""
        return prompt.render_part(
            self.recipe,
            chunk.text,
            boundary,
            section=chunk.section,
            place=(chunk.number, len(self.chunks)),
            words=self.words,
        )

    def merge(self, notes: Sequence[prompt.Parsed], boundary: str) -> Request:
        """The request for notes in place of these."""
        text = prompt.notes_text(notes, self.most_tokens)
        return prompt.render_merge(self.recipe, text, boundary, words=self.words)

    def whole(self, notes: Sequence[prompt.Parsed], boundary: str) -> Request:
        """The request for the summary that the reader gets."""
        return prompt.render_whole(self.recipe, prompt.notes_text(notes, self.most_tokens), boundary)


def plan(text: str, recipe: Recipe, most_tokens: int) -> Plan:
    """How a text of more than `most_tokens` is read; a second's work for ten million characters.

    The merges follow from the number of chunks, not from the notes, so that the calls are known beforehand.
    """
    most_tokens = min(most_tokens, MOST_TOKENS)
    chunks = split(text, most_tokens)
    words = _note_words(recipe.words, len(chunks), most_tokens)
    at_once = max(2, most_tokens // _note_tokens(words, text))
    return Plan(recipe, chunks, merges(len(chunks), at_once), words, most_tokens)


def _note_words(wanted: int, chunks: int, most_tokens: int) -> int:
    """Words of the notes on a chunk, so that all notes together have three times the wanted words or more.

    At least 250 where the chunks are large enough, in steps of 50: the notes are used again by recipes that
    differ in length only.
    """
    words = min(1_000, max(250, 50 * -(-3 * wanted // (50 * chunks))))
    return max(30, min(words, most_tokens // 20))


def _note_tokens(words: int, text: str) -> int:
    """What notes in the script of the text take in a prompt."""
    return int(prompt.note_tokens(words) * max(1.0, prompt.size(text) / max(1, len(text))))


def merges(nodes: int, at_once: int) -> Sequence[Sequence[range]]:
    """Levels of equal groups until there are at most `at_once` nodes, which one last call can read."""
    levels: list[Sequence[range]] = []
    while nodes > at_once:
        groups = -(-nodes // at_once)
        edges = [place * nodes // groups for place in range(groups + 1)]
        levels.append([range(start, end) for start, end in pairwise(edges)])
        nodes = groups
    return levels


def expected_calls(text: str, recipe: Recipe) -> Sequence[Usage]:
    """The calls that a summary of this text by this recipe takes, in order, with their estimated tokens."""
    boundary = "0" * 16
    if prompt.estimate_tokens(text) <= recipe.single_shot_tokens:
        return [_usage(prompt.render(recipe, text, boundary))]
    planned = plan(text, recipe, recipe.single_shot_tokens)
    calls = [_usage(planned.part(chunk, boundary)) for chunk in planned.chunks]
    note = _note_tokens(planned.words, text)
    merge, whole = planned.merge((), boundary), planned.whole((), boundary)
    nodes = len(planned.chunks)
    for level in planned.levels:
        calls += [_usage(merge, note * len(group)) for group in level]
        nodes = len(level)
    return [*calls, _usage(whole, note * nodes)]


def _usage(request: Request, more: int = 0) -> Usage:
    return Usage(request.input_tokens + more, request.expected_tokens)


class Gaps:
    """What of a long text could not be read, and why."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._sizes = {chunk.number: chunk.end - chunk.start for chunk in chunks}
        self._missing: dict[int, Exception] = {}  # by number of the chunk, in the order they failed

    def leave_out(self, numbers: Iterable[int], why: Exception) -> None:
        """Goes on without these chunks. Raises the first reason once over half of the text is missing."""
        for number in numbers:
            self._missing.setdefault(number, why)
        if self.coverage < 0.5:
            raise next(iter(self._missing.values()))

    @property
    def coverage(self) -> float:
        """The share of the characters that was read."""
        missing = sum(self._sizes[number] for number in self._missing)
        return 1 - missing / sum(self._sizes.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence that names the parts, if any are missing."""
        *most, last = sorted(self._missing) or (0,)
        count = len(self._sizes)
        if most:
            named = ", ".join(map(str, most))
            return (f"Parts {named} and {last} of {count} could not be read by the model.",)
        return (f"Part {last} of {count} could not be read by the model.",) if last else ()


# -- the chunks ----------------------------------------------------------------------------------------------


def split(text: str, most_tokens: int) -> Sequence[Chunk]:
    """Cuts a text into chunks of about the same size, none of more than `most_tokens`, in linear time.

    Every character is in exactly one chunk. A cut is made at the best place near where equal chunks would
    end: before a heading, the higher the better, else between pages, paragraphs, lines, sentences or words,
    else between two characters, but not before a combining one.
    """
    if most_tokens < _LEAST_TOKENS:
        raise ValueError(f"A chunk has at least {_LEAST_TOKENS} tokens, not {most_tokens}.")
    if prompt.estimate_tokens(text) <= most_tokens:
        return [Chunk(text, 0, len(text), 1, ())]
    cuts = [(0, ()), *_cuts(text, _windows(text, most_tokens))]
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return [
        Chunk(text, start, end, number, section)
        for number, ((start, section), end) in enumerate(zip(cuts, ends, strict=True), 1)
    ]


@dataclass(frozen=True, slots=True)
class _Window:
    """Where one cut may be made, and where it would make equal chunks: places in the text."""

    low: int
    ideal: int
    high: int


def _windows(text: str, most_tokens: int) -> list[_Window]:
    """One for each cut. They lie so that any choice of places gives chunks that are small enough."""
    total = prompt.size(text)
    room = int((most_tokens - 1) * BYTES_PER_TOKEN) - 4  # bytes; a place is up to 3 before its byte
    count = max(2, -(-total // int(room * _FULL)))
    average = total / count
    reach = min((room - average) / 2, average / 4)
    ideals = [average * number for number in range(1, count)]
    places = iter(_places(text, [int(ideal + by) for ideal in ideals for by in (-reach, 0.0, reach)]))
    return [_Window(low, ideal, high) for low, ideal, high in zip(places, places, places, strict=True)]


def _places(text: str, sizes: Sequence[int]) -> Iterator[int]:
    """The lengths of the beginnings of the text that have at most so many bytes; `sizes` ascend."""
    if text.isascii():
        yield from sizes
        return
    block, before = 4_096, 0
    encoded = text[:block].encode(errors="replace")
    start = 0
    for size in sizes:
        while before + len(encoded) < size:
            before += len(encoded)
            start += block
            encoded = text[start : start + block].encode(errors="replace")
        yield start + len(encoded[: size - before].decode(errors="ignore"))


def _cuts(text: str, windows: Sequence[_Window]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The places of the cuts, each with the section that begins or goes on there."""
    headings = _headings(text)
    heading = next(headings, None)
    section: list[_Heading] = []
    for window in windows:
        while heading is not None and heading.start < window.low:
            _enter(section, heading)
            heading = next(headings, None)
        best: tuple[int, int] | None = None  # level, distance
        cut, titles = 0, tuple(open_.title for open_ in section)
        while heading is not None and heading.start <= window.high:
            _enter(section, heading)
            rank = (heading.level, abs(heading.start - window.ideal))
            if best is None or rank < best:
                best, cut = rank, heading.start
                titles = tuple(open_.title for open_ in section)
            heading = next(headings, None)
        yield cut if best else _seam(text, window), titles


def _enter(section: list[_Heading], heading: _Heading) -> None:
    while section and section[-1].level >= heading.level:
        section.pop()
    section.append(heading)


#: What a text may be cut after, best first.
_SEAMS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\f\s*",
        r"\n[ \t\r\v]*\n\s*",
        r"\n",
        r"[.!?…][\"')\]»”’]*\s+|[。！？]",
        r"\s+",
    )
)


def _seam(text: str, window: _Window) -> int:
    """The best place in a window without a heading."""
    for pattern in _SEAMS:
        places = (found.end() for found in pattern.finditer(text, window.low, window.high))
        if place := min(places, key=lambda place: abs(place - window.ideal), default=0):
            return place
    for place in range(window.ideal, window.high + 1):
        if not _joined(text, place):
            return place
    for place in range(window.ideal, window.low - 1, -1):
        if not _joined(text, place):
            return place
    return window.ideal


def _joined(text: str, place: int) -> bool:
    """Whether the characters on both sides of a place are read as one."""
    before, after = text[place - 1], text[place]
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me")
        or "\u200d" in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff")
    )


# -- headings ------------------------------------------------------------------------------------------------


class _Heading(NamedTuple):
    start: int  # of its line
    level: int  # 0 is the document's title
    title: str


# Most lines must fail here and quickly: a text may have millions.
_LINE = re.compile(
    r"""^(?!\n)\f*(?:
        (?P<fence> [ ]{0,3}(?:```|~~~) )
      | (?P<marks> \#{1,6} ) [ \t]+ (?P<marked> \S[^\n]{0,200} ) $
            (?! \n (?P=marks) [ \t] )  # else it is a block of comments
      | (?: \A | (?<=\n\n) | (?<=[ \t\r]\n) | (?<=\f) ) (?:
            (?P<over> \S[^\n]{0,119} ) \n (?P<under> ={3,} | -{3,} ) [ \t]* $
          | (?P<number> \d{1,3} (?:\.\d{1,3}){0,4} ) \.? [ \t]+ (?P<numbered> [^\W\d_][^\n]{1,99} ) $
          | (?P<named> (?i:part|book|teil|partie|parte|chapter|kapitel|chapitre|capítulo|capitolo
                       |appendix|anhang|annexe?|section|abschnitt|article|artikel|§) )
                [ \t]+ (?: \d{1,3} | [IVXLC]{1,6} | [A-Z] ) (?![^\W_]) [^\n]{0,99} $
          | [^\W\d_a-z] [^\na-z]{3,59} $
        )
    )""",
    re.MULTILINE | re.VERBOSE,
)
_VOLUMES = frozenset({"part", "book", "teil", "partie", "parte"})
_SECTIONS = frozenset({"section", "abschnitt", "article", "artikel", "§"})
_LEADERS = ("....", ". . .", "…", "____")
_NO_END = (".", ",", ";", ":", "!", "?", "。", "，", "；", "：", "-", "|")
_LONGEST_TITLE = 120
_LONGEST_CODE = 10_000  # characters between two fences


def _headings(text: str) -> Iterator[_Heading]:
    """The headings in their order, those in fenced code left out."""
    title = _title(text)
    if title is not None:
        yield title
    fenced_to = 0  # a fence that nobody closes must not hide the rest of the text
    for line in _LINE.finditer(text):
        if line["fence"]:
            fenced_to = 0 if line.start() < fenced_to else line.start() + _LONGEST_CODE
        elif line.start() >= fenced_to and (title is None or line.start() > title.start):
            heading = _heading(line)
            if heading is not None:
                yield heading


def _title(text: str) -> _Heading | None:
    """The first line, where it stands alone and looks like a title."""
    start = len(text) - len(text.lstrip())
    line = text[start : start + 2 * _LONGEST_TITLE].partition("\n")[0]
    if found := _LINE.match(text, start):
        heading = _heading(found)
        return heading._replace(level=0) if heading else None
    if len(line) > _LONGEST_TITLE or not _may_be_title(line) or _line_after(text, start + len(line)):
        return None
    return _Heading(start, 0, _spaced(line))


def _heading(line: re.Match[str]) -> _Heading | None:
    """The heading that a line is, if it is one after a closer look."""
    start, whole = line.start(), line[0].strip()
    before = _line_before(line.string, start)
    if marks := line["marks"]:
        comment = before.startswith((f"{marks} ", f"{marks}\t"))
        return None if comment else _Heading(start, len(marks), _spaced(line["marked"].rstrip("# \t")))
    if line["fence"] or before or (line.lastgroup is None and not _is_capitals(whole)):
        return None
    if whole.endswith(_NO_END) and not line["under"]:
        return None
    if any(leader in whole for leader in _LEADERS):
        return None
    if under := line["under"]:
        return _Heading(start, 1 if under[0] == "=" else 2, _spaced(line["over"]))
    after = _line_after(line.string, line.end())
    if number := line["number"]:
        depth = number.count(".") + 1
        ours = not line["numbered"][0].islower() and (depth > 1 or not after)
        return _Heading(start, 1 + depth, _spaced(whole)) if ours else None
    if name := line["named"]:
        level = 1 if name.casefold() in _VOLUMES else 3 if name.casefold() in _SECTIONS else 2
        return _Heading(start, level, _spaced(whole))
    # Capitals over capitals are a paragraph in capitals.
    return None if after.isupper() else _Heading(start, 2, _spaced(whole))


def _is_capitals(line: str) -> bool:
    return line.isupper() and len(line) < 2 * sum(map(str.isalpha, line)) >= 8


def _may_be_title(line: str) -> bool:
    return any(map(str.isalpha, line)) and not line.rstrip().endswith(_NO_END)


def _spaced(line: str) -> str:
    return " ".join(line.split())[:_LONGEST_TITLE]


def _line_before(text: str, start: int) -> str:
    if start == 0 or text[start] == "\f":
        return ""
    return text[max(0, start - 200) : start - 1].rpartition("\n")[2].strip()


def _line_after(text: str, end: int) -> str:
    return text[end + 1 : end + 200].partition("\n")[0].strip()
