"""What the documents say is what the code does."""

from __future__ import annotations

from docsum.errors import FAILURES, DocsumError, classify
from tests.support.readme import README, generated


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text()
    assert generated(text) == text, "run `python -m tests.support.readme`"


def test_every_error_has_a_row_of_its_own_and_every_reason_its_sentence_and_hint() -> None:
    def all_of(kind: type[DocsumError]) -> set[type[DocsumError]]:
        found = {kind} if kind.__module__ == "docsum.errors" else set()
        return found.union(*(all_of(child) for child in kind.__subclasses__()))

    assert all_of(DocsumError) == set(FAILURES)
    assert len({row.reason for row in FAILURES.values()}) == len(FAILURES)
    for kind, row in FAILURES.items():
        assert classify(kind(), "test").reason == row.reason
        assert row.sentence.endswith(".") and row.hint.endswith(".")
