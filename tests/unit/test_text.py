"""Plain text: encodings, caps, and what is not worth a summary."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import EmptyDocument, NotADocument
from docsum.extractors import text
from docsum.extractors.sniff import Kind

GERMAN = "Sehr geehrte Frau Müller, die Prüfung der Anlage ergab keine Mängel. Mit freundlichen Grüßen. " * 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])
def test_encodings_of_one_text(encoding: str) -> None:
    assert text.read(GERMAN.encode(encoding)).text == GERMAN.strip()


def test_a_japanese_encoding_is_found() -> None:
    japanese = "本日の会議では、来年度の予算と新しい倉庫の建設計画について話し合いました。" * 8
    assert text.read(japanese.encode("shift-jis")).text == japanese


def test_line_ends_and_control_characters_go() -> None:
    found = text.read(b"\xef\xbb\xbfone\r\ntwo\rthree\x0cfour\x00\x1b[1m five", Kind.MARKDOWN)
    assert found.text == "one\ntwo\nthree\nfour[1m five"
    assert found.media_type == "text/markdown"
    assert not found.truncated


@pytest.mark.parametrize(("content", "characters"), [(b"abcdef" * 10, 7), ("äöü".encode() * 20, 5)])
def test_a_long_text_is_cut_and_says_so(content: bytes, characters: int) -> None:
    found = text.read(content, max_characters=characters)
    assert len(found.text) == characters
    assert found.truncated


def test_a_cut_through_a_character_is_still_utf8() -> None:
    assert text.decode("aaä".encode()[:-1]) == "aa"


@pytest.mark.parametrize("content", [b" \r\n\t ", b"-----\n*****\n"])
def test_no_letters_is_empty(content: bytes) -> None:
    with pytest.raises(EmptyDocument):
        text.read(content)


def test_a_word_in_a_large_file_is_no_document() -> None:
    with pytest.raises(EmptyDocument, match="only 5 letters of text in 20,005 bytes"):
        text.read(b"hello" + b" \n" * 10_000)


def test_a_short_note_is_a_document() -> None:
    assert text.read(b"Closed.").text == "Closed."


@pytest.mark.parametrize(
    "content",
    [
        b"head that reads well" + b"\x01\x02\x03\x04" * 1_000,
        b"\xff\xfe" + random.Random(1).randbytes(4_000),
        "The minutes of the meeting, as a mainframe writes them. ".encode("cp500") * 20,
    ],
)
def test_garbage_is_not_a_document(content: bytes) -> None:
    with pytest.raises(NotADocument):
        text.read(content)


@given(st.text(min_size=1))
def test_what_comes_out_is_always_printable_utf8(anything: str) -> None:
    try:
        found = text.read(anything.encode(errors="replace"))
    except (EmptyDocument, NotADocument):
        return
    assert found.text.encode().decode() == found.text
    assert not set(found.text) & {"\0", "\r", "\x1b", "\ufeff"}
