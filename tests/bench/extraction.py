"""The extractors beside the bare calls of the libraries that they use, in one process and one run.

The same reports, written from a fixed seed, in five formats. A turn reads all files of a format, as often as
takes some tenths of a second; the contenders take turns, each round beginning with another one. The texts are
checked before anything is timed, and every turn must give as many characters as that check did.
"""

from __future__ import annotations

import asyncio
import html
import io
import math
import random
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import docx
import psutil
from docx.table import Table
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate
from reportlab.platypus import Table as PdfTable

from docsum.extractors import DocumentExtractor
from docsum.extractors.sandbox import Sandbox
from docsum.models import Document
from docsum.settings import Extract
from tests.bench.stand import BenchFailed

ONE_CHILD, ALL_CHILDREN = "docsum, 1 child", "docsum"

#: What a line of the table stands for.
MEANINGS = {
    "bytes.decode": "The bytes as UTF-8 and nothing else: no look at what they are, no cleaning.",
    "lxml.html": "Parse the page and take all its text, menus too: the least that HTML can cost.",
    "trafilatura": "Find the main text of the page, as docsum does, without a process around it.",
    "pypdfium2": "A loop over the pages of each file, without a process around it.",
    "python-docx": "A loop over paragraphs and tables: it builds trees, where docsum streams.",
    ONE_CHILD: "All files through one child process: beside the bare call, what sandbox and checks cost.",
    ALL_CHILDREN: "As a worker does it, with a child on each core (at most 4): text and Markdown need none.",
}

_TURN = 0.4  # seconds
_SECTIONS = (1, 1, 1, 2, 3, 5, 8, 20)  # about a page each
_FILES = 2 * len(_SECTIONS)
_WATCH_EVERY = 0.05  # seconds
_SEED = 20
_WORDS = """the pump was serviced and its filter changed before pressure in the third line fell below what had
been noted by the engineers on night shift who asked for a new valve from the supplier near the harbour"""
_Read = Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender on one format in one round."""

    documents: int
    rate: float  # documents a second
    megabytes: float  # of files, a second
    cpu_ms: float  # of this process and the children, a document
    peak_mb: float  # resident memory of the largest child, looked at every 50 ms; 0 without children


@dataclass(frozen=True, slots=True)
class Extraction:
    """All turns on one format."""

    format: str
    files: int
    size: int  # bytes of all files
    bare: str  # the contender that the others are compared with: it does most nearly what docsum does
    rounds: Sequence[Mapping[str, Turn]]

    def over_bare(self, name: str) -> list[float]:
        """A contender's rate over that of the bare call, of each round."""
        return [turns[name].rate / turns[self.bare].rate for turns in self.rounds]


# -- the files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    title: str
    paragraphs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Report:
    sections: tuple[_Section, ...]
    last_line: str  # of the document: whoever has it has read to the end


def _reports() -> list[_Report]:
    chance, words = random.Random(_SEED), _WORDS.split()

    def sentences(count: int) -> str:
        return " ".join(" ".join(chance.choices(words, k=14)).capitalize() + "." for _ in range(count))

    def section(number: int) -> _Section:
        rows = ((f"Line {row}", f"{chance.random():.3f} bar", sentences(1)) for row in range(6))
        return _Section(f"Part {number}", tuple(sentences(6) for _ in range(5)), tuple(rows))

    lengths = chain.from_iterable(repeat(_SECTIONS, _FILES // len(_SECTIONS)))
    return [
        _Report(tuple(map(section, range(1, length + 1))), f"This is the last line of report {number}.")
        for number, length in enumerate(lengths, 1)
    ]


def _text(report: _Report) -> bytes:
    def lines() -> Iterator[str]:
        for section in report.sections:
            yield from (section.title, *section.paragraphs)
            yield "\n".join("\t".join(row) for row in section.rows)
        yield report.last_line

    return "\n\n".join(lines()).encode()


def _markdown(report: _Report) -> bytes:
    def lines() -> Iterator[str]:
        for section in report.sections:
            yield from (f"## {section.title}", *section.paragraphs)
            yield "\n".join("| " + " | ".join(row) + " |" for row in section.rows)
        yield report.last_line

    return "\n\n".join(lines()).encode()


def _page(report: _Report) -> bytes:
    def parts() -> Iterator[str]:
        menu = "".join(f'<li><a href="/reports/{number}">Report {number}</a></li>' for number in range(40))
        yield f"<!doctype html><html><head><title>Report</title></head><body><nav><ul>{menu}</ul></nav><main>"
        for section in report.sections:
            yield f"<h2>{section.title}</h2>"
            yield from (f"<p>{html.escape(text)}</p>" for text in section.paragraphs)
            cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in section.rows)
            yield f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        yield f"<p>{report.last_line}</p></main><footer><a href='/'>Home</a></footer></body></html>"

    return "\n".join(parts()).encode()


def _pdf(report: _Report) -> bytes:
    styles = getSampleStyleSheet()

    def story() -> Iterator[Flowable]:
        for section in report.sections:
            yield Paragraph(section.title, styles["Heading2"])
            yield from (Paragraph(text, styles["BodyText"]) for text in section.paragraphs)
            yield PdfTable([[Paragraph(cell, styles["BodyText"]) for cell in row] for row in section.rows])
        yield Paragraph(report.last_line, styles["BodyText"])

    buffer = io.BytesIO()
    SimpleDocTemplate(buffer, invariant=1).build(list(story()))
    return buffer.getvalue()


def _docx(report: _Report) -> bytes:
    document = docx.Document()
    for section in report.sections:
        document.add_heading(section.title, 2)
        for text in section.paragraphs:
            document.add_paragraph(text)
        table = document.add_table(0, len(section.rows[0]))
        for row in section.rows:
            for cell, text in zip(table.add_row().cells, row, strict=True):
                cell.text = text
    document.add_paragraph(report.last_line)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


# -- the bare calls ------------------------------------------------------------------------------------------


def _by_lxml(content: bytes) -> str:
    import lxml.html

    text: str = lxml.html.document_fromstring(content).text_content()
    return text


def _by_trafilatura(content: bytes) -> str:
    import trafilatura

    return trafilatura.extract(content, include_comments=False, favor_recall=True) or ""


def _by_pypdfium2(content: bytes) -> str:
    import pypdfium2

    with pypdfium2.PdfDocument(content) as document:
        return "\n".join(page.get_textpage().get_text_bounded() for page in document)


def _by_python_docx(content: bytes) -> str:
    def texts() -> Iterator[str]:
        for block in docx.Document(io.BytesIO(content)).iter_inner_content():
            if isinstance(block, Table):
                yield from ("\t".join(cell.text for cell in row.cells) for row in block.rows)
            else:
                yield block.text

    return "\n".join(texts())


#: How a report is written, and the bare calls that read it; the last does most nearly what docsum does.
_FORMATS: Mapping[str, tuple[Callable[[_Report], bytes], Mapping[str, _Read]]] = {
    "txt": (_text, {"bytes.decode": bytes.decode}),
    "md": (_markdown, {"bytes.decode": bytes.decode}),
    "html": (_page, {"lxml.html": _by_lxml, "trafilatura": _by_trafilatura}),
    "pdf": (_pdf, {"pypdfium2": _by_pypdfium2}),
    "docx": (_docx, {"python-docx": _by_python_docx}),
}
_WITHOUT_CHILDREN = frozenset(("txt", "md"))


# -- the turns -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Contender:
    """Reads files and gives the text of each to a function, in any order."""

    read_all: Callable[[Sequence[bytes], Callable[[int, str], None]], Awaitable[None]]
    sandbox: Sandbox | None = None

    def children(self) -> Iterator[Any]:  # Any: an untyped library's process
        for pid in self.sandbox.pids if self.sandbox else ():
            with suppress(psutil.NoSuchProcess):
                yield psutil.Process(pid)


def _bare(read: _Read) -> _Contender:
    async def read_all(files: Sequence[bytes], take: Callable[[int, str], None]) -> None:
        for number, content in enumerate(files):
            take(number, read(content))

    return _Contender(read_all)


@asynccontextmanager
async def _docsum(processes: int) -> AsyncIterator[_Contender]:
    """With so many children; 0: as many as a worker has."""
    extract = Extract()
    sandbox = Sandbox(processes, extract.timeout, extract.memory)
    async with DocumentExtractor(sandbox) as extractor:

        async def read_all(files: Sequence[bytes], take: Callable[[int, str], None]) -> None:
            left = iter(enumerate(files))

            async def read_some() -> None:
                for number, content in left:
                    document = Document(len(content), "1", content=content)
                    take(number, (await extractor.extract(document)).text)

            async with asyncio.TaskGroup() as readers:
                for _ in range(8):  # enough to keep four children busy
                    readers.create_task(read_some())

        yield _Contender(read_all, sandbox)


async def measure(rounds: int, say: Callable[[str], None]) -> AsyncIterator[Extraction]:
    """Every format, one after the other. Raises BenchFailed when a contender does not give the whole text."""
    reports = _reports()
    async with _docsum(1) as one, _docsum(0) as all_children:
        for name, (write, bare) in _FORMATS.items():
            files = [write(report) for report in reports]
            contenders = {title: _bare(read) for title, read in bare.items()}
            if name not in _WITHOUT_CHILDREN:
                contenders[ONE_CHILD] = one
            contenders[ALL_CHILDREN] = all_children
            found = await _rounds(contenders, files, reports, rounds)
            say(f"{name}: {len(files)} files of {sum(map(len, files)) / 1e6:.2f} MB, {rounds} rounds")
            yield Extraction(name, len(files), sum(map(len, files)), list(bare)[-1], found)


async def _rounds(
    contenders: Mapping[str, _Contender], files: Sequence[bytes], reports: Sequence[_Report], count: int
) -> Sequence[Mapping[str, Turn]]:
    names, rounds = tuple(contenders), []
    characters, passes = {}, {}
    for name, contender in contenders.items():
        characters[name] = await _check(name, contender, files, reports)
        began = time.perf_counter()  # the children are there now
        await contender.read_all(files, lambda *_: None)
        passes[name] = math.ceil(_TURN / (time.perf_counter() - began))
    for number in range(count):
        first, turns = number % len(names), {}
        for name in (*names[first:], *names[:first]):
            turn, read = await _turn(contenders[name], [*files] * passes[name])
            if read != passes[name] * characters[name]:
                raise BenchFailed(f"{name} gave {read:,} characters, and others when it was checked.")
            turns[name] = turn
        rounds.append({name: turns[name] for name in names})
    return rounds


async def _check(name: str, contender: _Contender, files: Sequence[bytes], reports: Sequence[_Report]) -> int:
    """How many characters it finds, once it is clear that it reads every document to its end."""
    texts: dict[int, str] = {}
    await contender.read_all(files, texts.__setitem__)
    for number, report in enumerate(reports):
        if report.last_line not in " ".join(texts[number].split()):
            raise BenchFailed(f"{name} has not read file {number + 1} to its end.")
    return sum(map(len, texts.values()))


async def _turn(contender: _Contender, files: Sequence[bytes]) -> tuple[Turn, int]:
    """What it took, and how many characters came out."""
    characters = 0

    def take(_: int, text: str) -> None:
        nonlocal characters
        characters += len(text)

    async with _peak(contender) as peak:
        cpu, began = _cpu_seconds(contender), time.perf_counter()
        await contender.read_all(files, take)
        seconds, cpu = time.perf_counter() - began, _cpu_seconds(contender) - cpu
    count, size = len(files), sum(map(len, files))
    return Turn(count, count / seconds, size / 1e6 / seconds, 1000 * cpu / count, peak[0] / 1e6), characters


def _cpu_seconds(contender: _Contender) -> float:
    """Of this process, its children that live, and those that were replaced after their 500 documents."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in contender.children():
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            spent += times.user + times.system
    return spent


@asynccontextmanager
async def _peak(contender: _Contender) -> AsyncIterator[list[int]]:
    """The most resident memory of one child so far, bytes, in a list of one."""
    found = [0]

    async def watch() -> None:
        while True:
            for child in contender.children():
                with suppress(psutil.NoSuchProcess):
                    found[0] = max(found[0], child.memory_info().rss)
            await asyncio.sleep(_WATCH_EVERY)

    watcher = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
