"""What an operator may ask in SQL: one reading statement that stays inside the database.

The engine's read-only session is what refuses writes; this page refuses the few things that a
read-only session lets through: several statements at once, writing a file (INTO OUTFILE), and the
functions that read files or call other machines by themselves.
"""

import re
from typing import Final, NamedTuple

MAX_SQL_CHARS: Final = 100_000
READING: Final = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN")
_OUTSIDE_FUNCTIONS: Final = frozenset({"file", "hascolumnintable", "catboostevaluate"})

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<comment>--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9][A-Za-z0-9_.]*)
    | (?P<sign>(?!/\*)[][(){}<>=!+*/%,.:;?@|&^~-])
    """,
    re.VERBOSE | re.DOTALL,
)


class SqlRefused(Exception):
    """The statement is not one that may be asked; the message says why."""


class _Token(NamedTuple):
    kind: str
    text: str


def reading_statement(sql: str) -> str:
    """`sql` without a trailing semicolon, when it is a single statement that only reads.

    Raises SqlRefused."""
    if len(sql) > MAX_SQL_CHARS:
        raise SqlRefused(f"the statement is longer than {MAX_SQL_CHARS} characters")
    tokens, end = _tokens(sql)
    first = next((t for t in tokens if t.text != "("), None)
    if first is None:
        raise SqlRefused("the statement is empty")
    if first.kind != "word" or first.text.upper() not in READING:
        raise SqlRefused(f"a statement begins with one of {', '.join(READING)}")
    for at, token in enumerate(tokens):
        if token.text == ";":
            raise SqlRefused("one statement at a time")
        if token.kind == "word" and token.text.upper() == "OUTFILE":
            raise SqlRefused("INTO OUTFILE is not offered; the answer is the result")
        called = at + 1 < len(tokens) and tokens[at + 1].text == "("
        if called and _name(token) in _OUTSIDE_FUNCTIONS:
            raise SqlRefused(f"the function {_name(token)} is not offered")
    return sql[:end]


def _tokens(sql: str) -> tuple[list[_Token], int]:
    """The significant tokens before trailing semicolons, and where the last of them ends."""
    tokens: list[tuple[_Token, int]] = []
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        # Whatever this lexer does not know (heredocs, other quotes, an open comment) could hide
        # something from it.
        if match is None:
            raise SqlRefused(f"unexpected {sql[at]!r} at character {at + 1}")
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "comment" and "/*" in match[0][2:]:
            raise SqlRefused("comments do not nest")
        if kind not in ("space", "comment"):
            tokens.append((_Token(kind, match[0]), at))
    while tokens and tokens[-1][0].text == ";":
        tokens.pop()
    return [token for token, _ in tokens], tokens[-1][1] if tokens else 0


def _name(token: _Token) -> str:
    if token.kind == "word":
        return token.text.lower()
    if token.kind == "quoted":
        if "\\" in token.text:
            raise SqlRefused("a quoted function name has no escapes")
        return token.text[1:-1].lower()
    return ""
