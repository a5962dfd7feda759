"""Extracts: whole sentences of the text, in its order, of the length that was asked for."""

import re
from collections.abc import Sequence

import pytest

from docsum.local.extractive import (
    SENTENCE_CAP,
    Extract,
    ExtractiveModel,
    Kind,
    centrality,
    rankable,
    read_blocks,
    shortened,
    similarities,
)
from docsum.local.extractive_guesses import guess_type

LETTER = """\
Northwind Water Company
14 Mill Lane, Leeds LS1 4AB

3 March 2026

Dear Mrs. Patel,

Re: Replacement of the water main in Mill Lane

We are writing to tell you that the water main in Mill Lane will be replaced between 14 April and 2 May
2026. The old iron pipe was laid in 1931 and has burst four times in the last two years. The new pipe is
made of polyethylene and should last for about a hundred years. During the works the lane will be closed
to cars on weekdays from 8 a.m. to 5 p.m., but you can always reach your home on foot. Your water will be
switched off for at most four hours on one day, and we will leave a card at your door at least 48 hours
before.

If someone in your home depends on water for medical reasons, please call Mr. J. Brown on 0113 496 0000
before the end of March. We will then bring you bottled water. Compensation of 30 pounds is paid to every
household whose water is off for longer than twelve hours.

Yours sincerely,

Anna Kowalska
Head of Network Renewal
"""

MINUTES = """\
Protokoll der Sitzung des Gemeinderats

Der Gemeinderat tagte am 12. März 2026 im Rathaus. Die Bürgermeisterin Dr. Weber begrüßte die Anwesenden
und stellte die Beschlussfähigkeit fest. Der Haushalt sieht Ausgaben von 4,2 Mio. Euro vor, z.B. für den
Neubau der Grundschule. Für die Brücke liegt noch kein Angebot vor, daher wird die Ausschreibung im April
wiederholt. Die nächste Sitzung findet am 9. April statt.
"""

CHINESE = "城市公园改造计划\n\n" + "".join(
    (
        "市政府决定在今年春天开始改造中心公园。",
        "公园建于一九八二年，设施已经老旧。",
        "改造工程包括新建步道、儿童游乐场和一个小型图书馆。",
        "工程预计在十月完成，总费用约为三千万元。",
        "施工期间公园的东门将关闭，市民可以从西门进入。",
    )
)

REPORT = "# Annual report 2025\n\n" + "\n\n".join(
    f"## Plant {name}\n\nThe {name} plant produced {n}00 tonnes of glass in the year. "
    f"Demand for {name} glass rose because the building trade bought more windows. "
    f"The furnace of {name} was repaired in week {n}. "
    f"Energy costs of the plant fell by {n} percent after the repair. "
    f"The company will keep the {name} plant open until 2040."
    for n, name in enumerate(("Oslo", "Porto", "Turin", "Gdansk", "Lyon", "Bremen"), start=2)
)


@pytest.fixture(scope="module")
def model() -> ExtractiveModel:
    return ExtractiveModel()


def flat(text: str) -> str:
    return " ".join(text.split())


def positions(found: Sequence[str], text: str) -> list[int]:
    return [flat(text).find(flat(piece)) for piece in found]


@pytest.mark.parametrize(
    "text", [LETTER, MINUTES, CHINESE, REPORT], ids=["letter", "minutes", "chinese", "report"]
)
def test_every_key_point_is_a_sentence_of_the_text_in_its_order(model: ExtractiveModel, text: str) -> None:
    found = model.summarise(text)
    where = positions(found.key_points, text)
    assert -1 not in where
    assert where == sorted(where)
    assert 3 <= len(found.key_points) <= 7


def test_a_summary_is_made_of_sentences_of_the_text_in_their_order(model: ExtractiveModel) -> None:
    sentences = re.split(r"(?<=\.) (?=[A-Z])", model.summarise(REPORT, words=60).summary)
    where = positions(sentences, REPORT)
    assert -1 not in where
    assert where == sorted(where)


@pytest.mark.parametrize("words", [40, 80, 150])
def test_a_summary_has_about_the_words_asked_for(model: ExtractiveModel, words: int) -> None:
    assert words * 0.6 <= len(model.summarise(REPORT, words).summary.split()) <= words * 1.2


def test_the_same_text_gives_the_same_extract(model: ExtractiveModel) -> None:
    assert model.summarise(REPORT) == model.summarise(REPORT) == ExtractiveModel().summarise(REPORT)


def test_abbreviations_and_ordinals_do_not_end_a_sentence(model: ExtractiveModel) -> None:
    summary = model.summarise(MINUTES).summary
    assert "am 12. März 2026 im Rathaus." in summary
    assert "z.B. für den Neubau der Grundschule." in summary
    assert summary.endswith("findet am 9. April statt.")


def test_chinese_sentences_are_found_without_spaces(model: ExtractiveModel) -> None:
    found = model.summarise(CHINESE, words=50)
    assert found.title == "城市公园改造计划"
    assert "。 " not in found.summary
    assert len(found.key_points) == 3


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (LETTER, "Replacement of the water main in Mill Lane"),
        (MINUTES, "Protokoll der Sitzung des Gemeinderats"),
        (REPORT, "Annual report 2025"),
        ("Old style heading\n=====\n\nThe text of it is here, and it is long.", "Old style heading"),
        ("The ship left on Monday. It came back on Friday.", "The ship left on Monday."),
        ("", "Untitled"),
    ],
)
def test_the_title_is_the_subject_the_first_heading_or_the_first_sentence(
    model: ExtractiveModel, text: str, title: str
) -> None:
    assert model.summarise(text).title == title


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (LETTER, "en"),
        (MINUTES, "de"),
        (CHINESE, "zh"),
        ("Où est la gare ? Elle est là-bas.", "fr"),
        ("By og havn har to aftaler, og det er for dyrt at vente, siger borgmesteren.", "da"),
        ("12 34", "und"),
    ],
)
def test_the_language_is_told(model: ExtractiveModel, text: str, language: str) -> None:
    assert model.summarise(text).language == model.lead(text).language == language


@pytest.mark.parametrize(
    ("title", "head", "kind"),
    [
        ("Invoice 2024-17", "Bill to: Acme. Amount due: 300.", "invoice"),
        ("Rechnung Nr. 5", "", "invoice"),
        ("Water main", "Dear Sir, we write. Yours sincerely, A.", "letter"),
        ("Minutes of the board", "Attendees: Ann, Bob", "minutes"),
        ("Annual report", "", "report"),
        ("A walk by the sea", "The report was on the table.", "document"),
        ("", "", "document"),
    ],
)
def test_the_kind_is_guessed_only_where_something_gives_it_away(title: str, head: str, kind: str) -> None:
    assert guess_type(title, head) == kind


def test_a_table_of_contents_with_dot_leaders_is_no_prose(model: ExtractiveModel) -> None:
    entries = "\n".join(f"{i // 10}.{i % 10} Setting option {i} {'. ' * 30}{i // 3}" for i in range(7000))
    prose = "The machine must be switched off before cleaning. Open the lid and remove the filter."
    found = model.summarise(f"User Guide\n\nContents\n\n{entries}\n\n{prose}\n")
    assert found.title == "User Guide"
    assert found.summary == prose
    assert found.document_type == "manual"


def test_code_tables_and_link_targets_are_left_out() -> None:
    blocks = list(
        read_blocks(
            "Read [the guide](https://x.y/z) **now**.\n\n```\nrm -rf\n```\n\n| a | b |\n\n- an item\n"
        )
    )
    assert [(block.kind, block.text) for block in blocks] == [
        (Kind.PROSE, "Read the guide now."),
        (Kind.ITEM, "an item"),
    ]


def test_headings_of_wrapped_text_are_not_glued_to_the_next_sentence() -> None:
    wrapped = "the committee looked at every bridge in the county and found that most of them are sound."
    blocks = list(read_blocks(f"3.2 Results\nIn spring {wrapped}\nCosts\nIn autumn {wrapped}"))
    assert [block.text for block in blocks if block.kind is Kind.HEADING] == ["3.2 Results", "Costs"]


def test_words_split_at_a_line_end_are_joined() -> None:
    assert [block.text for block in read_blocks("The regu-\nlation of trade.")] == [
        "The regulation of trade."
    ]


def test_what_repeats_is_told_once(model: ExtractiveModel) -> None:
    page = "This page was left blank on purpose by the printer. "
    text = page * 30 + "The bridge over the river was closed in May. A new bridge will open in two years."
    assert model.summarise(text).summary.count("left blank") == 1


def test_figures_without_sentences_are_said_to_be_none(model: ExtractiveModel) -> None:
    found = model.summarise("a\t1\t2\nb\t3\t4\nc\t5\t6\n")
    assert found.warnings == ("The text has no whole sentence; this is its beginning.",)
    assert found.summary


def test_a_text_of_nothing_but_a_table_still_gives_a_summary(model: ExtractiveModel) -> None:
    assert model.summarise("| name | price |\n| tea | 3 |\n").summary.startswith("| name | price |")


def test_a_very_short_text_is_told(model: ExtractiveModel) -> None:
    found = model.summarise("The ship left the harbour on Monday.")
    assert found.summary == "The ship left the harbour on Monday."
    assert found.warnings == ("The text has only 1 sentence.",)


def test_no_text_gives_an_empty_extract(model: ExtractiveModel) -> None:
    empty = Extract("Untitled", "", (), "und", "document")
    assert model.summarise("").summary == ""
    assert model.summarise("").key_points == ()
    assert model.lead("") == empty


@pytest.mark.parametrize(
    ("wanted", "warned"), [("", False), ("English", False), ("en", False), ("German", True)]
)
def test_a_translation_that_cannot_be_had_is_told(model: ExtractiveModel, wanted: str, warned: bool) -> None:
    warnings = model.summarise(LETTER, wanted_language=wanted).warnings
    assert any("cannot translate" in warning for warning in warnings) == warned


def test_the_lead_is_the_first_sentences(model: ExtractiveModel) -> None:
    found = model.lead(REPORT, words=30)
    assert found.title == "Annual report 2025"
    assert positions([found.summary.split(". ")[-1]], REPORT)[0] < 400
    assert 25 <= len(found.summary.split()) <= 60


def test_the_most_connected_sentence_is_the_most_central() -> None:
    bags = [["red", "fox"], ["red", "fox", "blue", "hen"], ["blue", "hen"], ["green", "cow"]]
    rank = centrality(similarities(bags)).tolist()
    assert max(rank[1:]) == rank[1]
    assert rank[1] > rank[3]


def test_no_more_sentences_are_ranked_than_the_cap_and_the_first_ones_stay() -> None:
    sentences = [f"Sentence number {i} tells of something else." for i in range(5000)]
    kept = [sentence.text for sentence in rankable(sentences)]
    assert len(kept) == SENTENCE_CAP
    assert kept[:50] == sentences[:50]
    assert kept == sorted(kept, key=sentences.index)
    assert sentences.index(kept[-1]) > 4900


@pytest.mark.parametrize(
    ("text", "short"),
    [("one two", "one two"), ("one two three four", "one two…"), ("x" * 30, "x" * 11 + "…")],
)
def test_a_cut_falls_between_words(text: str, short: str) -> None:
    assert shortened(text, 12) == short
