"""Which pages of a PDF count as read, and when they are too few."""

from __future__ import annotations

import pytest

from docsum.errors import Scanned, Undecodable
from docsum.extractors import pdf
from tests.support import documents


@pytest.mark.parametrize("careful", [False, True])
def test_a_cover_page_is_not_the_document(careful: bool) -> None:
    with pytest.raises(Scanned, match=r"^2 of 12 pages have text, the others are pictures\.$") as refused:
        pdf.read(documents.mixed_pdf(2, 10), careful=careful)
    assert refused.value.pages == 12


def test_one_page_of_four() -> None:
    with pytest.raises(Scanned, match=r"^1 of 4 pages has text, the others are pictures\.$"):
        pdf.read(documents.mixed_pdf(1, 3))


@pytest.mark.parametrize(("with_text", "pictures"), [(2, 2), (1, 2), (5, 1)])
def test_enough_pages_with_text_are_a_document(with_text: int, pictures: int) -> None:
    found = pdf.read(documents.mixed_pdf(with_text, pictures))
    assert found.pages == with_text + pictures
    assert f"Page {with_text}, line 39" in found.text


def test_a_stamp_on_every_page_is_still_a_scan() -> None:
    with pytest.raises(Scanned, match="6 pages, no text") as refused:
        pdf.read(documents.scanned_pdf(6))
    assert refused.value.pages == 6
    with pytest.raises(Scanned, match="5 pages, 105 letters of text: looks like a scan"):
        pdf.read(documents.scanned_pdf(5, stamp="Scanned with CamScanner"))


@pytest.mark.parametrize("careful", [False, True])
def test_letters_that_nobody_can_read_are_no_text(careful: bool) -> None:
    with pytest.raises(Undecodable, match="1 of 1 page cannot be read"):
        pdf.read(documents.unmapped_pdf(), careful=careful)


@pytest.mark.parametrize(
    ("text", "garbage"),
    [
        ("Kapitel 1 ........................ 7\n" * 20, False),
        ("f(x) = a² + b·x − c³ / 2, Σ (n + 1) ∈ ℝ\n" * 10, False),
        ("1.270,00  3.141,59  2.718,28  -7\n" * 20, False),
        ("नमस्ते, यह एक हिन्दी वाक्य है जो पढ़ा जा सकता है।" * 5, False),
        ("!\"#$ %&'( )*+ ,-./ :;<= >?@[ \\]^_ ab cd\n" * 10, True),
        ("\ue001\ue002\ue003 \ue004 word", True),
        ("\ufffd\ufffd\ufffd\ufffd", True),
        ("§ 1", False),
        ("", False),
    ],
)
def test_garbage(text: str, garbage: bool) -> None:
    assert pdf._is_garbage(text) is garbage
