"""Extractive summaries: the best sentences of a text, in its own words, found without a language model.

Sentence boundaries by nupunkt, ranks by LexRank (Erkan and Radev, 2004) on numpy, the language by py3langid;
all three work offline. The same text always gives the same extract.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from docsum.local.extractive_guesses import Languages, guess_type, language_warnings, words_of

Matrix = NDArray[np.float32]

#: Ranked sentences per text: LexRank compares every pair, so this bounds its time to some 20 ms.
SENTENCE_CAP = 400
#: Sentences at the start that the cap never drops; the rest is sampled evenly over the whole text.
LEAD_KEPT = 50
#: Two sentences more alike than this say the same thing; only the better one is taken.
REDUNDANT = 0.6

_LEADERS = re.compile(r"(?:[ \t]?[.·…_]){4,}")
_CONTENTS_ENTRY = re.compile(r"(?:[ \t]?[.·…_]){4,}[ \t]*[\divxlc]*$", re.IGNORECASE)
_CODE_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)
_HYPHENATED = re.compile(r"(?<=[^\W\d_])-\n[ \t]*(?=[a-zà-ÿ])")
_MARK_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*$")
_RULE = re.compile(r"[=\-~*_^]{3,}$")
_BULLET = re.compile(r"(?:[-*+•‣▪·]|\d{1,3}[.)])\s+(?=\S)")
_LINK = re.compile(r"!?\[([^\]\n]{0,200})\]\([^)\s]{1,500}\)")
# "1." before an item and the dot of an ordinal as in "am 12. März": the sentence goes on after them.
_NO_END = re.compile(r"(?:^|\s)\(?(?:\d{1,2}|[A-Za-z])[.)]$")
_WIDE_STOP = re.compile(r"(?<=[。！？])\s*")
_LEAD_STOPS = (". ", "! ", "? ", "。", "！", "？")
_SUBJECT = re.compile(r"^(?:subject|re|betreff|objet|asunto|oggetto)\s*:\s*(\S.{2,150})$", re.I | re.M)

_STOPS = (".", "!", "?", "…", "。", "！", "？")
_NO_HEADING_END = (*_STOPS, ":", ";", ",", "-", "：", "；", "，", "、")


@dataclass(frozen=True, slots=True)
class Extract:
    """What was found in one text; every sentence of it stands in that text."""

    title: str
    summary: str
    key_points: tuple[str, ...]
    language: str
    """ISO 639-1, or `und` where the text has no letters."""
    document_type: str
    warnings: tuple[str, ...] = ()


class Kind(Enum):
    """What a block of lines is."""

    HEADING = auto()
    ITEM = auto()
    PROSE = auto()


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that belong together, joined by spaces, without their marks."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and its case-folded words."""

    text: str
    words: tuple[str, ...]


class ExtractiveModel:
    """The sentence and language models, loaded once (a second, 130 MB); safe to call from several threads."""

    def __init__(self) -> None:
        import nupunkt

        self._split: Callable[[str], Sequence[str]] = nupunkt.load("default").tokenize
        self._languages = Languages()

    def summarise(self, text: str, words: int = 150, wanted_language: str = "") -> Extract:
        """Choose the most central sentences, about `words` words of them, in the order of the text."""
        blocks = list(read_blocks(text))
        prose = [sentence for block in blocks for sentence in self._sentences(block)]
        candidates = rankable(prose)
        warnings = text_warnings(len(candidates))
        if not candidates:
            candidates = fragments([block.text for block in blocks] or text.splitlines())
        similarity = similarities([sentence.words for sentence in candidates])
        order = np.argsort(-centrality(similarity), kind="stable").tolist()
        chosen = choose(candidates, similarity, order, words)
        title = title_of(text, blocks, candidates)
        language = self._languages.guess(text)
        return Extract(
            title=title,
            summary=joined([finished(candidates[i].text) for i in chosen]),
            key_points=key_points(candidates, similarity, order, chosen),
            language=language,
            document_type=guess_type(title, text[:4000]),
            warnings=(*warnings, *language_warnings(language, wanted_language)),
        )

    def lead(self, text: str, words: int = 150) -> Extract:
        """Take the first sentences instead of the best ones: a baseline that costs next to nothing."""
        limit = words * 12  # more characters than any language's prose needs for so many words
        first, _, rest = text[: limit + 120].partition("\n")
        titled = is_title(first) and not rest.isspace() and rest != ""
        head = " ".join(rest.split()) if titled else " ".join(f"{first} {rest}".split())
        for stop in _LEAD_STOPS:
            head = head.replace(stop, f"{stop.strip()}\n")
        pieces = head.strip().split("\n")
        if len(text) > limit + 120 and len(pieces) > 1:
            pieces.pop()  # cut off in the middle
        taken, total = 0, 0
        while taken < len(pieces) and total < words:
            total += pieces[taken].count(" ") + 1
            taken += 1
        return Extract(
            title=shortened(first.lstrip("# "), 100) if titled else shortened(pieces[0], 80) or "Untitled",
            summary=joined(pieces[:taken]),
            key_points=tuple(shortened(piece, 240) for piece in pieces[:3] if piece),
            language=self._languages.quick_guess(head[:300]),
            document_type=guess_type(first[:120], ""),
        )

    def _sentences(self, block: Block) -> list[str]:
        """Sentences of a block; a piece that cannot start a sentence belongs to the one before."""
        if block.kind is Kind.HEADING:
            return []
        found: list[str] = []
        for piece in self._split(block.text):
            if found and (piece[:1].islower() or _NO_END.search(found[-1][-6:])):
                found[-1] += f" {piece}"
            else:
                found.append(piece)
        if "。" in block.text or "！" in block.text or "？" in block.text:
            found = [part for piece in found for part in _WIDE_STOP.split(piece) if part]
        if block.kind is Kind.PROSE:
            # A last piece without a stop is a caption, a signature or a cell, not a sentence.
            found = [piece for piece in found if piece.rstrip("\"'”’»)」").endswith(_STOPS)]
        return found


def read_blocks(text: str) -> Iterator[Block]:
    """Split a text into headings, list items and paragraphs; code, tables and contents lists are left out."""
    lines = [line.strip() for line in plain(text).splitlines()]
    width = line_width(lines)
    kind, opened = Kind.PROSE, list[str]()
    for line, following in pairwise([*lines, ""]):
        if _RULE.match(line):
            yield from closed(Kind.HEADING if len(opened) == 1 else kind, opened)
        elif is_noise(line):
            yield from closed(kind, opened)
        elif heading := heading_text(
            line, following, width, starts=not opened or opened[-1].endswith((*_STOPS, ":"))
        ):
            yield from closed(kind, opened)
            yield Block(Kind.HEADING, heading)
        elif bullet := _BULLET.match(line):
            yield from closed(kind, opened)
            kind, opened = Kind.ITEM, [line[bullet.end() :]]
            continue
        else:
            opened.append(line)
            continue
        kind, opened = Kind.PROSE, []
    yield from closed(kind, opened)


def plain(text: str) -> str:
    """Take out what reads badly in an extract: code, link targets, emphasis, hyphens at line ends."""
    if "```" in text:
        text = _CODE_FENCE.sub("\n\n", text)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    return _HYPHENATED.sub("", text.replace("**", "").replace("`", "").replace("\u00ad", ""))


def line_width(lines: Sequence[str]) -> int:
    """The usual length of a full line, at least 60: shorter lines may be headings."""
    lengths = sorted(len(line) for line in lines[:2000] if line)
    return max(60, lengths[len(lengths) * 9 // 10]) if lengths else 60


def is_noise(line: str) -> bool:
    """Whether a line is empty, a table row or an entry of a table of contents."""
    if not line or line[0] == "|":
        return True
    return ("..." in line or ". . ." in line or "__" in line) and bool(_CONTENTS_ENTRY.search(line))


def heading_text(line: str, following: str, width: int, *, starts: bool) -> str:
    """The text of a heading, or "" where the line is none; `starts`: no sentence is open before it."""
    if line[0] == "#" and (mark := _MARK_HEADING.match(line)):
        return mark.group(1)
    if not starts or not is_title(line) or line[0].islower() or line[0] in "-*+•‣▪·":
        return ""
    alone = not following
    short = len(line) < width * 0.75 and not following[:1].islower()
    return line if alone or short else ""


def is_title(line: str) -> bool:
    """Whether a line could stand above a text: short, and not ended like a sentence."""
    return 0 < len(line) <= 120 and line.count(" ") < 15 and not line.rstrip().endswith(_NO_HEADING_END)


def closed(kind: Kind, lines: Sequence[str]) -> Iterator[Block]:
    """The block of these lines, if they hold anything."""
    text = " ".join(" ".join(lines).split())
    if "..." in text or "__" in text or ". . ." in text:
        text = " ".join(_LEADERS.sub(" ", text).split())
    if text:
        yield Block(kind, text)


def rankable(sentences: Sequence[str]) -> list[Sentence]:
    """Whole sentences of ordinary length, each once, at most `SENTENCE_CAP` spread over the whole text."""
    unique = list(dict.fromkeys(sentences))
    unique = [text for text in unique if 8 <= len(text) <= 400] or unique
    if len(unique) > SENTENCE_CAP:
        rest, room = unique[LEAD_KEPT:], SENTENCE_CAP - LEAD_KEPT
        unique = unique[:LEAD_KEPT] + [rest[i * len(rest) // room] for i in range(room)]
    split = (Sentence(text, tuple(words_of(text))) for text in unique)
    return [sentence for sentence in split if len(sentence.words) >= 4 and is_wordy(sentence.text)]


def is_wordy(text: str) -> bool:
    """Whether letters outweigh digits and signs: rows of figures are no sentences."""
    return sum(map(str.isalpha, text)) >= 0.6 * (len(text) - text.count(" "))


def fragments(lines: Sequence[str]) -> list[Sentence]:
    """The lines themselves, shortened, for a text without one whole sentence."""
    texts = dict.fromkeys(shortened(" ".join(line.split()), 300) for line in lines[:SENTENCE_CAP])
    return [Sentence(text, tuple(words_of(text))) for text in texts if text]


def similarities(bags: Sequence[Sequence[str]]) -> Matrix:
    """Cosine of the tf-idf vectors of every pair of sentences."""
    vocabulary: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for row, bag in enumerate(bags):
        rows.extend([row] * len(bag))
        # Seven letters are a crude stem that needs no language: "regulation" meets "regulations".
        columns.extend(vocabulary.setdefault(word[:7], len(vocabulary)) for word in bag)
    counts = np.zeros((len(bags), max(1, len(vocabulary))), dtype=np.float32)
    np.add.at(counts, (rows, columns), 1)
    spread = np.maximum(np.count_nonzero(counts, axis=0), 1)
    weights = counts * np.log(len(bags) / spread, dtype=np.float32) if len(bags) else counts
    lengths = np.sqrt(np.einsum("ij,ij->i", weights, weights))
    unit = weights / np.where(lengths > 0, lengths, 1)[:, None]
    product: Matrix = unit @ unit.T
    return product


def centrality(similarity: Matrix, damping: float = 0.85, threshold: float = 0.1) -> NDArray[np.float64]:
    """LexRank: how often a walk over similar sentences visits each one, with a bonus for the first few."""
    size = len(similarity)
    if not size:
        return np.zeros(0)
    links = np.where(similarity >= threshold, similarity, 0)
    np.fill_diagonal(links, 1)
    step = links / links.sum(axis=1, keepdims=True)
    rank = np.full(size, 1 / size)
    for _ in range(50):
        previous, rank = rank, (1 - damping) / size + damping * (rank @ step)
        if np.abs(rank - previous).max() < 1e-7:
            break
    # Rounded, so that equal sentences stay in the order of the text whatever the last bits say.
    bonus = 1 + 0.5 * 0.7 ** np.arange(size)
    return np.asarray(np.round(rank * bonus, 9), dtype=np.float64)


def choose(candidates: Sequence[Sentence], similarity: Matrix, order: Sequence[int], words: int) -> list[int]:
    """The best sentences that do not repeat each other, about `words` words, in the order of the text."""
    chosen: list[int] = []
    total = 0
    for index in order:
        size = len(candidates[index].words)
        if chosen and (total + size > words * 1.15 or similarity[index, chosen].max() > REDUNDANT):
            continue
        chosen.append(index)
        total += size
        if total >= words * 0.9:
            break
    return sorted(chosen)


def key_points(
    candidates: Sequence[Sentence], similarity: Matrix, order: Sequence[int], summary: Sequence[int]
) -> tuple[str, ...]:
    """Three to seven good sentences, short ones first; in a long text such as are not in the summary."""
    wanted = min(7, max(3, len(candidates) // 8))
    told = frozenset(summary) if len(candidates) - len(summary) > 2 * wanted else frozenset[int]()
    preferred = sorted(order, key=lambda i: (i in told, len(candidates[i].text) > 240))
    points: list[int] = []
    for index in preferred:
        if len(points) < wanted and not (points and similarity[index, points].max() > REDUNDANT):
            points.append(index)
    return tuple(shortened(finished(candidates[i].text), 240) for i in sorted(points))


def title_of(text: str, blocks: Sequence[Block], candidates: Sequence[Sentence]) -> str:
    """The subject line of a letter, else the first heading, else the first sentence."""
    if subject := _SUBJECT.search(text[:3000]):
        return shortened(subject.group(1).strip(), 100)
    for block in blocks[:5]:
        if block.kind is Kind.HEADING and sum(map(str.isalpha, block.text)) >= 2:
            return shortened(block.text, 100)
    return shortened(candidates[0].text, 80) if candidates else "Untitled"


def text_warnings(sentences: int) -> tuple[str, ...]:
    """Say so when there was little to choose from."""
    if sentences == 0:
        return ("The text has no whole sentence; this is its beginning.",)
    if sentences < 3:
        return (f"The text has only {sentences} sentence{'s' * (sentences > 1)}.",)
    return ()


def joined(sentences: Sequence[str]) -> str:
    """The sentences as one paragraph, without a space after a wide stop."""
    text = " ".join(sentences)
    return text.replace("。 ", "。").replace("！ ", "！").replace("？ ", "？")


def finished(text: str) -> str:
    """The text with a stop at its end, so that joined list items read as sentences."""
    return text if not text[-1:].isalnum() else f"{text}."


def shortened(text: str, limit: int) -> str:
    """The text, cut at a word and marked with an ellipsis where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    return f"{head[: head.rfind(' ')] if ' ' in head[limit // 2 :] else head}…"
