"""What a run is made of: folders, buckets, patterns, single documents, manifests and standard input.

All are listed lazily. A file's document id is its absolute path with links in the way to the source resolved,
so that every spelling of the same folder announces the same documents; an object's is `s3://bucket/key` with
nothing escaped, a web page's its address.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from docsum.errors import DocsumError
from docsum.manifests import Head, Line, read_head, read_lines

STDIN = "-"
LONGEST_ID = 512  # characters, as the event's contract says
MANIFESTS = (".jsonl", ".ndjson", ".csv")
#: A folder is sorted in parts of so many names: any usual one as a whole, a huge one in bounded memory.
SORTED_AT_ONCE = 10_000

BUCKETS = ("s3", "gs", "az")
PAGES = ("https", "http")

FileVersion = Callable[[os.stat_result], str]
Now = Callable[[], datetime]
#: All below `s3://bucket/prefix`, unescaped; blocks, and raises a DocsumError where it cannot be listed.
ListObjects = Callable[[str, Now], Iterator["Entry"]]

_MAGIC = re.compile(r"[*?[]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_ESCAPED = re.compile(r"[%\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class UnusableSource(DocsumError):
    """There is nothing to list under this name."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A document that a source names, as it was seen at `occurred_at`."""

    document_id: str
    uri: str
    occurred_at: datetime
    source_version: str = ""  # empty: unknown, so the document is always fetched
    media_type: str | None = None
    size_bytes: int | None = None
    title: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    modified_ns: int | None = field(default=None, compare=False)  # of a file, since 1970


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something that is no document on purpose: hidden, or a link to a folder."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that should be a document and cannot be announced."""

    where: str  # a path, or `line 17`
    problem: str
    document_id: str = ""  # of a document that is there, and cannot be read
    hides: bool = False  # documents may be there that were not listed


Entry = Listed | Ignored | Unreadable


@dataclass(frozen=True, slots=True)
class Source:
    """A place that documents are listed from. `name` opens the same one again, from any folder."""

    name: str
    place: str  # a folder, `s3://bucket/prefix` or a web address: what it lists lies there
    entries: Callable[[], Iterator[Entry]]  # lists from the start; standard input only once
    manifest: bool = False  # its documents may be anywhere; plain paths are read from its place
    #: What it lists at a path of its place, which may be a folder; None: nothing there can be watched.
    below: Callable[[str], Iterator[Entry]] | None = None

    @property
    def repeatable(self) -> bool:
        return self.name != STDIN


@dataclass(frozen=True, slots=True)
class Lister:
    """Opens sources. What it is given are the fetchers', so that a worker recognises what is unchanged."""

    now: Now
    file_version: FileVersion
    list_objects: ListObjects

    def open(self, text: str, stdin: BinaryIO) -> Source:
        """The source that a person means by `text`.

        Raises UnusableSource or NoManifest; of a bucket, which is asked at once, whatever is in the way.
        """
        if text == STDIN:
            return self._standard_input(stdin)
        scheme = text.partition("://")[0].lower()
        if scheme in BUCKETS:
            return self._bucket(text)
        if scheme in PAGES:
            return self._page(text)
        path = _path_of(text)
        if path.is_dir():
            folder = os.path.realpath(path)
            return Source(
                folder, folder, lambda: self._files(_walk(folder)), below=self._below(folder, _everything)
            )
        if path.is_file():
            return self._file(path)
        if _MAGIC.search(str(path)):
            return self._pattern(path)
        raise UnusableSource(f"There is no file or folder {str(path)!r}: check the name, or quote a pattern.")

    def _file(self, path: Path) -> Source:
        folder = os.path.realpath(path.parent)
        name = f"{folder.rstrip('/')}/{path.name}"  # a file that is a link keeps its own name
        if path.suffix.lower() not in MANIFESTS:
            return Source(
                name,
                folder,
                lambda: iter([self._of_file(name)]),
                below=self._below(folder, lambda rest: rest == path.name),
            )
        with path.open("rb") as stream:
            read_head(stream, path.name)  # says now whether it is a manifest at all
        return Source(name, folder, lambda: self._manifest(name, folder), manifest=True)

    def _pattern(self, path: Path) -> Source:
        depth = next(index for index, part in enumerate(path.parts) if _MAGIC.search(part))
        folder = os.path.realpath(Path(*path.parts[:depth]))
        if not Path(folder).is_dir():
            raise UnusableSource(f"There is no folder {folder!r}.")
        rest = path.parts[depth:]
        deepest = None if "**" in rest else len(rest)
        matches = _matcher("/".join(rest))

        def found() -> Iterator[os.DirEntry[str] | Ignored | Unreadable]:
            for entry in _walk(folder, deepest):
                if not isinstance(entry, os.DirEntry) or matches(os.path.relpath(entry.path, folder)):
                    yield entry

        name = f"{folder.rstrip('/')}/{'/'.join(rest)}"
        return Source(name, folder, lambda: self._files(found()), below=self._below(folder, matches))

    def _bucket(self, url: str) -> Source:
        """As with files, a key that looks like a pattern is the object of that name, where there is one."""
        if next(self.list_objects(url, self.now), None) is not None:
            return Source(url, url, lambda: self.list_objects(url, self.now))
        magic = _MAGIC.search(url)
        if magic is None:
            raise UnusableSource(f"There is nothing at {url!r}: check the name, or quote a pattern.")
        folder = url[: url.rindex("/", 0, magic.start()) + 1]
        matches = _matcher(url[len(folder) :])

        def found() -> Iterator[Entry]:
            for entry in self.list_objects(folder, self.now):
                where = entry.document_id if isinstance(entry, Listed) else entry.where
                if isinstance(entry, Ignored) or matches(where[len(folder) :]):
                    yield entry

        return Source(url, folder, found)

    def _page(self, url: str) -> Source:
        problem = problem_of_id(url)
        if re.match(r"[^/]*//[^/?#]*@", url):
            problem = "it holds a user name or password"
        if problem:
            raise UnusableSource(f"{url!r} cannot be a document: {problem}.")
        return Source(url, url, lambda: iter([Listed(url, url, self.now())]))

    def _standard_input(self, stdin: BinaryIO) -> Source:
        folder = os.path.realpath(".")
        head = read_head(stdin, "standard input")
        return Source(STDIN, folder, lambda: self._lines(stdin, head, folder), manifest=True)

    # -- entries ---------------------------------------------------------------------------------------

    def _below(self, folder: str, matches: Callable[[str], object]) -> Callable[[str], Iterator[Entry]]:
        """Of a path within the folder what `entries` would list there, and nothing of what it would not."""

        def found(path: str) -> Iterator[os.DirEntry[str] | Ignored | Unreadable]:
            for entry in _walk(path):
                if not isinstance(entry, os.DirEntry) or matches(os.path.relpath(entry.path, folder)):
                    yield entry

        def below(path: str) -> Iterator[Entry]:
            rest = os.path.relpath(path, folder)
            parts = [] if rest == "." else rest.split("/")
            if any(part.startswith(".") for part in parts):
                return  # hidden, or not within
            if parts and os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):  # noqa: PTH120
                return  # links to folders are not followed
            mode = _mode(path)
            if stat.S_ISDIR(mode):
                yield from self._files(found(path))
            elif mode and matches(rest):
                yield self._of_file(path)

        return below

    def _files(self, found: Iterable[os.DirEntry[str] | Ignored | Unreadable]) -> Iterator[Entry]:
        for entry in found:
            yield self._of_file(entry.path) if isinstance(entry, os.DirEntry) else entry

    def _of_file(self, path: str) -> Entry:
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            if Path(path).is_symlink():
                return Unreadable(path, "the link points to nothing", file_id(path))
            return Unreadable(path, "it has just gone")
        except OSError as error:
            return Unreadable(path, _reason(error), file_id(path))
        if stat.S_ISDIR(status.st_mode):
            return Ignored(path, "a link to a folder")
        if not stat.S_ISREG(status.st_mode):
            return Ignored(path, "not a regular file")
        return Listed(
            file_id(path),
            file_uri(path),
            self.now(),
            source_version=self.file_version(status),
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
        )

    def _manifest(self, name: str, folder: str) -> Iterator[Entry]:
        with Path(name).open("rb") as stream:
            yield from self._lines(stream, read_head(stream, name), folder)

    def _lines(self, stream: BinaryIO, head: Head, folder: str) -> Iterator[Entry]:
        for number, line in read_lines(stream, head):
            if isinstance(line, Line):
                yield self._of_line(line, folder)
            else:
                yield Unreadable(f"line {number}", line.problem, hides=True)

    def _of_line(self, line: Line, folder: str) -> Listed:
        path = _local_path(line.uri, folder)
        version = line.source_version
        if path is not None and not version:
            with suppress(OSError, ValueError):  # a worker may see it, or will say that it is not there
                version = self.file_version(Path(path).stat())
        return Listed(
            line.document_id,
            line.uri if path is None or _SCHEME.match(line.uri) else file_uri(path),
            self.now(),
            source_version=version,
            media_type=line.media_type,
            size_bytes=line.size_bytes,
            title=line.title,
            attributes=line.attributes,
        )


def limited(entries: Iterator[Entry], limit: int | None) -> Iterator[Entry]:
    """Ends after so many documents; what lies between them does not count."""
    left = limit
    while left is None or left > 0:
        try:
            entry = next(entries)
        except StopIteration:
            return
        yield entry
        if left is not None and isinstance(entry, Listed):
            left -= 1


# -- names -------------------------------------------------------------------------------------------------


def problem_of_id(text: str) -> str:
    """Why an address cannot be a document's id; empty if it can."""
    if len(text) > LONGEST_ID:
        return f"its address has {len(text)} characters; {LONGEST_ID} are allowed"
    return "its address holds a control character" if _UNPRINTABLE.search(text) else ""


def file_uri(path: str) -> str:
    """The `file:` address of an absolute path, whatever its bytes."""
    return "file://" + quote(os.fsencode(path))


def file_id(path: str) -> str:
    """The document id of an absolute path: readable, of at most 512 characters, never the same for two.

    Only what an id may not hold is escaped; of a longer one the end is a digest.
    """
    text = "file://" + _ESCAPED.sub(lambda match: quote(os.fsencode(match[0])), path)
    if len(text) <= LONGEST_ID:
        return text
    digest = sha256(text.encode()).hexdigest()
    return f"{text[: LONGEST_ID - len(digest) - 1]}~{digest}"


def path_id(text: str) -> str:
    """The document id of a file that a person names; it need not exist any more."""
    path = _path_of(text)
    return file_id(str(Path(os.path.realpath(path.parent)) / path.name))


def _path_of(text: str) -> Path:
    if text.startswith("file:"):
        return Path(_local_path(text, "/") or "/")
    scheme = _SCHEME.match(text)
    if scheme and not Path(text).exists():
        raise UnusableSource(
            f"{scheme[1]}: cannot be listed: name a folder, a file, a pattern, a manifest, - for standard "
            "input, a bucket (s3://, gs:// or az://) or one document (https://)."
        )
    return _at_home(text).absolute()


def _local_path(uri: str, folder: str) -> str | None:
    """The absolute path of a `file:` address or of a plain path; None for any other address."""
    if uri.lower().startswith("file:"):
        rest = uri[5:]
        if rest.startswith("//"):
            rest = "/" + rest[2:].partition("/")[2]
        return os.fsdecode(unquote_to_bytes(rest))
    if _SCHEME.match(uri):
        return None
    return os.path.normpath(Path(folder) / _at_home(uri))


def _at_home(text: str) -> Path:
    """With a home in place of its `~`. Files have such names too: `~$report.docx` is a lock of Office."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # there is no such user, nor can be
        return Path(text)


def _walk(folder: str, deepest: int | None = None) -> Iterator[os.DirEntry[str] | Ignored | Unreadable]:
    """Everything below a folder that is not a folder, in the order of the names; links are not followed."""
    levels = [_sorted_entries(folder)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, Unreadable):
            yield entry
        elif entry.name.startswith("."):
            yield Ignored(entry.path, "hidden")
        elif entry.is_dir(follow_symlinks=False):
            if deepest is None or len(levels) < deepest:
                levels.append(_sorted_entries(entry.path))
        else:
            yield entry


def _sorted_entries(folder: str) -> Iterator[os.DirEntry[str] | Unreadable]:
    try:
        with os.scandir(folder) as scan:
            while part := sorted(islice(scan, SORTED_AT_ONCE), key=lambda entry: entry.name):
                yield from part
    except OSError as error:
        yield Unreadable(folder, _reason(error), hides=True)


def _mode(path: str) -> int:
    """Of the path itself, not of what a link leads to; 0 where there is nothing."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _everything(_rest: str) -> bool:
    return True


def _matcher(pattern: str) -> Callable[[str], object]:
    """As a shell reads it: `*` and `?` stay within a name, `**/` is any number of folders."""
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        match token:
            case "**/":
                parts.append("(?:[^/]+/)*")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case _ if len(token) > 1:
                inner = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
                parts.append(f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]")
            case _:
                parts.append(re.escape(token))
    try:
        return re.compile("".join(parts), re.DOTALL).fullmatch
    except re.error as error:
        raise UnusableSource(f"The pattern {pattern!r} is wrong: {error}.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
