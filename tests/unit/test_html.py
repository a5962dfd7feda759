"""Pages: structure that survives, encodings that lie, markup that is cut or endless."""

from __future__ import annotations

import pytest

from docsum.errors import EmptyDocument
from docsum.extractors import html

SENTENCE = "The harbour office is closed on Monday because of the storm, and opens again on Tuesday. "
PAGE = f"""<html><head><title>Harbour rules</title></head><body><nav><a href="/">Home</a></nav><main>
<h1>Harbour rules</h1><p>{SENTENCE * 3}</p>
<h2>Fees <small>since May</small></h2><p>{SENTENCE * 2}</p>
<table><tr><th>Ship</th><th>Fee</th></tr><tr><td>Barge</td><td>20</td></tr></table>
<h3>
  Exceptions</h3><p>{SENTENCE * 2}</p><ol><li>Pilots</li><li>Rescue boats</li></ol>
</main></body></html>"""


@pytest.mark.parametrize("careful", [False, True])
def test_headings_and_tables_survive(careful: bool) -> None:
    lines = html.read(PAGE.encode(), careful=careful).text.splitlines()
    assert {"# Harbour rules", "## Fees since May", "### Exceptions"} <= set(lines)
    row = next(line for line in lines if "Barge" in line)
    assert "20" in row
    assert "Pilots" in "".join(lines)


def test_a_heading_is_named_once() -> None:
    text = html.read(PAGE.encode()).text
    assert text.count("Harbour rules") == 1
    assert "Home" not in text


def test_a_page_without_a_heading_begins_with_its_title() -> None:
    page = f"<html><head><title>Harbour news</title></head><body><p>{SENTENCE * 5}</p></body></html>"
    assert html.read(page.encode()).text.startswith("# Harbour news\n\nThe harbour office")


def test_a_list_of_links_is_text_when_there_is_no_other() -> None:
    items = "".join(f'<li><a href="/{n}">Chapter {n} of the harbour rules</a></li>' for n in range(40))
    assert "Chapter 39" in html.read(f"<html><body><ul>{items}</ul></body></html>".encode()).text


GREETING = "Grüße aus Köln, über „Straßen“ – schönes Wetter"


def page(declared: str) -> str:
    return f'<html><head><meta charset="{declared}"></head><body><p>{GREETING}</p></body></html>'


@pytest.mark.parametrize(
    ("declared", "real"),
    [
        ("utf-8", "utf-8"),
        ("windows-1252", "cp1252"),
        ("iso-8859-1", "cp1252"),  # which browsers take it for
        ("iso-8859-1", "utf-8"),  # lies from here on
        ("utf-8", "cp1252"),
        ("utf-16", "utf-8"),
        ("utf-7", "utf-8"),
        ("no-such-thing", "utf-8"),
        ("hex", "cp1252"),
        ("shift_jis", "utf-8-sig"),
        ("utf-8", "utf-16"),
        ("utf-8", "utf-16-le"),
    ],
)
def test_the_bytes_count_more_than_the_declaration(declared: str, real: str) -> None:
    assert html.read(page(declared).encode(real)).text == GREETING


def test_an_old_declaration_and_another_script() -> None:
    russian = "Заседание совета состоится в понедельник, в десять часов утра. Просим подготовить отчёты."
    head = '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">'
    assert html.read(f"<html>{head}<p>{russian}</p>".encode("cp1251")).text == russian


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body><script>" + b"let x = 1;" * 5_000 + b"</script></body></html>",
        b"<html><head><style>p { color: red }</style></head><body></body></html>",
        b"<html><body><!-- " + b"words in a comment " * 100 + b"--></body></html>",
        b"<html><body><iframe src='file:///etc/passwd'>words</iframe></body></html>",
    ],
)
def test_what_nobody_sees_is_no_text(content: bytes) -> None:
    with pytest.raises(EmptyDocument):
        html.read(content)
