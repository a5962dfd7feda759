"""What the words of a text give away: its language, and what kind of document it is."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

# A character of Chinese or Japanese counts as a word, as it does in those languages' own word counts.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:['’][^\W_]+)*")

# Rare languages win on short texts only by accident, so the guess is among the widely written ones.
_LANGUAGES = (
    "af ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk "
    "km ko lt lv mk mn mr ms mt my ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr uk "
    "ur uz vi zh zu"
)
_LANGUAGE_NAMES = {
    "arabic": "ar", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi",
    "hungarian": "hu", "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "polish": "pl",
    "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es", "swedish": "sv", "turkish": "tr",
    "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip

# Words that no page of the language is without, and of which hardly another has three; enough where speed
# is all. "For" and "by" are not among the English ones: with "to" they are Danish.
_FUNCTION_WORDS = {
    "en": frozenset("the and of to with that this are was were from which who what it its has".split()),
    "de": frozenset("der und das die ist nicht mit für den von dem auch sich wird sind zu".split()),
    "fr": frozenset("les des est une dans pour du et pas sur aux cette qui sont par avec".split()),
    "es": frozenset("el los las una por del y como más su".split()),
}

# Words and pairs of words that give a kind of document away. A hit in the title counts three times; one hit
# in the body proves nothing.
_TYPE_TERMS = {
    "invoice": "invoice, amount due, bill to, rechnung, rechnungsnummer, facture, factura",
    "minutes": "minutes, attendees, apologies, action items, protokoll, procès verbal",
    "letter": "letter, dear, dear sir, yours sincerely, yours faithfully, kind regards, best regards, "
    "sehr geehrte, sehr geehrter, freundlichen grüßen, estimado, estimada, cordialement",
    "contract": "contract, agreement, hereinafter, hereby, the parties, vertrag, contrat, contrato",
    "manual": "manual, user guide, handbook, getting started, installation, troubleshooting, handbuch, usage",
    "report": "report, executive summary, findings, bericht, rapport, informe",
    "paper": "abstract, et al, doi, related work, references",
    "policy": "policy, policies, must comply, compliance, richtlinie",
    "press release": "press release, immediate release, pressemitteilung",
    "specification": "specification, must not, shall not, rfc, normative",
    "licence": "licence, license, licensor, licensee, warranties",
    "curriculum vitae": "curriculum vitae, résumé, work experience, lebenslauf",
    "recipe": "recipe, ingredients, preheat, tablespoon, tablespoons, teaspoon, rezept, zutaten",
    "article": "article, opinion, editorial, interview, newsletter",
    "plan": "roadmap, milestone, milestones, project plan, proposal",
}
_TYPES = {term: kind for kind, terms in _TYPE_TERMS.items() for term in terms.split(", ")}


def words_of(text: str) -> list[str]:
    """The case-folded words of a text."""
    return _WORD.findall(text.casefold())


class Languages:
    """The language model, loaded once; safe to call from several threads."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)  # Any: py3langid is untyped
        self._identifier.set_languages(
            [code for code in self._identifier.labels if code in _LANGUAGES.split()]
        )
        # The shipped table is float16 and strided; this form answers four times faster.
        self._identifier.nb_ptc = np.ascontiguousarray(self._identifier.nb_ptc, dtype=np.float32)

    def guess(self, text: str, sample: int = 400) -> str:
        """Guess from `sample` characters, past the letterhead of a text that is long enough."""
        start = len(text) // 10 if len(text) > sample * 4 else 0
        part = text[start : start + sample]
        if not any(map(str.isalpha, part)):
            return "und"
        return str(self._identifier.classify(part)[0])

    def quick_guess(self, part: str) -> str:
        """The language by three function words, else by the slow way."""
        words = frozenset(part.casefold().split())
        for code, function_words in _FUNCTION_WORDS.items():
            if len(words & function_words) >= 3:
                return code
        return self.guess(part)


def guess_type(title: str, head: str) -> str:
    """A guess from words in the title and at the start; `document` where nothing gives the kind away."""
    votes: Counter[str] = Counter()
    for text, weight in ((title, 3), (head, 1)):
        words = words_of(text)
        # Each term counts once: a word that is merely frequent proves nothing.
        for term in _TYPES.keys() & {*words, *map(" ".join, pairwise(words))}:
            votes[_TYPES[term]] += weight
    if not votes:
        return "document"
    best = min(votes, key=lambda kind: (-votes[kind], kind))
    return best if votes[best] >= 2 else "document"


def language_warnings(found: str, wanted: str) -> tuple[str, ...]:
    """Say so when another language was asked for: extracted sentences cannot be translated."""
    code = _LANGUAGE_NAMES.get(wanted.casefold(), wanted.casefold())
    if not wanted or found in {code, "und"}:
        return ()
    return (f"The local model cannot translate: this extract is in the language of the text ({found}).",)
