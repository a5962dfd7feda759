"""What the reader may have of an answer: it is checked against its document, without asking another model.

`review` takes out links that the document lacks and what exceeds the length, and says in `warnings` what else
looks wrong: invented numbers and names, the wrong language, a length far from the one asked for, a document
that gives instructions. Measured on one core: 1 ms with a document of 10 KB, 60 ms with one of 3 MB, 130 ms
where many numbers and names are invented.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from docsum.models import Recipe
from docsum.summarisers.prompt import Parsed
from docsum.summarisers.quality import injections, language
from docsum.summarisers.quality.figures import numbers_not_in
from docsum.summarisers.quality.links import without_foreign_links
from docsum.summarisers.quality.names import CASED, names_not_in
from docsum.summarisers.quality.source import Source

FOREIGN_LINKS = "Links that the document does not contain were taken out."
NO_KEY_POINTS = "The model gave no key points."
INJECTION = "The document contains text that tries to give instructions to a model."

_MOST_WARNINGS = 20
_MOST_KEY_POINTS = 7
_SLACK = 20  # words that a summary may always have more or fewer than asked for


def review(parsed: Parsed, source: str, recipe: Recipe) -> Parsed:
    """The answer as the reader may have it: no field longer than it came, and the same if reviewed again.

    `source` is the text that the model was given, "" where it was given pictures: then no number or name is
    doubted, and no link stays. What the recipe's instructions say is no invention.
    """
    document = Source(source)
    known = Source(f"{source}\n{recipe.instructions}") if recipe.instructions else document
    linked = without_foreign_links(parsed, document)
    summary, length = _of_length(linked.summary, recipe.words, source)
    kept = replace(linked, summary=summary, key_points=linked.key_points[:_MOST_KEY_POINTS])
    texts = (kept.summary, *kept.key_points)
    spoken = language.detect(kept.summary)
    written = language.detect_document(source, spoken)
    same = spoken in CASED and language.alike(spoken, written)
    numbers = numbers_not_in(known, (kept.title, *texts), written) if source else ()
    ours = (
        FOREIGN_LINKS if linked is not parsed else "",
        length,
        _listed("Not found in the document", numbers),
        _listed("Names not found in the document", names_not_in(known, texts, spoken) if same else ()),
        _language(spoken, written, recipe.language),
        "" if kept.key_points else NO_KEY_POINTS,
        INJECTION if injections.found_in(document) else "",
    )
    return replace(kept, warnings=_merged(kept.warnings, ours))


def _listed(what: str, tokens: Iterable[str]) -> str:
    listed = ", ".join(tokens)
    return f"{what}: {listed}." if listed else ""


def _language(spoken: str, written: str, wanted: str) -> str:
    """A warning where the summary's language is known and not the one it should be."""
    asked = written if wanted == "same" else language.code_of(wanted)
    if not spoken or not asked or language.alike(spoken, asked):
        return ""
    name, other = language.NAMES[spoken], language.NAMES[asked]
    if wanted == "same":
        return f"The summary is in {name}; the document is in {other}."
    return f"The summary is in {name}; {other} was asked for."


def _merged(own: Iterable[str], ours: Iterable[str]) -> tuple[str, ...]:
    """The model's own first, but never in place of ours: an injection could have it write twenty."""
    kept = list(dict.fromkeys(own))
    new = [warning for warning in ours if warning and warning not in kept]
    return (*kept[: _MOST_WARNINGS - len(new)], *new)


# -- length --------------------------------------------------------------------------------------------------

# In scripts without blanks two characters count as a word; in those of South East Asia, where marks are
# characters of their own, five do.
_WIDE = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(rf"([{_WIDE}])|([{_ASIAN}])|[^\s{_WIDE}{_ASIAN}]+")
_WEIGHTS = (10, 5, 2)  # tenths of a word: of a run of letters, a wide character, an Asian one

_STOP = re.compile(r"(?:[.!?…।؟۔]+[\"'“”‘’«»)\]]*(?=\s|\Z)|[。！？]+[」』”）]*)")
_NO_STOP = re.compile(
    r"(?:\b(?:\w|\d{1,2}|mr|mrs|ms|dr|prof|st|no|nr|vs|ca|art|abs|fig|vol|bzw|inc|ltd|approx|z\.\s?b|e\.g|i\.e))\.\Z",
    re.IGNORECASE,
)


def _of_length(summary: str, wanted: int, source: str) -> tuple[str, str]:
    """The summary, cut where it is far too long, and a warning where it is far from what was wanted."""
    longest = max(wanted * 3 // 2, wanted + _SLACK)
    words, cut = _measured(summary, longest)
    if cut is not None:
        sentence = f"The model wrote {words} words where {wanted} were asked for; the rest was left out."
        return _shortened(summary[:cut]), sentence
    too_short = words < min(wanted / 3, wanted - _SLACK)
    if too_short and _measured(source[: 60 * wanted], longest)[0] > 4 * wanted:
        return summary, f"The model wrote {words} words where {wanted} were asked for."
    return summary, ""


def _measured(text: str, longest: int) -> tuple[int, int | None]:
    """The words of a text, and where it exceeds so many."""
    if text.isascii():  # the quick way, enough for most
        count = sum(word[0].isalnum() or any(map(str.isalnum, word)) for word in text.split())
        if count <= longest:
            return count, None
    tenths, cut = 0, None
    for match in _WORD.finditer(text):
        if match.lastindex or any(map(str.isalnum, match[0])):
            tenths += _WEIGHTS[match.lastindex or 0]
            if cut is None and tenths > 10 * longest:
                cut = match.start()
    return tenths // 10, cut


def _shortened(head: str) -> str:
    """Up to the last end of a sentence, or to the last word where no sentence ends."""
    for stop in reversed(list(_STOP.finditer(head))):
        if not _NO_STOP.search(head, max(0, stop.end() - 8), stop.end()):
            return head[: stop.end()]
    return f"{head.rstrip()}…"
