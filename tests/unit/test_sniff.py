"""What a document is, told by its bytes."""

from __future__ import annotations

import gzip
import pickle

import pytest

from docsum.errors import EmptyDocument, NotADocument
from docsum.extractors.sniff import OLE, Kind, kind_of
from tests.support.documents import ARTICLE, PROGRAM, docx, paragraph, pdf, zipped


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (pdf(1), Kind.PDF),
        (b"\r\n junk before it\n" + pdf(1), Kind.PDF),
        (b"A PDF begins with %PDF-1.4, then come objects.", Kind.TEXT),
        (ARTICLE.encode(), Kind.HTML),
        (b"<!DOCTYPE html><!-- %PDF-1.4 and 1 0 obj --><html><p>Text", Kind.HTML),
        (b"<html><!-- \n" + pdf(1), Kind.PDF),
        (docx(paragraph("Text")), Kind.DOCX),
        (zipped({"anything.bin": pdf(1)}), Kind.DOCX),  # its reader looks and refuses
        (zipped({}), Kind.DOCX),
        (OLE + bytes(504), Kind.DOCX),
        (ARTICLE.encode("utf-16"), Kind.HTML),
        (ARTICLE.encode("utf-16-be"), Kind.HTML),
        (b"\xef\xbb\xbf \n<!-- made by hand -->\n<HTML><BODY>x", Kind.HTML),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html><html>', Kind.HTML),
        (b"<div><p>A fragment of a page</p></div>", Kind.HTML),
        (b"<!-- menu -->\n<!-- end --><h1>News</h1><p>A fragment</p>", Kind.HTML),
        (b"<div>\n<style>#menu { color: red }", Kind.HTML),
        (b"<script>a[0](1)</script><p>Text", Kind.HTML),
        (b"<style>p { color: red }</style>" + b" " * 5_000 + b"<html>", Kind.HTML),
        (b"<br />\n<b>Deprecated</b>: on line 520<br />\n" * 100 + b"<html><p>Text", Kind.HTML),
        (b'<?xml version="1.0"?><link rel="stylesheet"/><title>x</title>', Kind.HTML),
        (b"<br>\n\n# Tool\n\n```\n<html>\n```\n", Kind.MARKDOWN),
        (b'<?xml version="1.0"?><feed><title>News</title></feed>', Kind.TEXT),
        (b"<!-- a -->" * 800 + b"x", Kind.TEXT),  # and at once
        (b"RIFF and BZh and GIF8 and ID3 are marks.", Kind.TEXT),
        (b'<h1 align="center">Tool</h1>\n\n## Install\n\nRun it.', Kind.MARKDOWN),
        (b"# Heading\n\nText with a [link](https://example.org).", Kind.MARKDOWN),
        (b"Dear Sir,\n\nthank you for your letter.", Kind.TEXT),
        ("Grüße aus Köln".encode("latin-1"), Kind.TEXT),
        ("Grüße aus Köln".encode("utf-16"), Kind.TEXT),
        ("Grüße aus Köln".encode("utf-16-le"), Kind.TEXT),
        ("Пишите нам.".encode("utf-16-be"), Kind.TEXT),
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
        (
            b"\xff\xd8\xff\xe1" + b"<x:xmpmeta>hardly a control byte in it" * 20,
            "This looks like a JPEG picture, not a document.",
        ),
        (
            b"\xf7\x02\x01\x83\x92\xc0 TeX output of a long text",
            "This looks like a DVI file of TeX, not a document.",
        ),
        (b"!<arch>\ndebian-binary   1", "This looks like a Debian package, not a document."),
        (
            b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" [\n<!ENTITY a "b">]>'
            b"\n<!-- drawn --><svg><text>Pump</text></svg>",
            "This looks like a drawing (SVG), not a document.",
        ),
        (b"{\\rtf1\\ansi Hello}", "Rich Text documents are not read yet."),
        (pickle.dumps({"a": 1.5, "b": bytes(9)}, 4), "This looks like binary data, not a document."),
        (bytes(8192), "This looks like a file of zeros, not a document."),
        (bytes(range(256)) * 8, "This looks like binary data, not a document."),
    ],
)
def test_others_are_refused_with_what_they_look_like(head: bytes, sentence: str) -> None:
    with pytest.raises(NotADocument) as refused:
        kind_of(head)
    assert str(refused.value) == sentence


def test_a_magic_that_only_the_library_knows_is_named() -> None:
    with pytest.raises(NotADocument, match=r"This looks like .*, not a document"):
        kind_of(b"FORM\0\0\0\x24AIFFCOMM\0\0\0\x12" + bytes(40))


def test_a_sound_without_control_bytes_is_no_text() -> None:
    with pytest.raises(NotADocument, match="RIFF"):
        kind_of(b"RIFF\x24aaaWAVEfmt " + bytes(range(0x60, 0xFF)) * 40)


def test_nothing_is_empty() -> None:
    with pytest.raises(EmptyDocument):
        kind_of(b"")
