"""Text in a document that tries to give instructions to a model: reported, never acted on.

A handful of the usual phrases in seven languages, as imperatives: a text *about* such attacks passes, one
that quotes them word for word does not. What is encoded, or spread over sentences, is not recognised.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from docsum.summarisers.quality.source import Source, places

_AROUND = 250  # bytes on either side of an anchor that a pattern sees
_MOST_PLACES = 300  # of an anchor: a document that has the word more often is about the thing itself


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern, and the texts without one of which it cannot match: those are found by plain search."""

    anchors: Sequence[str]
    pattern: re.Pattern[str]
    by_line: bool = False  # it sees line feeds; for the others every white space is one blank


def _rule(anchors: str, *alternatives: str, by_line: bool = False) -> _Rule:
    return _Rule(anchors.split("; "), re.compile("|".join(alternatives)), by_line)


# The verb has no subject of its own ("users who ignore the rules"), is no infinitive and is not denied.
_SUBJECTS = "who that which they may can could would might users attackers people models model ai llm".split()
_VERB = (
    "".join(rf"(?<!\b{word} )" for word in _SUBJECTS)
    + r"(?<!n[o'’]t )(?<!never )(?<!(?<!you) to )(?<!(?<!you) will )\b"
)
_IGNORE = rf"{_VERB}(?:ignore|disregard|forget|override|bypass|discard)\b"
_SAY = rf"{_VERB}(?:reveal|print|output|repeat|show|display|leak|disclose|tell me|give me|quote)\b"
_TOLD = r"(?:instructions?|prompts?|directives?|guidelines|messages?|context)\b"
_BOT = r"(?:ai|llms?|(?:large )?language models?|chat ?bots?|(?:ai )?assistants?|gpt|summari[sz]ers?)"
_BOT_FR = r"(?:assistante?|ia|chatbot|modèle|pirate)\b"
_BOT_ES = r"(?:asistente|ia|chatbot|modelo|pirata)\b"

_RULES = (
    # English
    _rule(
        "instru; prompt",
        rf"{_IGNORE}(?: \w+){{0,3}}? (?:previous|prior|above|earlier|preceding|foregoing|original|initial"
        rf"|system|your)\b(?: \w+){{0,3}}? ?{_TOLD}",
        rf"{_IGNORE} (?:all|any|every|everything)(?: of)?(?: the| your| other)? {_TOLD}",
        rf"{_IGNORE} (?:all )?(?:the )?{_TOLD} (?:above|before|given|you)\b",
        rf"{_SAY}(?: (?!its|their)\w+){{0,4}}? (?:system|initial|hidden|secret) (?:prompt|instructions)\b",
        r"\bdecode\b[^.]{0,80}? (?:follow|obey|execute)\b[^.]{0,40}? instructions?\b",
        r"\b(?:follow|obey|execute) (?:only )?(?:these|the following|the new|my|the hidden) (?:new )?"
        r"instructions? (?:instead|only|rather|and (?:ignore|nothing|forget))\b",
        r"\byour (?:new|real|actual|true) instructions? (?:is|are)\b",
        rf"(?<!the )\bnew (?:system )?(?:instructions|prompt)(?: for (?:the )?{_BOT})? ?:",
        r"### ?(?:system|instructions?|response) ?:",
    ),
    _rule(
        "you are now; from now on; act as ; pretend ",
        r"\b(?:you are now|from now on,? you (?:are|will be)|act as|pretend (?:to be|that you are|you are))"
        rf" (?:[\w ]{{1,30}}, )?(?:an? |the |my )?(?:\w+ ){{0,2}}?(?:{_BOT}|dan|unrestricted|pirate)\b",
        r"\byou are now (?:no longer bound|in developer mode)\b",
        r"\bfrom now on,? (?:you (?:will|must|shall|should) )?(?:only )?(?:respond|reply|answer)\b",
    ),
    _rule(
        "an ai; to ai; ai:; ai,; language model; assistant; llm; chatbot",
        rf"\bif you(?: are|['’]re) (?:an? |the )?(?:\w+ )?{_BOT}(?:[,:]| (?:and|reading|processing|you)\b)",
        rf"\bas an? {_BOT}\b[^.]{{0,40}}?,? (?:you (?:must|should|will|are|shall)|please|your task)\b",
        rf"\b(?:note|notice|message|attention|hello|dear)(?: to| for|,)? (?:the |any |all )?{_BOT} ?[:,.!]",
    ),
    _rule(
        "summar",
        rf"{_VERB}(?:do not|don['’]t|stop) summari[sz](?:e|ing) (?:this|the (?:text|document|above))\b",
        r"\binstead of (?:a summary|summari[sz]ing(?: this| it| the \w+)?),? (?:write|output|reply|say)\b",
        r"\b(?:link|url|image|picture|markdown)\b.{0,160}? (?:in|into|at the end of) your summary\b",
        r"\byour summary (?:must|has to|should|shall) (?:only )?(?:say|state|consist|begin|end|recommend)\b",
    ),
    _rule(
        "10/10; 10 out of 10",
        r"\b(?:rate|score|grade|rank) (?:this|the) \w+ (?:\w+ ){0,2}?(?:as |with )?10(?:/| out of )10\b",
    ),
    # Signs that only a model is meant to read
    _rule(
        "<|; inst]; sys>>; system; assistant",
        r"<\|(?:im_start|im_end|system|assistant|user|endoftext)\|?>|\[/?inst\]|<</?sys>>",
        r"</?(?:system|assistant)(?:[-_ ]?(?:prompt|message|reminder|instructions?))? ?/?>",
    ),
    _rule(
        "system; assistant",
        r"\n[\s>#*_([-]*(?:system|assistant)(?: message| prompt| note)?(?:[\])]|[*_]*\s?:)[*_]*\s?"
        r".{0,60}?\b(?:you (?:must|are|will)|ignore|instructions|prompt|summary|sure|understood|override)\b",
        by_line=True,
    ),
    _rule("key_points", r'"summary" ?:.{0,200}?"key_points"|"key_points" ?:.{0,200}?"summary" ?:'),
    # German
    _rule(
        "anweisung; instru; prompt; du bist ",
        r"\b(?:ignorieren?|ignoriert|vergiss|vergessen sie|missachten?|verwirf|übergehe)\b(?: \w+){0,3}?"
        r" (?:vorherige|bisherige|vorangehende|vorangegangene|vorstehende|obige|frühere|deine|alle)[nr]?\b"
        r"(?: \w+){0,3}? ?(?:anweisung|instruktion)",
        r"\bdu bist (?:jetzt|nun|ab jetzt|ab sofort) (?:\w+ ){0,3}?(?:assistent|ki|chatbot|pirat)",
        r"\b(?:gib|zeige?|nenne?|verrate?|drucke?)\b(?: \w+){0,4}? (?:system-? ?prompt|systemanweisung)",
    ),
    # French
    _rule(
        "instru; consignes; maintenant; désormais",
        r"\b(?:ignore[rz]?|oublie[rz]?|fai(?:te)?s abstraction de|ne tene?z? (?:pas|plus) compte de)\b"
        r"(?: \w+){0,3}? (?:instructions|consignes)(?: \w+){0,2}? (?:précédent|antérieur|ci-dessus|initial)",
        rf"\b(?:tu es|vous êtes) (?:maintenant|désormais) (?:\w+ ){{0,3}}?{_BOT_FR}",
    ),
    # Spanish
    _rule(
        "instru; indicaciones; eres ",
        r"\b(?:ignor(?:a|e|ad|en)|olvid(?:a|e|ad)|descart(?:a|e)|ha(?:z|ga) caso omiso (?:de|a))\b"
        r"(?: \w+){0,3}? (?:instrucciones|indicaciones)(?: \w+){0,2}? (?:anteriores|previas|precedentes)",
        rf"\bahora (?:tú )?eres (?:\w+ ){{0,3}}?{_BOT_ES}",
    ),
    # Russian; anchors without first letters, which may be capitals
    _rule(
        "нструкци; казания; теперь",
        r"(?<!не )\b(?:(?:про)?игнорируй(?:те)?|забудь(?:те)?|не обращай(?:те)? внимани[ея] на)\b"
        r"(?: \w+){0,4}? (?:инструкци|указания)",
        r"\bты теперь (?:\w+ ){0,3}?(?:ассистент|помощник|модель|бот|пират)",
    ),
    # Chinese, then Japanese
    _rule(
        "指令; 指示; 提示; 命令; 你现在是; 你現在是",
        "(?:忽略|无视|無視|忘记|忘記|不要理会|不要遵守).{0,12}?(?:之前|以上|上述|先前|前面|所有|系统|系統|你的)"
        ".{0,10}?(?:指令|指示|提示|命令)",
        "(?:你现在是|你現在是).{0,12}?(?:助手|模型|ai|机器人|機器人|海盗)",
        "(?:输出|显示|泄露|打印|告诉我).{0,10}?系统提示",
    ),
    _rule(
        "指示; 命令; 指令; プロンプト; これから",
        "(?:これまで|今まで|上記|以前|前|すべて|全て|システム).{0,8}?(?:指示|命令|指令|プロンプト).{0,6}?"
        "(?:無視して|無視し、|無視せよ|無視しろ|忘れて|忘れろ|従わないで)",
        "あなたはこれから.{0,12}?(?:アシスタント|ai|モデル|ボット|海賊)",
        "システムプロンプト.{0,8}?(?:出力し|表示し|教えて|見せて)",
    ),
)


def _by_anchor() -> Mapping[bytes, Sequence[_Rule]]:
    found: dict[bytes, list[_Rule]] = defaultdict(list)
    for rule in _RULES:
        for anchor in rule.anchors:
            found[anchor.encode()].append(rule)
    return found


_ANCHORS = _by_anchor()


def found_in(source: Source) -> bool:
    """Whether the document has a phrase that addresses the model; 40 ms in 3 MB."""
    text = source.lowered
    ascii_only = text.isascii()
    return _closes_our_tag(text) or any(
        _matches(rules, text, at)
        for anchor, rules in _ANCHORS.items()
        if (anchor.isascii() or not ascii_only) and anchor in text
        for at in islice(places(text, anchor), _MOST_PLACES)
    )


def _closes_our_tag(text: bytes) -> bool:
    """A closing document tag with an id, or one that nothing before it opens: XML has neither."""
    at = text.find(b"</document")
    if at < 0:
        return False
    lone = text[at + 10 : at + 11] in (b">", b" ", b"\n") and b"<document" not in text[:at]
    return lone or b"</document id" in text


def _matches(rules: Sequence[_Rule], text: bytes, at: int) -> bool:
    lines = text[max(0, at - _AROUND) : at + _AROUND].decode(errors="ignore").lower()
    blanks = " ".join(lines.split())
    start = "\n" if at < _AROUND else ""
    return any(rule.pattern.search(start + lines if rule.by_line else blanks) for rule in rules)
