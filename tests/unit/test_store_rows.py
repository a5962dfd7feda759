"""Rows to values and back, addresses, error codes and migrations: what the store decides without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, OperationalError

from docsum.errors import ConfigurationError, DocsumError, RowRefused, StoreMisconfigured, StoreUnavailable
from docsum.models import (
    Answer,
    AtRisk,
    Coordinates,
    DeadLetterRow,
    Death,
    FailureRow,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunState,
    State,
    Summary,
    SummaryRow,
    Usage,
    WorkerStatus,
)
from docsum.settings import ClickHouse
from docsum.stores import migrate
from docsum.stores.connection import Address, parse_url, translate
from docsum.stores.tables import (
    ANSWERS,
    DEAD_LETTERS,
    DEATHS,
    FAILURES,
    RUN_DOCUMENTS,
    RUNS,
    SUMMARIES,
    TABLES,
    WORKERS,
    Table,
    Values,
    answer_of,
    death_of,
    in_order,
    run_document_of,
    run_of,
    size_of,
    summary_row_of,
    utf8,
    worker_of,
)

NOW = datetime(2026, 11, 23, 12, 30, 15, 250_000, UTC)
RUN = UUID("0190f5c2-0000-7000-8000-000000000001")
AT = Coordinates("docsum.documents", 3, 42)
ANSWER = Answer(
    "f" * 64,
    "msg_1",
    "m",
    "{}",
    Usage(1, 2, 3, 4),
    Decimal("0.1"),
    "p",
    "ok",
    NOW,
    9,
    "a",
    RUN,
    2,
    Lane.BATCH,
)
SUMMARY = Summary("T", "S", ("k",), "en", "memo", ("w",), "m", "r", "f", 1, 2, Decimal("0.1"), reused=True)
ROW = SummaryRow("a", 7, State.DONE, "etag", "file:///a", SUMMARY, {"team": "x"}, RUN, AT, NOW, NOW)
DOCUMENT = RunDocumentRow(RUN, "a", State.DEAD_LETTERED, "file:///a", 4, "scanned", "No text.", NOW)
LETTER = DeadLetterRow(AT, AT, "a", 7, RUN, "scanned", "No text.", "extract", 4, NOW, NOW, 1, "replayed")
FAILURE = FailureRow(NOW, "a", RUN, 1, "timeout", "extract", "retry", "Too long.", "w-1")
A_RUN = Run(RUN, "n", "/srv", Recipe("m"), Lane.LIVE, RunState.PUBLISHED, NOW, NOW, 3, force=True, listed=2)
WORK = AtRisk("extract", AT)
WORKER = WorkerStatus(
    "w-1", "h", 1, Lane.LIVE, NOW, NOW, ("t[0]",), 2, ("held",), ("open",), "5 of 64", Decimal("0.5"),
    (WORK,), alone=True, stopped=True,
)  # fmt: skip
DEATH = Death("w-1", NOW, NOW, WORK, alone=True)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (ANSWERS, ANSWER),
        (SUMMARIES, ROW),
        (RUN_DOCUMENTS, DOCUMENT),
        (DEAD_LETTERS, LETTER),
        (FAILURES, FAILURE),
        (RUNS, A_RUN),
        (WORKERS, WORKER),
        (DEATHS, DEATH),
    ],
)
def test_every_column_has_a_value(table: Table[object], row: object) -> None:
    assert len(table.columns) == len(set(table.columns)) == len(table.values(row))
    assert table.columnar([row, row]) == [(value, value) for value in table.values(row)]


def test_rows_read_back_as_they_were_written() -> None:
    assert answer_of(ANSWERS.values(ANSWER)) == ANSWER
    assert run_document_of(RUN_DOCUMENTS.values(DOCUMENT)[:-1]) == DOCUMENT
    assert run_of(RUNS.values(A_RUN)) == A_RUN
    assert worker_of(WORKERS.values(WORKER)) == WORKER
    assert death_of(DEATHS.values(DEATH)) == DEATH
    values = dict(zip(SUMMARIES.columns, SUMMARIES.values(ROW), strict=True))
    assert values.pop("is_deleted") == 0
    read: Values = tuple(values.values())
    assert summary_row_of(read) == ROW


def test_a_tombstone_has_the_flag_and_no_text() -> None:
    tombstone = SummaryRow("a", 8, State.SKIPPED, "", "", None, {}, None, AT, NOW, NOW)
    values = dict(zip(SUMMARIES.columns, SUMMARIES.values(tombstone), strict=True))
    assert (values["is_deleted"], values["title"], values["summary"]) == (1, "", "")


def test_paid_answers_go_first_and_empty_tables_not_at_all() -> None:
    everything = Rows((ANSWER,), (ROW,), (DOCUMENT,), (LETTER,), (FAILURE,))
    assert [table.name for table, _ in in_order(everything)] == [
        "answer_versions",
        "summary_versions",
        "run_document_versions",
        "dead_letter_versions",
        "failures",
    ]
    assert [table.name for table, _ in in_order(Rows(run_documents=(DOCUMENT,)))] == ["run_document_versions"]
    assert size_of(Rows()) == 0 < size_of(everything)


@pytest.mark.parametrize(
    ("text", "stored"), [("plain", "plain"), ("Größe \U0001f4c4", "Größe \U0001f4c4"), ("a\ud83d", "a?")]
)
def test_what_utf8_cannot_carry_becomes_a_question_mark(text: str, stored: str) -> None:
    assert utf8(text) == stored


# -- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:18123", Address("127.0.0.1", 18123, secure=False, path="")),
        ("https://ch.example.org", Address("ch.example.org", 8443, secure=True, path="")),
        ("http://ch", Address("ch", 8123, secure=False, path="")),
        ("https://gw:443/clickhouse/", Address("gw", 443, secure=True, path="clickhouse")),
        ("http://[::1]:8123", Address("::1", 8123, secure=False, path="")),
    ],
)
def test_a_url_says_where_and_whether_encrypted(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url", ["", "ch:8123", "clickhouse://ch", "http://", "http://ch:port", "http://a:b@ch"]
)
def test_a_wrong_url_is_told_by_the_name_of_its_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_CLICKHOUSE__URL"):
        parse_url(url)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("ch", False), ("10.0.0.1", False)],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert Address(host, 8123, secure=False, path="").loopback is loopback


# -- errors ------------------------------------------------------------------------------------------------

_UNAVAILABLE = (
    *(3, 76, 159, 198, 202, 203, 209, 210, 216, 225, 236, 241, 242, 243, 252, 279, 285, 286, 319),
    *(394, 425, 439, 473, 735, 999, 1002, 4711),
)
_MISCONFIGURED = (16, 47, 60, 62, 81, 115, 164, 192, 193, 497, 516)
_REFUSED = (6, 26, 27, 33, 38, 41, 53, 69, 70, 131, 349, 407)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [(_UNAVAILABLE, StoreUnavailable), (_MISCONFIGURED, StoreMisconfigured), (_REFUSED, RowRefused)],
)
def test_the_code_decides_whatever_the_class(codes: tuple[int, ...], kind: type[DocsumError]) -> None:
    for code in codes:
        for library in (DatabaseError, OperationalError):
            error = translate(
                library("server response: Code: 1. DB::Exception: Oh. (X_Y)", code=code, name="X_Y")
            )
            assert type(error) is kind
            assert f"{code} X_Y" in str(error)


def test_an_error_is_one_sentence_without_the_address() -> None:
    text = (
        "Received ClickHouse exception, code: 60, server response: Code: 60. DB::Exception: "
        "Table docsum.answers does not exist. (UNKNOWN_TABLE) (version 26.9.2.1) (for url http://secret:8123)"
    )
    error = translate(DatabaseError(text, code=60, name="UNKNOWN_TABLE"))
    assert str(error) == "ClickHouse answers 60 UNKNOWN_TABLE: Table docsum.answers does not exist."


def test_what_the_server_says_of_a_row_is_not_repeated() -> None:
    said = (
        "Code: 27. DB::Exception: Cannot parse input: expected x before: 'the document text'. (CANNOT_PARSE)"
    )
    error = translate(DatabaseError(said, code=27, name="CANNOT_PARSE"))
    assert str(error) == "ClickHouse refuses the row: 27 CANNOT_PARSE."


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OperationalError("Network Error: connection refused"), StoreUnavailable),
        (DatabaseError("HTTP driver received HTTP status 502"), StoreUnavailable),
        (TimeoutError(), StoreUnavailable),
        (DataError("Failed to write column"), RowRefused),
    ],
)
def test_without_a_code_the_store_is_unavailable_or_the_value_wrong(
    error: Exception, kind: type[DocsumError]
) -> None:
    assert type(translate(error)) is kind


# -- migrations --------------------------------------------------------------------------------------------


def test_migrations_are_numbered_without_gaps() -> None:
    found = migrate.migrations()
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))


def test_the_script_has_one_statement_a_part_and_no_variable_left() -> None:
    text = migrate.script(ClickHouse(database="mine"))
    assert text.startswith("CREATE DATABASE IF NOT EXISTS mine;\n")
    assert "{" not in text
    assert "Replicated" not in text
    assert text.count("CREATE TABLE") == text.count("fsync_after_insert = 1") == len(TABLES) + 1


def test_on_a_cluster_every_table_is_replicated() -> None:
    text = migrate.script(ClickHouse(cluster="main"))
    assert text.count(" ON CLUSTER main") == text.count("CREATE ") + text.count("ALTER ")
    assert text.count("ENGINE = Replicated") == text.count("CREATE TABLE")


@pytest.mark.parametrize("fields", [{"database": "a; DROP"}, {"cluster": "a b"}, {"database": ""}])
def test_names_that_are_no_names_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="DOCSUM_CLICKHOUSE__"):
        migrate.script(ClickHouse(**fields))
