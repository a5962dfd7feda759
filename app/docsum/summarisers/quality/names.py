"""Names of a summary that stand nowhere in the document: capitalised words and acronyms.

False silence is preferred to a false alarm: inflected forms, acronyms of what is written out and the reverse
count as found; first words of sentences and headline-like sentences are not looked at; where every noun has a
capital, only two or more new words in a row are reported.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

from docsum.summarisers.quality.source import Source, places

#: Languages in which a capital within a sentence means a name; in German it means a noun.
CASED = frozenset(
    "af bg bs ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv mk ms nb nl nn no pl pt ro ru sk "
    "sl sq sr sv tr uk".split()
)

_LISTED = 5
_MOST_LOOK_UPS = 60  # words of a summary; each takes up to 5 ms in 3 MB
_LONGEST = 300_000  # bytes of a document that patterns search; in a longer one what they might find is there

_SENTENCE = re.compile(r"[.!?…:;•\n]+\s+|[\"“”„«»(\[–—]\s*")
_WORD = re.compile(r"[^\W\d_]+")
_JOINT = re.compile(r"[\s'’&.-]*")
_ROMAN = re.compile("[IVXLCM]+")
_ACCENTED = re.compile(rb"[aceilnosuyz]")
_SMALL = rb"(?:of|the|and|for|in|on|to|de|la|le|les|des|du|et|y|del|e|di|der|die|das|f\xc3\xbcr|und)"

#: Capitalised without being anybody's name, or written in many ways.
_COMMON = frozenset(
    """
    january february march april may june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday
    januar jänner februar feber märz mai juni juli oktober dezember
    montag dienstag mittwoch donnerstag freitag samstag sonnabend sonntag
    jan feb mar apr jun jul aug sep sept oct okt nov dec dez mon tue wed thu fri sat sun am pm
    mr mrs ms dr prof professor sir inc ltd llc gmbh ag co corp st no nr
    euro euros dollar dollars pound pounds yen franc francs eur usd gbp chf jpy cny rmb
    internet web email english german french spanish italian european american british chinese japanese
    russian eu un us usa uk ai it tv ceo cfo cto ceos hr pr ok faq pdf url api id vat gdp covid
    millionen milliarden prozent mitte anfang ende teil uhr
    """.split()
)


def names_not_in(source: Source, texts: Iterable[str], language: str) -> list[str]:
    """At most five names of the texts, as written there, that the document in the same language lacks."""
    missing: dict[str, None] = {}
    search = _Search(source)
    for run in _runs(texts):
        for name in _unknown(run, search, nouns=language == "de"):
            missing[name] = None
        if len(missing) >= _LISTED or search.count > _MOST_LOOK_UPS:
            break
    return list(missing)[:_LISTED]


def _unknown(run: Sequence[str], search: _Search, *, nouns: bool) -> list[str]:
    if len(run) > 1 and search.has_acronym("".join(word[0] for word in run)):
        return []
    known = [search.has(word) for word in run]
    pairs = list(zip(run, known, strict=True))
    if nouns and (len(run) < 2 or any(known)):
        return [word for word, found in pairs if not found and _is_acronym(word)]
    groups = groupby(pairs, key=lambda pair: pair[1])
    return [" ".join(word for word, _ in group) for found, group in groups if not found]


def _runs(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    """Capitalised words in a row, within a sentence; acronyms also at its start."""
    for sentence in (part for text in texts for part in _SENTENCE.split(text)):
        if sentence[1:].islower():
            continue  # the most common one: no capital but its first letter
        words = list(_WORD.finditer(sentence))
        long = [word[0] for word in words if len(word[0]) > 3]
        if sum(word[0].isupper() for word in long) > 0.8 * len(long):
            continue  # a headline: in capitals, or Every Word With One
        run: list[str] = []
        end = 0
        for number, word in enumerate(words):
            named = _is_acronym(word[0]) or (number > 0 and len(word[0]) > 1 and word[0][0].isupper())
            if run and not (named and _JOINT.fullmatch(sentence, end, word.start())):
                yield run
                run = []
            if named:
                run.append(word[0])
            end = word.end()
        if run:
            yield run


def _is_acronym(word: str) -> bool:
    return 2 <= len(word) <= 6 and word.isupper()


class _Search:
    """Looks for words in a document, once for each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, bool] = {}

    @property
    def count(self) -> int:
        """Words that were looked for."""
        return len(self._known)

    def has(self, word: str) -> bool:
        if word not in self._known:
            self._known[word] = self._find(word)
        return self._known[word]

    def _find(self, word: str) -> bool:
        word = word[:-1] if word[:-1].isupper() and word.endswith("s") else word  # NGOs
        if word in self._source.text or word.casefold() in _COMMON:
            return True
        if _is_acronym(word):
            if _ROMAN.fullmatch(word) or self._has_expansion(word):
                return True
            if len(word) < 4:  # as a part of a word it is in every text
                return self.has_acronym(word.lower()) or self._has(".".join(word))
        stem = word.removesuffix("s") if len(word) < 6 else word[: max(5, len(word) - 3)]
        return any(map(self._has, {stem, _without_accents(stem)})) or self._has_accented(stem)

    def has_acronym(self, acronym: str) -> bool:
        """Whether it stands there, as written and as a word of its own."""
        text, end = self._source.text, len(acronym)
        return any(
            not text[max(0, at - 1) : at].isalpha() and not text[at + end : at + end + 1].isalpha()
            for at in islice(places(text, acronym), 10_000)
        )

    def _has_expansion(self, acronym: str) -> bool:
        """Whether words with these initials follow each other; in a long document nobody looks."""
        text = self._source.plain
        if len(text) > _LONGEST or not acronym.isascii():
            return True
        words = (rb"%s[^\W\d_]+" % letter.lower().encode() for letter in acronym)
        return re.search(rb"\b" + (rb"[\s-]+(?:%s\s+)?" % _SMALL).join(words), text) is not None

    def _has_accented(self, stem: str) -> bool:
        """Whether Zurich stands there as Zürich."""
        text = self._source.plain
        if text.isascii() or not stem.isascii() or len(text) > _LONGEST:
            return False
        return re.search(_ACCENTED.sub(b"(?:\\g<0>|[\xc3-\xc5].)", stem.lower().encode()), text) is not None

    def _has(self, form: str) -> bool:
        # Only A to Z are in lower case there, so the other letters are tried both ways.
        cases = (form, form.lower(), form.upper())
        return any(
            case in self._source.plain for case in {each.encode(errors="replace").lower() for each in cases}
        )


def _without_accents(word: str) -> str:
    return "".join(sign for sign in unicodedata.normalize("NFKD", word) if not unicodedata.combining(sign))
