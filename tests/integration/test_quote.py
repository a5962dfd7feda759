"""The price known before, judged by what was paid: real files, real commands, a stand-in with a price."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import pytest
from reportlab.lib.utils import simpleSplit
from reportlab.pdfgen.canvas import Canvas

from docsum.local.stack_state import find
from tests.support.deployment import Deployment
from tests.support.documents import PROGRAM, encrypted_pdf, scanned_pdf

pytestmark = pytest.mark.timeout(400)

DOCUMENTS = 460  # without the sample more than are all read
SAMPLE = "5a3a91c0-0000-4000-8000-00000000000a"  # a run
WORDS = """
the board of harbour has agreed to repair northern wall before autumn storms and every member of council was
asked whether money for new crane should be taken from reserve or borrowed at seven percent while engineers
report that water in lower basin rises faster than measured since spring because old sluice gate does not
close any more which fishermen have said for years without being heard by anyone in town hall
""".split()


def prose(chance: random.Random, words: int) -> list[str]:
    """Paragraphs of sentences, every one different."""
    paragraphs = []
    while words > 0:
        sentences = [
            f"{' '.join(chance.choices(WORDS, k=chance.randint(8, 20))).capitalize()}." for _ in range(6)
        ]
        paragraphs.append(" ".join(sentences))
        words -= 84
    return paragraphs


def pdf(paragraphs: list[str]) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    lines = [line for text in paragraphs for line in simpleSplit(text, "Helvetica", 11, 480)]
    for start in range(0, len(lines), 48):
        for place, line in enumerate(lines[start : start + 48]):
            canvas.drawString(56, 790 - 15 * place, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def word(paragraphs: list[str]) -> bytes:
    document, buffer = docx.Document(), io.BytesIO()
    for text in paragraphs:
        document.add_paragraph(text)
    document.save(buffer)
    return buffer.getvalue()


def html(paragraphs: list[str]) -> bytes:
    body = "".join(f"<p>{text}</p>\n" for text in paragraphs)
    style = "<style>" + "p { margin: 1em }\n" * 60 + "</style>"
    return (
        f"<!DOCTYPE html><html><head><title>Report</title>{style}</head><body>{body}</body></html>".encode()
    )


def write_mixed(folder: Path, count: int, seed: int = 1) -> None:
    """Text, Markdown, HTML, PDF and Word files of very different lengths; one of fifteen is unreadable."""
    chance = random.Random(seed)
    folder.mkdir()
    hopeless = (("txt", b""), ("md", PROGRAM), ("pdf", encrypted_pdf()), ("pdf", scanned_pdf(1)))
    for number in range(count):
        if chance.random() < 1 / 15:
            kind, content = chance.choice(hopeless)
        else:
            kind = chance.choice(("txt", "txt", "md", "html", "pdf", "docx"))
            paragraphs = prose(chance, int(chance.lognormvariate(6, 1)))
            match kind:
                case "pdf":
                    content = pdf(paragraphs)
                case "docx":
                    content = word(paragraphs)
                case "html":
                    content = html(paragraphs)
                case _:
                    content = "\n\n".join([f"# Report {number}", *paragraphs]).encode()
        (folder / f"{number:05}.{kind}").write_bytes(content)


class House:
    """The local stack without a key: its model server stands in for the model that has a price."""

    def __init__(self, folder: Path) -> None:
        self.documents = folder / "documents"
        write_mixed(self.documents, DOCUMENTS)
        self.deployment = Deployment(folder)

    def run(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.docsum(*self.words(*arguments), ok=ok) or "{}")
        return found

    def words(self, *arguments: str) -> tuple[str, ...]:
        return ("run", str(self.documents), "--model", "claude-haiku-5-5", *arguments, "--json")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    yield made
    made.deployment.close()


def near(estimate: dict[str, float], real: float) -> bool:
    """Within one and a half intervals: the sample is drawn at random, and of twenty intervals one misses."""
    half = (estimate["high"] - estimate["low"]) / 2
    return abs(real - estimate["value"]) <= 1.5 * half + 1e-9


def test_a_dry_run_starts_nothing(house: House) -> None:
    quoted = house.run("--dry-run", "--limit", "40")
    assert (quoted["documents"], quoted["read"], quoted["unchanged"]) == (40, 40, 0)
    assert quoted["live_usd"]["low"] > 0
    assert any("No docsum runs" in note for note in quoted["notes"])
    assert find(house.deployment.home) is None


def test_what_is_really_paid_is_what_was_told_before(house: House) -> None:
    house.deployment.docsum("up", "-d")
    sample = house.run("--sample", "40", "--id", SAMPLE, ok=(0, 3))
    assert (sample["total"], sample["name"]) == (40, "sample of documents")
    quoted = house.run("--dry-run")
    assert (quoted["documents"], quoted["unchanged"]) == (DOCUMENTS, sample["done"])
    assert 200 <= quoted["read"] < DOCUMENTS - 40
    paid = house.run("--yes", ok=(3,))

    assert quoted["live_usd"]["value"] == pytest.approx(paid["cost_usd"], rel=0.15)
    assert near(quoted["live_usd"], paid["cost_usd"])
    assert quoted["batch_usd"]["value"] == pytest.approx(quoted["live_usd"]["value"] / 2)
    assert near(quoted["summarised"], paid["done"])
    assert set(quoted["unreadable"]) <= {"empty", "not_a_document", "encrypted", "scanned"}
    assert all(found["hint"] for found in quoted["unreadable"].values())
    assert sample["all"]["documents"] == DOCUMENTS
    assert near(sample["all"]["live_usd"], sample["cost_usd"] + paid["cost_usd"])
    assert sample["all"]["command"] == f"docsum run {house.documents} --model claude-haiku-5-5"


def test_what_has_a_summary_is_not_priced_again(house: House) -> None:
    again = house.run("--dry-run")
    unreadable = sum(found["value"] for found in again["unreadable"].values())
    assert again["unchanged"] == DOCUMENTS - unreadable == DOCUMENTS - again["read"]
    assert again["live_usd"]["high"] == 0
    anew = house.run("--dry-run", "--force", "--limit", "40")
    assert anew["unchanged"] == 0
    assert anew["live_usd"]["low"] > 0


def test_the_same_id_is_the_same_sample(house: House) -> None:
    before = house.deployment.run_of(SAMPLE)
    again = house.run("--sample", "40", "--id", SAMPLE, ok=(0, 3))
    assert (again["total"], again["cost_usd"]) == (40, before["cost_usd"])
    house.deployment.ends(*house.words("--sample", "41", "--id", SAMPLE), ok=(2,))
    house.deployment.docsum("runs", "resume", SAMPLE)
    assert house.deployment.run_of(SAMPLE)["total"] == 40
