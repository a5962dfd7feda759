"""The failure table: whole, unambiguous, and readable by a person at three in the morning."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from docsum import errors
from docsum.errors import FAILURES, REASONS, Disposition, DocsumError, classify, row_of


def every_error() -> list[type[DocsumError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, DocsumError)]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_row_with_a_sentence_and_a_hint(kind: type[DocsumError]) -> None:
    row = FAILURES[kind]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row.reason)
    for text in (row.sentence, row.hint):
        assert text.endswith(".")
        assert text[0].isupper() or text.startswith("docsum")


def test_no_row_is_for_nothing_and_every_reason_is_unique() -> None:
    assert set(FAILURES) == set(every_error())
    assert len(REASONS) == len(FAILURES)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_without_a_message_says_what_its_docstring_says(kind: type[DocsumError]) -> None:
    assert kind.__doc__ is not None
    assert str(kind()) == kind.__doc__.strip().splitlines()[0]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_shows_every_error(kind: type[DocsumError]) -> None:
    assert errors.__doc__ is not None
    assert re.search(rf"\b{kind.__name__}\b", errors.__doc__)


def test_a_configuration_error_stops_and_only_that() -> None:
    for kind, row in FAILURES.items():
        assert (row.disposition is Disposition.STOP) is issubclass(kind, errors.ConfigurationError)


def test_a_subclass_without_a_row_takes_its_nearest_ancestors() -> None:
    class Throttled(errors.SourceUnavailable):
        """Too many at once."""

    assert row_of(Throttled()) is FAILURES[errors.SourceUnavailable]


def test_a_foreign_error_is_an_internal_one_with_its_stack() -> None:
    try:
        vars(errors)["missing"]
    except KeyError as error:
        failure = classify(error, "extract")
    assert (failure.reason, failure.stage, failure.error_class) == ("internal_error", "extract", "KeyError")
    assert failure.message == "KeyError: 'missing'"
    assert "test_errors.py" in failure.stacktrace


def test_an_error_of_ours_has_its_own_words_and_no_stack() -> None:
    failure = classify(errors.SourceTooLarge("It has 3 GB."), "fetch")
    assert (failure.reason, failure.message, failure.stacktrace) == ("too_large", "It has 3 GB.", "")


def test_messages_and_stacks_are_cut() -> None:
    failure = classify(ValueError("x" * 100_000), "store")
    assert len(failure.message) == 1000
    assert len(failure.stacktrace) == 4096


def test_a_provider_may_say_how_long_to_wait() -> None:
    assert errors.ModelRateLimited(retry_after=timedelta(seconds=7)).retry_after == timedelta(seconds=7)
