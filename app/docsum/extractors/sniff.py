"""What a document is, told by its first bytes: names and announced media types may say anything."""

from __future__ import annotations

import enum
import re

from docsum.errors import EmptyDocument, NotADocument
from docsum.extractors.charset import byte_order_mark, unmarked_utf16

#: Bytes from the start of a document that `kind_of` looks at.
HEAD = 8192


class Kind(enum.StrEnum):
    """What we can read; the value is its media type."""

    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    TEXT = "text/plain"


#: An OLE compound file: old Office documents, and new ones with a password.
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
#: What is in these only their end tells: `docx.read` looks there, and refuses what is no Word document.
_PACKAGES = (b"PK\x03\x04", b"PK\x05\x06", OLE)

_PDF = re.compile(rb"%PDF-")
_PDF_OBJECT = re.compile(rb"\d+ \d+ obj\b")

#: Bytes that no text in any encoding of ours holds: tab, line ends, form feed, backspace and escape may.
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1B})
_CONTROLS_ALLOWED = 0.03  # random bytes have 0.1

_COMMENTS = r"\s*(?:(?><!--.*?-->)\s*)*"  # atomic: else many of them could be parted in too many ways
_BEFORE = rf"\s*(?:<\?xml[^>]*>)?{_COMMENTS}"
_HTML = re.compile(
    rf"{_BEFORE}<(?:!doctype\s+html|html|head|body|title|meta|script|style|link|base)\b", re.I | re.S
)
#: Whatever they begin with: old pages do so with anything, and servers put their complaints first.
_HTML_LATER = re.compile(r"\s*<[a-z!].*<(?:html|head|body)\b", re.I | re.S)
_HTML_FRAGMENT = re.compile(
    rf"{_COMMENTS}<(?:article|div|h[1-6]|main|p|section|table|ul|ol)\b[^>]*>.*<(?:/\w+>|style\b|script\b)",
    re.I | re.S,
)
_SVG = re.compile(rf"{_BEFORE}(?:<!doctype\s+svg[^>[]*(?:\[[^]]*\]\s*)?>{_COMMENTS})?<svg\b", re.I | re.S)
_HEADING = re.compile(r"\n(?:#{1,6} \S|```)")
_MARKDOWN_HEAD = 4096  # characters: further on, many a plain text has a line that begins with "# "
_LINK = re.compile(r"\]\([^\s)]+\)")

_NOT_READ_YET = (
    (b"{\\rtf", "Rich Text documents are not read yet."),
    (b"%!PS", "PostScript documents are not read yet."),
)
#: No text begins like this.
_BINARIES = (
    (b"\x7fELF", "a Linux program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a Java class or macOS program"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh91AY&SY", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"Obj\x01", "an Avro file"),
    (b"OggS\0", "an audio or video file"),
    (b"ID3\2", "an MP3 file"),
    (b"ID3\3", "an MP3 file"),
    (b"ID3\4", "an MP3 file"),
    (b"\0asm", "a WebAssembly program"),
    (b"\xf7\2\1\x83\x92\xc0", "a DVI file of TeX"),
    (b"!<arch>\ndebian-binary", "a Debian package"),
)
_RIFF = re.compile(rb"RIFF....(?:WAVE|AVI |WEBP|ACON|sfbk)", re.S)
#: A text may, so that these count only where the bytes look binary.
_PERHAPS_BINARIES = (
    (b"MZ", "a Windows program (.exe)"),
    (b"PAR1", "a Parquet file"),
)


def kind_of(head: bytes) -> Kind:
    """The kind of a document that begins with these bytes. Raises EmptyDocument or NotADocument."""
    if not head:
        raise EmptyDocument("The file is empty.")
    if head.startswith(_PACKAGES):
        return Kind.DOCX
    encoding = byte_order_mark(head) or unmarked_utf16(head)
    binary = encoding is None and _looks_binary(head)
    peek = head.decode(encoding or "latin-1", "replace")
    page = not binary and _HTML.match(peek) is not None
    if not page and _is_pdf(head):  # a page may speak of PDF
        return Kind.PDF
    if encoding is None:
        _refuse_binary(head, binary)
    if page:
        return Kind.HTML
    if _SVG.match(peek):
        raise NotADocument("This looks like a drawing (SVG), not a document.")
    start = f"\n{peek[:_MARKDOWN_HEAD]}"
    markdown = _HEADING.search(start) is not None or _LINK.search(start) is not None
    page = _HTML_FRAGMENT.match(peek) is not None or _HTML_LATER.match(peek) is not None
    if page and not markdown:  # Markdown may begin with HTML tags
        return Kind.HTML
    return Kind.MARKDOWN if markdown else Kind.TEXT


def _is_pdf(head: bytes) -> bool:
    match = _PDF.search(head, 0, 1024)
    if match is None:
        return False
    # Readers accept anything before the mark; a text about PDF has no objects.
    return match.start() == 0 or _PDF_OBJECT.search(head) is not None or _looks_binary(head)


def _refuse_binary(head: bytes, binary: bool) -> None:
    for mark, sentence in _NOT_READ_YET:
        if head.startswith(mark):
            raise NotADocument(sentence)
    marked = any(head.startswith(mark) for mark, _ in _BINARIES) or _RIFF.match(head) is not None
    if binary or marked:
        raise NotADocument(f"This looks like {_name(head)}, not a document.")


def _looks_binary(head: bytes) -> bool:
    return len(head) - len(head.translate(None, _CONTROLS)) > _CONTROLS_ALLOWED * len(head)


def _name(head: bytes) -> str:
    """Our own words for the common ones, else those of puremagic's list."""
    for mark, name in (*_BINARIES, *_PERHAPS_BINARIES):
        if head.startswith(mark):
            return name
    if _RIFF.match(head):
        return "a sound, film or picture (RIFF)"
    if not head.strip(b"\0"):
        return "a file of zeros"
    import puremagic

    try:
        best = puremagic.magic_string(head)[0]
    except (puremagic.PureError, ValueError, IndexError):
        return "binary data"
    return best.name if best.name and best.confidence >= 0.6 else "binary data"
