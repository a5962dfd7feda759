"""The pure parts of the bench of the store: names, statements, times and tables."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from docsum.stores.tables import TABLES, in_order
from tests.bench import filling
from tests.bench.store import Asked, Filled, Flush, Size, Times, arguments, markdown

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def filled(documents: int, p50: float) -> Filled:
    asked = (Asked("progress of a run", Times(10, p50, 2 * p50)),)
    sizes = tuple(Size(table, documents, 3, 200 * documents, 900 * documents) for table in filling.TABLES)
    return Filled(documents, 1_000, 1.0, asked, sizes)


def test_times_are_milliseconds_and_the_longest_of_a_few_is_p99() -> None:
    assert Times.of([0.003, 0.001, 0.002]) == Times(3, 2.0, 3.0)
    assert Times.of([each / 1000 for each in range(1000)]) == Times(1000, 500.0, 990.0)


def test_the_tables_of_a_readme_show_growth_and_bytes_a_document() -> None:
    flush = Flush("50 writers, a flush every 20 ms", Times(100, 11.26, 30.0), 1_500.4, 4_501.2)
    found = {"flushes": [asdict(flush)], "stores": [asdict(filled(1_000, 10)), asdict(filled(9_000, 45))]}
    lines = [*markdown(json.loads(json.dumps(found)))]
    assert "| 50 writers, a flush every 20 ms | 11.3, 30.0 | 1,500 | 4,501 |" in lines
    assert "|  | 1,000 documents: p50, p99 ms | 9,000 documents: p50, p99 ms | growth |" in lines
    assert "| progress of a run | 10.0, 20.0 | 45.0, 90.0 | 4.50 |" in lines
    assert "| all | 600 | 600 |" in lines
    assert "| before compression | 2,700 | 2,700 |" in lines


def test_one_store_alone_does_not_grow() -> None:
    lines = [*markdown({"flushes": [], "stores": [asdict(filled(1_000, 10.0))]})]
    assert "| progress of a run | 10.0, 20.0 |  |" in lines


def test_every_document_is_filled_in_once_and_into_columns_that_exist() -> None:
    columns = {table.name: table.columns for table in TABLES}
    ranges: dict[str, list[int]] = {table: [] for table in filling.TABLES}
    for statement in filling.statements(500, 450_000, 1_000):
        assert len(statement) < 262_144  # what the engine takes
        insert = re.match(r"INSERT INTO (\w+) \((.*?)\) SELECT", statement)
        numbers = re.search(r"FROM numbers\((\d+), (\d+)\)", statement)
        assert insert is not None
        assert numbers is not None
        assert set(insert[2].split(", ")) <= set(columns[insert[1]])
        ranges[insert[1]].extend(range(int(numbers[1]), int(numbers[1]) + int(numbers[2])))
    assert all(found == [*range(500, 450_000)] for found in ranges.values())


def test_a_document_of_the_flush_has_one_row_in_each_table() -> None:
    rows = [filling.rows_of(number, uuid4(), NOW) for number in range(20)]
    assert all([len(part) for _, part in in_order(each)] == [1, 1, 1] for each in rows)
    assert len({each.answers[0].request_id for each in rows}) == 20
    assert len({each.summaries[0].document_id for each in rows}) == 20


def test_quick_is_small_and_what_is_said_besides_counts() -> None:
    assert arguments([]).documents == [1_000_000, 10_000_000]
    assert arguments(["--quick"]).documents == [20_000, 100_000]
    assert arguments(["--quick", "--documents", "9000,5000"]).documents == [5_000, 9_000]
    assert arguments(["--quick", "--seconds", "7"]).seconds == 7


@pytest.mark.parametrize("wrong", ["0", "1000,", "many", "499"])
def test_a_store_has_more_documents_than_are_asked_for_at_once(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(["--documents", wrong])
    assert "--documents" in capsys.readouterr().err
