"""A document to look things up in: a summary's few tokens are searched, the document is not taken apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from typing import AnyStr

_ASCII = bytes(range(128))
_DIGIT = re.compile(r"\d")
_BROKEN = re.compile(r"-\n[ \t]*")  # begins with fixed letters: that is found ten times faster
_COMPATIBLE = dict.fromkeys("\u00a0\u2007\u2009\u202f", " ") | {
    "\u2010": "-", "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl"
}  # fmt: skip
_COMBINING = "\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327\u0328"
_INVISIBLE = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


class Source:
    """Each form of the text is made once, when it is first needed.

    Forms are bytes: 3 MB in lower case take 5 ms as UTF-8, where only A to Z change, and 100 ms as a str.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lowered(self) -> bytes:
        """The text without the invisible characters that could part a word."""
        return _without_invisible(self.text).encode(errors="replace").lower()

    @cached_property
    def plain(self) -> bytes:
        """With accents, ligatures and blanks written in one way, and words joined that a line end broke."""
        text = _without_invisible(self.text)
        if not text.isascii():
            for (
                written,
                plain,
            ) in _COMPATIBLE.items():  # normalising all of a Japanese text takes ten times longer
                text = text.replace(written, plain)
            if any(mark in text for mark in _COMBINING):
                text = unicodedata.normalize("NFC", text)
        return _BROKEN.sub("", text).encode(errors="replace").lower()

    @cached_property
    def digits(self) -> bytes:
        """As `plain`, without the marks that part digits, and with the digits of all scripts as ASCII."""
        text = self.plain.translate(None, b".,':")
        if text.isascii():
            return text
        for mark in "’٫٬·":
            text = text.replace(mark.encode(), b"")
        others = text.translate(None, _ASCII).decode(errors="replace")
        for digit in set(_DIGIT.findall(others)):
            text = text.replace(digit.encode(), b"%d" % unicodedata.decimal(digit))
        return text


def _without_invisible(text: str) -> str:
    if not text.isascii():
        for character in _INVISIBLE:
            text = text.replace(character, "")
    return text


def places(text: AnyStr, token: AnyStr) -> Iterator[int]:
    """Where the token begins, first to last."""
    at = text.find(token)
    while at >= 0:
        yield at
        at = text.find(token, at + 1)
