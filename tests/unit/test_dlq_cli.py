"""`docsum dlq`: what a person types and reads, without a broker."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import pytest

from docsum.cli.audit import who
from docsum.cli.dlq_selection import age
from docsum.cli.output import Code
from docsum.kafka.headers import dead_letter_headers
from docsum.models import (
    Answer,
    AuditRow,
    Coordinates,
    DeadLetterFilter,
    DeadLetterRow,
    Delivery,
    Failure,
    Lane,
    Recipe,
    RecordCopy,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    State,
    SummaryRow,
    Usage,
    to_ms,
)
from docsum.settings import Kafka, Settings
from docsum.stores.memory import MemoryStore
from docsum.words import clean
from tests.support.commands import deployed, result
from tests.support.fakes import FakePublisher, delivery, summary

NOW = datetime.now(UTC).replace(microsecond=0)
RUN = Run(
    id=UUID("3f2a91c0-0000-4000-8000-000000000001"),
    name="letters",
    source="/data/letters",
    recipe=Recipe("claude-haiku-5-5"),
    lane=Lane.BACKFILL,
    state=RunState.PUBLISHED,
    created_at=NOW,
    updated_at=NOW,
)
HOSTILE = "bad \x1b[31mname\x07 \u202e\x9b2J"


def letter(number: int, **fields: Any) -> DeadLetterRow:  # Any: a builder takes any field
    given: dict[str, Any] = {
        "origin": Coordinates("docsum.documents", number % 3, 500 + number),
        "dead_letter": Coordinates("docsum.dlq", number % 3, number),
        "document_id": f"{number}.pdf",
        "document_version": 5,
        "run_id": None,
        "reason": "timeout",
        "message": "Reading took 61 s.",
        "stage": "extract",
        "attempts": 1,
        "first_failed_at": NOW - timedelta(hours=3),
        "failed_at": NOW - timedelta(hours=2) + timedelta(seconds=number),
        **fields,
    }
    return DeadLetterRow(**given)


class Records(dict[Coordinates, Delivery]):
    """The records of the dead-letter topic, by where they are."""

    def of(self, row: DeadLetterRow, value: bytes | None = None, **headers: bytes) -> None:
        event = {"document_id": row.document_id, "uri": "file:///data/a.pdf", "title": HOSTILE}
        failure = Failure(row.reason, row.message, row.stage, "ExtractTimeout", "line 1\n\x1b]0;x\x07line 2")
        original = delivery(
            row.origin.offset,
            partition=row.origin.partition,
            value=json.dumps(event).encode() if value is None else value,
            replay_count=row.replay_count,
            origin_timestamp_ms=to_ms(NOW),
            headers=tuple(headers.items()),
        )
        written = dead_letter_headers(original, failure, NOW, max_attempts=4, group="docsum-worker")
        self[row.dead_letter] = replace(
            original,
            at=row.dead_letter,
            headers=written,
            attempt_log=dict(written)["docsum-attempt-log"].decode(),  # type: ignore[union-attr]  # text
        )


class House:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.records = Records()
        self.publisher = FakePublisher()
        self.fails = False

    def dead(self, *rows: DeadLetterRow) -> None:
        asyncio.run(self.came(*rows))

    async def came(self, *rows: DeadLetterRow) -> None:
        await self.store.write(Rows(dead_letters=rows))
        for row in rows:
            self.records.of(row)

    def rows(self, *states: str) -> list[DeadLetterRow]:
        return list(asyncio.run(self.store.dead_letters(DeadLetterFilter(states=states), None, 1_000)))

    def audits(self) -> list[AuditRow]:
        return list(asyncio.run(self.store.audits()))


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    """A deployment whose Kafka is in memory and whose workers store at once what comes to them."""
    house = House()
    monkeypatch.chdir(tmp_path)
    deployed(house.store, monkeypatch)

    class Topic:
        def __init__(self, kafka: Kafka, topic: str) -> None:
            assert topic == "docsum.dlq"

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...

        async def offsets(self) -> Mapping[int, range]:
            return dict.fromkeys(range(3), range(1_000))

        async def read(
            self, places: Collection[Coordinates]
        ) -> AsyncGenerator[tuple[Coordinates, Delivery | None], None]:
            for place in sorted(places):
                yield place, house.records.get(place)

    class Workers(FakePublisher):
        async def publish(self, copy: RecordCopy) -> Coordinates:
            at = await super().publish(copy)
            name = json.loads(copy.value or b"{}")["document_id"]
            (row,) = await house.store.newest_dead_letters(DeadLetterFilter(documents=(name,)), 1)
            if house.fails:
                await house.came(
                    replace(
                        row,
                        dead_letter=replace(row.dead_letter, offset=row.dead_letter.offset + 1_000),
                        replay_count=row.replay_count + 1,
                    )
                )
            else:
                await house.store.write(Rows(summaries=(stored(name),)))
            return at

    house.publisher = Workers()

    @asynccontextmanager
    async def open_producer(settings: Settings) -> AsyncIterator[FakePublisher]:
        yield house.publisher

    monkeypatch.setattr("docsum.kafka.dead_letters.DeadLetterTopic", Topic)
    monkeypatch.setattr("docsum.bootstrap.open_producer", open_producer)
    monkeypatch.setattr("docsum.replay.LOOK_EVERY", timedelta(milliseconds=1))
    return house


def stored(document_id: str, version: int = 5) -> SummaryRow:
    return SummaryRow(
        document_id, version, State.DONE, "", "file:///a", summary(), {}, None,
        Coordinates("docsum.documents", 0, 0), NOW, NOW,
    )  # fmt: skip


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, typed: bytes) -> Iterator[None]:
    """Somebody sits there and types this."""
    controller, terminal_ = pty.openpty()
    os.write(controller, typed)
    with os.fdopen(terminal_) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        yield
    os.close(controller)


# -- ls ----------------------------------------------------------------------------------------------------


def test_an_empty_list_says_so(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert result(capsys, "dlq", "ls") == (Code.OK, "", "There are no open dead letters.\n")
    assert result(capsys, "dlq", "ls", "--state", "all")[2] == "There are no dead letters.\n"
    assert (
        result(capsys, "dlq", "ls", "--reason", "empty")[2] == "There are no open dead letters that match.\n"
    )
    assert result(capsys, "dlq", "ls", "--json") == (Code.OK, "", "")


def test_the_list_has_groups_with_what_to_do_and_the_newest_entries(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n) for n in range(25)), letter(25, reason="empty", document_id=HOSTILE))
    code, out, _ = result(capsys, "dlq", "ls")
    assert code == Code.OK
    assert "Reading the document took too long." in out
    assert "Raise DOCSUM_EXTRACT__TIMEOUT" in out
    assert "docsum.dlq[1]@25" in out
    assert "docsum.dlq[1]@1 " not in out
    assert "6 more" in out
    assert harmless(out)
    assert "\\x1b[31mname" in out


def test_json_is_every_entry_in_the_order_of_the_topic_unless_limited(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n) for n in range(25)), letter(25, document_id=HOSTILE))
    _, out, _ = result(capsys, "dlq", "ls", "--json")
    found = lines(out)
    assert len(found) == 26
    assert [each["id"] for each in found[:2]] == ["docsum.dlq[0]@0", "docsum.dlq[0]@3"]
    assert found[0]["original"] == "docsum.documents[0]@500"
    assert harmless(out)
    assert HOSTILE in [each["document_id"] for each in found]
    _, out, _ = result(capsys, "dlq", "ls", "--json", "--limit", "2")
    assert [each["id"] for each in lines(out)] == ["docsum.dlq[1]@25", "docsum.dlq[0]@24"]
    _, out, _ = result(capsys, "dlq", "ls", "--json", "--groups")
    assert [(each["reason"], each["entries"], each["documents"]) for each in lines(out)] == [
        ("timeout", 26, 26)
    ]


def test_filters_go_together(house: House, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asyncio.run(house.store.save_run(RUN))
    path = tmp_path / "a.txt"
    house.dead(
        letter(0, run_id=RUN.id),
        letter(1, reason="empty", run_id=RUN.id, failed_at=NOW - timedelta(days=9)),
        letter(2, reason="scanned"),
        letter(3, state="parked"),
        letter(4, document_id=path.as_uri()),
    )

    def ids(*arguments: str) -> list[int]:
        _, out, _ = result(capsys, "dlq", "ls", "--json", *arguments)
        return [int(each["id"].split("@")[1]) for each in lines(out)]

    assert ids("--run", "last") == [0, 1]
    assert ids("--run", "3f2a", "--since", "7d") == [0]
    assert ids("--until", "7d") == [1]
    assert ids("--reason", "empty", "--reason", "scanned") == [1, 2]
    assert ids("--document", "a.txt") == [4]
    assert ids("--document", "2.pdf", "--document", str(path)) == [4, 2]
    assert ids("--state", "parked") == [3]
    assert ids("--state", "all") == [0, 3, 1, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "--reason", "tiemout"), "There is no reason 'tiemout'"),
        (("ls", "--since", "soon"), "'soon' is no time to count from"),
        (("ls", "--until", "2999-01-01"), "--until takes a time that is past"),
        (("ls", "--run", "ffff"), "There is no run ffff"),
        (("show", "nothing.pdf"), "There is no dead letter nothing.pdf"),
        (("show", "docsum.dlq[0]@77"), "There is no dead letter docsum.dlq[0]@77"),
        (("replay", "--yes"), "Say which: `docsum dlq replay ID`"),
        (("replay", "--all"), "Add --yes where nobody can be asked"),
        (("replay", "--all", "--reason", "empty", "--yes"), "--all takes everything open"),
        (("replay", "a.pdf", "--run", "last", "--yes"), "Give ids or filters, not both"),
        (("replay", "a.pdf", "--yes"), "There is no dead letter a.pdf"),
        (("discard", "a.pdf", "--yes"), "Say why with --reason TEXT"),
        (("discard", "--reason", "old", "--yes"), "Say which: `docsum dlq discard ID`"),
        (("discard", "--reason", "empty", "--yes"), "--failure empty chooses"),
        (("discard", "--all", "--reason", "old"), "Add --yes"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    house: House, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = result(capsys, "dlq", *arguments)
    assert (code, out) == (Code.USAGE, "")
    assert words in err
    assert err.count("\n") == 1


# -- show --------------------------------------------------------------------------------------------------


def test_show_tells_all_that_is_known(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(house.store.save_run(RUN))
    paid = Answer(
        "1" * 64, "msg_1", "m", "{}", Usage(10, 5), Decimal("0.25"), "1", "refused", NOW, 1, "7.pdf", RUN.id
    )
    before = replace(paid, request_id="msg_0", cost=Decimal("0.0123"), run_id=None)
    asyncio.run(house.store.write(Rows(answers=(paid, before))))
    row = letter(7, run_id=RUN.id, replay_count=1)
    house.dead(row, letter(10, document_id="7.pdf", failed_at=NOW - timedelta(days=3)))
    house.records.of(row, traceparent=b"00-abc", key=b"\xff\xfe", evil=HOSTILE.encode())
    code, out, _ = result(capsys, "dlq", "show", "7.pdf")
    assert code == Code.OK
    for words in (
        "7.pdf",
        "docsum.dlq[1]@7, open, 1 attempt, replayed 1 time",
        "timeout: Reading the document took too long.",
        "Reading took 61 s.",
        "What to do: Raise DOCSUM_EXTRACT__TIMEOUT",
        "file:///data/a.pdf",
        "00-abc",
        "0xfffe",
        "line 2",
        "ExtractTimeout",
        "First published at docsum.documents[1]@507",
        "The document has cost $0.2623 so far.",
        "Its run has cost $0.25 so far.",
        "The document has 1 older entries",
    ):
        assert words in out
    assert harmless(out)


def test_show_as_json_has_the_same(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    paid = Answer("1" * 64, "msg_1", "m", "{}", Usage(10, 5), Decimal("0.0123"), "1", "ok", NOW, 1, "7.pdf")
    asyncio.run(house.store.write(Rows(answers=(paid,))))
    house.dead(letter(7))
    _, out, _ = result(capsys, "dlq", "show", "docsum.dlq[1]@7", "--json")
    found = json.loads(out)
    assert (found["cost_usd"], found["run_cost_usd"]) == (0.0123, None)
    assert found["event"]["title"] == HOSTILE
    assert harmless(out)
    assert found["headers"]["docsum-orig-offset"] == "507"
    assert [each["reason"] for each in found["attempt_log"]] == ["timeout"]
    assert (found["id"], found["state"], found["replays"]) == ("docsum.dlq[1]@7", "open", 0)


def test_an_event_that_cannot_be_decoded_is_shown_as_bytes(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    row = letter(7, document_id="", reason="invalid_event")
    house.dead(row)
    house.records.of(row, b"\x07hello\x1b" + bytes(range(200)))
    _, out, _ = result(capsys, "dlq", "show", "docsum.dlq[1]@7")
    assert "The event is not readable: The value is neither Avro" in out
    assert "07 68 65 6c 6c 6f 1b 00" in out
    assert ".hello." in out
    assert "207 bytes in all" in out
    assert harmless(out)


def test_raw_is_the_bytes_and_nothing_else(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(letter(7))
    house.records.of(letter(7), b"\x00\xff\x1b")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, write_through=True))
    code, _, _ = result(capsys, "dlq", "show", "docsum.dlq[1]@7", "--raw")
    assert (code, written.getvalue()) == (Code.OK, b"\x00\xff\x1b")


def test_raw_does_not_go_to_a_terminal(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, _, err = result(capsys, "dlq", "show", "docsum.dlq[1]@7", "--raw")
    assert code == Code.USAGE
    assert "could upset the terminal" in err


def test_a_record_that_kafka_has_deleted_is_shown_from_the_store(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(letter(7))
    house.records.clear()
    code, out, _ = result(capsys, "dlq", "show", "7.pdf")
    assert code == Code.OK
    assert "Reading took 61 s." in out
    assert "Kafka has deleted the record." in out


def test_the_coordinates_of_before_a_replay_lead_to_the_entry_of_now(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = letter(7), letter(7, dead_letter=Coordinates("docsum.dlq", 1, 99), replay_count=1)
    house.dead(before, now)
    code, out, _ = result(capsys, "dlq", "show", "docsum.dlq[1]@7")
    assert code == Code.OK
    assert "docsum.dlq[1]@99, open, 1 attempt, replayed 1 time" in out
    assert "docsum.dlq[1]@7, which is shown here, is its record from before the last replay." in out


def test_what_failed_in_a_run_leads_here(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(name: str, run_id: UUID) -> RunDocumentRow:
        return RunDocumentRow(run_id, name, State.DEAD_LETTERED, "file:///a", 1, "timeout", HOSTILE, NOW)

    asyncio.run(house.store.save_run(RUN))
    asyncio.run(house.store.write(Rows(run_documents=(failed("a b.pdf", RUN.id),))))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert f"Next: `docsum dlq ls --run {RUN.id}`" in result(capsys, "runs", "show", "last")[2]
    assert "Next: `docsum dlq show 'a b.pdf'`" in result(capsys, "documents", "show", "a b.pdf")[2]
    _, out, _ = result(capsys, "documents", "show", "a b.pdf", "--json")
    assert json.loads(out)["runs"][0]["message"] == HOSTILE
    assert harmless(out)


# -- replay ------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_happen_and_does_nothing(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n) for n in range(5)), letter(5, reason="empty", replay_count=2))
    house.dead(letter(6, origin=Coordinates("evil", 0, 1)))
    code, out, err = result(capsys, "dlq", "replay", "--all", "--dry-run")
    assert code == Code.OK
    rows = [row.split()[:4] for row in out.splitlines()]
    assert [row for row in rows if row and row[0] in ("timeout", "empty")] == [
        ["timeout", "5", "0", "1"],
        ["empty", "0", "1", "0"],
    ]
    assert "It would replay 5 dead letters and park 1; nothing was done." in err
    assert "1 stay: evil is no input of this deployment" in err
    assert house.publisher.copies == []
    assert len(house.rows("open")) == 7
    assert house.audits() == []


def test_a_replay_tells_what_it_did_and_who(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.dead(*(letter(n) for n in range(15)), letter(15, replay_count=2))
    code, out, err = result(capsys, "dlq", "replay", "--reason", "timeout", "--yes")
    assert (code, out) == (Code.OK, "")
    assert "Sample of 10: 10 are done, 0 failed again." in err
    assert "Replayed 15, parked 1." in err
    (line,) = house.audits()
    assert (line.who, line.action, line.count) == (who(), "dlq replay", 16)
    assert line.detail == "open entries that failed with timeout: 15 replayed, 1 parked"


def test_a_sample_that_fails_again_ends_with_code_three(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n) for n in range(30)))
    house.fails = True
    code, _, err = result(capsys, "dlq", "replay", "--all", "--yes")
    assert code == Code.DEAD_LETTERS
    assert "Sample of 10: 0 are done, 10 failed again." in err
    assert "the cause is not fixed. The other 20 were left where they are" in err
    (line,) = house.audits()
    assert line.detail == "open entries: 10 replayed, 0 parked, stopped by the sample"


def test_a_replay_as_json_is_one_object(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.dead(*(letter(n) for n in range(3)), letter(3, replay_count=2))
    _, out, _ = result(capsys, "dlq", "replay", "--all", "--yes", "--json")
    found = json.loads(out)
    assert (found["replayed"], found["parked"], found["gone"], found["dry_run"]) == (3, 1, 0, False)
    assert found["sample"] == {"sent": 3, "helped": 3, "failed": 0, "waiting": 0, "cause_remains": False}
    assert found["reasons"] == [{"reason": "timeout", "replay": 3, "park": 1, "stay": 0}]


def test_ids_are_documents_paths_or_coordinates(
    house: House, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    house.dead(*(letter(n) for n in range(4)), letter(4, document_id=path.as_uri()))
    code, _, err = result(capsys, "dlq", "replay", "1.pdf", "a.txt", "docsum.dlq[2]@2", "--yes")
    assert code == Code.OK
    assert "Replayed 3" in err
    assert sorted(row.document_id for row in house.rows("open")) == ["0.pdf", "3.pdf"]
    (line,) = house.audits()
    assert line.detail.startswith(f"open entries of 1.pdf or {path.as_uri()} and docsum.dlq[2]@2: 3 replayed")
    code, _, err = result(capsys, "dlq", "replay", "1.pdf", "--yes")
    assert code == Code.OK
    assert "1.pdf is resolved: it is left alone." in err
    assert "There is nothing to replay." in err


def test_nothing_that_can_go_is_a_failure_with_its_reason(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(letter(1, origin=Coordinates("crm.documents", 0, 1)))
    code, _, err = result(capsys, "dlq", "replay", "--all", "--yes")
    assert code == Code.FAILURE
    assert "add it to DOCSUM_TOPICS__INPUTS" in err


@pytest.mark.parametrize(("typed", "replayed"), [(b"n\n", 0), (b"\n", 0), (b"y\n", 101)])
def test_more_than_a_hundred_are_asked_for(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: bytes,
    replayed: int,
) -> None:
    house.dead(*(letter(n) for n in range(101)))
    with terminal(monkeypatch, typed):
        code, _, err = result(capsys, "dlq", "replay", "--all", "--rate", "5000")
    assert code == Code.OK
    assert "Replay 101 dead letters? [y/N]" in err
    assert len(house.publisher.copies) == replayed


def test_a_hundred_are_not_asked_for_on_a_terminal(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n) for n in range(100)))
    with terminal(monkeypatch, b""):
        _, _, err = result(capsys, "dlq", "replay", "--all", "--rate", "5000")
    assert "[y/N]" not in err
    assert "Next: `docsum dlq ls`" in err
    assert len(house.publisher.copies) == 100


# -- discard -----------------------------------------------------------------------------------------------


def test_discarding_marks_and_is_written_to_the_audit(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(*(letter(n, reason="empty") for n in range(5)), letter(5))
    arguments = ("dlq", "discard", "--failure", "empty", "--reason", "blank pages", "--yes")
    code, out, err = result(capsys, *arguments, "--dry-run")
    assert code == Code.OK
    assert "empty" in out
    assert "It would discard 5 dead letters; nothing was done." in err
    code, _, err = result(capsys, *arguments)
    assert (code, err) == (Code.OK, "Discarded 5 dead letters.\n")
    assert len(house.rows("discarded")) == 5
    (line,) = house.audits()
    assert (line.action, line.count) == ("dlq discard", 5)
    assert line.detail.startswith("open entries that failed with empty until ")
    assert line.detail.endswith(": blank pages")
    _, out, _ = result(capsys, *arguments, "--json")
    assert json.loads(out)["discarded"] == 0


def test_parked_entries_are_discarded_when_they_are_asked_for(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.dead(letter(0), letter(1, state="parked"), letter(2, state="parked"))
    result(capsys, "dlq", "discard", "--all", "--reason", "x", "--yes")
    assert [row.document_id for row in house.rows("discarded")] == ["0.pdf"]
    result(capsys, "dlq", "discard", "1.pdf", "--reason", "x", "--yes")
    assert len(house.rows("discarded")) == 2
    result(capsys, "dlq", "discard", "--state", "parked", "--reason", "x", "--yes")
    assert len(house.rows("discarded")) == 3


# -- words -------------------------------------------------------------------------------------------------


def test_ages_are_told_in_two_units() -> None:
    assert age(NOW, NOW) == "0.0 s"
    assert age(NOW - timedelta(hours=3, minutes=4), NOW) == "3 h 4 min"
    assert age(NOW - timedelta(days=40, hours=5), NOW) == "40 d 5 h"
    assert age(NOW + timedelta(seconds=9), NOW) == "0.0 s"  # another machine's clock


def test_nothing_that_steers_a_terminal_is_left() -> None:
    assert clean(HOSTILE) == "bad \\x1b[31mname\\x07 \\u202e\\x9b2J"
    assert clean("Größe \U0001f4c4\nline") == "Größe \U0001f4c4\nline"
    assert clean("\udc80") == "\\udc80"
