"""What the documents say is what the code does."""

from __future__ import annotations

from tests.support.readme import OPERATING, README, generated, operating


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text()
    assert generated(text) == text, "run `python -m tests.support.readme`"


def test_the_table_of_metrics_in_the_operating_guide_is_current() -> None:
    text = OPERATING.read_text()
    assert operating(text) == text, "run `python -m tests.support.readme`"
