"""What any dialect's request says and what its answer holds, without the wire's form."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

Json = dict[str, Any]
MEDIA_TOKENS: Final = 1000  # one image, page set or file, whatever its size
_MEDIA_TYPES: Final = frozenset(
    {"image", "document", "image_url", "input_image", "input_file", "file"}
)


class BadRequest(Exception):
    """The request cannot be answered; the message goes to the client with status 400."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Tool:
    """`kind` is function, custom or local_shell; `namespace` is empty outside Responses."""

    name: str
    kind: str = "function"
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class InputTokens:
    uncached: int
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    @property
    def total(self) -> int:
        return self.uncached + self.cache_read + self.cache_write_5m + self.cache_write_1h


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """`text` is what the user said last; `tool_results` are non-empty when the last turn is a
    tool's. `max_output` is in tokens, None when the request names no limit. `tier` is the service
    tier in which it is served, empty for the vendor's usual one."""

    model: str
    stream: bool
    text: str
    tool_results: tuple[str, ...]
    tools: Mapping[str, Tool]
    input: InputTokens
    thinks: bool = False
    shows_thinking: bool = True
    schema: Any = None
    max_output: int | None = None
    session: str = ""
    choices: int = 1
    include_usage: bool = True
    tier: str = ""
    asked: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is a JSON object as text; for a custom tool the raw input."""

    id: str
    tool: Tool
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`finish` is stop, length or tool. `output` counts tokens of all choices, thinking included;
    `seal` is the opaque proof that the next turn must bring back unchanged."""

    id: str
    text: str
    thinking: str
    seal: str
    calls: tuple[ToolCall, ...]
    finish: str
    output: int
    reasoning: int
    searches: int = 0


class Event(NamedTuple):
    """One SSE event. `mark` is start, delta, finish or end: faults act on it."""

    frame: bytes
    mark: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire protocol. `reply` and `events` leave out usage when their last argument is False.
    `error` takes status, message, param and code."""

    name: str
    path: str
    read: Callable[[Json, Mapping[str, str]], Prompt]
    reply: Callable[[Prompt, Answer, bool], Json]
    events: Callable[[Prompt, Answer, bool], list[Event]]
    error: Callable[[int, str, str | None, str | None], Json]
    stream_error: Callable[[str], bytes]
    usage: Callable[[Prompt, Answer], Json]
    ping: bytes


def tokens(size_bytes: int) -> int:
    return (size_bytes + 3) // 4


def weigh(value: Any) -> int:
    """The bytes of text in a JSON value; media count as `MEDIA_TOKENS` tokens each."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(weigh(item) for item in value)
    if isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and kind in _MEDIA_TYPES:
            return MEDIA_TOKENS * 4
        return sum(len(key) + weigh(item) for key, item in value.items() if key != "cache_control")
    return 4


def text_of(content: Any) -> str:
    """All text of a string or of a list of blocks, joined by line ends."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(str(b["text"]) for b in content if isinstance(b, dict) and b.get("text"))


def last_text(content: Any) -> str:
    """The text that the user typed: the last text block, or the last one with a directive (clients
    put reminders of their own before and after it)."""
    if isinstance(content, str):
        return content
    texts = [str(b["text"]) for b in content or [] if isinstance(b, dict) and b.get("text")]
    for text in reversed(texts):
        if "sim:" in text:
            return text
    return texts[-1] if texts else ""


def served_in(body: Json, text: str) -> str:
    """The tier that the request asks for by name, or the directive `sim:tier NAME` in its text."""
    told = re.search(r"sim:tier (\w+)", text)
    asked = body.get("service_tier")
    return told[1] if told else asked if asked in ("flex", "priority") else ""


def positive(body: Json, name: str) -> int | None:
    """An optional positive integer of the body. Raises BadRequest."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{name}: Input should be a positive integer", name)
    return value


def required(body: Json, name: str, kind: type) -> Any:
    """A required field of the body. Raises BadRequest."""
    value = body.get(name)
    if value is None:
        raise BadRequest(f"{name}: Field required", name)
    if not isinstance(value, kind) or not value:
        raise BadRequest(f"{name}: Input should be a valid {kind.__name__}", name)
    return value
