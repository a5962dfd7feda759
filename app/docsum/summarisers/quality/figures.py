"""Numbers of a summary that stand nowhere in the document: a cheap alarm for invention.

False silence is preferred to a false alarm: another way to write, round or spell out what the document says
counts as found, and so does every number up to twelve.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from docsum.summarisers.quality.source import Source, places

_LISTED = 5
_MOST_PLACES = 1_000  # at which a number is looked at: one that is so often part of others counts as found
_MOST_LOOK_UPS = 20  # slow ones in a review; each takes up to 15 ms in 3 MB

_SPACES = " \u00a0\u2009\u202f"
# The digit in front of the alternatives lets the search skip to one, which is eight times faster.
_NUMBER = re.compile(rf"\d(?:\d{{0,2}}(?:[{_SPACES}]\d{{3}})+(?!\d)(?:[.,]\d+)?|\d*(?:[.,'’٫٬·]\d+)*)")
_SCALE = re.compile(
    r"[\s-]?(?:[km]\b|[mbt]n\b|thousand|million|billion|trillion|lakh|crore|tsd|tausend|mio|mrd|mld|mill|mil\b"
    r"|mila\b|milion|miliard|тыс|млн|млрд|[万萬億亿兆만억])",
    re.IGNORECASE,
)

# Numbers spelled out in English, German, French, Spanish and Italian, and Roman ones: beginnings of words.
_TENS = {
    2: "twent zwanzig vingt veint venti ventu", 3: "thirt dreißig dreissig trent treint",
    4: "forty fortie vierzig quarant cuarent", 5: "fift fünfzig cinquant cincuent",
    6: "sixt sechzig soixant sesent sessant", 7: "sevent siebzig soixant setent settant",
    8: "eight achtzig quatre ochent ottant", 9: "ninet neunzig quatre novent novant",
}  # fmt: skip
_EXACT = {
    13: "thirteen dreizehn treize trece tredici xiii", 14: "fourteen vierzehn quatorze catorce quattord xiv",
    15: "fifteen fünfzehn quinze quince quindici xv", 16: "sixteen sechzehn seize dieci sedici xvi",
    17: "seventeen siebzehn dix-sept dieci xvii", 18: "eighteen achtzehn dix-huit dieci diciotto xviii",
    19: "nineteen neunzehn dix-neuf dieci xix", 20: "fifth fünftel cinquième quinto xx", 21: "xxi",
    25: "quarter viertel quart cuarto", 33: "third drittel tiers tercio terzo",
    50: "half halb hälfte moiti mitad metà",
    66: "third drittel tiers terci terzi", 67: "third drittel tiers terci terzi",
    75: "quarter viertel quart cuarto", 100: "hundred hundert cent cien",
}  # fmt: skip
_ROUND = (
    (6, "million millón milion mio 億 亿 억 billion milliard miliard"),
    (3, "thousand tausend tsd mille millier mila lakh crore 万 萬 만 千"),
    (2, "hundred hundert cents cientos cento 百"),
)
_FRACTIONS = {"5": "half halb demi medi mezzo", "25": "quart viertel cuarto", "75": "quart viertel cuarto"}
_SIGNS = "〇一二三四五六七八九"
_SPELLED = frozenset(("", "en", "de", "fr", "es", "it", "ja", "zh"))  # languages covered above, or not known
_ERAS = "令和 平成 昭和 大正 明治 民國 民国"
_AFTERNOON = ("p.m", " pm", "0pm", "5pm", "午後", "下午", "오후")


@dataclass(frozen=True, slots=True)
class _Number:
    token: str  # as the summary has it
    parts: tuple[str, ...]  # its groups of digits, in ASCII
    scaled: bool  # a word such as million follows
    ends: bool  # a full stop follows, as in the date 24.11.

    @property
    def whole(self) -> str:
        return "".join(self.parts)

    @property
    def value(self) -> int:
        """Of an integer; -1 of what has decimals or is too long to be a quantity."""
        first, *groups = self.parts
        grouped = all(len(group) == 3 for group in groups) and (len(first) < 4 or not groups)
        return int(self.whole) if grouped and len(self.whole) <= 15 else -1


def numbers_not_in(source: Source, texts: Iterable[str], language: str) -> list[str]:
    """At most five numbers of the texts, as written there, that the document in this language lacks."""
    missing: list[str] = []
    looked_up = 0
    for number in _numbers(texts):
        if 0 <= number.value <= 12 or _stands(source.lowered, number.token):
            continue
        looked_up += 1
        if not _is_meant(number, source, language):
            missing.append(number.token)
        if len(missing) == _LISTED or looked_up == _MOST_LOOK_UPS:
            break
    return missing


def _numbers(texts: Iterable[str]) -> Iterator[_Number]:
    seen = set()
    for text in texts:
        for match in _NUMBER.finditer(text):
            cut = text.startswith("…", match.end())
            if not cut and match[0] not in seen:
                seen.add(match[0])
                yield _Number(
                    match[0],
                    tuple(map(_in_ascii, re.findall(r"\d+", match[0]))),
                    _SCALE.match(text, match.end()) is not None,
                    text.startswith(".", match.end()),
                )


def _in_ascii(digits: str) -> str:
    return digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)


def _is_meant(number: _Number, source: Source, language: str) -> bool:
    """Whether the document may say the same in another form; the cheap looks first."""
    return (
        _is_written(number, source.digits)
        or _is_rounded(number, source.digits)
        or _is_a_date(number, source)
        or _is_spelled(number, source.plain, language)
    )


def _is_written(number: _Number, digits: bytes) -> bool:
    whole = number.whole
    if _stands(digits, whole) or (
        len(whole) > 3 and _stands(digits, f"{int(whole[-15:]):,}".replace(",", " "))
    ):
        return True
    # 2.50 and 2.5, 0.4 and 40 %, 1.2 million and 1,200,000
    zeros = number.value < 0 or number.scaled or whole.endswith("000")
    return zeros and _stands(digits, whole.strip("0"), zeros=True)


def _is_rounded(number: _Number, digits: bytes) -> bool:
    """50,000 for 49,873; 1.2 million for 1,187,340."""
    whole = number.whole
    leading = whole.strip("0")
    rounded = number.scaled or (whole.endswith("00") and len(whole) > 3)
    if not rounded or not 0 < len(leading) < 10:
        return False
    length = 0 if number.scaled else len(whole)
    exact = int(leading) * 10
    return any(_starts(digits, str(prefix), length) for prefix in range(exact - 5, exact + 5))


def _is_a_date(number: _Number, source: Source) -> bool:
    """24.11.2026 for 24 November 2026, 1998 for 1997/98, 2024 for the sixth year of an era."""
    parts = number.parts
    short = len(parts) == 2 and number.ends and max(map(len, parts)) <= 2
    if (len(parts) > 2 or short or " " in number.token) and all(
        (len(part) < 3 and int(part) <= 12) or _stands(source.digits, part) for part in parts
    ):
        return True
    if not 1800 <= number.value < 2100 or len(number.token) != 4:
        return False
    year = number.whole[2:]
    return any(_stands(source.plain, mark + year) for mark in ("/", "-", "–", "'", "’", ".")) or any(
        era.encode() in source.plain for era in _ERAS.split()
    )


def _is_spelled(number: _Number, plain: bytes, language: str) -> bool:
    value = number.value
    if value < 0:
        return _has_any(plain, [*_FRACTIONS.get(number.parts[-1], "").split(), *_ideographs(number)])
    if language not in _SPELLED and (value <= 100 or value % 100 == 0):
        return True  # it may be spelled out in a way that we do not know
    if 13 <= value <= 24 and any(sign.encode() in plain for sign in _AFTERNOON):
        return True
    words = _EXACT.get(value, "")
    if 20 <= value < 100:
        words += f" {_TENS[value // 10]}"
    for zeros, scale in _ROUND:
        if value >= 10**zeros and value % 10**zeros == 0:
            words += f" {scale}"
    return _has_any(plain, [*words.split(), *_ideographs(number)])


def _has_any(plain: bytes, forms: Iterable[str]) -> bool:
    ascii_only = plain.isascii()
    return any(form.encode() in plain for form in forms if form.isascii() or not ascii_only)


def _ideographs(number: _Number) -> Iterator[str]:
    """二十六, 二〇二四, 三万五千, 六割, as Japanese and as Chinese write them."""
    decimals = len(number.parts[-1]) if number.value < 0 else 0
    for exponent in (3, 4, 6, 8) if number.scaled else (0,):
        if exponent < decimals or len(number.whole) > 8:
            continue
        value = int(number.whole) * 10 ** (exponent - decimals)
        high, low = divmod(value, 10_000)
        for one in ("", "一") if high < 10_000 else ():
            yield (f"{_below_10_000(high, one)}万" if high else "") + _below_10_000(low, one)
        if value < 100 and value % 10 == 0:
            yield f"{_SIGNS[value // 10]}割"
    yield "".join(_SIGNS[int(digit)] for digit in number.whole)


def _below_10_000(value: int, one: str) -> str:
    """`one`: what stands before a unit that is there once."""
    text = ""
    for unit, name in ((1_000, "千"), (100, "百"), (10, "十"), (1, "")):
        times, value = divmod(value, unit)
        if times:
            text += (one if times == 1 and name else _SIGNS[times]) + name
    return text


def _stands(text: bytes, number: str, *, zeros: bool = False) -> bool:
    """Whether the number stands in the text, not within another; `zeros`: more of them may be around it."""
    token = number.encode()
    for count, at in enumerate(places(text, token) if token else ()):
        if count == _MOST_PLACES:
            return True
        before, after = text[max(0, at - 12) : at], text[at + len(token) : at + len(token) + 12]
        if zeros:
            before, after = before.rstrip(b"0"), after.lstrip(b"0")
        if not (before[-1:].isdigit() and token[:1].isdigit()) and not after[:1].isdigit():
            return True
    return False


def _starts(text: bytes, prefix: str, length: int) -> bool:
    """Whether a number of so many digits (0: any) starts with these."""
    token = prefix.encode()
    for at in islice(places(text, token), _MOST_PLACES):
        rest = text[at + len(token) : at + len(token) + 20]
        digits = len(token) + len(rest) - len(rest.lstrip(b"0123456789"))
        if not text[at - 1 : at].isdigit() and length in (0, digits):
            return True
    return False
