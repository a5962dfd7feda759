"""Which encoding a text without a reliable label is in."""

from __future__ import annotations

import codecs
import re
import unicodedata

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: What texts are really in; the most common first, for those that fit a text equally well.
_LATIN = ("cp1252", "cp1250", "iso8859_15", "iso8859_2", "mac_roman", "cp850", "cp852", "cp1254", "cp1257")
_OTHERS = (
    *("cp1251", "koi8_r", "koi8_u", "cp866", "mac_cyrillic", "iso8859_5", "cp1253", "iso8859_7"),
    *("cp932", "euc_jp", "gb18030", "big5hkscs", "cp949", "cp1255", "cp1256", "cp874"),
)

#: Letters beyond ASCII of languages in Latin script.
_ALPHABETS = tuple(
    frozenset(letters + letters.upper())
    for letters in (
        "äöüß",  # German
        "àâæçéèêëîïôœùûüÿ",  # French
        "áéíñóúü¿¡ªº",  # Spanish
        "àáâãçéêíóôõúªº",  # Portuguese
        "àèéìíòóùúçï·",  # Italian, Catalan
        "åäöæøéü",  # Danish, Finnish, Norwegian, Swedish
        "áðéíóúýþæö",  # Icelandic
        "áéëèïíóöúüê",  # Dutch
        "ąćęłńóśźż",  # Polish
        "áčďéěíňóřšťúůýžäľĺôŕ",  # Czech, Slovak
        "áéíóöőúüű",  # Hungarian
        "ăâîşţ",  # Romanian
        "čćđšž",  # Croatian, Slovene
        "çğıöşüâî",  # Turkish
        "ąčęėįšųūžāēģīķļņ",  # Latvian, Lithuanian
        "äõöüšž",  # Estonian
    )
)
_MARKS = frozenset("‘’“”„‚«»‹›–—…•§°€£®©™\u00a0\u00ad")  # in texts of all of these

_XML = re.compile(rb"\s*<\?xml\b[^>]{0,150}?encoding\s*=\s*[\"']([\w.:-]{2,40})[\"']")
#: In these no declaration could be read, or no document ever is.
_NEVER_DECLARED = ("utf-16", "utf-32", "utf-7", "idna", "punycode", "unicode_escape", "raw_unicode_escape")
_AS_BROWSERS_DO = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "euc_kr": "cp949",
}

_TYPICAL = 0.03  # share of characters
_HEAD = 8192  # bytes; what `sniff` looks at too
_NEAR = 32_768  # bytes looked at on either side of the first one that is no UTF-8
_GOOD = 20  # characters of UTF-8 to a damaged one


def byte_order_mark(head: bytes) -> str | None:
    """The encoding that a byte order mark names."""
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None)


def unmarked_utf16(head: bytes) -> str | None:
    """UTF-16, told by characters that its other byte order and other encodings hardly ever give."""
    if b"\0" not in head and is_utf8(head):
        return None
    found = {encoding: _typical(head, encoding) for encoding in ("utf-16-le", "utf-16-be")}
    best = max(found, key=lambda encoding: found[encoding])
    return best if found[best] > _TYPICAL else None


def _typical(head: bytes, encoding: str) -> float:
    """Share of ASCII, kana and wide punctuation; 0 where the bytes make no text."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(head)  # the last may be cut
    except UnicodeDecodeError:
        return 0.0
    written = sum(c in "\t\n\r\f" or unicodedata.category(c)[0] != "C" for c in text)
    typical = sum(c < "\x7f" or "\u3000" <= c <= "\u30ff" or "\uff00" <= c <= "\uffef" for c in text)
    return typical / len(text) if text and written >= 0.98 * len(text) else 0.0


def is_utf8(content: bytes) -> bool:
    """Whether these bytes are the beginning of a text in UTF-8; its last character may be cut."""
    try:
        codecs.utf_8_decode(content, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def decode_declared(content: bytes, label: bytes) -> str | None:
    """By the encoding that a document names; None where that cannot be true.

    Many texts in UTF-8 say that they are something else.
    """
    if byte_order_mark(content) or (is_utf8(content) and not content.isascii()):
        return None
    try:
        encoding = codecs.lookup(label.decode().lower().removeprefix("x-")).name  # x-sjis, x-euc-jp
        if encoding.startswith(_NEVER_DECLARED):
            return None
        return content.decode(_AS_BROWSERS_DO.get(encoding, encoding))
    except (LookupError, UnicodeError):
        return None


def decode(content: bytes) -> str:
    """By byte order mark, XML declaration, as UTF-8, or by the likeliest encoding.

    U+FFFD stands for what that cannot read.
    """
    encoding = byte_order_mark(content) or unmarked_utf16(content[:_HEAD])
    if encoding is not None:
        return content.decode(encoding, "replace")
    declared = _XML.match(content)
    text = decode_declared(content, declared[1]) if declared else None
    if text is not None:
        return text
    try:
        return codecs.utf_8_decode(content, "strict", False)[0]  # False: the last character may be cut
    except UnicodeDecodeError as error:
        first = error.start
    text = content.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if len(text) - len(text.encode("ascii", "ignore")) > _GOOD * damaged:
        return text
    return content.decode(likeliest(content[max(0, first - _NEAR) : first + _NEAR]), "replace")


def likeliest(sample: bytes) -> str:
    """The encoding of a text that is not UTF-8.

    charset-normalizer tells scripts apart, but gives French in Windows-1252 as Windows-1250, and Czech the
    other way round: encodings of the Latin script are told by which language has all the letters.
    """
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=[*_LATIN, *_OTHERS]).best()
    if best is not None and best.encoding not in _LATIN:
        return best.encoding
    return max(_LATIN, key=lambda encoding: _fit(sample.decode(encoding, "replace")))


def _fit(text: str) -> float:
    """The largest share of the characters beyond ASCII that one language writes, 0 to 1."""
    foreign = [character for character in text if not character.isascii() and character not in _MARKS]
    if not foreign:
        return 1.0
    return max(sum(map(alphabet.__contains__, foreign)) for alphabet in _ALPHABETS) / len(foreign)
