"""Text of PDF pages: pdfium first, the fastest and smallest; pypdf where that fails or finds nothing.

Runs in a child process only: pdfium may abort, hang or take gigabytes, and is not safe in threads.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from docsum.errors import (
    DocumentBomb,
    EmptyDocument,
    Encrypted,
    ExtractError,
    NotADocument,
    Scanned,
    Undecodable,
)
from docsum.extractors.sniff import Kind
from docsum.extractors.text import MAX_CHARACTERS, clean, count_letters, refuse_tiny
from docsum.models import ExtractedText

#: Pages after these are cut and `truncated` set.
MAX_PAGES = 5_000

_LETTERS_PER_PAGE = 10  # fewer on average: the pages are pictures with a stamp on them, or nothing
_PAGES_SEARCHED = 20  # for pictures


@dataclass(frozen=True, slots=True)
class _Caps:
    pages: int
    characters: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What one library found in the document."""

    text: str
    pages: int
    read: int  # pages looked at
    unreadable: int  # of these
    truncated: bool
    pictures: bool = False  # looked for only where there is hardly any text

    @property
    def convincing(self) -> bool:
        expected = _LETTERS_PER_PAGE * self.read
        return count_letters(self.text, expected) >= expected > 0


def read(
    content: bytes, *, careful: bool = False, max_pages: int = MAX_PAGES, max_characters: int = MAX_CHARACTERS
) -> ExtractedText:
    """The text of a PDF. `careful`: without pdfium, which has died of it. Raises an ExtractError."""
    caps = _Caps(max_pages, max_characters)
    found = _by_pypdf(content, caps) if careful else _by_both(content, caps)
    return _judge(found, len(content))


def _by_both(content: bytes, caps: _Caps) -> _Found:
    try:
        first = _by_pdfium(content, caps)
    except Undecodable:
        return _by_pypdf(content, caps)
    if first.convincing:
        return first
    try:
        second = _by_pypdf(content, caps)
    except ExtractError:
        return first
    return second if len(second.text) > len(first.text) else first


def _judge(found: _Found, size: int) -> ExtractedText:
    pages = "1 page" if found.pages == 1 else f"{found.pages:,} pages"
    if found.unreadable * 2 > found.read:
        raise Undecodable(f"{found.unreadable} of {pages} cannot be read.")
    if found.pictures and not found.convincing:
        letters = count_letters(found.text, 1_000)
        raise Scanned(f"{pages}, {f'{letters} letters of' if letters else 'no'} text: looks like a scan.")
    if not found.text:
        raise EmptyDocument(f"{pages} without any text.")
    refuse_tiny(found.text, size)
    return ExtractedText(found.text, Kind.PDF.value, pages=found.pages, truncated=found.truncated)


def _found(texts: Iterator[str | None], pages: int, caps: _Caps) -> _Found:
    """Joins the pages with a blank line between, up to the caps; None is a page that cannot be read."""
    parts: list[str] = []
    read = unreadable = characters = 0
    for text in texts:
        read += 1
        try:
            part = clean(text) if text is not None else None
        except NotADocument:  # a font without a mapping to characters
            part = None
        if part is None:
            unreadable += 1
        elif part:
            parts.append(part[: caps.characters - characters])
            characters += len(part)
        if characters > caps.characters or read == caps.pages:
            break
    truncated = characters > caps.characters or read < pages
    return _Found("\n\n".join(parts), pages, read, unreadable, truncated)


# -- pdfium --------------------------------------------------------------------------------------------------


def _by_pdfium(content: bytes, caps: _Caps) -> _Found:
    import pypdfium2
    from pypdfium2 import raw

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise Encrypted("The PDF needs a password.") from error
        raise Undecodable("The PDF is damaged: it cannot be opened.") from error
    with document:
        pages = len(document)
        found = _found((_pdfium_text(document, number) for number in range(pages)), pages, caps)
        searched = range(0 if found.convincing else min(pages, _PAGES_SEARCHED))
        return replace(found, pictures=any(_has_picture(document, number) for number in searched))


def _pdfium_text(document: Any, number: int) -> str | None:  # Any: an untyped library
    import pypdfium2

    try:
        page = document[number]
        text: str = page.get_textpage().get_text_bounded()
        page.close()
    except pypdfium2.PdfiumError:
        return None
    return text.replace("\ufffe", "")  # pdfium's mark for a hyphen at the end of a line


def _has_picture(document: Any, number: int) -> bool:
    import pypdfium2
    from pypdfium2 import raw

    try:
        page = document[number]
        found = next(page.get_objects(filter=(raw.FPDF_PAGEOBJ_IMAGE,), max_depth=3), None) is not None
        page.close()
    except pypdfium2.PdfiumError:
        return False
    return found


# -- pypdf ---------------------------------------------------------------------------------------------------


def _by_pypdf(content: bytes, caps: _Caps) -> _Found:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, WrongPasswordError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Encrypted("The PDF needs a password.")
        pages = len(reader.pages)
        found = _found((_pypdf_text(page) for page in reader.pages), pages, caps)
        searched = range(0 if found.convincing else min(pages, _PAGES_SEARCHED))
        return replace(found, pictures=any(_names_picture(reader.pages[number]) for number in searched))
    except (MemoryError, ExtractError):
        raise
    except LimitReachedError as error:
        raise DocumentBomb("The PDF unpacks to far more than it should.") from error
    except (DependencyError, FileNotDecryptedError, WrongPasswordError) as error:
        raise Encrypted("The PDF needs a password.") from error
    except Exception as error:  # a damaged PDF makes pypdf raise nearly anything
        raise Undecodable("The PDF is damaged: it cannot be opened.") from error


def _pypdf_text(page: Any) -> str | None:  # Any: pypdf raises and returns loosely typed things
    from pypdf.errors import LimitReachedError

    try:
        text: str = page.extract_text()
    except (MemoryError, LimitReachedError):
        raise
    except Exception:  # as above, for one page
        return None
    return text


def _names_picture(page: Any) -> bool:
    try:
        named = page["/Resources"]["/XObject"].values()
        return any(item.get_object().get("/Subtype") == "/Image" for item in named)
    except Exception:  # a page without resources, or damaged ones
        return False
