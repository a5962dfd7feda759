"""What a document is, told by its bytes."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest

from docsum.errors import EmptyDocument, NotADocument
from docsum.extractors.sniff import Kind, kind_of
from tests.support.documents import ARTICLE, PROGRAM, pdf


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (pdf(1), Kind.PDF),
        (b"\r\n junk before it\n" + pdf(1), Kind.PDF),
        (b"A PDF begins with %PDF-1.4, then come objects.", Kind.TEXT),
        (ARTICLE.encode(), Kind.HTML),
        (ARTICLE.encode("utf-16"), Kind.HTML),
        (b"\xef\xbb\xbf \n<!-- made by hand -->\n<HTML><BODY>x", Kind.HTML),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html><html>', Kind.HTML),
        (b"<div><p>A fragment of a page</p></div>", Kind.HTML),
        (b'<h1 align="center">Tool</h1>\n\n## Install\n\nRun it.', Kind.MARKDOWN),
        (b"# Heading\n\nText with a [link](https://example.org).", Kind.MARKDOWN),
        (b"Dear Sir,\n\nthank you for your letter.", Kind.TEXT),
        ("Grüße aus Köln".encode("latin-1"), Kind.TEXT),
        ("Grüße aus Köln".encode("utf-16"), Kind.TEXT),
        ("議事録です。".encode("shift-jis"), Kind.TEXT),
        (b'{"a": 1}\n', Kind.TEXT),
        (b"MZ wrote to us in May.", Kind.TEXT),
        (b"   \n", Kind.TEXT),
    ],
)
def test_kinds_that_are_read(head: bytes, kind: Kind) -> None:
    assert kind_of(head) is kind


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (PROGRAM, "This looks like a Windows program (.exe), not a document."),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "This looks like a Linux program, not a document."),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(20), "This looks like a PNG picture, not a document."),
        (gzip.compress(b"x" * 100, mtime=0), "This looks like a gzip archive, not a document."),
        (zipped("a.txt"), "This looks like a ZIP archive, not a document."),
        (zipped("[Content_Types].xml", "word/document.xml"), "Word documents are not read yet."),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel workbooks are not read yet."),
        (
            zipped("mimetype", "META-INF/MANIFEST.MF"),
            "This looks like a Java archive (.jar), not a document.",
        ),
        (b"{\\rtf1\\ansi Hello}", "Rich Text documents are not read yet."),
        (bytes(range(256)) * 8, "This looks like binary data, not a document."),
    ],
)
def test_others_are_refused_with_what_they_look_like(head: bytes, sentence: str) -> None:
    with pytest.raises(NotADocument) as refused:
        kind_of(head)
    assert str(refused.value) == sentence


def test_a_magic_that_only_the_library_knows_is_named() -> None:
    with pytest.raises(NotADocument, match=r"This looks like .*, not a document"):
        kind_of(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(40))


def test_nothing_is_empty() -> None:
    with pytest.raises(EmptyDocument):
        kind_of(b"")
