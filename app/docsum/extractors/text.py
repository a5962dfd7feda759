"""Plain text and Markdown, and what every kind's text must pass before it is worth a summary."""

from __future__ import annotations

import re
from itertools import islice

from docsum.errors import EmptyDocument, NotADocument
from docsum.extractors import charset
from docsum.extractors.sniff import Kind
from docsum.models import Document, ExtractedText

#: Longest text that leaves an extractor; the rest is cut and `truncated` set.
MAX_CHARACTERS = 12_000_000
#: A character takes at most four bytes: nothing beyond can be part of the text.
MAX_BYTES = 4 * MAX_CHARACTERS

_JUNK_ASCII = bytes({*range(0x20), 0x7F} - {0x09, 0x0A})
_JUNK = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]+")
_LETTER = re.compile(r"[^\W_]")
_JUNK_ALLOWED = 0.1  # share of characters
_ASCII_LETTER = re.compile("[A-Za-z]")
_FOREIGN_LATIN = re.compile("[\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u024f]")
_FOREIGN_ALLOWED = 0.5  # to a letter of ASCII: noise has more, Vietnamese 0.3
_FOREIGN_AT_LEAST = 10
_SAMPLE = 65_536

#: (size in bytes, letters and digits): a file of that size with less than that is no document.
_TINY = ((10_000, 20), (1_000_000, 100))


def read(content: bytes, kind: Kind = Kind.TEXT, max_characters: int = MAX_CHARACTERS) -> ExtractedText:
    """The text of a file that is one. Raises EmptyDocument or NotADocument."""
    text = decode(content[: 4 * max_characters])
    cut = len(content) > 4 * max_characters or len(text) > max_characters
    text = clean(text[:max_characters])
    refuse_tiny(text, len(content))
    return ExtractedText(text, kind.value, truncated=cut)


def read_document(document: Document, kind: Kind) -> ExtractedText:
    """`read` for a document that may lie in a file; blocks. Raises EmptyDocument or NotADocument."""
    return read(beginning_of(document, MAX_BYTES + 1), kind)


def beginning_of(document: Document, size: int) -> bytes:
    """Up to so many bytes from the start of a document."""
    if document.content is not None:
        return document.content[:size]
    assert document.path is not None, "a document is in memory or in a file"
    with document.path.open("rb") as file:
        return file.read(size)


def decode(content: bytes) -> str:
    """The text in whatever encoding it is. Raises NotADocument for garbage."""
    text = charset.decode(content)
    if not charset.is_utf8(content):
        _refuse_garbage(text)
    return text


def clean(text: str) -> str:
    """Line feeds end lines; no control characters, no lone surrogates. Raises NotADocument for many."""
    text = "\n".join(text.splitlines())  # which knows all line ends of Unicode
    cleaned = _clean_ascii(text) if text.isascii() else _JUNK.sub("", text)
    if len(text) - len(cleaned) > _JUNK_ALLOWED * len(text):
        raise NotADocument("The content is mostly unprintable characters.")
    return cleaned.strip()


def _clean_ascii(text: str) -> str:
    """What the pattern does, in a twentieth of its time."""
    return text.encode().translate(None, _JUNK_ASCII).decode()


def refuse_tiny(text: str, size: int) -> None:
    """Raises EmptyDocument: a summary of next to nothing would be invented."""
    expected = max((few for large, few in _TINY if size >= large), default=1)
    letters = count_letters(text, expected)
    if not letters:
        raise EmptyDocument("There is no text in the document.")
    if letters < expected:
        be = "is" if letters == 1 else "are"
        raise EmptyDocument(f"There {be} only {letters_of(letters)} of text in {size:,} bytes.")


def count_letters(text: str, at_most: int) -> int:
    """Letters and digits of any script, counted up to a limit."""
    return sum(1 for _ in islice(_LETTER.finditer(text), at_most))


def letters_of(count: int) -> str:
    return "1 letter" if count == 1 else f"{count:,} letters"


def _refuse_garbage(text: str) -> None:
    sample = text[:_SAMPLE]
    strange = sum(
        1
        for character in sample
        if not (character.isprintable() or character.isspace()) or character == "\ufffd"
    )
    foreign = len(_FOREIGN_LATIN.findall(sample))
    mixed = foreign > _FOREIGN_AT_LEAST and foreign > _FOREIGN_ALLOWED * len(_ASCII_LETTER.findall(sample))
    if mixed or strange > _JUNK_ALLOWED * len(sample):
        raise NotADocument("The content does not read as text in any encoding.")
