"""WordprocessingML as a stream of XML events: paragraphs, headings, lists and tables become Markdown.

No tree is built: memory is that of the text. What is not seen is left out: deleted and hidden text, field
codes, the second branch of alternate content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from docsum.errors import DocumentBomb, Undecodable
from docsum.extractors.word_styles import (
    Attributes,
    Level,
    Sheet,
    Style,
    attribute,
    heading_of,
    is_on,
    number_of,
    short_name,
)

#: Nothing inside these is seen: former properties, deleted text, codes of fields, readings over characters.
_UNSEEN = frozenset(
    "pPrChange rPrChange tblPrChange trPrChange tcPrChange sectPrChange sectPr sdtPr tabs rt"
    " del moveFrom delText instrText delInstrText".split()
)
_TEXT = frozenset(("t", "m:t"))
_CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}

_LONGEST_HEADING = 300  # characters; people give outline levels to whole paragraphs
_DEEPEST_HEADING = 6  # of Markdown
_LISTS = 1  # the group of list items
_STEP = 65_536  # bytes fed to the parser at once


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph, a list item or a table's row."""

    text: str
    mark: str = ""  # before the text: "# ", "- "
    cells: tuple[str, ...] = ()  # of a row
    group: int = 0  # no blank line between two of the same list or table; 0: neither


@dataclass(slots=True)
class _Paragraph:
    texts: list[str] = field(default_factory=list)
    boxes: list[_Block] = field(default_factory=list)  # text boxes anchored in it
    style: str = ""
    outline: int | None = None
    number_id: str | None = None
    level: int | None = None


@dataclass(slots=True)
class _Row:
    cells: list[list[_Block]] = field(default_factory=list)
    deleted: bool = False


class Story:
    """Target of an XML parser: the text of one part of a Word document.

    `full`: there are as many characters as there may be, the rest is not read.
    """

    def __init__(self, sheet: Sheet, max_characters: int) -> None:
        self.notes: list[tuple[str, str]] = []  # kind and id of the notes that are referred to, in order
        self.definitions: dict[tuple[str, str], str] = {}  # of notes, where the part is theirs
        self.characters = 0
        self._sheet = sheet
        self._most = max_characters
        self._path: list[str] = []
        self._unseen = 0  # elements open inside one that is not seen
        self._sinks: list[list[_Block]] = [[]]  # the story, then cells, text boxes and notes that are open
        self._paragraphs: list[_Paragraph] = []
        self._tables: list[int] = [_LISTS]  # groups of the tables that are open, above that of lists
        self._last_table = _LISTS
        self._rows: list[_Row] = []
        self._hidden: list[bool] = []  # of the runs that are open
        self._chosen: list[bool] = []  # of alternate content: whether a branch has been taken
        self._fields: list[bool] = []  # of the fields that are open: whether the result has begun
        self._note = ""
        self._counters: dict[str, list[int]] = {}

    @property
    def full(self) -> bool:
        return self.characters >= self._most

    def text(self) -> str:
        """All blocks, a blank line between them unless both are of one list or table."""
        blocks = self._sinks[0]
        parts: list[str] = []
        for number, block in enumerate(blocks):
            if number:
                parts.append("\n" if block.group and block.group == blocks[number - 1].group else "\n\n")
            parts.append(block.mark + block.text)
        return "".join(parts)

    def inline(self) -> str:
        """All in one line: for headers, footers and notes."""
        return _inline(self._sinks[0])

    # -- what the parser calls ---------------------------------------------------------------------------

    def doctype(self, *_: str | None) -> None:
        raise DocumentBomb("The document declares XML entities, which no Word document may.")

    def start(self, tag: str, attributes: Attributes) -> None:
        name = short_name(tag)
        if self._unseen or self._leave_out(name):
            self._unseen += 1
            return
        self._path.append(name)
        handler = _STARTS.get(name)
        if handler is not None:
            handler(self, attributes)
        elif name in _CHARACTERS:
            self._add(_CHARACTERS[name])

    def end(self, _: str) -> None:
        if self._unseen:
            self._unseen -= 1
            return
        handler = _ENDS.get(self._path.pop())
        if handler is not None:
            handler(self)

    def data(self, text: str) -> None:
        if not self._unseen and self._path and self._path[-1] in _TEXT:
            self._add(text)

    def close(self) -> Story:
        """Ends what is still open, where the text was cut."""
        self._unseen = 0
        while self._path:
            self.end("")
        return self

    # -- elements ----------------------------------------------------------------------------------------

    def _leave_out(self, name: str) -> bool:
        if name == "del" and self._rows and self._path[-1:] == ["trPr"]:
            self._rows[-1].deleted = True
        if name in ("mc:Choice", "mc:Fallback") and self._chosen:
            taken, self._chosen[-1] = self._chosen[-1], True
            return taken
        return name in _UNSEEN

    def _add(self, text: str) -> None:
        if self._paragraphs and not any(self._hidden[-1:]) and all(self._fields):
            self._paragraphs[-1].texts.append(text)
            self.characters += len(text)

    def _within(self, *names: str) -> bool:
        """Whether these elements stand around the one that has just begun, the nearest last."""
        return tuple(self._path[-1 - len(names) : -1]) == names

    def _begin_paragraph(self, _: Attributes) -> None:
        self._paragraphs.append(_Paragraph())

    def _end_paragraph(self) -> None:
        self._fields = [True for _ in self._fields]  # no code of a field goes on into the next paragraph
        paragraph = self._paragraphs.pop()
        text = "".join(paragraph.texts).strip()
        if text:
            self._sinks[-1].append(self._block(paragraph, text))
            self.characters += 2
        self._sinks[-1].extend(paragraph.boxes)

    def _block(self, paragraph: _Paragraph, text: str) -> _Block:
        style = self._sheet.styles.get(paragraph.style, Style())
        if paragraph.style not in self._sheet.styles:  # no styles in the file: then by the usual ids
            style = Style(heading_of(paragraph.style.lower(), None))
        heading = style.heading if paragraph.outline is None else heading_of("", paragraph.outline)
        if heading and len(text) <= _LONGEST_HEADING:
            return _Block(" ".join(text.split()), "#" * min(heading, _DEEPEST_HEADING) + " ")
        number_id = paragraph.number_id or style.number_id
        level = paragraph.level if paragraph.level is not None else style.level or 0
        mark = self._list_mark(number_id, level) if number_id and number_id != "0" else ""
        return _Block(text, mark, group=_LISTS if mark else 0)

    def _list_mark(self, number_id: str, depth: int) -> str:
        level = self._sheet.levels.get((number_id, depth), Level())
        depth = max(0, min(depth, 8))
        if not level.marked:
            return ""
        if not level.ordered:
            return "  " * depth + "- "
        counters = self._counters.setdefault(self._sheet.lists.get(number_id, number_id), [])
        del counters[depth + 1 :]
        while len(counters) <= depth:
            counters.append(self._sheet.levels.get((number_id, len(counters)), Level()).start - 1)
        counters[depth] += 1
        return f"{'  ' * depth}{counters[depth]}. "

    def _set_style(self, attributes: Attributes) -> None:
        if self._paragraphs and self._within("pPr"):
            self._paragraphs[-1].style = attribute(attributes, "val")

    def _set_outline(self, attributes: Attributes) -> None:
        if self._paragraphs and self._within("pPr"):
            self._paragraphs[-1].outline = number_of(attribute(attributes, "val"))

    def _set_number_id(self, attributes: Attributes) -> None:
        if self._paragraphs and self._within("pPr", "numPr"):
            self._paragraphs[-1].number_id = attribute(attributes, "val")

    def _set_level(self, attributes: Attributes) -> None:
        if self._paragraphs and self._within("pPr", "numPr"):
            self._paragraphs[-1].level = number_of(attribute(attributes, "val"))

    def _begin_run(self, _: Attributes) -> None:
        style = self._paragraphs[-1].style if self._paragraphs else ""
        self._hidden.append(bool(self._sheet.styles.get(style, Style()).hidden))

    def _end_run(self) -> None:
        self._hidden.pop()

    def _set_run_style(self, attributes: Attributes) -> None:
        style = self._sheet.styles.get(attribute(attributes, "val"), Style())
        if style.hidden is not None and self._hidden and self._within("r", "rPr"):
            self._hidden[-1] = style.hidden

    def _set_hidden(self, attributes: Attributes) -> None:
        if self._hidden and self._within("r", "rPr"):
            self._hidden[-1] = is_on(attributes)

    def _field_mark(self, attributes: Attributes) -> None:
        match attribute(attributes, "fldCharType"):
            case "begin":
                self._fields.append(False)
            case "separate" if self._fields:
                self._fields[-1] = True
            case "end" if self._fields:
                self._fields.pop()

    def _begin_alternatives(self, _: Attributes) -> None:
        self._chosen.append(False)

    def _end_alternatives(self) -> None:
        self._chosen.pop()

    def _begin_table(self, _: Attributes) -> None:
        self._last_table += 1
        self._tables.append(self._last_table)

    def _end_table(self) -> None:
        self._tables.pop()

    def _begin_row(self, _: Attributes) -> None:
        self._rows.append(_Row())

    def _end_row(self) -> None:
        row = self._rows.pop()
        if row.deleted:
            return
        if len(row.cells) == 1:  # a frame around a text, or a heading over the whole table
            self._sinks[-1].extend(row.cells[0])
            return
        cells = [_inline(cell) for cell in row.cells]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            self._sinks[-1].append(_Block(" | ".join(cells), cells=tuple(cells), group=self._tables[-1]))
            self.characters += 3 * len(cells)

    def _open_sink(self, _: Attributes) -> None:
        self._sinks.append([])

    def _end_cell(self) -> None:
        blocks = self._sinks.pop()
        if self._rows:
            self._rows[-1].cells.append(blocks)

    def _end_box(self) -> None:
        blocks = self._sinks.pop()
        (self._paragraphs[-1].boxes if self._paragraphs else self._sinks[-1]).extend(blocks)

    def _refer(self, kind: str, attributes: Attributes) -> None:
        self.notes.append((kind, attribute(attributes, "id")))
        self._add(f"[^{len(self.notes)}]")

    def _begin_note(self, attributes: Attributes) -> None:
        self._note = attribute(attributes, "id")
        self._sinks.append([])

    def _end_note(self, kind: str) -> None:
        self.definitions[kind, self._note] = _inline(self._sinks.pop())


_STARTS: dict[str, Callable[[Story, Attributes], None]] = {
    "p": Story._begin_paragraph,
    "pStyle": Story._set_style,
    "outlineLvl": Story._set_outline,
    "numId": Story._set_number_id,
    "ilvl": Story._set_level,
    "r": Story._begin_run,
    "rStyle": Story._set_run_style,
    "vanish": Story._set_hidden,
    "fldChar": Story._field_mark,
    "mc:AlternateContent": Story._begin_alternatives,
    "tbl": Story._begin_table,
    "tr": Story._begin_row,
    "tc": Story._open_sink,
    "txbxContent": Story._open_sink,
    "footnoteReference": lambda story, attributes: story._refer("footnote", attributes),
    "endnoteReference": lambda story, attributes: story._refer("endnote", attributes),
    "footnote": Story._begin_note,
    "endnote": Story._begin_note,
}
_ENDS: dict[str, Callable[[Story], None]] = {
    "p": Story._end_paragraph,
    "r": Story._end_run,
    "mc:AlternateContent": Story._end_alternatives,
    "tbl": Story._end_table,
    "tr": Story._end_row,
    "tc": Story._end_cell,
    "txbxContent": Story._end_box,
    "footnote": lambda story: story._end_note("footnote"),
    "endnote": lambda story: story._end_note("endnote"),
}


def read_story(chunks: Iterable[bytes], sheet: Sheet, max_characters: int) -> Story:
    """The text of a part, read no further than it may be long. Raises Undecodable or DocumentBomb."""
    from lxml import etree

    story = Story(sheet, max_characters)
    parser = etree.XMLParser(
        target=story, resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _STEP):
                parser.feed(chunk[start : start + _STEP])
                if story.full:
                    return story.close()
        parser.close()
    except etree.XMLSyntaxError as error:
        raise Undecodable("The Word document is damaged: its XML is broken.") from error
    return story


def _inline(blocks: Sequence[_Block]) -> str:
    """Blocks in one line; the rows of a table inside a cell are parted by semicolons."""
    texts = (", ".join(filter(None, block.cells)) if block.cells else block.text for block in blocks)
    between = "; " if any(block.cells for block in blocks) else " "
    return between.join(" ".join(text.split()) for text in texts)
