"""Anthropic Messages: requests read, answers written as JSON and as the native event grammar."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from services.sim.answer import is_forged, pieces
from services.sim.prompt import (
    Answer,
    BadRequest,
    Dialect,
    Event,
    InputTokens,
    Json,
    Prompt,
    Tool,
    last_text,
    positive,
    required,
    served_in,
    text_of,
    tokens,
    weigh,
)

PATH: Final = "/v1/messages"
_STOP: Final = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}
_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(body: Json, headers: Mapping[str, str]) -> Prompt:
    """Raises BadRequest with the vendor's wording."""
    max_output = positive(body, "max_tokens")
    if max_output is None:
        raise BadRequest("max_tokens: Field required", "max_tokens")
    messages = required(body, "messages", list)
    _check(messages)
    text, results = _last_turn(messages)
    thinking = body.get("thinking") or {}
    output_format = (body.get("output_config") or {}).get("format") or {}
    return Prompt(
        model=required(body, "model", str),
        stream=bool(body.get("stream")),
        text=text,
        tool_results=results,
        tools={t["name"]: Tool(t["name"]) for t in body.get("tools") or [] if "name" in t},
        thinks=thinking.get("type") in ("enabled", "adaptive"),
        shows_thinking=thinking.get("display") != "omitted",
        schema=output_format.get("schema"),
        max_output=max_output,
        input=count(body),
        session=_session(body, headers),
        tier=served_in(body, text),
    )


def _check(messages: list[Any]) -> None:
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in (
            "user",
            "assistant",
            "system",
        ):
            raise BadRequest(f"messages.{i}.role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        if not isinstance(content, str | list):
            raise BadRequest(f"messages.{i}.content: Field required")
        for j, block in enumerate(content if isinstance(content, list) else []):
            if block.get("type") == "thinking" and is_forged(
                str(block.get("thinking", "")), str(block.get("signature", ""))
            ):
                raise BadRequest(
                    f"messages.{i}.content.{j}: Invalid `signature` in `thinking` block"
                )


def _last_turn(messages: list[Any]) -> tuple[str, tuple[str, ...]]:
    """What the user said last, and the tool results of that turn."""
    content = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    blocks = content if isinstance(content, list) else []
    results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
    return last_text(content), tuple(text_of(b.get("content")) or "(nothing)" for b in results)


def _session(body: Json, headers: Mapping[str, str]) -> str:
    told = headers.get("x-claude-code-session-id")
    user = (body.get("metadata") or {}).get("user_id") or ""
    if not told and user.startswith("{"):
        told = str(orjson.loads(user).get("session_id", ""))
    return told or user


def count(body: Json) -> InputTokens:
    """Input tokens by price class. Everything up to the last cache breakpoint is cached: what the
    request before this one had already sent is read, the rest is written for its breakpoint's ttl.
    """
    size, sent_before, last_break, last_hour = 0, 0, 0, 0
    for weight, ttl, opens_answer in _segments(body):
        if opens_answer:
            sent_before = size
        size += weight
        if ttl:
            last_break = size
            last_hour = size if ttl == "1h" else last_hour
    read_to = min(sent_before, last_break)
    hour_to = min(max(read_to, last_hour), last_break)
    marks = [tokens(n) for n in (read_to, hour_to, last_break, size)]
    return InputTokens(
        uncached=marks[3] - marks[2],
        cache_read=marks[0],
        cache_write_5m=marks[2] - marks[1],
        cache_write_1h=marks[1] - marks[0],
    )


def _segments(body: Json) -> Iterator[tuple[int, str, bool]]:
    """(bytes, ttl of the cache breakpoint behind it or "", whether an assistant turn begins) in
    the order of the vendor's prefix: tools, system, messages."""
    for tool in body.get("tools") or []:
        yield weigh(tool), _ttl(tool), False
    system = body.get("system") or []
    for block in [{"text": system}] if isinstance(system, str) else system:
        yield weigh(block.get("text", "")), _ttl(block), False
    for message in body.get("messages") or []:
        content = message.get("content", "")
        opens = message.get("role") == "assistant"
        for block in [{"text": content}] if isinstance(content, str) else content:
            yield weigh(block), _ttl(block), opens
            opens = False
    if body.get("cache_control"):
        yield 0, _ttl(body), False


def _ttl(block: Any) -> str:
    control = block.get("cache_control") if isinstance(block, dict) else None
    return str(control.get("ttl") or "5m") if isinstance(control, dict) else ""


def usage(prompt: Prompt, answer: Answer, output: int | None = None) -> Json:
    """The usage object; `output` other than the answer's for the first event of a stream."""
    spent = prompt.input
    told: Json = {
        "input_tokens": spent.uncached,
        "cache_creation_input_tokens": spent.cache_write_5m + spent.cache_write_1h,
        "cache_read_input_tokens": spent.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": spent.cache_write_5m,
            "ephemeral_1h_input_tokens": spent.cache_write_1h,
        },
        "output_tokens": answer.output if output is None else output,
        "service_tier": prompt.tier or "standard",
    }
    if prompt.thinks and output is None:
        told["output_tokens_details"] = {"thinking_tokens": answer.reasoning}
    if answer.searches and output is None:
        told["server_tool_use"] = {"web_search_requests": answer.searches, "web_fetch_requests": 0}
    return told


def _blocks(prompt: Prompt, answer: Answer) -> list[Json]:
    blocks: list[Json] = []
    if answer.thinking:
        shown = answer.thinking if prompt.shows_thinking else ""
        blocks.append({"type": "thinking", "thinking": shown, "signature": answer.seal})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        arguments = orjson.loads(call.arguments)
        block = {"type": "tool_use", "id": "toolu_" + call.id, "name": call.tool.name}
        blocks.append({**block, "input": arguments})
    return blocks


def _message(prompt: Prompt, answer: Answer) -> Json:
    return {
        "id": "msg_" + answer.id,
        "type": "message",
        "role": "assistant",
        "model": prompt.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def reply(prompt: Prompt, answer: Answer, with_usage: bool) -> Json:
    message = _message(prompt, answer)
    message.update(content=_blocks(prompt, answer), stop_reason=_STOP[answer.finish])
    return {**message, "usage": usage(prompt, answer)} if with_usage else message


def events(prompt: Prompt, answer: Answer, with_usage: bool) -> list[Event]:
    start = _message(prompt, answer)
    if with_usage:
        start["usage"] = usage(prompt, answer, output=min(answer.output, 1))
    out = [_event("message_start", "start", message=start)]
    for index, block in enumerate(_blocks(prompt, answer)):
        out += _block_events(index, block)
    end: Json = {"delta": {"stop_reason": _STOP[answer.finish], "stop_sequence": None}}
    if with_usage:
        end["usage"] = usage(prompt, answer)
        del end["usage"]["cache_creation"], end["usage"]["service_tier"]
    out.append(_event("message_delta", "finish", **end))
    out.append(_event("message_stop", "end"))
    return out


def _block_events(index: int, block: Json) -> Iterator[Event]:
    kind = block["type"]
    empty: Json = dict(block)
    if kind == "thinking":
        empty.update(thinking="", signature="")
        deltas = [{"type": "thinking_delta", "thinking": p} for p in pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif kind == "text":
        empty.update(text="")
        deltas = [{"type": "text_delta", "text": p} for p in pieces(block["text"])]
    else:
        empty.update(input={})
        raw = orjson.dumps(block["input"]).decode()
        deltas = [{"type": "input_json_delta", "partial_json": p} for p in ["", *pieces(raw)]]
    yield _event("content_block_start", "start", index=index, content_block=empty)
    for delta in deltas:
        yield _event("content_block_delta", "delta", index=index, delta=delta)
    yield _event("content_block_stop", "start", index=index)


def _event(name: str, mark: str, **fields: Any) -> Event:
    data = orjson.dumps({"type": name, **fields})
    frame = b"event: %s\ndata: %s\n\n" % (name.encode(), data)
    return Event(frame, mark, 4 if mark == "delta" else 0)


def error(status: int, message: str, param: str | None, code: str | None) -> Json:
    kind = _ERROR_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def stream_error(message: str) -> bytes:
    return _event("error", "end", error={"type": "overloaded_error", "message": message}).frame


DIALECT: Final = Dialect(
    name="anthropic",
    path=PATH,
    read=read,
    reply=reply,
    events=events,
    error=error,
    stream_error=stream_error,
    usage=usage,
    ping=b'event: ping\ndata: {"type":"ping"}\n\n',
)
