"""The scan of a Responses stream."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.errors import Code
from services.core import usage as classes
from services.core.dialects.output import OutputMeter, strings_under
from services.core.dialects.reading import child, children, error_in, json_object, text_of
from services.core.framing import EventSplitter, events, frame, lf_only, payload
from services.core.ids import uuid7_hex
from services.core.tiers import told_tier

# `response.completed` repeats the whole answer, pictures included.
_MAX_EVENT_BYTES: Final = 64 << 20
_SEQUENCE: Final = re.compile(rb'"sequence_number":\s*(\d{1,18})')
_OUTPUT: Final = strings_under("delta")
_ENDS: Final = {"completed", "incomplete"}
# What Codex does with a code: stop and show the message, or try again.
_CODES: Final = {
    Code.CONTEXT_LENGTH_EXCEEDED: "context_length_exceeded",
    Code.INSUFFICIENT_BALANCE: "insufficient_quota",
    Code.QUOTA_EXCEEDED: "insufficient_quota",
    Code.RATE_LIMIT_EXCEEDED: "rate_limit_exceeded",
    Code.CONCURRENCY_LIMIT: "rate_limit_exceeded",
    Code.NO_CAPACITY: "slow_down",
    Code.INVALID_PARAM: "invalid_prompt",
    Code.INVALID_API_KEY: "invalid_prompt",
    Code.PERMISSION_DENIED: "invalid_prompt",
    Code.MODEL_NOT_FOUND: "invalid_prompt",
    Code.MODEL_NOT_IN_GROUP: "invalid_prompt",
}
_KEPT_CODES: Final = frozenset(
    {"context_length_exceeded", "invalid_prompt", "cyber_policy", "rate_limit_exceeded"}
)


class ResponsesScan:
    """Parses the events that carry a whole `response`, errors, and items until the first content.

    A ping repeats `response.in_progress` with the last sequence number seen: the upstream leaves
    no gap to number it, and its own bytes are not rewritten. Codex and the SDKs ignore numbers."""

    def __init__(self, *, count_searches: bool = False) -> None:
        self._events = EventSplitter(_MAX_EVENT_BYTES)
        self._output = OutputMeter(_OUTPUT)
        self._count_searches = count_searches
        self._searches = 0
        self._told: dict[str, Any] | None = None
        self._response: dict[str, Any] = {}
        self._failed = False
        self._latest = b""
        self.finished = False
        self.complete_at_eof = False
        self.finish_reason = ""
        self.has_content = False
        self.error: tuple[str, str] | None = None
        self.model = ""
        self.tier: str | None = None

    @property
    def usage(self) -> dict[str, int] | None:
        if self._told is None:
            return None
        usage = classes.from_responses(self._told)
        return usage | {"web_search": self._searches} if self._searches else usage

    @property
    def output_told(self) -> bool:
        return self._told is not None

    @property
    def output_bytes(self) -> int:
        return self._output.total

    @property
    def at_boundary(self) -> bool:
        return self._events.at_boundary

    @property
    def lacks_end(self) -> bool:
        return self._events.lacks_end

    def feed(self, data: bytes) -> bytes:
        whole = self._events.push(data)
        if whole:
            if b"\r" in whole:
                whole = lf_only(whole)
            if whole.rfind(b'"sequence_number"') >= 0:
                self._latest = whole
            self._output.add(whole)
            if self._may_matter(whole):
                self._look(whole)
        return data

    def close(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        if not (self._response and self.at_boundary):
            return b""
        return self._event("response.in_progress", self._sequence(), self._response)

    def render_error(self, code: Code, message: str) -> bytes:
        if self._failed:
            return b""
        told = _CODES.get(code, "server_error")
        if self.error:
            told = self.error[0] if self.error[0] in _KEPT_CODES else "server_error"
            message = self.error[1]
        error = {"code": told, "message": message}
        failed = self._so_far() | {"status": "failed", "error": error}
        event = self._event("response.failed", self._sequence() + 1, failed)
        return self._events.closing() + event

    def render_cut(self, usage: Mapping[str, int]) -> bytes:
        ended = self._so_far() | {
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "usage": classes.to_responses(usage),
        }
        event = self._event("response.incomplete", self._sequence() + 1, ended)
        return self._events.closing() + event

    def _so_far(self) -> dict[str, Any]:
        """The response object as the upstream last told it."""
        return self._response or {
            "id": "resp_" + uuid7_hex(),
            "object": "response",
            "created_at": 0,
            "model": self.model,
            "output": [],
        }

    def _may_matter(self, whole: bytes) -> bool:
        # bytes.rfind takes half the time of `in`.
        return (
            not self.has_content
            or whole.rfind(b'"response"') >= 0
            or whole.rfind(b'"error"') >= 0
            or (self._count_searches and whole.rfind(b'"web_search_call"') >= 0)
        )

    def _look(self, whole: bytes) -> None:
        for event in events(whole):
            if self._may_matter(event):
                self._read(json_object(payload(event)))

    def _read(self, event: dict[str, Any]) -> None:
        kind = text_of(event, "type")
        response = child(event, "response")
        if response:
            self._read_response(kind, response)
        elif kind == "error":
            self.error = error_in(event.get("error")) or error_in(event | {"type": ""})
        elif kind == "response.output_item.done":
            item = child(event, "item")
            self._searches += is_search(item)
            self.has_content = self.has_content or item_says_something(item)
        elif kind == "response.output_item.added":
            self.has_content = self.has_content or item_says_something(child(event, "item"))
        elif kind.endswith(".delta"):
            self.has_content = self.has_content or bool(event.get("delta"))

    def _read_response(self, kind: str, response: dict[str, Any]) -> None:
        self.model = text_of(response, "model") or self.model
        tier = told_tier(response.get("service_tier"))
        self.tier = self.tier if tier is None else tier
        told = response.get("usage")
        if type(told) is dict:
            self._told = told
        if kind == "response.failed":
            self._failed = True
            self.error = error_in(response.get("error")) or ("error", "no message")
        elif kind in ("response.completed", "response.incomplete"):
            self.finished = True
            self.finish_reason = end_reason(response) or kind.removeprefix("response.")
            items = children(response, "output")
            self._searches = searches_in(response, items, self._searches)
            self.has_content = self.has_content or any(map(item_says_something, items))
        elif not self._response:
            # Prompt and tools come back here; no reader of a ping needs them again.
            self._response = response | {"instructions": None, "tools": []}

    def _event(self, kind: str, sequence: int, response: dict[str, Any]) -> bytes:
        event = {"type": kind, "sequence_number": sequence, "response": response}
        return frame(msgspec.json.encode(event), kind)

    def _sequence(self) -> int:
        """The last sequence number seen, 0 without one."""
        numbers = _SEQUENCE.findall(self._latest)
        return int(numbers[-1]) if numbers else 0


def end_reason(response: dict[str, Any]) -> str:
    """How a response object says that it ended; empty while it runs or when it failed."""
    status = text_of(response, "status")
    if status == "incomplete":
        return text_of(child(response, "incomplete_details"), "reason") or status
    return status if status in _ENDS else ""


def item_says_something(item: dict[str, Any]) -> bool:
    """Whether an output item holds text, a tool call, reasoning or a refusal."""
    kind = item.get("type")
    if kind == "message":
        parts = children(item, "content")
        return any(part.get("text") or part.get("refusal") for part in parts)
    if kind == "reasoning":
        return any(item.get(name) for name in ("summary", "content", "encrypted_content"))
    return bool(kind)


def item_bytes(item: dict[str, Any]) -> int:
    """Bytes of the text, reasoning and tool arguments of one output item."""
    parts = children(item, "content") + children(item, "summary")
    texts = [text_of(part, "text") + text_of(part, "refusal") for part in parts]
    texts += [text_of(item, "arguments"), text_of(item, "input")]
    return sum(len(text.encode()) for text in texts)


def searches_in(response: dict[str, Any], items: list[dict[str, Any]], seen: int = 0) -> int:
    """The web searches that a whole answer cost: as the vendor counts them, else those among its
    items or `seen` in its stream, whichever are more."""
    told = child(child(response, "tool_usage"), "web_search").get("num_requests")
    if type(told) is int and told >= 0:
        return min(told, classes.MAX_UNITS)
    return max(seen, sum(1 for item in items if is_search(item)))


def is_search(item: dict[str, Any]) -> bool:
    """Whether an item is a web search that the vendor charges for; opening a page is none."""
    if item.get("type") != "web_search_call":
        return False
    return text_of(child(item, "action"), "type") in ("", "search")
