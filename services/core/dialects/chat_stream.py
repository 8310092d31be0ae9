"""The scan of a Chat Completions stream, which may also take the usage chunk out of it."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.errors import Code
from services.core import usage as classes
from services.core.dialects.openai import error_object
from services.core.dialects.output import OutputMeter, strings_under
from services.core.dialects.reading import child, children, error_in, json_object, text_of
from services.core.framing import EventSplitter, events, frame, lf_only, payload
from services.core.tiers import told_tier

_DONE: Final = b"[DONE]"
_PING: Final = b": ping\n\n"
_NULL_REASONS: Final = (b'"finish_reason":null', b'"finish_reason": null')
_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")
_PARTS: Final = ("tool_calls", "function_call", "reasoning_details", "audio")
_OUTPUT: Final = strings_under(*_TEXTS, "arguments")


class ChatScan:
    """With `remove_usage` whole events are relayed instead of reads, and the chunk that has usage
    but no choices is left out. An end without `[DONE]` is whole once a finish reason and the
    usage were told: several vendors end so."""

    def __init__(self, *, remove_usage: bool, choices: int = 1) -> None:
        self._events = EventSplitter()
        self._output = OutputMeter(_OUTPUT)
        self._remove_usage = remove_usage
        self._one_choice = choices == 1
        self._null_reason = _NULL_REASONS[0]
        self._told: dict[str, Any] | None = None
        self._extra_seen = False
        self._closed_open = False
        self._id = ""
        self._created = 0
        self.finished = False
        self.finish_reason = ""
        self.has_content = False
        self.error: tuple[str, str] | None = None
        self.model = ""
        self.tier: str | None = None

    @property
    def usage(self) -> dict[str, int] | None:
        return classes.from_chat(self._told) if self._told is not None else None

    @property
    def output_told(self) -> bool:
        return self._told is not None

    @property
    def complete_at_eof(self) -> bool:
        return bool(self.finish_reason) and self._told is not None

    @property
    def output_bytes(self) -> int:
        return self._output.total

    @property
    def at_boundary(self) -> bool:
        if self._remove_usage:
            return not (self._events.skipping or self._closed_open)
        return self._events.at_boundary

    @property
    def lacks_end(self) -> bool:
        return self._events.lacks_end

    def feed(self, data: bytes) -> bytes:
        whole = self._events.push(data)
        if whole:
            text = lf_only(whole) if b"\r" in whole else whole
            self._output.add(text)
            if not self._is_plain(text):
                self._look(text)
        if not self._remove_usage:
            return data
        if self._extra_seen:
            self._extra_seen = False
            whole = b"".join(event for event in events(whole) if not _is_extra(event))
        if self._events.spilled_before or self._events.spilled_after:
            whole = self._events.spilled_before + whole + self._events.spilled_after
            self._events.forget_spilled()
        return whole

    def close(self) -> bytes:
        if not self._remove_usage:
            return b""
        rest = self._events.rest()
        if _is_extra(rest):
            return b""
        self._closed_open = self._closed_open or bool(rest)
        return rest

    def ping(self) -> bytes:
        return _PING if self.at_boundary else b""

    def render_error(self, code: Code, message: str) -> bytes:
        done = b"" if self.finished and self.error else frame(_DONE)
        if self.error:
            return self._closing() + done
        chunk = self._chunk([], error=error_object(code, message))
        return self._closing() + chunk + done

    def render_cut(self, usage: Mapping[str, int]) -> bytes:
        last = self._chunk([{"index": 0, "delta": {}, "finish_reason": "length"}])
        if not self._remove_usage:
            last += self._chunk([], usage=classes.to_chat(usage))
        return self._closing() + last + frame(_DONE)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """One chunk of ours, in the line of those relayed."""
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model,
            "choices": choices,
            **more,
        }
        return frame(msgspec.json.encode(chunk))

    def _closing(self) -> bytes:
        return b"" if self.at_boundary else self._events.closing()

    def _is_plain(self, text: bytes) -> bool:
        """Every event is a chunk without finish reason, usage and error: nothing to read."""
        if not (self.has_content and self._one_choice):
            return False
        # bytes.rfind takes half the time of `in`.
        return (
            text.rfind(b"prompt_tokens") < 0
            and text.rfind(b'"error"') < 0
            and text.count(self._null_reason) == text.count(b"data:")
        )

    def _look(self, text: bytes) -> None:
        if self._null_reason not in text:
            for spelling in _NULL_REASONS:
                if spelling in text:
                    self._null_reason = spelling
        for event in events(text):
            if self._is_plain(event):
                continue
            data = payload(event)
            if data == _DONE:
                self.finished = True
            elif data:
                self._read(json_object(data))

    def _read(self, chunk: dict[str, Any]) -> None:
        self.model = self.model or text_of(chunk, "model")
        if not self._id:
            self._id = text_of(chunk, "id")
            created = chunk.get("created")
            self._created = created if type(created) is int else 0
        tier = told_tier(chunk.get("service_tier"))
        self.tier = self.tier if tier is None else tier
        self.error = self.error or error_in(chunk.get("error"))
        for choice in children(chunk, "choices"):
            self.finish_reason = text_of(choice, "finish_reason") or self.finish_reason
            if not self.has_content:
                self.has_content = message_says_something(child(choice, "delta"))
        told = chunk.get("usage")
        if type(told) is dict:
            self._told = told
            self._extra_seen = self._extra_seen or chunk.get("choices") == []


def message_says_something(message: dict[str, Any]) -> bool:
    """Whether a message or a delta holds text, a tool call, reasoning or a refusal."""
    return any(message.get(name) for name in _TEXTS) or any(message.get(name) for name in _PARTS)


def message_bytes(message: dict[str, Any]) -> int:
    """Bytes of the text, reasoning and tool arguments of one message."""
    text = sum(len(text_of(message, name).encode()) for name in _TEXTS)
    calls = [child(call, "function") for call in children(message, "tool_calls")]
    return text + sum(len(text_of(call, "arguments").encode()) for call in calls)


def _is_extra(event: bytes) -> bool:
    """The chunk that only `include_usage` adds."""
    if b"usage" not in event:
        return False
    chunk = json_object(payload(event))
    return chunk.get("choices") == [] and type(chunk.get("usage")) is dict
