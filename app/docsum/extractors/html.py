"""Text of HTML: what trafilatura takes for the main text, else all visible text by the standard library.

Runs in a child process only: deep or huge markup costs any parser a lot.
"""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser

from docsum.extractors.sniff import Kind, byte_order_mark
from docsum.extractors.text import MAX_CHARACTERS, clean, count_letters, decode, refuse_tiny
from docsum.models import ExtractedText

#: Longest markup for trafilatura, bytes: it takes 0.7 s a megabyte.
MAX_TREE = 8_000_000

_ENOUGH = 200  # letters: a shorter main text is compared with all the text
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-z0-9_:.-]{2,40})", re.I)
_CHUNK = 65_536  # characters fed to the parser at once
_BLANK = re.compile(r"\s*\n\s*\n\s*")
_DECLARATION = re.compile(r"\s*<\?xml[^>]*>")

_UNSEEN = frozenset(("script", "style", "template", "noscript", "iframe", "object", "svg"))
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)
_BLOCK = re.compile(
    "address|article|aside|blockquote|br|caption|d[dlt]|div|fieldset|fig(caption|ure)|footer|form|h[1-6r]|header"
    "|li|main|nav|ol|option|p|pre|section|table|tbody|tfoot|thead|title|tr|ul"
)
_CELLS = frozenset(("td", "th"))
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)


def read(content: bytes, *, careful: bool = False, max_characters: int = MAX_CHARACTERS) -> ExtractedText:
    """The text of a page. `careful`: without lxml, which has died of it. Raises an ExtractError."""
    markup = _decode(content[: 4 * max_characters])
    text = "" if careful or len(content) > MAX_TREE else _main_text(markup)
    if count_letters(text, _ENOUGH) < _ENOUGH:
        everything = _all_text(markup, max_characters)
        text = everything if len(everything) > 2 * len(text) else text
    cut = len(text) > max_characters or len(content) > 4 * max_characters
    text = clean(text[:max_characters])
    refuse_tiny(text, len(content))
    return ExtractedText(text, Kind.HTML.value, truncated=cut)


def _decode(content: bytes) -> str:
    declared = _CHARSET.search(content[:4096])
    if declared is not None and byte_order_mark(content) is None:
        try:
            encoding = codecs.lookup(declared[1].decode()).name
            return content.decode("cp1252" if encoding == "iso8859-1" else encoding)  # as browsers do
        except (LookupError, UnicodeDecodeError):
            pass  # it lies: look for ourselves
    return decode(content)


def _main_text(markup: str) -> str:
    import lxml.html
    import trafilatura

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.document_fromstring(_DECLARATION.sub("", markup, 1).encode(), parser=parser)
        for element in list(tree.iterdescendants()):
            hidden = _is_hidden(element.get("hidden"), element.get("style"))
            if hidden or element.tag in _UNSEEN:
                element.drop_tree()
        heading = tree.find(".//h1") if tree.find(".//h1") is not None else tree.find(".//title")
        title = " ".join(heading.text_content().split()) if heading is not None else ""
        text = trafilatura.extract(tree, include_comments=False, favor_recall=True) or ""
    except Exception:  # whatever a library makes of odd markup: the standard library's parser needs no tree
        return ""
    return f"{title}\n\n{text}" if text and title not in text else text


def _is_hidden(hidden: str | None, style: str | None) -> bool:
    return hidden is not None or (style is not None and _INVISIBLE.search(style) is not None)


def _all_text(markup: str, max_characters: int) -> str:
    parser = _Text()
    for start in range(0, len(markup), _CHUNK):
        parser.feed(markup[start : start + _CHUNK])
        if parser.characters > max_characters:
            break
    else:
        parser.close()
    return _BLANK.sub("\n\n", "".join(parser.parts))


class _Text(HTMLParser):
    """Collects the visible text, a line a block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.characters = 0
        self._unseen = ""  # the tag inside which nothing is seen
        self._depth = 0  # of that tag in itself

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unseen:
            self._depth += tag == self._unseen
            return
        named = dict(attrs)
        hidden = _is_hidden("" if "hidden" in named else None, named.get("style"))
        if tag not in _VOID and (hidden or tag in _UNSEEN):
            self._unseen, self._depth = tag, 1
        elif _BLOCK.fullmatch(tag):
            self.parts.append("\n")
        elif tag in _CELLS:
            self.parts.append("\t")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            self._depth -= tag == self._unseen
            self._unseen = self._unseen if self._depth else ""
        elif _BLOCK.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            words = " ".join(data.split())
            if words:
                lead, trail = " " * data[0].isspace(), " " * data[-1].isspace()
                self.parts.append(lead + words + trail)
                self.characters += len(words)
