"""Where long texts are cut, and which calls read them."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docsum.errors import ModelAnswerInvalid, ModelRefused
from docsum.models import Recipe
from docsum.summarisers import chunking, prompt
from docsum.summarisers.chunking import Chunk, Gaps, expected_calls, merges, split
from docsum.summarisers.prompt import estimate_tokens

RECIPE = Recipe("claude-haiku-5-5")
PROSE = "The harbour moved gravel and timber all year long. "


def prose(characters: int) -> str:
    return (PROSE * (characters // len(PROSE) + 1))[:characters].rstrip() + "."


def chapter(heading: str, characters: int = 900) -> str:
    return f"{heading}\n\n{prose(characters)}\n\n"


def texts_of(text: str, most_tokens: int) -> list[str]:
    return [chunk.text for chunk in split(text, most_tokens)]


# -- what holds for any text ---------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        "# One\n",
        "## Two\n",
        "3 Results\n\n",
        "\n3.2 Yield\n\n",
        "\nSCOPE\n\n",
        "Chapter IV\n",
        "Setext\n======\n",
        "```\n",
        "\n\n",
        "\n",
        "\f",
        "\r\n",
        "\u2028",
        " ",
        "A sentence. And another one! ",
        "文書の要約。",
        "long" * 11,
        "3.2 Yield ......... 17\n",
        "| a | b |\n",
        "e\u0301\u0301",
        "👩\u200d🔬👍🏽",
        "\ud83d",
    ]
)
TEXTS = st.lists(LINES | st.text(max_size=20), max_size=200).map("".join)


@given(TEXTS, st.integers(16, 400))
def test_every_character_is_in_one_chunk_and_none_is_too_large(text: str, most_tokens: int) -> None:
    chunks = split(text, most_tokens)
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.number for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert (chunks[0].start, chunks[-1].end) == (0, len(text))
    for chunk, following in pairwise(chunks):
        assert chunk.start < chunk.end == following.start
    assert all(estimate_tokens(chunk.text) <= most_tokens for chunk in chunks)


@given(TEXTS, st.integers(30, 400))
def test_chunks_are_of_about_the_same_size(text: str, most_tokens: int) -> None:
    sizes = [prompt.size(chunk) for chunk in texts_of(text, most_tokens)]
    # A cut moves by a quarter of a chunk at most; a character more or less is up to four bytes.
    assert max(sizes) <= 3 * min(sizes) + 32
    assert len(sizes) <= 1 + sum(sizes) / (0.85 * 2.5 * (most_tokens - 6))


@given(TEXTS, st.integers(16, 400))
def test_the_same_text_is_cut_at_the_same_places(text: str, most_tokens: int) -> None:
    again = "".join(list(text))  # another object
    assert [(c.start, c.end, c.section) for c in split(text, most_tokens)] == [
        (c.start, c.end, c.section) for c in split(again, most_tokens)
    ]


def test_the_places_are_the_same_for_ever() -> None:
    """Pinned: a change buys the parts of long documents again, so it is made on purpose or not at all."""
    text = "".join(chapter(f"{n}.{n} Quarter {n}", 300 + 37 * n) for n in range(1, 30))
    assert [chunk.start for chunk in split(text, 2_000)] == [0, 4525, 8350, 12705, 16921, 21302]


# -- where a cut is made -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heading",
    [
        "# Yield",
        "###### Yield ##",
        "Yield\n=====",
        "Yield\n-----",
        "3 Yield",
        "3.2. Yield",
        "3.2 Yield\nThe text goes on at once.",
        "Chapter IV: Yield",
        "Kapitel 12",
        "§ 12 Ertrag",
        "YIELD AND LOSS",
        "YIELD\n   The text goes on at once.",
        "\fYIELD",
    ],
)
def test_it_is_made_before_a_heading(heading: str) -> None:
    text = f"{prose(900)}\n\n{prose(80)}\n\n{heading}\n\n{prose(60)}\n\n{prose(900)}"
    assert texts_of(text, 600)[1].startswith(heading)


@pytest.mark.parametrize(
    "line",
    [
        "#hashtag",
        "# one comment\n# and another\nx = 1",
        "3.2 Yield ........... 17",
        "3.2 Yield . . . . . . 17",
        "3.5 million people live here",
        "1984 A year",
        "12 Berths of the harbour\n13 Cranes of the harbour",
        "THE SOFTWARE COMES AS IT IS, WITHOUT\nWARRANTY OF ANY KIND WHATSOEVER",
        "A 17 28 39 40",
        "THE END OF A SENTENCE.",
        "| A | B |",
        "Participants were 12",
    ],
)
def test_what_only_looks_like_a_heading_is_none(line: str) -> None:
    text = f"{prose(900)}\n\n{line}\n\n{prose(900)}"
    assert all(chunk.section == () for chunk in split(text, 300))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("One page.\f", "Another.\n\nParagraph."),
        ("A paragraph.\n \n", "Another.\nA line."),
        ("A line,\n", "another. A sentence."),
        ('He said "stop!" ', "A word"),
        ("文。", "要"),
    ],
)
def test_else_it_is_made_at_the_best_seam(before: str, after: str) -> None:
    text = f"{'x' * 1_000}{before}{after}{'x' * 1_000}"
    assert texts_of(text, 600) == [f"{'x' * 1_000}{before}", f"{after}{'x' * 1_000}"]


def test_a_higher_heading_is_better_than_a_nearer_one() -> None:
    text = f"{prose(900)}\n\n## High\n\n{prose(90)}\n\n### Low\n\n{prose(900)}"
    assert texts_of(text, 600)[1].startswith("## High")


@pytest.mark.parametrize("letter", ["e\u0301\u0308", "👍🏽", "👩\u200d🔬", "\ud83d\ude00", "\u0915\u093f"])
def test_no_character_is_torn(letter: str) -> None:
    for chunk in split(letter * 500, 100)[1:]:
        assert not unicodedata.combining(chunk.text[0])
        assert (chunk.text[:1] not in "\u200d🏽🔬\ude00") and chunk.source[chunk.start - 1] != "\u200d"
        assert chunk.start % len(letter) == 0


def test_a_short_text_is_one_chunk_and_a_tiny_limit_is_refused() -> None:
    assert split("", 16) == [Chunk("", 0, 0, 1, ())]
    assert texts_of("x" * 39, 16) == ["x" * 39]
    with pytest.raises(ValueError, match="at least 16"):
        split("text", 15)


# -- the section that a chunk begins under -------------------------------------------------------------------


def test_a_chunk_knows_the_headings_above_it() -> None:
    text = "".join(
        [
            "Annual report\n\n",
            chapter("1 Summary"),
            chapter("2 Methods"),
            chapter("3 Results"),
            chapter("3.1 Area"),
            chapter("3.2 Yield", 2_000),
        ]
    )
    sections = [chunk.section for chunk in split(text, 400)]
    assert sections[0] == ()
    assert ("Annual report", "2 Methods") in sections
    assert ("Annual report", "3 Results", "3.1 Area") in sections
    assert sections[-1] == ("Annual report", "3 Results", "3.2 Yield")


def test_headings_in_code_do_not_count_and_an_open_fence_hides_little() -> None:
    code = f"```\n# a comment\n```\n\n{prose(1_500)}"
    assert [chunk.section for chunk in split(code, 400)] == [(), ()]
    unclosed = f"```\n# a comment\n\n{prose(12_000)}\n\n# Yield\n\n{prose(12_000)}"
    assert split(unclosed, 2_000)[-1].section == ("Yield",)


def test_a_title_is_kept_short() -> None:
    [_, last] = split(f"# {'title ' * 33}\n\n{prose(2_000)}", 600)
    assert [len(title) for title in last.section] == [120]


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "word ",
        "\n",
        " ",
        "." * 80 + " 12\n",
        "3.2 Yield " + ". " * 30 + "17\n",
        "12 Foo 300 400\n",
        "# a\n\n",
        "CAPS LINE\n\n",
        "文書。",
        ".'''''''''",
        "\u0301",
        "\n" + " " * 500,
        "```\n",
        "\nAbc\n---\n",
    ],
    ids=repr,
)
def test_twice_the_text_takes_about_twice_the_time(unit: str) -> None:
    """Not one pattern may look at the same characters again and again."""

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        started = time.process_time()
        split(text, 2_000)
        return time.process_time() - started

    seconds(1_000)
    assert seconds(40_000) < 20 * seconds(5_000) + 0.5  # eight times, if nothing else ran


# -- the calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "at_once", "sizes"),
    [
        (3, 3, []),
        (4, 3, [[2, 2]]),
        (20, 3, [[2, 3, 3, 3, 3, 3, 3], [2, 2, 3]]),
        (9, 2, [[1, 2, 2, 2, 2], [1, 2, 2], [1, 2]]),
    ],
)
def test_notes_are_merged_until_one_call_can_read_them(
    nodes: int, at_once: int, sizes: list[list[int]]
) -> None:
    levels = merges(nodes, at_once)
    assert [[len(group) for group in level] for level in levels] == sizes
    for level, count in zip(levels, [nodes, *map(len, levels)], strict=False):
        assert [place for group in level for place in group] == list(range(count))


def test_a_short_text_is_one_call() -> None:
    [call] = expected_calls("A text.", RECIPE)
    request = prompt.render(RECIPE, "A text.", "0" * 16)
    assert (call.input_tokens, call.output_tokens) == (request.input_tokens, request.expected_tokens)


def test_a_long_text_is_a_call_for_each_part_and_one_for_the_whole() -> None:
    text = prose(1_000_000)
    calls = expected_calls(text, RECIPE)
    assert len(calls) == len(split(text, 60_000)) + 1
    *parts, whole = [call.input_tokens for call in calls]
    assert sum(parts) > estimate_tokens(text)
    assert whole < min(parts)


def test_the_notes_grow_with_the_wish_and_are_the_same_for_similar_ones() -> None:
    text = prose(1_000_000)
    words = {
        wish: chunking.plan(text, replace(RECIPE, words=wish), 60_000).words for wish in (20, 150, 2_000)
    }
    assert words == {20: 250, 150: 250, 2_000: 750}
    assert chunking.plan(prose(4_000), RECIPE, 1_000).words == 50


@pytest.mark.parametrize("letters", ["x", "文", "\x00", "word. \n\n"])
def test_every_prompt_of_a_long_text_is_under_the_price_step(letters: str) -> None:
    greedy = replace(RECIPE, single_shot_tokens=200_000, instructions="y" * 8_000, words=2_000)
    calls = expected_calls(letters * (900_000 // len(letters)), greedy)
    assert len(calls) > 5
    assert max(call.input_tokens for call in calls) < 100_000


# -- what could not be read ----------------------------------------------------------------------------------


def gaps(parts: int = 10) -> Gaps:
    return Gaps([Chunk("x" * 10 * parts, 10 * n, 10 * n + 10, n + 1, ()) for n in range(parts)])


def test_nothing_missing_is_nothing_said() -> None:
    assert (gaps().coverage, gaps().warnings) == (1.0, ())


def test_missing_parts_are_counted_and_named() -> None:
    found = gaps()
    found.leave_out([7], ModelRefused("No."))
    assert found.coverage == pytest.approx(0.9)
    assert found.warnings == ("Part 7 of 10 could not be read by the model.",)
    found.leave_out([7, 2, 3], ModelRefused("No."))
    assert found.coverage == pytest.approx(0.7)
    assert found.warnings == ("Parts 2, 3 and 7 of 10 could not be read by the model.",)


def test_over_half_of_the_text_missing_is_too_much() -> None:
    found = gaps()
    found.leave_out([4], ModelAnswerInvalid("first"))
    found.leave_out(range(5, 9), ModelRefused("second"))
    with pytest.raises(ModelAnswerInvalid, match="first"):
        found.leave_out([9], ModelRefused("third"))
