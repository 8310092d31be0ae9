"""What a client may read of what an upstream said: its sentence about the request, without where
it lives, how it was reached and with what."""

import re
from typing import Any, Final

import msgspec

_TEXT_MAX: Final = 300
_SENTENCES: Final = (  # where vendors put the sentence for people in a JSON error
    ("error", "message"),
    ("problem", "text"),
    ("message",),
    ("detail",),
    ("title",),
    ("error",),
)
_HIDDEN: Final = (
    re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>)]+", re.IGNORECASE),  # URLs
    re.compile(  # IPv6
        r"\[?(?:(?:[0-9a-f]{1,4}:){5,7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:)*(?:[0-9a-f]{1,4})?::"
        r"(?:[0-9a-f]{1,4}:)*(?:[0-9a-f]{1,4})?)\]?(?::\d+)?",
        re.IGNORECASE,
    ),
    re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"),  # IPv4
    re.compile(r"\b(?:[a-z0-9_-]+\.)+[a-z]{2,}(?::\d+|(?=/))[^\s\"'<>)]*", re.IGNORECASE),
    re.compile(
        r"\b(?:[a-z0-9-]+\.)+(?:com|net|org|io|ai|dev|app|cloud|run|co|cn|eu|de|uk|us|internal"
        r"|local|localdomain|svc|lan|test|example)\b\.?",
        re.IGNORECASE,
    ),
    re.compile(r"\blocalhost(?::\d+)?\b", re.IGNORECASE),
    re.compile(r"(?<![\w/])/(?:[\w.-]+/)+[\w.-]*"),  # paths
    re.compile(r"\b(?:bearer\s+|(?:sk|pk|rk|key|token)[-_])[\w.*-]{6,}", re.IGNORECASE),
    re.compile(r"<[^>]*>"),  # markup, objects of a program
)


_TRANSPORT: Final = re.compile(  # a failed connection, in the words of a program
    r"\b(?:\w*(?:Connect\w*|Protocol|Read|Pool|Retry|SSL|Socket|Resolution|Chunked\w*|OS|Proxy|URL)"
    r"(?:Error|Timeout|Exception)|\w*ConnectionPool|RemoteDisconnected|IncompleteRead"
    r"|ConnectTimeout|ReadTimeout|Errno)\b"
)


def client_text(text: str, otherwise: str) -> str:
    """At most 300 characters; `otherwise` when nothing that can be shown is left."""
    sentence = "" if _TRANSPORT.search(text) else _sentence(text)
    for pattern in _HIDDEN:
        sentence = pattern.sub("...", sentence)
    sentence = " ".join(sentence.split())
    return sentence[:_TEXT_MAX] if re.search(r"\w{2}", sentence) else otherwise


def _sentence(text: str) -> str:
    """The text itself, unless it is a whole answer: then the sentence in its JSON, or nothing."""
    start = text.lstrip()[:1]
    if start == "<":
        return ""
    if start not in ("{", "["):
        return text
    try:
        told = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return ""
    for path in _SENTENCES:
        found = _at(told, path)
        if isinstance(found, str) and found:
            return found
    return ""


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if isinstance(value, list) and value:
            value = value[0]
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value[0].get("msg") or value[0].get("message")
    return value
