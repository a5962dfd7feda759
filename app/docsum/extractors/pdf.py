"""Text of PDF pages: pdfium first, the fastest and smallest; pypdf where that fails or finds nothing.

Runs in a child process only: pdfium may abort, hang or take gigabytes, and is not safe in threads.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
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
from docsum.extractors.text import MAX_CHARACTERS, clean, count_letters, letters_of, refuse_tiny
from docsum.models import ExtractedText

#: Pages after these are cut and `truncated` set.
MAX_PAGES = 5_000

_LETTERS_PER_PAGE = 25  # fewer: a picture with a stamp on it, or nothing
_FEW_PAGES = 4  # below that the average counts, from here on each page
_PAGES_SEARCHED = 20  # for pictures

_UNMAPPED = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]+")
#: What pypdf gives for a font without a mapping: "/g0035/g0037", "/a.alt".
_GLYPH_NAME = re.compile(r"/(?:[A-Za-z]{1,2}[0-9A-Fa-f]{1,6}|[a-z]+\.[a-z]+)(?![.\w])")
_NO_LETTERS = re.compile(r"[\W_]+")
_FILLING = re.compile(r"[\s._·…•*=|—–-]+")  # blanks, and leaders in a table of contents
_UNMAPPED_ALLOWED = 0.3  # share of the visible characters of a page
_LETTERS_EXPECTED = 0.4  # share of them; pages of formulas have 0.7
_ENOUGH_TO_TELL = 100  # characters
_GLYPH_NAMES_TELL = 3  # addresses have some that look alike
_ANNOTATIONS_LOOKED_AT = 1_000  # of a page


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
    bare: tuple[int, ...]  # numbers, from 0, of those with hardly any text
    truncated: bool
    pictures: bool = False  # on most of the bare pages; looked for only where those are many

    @property
    def with_text(self) -> int:
        return self.read - self.unreadable - len(self.bare)

    @property
    def convincing(self) -> bool:
        if self.read >= _FEW_PAGES:
            return 2 * self.with_text >= self.read
        expected = _LETTERS_PER_PAGE * self.read
        return count_letters(self.text, expected) >= expected > 0

    def searched(self, has_picture: Callable[[int], bool]) -> _Found:
        """The same, having looked for pictures where that matters."""
        pages = () if self.convincing else self.bare[:_PAGES_SEARCHED]
        return replace(self, pictures=2 * sum(map(has_picture, pages)) >= len(pages) > 0)


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
    except Encrypted:
        with contextlib.suppress(Undecodable):
            return _by_pypdf(content, caps)  # which knows that the owner's password may be empty, too
        raise
    if 2 * first.unreadable <= first.read > 0:
        return first  # however little it is: pypdf finds no more, and takes a hundred times as long
    try:
        second = _by_pypdf(content, caps)
    except ExtractError:
        return first
    return second if len(second.text) > len(first.text) else first


def _judge(found: _Found, size: int) -> ExtractedText:
    pages = "1 page" if found.pages == 1 else f"{found.pages:,} pages"
    if found.unreadable * 2 > found.read:
        raise Undecodable(f"{found.unreadable} of {pages} cannot be read.")
    if found.pictures:
        raise Scanned(_scan(found, pages), pages=found.pages)
    if not found.text:
        raise EmptyDocument(f"{pages} without any text.")
    refuse_tiny(found.text, size)
    return ExtractedText(found.text, Kind.PDF.value, pages=found.pages, truncated=found.truncated)


def _scan(found: _Found, pages: str) -> str:
    if found.with_text:
        have = "has" if found.with_text == 1 else "have"
        return f"{found.with_text} of {found.read:,} pages {have} text, the others are pictures."
    letters = count_letters(found.text, 1_000)
    return f"{pages}, {f'{letters_of(letters)} of' if letters else 'no'} text: looks like a scan."


def _found(texts: Iterator[str | None], pages: int, caps: _Caps) -> _Found:
    """Joins the pages with a blank line between, up to the caps; None is a page that cannot be read."""
    parts: list[str] = []
    bare: list[int] = []
    read = unreadable = characters = 0
    for text in texts:
        read += 1
        try:
            part = clean(text) if text is not None else None
        except NotADocument:
            part = None
        if part is None or _is_garbage(part):
            unreadable += 1
            part = ""
        elif count_letters(part, _LETTERS_PER_PAGE) < _LETTERS_PER_PAGE:
            bare.append(read - 1)
        if part:
            parts.append(part[: caps.characters - characters])
            characters += len(part)
        if characters > caps.characters or read == caps.pages:
            break
    truncated = characters > caps.characters or read < pages
    return _Found("\n\n".join(parts), pages, read, unreadable, tuple(bare), truncated)


def _is_garbage(text: str) -> bool:
    """Whether a font without a mapping to characters shows what nobody reads in the text."""
    visible = _FILLING.sub("", text)
    unmapped = len(visible) - len(_UNMAPPED.sub("", visible))
    if unmapped > _UNMAPPED_ALLOWED * len(visible):
        return True
    letters = len(_NO_LETTERS.sub("", visible))
    return len(visible) >= _ENOUGH_TO_TELL and letters < _LETTERS_EXPECTED * len(visible)


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
        return found.searched(lambda number: _has_picture(document, number))


def _pdfium_text(document: Any, number: int) -> str | None:  # Any: an untyped library
    import pypdfium2
    from pypdfium2 import raw

    try:
        page = document[number]
        # pdfium takes text from the page alone: what stands in fields and comments has to become part of it
        if _is_filled_in(page) and raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY) == raw.FLATTEN_SUCCESS:
            page.close()
            page = document[number]
        text: str = page.get_textpage().get_text_bounded()
        page.close()
    except pypdfium2.PdfiumError:
        return None
    return text.replace("\ufffe", "")  # pdfium's mark for a hyphen at the end of a line


def _is_filled_in(page: Any) -> bool:
    """Whether there are fields, comments or stamps on it. Not for links: flattening cuts running titles."""
    from pypdfium2 import raw

    showing = (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_STAMP)
    for number in range(min(raw.FPDFPage_GetAnnotCount(page), _ANNOTATIONS_LOOKED_AT)):
        annotation = raw.FPDFPage_GetAnnot(page, number)
        if annotation:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            raw.FPDFPage_CloseAnnot(annotation)
            if kind in showing:
                return True
    return False


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
        return found.searched(lambda number: _names_picture(reader.pages[number]))
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
    return None if _has_glyph_names(text) else text


def _has_glyph_names(text: str) -> bool:
    names = _GLYPH_NAME.findall(text)
    return len(names) >= _GLYPH_NAMES_TELL and sum(map(len, names)) > _UNMAPPED_ALLOWED * len(text)


def _names_picture(page: Any) -> bool:
    try:
        named = page["/Resources"]["/XObject"].values()
        return any(item.get_object().get("/Subtype") == "/Image" for item in named)
    except Exception:  # a page without resources, or damaged ones
        return False
