"""Text of HTML: what trafilatura takes for the main text, else all visible text by the standard library.

Headings come out as Markdown's, since long texts are split at them.

Runs in a child process only: deep or huge markup costs any parser a lot.
"""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

from docsum.extractors.charset import decode_declared
from docsum.extractors.sniff import Kind
from docsum.extractors.text import MAX_CHARACTERS, clean, count_letters, decode, refuse_tiny
from docsum.models import ExtractedText

#: Longest markup for trafilatura, bytes: it takes 0.7 s a megabyte.
MAX_TREE = 8_000_000

_ENOUGH = 200  # letters: a shorter main text is compared with all the text
_MAIN_SHARE = 0.5  # of the body's letters: less of them, and the main text has lost chapters
_SEEN_SHARE = 0.1  # of all letters: less of them, and the page waits for its script
_LINKS_SHARE = 0.6  # of the letters of a list, which then is a menu
_MENU = 3_000  # letters: a longer list of links is what the page is for
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-z0-9_:.-]{2,40})", re.I)
_CHUNK = 4_000_000  # characters fed to the parser at once: it begins an unfinished tag anew each time
_BLANK = re.compile(r"\s*\n\s*\n\s*")
_EMPTY_HEADING = re.compile(r"^#+[ \t]*$", re.M)
_PERMALINK = re.compile("[ \\t]*[¶\uf0c1]+[ \\t]*$", re.M)
_NO_LETTERS = re.compile(r"[\W_]+")
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_DECLARATION = re.compile(r"\s*<\?xml[^>]*>")

_UNSEEN = frozenset(("script", "style", "template", "noscript", "iframe", "object", "svg"))
_AROUND = ("head", "nav", "footer", "aside", "form", "button", "select", "dialog")
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)
_BLOCK = re.compile(
    "address|article|aside|blockquote|br|caption|d[dlt]|div|fieldset|fig(caption|ure)|footer|form|h[1-6r]|header"
    "|li|main|nav|ol|option|p|pre|section|table|tbody|tfoot|thead|title|tr|ul"
)
_CELLS = frozenset(("td", "th"))
_INVISIBLE = re.compile(
    r"(?<![\w-])(?:display\s*:\s*none|visibility\s*:\s*hidden"
    r"|(?:font-size|opacity)\s*:\s*0+(?:\.0+)?\s*(?:[a-z]+|%)?\s*(?:[;!]|$))",
    re.I,
)


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
    text = decode_declared(content, declared[1]) if declared else None
    return decode(content) if text is None else text


def _main_text(markup: str) -> str:
    import lxml.html
    import trafilatura

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.document_fromstring(_DECLARATION.sub("", markup, 1).encode(), parser=parser)
        for element in list(tree.iter(*_UNSEEN)):
            element.drop_tree()
        tree = _seen(tree)
        body = _body(tree)
        heading = tree.find(".//h1") if tree.find(".//h1") is not None else tree.find(".//title")
        title = _PERMALINK.sub("", " ".join(heading.text_content().split())) if heading is not None else ""
        text = trafilatura.extract(tree, include_comments=False, favor_recall=True, output_format="markdown")
        text = (text or "").replace("\\_", "_")  # identifiers are no emphasis
        expected = _letters(body.text_content())
        if len(_letters(text)) < _MAIN_SHARE * len(expected):
            text = _all_text(lxml.html.tostring(body, encoding="unicode"), MAX_CHARACTERS)
    except Exception:  # whatever a library makes of odd markup: the standard library's parser needs no tree
        return ""
    text = _PERMALINK.sub("", text)
    return f"# {title}\n\n{text}" if text and title and _letters(title) not in _letters(text) else text


def _seen(tree: Any) -> Any:  # Any: an untyped library
    """The tree without what is hidden, unless that is nearly all: such a page shows it by a script."""
    seen = copy.deepcopy(tree)
    for element in seen.xpath("//*[@hidden or @style]"):
        if _is_hidden(element.get("hidden"), element.get("style")) and element.getparent() is not None:
            element.drop_tree()
    enough = _SEEN_SHARE * len(_letters(tree.text_content()))
    return seen if len(_letters(seen.text_content())) >= enough else tree


def _body(tree: Any) -> Any:
    """A copy of the tree without what stands around the text: menus, forms, footers."""
    body = copy.deepcopy(tree)
    for element in list(body.iter(*_AROUND)):
        element.drop_tree()
    for element in list(body.iter("ul", "ol")):
        letters = len(_letters(element.text_content()))
        linked = sum(len(_letters(link.text_content())) for link in element.iter("a"))
        if element.getparent() is not None and letters < _MENU and linked > _LINKS_SHARE * letters:
            element.drop_tree()
    return body


def _letters(text: str) -> str:
    return _NO_LETTERS.sub("", text)


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
    return _BLANK.sub("\n\n", _EMPTY_HEADING.sub("", "".join(parser.parts)))


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
        elif tag in _HEADINGS:
            self.parts.append(f"\n\n{'#' * int(tag[1])} ")
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
        elif tag in _HEADINGS:
            self.parts.append("\n\n")
        elif _BLOCK.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            words = " ".join(data.split())
            if words:
                after_mark = bool(self.parts) and self.parts[-1].endswith("# ")
                lead, trail = " " * (data[0].isspace() and not after_mark), " " * data[-1].isspace()
                self.parts.append(lead + words + trail)
                self.characters += len(words)
