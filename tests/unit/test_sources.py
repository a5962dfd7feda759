"""Sources: what is listed, in which order, under which ids, and what is said of the rest."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from docsum.fetchers.file import file_version, path_of
from docsum.manifests import LONGEST_LINE, NoManifest
from docsum.reading_ahead import batches
from docsum.sources import (
    Entry,
    Ignored,
    Listed,
    Lister,
    Now,
    Unreadable,
    UnusableSource,
    file_id,
    file_uri,
    limited,
    path_id,
)
from tests.support.fakes import START

OBJECTS = ("list.txt", "dir/a.pdf", "dir/b.txt", "dir/deep/c.pdf", "dir/[1].pdf", "directory/d.pdf")


def list_objects(url: str, now: Now) -> Iterator[Entry]:
    """As the fetcher's: what is below a prefix, and the object of that very name."""
    for key in OBJECTS:
        name = f"s3://bucket/{key}"
        if name == url or name.startswith(f"{url.rstrip('/')}/"):
            yield Listed(name, name, now(), source_version="etag", size_bytes=1)
    if "s3://bucket/dir/".startswith(url):
        yield Ignored("s3://bucket/dir/", "a folder's marker")
        yield Unreadable("s3://bucket/dir/x.pdf", "its address holds a control character")


LISTER = Lister(now=lambda: START, file_version=file_version, list_objects=list_objects)


def entries(text: str | Path, stdin: bytes = b"") -> list[Entry]:
    return list(LISTER.open(str(text), io.BytesIO(stdin)).entries())


def listed(text: str | Path, stdin: bytes = b"") -> list[Listed]:
    return [entry for entry in entries(text, stdin) if isinstance(entry, Listed)]


def names(text: str | Path, root: Path) -> list[str]:
    return [os.path.relpath(path_of(entry.uri), root) for entry in listed(text)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/2.md", "a/1.md", "a/deep/x.pdf", "c.pdf", ".git/config", ".hidden"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "docs"


# -- folders -----------------------------------------------------------------------------------------------


def test_a_folder_is_listed_with_all_below_it_in_the_order_of_the_names(folder: Path) -> None:
    assert names(folder, folder) == ["a/1.md", "a/2.md", "a/deep/x.pdf", "b.txt", "c.pdf"]


def test_hidden_files_and_folders_are_passed_over_and_told(folder: Path) -> None:
    ignored = [entry for entry in entries(folder) if isinstance(entry, Ignored)]
    assert [(Path(entry.where).name, entry.why) for entry in ignored] == [
        (".git", "hidden"),
        (".hidden", "hidden"),
    ]


def test_a_link_to_a_folder_is_not_followed(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    assert Ignored(str(folder / "loop"), "a link to a folder") in entries(folder)
    assert len(listed(folder)) == 5


def test_a_link_to_nothing_is_told(folder: Path) -> None:
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    path = str(folder / "gone.txt")
    assert Unreadable(path, "the link points to nothing", file_id(path)) in entries(folder)


def test_a_named_pipe_is_no_document(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert Ignored(str(folder / "pipe"), "not a regular file") in entries(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told_and_the_rest_goes_on(folder: Path) -> None:
    (folder / "a").chmod(0)
    try:
        assert Unreadable(str(folder / "a"), "permission denied") in entries(folder)
        assert len(listed(folder)) == 2
    finally:
        (folder / "a").chmod(0o700)


def test_every_spelling_of_a_folder_gives_the_same_documents(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    wanted = listed(folder)
    for spelling in ("docs", "docs/", "./docs/../docs", "link", f"{folder}/", f"file://{folder}"):
        assert listed(spelling) == wanted, spelling
    assert LISTER.open("link", io.BytesIO()).name == str(folder)


def test_a_document_has_what_a_worker_needs_to_recognise_it(folder: Path) -> None:
    (entry,) = listed(folder / "b.txt")
    assert entry.document_id == f"file://{folder}/b.txt"
    assert entry.uri == f"file://{folder}/b.txt"
    assert entry.source_version == file_version((folder / "b.txt").stat())
    assert (entry.size_bytes, entry.occurred_at) == (5, START)


def test_a_huge_folder_is_listed_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docsum.sources.SORTED_AT_ONCE", 2)
    assert sorted(names(folder, folder)) == ["a/1.md", "a/2.md", "a/deep/x.pdf", "b.txt", "c.pdf"]


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    listing = LISTER.open(str(folder), io.BytesIO()).entries()
    next(listing)
    (folder / "c.pdf").unlink()
    assert not any(isinstance(entry, Listed) and entry.uri.endswith("c.pdf") for entry in listing)


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a b.txt", "100%.txt", "ü ?#.txt", "漢字.pdf", "line\nbreak.txt", "a'\"\\.md"]
)
def test_the_address_of_any_name_leads_back_to_the_file(name: str) -> None:
    path = f"/data/{name}"
    assert path_of(file_uri(path)) == path
    assert file_uri(path).isascii()


def test_a_name_that_is_not_unicode_is_a_name() -> None:
    path = os.fsdecode(b"/data/\xff.txt")
    assert path_of(file_uri(path)) == path
    assert file_id(path) == "file:///data/%FF.txt"


def test_an_id_stays_readable() -> None:
    assert file_id("/data/Übersicht 2026.pdf") == "file:///data/Übersicht 2026.pdf"


def test_two_names_never_share_an_id() -> None:
    assert file_id("/a%0Ab") != file_id("/a\nb")
    long = "/" + "x" * 600
    assert len(file_id(long)) == 512
    assert file_id(long + "1") != file_id(long + "2")


def test_a_path_is_found_again_by_its_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert path_id("b.txt") == path_id(f"{folder}/a/../b.txt") == listed("b.txt")[0].document_id


# -- patterns and single files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.txt", ["b.txt"]),
        ("*", ["b.txt", "c.pdf"]),
        ("**/*.pdf", ["a/deep/x.pdf", "c.pdf"]),
        ("a/**", ["a/1.md", "a/2.md", "a/deep/x.pdf"]),
        ("*/[!1].md", ["a/2.md"]),
        ("?.[pt]*", ["b.txt", "c.pdf"]),
        ("a/*", ["a/1.md", "a/2.md"]),
        ("z*", []),
    ],
)
def test_a_pattern_reads_as_a_shell_reads_it(folder: Path, pattern: str, wanted: list[str]) -> None:
    assert names(folder / pattern, folder) == wanted


def test_a_pattern_can_be_opened_again_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    source = LISTER.open("a/*.md", io.BytesIO())
    assert source.name == f"{folder}/a/*.md"
    assert list(LISTER.open(source.name, io.BytesIO()).entries()) == list(source.entries())


def test_a_name_that_looks_like_a_pattern_is_the_file_of_that_name(folder: Path) -> None:
    (folder / "notes[1].txt").write_text("x")
    assert names(folder / "notes[1].txt", folder) == ["notes[1].txt"]


@pytest.mark.parametrize(
    "text",
    [
        "nowhere",
        "nowhere/*.txt",
        "ftp://example.org/a.pdf",
        "https://name:word@example.org/a.pdf",
        "https://example.org/" + "x" * 500,
        "s3://bucket/nothing",
    ],
)
def test_what_cannot_be_listed_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnusableSource):
        LISTER.open(text, io.BytesIO())


# -- buckets and web pages ---------------------------------------------------------------------------------


def keys(url: str) -> list[str]:
    return [entry.document_id.removeprefix("s3://bucket/") for entry in listed(url)]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("s3://bucket", list(OBJECTS)),
        ("s3://bucket/dir", ["dir/a.pdf", "dir/b.txt", "dir/deep/c.pdf", "dir/[1].pdf"]),
        ("s3://bucket/list.txt", ["list.txt"]),
        ("s3://bucket/dir/*.pdf", ["dir/a.pdf", "dir/[1].pdf"]),
        ("s3://bucket/dir/**/*.pdf", ["dir/a.pdf", "dir/deep/c.pdf", "dir/[1].pdf"]),
        ("s3://bucket/dir*/?.pdf", ["dir/a.pdf", "directory/d.pdf"]),
        ("s3://bucket/dir/[1].pdf", ["dir/[1].pdf"]),  # the object of that name, as with files
        ("s3://bucket/z*", []),
    ],
)
def test_a_bucket_is_listed_as_a_folder_is(url: str, wanted: list[str]) -> None:
    assert keys(url) == wanted
    source = LISTER.open(url, io.BytesIO())
    assert (source.name, source.repeatable, source.manifest) == (url, True, False)
    assert list(source.entries()) == list(source.entries())


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/dir", "s3://bucket/dir"),
        ("s3://bucket/dir/*.pdf", "s3://bucket/dir/"),
        ("s3://bucket/d*/**", "s3://bucket/"),
        ("https://example.org/a.pdf", "https://example.org/a.pdf"),
    ],
)
def test_a_source_says_what_workers_must_be_allowed_to_read(url: str, place: str) -> None:
    assert LISTER.open(url, io.BytesIO()).place == place


def test_what_a_pattern_passes_over_is_told_and_what_it_does_not_mean_is_not() -> None:
    said = [entry for entry in entries("s3://bucket/dir/*.txt") if not isinstance(entry, Listed)]
    assert said == [Ignored("s3://bucket/dir/", "a folder's marker")]
    assert any(isinstance(entry, Unreadable) for entry in entries("s3://bucket/dir/*.pdf"))


def test_a_web_address_is_one_document() -> None:
    url = "https://example.org/a.pdf?version=2"
    assert entries(url) == [Listed(url, url, START)]


# -- manifests ---------------------------------------------------------------------------------------------


def test_a_manifest_of_json_lines(folder: Path) -> None:
    manifest = folder.parent / "list.jsonl"
    lines = [
        {"document_id": "one", "uri": "docs/b.txt", "title": "B", "attributes": {"team": "law"}},
        {"document_id": "two", "uri": "https://example.org/2.pdf", "source_version": "v7", "size_bytes": 9},
    ]
    manifest.write_text("\n\n".join(map(json.dumps, lines)))
    one, two = listed(manifest)
    assert (one.document_id, one.title, one.attributes) == ("one", "B", {"team": "law"})
    assert one.uri == f"file://{folder}/b.txt"
    assert one.source_version == file_version((folder / "b.txt").stat())
    assert (two.uri, two.source_version, two.size_bytes) == ("https://example.org/2.pdf", "v7", 9)


@pytest.mark.parametrize("name", ["~$report.docx", "~nobody-of-that-name/x.pdf", "~\0.pdf"])
def test_a_name_that_begins_with_a_tilde_is_no_home_and_ends_nothing(folder: Path, name: str) -> None:
    manifest = folder.parent / "list.jsonl"
    lines = [{"document_id": "lock", "uri": name}, {"document_id": "last", "uri": "docs/b.txt"}]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    lock, last = listed(manifest)
    assert (lock.uri, last.document_id) == (file_uri(f"{folder.parent}/{name}"), "last")
    with pytest.raises(UnusableSource, match="no file or folder"):
        entries(name)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_manifest_of_csv(folder: Path, delimiter: str) -> None:
    manifest = folder.parent / "list.csv"
    rows = [["document_id", "uri", "title", "attributes.team"], ["one", "docs/b.txt", '"B, really"', "law"]]
    rows.append(["two", "file:///elsewhere/x", "", ""])
    manifest.write_bytes(("\ufeff" + "\r\n".join(map(delimiter.join, rows))).encode())
    one, two = listed(manifest)
    assert (one.document_id, one.title, one.attributes) == ("one", "B, really", {"team": "law"})
    assert (two.uri, two.source_version, two.title, two.attributes) == ("file:///elsewhere/x", "", None, {})


def test_a_bad_line_is_told_with_its_number_and_the_rest_goes_on(folder: Path) -> None:
    lines = [
        b'{"document_id": "one", "uri": "b.txt"}',
        b"{oops",
        b'["a list"]',
        b'{"uri": "b.txt"}',
        b'{"document_id": "x", "uri": 3}',
        b'{"document_id": "x", "uri": "b.txt", "titel": "typo"}',
        b'{"document_id": "x", "uri": "b.txt", "size_bytes": -1}',
        b'{"document_id": "\xff", "uri": "b.txt"}',
        b'{"document_id": "\\ud800", "uri": "b.txt"}',
        b'{"document_id": "x", "uri": "b.txt", "attributes": {"a": 1}}',
        b'{"document_id": "' + b"x" * LONGEST_LINE + b'", "uri": "b.txt"}',
        b'{"document_id": "last", "uri": "b.txt"}',
    ]
    found = entries("-", b"\n".join(lines))
    assert [entry.document_id for entry in found if isinstance(entry, Listed)] == ["one", "last"]
    assert {entry.where: entry.problem for entry in found if isinstance(entry, Unreadable)} == {
        "line 2": "it is not valid JSON",
        "line 3": "it is not a JSON object",
        "line 4": "document_id is missing",
        "line 5": "uri is not text",
        "line 6": "there is no field 'titel'; put it into attributes",
        "line 7": "size_bytes is not a number of bytes",
        "line 8": "it is not UTF-8",
        "line 9": "document_id is not valid Unicode",
        "line 10": "a is not text",
        "line 11": f"it is longer than {LONGEST_LINE} bytes",
    }


def test_bad_lines_of_a_csv_are_told_with_their_numbers(folder: Path) -> None:
    text = 'document_id,uri\none,b.txt\ntwo\n"three\nlines",b.txt\n,b.txt\nlast,b.txt\n'
    found = entries("-", text.encode())
    assert [entry.document_id for entry in found if isinstance(entry, Listed)] == [
        "one",
        "three\nlines",
        "last",
    ]
    problems = {entry.where: entry.problem for entry in found if isinstance(entry, Unreadable)}
    assert problems == {"line 3": "it has 1 cells, the header has 2", "line 6": "document_id is missing"}


def test_a_quote_that_never_ends_does_not_take_all_memory() -> None:
    text = b'document_id,uri\n"open,b.txt\n' + b"x" * 1_000_000 + b"\nlast,b.txt\n"
    problems = [entry.problem for entry in entries("-", text) if isinstance(entry, Unreadable)]
    assert problems
    assert problems[0].startswith("it is not valid CSV")


@pytest.mark.parametrize(
    "head", ["name,path\n", "document_id;url\n", "Dear Sir or Madam\n", "document_id,uri,titel\n"]
)
def test_a_csv_without_the_columns_is_refused_before_anything_starts(tmp_path: Path, head: str) -> None:
    (tmp_path / "list.csv").write_text(head + "a,b\n")
    with pytest.raises(NoManifest):
        LISTER.open(str(tmp_path / "list.csv"), io.BytesIO())


def test_an_empty_manifest_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("\n\n")
    assert entries(tmp_path / "list.jsonl") == entries("-") == []


def test_standard_input_cannot_be_opened_again() -> None:
    assert not LISTER.open("-", io.BytesIO()).repeatable


# -- limits and reading ahead ------------------------------------------------------------------------------


def test_a_limit_counts_documents_only(folder: Path) -> None:
    found = list(limited(LISTER.open(str(folder), io.BytesIO()).entries(), 2))
    assert sum(isinstance(entry, Listed) for entry in found) == 2


async def test_batches_give_everything_in_order_and_never_more_than_asked_for() -> None:
    found = [batch async for batch in batches(iter(range(1_000)), 7)]
    assert [item for batch in found for item in batch] == list(range(1_000))
    assert max(map(len, found)) <= 7


async def test_a_slow_source_is_given_out_as_it_comes() -> None:
    asked, go = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        asked.set()
        go.wait(10)
        yield 2

    stream = batches(items(), 100)
    assert await anext(stream) == [1]
    go.set()
    assert await anext(stream) == [2]
    await stream.aclose()


async def test_what_a_source_raises_comes_after_what_it_gave() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    found: list[int] = []
    with pytest.raises(OSError, match="gone"):
        async for batch in batches(items(), 10):
            found += batch
    assert found == [1]
