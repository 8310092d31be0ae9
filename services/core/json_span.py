"""Edits of one top-level member of a JSON object, leaving every other byte as it is.

Where a key occurs twice the last one counts, as for `json.loads` and JavaScript. Bodies given
here were already read as a JSON object; anything else raises ValueError."""

import json
from functools import cache
from typing import Any, Final

import msgspec

_CANDIDATES: Final = 8  # occurrences of the key tried before the whole body is walked
_SPACE: Final = b" \t\r\n"
_walker: Final = json.JSONDecoder()


def find_value(body: bytes, key: str) -> tuple[int, int] | None:
    """Start and end of the value of the top-level member `key`, None without such a member."""
    span = _guess(body, key)
    if span is not None and _is_last(body, key, span):
        return span
    return _walk(body, key)


def replace_value(body: bytes, key: str, value: bytes) -> bytes:
    """`body` with the JSON text `value` for the top-level member `key`, which must exist."""
    span = find_value(body, key)
    if span is None:
        raise ValueError(f"no member {key!r}")
    return body[: span[0]] + value + body[span[1] :]


def append_member(body: bytes, key: str, value: bytes) -> bytes:
    """`body` with a last member `key`, which makes it the one that counts."""
    head = body.rstrip(_SPACE)
    if not head.endswith(b"}"):
        raise ValueError("not a JSON object")
    head = head[:-1].rstrip(_SPACE)
    comma = b"" if head.endswith(b"{") else b","
    return head + comma + json.dumps(key).encode() + b":" + value + b"}"


def _guess(body: bytes, key: str) -> tuple[int, int] | None:
    """The span of the first top-level occurrence of the plainly written key, if it is near.

    A value belongs to the top level exactly when the body, cut behind it and closed with one
    brace, is a whole JSON object: so only the bytes before the value are ever decoded."""
    needle = b'"' + key.encode() + b'"'
    at = -1
    for _ in range(_CANDIDATES):
        at = body.find(needle, at + 1)
        if at < 0:
            return None
        if body[at - 1 : at] == b"\\":
            continue
        start = _value_start(body, at + len(needle))
        end = _string_end(body, start)
        if end and _reads(body[:end] + b"}"):
            return start, end
    return None


def _value_start(body: bytes, at: int) -> int:
    """The offset of the value behind the colon at or after `at`; the body's end without one."""
    while at < len(body) and body[at] in _SPACE:
        at += 1
    if body[at : at + 1] != b":":
        return len(body)
    at += 1
    while at < len(body) and body[at] in _SPACE:
        at += 1
    return at


def _string_end(body: bytes, start: int) -> int:
    """The offset behind the string that begins at `start`, 0 when no plain string does."""
    if body[start : start + 1] != b'"':
        return 0
    end = body.find(b'"', start + 1) + 1
    return 0 if b"\\" in body[start:end] else end


def _reads(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Struct)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_last(body: bytes, key: str, span: tuple[int, int]) -> bool:
    """Whether the value at `span` is the one that counts: a change of it changes what is read."""
    marked = body[: span[0]] + b"null" + body[span[1] :]
    try:
        value = getattr(_reader(key).decode(marked), "value", None)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(value, msgspec.Raw) and bytes(value) == b"null"


@cache
def _reader(key: str) -> "msgspec.json.Decoder[msgspec.Struct]":
    return msgspec.json.Decoder(
        msgspec.defstruct("Member", [("value", msgspec.Raw)], rename={"value": key})
    )


def _walk(body: bytes, key: str) -> tuple[int, int] | None:
    """Member by member, for keys written with escapes or twice, and values that are no strings."""
    try:
        text = body.decode()
        at = _skip(text, 0)
        if text[at] != "{":
            raise ValueError("not a JSON object")
        found = None
        at = _skip(text, at + 1)
        while text[at] != "}":
            name, at = _member(text, at)
            start = _skip(text, at)
            _, at = _member(text, start)
            if name == key:
                found = start, at
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except (IndexError, RecursionError) as ex:
        raise ValueError("not a JSON object") from ex
    if found is None or text.isascii():
        return found
    start = len(text[: found[0]].encode())
    return start, start + len(text[found[0] : found[1]].encode())


def _member(text: str, at: int) -> tuple[Any, int]:
    """A key with its colon, or a value, at `at`, and the offset behind it."""
    value, at = _walker.raw_decode(text, at)
    after = _skip(text, at)
    if after < len(text) and text[after] == ":":
        return value, after + 1
    return value, at


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
