"""What a document is, told by its first bytes: names and announced media types may say anything."""

from __future__ import annotations

import codecs
import enum
import re

from docsum.errors import EmptyDocument, NotADocument

#: Bytes from the start of a document that `kind_of` looks at.
HEAD = 8192


class Kind(enum.StrEnum):
    """What we can read; the value is its media type."""

    PDF = "application/pdf"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    TEXT = "text/plain"


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_PDF = re.compile(rb"%PDF-")
_PDF_OBJECT = re.compile(rb"\d+ \d+ obj\b")

#: Bytes that no text in any encoding of ours holds: tab, line ends, form feed, backspace and escape may.
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1B})
_CONTROLS_ALLOWED = 0.03  # random bytes have 0.1

_HTML = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title|meta)\b", re.I | re.S
)
_HTML_FRAGMENT = re.compile(
    r"\s*<(?:article|div|h[1-6]|main|p|section|table|ul|ol)\b[^>]*>.*</\w+>", re.I | re.S
)
_HEADING = re.compile(r"\n(?:#{1,6} \S|```)")
_LINK = re.compile(r"\]\([^\s)]+\)")

_NOT_READ_YET = (
    (b"{\\rtf", "Rich Text documents are not read yet."),
    (b"%!PS", "PostScript documents are not read yet."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Old Office documents (.doc, .xls, .ppt, .msg) are not read."),
)
_IN_ZIP = (
    (b"word/", "Word documents are not read yet."),
    (b"xl/", "Excel workbooks are not read yet."),
    (b"ppt/", "PowerPoint presentations are not read yet."),
    (b"application/vnd.oasis.opendocument", "OpenDocument files are not read yet."),
    (b"application/epub+zip", "EPUB books are not read yet."),
    (b"[Content_Types].xml", "Office documents are not read yet."),
    (b"META-INF/MANIFEST.MF", "This looks like a Java archive (.jar), not a document."),
)
_BINARIES = (
    (b"MZ", "a Windows program (.exe)"),
    (b"\x7fELF", "a Linux program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a Java class or macOS program"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
    (b"Obj\x01", "an Avro file"),
    (b"OggS", "an audio or video file"),
    (b"ID3", "an MP3 file"),
    (b"\0asm", "a WebAssembly program"),
)


def kind_of(head: bytes) -> Kind:
    """The kind of a document that begins with these bytes. Raises EmptyDocument or NotADocument."""
    if not head:
        raise EmptyDocument("The file is empty.")
    if _is_pdf(head):
        return Kind.PDF
    encoding = byte_order_mark(head)
    if encoding is None:
        _refuse_binary(head)
    peek = head[:4096].decode(encoding or "latin-1", "replace")
    if _HTML.match(peek):
        return Kind.HTML
    markdown = _HEADING.search(f"\n{peek}") is not None or _LINK.search(peek) is not None
    if not markdown and _HTML_FRAGMENT.match(peek):  # Markdown may begin with HTML tags
        return Kind.HTML
    return Kind.MARKDOWN if markdown else Kind.TEXT


def byte_order_mark(head: bytes) -> str | None:
    """The encoding that a byte order mark names."""
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None)


def _is_pdf(head: bytes) -> bool:
    match = _PDF.search(head, 0, 1024)
    if match is None:
        return False
    # Readers accept anything before the mark; a text about PDF has no objects.
    return match.start() == 0 or _PDF_OBJECT.search(head) is not None or _looks_binary(head)


def _refuse_binary(head: bytes) -> None:
    if head.startswith(b"PK\x03\x04"):
        told = (sentence for mark, sentence in _IN_ZIP if mark in head)
        raise NotADocument(next(told, "This looks like a ZIP archive, not a document."))
    for mark, sentence in _NOT_READ_YET:
        if head.startswith(mark):
            raise NotADocument(sentence)
    if _looks_binary(head):
        raise NotADocument(f"This looks like {_name(head)}, not a document.")


def _looks_binary(head: bytes) -> bool:
    return len(head) - len(head.translate(None, _CONTROLS)) > _CONTROLS_ALLOWED * len(head)


def _name(head: bytes) -> str:
    """Our own words for the common ones, else those of puremagic's list."""
    for mark, name in _BINARIES:
        if head.startswith(mark):
            return name
    import puremagic

    try:
        best = puremagic.magic_string(head)[0]
    except (puremagic.PureError, ValueError, IndexError):
        return "binary data"
    return best.name if best.name and best.confidence >= 0.6 else "binary data"
