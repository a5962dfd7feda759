"""Links that the document does not contain are taken out of an answer: by them an injection gets data out.

A link is an address with a scheme, `www.`, an e-mail address, a domain with a path or a well-known ending, or
the target of a Markdown link. A link in the answer may be shorter than in the document, never another one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

from docsum.summarisers.prompt import Parsed
from docsum.summarisers.quality.source import Source, places

_MOST_FOREIGN, _MOST_LINKS = 20, 200  # an answer with so many is no summary: further ones go without a look

_GOES_ON = (
    r"""[^\s<>"'`(){}|\\^\[\]…\x00\x01\u2018-\u201f\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]"""
)
_REST = rf"(?:{_GOES_ON}|\({_GOES_ON}*\))"
_LABEL = r"[a-z0-9_\u00c0-\u024f\u0370-\u052f-]{1,63}"
# All quantifiers are bounded or start at the edge of a run, so that no answer makes this slow.
_LINK = re.compile(
    rf"(?:[a-z][a-z0-9+.-]{{1,20}}://|\bmailto:|\bjavascript:|\bdata:\w+/|\bwww\d?\.){_REST}+"
    rf"|(?<![\w.+-])[\w.+-]+@(?:{_LABEL}\.){{1,10}}[^\W_][\w-]{{1,62}}"
    rf"|(?<![\w@-])(?:{_LABEL}\.){{1,10}}(?:[^\W\d_]{{2,24}}(?::\d{{1,5}})?/{_REST}*"
    r"|(?:com|net|org|info|biz|io|ru|cn|xyz|top|site|online|click|link)(?![\w@-]|\.\w))",
    re.IGNORECASE,
)
_HINT = re.compile(r"\w\.[^\W\d_]|[@:(][^\s\d]|\]\(|www", re.IGNORECASE)  # no link is without one
_TRAILING = ".,;:!?*_~/»"

# While a text is worked on: \0 is shown as an ellipsis, \1 only where its neighbours would become one word,
# and so perhaps a new link. `parse` leaves neither in an answer.
_MARKDOWN = re.compile(r"!?\[([^\[\]]*)\]\(([^()\s]*)(?:\s[^()]*)?\)")
_AUTOLINK = re.compile(r"<\x00>")
_TAG = re.compile(r"<[^<>]*\x00[^<>]*>|</a>")
_IN_BRACKETS = re.compile(r"[ \t]*(?:\(\s*[\x00\x01]\s*\)|\[\s*[\x00\x01]\s*\])")
_NEEDLESS = re.compile(r"\x01+(?=\s|\Z|[.,;:!?)]+(?:\s|\Z))|(?<=\s)\x01+|\A\x01+")
_SHOWN = re.compile(r"[\x00\x01]+(?:…+|\.(?=\s|\Z))?")
_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*://|mailto:)?/*(?:www\.)?")
_BLANKS = re.compile(r"[ \t]{2,}")


def without_foreign_links(parsed: Parsed, source: Source) -> Parsed:
    """The answer with "…" in place of every link that the document lacks; the same object if there is none.

    Key points that were nothing else are dropped.
    """
    judge = _Judge(source)
    clean = replace(
        parsed,
        title=judge.clean(parsed.title),
        summary=judge.clean(parsed.summary),
        key_points=tuple(map(judge.clean, parsed.key_points)),
        language=judge.clean(parsed.language),
        document_type=judge.clean(parsed.document_type),
        warnings=tuple(map(judge.clean, parsed.warnings)),
    )
    if clean == parsed:
        return parsed
    points = tuple(point for point in clean.key_points if any(map(str.isalnum, point)))
    return replace(clean, key_points=points)


class _Judge:
    """Looks up each link once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[tuple[str, bool], bool] = {}
        self._foreign = 0

    def clean(self, text: str) -> str:
        if not _HINT.search(text):
            return text
        marked = _LINK.sub(self._link, text)
        for _ in range(3):  # a picture within a link
            before, marked = marked, _MARKDOWN.sub(self._markdown, marked)
            if before == marked:
                break
        if marked == text:
            return text
        marked = _TAG.sub("\1", _AUTOLINK.sub("\0", marked))
        marked = _NEEDLESS.sub("", _IN_BRACKETS.sub("\1", marked))
        return _BLANKS.sub(" ", _SHOWN.sub("…", marked)).strip()

    def _link(self, match: re.Match[str]) -> str:
        link = match[0].rstrip(_TRAILING)
        cut = match.string.startswith("…", match.end())
        return match[0] if self._stands(link, cut=cut) else "\0" + match[0][len(link) :].lstrip("/")

    def _markdown(self, match: re.Match[str]) -> str:
        text, target = match.groups()
        foreign = "\0" in target or (any(sign in target for sign in ":/.#?") and not self._stands(target))
        return f"{text}\1" if foreign else match[0]

    def _stands(self, link: str, *, cut: bool = False) -> bool:
        if (known := self._known.get((link, cut))) is not None:
            return known
        many = len(self._known) == _MOST_LINKS or self._foreign == _MOST_FOREIGN
        stands = not many and has_link(self._source, link, cut=cut)
        if not many:
            self._known[link, cut] = stands
            self._foreign += not stands
        return stands


def has_link(source: Source, link: str, *, cut: bool = False) -> bool:
    """Whether the link, without scheme and `www.`, stands in the document, perhaps broken at line ends.

    Of one that the answer has cut off in its path the rest may follow there.
    """
    link = link.lower().rstrip(_TRAILING)
    bare = _SCHEME.sub("", link, count=1)
    # "http://intranet" is no link of a document that merely has the word.
    key = (bare if "." in bare else link).encode(errors="replace").lower()
    if not key:
        return False
    text = source.lowered
    for start in islice(places(text, key[:6]), 1_000):
        end = _end_of(text, start, key)
        if end and _begins(text, start) and ((cut and b"/" in key) or _ends(text, end)):
            return True
    return False


def _end_of(text: bytes, start: int, key: bytes) -> int:
    """Where `key` ends when it stands at `start`, line breaks within it allowed; 0 when it does not."""
    if text.startswith(key, start):
        return start + len(key)
    at = start
    for byte in key:
        if text[at : at + 1] in (b"\n", b" ", b"\t"):
            rest = text[at : at + 100].lstrip()
            if b"\n" not in text[at : at + 100 - len(rest)]:
                return 0
            at += len(text[at : at + 100]) - len(rest)
        if at >= len(text) or text[at] != byte:
            return 0
        at += 1
    return at


def _begins(text: bytes, start: int) -> bool:
    before = text[max(0, start - 4) : start]
    return before.endswith(b"www.") or re.search(rb"[\w@.+-]\Z", before) is None


def _ends(text: bytes, end: int) -> bool:
    return re.match(rb"[\w%~@-]|\.\w", text[end : end + 2]) is None
