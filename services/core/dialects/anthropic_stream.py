"""The scan of an Anthropic Messages stream."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.errors import SHAPES, Code
from services.core import usage as classes
from services.core.dialects.output import OutputMeter, strings_under
from services.core.dialects.reading import child, error_in, json_object, text_of
from services.core.framing import EventSplitter, events_with, frame, lf_only, payload
from services.core.tiers import told_tier

_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
_OUTPUT: Final = strings_under("text", "thinking", "partial_json")
# The names of events never stand unescaped inside a text.
_BLOCK_EVENTS: Final = re.compile(
    rb'"type": ?"content_block_(start|delta|stop)", ?"index": ?(\d{1,9})'
)
_SILENT_BLOCKS: Final = frozenset({"text", "thinking"})  # they speak through their deltas


class AnthropicScan:
    """Parses only the events whose bytes say that they matter: `message_*`, `error`, and blocks
    until the first content. Usage is cumulative: the last non-zero value of each field counts."""

    def __init__(self) -> None:
        self._events = EventSplitter()
        self._output = OutputMeter(_OUTPUT)
        self._told: dict[str, Any] = {}
        self.output_told = False
        self.finished = False
        self.complete_at_eof = False
        self.finish_reason = ""
        self.has_content = False
        self.error: tuple[str, str] | None = None
        self.model = ""

    @property
    def usage(self) -> dict[str, int] | None:
        return classes.from_anthropic(self._told) if self._told else None

    @property
    def tier(self) -> str | None:
        return tier_in(self._told)

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
            self._output.add(whole)
            if not self.has_content:
                self._look_for_content(whole)
            # bytes.rfind takes half the time of `in`.
            if whole.rfind(b'"message_') >= 0 or whole.rfind(b'"error"') >= 0:
                for event in events_with(whole, b'"message_', b'"error"'):
                    self._read(json_object(payload(event)))
        return data

    def close(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        return _PING if self.at_boundary else b""

    def render_error(self, code: Code, message: str) -> bytes:
        if self.error:
            return b""
        error = {"type": SHAPES[code].anthropic_type, "message": message}
        data = msgspec.json.encode({"type": "error", "error": error})
        return self._events.closing("ping") + frame(data, "error")

    def render_cut(self, usage: Mapping[str, int]) -> bytes:
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        told = {"output_tokens": usage.get("output", 0)}
        end = {"type": "message_delta", "delta": delta, "usage": told}
        return (
            self._events.closing("ping")
            + self._closed_block()
            + frame(msgspec.json.encode(end), "message_delta")
            + frame(b'{"type":"message_stop"}', "message_stop")
        )

    def _closed_block(self) -> bytes:
        """The end of the block that the last relayed event belongs to, if that is open."""
        found = _BLOCK_EVENTS.findall(self._output.recent)
        if not found or found[-1][0] == b"stop":
            return b""
        stop = b'{"type":"content_block_stop","index":%b}' % found[-1][1]
        return frame(stop, "content_block_stop")

    def _look_for_content(self, whole: bytes) -> None:
        for event in events_with(whole, b'"content_block_'):
            if _has_content(json_object(payload(event))):
                self.has_content = True
                return

    def _read(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "message_start":
            message = child(event, "message")
            self.model = text_of(message, "model")
            _merge(self._told, child(message, "usage"))
        elif kind == "message_delta":
            reason = text_of(child(event, "delta"), "stop_reason")
            self.finish_reason = reason or self.finish_reason
            self.has_content = self.has_content or self.finish_reason == "refusal"
            told = child(event, "usage")
            none_made = told.get("output_tokens") == 0 and not self.has_content
            made = "output" in classes.from_anthropic(told)
            self.output_told = self.output_told or made or none_made
            _merge(self._told, told)
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error":
            self.error = error_in(event.get("error")) or ("error", "no message")


def tier_in(told: Mapping[str, Any]) -> str | None:
    """The service tier in a usage object or a request; the fast mode is priced like one."""
    return "fast" if told.get("speed") == "fast" else told_tier(told.get("service_tier"))


def _has_content(event: dict[str, Any]) -> bool:
    if event.get("type") == "content_block_delta":
        delta = child(event, "delta")
        return any(value for name, value in delta.items() if name != "type")
    block = child(event, "content_block")
    if text_of(block, "type") in _SILENT_BLOCKS:
        return bool(block.get("text") or block.get("thinking"))
    return bool(block)


def _merge(known: dict[str, Any], told: dict[str, Any]) -> None:
    for name, value in told.items():
        if type(value) is dict:
            if type(known.get(name)) is not dict:
                known[name] = {}
            _merge(known[name], value)
        elif value or name not in known:
            known[name] = value
