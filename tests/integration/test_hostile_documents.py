"""Documents made to harm, each through a real child: a reason within the time, memory within the limit.

The children have less memory and time than by default, which proves the same and is sooner over.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from docsum.errors import (
    DocumentBomb,
    EmptyDocument,
    ExtractError,
    ExtractTimeout,
    NotADocument,
    Undecodable,
)
from docsum.extractors import DocumentExtractor, docx, html, pdf
from docsum.extractors.sandbox import Sandbox
from docsum.models import Document, ExtractedText
from tests.support import documents

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMORY = 300_000_000
SAMPLES = Path(__file__).parents[2] / "samples" / "documents"
TEXT = "The harbour is closed on Monday because of the storm. " * 5

Make = Callable[[], bytes]


class Guarded:
    """An extractor whose children's memory is looked at all the time."""

    def __init__(self, timeout: timedelta) -> None:
        self.sandbox = Sandbox(1, timeout, MEMORY)
        self.extractor = DocumentExtractor(self.sandbox)
        self.most = 0  # memory of any child, bytes

    async def read(self, content: bytes) -> ExtractedText:
        return await self.extractor.extract(Document(len(content), "", content=content))

    async def watch(self) -> None:
        while True:
            for pid in self.sandbox.pids:
                with contextlib.suppress(psutil.Error):
                    self.most = max(self.most, psutil.Process(pid).memory_info().rss)
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def guarded(seconds: float) -> AsyncIterator[Guarded]:
    """At the end a good document must still be read, and no child have been above its memory."""
    guard = Guarded(timedelta(seconds=seconds))
    watching = asyncio.create_task(guard.watch())
    try:
        yield guard
        guard.sandbox._timeout = timedelta(seconds=60)
        assert (await guard.read(documents.pdf(2))).pages == 2
        assert 0 < guard.most < MEMORY
    finally:
        watching.cancel()
        await guard.sandbox.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Guarded]:
    async with guarded(60) as guard:
        yield guard


async def outcome(guard: Guarded, content: bytes) -> ExtractedText | ExtractError:
    try:
        return await guard.read(content)
    except ExtractError as error:
        return error


# -- bombs ---------------------------------------------------------------------------------------------------


def with_doctype(doctype: str) -> bytes:
    return documents.zipped(documents.word_parts(doctype + documents.word_part("document", "&e9;")))


LAUGHS = '<!ENTITY e0 "ha">' + "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(9))

BOMBS: dict[str, tuple[Make, type[ExtractError]]] = {
    "5 KB that unpack twice to 2 GB": (lambda: documents.flate_bomb(2_000), DocumentBomb),
    "2 MB that unpack to 2 GB": (lambda: documents.large_flate_bomb(2_000), DocumentBomb),
    "pages that hold themselves": (documents.circular_pdf, Undecodable),
    "1 MB of Word that unpack to 1 GB": (lambda: documents.docx_bomb(999), DocumentBomb),
    "Word that states a small size": (lambda: documents.docx_bomb(999, announced=5_000), Undecodable),
    "an archive of 100,000 entries": (lambda: documents.docx_of_entries(100_000), DocumentBomb),
    "a million paragraphs in 150 KB": (
        lambda: documents.docx(documents.paragraph("x") * 1_000_000),
        DocumentBomb,
    ),
    "paragraphs in paragraphs": (lambda: documents.docx("<w:p>" * 100_000), Undecodable),
    "a million attributes": (
        lambda: documents.docx("<w:p " + " ".join(f"a{n}='x'" for n in range(1_000_000)) + "/>"),
        DocumentBomb,
    ),
    "a billion laughs": (lambda: with_doctype(f"<!DOCTYPE x [{LAUGHS}]>"), DocumentBomb),
    "a page of comments": (lambda: b"<html><!--" + b"-- >" * 500_000, EmptyDocument),
    "an endless attribute": (
        lambda: b"<html><p style='" + b"display: " * 300_000 + b"'>Text",
        EmptyDocument,
    ),
    "nothing but entities": (lambda: b"<html><p>" + b"&amp;" * 300_000, EmptyDocument),
    "100 MB of zeros": (lambda: bytes(100_000_000), NotADocument),
    "100 MB of one sign": (lambda: b"<" * 100_000_000, EmptyDocument),
    "1 MB of noise": (lambda: random.Random(1).randbytes(1_000_000), NotADocument),
    "a renamed program": (lambda: documents.PROGRAM + random.Random(2).randbytes(50_000), NotADocument),
    "a pickle": (lambda: pickle.dumps({"run": [print, bytes(99)]}), NotADocument),
    "a PDF in a ZIP": (lambda: documents.zipped({"a.pdf": documents.pdf(3)}), NotADocument),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_each_has_its_reason(shared: Guarded, name: str) -> None:
    make, reason = BOMBS[name]
    found = await outcome(shared, make())
    assert isinstance(found, reason), found
    assert str(found).endswith(".")


READ: dict[str, tuple[Make, str]] = {
    "200,000 nested tags": (lambda: documents.nested_html(200_000, TEXT), TEXT.strip()),
    "20,000 nested tables": (lambda: documents.deep_table(20_000, TEXT), TEXT.strip()),
    "a table of objects that loops": (documents.looping_xref_pdf, "Page 1, line 39: the pump"),
    "entries that overlap": (lambda: documents.overlapping_docx(1_000, 9), "Text."),
    "a page that speaks of PDF": (
        lambda: b"<!DOCTYPE html><!-- %PDF-1.4 1 0 obj --><p>" + TEXT.encode(),
        TEXT.strip(),
    ),
    "laughs in a page": (
        f"<!DOCTYPE html [{LAUGHS}]><p>&e9;{TEXT}".encode,
        TEXT.strip(),
    ),
    "100 MB of one line": (lambda: b"word " * 20_000_000, "word word"),
}


@pytest.mark.parametrize("name", READ)
async def test_some_are_only_odd_and_give_their_text(shared: Guarded, name: str) -> None:
    make, text = READ[name]
    found = await shared.read(make())
    assert text in found.text
    assert found.truncated is (len(found.text) > 10_000_000)


SLOW: dict[str, Make] = {
    "6 million operators in 62 KB": lambda: documents.operators_pdf(6_000_000),
    "30 MB of one tag": lambda: b"<html>" + b"<b>" * 10_000_000,
    "30 MB inside one tag": lambda: b"<html><a " + b"x" * 30_000_000,
    "12 MB of attributes": lambda: b"<html><p a=1 b=2 c=3 d=4>" * 500_000,
}


@pytest.mark.parametrize("name", SLOW)
async def test_what_takes_long_ends_by_the_clock_or_the_limit(name: str) -> None:
    async with guarded(3) as guard:
        found = await outcome(guard, SLOW[name]())
        assert isinstance(found, ExtractTimeout | DocumentBomb | EmptyDocument), found


# -- damage --------------------------------------------------------------------------------------------------

REAL = ("wood-shop-handbook.pdf", "wetland-field-report.pdf", "liefervertrag-auszug.pdf")


@pytest.mark.parametrize("name", REAL)
async def test_a_pdf_that_was_cut_anywhere_is_damaged(shared: Guarded, name: str) -> None:
    whole = (SAMPLES / name).read_bytes()
    for size in range(64, len(whole) - 64, len(whole) // 30):
        with pytest.raises(Undecodable):
            await shared.read(whole[:size])


@pytest.mark.parametrize("seed", range(10))
async def test_random_bytes_never_leave_a_scrap_of_the_text(shared: Guarded, seed: int) -> None:
    whole = documents.pdf(60)
    chosen = random.Random(seed)
    damaged = bytearray(whole)
    for _ in range(2_000):
        damaged[chosen.randrange(16, len(damaged))] = chosen.randrange(256)
    found = await outcome(shared, bytes(damaged))
    if isinstance(found, ExtractedText):
        assert len(found.text) > len(pdf.read(whole).text) / 2
    else:
        assert isinstance(found, Undecodable), found


@pytest.mark.parametrize("seed", range(30))
async def test_flipped_bits_in_a_word_document_end_well(shared: Guarded, seed: int) -> None:
    body = "".join(documents.paragraph(f"Line {n}: {TEXT}") for n in range(50))
    whole = documents.docx(body, {"styles": documents.word_part("styles", "")})
    found = await outcome(shared, documents.flip_bits(whole, 1 + 3 * seed, seed))
    if isinstance(found, ExtractedText):
        assert found.text == docx.read(whole).text
    else:
        assert isinstance(found, ExtractError)


# -- the user's files ----------------------------------------------------------------------------------------

MARKER = "what the user keeps for himself"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    path = tmp_path / "private.txt"
    path.write_text(f"{MARKER}\n" * 20)
    return path


@pytest.mark.parametrize(
    ("make", "reader"),
    [
        (documents.pdf_with_files, pdf.read),
        (documents.docx_with_files, docx.read),
        (documents.html_with_files, html.read),
    ],
    ids=["pdf", "docx", "html"],
)
@pytest.mark.parametrize("by_uri", [True, False])
async def test_no_document_reads_a_file_of_the_user(
    shared: Guarded,
    private: Path,
    make: Callable[[str], bytes],
    reader: Callable[..., ExtractedText],
    by_uri: bool,
) -> None:
    content = make(private.as_uri() if by_uri else str(private))
    found = await shared.read(content)
    assert "none of its business" in found.text
    assert MARKER not in found.text
    # Without the sandbox's walls too: no feature that we use opens files.
    for careful in (False, True):
        assert MARKER not in reader(content, careful=careful).text


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE w SYSTEM "{uri}">',
        '<!DOCTYPE w [<!ENTITY e9 SYSTEM "{uri}">]>',
        '<!DOCTYPE w [<!ENTITY % p SYSTEM "{uri}"> %p;]>',
    ],
)
async def test_no_entity_reads_a_file_of_the_user(shared: Guarded, private: Path, doctype: str) -> None:
    with pytest.raises(DocumentBomb) as refused:
        await shared.read(with_doctype(doctype.format(uri=private.as_uri())))
    assert MARKER not in str(refused.value)
