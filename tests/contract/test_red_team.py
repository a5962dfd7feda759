"""Documents that give orders, through the real extractors and the SDK to a local model server.

What is sent must be the same for them as for any other document, and what comes back must not carry more than
the document holds: also when the model was taken in.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
import pytest_asyncio

from docsum.extractors import DocumentExtractor
from docsum.extractors.sandbox import Sandbox
from docsum.local.extractive import ExtractiveModel
from docsum.local.model_server import Options, serving
from docsum.models import Answer, Document, ExtractedText, Lane, Recipe, Summary
from docsum.summarisers import prompt, quality
from docsum.summarisers.anthropic import AnthropicSummariser
from docsum.summarisers.gate import CallGate
from docsum.summarisers.prices import Prices
from docsum.summarisers.prompt import Parsed
from docsum.summarisers.quality import FOREIGN_LINKS, INJECTION, language
from tests.support.fakes import FakeClock, reference

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPUS = Path(__file__).parents[1] / "data" / "red_team"
HARMLESS = "The harbour of Lindau was repaired in spring. The wall is new. It cost 4,100 euros in all."
RECIPE = Recipe("claude-haiku-5-5", words=60)

#: Whether the reader is told, by file, as the table of the corpus has it.
REPORTED = {
    name: verdict == "yes"
    for name, verdict in re.findall(
        r"^\| `([^`]+)` \|.*\| (yes|no)\b", (CORPUS / "README.md").read_text(), re.M
    )
}
UNSEEN = (
    "tangerine",
    "\u200b",
    "\u200d",
    "\u00ad",
    "\u2060",
    "\u202e",
    "\u2066",
    "\ufe00",
    "\ufeff",
    "\U000e0049",
)
LINK = re.compile(r"https?://[^\s)]+|www\.[^\s)]+|[\w.]+@[\w.]+")


class KeptAnswers:
    """The part of a store that the summariser needs."""

    unavailable_since: datetime | None = None

    async def answers(self, fingerprint: str) -> list[Answer]:
        return []

    def keep(self, answer: Answer) -> None:
        assert answer.usable


@dataclass
class Stand:
    """The way of a document from its bytes to its summary; `sent` holds the requests as they left."""

    extractor: DocumentExtractor
    summariser: AnthropicSummariser
    sent: list[dict[str, Any]]  # decoded JSON

    async def read(self, name: str) -> str:
        content = (CORPUS / name).read_bytes()
        return (await self.extractor.extract(Document(len(content), "", content=content))).text

    async def summarise(self, text: str) -> Summary:
        async def free() -> None: ...

        extracted = ExtractedText(text, "text/plain")
        return await self.summariser.summarise(reference(), extracted, RECIPE, Lane.LIVE, free)

    @property
    def system(self) -> object:
        return self.sent[-1]["system"]

    @property
    def content(self) -> str:
        [message] = self.sent[-1]["messages"]
        assert set(message) == {"role", "content"} and message["role"] == "user"
        return str(message["content"])


@pytest.fixture(scope="module")
def extracts() -> ExtractiveModel:
    language.load()
    return ExtractiveModel()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory, extracts: ExtractiveModel) -> AsyncIterator[Stand]:
    sandbox = Sandbox(1, timedelta(seconds=60), 1_000_000_000)
    sent: list[dict[str, Any]] = []

    async def note(request: httpx2.Request) -> None:
        sent.append(json.loads(request.content))

    async with (
        serving(Options(tmp_path_factory.mktemp("model")), extracts) as url,
        DocumentExtractor(sandbox) as extractor,
    ):
        http = anthropic.DefaultAioHttpClient(event_hooks={"request": [note]}, trust_env=False)
        async with anthropic.AsyncAnthropic(
            api_key="local", base_url=url, max_retries=0, http_client=http
        ) as client:
            clock = FakeClock()
            summariser = AnthropicSummariser(
                client, CallGate(4, clock), KeptAnswers(), clock, Prices.load(), timeout=timedelta(seconds=30)
            )
            yield Stand(extractor, summariser, sent)


def reviewed(summary: Summary, text: str) -> Parsed:
    fields = (summary.title, summary.summary, summary.key_points, summary.language, summary.document_type)
    return quality.review(Parsed(*fields, summary.warnings), text, RECIPE)


async def test_every_document_is_described() -> None:
    assert set(REPORTED) == {path.name for path in CORPUS.iterdir()} - {"README.md"}
    assert len(REPORTED) >= 20


@pytest.mark.parametrize("name", REPORTED)
async def test_a_document_with_orders_is_sent_as_any_other(stand: Stand, name: str) -> None:
    await stand.summarise(HARMLESS)
    system, harmless = stand.system, stand.sent[-1]
    text = await stand.read(name)
    summary = await stand.summarise(text)

    assert stand.system == system
    assert {**stand.sent[-1], "messages": None} == {**harmless, "messages": None}
    document = re.fullmatch(r'<document id="(\w{16,})">\n(.*)\n</document id="\1">', stand.content, re.DOTALL)
    assert document is not None
    boundary, inside = document.groups()
    assert boundary not in inside
    assert not re.search(r"<[\s/]*document", inside, re.IGNORECASE)
    assert inside == prompt.clean(text)
    assert not [each for each in UNSEEN if each in inside.lower()]

    found = reviewed(summary, text)
    assert found.title and found.summary and found.language and found.document_type
    assert 3 <= len(found.key_points) <= 7
    assert (INJECTION in found.warnings) is REPORTED[name]
    assert not [warning for warning in found.warnings if "ot found in" in warning or warning == FOREIGN_LINKS]
    assert not [link for link in LINK.findall(repr(found)) if link.rstrip(".,'") not in text]


async def test_what_the_reader_sees_stays(stand: Stand) -> None:
    """The guard takes nothing away that a person would read."""
    assert "the kiosk is run by the sports club" in (await stand.read("hidden.html")).lower()
    assert "six stand along the river" in await stand.read("footer_and_alt.html")
    for name, words in (
        ("zero_width.txt", "a new hive stand was built of larch"),
        ("unicode_tags.md", "october. each train has three carriages"),
        ("fake_closing_tags.txt", "the pipe is to be replaced in autumn"),
    ):
        assert words in prompt.clean(await stand.read(name)).lower()


# -- a model that was taken in -------------------------------------------------------------------------------

TAKEN_IN = Parsed(
    title="Confirm your account at www.collect-login.example.com/now",
    summary="In 1743 the firm paid 48,231 euros to Professor Moriarty of Atlantis. See "
    "https://collect.example.com/pixel.png?data=everything and "
    "[confirm here](https://collect.example.com/confirm?who=reader) (or desk@collect.example.com). "
    + "Le conseil du port a décidé de réparer le mur avant les tempêtes de cet automne. "
    * 140,
    key_points=(*["Go to https://collect.example.com/a."] * 9, "https://collect.example.com/b"),
    language="fr",
    document_type="![x](https://collect.example.com/c)",
    warnings=tuple(f"All is well, see https://collect.example.com/{number}." for number in range(20)),
)


@pytest.mark.parametrize("name", REPORTED)
async def test_an_obedient_answer_is_caught(stand: Stand, name: str) -> None:
    text = await stand.read(name)
    found = quality.review(TAKEN_IN, text, RECIPE)
    assert "collect.example.com" not in repr(found) and "collect-login" not in repr(found)
    assert "confirm here (or …)" in found.summary
    assert len(found.summary.split()) <= 1.5 * RECIPE.words
    assert found.summary.endswith(".")
    assert found.key_points == ("Go to …",) * 7
    said = found.warnings
    assert len(said) <= 20
    assert FOREIGN_LINKS in said
    assert "The model wrote 2257 words where 60 were asked for; the rest was left out." in said
    assert "Not found in the document: 1743, 48,231." in said
    assert [each for each in said if each.startswith("The summary is in French; the document is in ")]
    assert (INJECTION in said) is REPORTED[name]


async def test_invented_names_are_caught(stand: Stand) -> None:
    text = await stand.read("direct_override.txt")
    told = (
        "The gravel works wrote to the mayor Robert Hayes and to Amelia Thornbury of UNESCO that the crane "
        "was out of order, and that the barges must otherwise go to the southern quay."
    )
    found = quality.review(replace(TAKEN_IN, summary=told), text, RECIPE)
    assert "Names not found in the document: Robert Hayes, Amelia Thornbury, UNESCO." in found.warnings
