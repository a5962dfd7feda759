"""Two requests have the same fingerprint exactly when one answer serves both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from docsum.models import Recipe
from docsum.summarisers.prompt import Request, fingerprint, render, render_merge, render_part, render_whole

RECIPE = Recipe("claude-haiku-5-5", instructions="Be brief.")


def of(recipe: Recipe = RECIPE, text: str = "The text.", boundary: str = "a1", **more: str) -> str:
    return fingerprint(render(recipe, text, boundary), **more)


def test_it_is_the_same_for_ever() -> None:
    """Pinned: a change buys every stored answer again, so it is made on purpose or not at all."""
    assert of(Recipe("local-extractive-1"), "Hello.") == (
        "f1abac6ee6694b8504a2f6ef591e26fa59846de986b977448bcc8d860a3258df"
    )


def test_the_random_boundary_does_not_count() -> None:
    assert of(boundary="a1b2") == of(boundary="ffff")


@pytest.mark.parametrize("same", [{"max_output_tokens": 9_000}, {"prompt_version": "2"}])
def test_what_is_not_asked_does_not_count(same: dict[str, object]) -> None:
    assert of(replace(RECIPE, **same)) == of()  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize(
    "other",
    [
        {"model": "claude-sonnet-5-5"},
        {"instructions": "Be long."},
        {"language": "de"},
        {"words": 151},
        {"effort": "high"},
    ],
)
def test_every_wish_counts(other: dict[str, object]) -> None:
    assert of(replace(RECIPE, **other)) != of()  # type: ignore[arg-type]  # a table of fields


def test_the_text_the_scope_and_a_forced_event_count() -> None:
    prints = [
        of(),
        of(text="The text!"),
        of(scope="tenant"),
        of(event_id="tenant"),
        of(scope="a", event_id="b"),
        of(scope="ab"),
    ]
    assert len(set(prints)) == len(prints)


def test_invisible_characters_make_no_new_request() -> None:
    assert of(text="The\u200b text.") == of()


# -- of long documents ---------------------------------------------------------------------------------------


def part(recipe: Recipe = RECIPE, text: str = "The text.", **more: object) -> Request:
    asked = {"section": ("3 Results",), "place": (3, 20), "words": 250, **more}
    return render_part(recipe, text, "a1", **asked)  # type: ignore[arg-type]  # a table of fields


def test_those_of_a_long_document_are_the_same_for_ever() -> None:
    """Pinned: a change buys the notes on every long document again."""
    recipe = Recipe("local-extractive-1")
    asked = (part(recipe, "Hello."), render_merge(recipe, "Hello.", "a1", words=250))
    requests = (*asked, render_whole(recipe, "Hello.", "a1"))
    assert [fingerprint(request)[:16] for request in requests] == [
        "90642d54a205eaac",
        "de8f2a101fb48276",
        "61ad21dfb44389e5",
    ]


@pytest.mark.parametrize(
    "other", [{"section": ()}, {"place": (4, 20)}, {"place": (3, 21)}, {"words": 300}, {"text": "The text!"}]
)
def test_what_a_part_is_and_where_it_stands_counts(other: dict[str, object]) -> None:
    assert fingerprint(part(**other)) != fingerprint(part())  # type: ignore[arg-type]  # a table of fields


def test_the_notes_serve_readers_of_any_language_and_length() -> None:
    other = replace(RECIPE, language="de", words=400)
    assert fingerprint(part(other)) == fingerprint(part())
    assert fingerprint(render_whole(other, "Notes.", "a1")) != fingerprint(
        render_whole(RECIPE, "Notes.", "a1")
    )
    wish = replace(RECIPE, instructions="Name all amounts.")
    assert fingerprint(part(wish)) != fingerprint(part())


def test_a_text_its_part_and_its_notes_are_different_requests() -> None:
    merged = render_merge(RECIPE, "The text.", "a1", words=250)
    requests = [
        render(RECIPE, "The text.", "a1"),
        part(section=()),
        merged,
        render_whole(RECIPE, "The text.", "a1"),
    ]
    assert len({fingerprint(request) for request in requests}) == 4
