"""Text of Word documents (.docx, .docm, .dotx): the archive is checked, then its parts are streamed.

Runs in a child process only. Nothing but the parts of the archive is ever read, whatever a document refers
to; macros and embedded objects are not looked at.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from docsum.errors import DocumentBomb, EmptyDocument, Encrypted, NotADocument, Undecodable
from docsum.extractors import word_styles, wordml
from docsum.extractors.sniff import OLE, Kind
from docsum.extractors.text import MAX_CHARACTERS, clean, count_letters, refuse_tiny
from docsum.models import ExtractedText

_MAX_ENTRIES = 10_000
_MAX_UNPACKED = 256_000_000  # bytes of all parts that are read
_MAX_RATIO = 200  # unpacked to packed; long tables reach 60
_MODEST = 10_000_000  # bytes: up to here the ratio does not matter
_MAX_SMALL_PART = 20_000_000  # bytes of a part that is read as a tree: styles, relations
_MAX_RUNNING_PARTS = 12  # headers and footers looked at
_MAX_RUNNING_TEXT = 200  # characters of each
_CHUNK = 65_536

_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")  # a stream's name: [MS-OFFCRYPTO] 2.3.4
_MAIN_TYPE = re.compile(
    r"wordprocessingml\.(document|template)\.main\+xml|ms-word\.(document|template)\.macroEnabled\w*\.main\+xml"
)
_USUAL_MAIN = "word/document.xml"

_OTHERS = (
    ("xl/", "Excel workbooks are not read yet."),
    ("ppt/", "PowerPoint presentations are not read yet."),
    ("[content_types].xml", "Office documents of this kind are not read yet."),
    ("meta-inf/container.xml", "EPUB books are not read yet."),
    ("content.xml", "OpenDocument files are not read yet."),
    ("meta-inf/manifest.mf", "This looks like a Java archive (.jar), not a document."),
)


def read(content: bytes, *, careful: bool = False, max_characters: int = MAX_CHARACTERS) -> ExtractedText:
    """The text of a Word document. `careful` changes nothing: there is one reader. Raises an ExtractError."""
    if content.startswith(OLE):
        if _ENCRYPTED_PACKAGE in content:
            raise Encrypted("The Office document needs a password.")
        raise NotADocument("Old Office documents (.doc, .xls, .ppt, .msg) are not read.")
    package = _Package(content)
    main = _main_part(package)
    related = package.relations(main)
    body = wordml.read_story(package.stream(main), _sheet(package, related), max_characters)
    text = body.text()
    if not count_letters(text, 1):
        raise EmptyDocument("There is no text in the document.")
    if not body.full:
        text = "\n\n".join((text, *_notes(package, related, body), *_running_texts(package, related)))
    cut = body.full or len(text) > max_characters
    text = clean(text[:max_characters])
    refuse_tiny(text, package.weight(main))
    return ExtractedText(text, Kind.DOCX.value, truncated=cut)


def _main_part(package: _Package) -> str:
    types = package.content_types()
    named = [target for kind, target in package.relations("") if kind == "officeDocument"]
    for part in (*named, *types, _USUAL_MAIN):
        kind = types.get(part) or types.get(posixpath.splitext(part)[1], "")
        if part in package and (_MAIN_TYPE.search(kind) or part == _USUAL_MAIN):
            return part
    raise NotADocument(package.looks_like())


def _sheet(package: _Package, related: list[tuple[str, str]]) -> word_styles.Sheet:
    targets = dict(related)
    levels, lists = word_styles.read_numbering(package.tree(targets.get("numbering", "")))
    return word_styles.Sheet(word_styles.read_styles(package.tree(targets.get("styles", ""))), levels, lists)


def _notes(package: _Package, related: list[tuple[str, str]], body: wordml.Story) -> Iterator[str]:
    """The notes that the text refers to, in its order, as long as there is room."""
    if not body.notes:
        return
    found: dict[tuple[str, str], str] = {}
    for kind, part in related:
        if kind in ("footnotes", "endnotes"):
            found.update(_side_story(package, part, MAX_CHARACTERS).definitions)
    for number, note in enumerate(body.notes, 1):
        if found.get(note):
            yield f"[^{number}]: {found[note]}"


def _running_texts(package: _Package, related: list[tuple[str, str]]) -> list[str]:
    """Headers, then footers, each different text once and no more than its beginning."""
    parts = sorted({(kind, part) for kind, part in related if kind in ("header", "footer")}, reverse=True)
    texts = (_side_story(package, part, _MAX_RUNNING_TEXT).inline() for _, part in parts[:_MAX_RUNNING_PARTS])
    return list(dict.fromkeys(text[:_MAX_RUNNING_TEXT] for text in texts if count_letters(text, 4) >= 4))


def _side_story(package: _Package, part: str, max_characters: int) -> wordml.Story:
    """A part beside the text; empty where it is missing or damaged: the text is there all the same."""
    sheet = word_styles.Sheet()
    if part in package:
        with contextlib.suppress(Undecodable):
            return wordml.read_story(package.stream(part), sheet, max_characters)
    return wordml.Story(sheet, max_characters)


class _Package:
    """A ZIP archive of parts (ECMA-376 part 2). Names are compared without regard to case, as it demands."""

    def __init__(self, content: bytes) -> None:
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        except MemoryError:
            raise
        except Exception as error:  # of a damaged directory zipfile makes all sorts of errors
            raise Undecodable("The file is a damaged ZIP archive or Word document.") from error
        entries = self._archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise DocumentBomb(f"The archive has {len(entries):,} entries.")
        self._entries = {entry.filename.lower().lstrip("/"): entry for entry in entries}
        self._left = _MAX_UNPACKED

    def __contains__(self, part: str) -> bool:
        return part.lower() in self._entries

    def looks_like(self) -> str:
        """A sentence on what this archive is if it is no Word document."""
        told = (line for begin, line in _OTHERS if any(name.startswith(begin) for name in self._entries))
        return next(told, "This looks like a ZIP archive, not a document.")

    def weight(self, main: str) -> int:
        """Packed bytes of the text and the pictures: even an empty document comes with 10 KB of styles."""
        return sum(
            entry.compress_size
            for name, entry in self._entries.items()
            if name == main or posixpath.basename(posixpath.dirname(name)) == "media"
        )

    def stream(self, part: str) -> Iterator[bytes]:
        """A part's bytes. Raises Encrypted, Undecodable, or DocumentBomb for too many."""
        entry = self._entries[part.lower()]
        if entry.flag_bits & 1:
            raise Encrypted("The archive needs a password.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Undecodable("The Word document is packed in a way that Office does not know.")
        enormous = entry.file_size > _MODEST and entry.file_size > _MAX_RATIO * entry.compress_size
        if entry.file_size > self._left or enormous:
            raise DocumentBomb(f"The document unpacks to {entry.file_size // 1_000_000:,} MB.")
        try:
            with self._archive.open(entry) as file:  # gives no more than the size that was announced
                while chunk := file.read(_CHUNK):
                    self._left -= len(chunk)
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise Undecodable("The Word document is damaged: it cannot be unpacked.") from error

    def tree(self, part: str) -> Any | None:  # Any: an untyped library's element
        """A small part's root element; None where it is missing or broken: the text does not depend on it."""
        from lxml import etree

        if part not in self or self._entries[part.lower()].file_size > _MAX_SMALL_PART:
            return None
        parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False)
        try:
            root = etree.fromstring(b"".join(self.stream(part)), parser)
        except (etree.XMLSyntaxError, Undecodable):
            return None
        if root.getroottree().docinfo.doctype:
            raise DocumentBomb("The document declares XML entities, which no Word document may.")
        return root

    def _children(self, part: str) -> list[Any]:  # Any: as above
        root = self.tree(part)
        return [] if root is None else [child for child in root if isinstance(child.tag, str)]

    def content_types(self) -> dict[str, str]:
        """Content type by part name, and by extension with its dot."""
        found = {}
        for element in self._children("[content_types].xml"):
            name, extension = element.get("PartName"), element.get("Extension")
            key = name.lower().lstrip("/") if name else f".{(extension or '').lower()}"
            found[key] = element.get("ContentType") or ""
        return found

    def relations(self, part: str) -> list[tuple[str, str]]:
        """Kind and target of what a part ("": the package) refers to inside the archive."""
        folder, name = posixpath.split(part)
        found = []
        for element in self._children(posixpath.join(folder, "_rels", f"{name}.rels")):
            if element.get("TargetMode") != "External":
                kind = (element.get("Type") or "").rpartition("/")[2]
                target = posixpath.join("/", folder, unquote(element.get("Target") or ""))
                found.append((kind, posixpath.normpath(target).lstrip("/").lower()))
        return found
