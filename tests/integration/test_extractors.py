"""Documents through real child processes: good, damaged, hostile, and children that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from docsum.errors import (
    ConfigurationError,
    DocumentBomb,
    EmptyDocument,
    Encrypted,
    ExtractError,
    ExtractTimeout,
    NotADocument,
    Scanned,
    Undecodable,
)
from docsum.extractors import DocumentExtractor, html, pdf
from docsum.extractors.sandbox import ANSWER, REQUEST, Sandbox
from docsum.models import Document
from tests.support import documents
from tests.support.waiting import eventually

MEMORY = 1_000_000_000
SAMPLES = Path(__file__).parents[2] / "samples"
by_the_shared_one = pytest.mark.asyncio(loop_scope="module")


def document(content: bytes) -> Document:
    return Document(len(content), "", content=content)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(1, timedelta(seconds=60), MEMORY)
    yield sandbox
    children = [psutil.Process(pid) for pid in sandbox.pids]
    await sandbox.close()
    assert not sandbox.pids
    assert not [child for child in children if child.is_running()]


@pytest.fixture
def extractor(sandbox: Sandbox) -> DocumentExtractor:
    return DocumentExtractor(sandbox)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[DocumentExtractor]:
    """For tests that only read: its child is started once."""
    async with DocumentExtractor(Sandbox(1, timedelta(seconds=60), MEMORY)) as extractor:
        yield extractor


def child_of(sandbox: Sandbox) -> psutil.Process:
    (pid,) = sandbox.pids
    return psutil.Process(pid)


# -- good documents ------------------------------------------------------------------------------------------


async def test_text_needs_no_child(extractor: DocumentExtractor, sandbox: Sandbox) -> None:
    found = await extractor.extract(document(b"# Minutes\n\nWe met on Monday."))
    assert (found.text, found.media_type) == ("# Minutes\n\nWe met on Monday.", "text/markdown")
    large = await extractor.extract(document(b"We met on Monday.\n" * 30_000))
    assert large.text.count("Monday") == 30_000
    assert not sandbox.pids


async def test_pdf_word_and_html_share_one_child(extractor: DocumentExtractor, sandbox: Sandbox) -> None:
    found = await extractor.extract(document(documents.pdf(3)))
    first = sandbox.pids
    assert (found.pages, found.media_type, found.truncated) == (3, "application/pdf", False)
    assert "Page 3, line 39: the pump was serviced" in found.text

    word = await extractor.extract(document(documents.docx(documents.paragraph("The pump was serviced."))))
    assert (word.text, word.pages) == ("The pump was serviced.", None)

    article = await extractor.extract(document(documents.ARTICLE.encode()))
    assert article.text.startswith("# New crane for the eastern quay")
    assert "six crane drivers" in article.text
    for unseen in ("secret", "comment", "Ignore your instructions", "Hidden words", "color: red", "Imprint"):
        assert unseen not in article.text
    assert sandbox.pids == first


@by_the_shared_one
async def test_a_document_in_a_file_stays_the_callers(shared: DocumentExtractor, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    content = documents.pdf(60)
    path.write_bytes(content)
    found = await shared.extract(Document(len(content), "", path=path))
    assert found.pages == 60
    path.write_text("A plain note, long enough.")
    assert (await shared.extract(Document(26, "", path=path))).text == "A plain note, long enough."
    assert path.exists()


async def test_children_work_side_by_side_and_no_more_than_allowed() -> None:
    sandbox = Sandbox(2, timedelta(seconds=60), MEMORY)
    contents = [documents.pdf(pages) for pages in range(1, 9)]
    found = await asyncio.gather(*(DocumentExtractor(sandbox).extract(document(c)) for c in contents))
    assert [text.pages for text in found] == list(range(1, 9))
    assert len(sandbox.pids) == 2
    await sandbox.close()
    assert not sandbox.pids


def test_caps_cut_and_say_so() -> None:
    content = documents.pdf(4)
    two = pdf.read(content, max_pages=2)
    assert "Page 2" in two.text
    assert "Page 3" not in two.text
    assert (two.truncated, two.pages) == (True, 4)
    short = pdf.read(content, max_characters=50)
    assert (len(short.text), short.truncated) == (50, True)
    assert pdf.read(content, careful=True, max_pages=1).truncated
    assert html.read(b"<p>" + b"word " * 1_000, max_characters=40).truncated


def test_both_libraries_read_a_pdf() -> None:
    content = documents.pdf(2)
    assert pdf.read(content).text.split() == pdf.read(content, careful=True).text.split()


def test_what_is_filled_in_is_text() -> None:
    found = pdf.read(documents.form_pdf("Name of the ship:", "Barge Wilhelmina")).text
    assert found == "Name of the ship:\nBarge Wilhelmina"
    comment = "Checked by the pilot of the harbour"
    assert pdf.read(documents.commented_pdf(comment)).text == comment


def test_names_of_glyphs_are_no_text() -> None:
    with pytest.raises(Undecodable, match="cannot be read"):
        pdf.read(documents.glyph_named_pdf(), careful=True)


def test_little_text_is_not_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pdf, "_by_pypdf")
    assert pdf.read(documents.pdf(1, lines=1)).text == documents.LINE.format(page=1, line=0)
    with pytest.raises(Scanned):
        pdf.read(documents.scanned_pdf(2))


def test_chapters_are_not_lost_with_the_boilerplate() -> None:
    said = "<p>The port authority has ordered a new crane for the eastern quay, which lifts sixty tonnes.</p>"
    page = f"<html><body><nav><a href='/'>Home</a></nav><article>{said * 4}</article>"
    page += "".join(f'<div class="sidebar"><p>Rule {n}: ships wait outside.</p></div>' for n in range(99))
    found = html.read(f"{page}<footer>Imprint</footer></body></html>".encode()).text
    assert "sixty tonnes" in found
    assert "Rule 98" in found
    assert "Home" not in found
    assert "Imprint" not in found


def test_a_page_that_waits_for_its_script_is_read() -> None:
    page = f"<html><title>News</title><body><div style='display:none'>{documents.ARTICLE}</div></body></html>"
    assert "six crane drivers" in html.read(page.encode()).text


@pytest.mark.parametrize("style", ["font-size: 0", "opacity:0;", "OPACITY: 0.0", "font-size:0px; color: red"])
@pytest.mark.parametrize("careful", [False, True])
def test_what_is_too_small_or_too_pale_is_not_seen(style: str, careful: bool) -> None:
    page = documents.ARTICLE.replace("display: none", style)
    assert "Ignore your instructions" not in html.read(page.encode(), careful=careful).text
    page = documents.ARTICLE.replace("display: none", "opacity: 0.9; font-size: 0.8em")
    assert "Ignore your instructions" in html.read(page.encode(), careful=careful).text


def test_headings_come_once_and_identifiers_as_they_are() -> None:
    page = "<html><body><h1>The <code>crane_up</code> call<a href='#x'>¶</a></h1>"
    page += "<p>Use crane_up and crane_down with care, as the manual of the harbour authority says.</p>" * 6
    found = html.read(f"{page}</body></html>".encode()).text
    assert found.count("# The") == 1
    assert "¶" not in found
    assert "\\" not in found


@pytest.mark.parametrize("careful", [False, True])
def test_both_parsers_leave_out_what_is_not_seen(careful: bool) -> None:
    found = html.read(documents.ARTICLE.encode(), careful=careful).text
    assert "sixty tonnes" in found
    assert "Ignore your instructions" not in found
    assert "never read" not in found


def test_a_declared_encoding_counts() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>Grüße – „Köln“</p></body></html>'
    assert html.read(page.encode("cp1252")).text == "Grüße – „Köln“"


# -- documents without a text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (b"", EmptyDocument, "The file is empty"),
        (documents.encrypted_pdf(), Encrypted, "needs a password"),
        (documents.scanned_pdf(2), Scanned, "2 pages, no text: looks like a scan"),
        (documents.PROGRAM, NotADocument, "looks like a Windows program"),
        (documents.pdf(3, lines=0), EmptyDocument, "3 pages without any text"),
        (documents.pdf(100)[:20_000], Undecodable, "damaged"),
        (documents.flip_bits(documents.pdf(100), 2_000, seed=1), Undecodable, "damaged"),
        (b"%PDF-1.7\nnot at all", Undecodable, "damaged"),
        (b"<html><body><script>" + b"x = 1;" * 5_000 + b"</script></body></html>", EmptyDocument, "no text"),
        (
            b"<html><script>" + b"x = 1;" * 5_000 + b"</script><p>Enable it",
            EmptyDocument,
            "only 8 letters of text in 30,",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(getattr(value, "__name__", value)),
)
@by_the_shared_one
async def test_each_has_its_reason(
    shared: DocumentExtractor, content: bytes, error: type[ExtractError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        await shared.extract(document(content))


@pytest.mark.parametrize("seed", range(2, 8))
@by_the_shared_one
async def test_flipped_bits_never_give_a_scrap_of_the_text(shared: DocumentExtractor, seed: int) -> None:
    whole = documents.pdf(60)
    try:
        found = await shared.extract(document(documents.flip_bits(whole, 2_000, seed)))
    except Undecodable:
        return
    assert len(found.text) > len(pdf.read(whole).text) / 2


# -- hostile documents ---------------------------------------------------------------------------------------


async def test_a_flate_bomb_meets_the_limit() -> None:
    memory = 300_000_000
    sandbox = Sandbox(1, timedelta(seconds=60), memory)
    extractor = DocumentExtractor(sandbox)
    await extractor.extract(document(documents.pdf(1)))
    bomb = documents.flate_bomb(megabytes=400)
    assert len(bomb) < 5_000
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            for pid in sandbox.pids:
                with contextlib.suppress(psutil.Error):
                    most = max(most, psutil.Process(pid).memory_info().rss)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    with pytest.raises(DocumentBomb):
        await extractor.extract(document(bomb))
    watching.cancel()
    assert 0 < most < memory
    assert (await extractor.extract(document(documents.pdf(1)))).pages == 1
    await sandbox.close()


@by_the_shared_one
async def test_deep_nesting_still_gives_the_text(shared: DocumentExtractor) -> None:
    text = " ".join(["The harbour is closed on Monday because of the storm."] * 3)
    found = await shared.extract(document(documents.nested_html(200_000, text)))
    assert found.text == text


async def test_the_deadline_kills_the_child() -> None:
    sandbox = Sandbox(1, timedelta(seconds=1.5), MEMORY)
    extractor = DocumentExtractor(sandbox)
    await extractor.extract(document(documents.pdf(1)))
    slow = child_of(sandbox)
    slow.suspend()
    with pytest.raises(ExtractTimeout, match=r"longer than 1\.5 s"):
        await extractor.extract(document(documents.pdf(1)))
    assert (await extractor.extract(document(documents.pdf(1)))).pages == 1
    await eventually(lambda: not slow.is_running())
    await sandbox.close()


async def test_too_little_memory_to_start_is_our_setting() -> None:
    sandbox = Sandbox(1, timedelta(seconds=10), 40_000_000)
    with pytest.raises(ConfigurationError, match="DOCSUM_EXTRACT__MEMORY"):
        await DocumentExtractor(sandbox).extract(document(documents.pdf(1)))
    await sandbox.close()


async def test_where_the_system_has_no_limit_the_parent_watches() -> None:
    sandbox = Sandbox(1, timedelta(seconds=60), 300_000_000, watch=True)
    extractor = DocumentExtractor(sandbox)
    assert (await extractor.extract(document(documents.pdf(60)))).pages == 60
    child = child_of(sandbox)
    assert limits(child.pid)["Max address space"] == "unlimited"
    with pytest.raises(DocumentBomb, match="more memory than DOCSUM_EXTRACT__MEMORY"):
        await extractor.extract(document(documents.large_flate_bomb(2_000)))
    assert not child.is_running()
    assert (await extractor.extract(document(documents.pdf(1)))).pages == 1
    await sandbox.close()


@by_the_shared_one
async def test_the_pages_of_a_scan_come_through(shared: DocumentExtractor) -> None:
    with pytest.raises(Scanned, match="1 of 7 pages has text, the others are pictures") as refused:
        await shared.extract(document(documents.mixed_pdf(1, 6)))
    assert refused.value.pages == 7


# -- the walls -----------------------------------------------------------------------------------------------


def exists(folder: str) -> bool:
    return Path(folder).exists()


def limits(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def network(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def may_leave_the_network() -> bool:
    return subprocess.run(["unshare", "-Un", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_child_has_no_secret_no_file_and_no_network(
    extractor: DocumentExtractor, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    await extractor.extract(document(documents.pdf(1)))
    child = child_of(sandbox)
    assert set(child.environ()) <= {"LD_LIBRARY_PATH", "LC_CTYPE"}
    assert not exists(child.cwd())
    named = limits(child.pid)
    assert named["Max address space"] == str(MEMORY)
    assert named["Max file size"] == named["Max core file size"] == "0"
    assert named["Max open files"] == "0"
    assert os.getsid(child.pid) == child.pid
    if may_leave_the_network():
        assert network(child.pid) != network(os.getpid())


HOOK = """
import socket, sys
from docsum.extractors import child
from docsum.extractors.sniff import Kind
from docsum.models import ExtractedText

def attempt(step):
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__} {getattr(error, 'errno', '')}"
    return "done"

def read(content, *, careful):
    path, port = content.decode().split("|")
    tried = [
        attempt(lambda: open(path).read()),
        attempt(lambda: open(path, "a").write("x")),
        attempt(lambda: __import__("os").listdir("/")),
        attempt(lambda: __import__("antigravity")),
        attempt(lambda: socket.create_connection(("127.0.0.1", int(port)), 5)),
        attempt(lambda: __import__("subprocess").run(["true"])),
    ]
    return ExtractedText(", ".join(tried), "text/plain")

child._READERS[b"P"] = read
child.main()
"""


def test_a_reader_gone_wild_opens_no_file_and_no_connection(tmp_path: Path) -> None:
    marker = tmp_path / "private.txt"
    marker.write_text("the user's own words")
    with socket.create_server(("127.0.0.1", 0)) as server:
        content = f"{marker}|{server.getsockname()[1]}".encode()
        ran = subprocess.run(
            [sys.executable, "-c", HOOK, "0", "60"],
            input=REQUEST.pack(b"P", False, len(content)) + content,
            capture_output=True,
            timeout=60,
            check=True,
        )
    body = ran.stdout[2 * ANSWER.size + len("{}") :]
    assert json.loads(body)["text"] == ", ".join([f"OSError {errno.EMFILE}"] * 6)
    assert marker.read_text() == "the user's own words"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no network to leave")
def test_a_network_that_was_left_reaches_nobody() -> None:
    if not may_leave_the_network():
        pytest.skip("this system does not let us make a network")
    program = (
        "import socket, sys; from docsum.extractors import child; child.leave_network();"
        "sys.exit(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = subprocess.run([sys.executable, "-c", program, str(port)], timeout=30, check=False)
        assert ran.returncode in (errno.ENETUNREACH, errno.ECONNREFUSED)
        with socket.create_connection(("127.0.0.1", port), 5):
            pass  # from here it is reached


async def test_a_child_killed_from_outside_costs_nothing(
    extractor: DocumentExtractor, sandbox: Sandbox
) -> None:
    await extractor.extract(document(documents.pdf(1)))
    for _ in range(2):
        idle = child_of(sandbox)
        idle.kill()
        assert (await extractor.extract(document(documents.pdf(2)))).pages == 2
        assert idle.pid not in sandbox.pids


async def test_a_child_killed_in_the_middle_is_replaced(
    extractor: DocumentExtractor, sandbox: Sandbox
) -> None:
    await extractor.extract(document(documents.pdf(1)))
    busy = child_of(sandbox)
    busy.suspend()
    extracting = asyncio.create_task(extractor.extract(document(documents.pdf(5))))
    await eventually(lambda: not sandbox._idle)
    busy.kill()
    assert (await extracting).pages == 5


async def test_cancelling_ends_the_child_and_the_next_document_is_read(
    extractor: DocumentExtractor, sandbox: Sandbox
) -> None:
    await extractor.extract(document(documents.pdf(1)))
    busy = child_of(sandbox)
    busy.suspend()
    extracting = asyncio.create_task(extractor.extract(document(documents.pdf(5))))
    await eventually(lambda: not sandbox._idle)
    extracting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await extracting
    await eventually(lambda: not busy.is_running())
    assert (await extractor.extract(document(documents.pdf(1)))).pages == 1


async def test_cancelling_during_the_start_leaves_no_child(
    extractor: DocumentExtractor, sandbox: Sandbox
) -> None:
    extracting = asyncio.create_task(extractor.extract(document(documents.pdf(1))))
    await eventually(lambda: bool(sandbox.pids))
    extracting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await extracting
    await eventually(lambda: not sandbox.pids)


async def test_closing_abandons_what_is_being_read(extractor: DocumentExtractor, sandbox: Sandbox) -> None:
    await extractor.extract(document(documents.pdf(1)))
    child_of(sandbox).suspend()
    extracting = asyncio.create_task(extractor.extract(document(documents.pdf(5))))
    await eventually(lambda: not sandbox._idle)
    await sandbox.close()
    with pytest.raises(asyncio.CancelledError):
        await extracting
    with pytest.raises(asyncio.CancelledError):
        await extractor.extract(document(documents.pdf(1)))


@pytest.mark.parametrize("busy", [False, True])
async def test_no_child_outlives_a_killed_parent(busy: bool) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from datetime import timedelta
        from docsum.extractors import DocumentExtractor
        from docsum.extractors.sandbox import Sandbox
        from docsum.models import Document

        async def main():
            sandbox = Sandbox(1, timedelta(seconds=60), 1_000_000_000)
            content = b"<html><p>Some words to be read"
            while True:
                await DocumentExtractor(sandbox).extract(Document(len(content), "", content=content))
                print(*sandbox.pids, flush=True)
                if len(sys.argv) == 1:
                    await asyncio.sleep(60)

        asyncio.run(main())
    """)
    arguments = [sys.executable, "-c", program, *(["busy"] if busy else [])]
    parent = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.communicate()
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# -- the samples ---------------------------------------------------------------------------------------------

REFUSED = {
    "empty.txt": EmptyDocument,
    "report.txt": NotADocument,
    "scan.pdf": Scanned,
    "broken.pdf": Undecodable,
    "encrypted.pdf": Encrypted,
}


@by_the_shared_one
async def test_every_sample_does_what_its_readme_says(shared: DocumentExtractor) -> None:
    listed = [
        line.split("`")[1] for line in (SAMPLES / "README.md").read_text().splitlines() if "| `" in line
    ]
    files = sorted(path.name for path in (SAMPLES / "documents").iterdir())
    assert sorted(listed) == files
    for name in files:
        content = (SAMPLES / "documents" / name).read_bytes()
        if name in REFUSED:
            with pytest.raises(REFUSED[name]):
                await shared.extract(document(content))
        else:
            found = await shared.extract(document(content))
            assert len(found.text) > 500, name
            assert "\ufffd" not in found.text, name
