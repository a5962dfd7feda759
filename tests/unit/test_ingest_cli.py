"""`docsum ingest` on the command line: what it refuses, and what `--check` says of an event."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from docsum.cli import execute
from docsum.cli.ingest import _code
from docsum.cli.ingest_check import values
from docsum.cli.ingest_view import Progress, line
from docsum.ingest import Ingested
from docsum.kafka.codec import EventCodec
from docsum.sources import Unreadable
from tests.support.commands import result
from tests.unit.test_codec import MINIMAL, event, full_event
from tests.unit.test_notifications import MINIO

GOOD = json.dumps(MINIMAL).encode()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name what to announce"),
        (("a", "b"), "Give one source"),
        (("-", "--follow"), "Standard input is read once"),
        (("-", "--deletes"), "Standard input is read once"),
        (("https://e.org/a", "--follow"), "A web page tells no version"),
        ((".", "--yes"), "--yes agrees to deletions"),
        ((".", "--follow", "--every", "soon"), "--every is wrong: 'soon' is not a duration"),
        ((".", "--follow", "--rescan", "0s"), "--rescan is at least 1s"),
        (("--check", "e.json", "--follow"), "--check looks at an event in a file"),
        ((".", "--check", "e.json"), "--check looks at an event in a file"),
        (("--check", "not-there.json"), "not-there.json cannot be read"),
        (("not-there",), "There is no file or folder"),
    ],
)
def test_what_does_not_go_together_is_told(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = result(capsys, "ingest", *arguments)
    assert code == 2
    assert sentence in err


def test_the_help_teaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "ingest", "--help")
    assert code == 0
    for word in ("docsum ingest ~/Documents/contracts --follow --deletes", "--check", "--rescan", "Ctrl-C"):
        assert word in out


# -- --check -----------------------------------------------------------------------------------------------


def check(
    capsys: pytest.CaptureFixture[str], path: Path, content: bytes, *options: str
) -> tuple[int, str, str]:
    path.write_bytes(content)
    return result(capsys, "ingest", "--check", str(path), *options)


def avro() -> bytes:
    return asyncio.run(EventCodec().encode(full_event, "any"))


@pytest.mark.parametrize("content", [GOOD, GOOD + b"\n", json.dumps(MINIMAL, indent=2).encode(), avro()])
def test_a_good_event_is_shown_as_it_was_understood(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = check(capsys, tmp_path / "event", content)
    assert code == 0
    assert "document_id" in out
    code, out, _ = check(capsys, tmp_path / "event", content, "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["ok"], found["line"]) == (0, True, None)
    assert found["event"]["document_id"] == "doc-1"


def test_a_notification_is_shown_as_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, tmp_path / "event", json.dumps(MINIO).encode(), "--json")
    assert code == 0
    assert json.loads(out)["event"]["document_id"] == "s3://reports/2026/may report.pdf"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"document_id": "a"}', "It would be refused: uri is missing."),
        (b"hello", "It would be refused: The value is neither Avro (00, C3 01) nor JSON ({)."),
        (b"\x00\x00\x00\x00\x07x", "DOCSUM_KAFKA__SCHEMA_REGISTRY_URL is not set"),
        (avro()[:-1], "The value does not fit its Avro schema"),
        (json.dumps({"Records": MINIO["Records"] * 3}).encode(), "has 3 records"),
    ],
)
def test_a_bad_event_gets_its_sentence(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(capsys, tmp_path / "event", content)
    assert (code, out) == (1, "")
    assert sentence in err
    code, out, _ = check(capsys, tmp_path / "event", content, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["reason"]) == (1, False, "invalid_event")
    assert found["problem"] in sentence or sentence in found["problem"]


def test_of_many_lines_the_bad_ones_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = GOOD + b'\n\n{"document_id": "b"}\n{"document_id"\n'
    code, out, err = check(capsys, tmp_path / "events", content, "--json")
    assert code == 1
    assert [(found["line"], found["ok"]) for found in map(json.loads, out.splitlines())] == [
        (1, True),
        (3, False),
        (4, False),
    ]
    code, _, err = check(capsys, tmp_path / "events", content)
    assert "line 3: It would be refused: uri is missing." in err


def test_an_empty_file_is_no_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(capsys, tmp_path / "event", b" \n")
    assert code == 2
    assert "is empty" in err


def test_an_event_can_be_piped_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD)))
    assert execute(("ingest", "--check", "-")) == 0
    assert "doc-1" in capsys.readouterr().out


def test_avro_with_line_breaks_in_it_is_one_value() -> None:
    content = asyncio.run(EventCodec().encode(event(title="a\n{b\n{c"), "any"))
    assert list(values(content)) == [(None, content)]


# -- what is shown -----------------------------------------------------------------------------------------


def test_how_it_ends_says_what_was_not_deleted() -> None:
    assert _code(Ingested(new=3, deleted=2)) == 0
    assert _code(Ingested(kept=3, why="It is empty.")) == 6
    assert _code(Ingested(kept=3, why="It was not seen.", incomplete=True)) == 4


def test_the_line_says_what_matters() -> None:
    assert line(Ingested(new=1_200, changed=2, unchanged=3)) == "new 1,200 · changed 2 · as before 3"
    assert line(Ingested(deleted=4, unreadable=5, waiting="Kafka is away.")).endswith(
        "gone 4 · passed over 5; Kafka is away."
    )


def test_a_reason_and_an_entry_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for _ in range(3):
            progress.show(Ingested())
            progress.show(Ingested(kept=2, why="It is empty."))
            for number in range(25):
                progress.passed_over(Unreadable(f"/data/{number}", "permission denied"))
    _, err = capsys.readouterr()
    assert err.count("It is empty.") == 1
    assert err.count("Passed over /data/3: permission denied.") == 1
    assert err.count("Passed over /data/") == 20
    assert "Passed over 15 more." in err
