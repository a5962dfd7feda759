"""What the engine host must know about an SQL text before the engine sees it.

Two things are decided here, and only these. An INSERT that brings its rows along is split into statement and
rows: the engine reads rows inside an SQL text only up to the first blank line, and runs the rest as SQL. And
a text of several statements is refused, as a server does: the engine would run them all.
"""

import re
from dataclasses import dataclass

# Pieces for verbose patterns. The loops are possessive: a long text costs one pass, also without a match.
_QUOTED = "(?:" + "|".join(rf"{q}[^{q}\\]*+ (?: (?: \\. | {q}{q} ) [^{q}\\]*+ )*+ {q}" for q in "'\"`") + ")"
_COMMENT = r"(?: --[^\n]*+ | \#[\ !][^\n]*+ | /\*[^*]*+(?:\*(?!/)[^*]*+)*+\*/ )"
_HEREDOC = r"(?: \$(?P<tag>\w*+)\$ .*? \$(?P=tag)\$ )"
_GAP = rf"(?: \s | {_COMMENT} )"
_NAME = rf"(?: [A-Za-z_]\w*+ | (?=[`\"]) {_QUOTED} )"
_SETTING = rf"(?: \w++ {_GAP}*+ = {_GAP}*+ (?: {_QUOTED} | [-+]?[\w.]++ ) )"


def _compile(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode(), re.VERBOSE | re.IGNORECASE | re.DOTALL)


_FIRST_WORD = _compile(rf"{_GAP}*+ ( \( | [A-Za-z]++ )")
_UP_TO_SEMICOLON = _compile(rf"(?: [^;'\"`$/\#-]++ | {_QUOTED} | {_COMMENT} | {_HEREDOC} | [$/\#-] )*+")
_NOTHING_MORE = _compile(rf"(?: ; | {_GAP} )*+ \Z")
# A lax search for the word FORMAT would find it inside a VALUES string, so the text is matched from its start
# up to the word that says where the rows come from.
_INSERT = _compile(rf"""
    {_GAP}*+
    (?P<head> INSERT {_GAP}++ INTO {_GAP}++ (?: TABLE {_GAP}++ )? {_NAME} (?: {_GAP}*+ \. {_GAP}*+ {_NAME} )?
        (?: {_GAP}*+ \( (?! {_GAP}*+ (?:SELECT|WITH)\b ) (?: [^()'\"`]++ | {_QUOTED} | \([^()]*+\) )*+ \) )?
    )
    (?: {_GAP}*+ \b (?P<settings> SETTINGS {_GAP}++ {_SETTING} (?: {_GAP}*+ , {_GAP}*+ {_SETTING} )*+ ) )?
    {_GAP}*+
    (?: \b FORMAT {_GAP}++ (?P<format>\w++) [\ \t\f]*+ (?P<semicolon>;)? \r?\n?
      | \b (?P<values>VALUES) \b
      | (?P<select> \( (?: \( | {_GAP} )*+ (?:SELECT|WITH)\b | \b(?:SELECT|WITH)\b )
    )""")
_FORMAT_CLAUSE = _compile(r"\b FORMAT \s+ (\w+) \s* (?: SETTINGS\s[^;']* )? ;? \s* \Z")
_TEMPORARY = _compile(
    rf"{_GAP}*+ (?:CREATE|DROP|TRUNCATE) {_GAP}++ (?: OR {_GAP}++ REPLACE {_GAP}++ )? TEMPORARY \b"
)
# Statements with a result set; a server names the output format for these alone.
_WITH_RESULT = frozenset(b"( check desc describe exists explain from kill select show values with".split())


class StatementRefused(Exception):
    """The text is not one statement of a form that this host runs; a server's syntax error, code 62."""


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT with its rows; `head` ends with the columns, `settings` is the SETTINGS clause or empty."""

    head: bytes
    settings: bytes
    format: str
    rows: bytes


@dataclass(frozen=True, slots=True)
class Query:
    """Any other statement; `format` is that of its FORMAT clause.

    `alters_session` is true of SET, USE and temporary tables, whose effect must end with the request.
    """

    text: bytes
    format: str | None
    has_result: bool
    alters_session: bool

    @property
    def may_stream(self) -> bool:
        """Native blocks may be sent one by one. The ending is the client's own; no comment can hide it."""
        return self.text.endswith(b"\n FORMAT Native")


def parse(text: bytes) -> Insert | Query:
    """Read one statement; raises StatementRefused."""
    match = _FIRST_WORD.match(text)
    word = match[1].lower() if match else b""
    if not word and _NOTHING_MORE.match(text):
        raise StatementRefused("Empty query")
    if word == b"insert":
        insert = _parse_insert(text)
        if insert is not None:
            return insert
    _refuse_several(text)
    clause = _FORMAT_CLAUSE.search(text, max(0, len(text) - 400))
    return Query(
        text=text,
        format=clause[1].decode() if clause else None,
        has_result=word in _WITH_RESULT,
        alters_session=word in (b"set", b"use") or bool(_TEMPORARY.match(text)),
    )


def _parse_insert(text: bytes) -> Insert | None:
    """The statement and its rows, or None for INSERT ... SELECT, which brings none."""
    match = _INSERT.match(text)
    if match is None:
        raise StatementRefused(
            "Syntax error: this engine takes INSERT INTO name [(columns)] [SETTINGS ...]"
            " and then FORMAT, VALUES or SELECT"
        )
    if match["select"]:
        return None
    rows, settings = text[match.end() :], match["settings"] or b""
    if match["values"]:
        _refuse_several(rows)
        return Insert(match["head"], settings, "Values", rows)
    if match["semicolon"]:
        raise StatementRefused("Syntax error: there is a ';' before the data for INSERT")
    return Insert(match["head"], settings, match["format"].decode(), rows)


def _refuse_several(text: bytes) -> None:
    if b";" not in text:
        return
    end = _UP_TO_SEMICOLON.match(text)
    # Where the scan stops at something else, a quote is open, and the engine says so better than we can.
    if end and text[end.end() : end.end() + 1] == b";" and not _NOTHING_MORE.match(text, end.end()):
        raise StatementRefused(
            "Syntax error (Multi-statements are not allowed): one request is one statement"
        )
