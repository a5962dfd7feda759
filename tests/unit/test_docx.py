"""Word documents: what is read, what is left out, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import docx as python_docx
import pytest

from docsum.errors import DocumentBomb, EmptyDocument, Encrypted, ExtractError, NotADocument, Undecodable
from docsum.extractors import docx
from docsum.extractors.sniff import HEAD, OLE, Kind, kind_of
from tests.support import documents
from tests.support.documents import paragraph as p


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r>"


def cell(*paragraphs: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{''.join(paragraphs)}</w:tc>"


def row(*cells: str) -> str:
    return f"<w:tr>{''.join(cells)}</w:tr>"


def table(*rows: str) -> str:
    return f"<w:tbl>{''.join(rows)}</w:tbl>"


def text_of(body: str, **parts: str) -> str:
    return docx.read(documents.docx(body, parts)).text


STYLES = documents.word_part(
    "styles",
    '<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Kapitel"><w:name w:val="Kapitel"/><w:basedOn w:val="berschrift1"/></w:style>'
    '<w:style w:styleId="Verzeichnis"><w:name w:val="TOC Heading"/><w:basedOn w:val="berschrift1"/>'
    '<w:pPr><w:outlineLvl w:val="9"/></w:pPr></w:style>'
    '<w:style w:styleId="Titel"><w:name w:val="Title"/></w:style>'
    '<w:style w:styleId="A"><w:name w:val="A"/><w:basedOn w:val="B"/></w:style>'
    '<w:style w:styleId="B"><w:name w:val="B"/><w:basedOn w:val="A"/></w:style>'
    '<w:style w:styleId="Notiz"><w:name w:val="Hidden note"/><w:rPr><w:vanish/></w:rPr></w:style>'
    '<w:style w:styleId="Punkte"><w:name w:val="Points"/>'
    '<w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>',
)


def style(name: str) -> str:
    return f'<w:pStyle w:val="{name}"/>'


@pytest.mark.parametrize(
    ("properties", "mark"),
    [
        (style("berschrift1"), "# "),
        (style("Kapitel"), "# "),
        (style("Titel"), "# "),
        (style("Verzeichnis"), ""),
        (style("A"), ""),
        (style("Unknown"), ""),
        (style("Heading 3"), "### "),  # no such style in the file: the usual names count
        (style("Heading9"), "###### "),
        ('<w:outlineLvl w:val="1"/>', "## "),
        (f'{style("berschrift1")}<w:outlineLvl w:val="9"/>', ""),
        (f"{style('A')}<w:pPrChange><w:pPr>{style('berschrift1')}</w:pPr></w:pPrChange>", ""),
    ],
)
def test_headings_are_told_by_style_and_outline(properties: str, mark: str) -> None:
    text = text_of(p("Fees of the harbour", properties) + p("They are due in May."), styles=STYLES)
    assert text == f"{mark}Fees of the harbour\n\nThey are due in May."


def test_a_paragraph_with_an_outline_level_is_no_heading() -> None:
    assert not text_of(p("word " * 100, style("Titel")), styles=STYLES).startswith("#")


NUMBERING = documents.word_part(
    "numbering",
    '<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>'
    '<w:abstractNum w:abstractNumId="1">'
    '<w:lvl w:ilvl="0"><w:start w:val="4"/><w:numFmt w:val="decimal"/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/></w:lvl></w:abstractNum>'
    '<w:abstractNum w:abstractNumId="2"><w:lvl w:ilvl="0"><w:numFmt w:val="none"/></w:lvl></w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
    '<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
    '<w:num w:numId="3"><w:abstractNumId w:val="1"/></w:num>'
    '<w:num w:numId="4"><w:abstractNumId w:val="1"/>'
    '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="4"/></w:lvlOverride></w:num>'
    '<w:num w:numId="5"><w:abstractNumId w:val="2"/></w:num>',
)


def item(text: str, number_id: int, level: int = 0) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number_id}"/></w:numPr>')


def test_lists_keep_their_numbers_and_depth() -> None:
    body = (
        *(item("four", 2), item("five", 2), item("a", 2, 1), item("b", 2, 1), item("six", 2)),
        *(item("a", 2, 1), item("seven", 3), item("again four", 4), p("Between.")),
        *(item("point", 1), item("deeper", 1, 1), item("none", 5), item("off", 0)),
        p("by style", style("Punkte")),
    )
    assert text_of("".join(body), numbering=NUMBERING, styles=STYLES) == (
        "4. four\n5. five\n  1. a\n  2. b\n6. six\n  1. a\n7. seven\n4. again four\n\nBetween.\n\n"
        "- point\n  - deeper\n\nnone\n\noff\n\n- by style"
    )


def test_tables_are_rows_with_bars() -> None:
    inner = table(row(cell(p("red")), cell(p("3"))), row(cell(p("blue")), cell(p("4"))))
    body = (
        p("Before.")
        + table(
            row(cell(p("Ship")), cell(p("Fee"), p("in euros")), cell(p("Note"))),
            row(cell(p("Wide"), properties='<w:gridSpan w:val="2"/>'), cell(p("n"))),
            row(cell(p(""), properties="<w:vMerge/>"), cell(p("20")), cell(p(""))),
            row(cell(p("Nested")), cell(inner, p(""))),
            row(cell(p("")), cell(p(""))),
            '<w:tr><w:trPr><w:del w:id="1"/></w:trPr>' + cell(p("gone")) + cell(p("gone")) + "</w:tr>",
        )
        + table(row(cell(p("Next")), cell(p("table"))))
        + p("After.")
    )
    assert text_of(body) == (
        "Before.\n\nShip | Fee in euros | Note\nWide | n\n | 20\nNested | red, 3; blue, 4\n\n"
        "Next | table\n\nAfter."
    )


def test_a_frame_of_one_cell_keeps_what_is_in_it() -> None:
    body = table(
        row(cell(p("Fees", style("Titel")), p("Due in May."), table(row(cell(p("a")), cell(p("b"))))))
    )
    assert text_of(body, styles=STYLES) == "# Fees\n\nDue in May.\n\na | b"


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (f"<w:ins>{run('kept')}</w:ins>", "kept"),
        (f"<w:moveTo>{run('kept')}</w:moveTo>", "kept"),
        ("<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>", ""),
        (f"<w:del>{run('gone')}</w:del>", ""),
        (f"<w:moveFrom>{run('gone')}</w:moveFrom>", ""),
        (run("hidden", "<w:vanish/>"), ""),
        (run("shown", '<w:vanish w:val="0"/>'), "shown"),
        (run("hidden", '<w:rStyle w:val="Notiz"/>'), ""),
        (run("shown", '<w:rStyle w:val="Notiz"/><w:vanish w:val="false"/>'), "shown"),
        (f'<w:hyperlink r:id="r9">{run("link")}</w:hyperlink>', "link"),
        (f'<w:fldSimple w:instr="PAGE">{run("7")}</w:fldSimple>', "7"),
        ("<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/></w:r>", "a\tb\nc-"),
        ("<w:r><w:sym w:font='Wingdings' w:char='F0FC'/></w:r>", ""),
        ("<m:oMath><m:r><m:t>x+1</m:t></m:r></m:oMath>", "x+1"),
        (f"<w:sdt><w:sdtPr><w:t>no</w:t></w:sdtPr><w:sdtContent>{run('box')}</w:sdtContent></w:sdt>", "box"),
        (f"<w:ruby><w:rt>{run('toukyou')}</w:rt><w:rubyBase>{run('東京')}</w:rubyBase></w:ruby>", "東京"),
        ("<!-- remark --><?target data?>", ""),
    ],
)
def test_what_is_seen_is_text(inside: str, text: str) -> None:
    found = text_of(f"<w:p>{run('See ')}{inside}{run(' here')}</w:p>", styles=STYLES)
    assert found == f"See {text} here"


def test_codes_of_fields_are_left_out_and_results_kept() -> None:
    def mark(kind: str) -> str:
        return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

    nested = mark("begin") + run("code") + mark("separate") + run("inner") + mark("end")
    field = mark("begin") + "<w:r><w:instrText>IF 1</w:instrText></w:r>" + nested + mark("separate")
    assert text_of(f"<w:p>{field}{run('result')}{mark('end')}{run(' after')}</w:p>") == "result after"
    assert (
        text_of(f"<w:p>{mark('begin')}{run('code')}</w:p>{p('The rest is not lost.')}")
        == "The rest is not lost."
    )
    assert text_of(f"<w:p>{mark('end')}{mark('separate')}{run('well')}</w:p>") == "well"


def test_a_text_box_is_read_once_and_after_its_paragraph() -> None:
    box = f"<w:txbxContent>{p('In the box.')}</w:txbxContent>"
    body = (
        f"<w:p>{run('Anchored')}<w:r><mc:AlternateContent>"
        f"<mc:Choice Requires='wps'><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>"
        f"<mc:Choice Requires='x'>{box}</mc:Choice><mc:Fallback><w:pict>{box}</w:pict></mc:Fallback>"
        f"</mc:AlternateContent></w:r>{run(' here')}</w:p>"
        f"<w:p><w:r><w:pict><v:textbox>{box.replace('In the', 'Old')}</v:textbox></w:pict></w:r></w:p>"
        "<w:p><w:r><mc:AlternateContent><mc:Fallback><w:t>alone</w:t></mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    assert text_of(body) == "Anchored here\n\nIn the box.\n\nOld box.\n\nalone"


def test_notes_follow_in_the_order_of_their_marks() -> None:
    def mark(kind: str, identity: int) -> str:
        return f'<w:r><w:{kind}Reference w:id="{identity}"/></w:r>'

    deleted = f"<w:del>{mark('footnote', 3)}</w:del>"
    body = f"<w:p>{run('One')}{mark('endnote', 5)}{run(' two')}{mark('footnote', 2)}{deleted}</w:p>"
    notes = {
        "footnotes": documents.word_part(
            "footnotes",
            f'<w:footnote w:id="0">{p("separator")}</w:footnote>'
            f'<w:footnote w:id="2">{p("A foot")}{p("note.")}</w:footnote>'
            f'<w:footnote w:id="3">{p("gone")}</w:footnote>',
        ),
        "endnotes": documents.word_part("endnotes", f'<w:endnote w:id="5">{p("An end note.")}</w:endnote>'),
    }
    assert text_of(body, **notes) == "One[^1] two[^2]\n\n[^1]: An end note.\n\n[^2]: A foot note."


def test_headers_and_footers_come_once_and_short() -> None:
    header = documents.word_part("hdr", p("Port authority, confidential"))
    parts = {
        "header1": header,
        "header2": header,
        "header3": documents.word_part("hdr", p("7")),
        "footer1": documents.word_part("ftr", p("long " * 100)),
    }
    text = text_of(p("The text."), **parts)
    assert text.startswith("The text.\n\nPort authority, confidential\n\nlong long")
    assert text.count("Port authority") == 1
    assert len(text) < 300


def test_the_strict_form_reads_the_same() -> None:
    content = documents.docx(
        p("Fees", '<w:outlineLvl w:val="0"/>') + p("Due in May."), namespace=documents.STRICT_WORD
    )
    assert docx.read(content).text == "# Fees\n\nDue in May."


def made_with_python_docx() -> bytes:
    made = python_docx.Document()
    made.add_heading("Harbour rules", 0)
    made.add_heading("Fees", 1)
    made.add_paragraph("Fees are due in May.")
    made.add_paragraph("pilots", style="List Bullet")
    made.add_paragraph("rescue boats", style="List Number")
    made.add_paragraph("quay walls", style="List Number")
    grid = made.add_table(2, 2)
    for number, inside in enumerate(("Ship", "Fee", "Barge", "20")):
        grid.cell(number // 2, number % 2).text = inside
    buffer = io.BytesIO()
    made.save(buffer)
    return buffer.getvalue()


def test_what_python_docx_writes_reads_back() -> None:
    content = made_with_python_docx()
    assert kind_of(content[:HEAD]) is Kind.DOCX
    found = docx.read(content)
    assert found.text == (
        "# Harbour rules\n\n# Fees\n\nFees are due in May.\n\n- pilots\n1. rescue boats\n2. quay walls\n\n"
        "Ship | Fee\nBarge | 20"
    )
    assert (found.media_type, found.pages, found.truncated) == (Kind.DOCX.value, None, False)


@pytest.mark.parametrize(
    "main_type",
    [
        "application/vnd.ms-word.document.macroEnabled.main+xml",
        "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    ],
)
def test_macros_are_ignored(main_type: str) -> None:
    parts = documents.word_parts(documents.word_part("document", p("The text.")), main_type=main_type)
    assert docx.read(documents.zipped({**parts, "word/vbaProject.bin": b"Shell"})).text == "The text."


def moved(parts: dict[str, bytes]) -> dict[str, bytes]:
    """The main part under another name, as some programs write it, far behind a large picture."""
    return {"word/media/picture.png": bytes(range(256)) * 400} | {
        name.replace("word/document", "Word/document2"): content.replace(
            b"word/document.", b"WORD/Document2."
        )
        for name, content in parts.items()
    }


def only_the_text(parts: dict[str, bytes]) -> dict[str, bytes]:
    return {"readme.txt": b"x" * 20_000, "word/document.xml": parts["word/document.xml"]}


@pytest.mark.parametrize("change", [moved, only_the_text])
def test_the_main_part_is_found(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    parts = documents.word_parts(documents.word_part("document", p("The text of a document.") * 20))
    content = documents.zipped(change(parts))
    assert kind_of(content[:HEAD]) is Kind.DOCX
    assert docx.read(content).text.startswith("The text of a document.")


def test_a_long_text_is_cut_where_it_may_be_no_longer() -> None:
    body = p("word " * 10) + table(row(cell(p("in the table")), cell(p("not any more")))) * 1_000
    found = docx.read(documents.docx(body), max_characters=62)
    assert found.truncated
    assert found.text == ("word " * 10).strip() + "\n\nin the table"[: 62 - 49]


@pytest.mark.parametrize("name", ["styles", "numbering", "footnotes"])
def test_a_broken_part_beside_the_text_is_not_missed(name: str) -> None:
    assert text_of(p("The text."), **{name: "<w:broken"}) == "The text."


def zipped(*names: str) -> bytes:
    return documents.zipped(dict.fromkeys(names, b"<x/>"))


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (zipped("a.txt"), NotADocument, "This looks like a ZIP archive, not a document."),
        (zipped(), NotADocument, "This looks like a ZIP archive, not a document."),
        (documents.zipped({"a.pdf": documents.pdf(1)}), NotADocument, "This looks like a ZIP archive"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), NotADocument, "Excel workbooks are not read yet."),
        (zipped("[Content_Types].xml", "ppt/a.xml"), NotADocument, "PowerPoint presentations are not read"),
        (zipped("mimetype", "content.xml"), NotADocument, "OpenDocument files are not read yet."),
        (zipped("mimetype", "META-INF/container.xml"), NotADocument, "EPUB books are not read yet."),
        (zipped("META-INF/MANIFEST.MF", "A.class"), NotADocument, "This looks like a Java archive (.jar)"),
        (OLE + b"W\0o\0r\0d\0" * 99, NotADocument, "Old Office documents (.doc"),
        (OLE + "EncryptedPackage".encode("utf-16-le"), Encrypted, "The Office document needs a password."),
        (documents.docx(p("")), EmptyDocument, "There is no text in the document."),
        (documents.docx(p("text"))[:-30], Undecodable, "damaged ZIP archive or Word document"),
        (documents.docx("<w:p>"), Undecodable, "its XML is broken"),
    ],
)
def test_others_are_refused_with_what_they_are(
    content: bytes, error: type[ExtractError], sentence: str
) -> None:
    with pytest.raises(error) as refused:
        docx.read(content)
    assert sentence in str(refused.value)


LAUGHS = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    "doctype",
    [
        f'<!DOCTYPE x [<!ENTITY e0 "ha">{LAUGHS}]>',
        '<!DOCTYPE x [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>',
    ],
)
@pytest.mark.parametrize("part", ["word/document.xml", "word/styles.xml", "_rels/.rels"])
def test_a_part_that_declares_entities_is_refused(doctype: str, part: str) -> None:
    document = documents.word_part("document", p("Text &e9;" if part == "word/document.xml" else "Text"))
    parts = documents.word_parts(document, {"styles": STYLES})
    parts[part] = parts[part].replace(b"?>", b"?>" + doctype.encode(), 1)
    if not parts[part].startswith(b"<?xml"):
        parts[part] = doctype.encode() + parts[part]
    with pytest.raises(DocumentBomb, match="XML entities"):
        docx.read(documents.zipped(parts))


def test_sizes_are_looked_at_before_anything_is_unpacked() -> None:
    with pytest.raises(DocumentBomb, match="unpacks to 1,04"):
        docx.read(documents.docx_bomb(999))
    with pytest.raises(DocumentBomb, match="unpacks to 31 MB"):
        docx.read(documents.docx_bomb(30))


def test_a_size_that_lies_does_not_unpack_more() -> None:
    with pytest.raises(Undecodable):
        docx.read(documents.docx_bomb(999, announced=5_000))


def test_an_encrypted_entry_needs_a_password() -> None:
    entries = documents.entries_of(documents.word_parts(documents.word_part("document", p("Text."))))
    locked = [
        documents.Entry(e.name, e.packed, e.size, e.crc, flags=1) if "document.xml" in e.name else e
        for e in entries
    ]
    with pytest.raises(Encrypted):
        docx.read(documents.archive(locked))
