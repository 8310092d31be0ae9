"""OpenAI Chat Completions: requests read, answers written as JSON and as chunks."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from services.sim.answer import pieces
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

PATH: Final = "/v1/chat/completions"
CREATED: Final = 1_760_000_000  # fixed: an answer is a function of its request
_FINISH: Final = {"stop": "stop", "length": "length", "tool": "tool_calls"}
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")


def read(body: Json, headers: Mapping[str, str]) -> Prompt:
    """Raises BadRequest with the vendor's wording."""
    messages = required(body, "messages", list)
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise BadRequest(f"Invalid value: 'messages[{i}].role'.", f"messages[{i}].role")
    limit = positive(body, "max_completion_tokens") or positive(body, "max_tokens")
    response_format = (body.get("response_format") or {}).get("json_schema") or {}
    text = next(
        (last_text(m.get("content")) for m in reversed(messages) if m["role"] == "user"), ""
    )
    return Prompt(
        model=required(body, "model", str),
        stream=bool(body.get("stream")),
        text=text,
        tool_results=_tool_results(messages),
        tools=_tools(body.get("tools") or []),
        thinks=body.get("reasoning_effort") not in (None, "none"),
        schema=response_format.get("schema"),
        max_output=limit,
        input=_input(body, messages),
        session=str(body.get("prompt_cache_key") or body.get("user") or ""),
        choices=positive(body, "n") or 1,
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        tier=served_in(body, text),
    )


def _tools(offered: list[Any]) -> dict[str, Tool]:
    tools = {}
    for tool in offered:
        kind = str(tool.get("type", "function"))
        name = (tool.get(kind) or {}).get("name")
        if name:
            tools[name] = Tool(name, kind)
    return tools


def _tool_results(messages: list[Any]) -> tuple[str, ...]:
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] in ("tool", "function"):
            results.append(text_of(message.get("content")) or "(nothing)")
        elif message["role"] in ("user", "assistant"):
            break
    return tuple(reversed(results))


def _input(body: Json, messages: list[Any]) -> InputTokens:
    """A prompt is cached up to its last assistant turn, automatically."""
    size = weigh(body.get("tools") or [])
    cached = 0
    for message in messages:
        if message["role"] == "assistant":
            cached = size
        size += weigh(message.get("content") or "") + weigh(message.get("tool_calls") or []) + 4
    return InputTokens(uncached=tokens(size) - tokens(cached), cache_read=tokens(cached))


def usage(prompt: Prompt, answer: Answer) -> Json:
    return {
        "prompt_tokens": prompt.input.total,
        "completion_tokens": answer.output,
        "total_tokens": prompt.input.total + answer.output,
        "prompt_tokens_details": {"cached_tokens": prompt.input.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": answer.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tool_call(call: Any) -> Json:
    if call.tool.kind == "custom":
        called = {"custom": {"name": call.tool.name, "input": call.arguments}}
    else:
        called = {"function": {"name": call.tool.name, "arguments": call.arguments}}
    return {"id": "call_" + call.id, "type": call.tool.kind, **called}


def reply(prompt: Prompt, answer: Answer, with_usage: bool) -> Json:
    message: Json = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [_tool_call(call) for call in answer.calls]
    finish = _FINISH[answer.finish]
    body: Json = {
        "id": "chatcmpl-" + answer.id,
        "object": "chat.completion",
        "created": CREATED,
        "model": prompt.model,
        "choices": [
            {"index": i, "message": message, "logprobs": None, "finish_reason": finish}
            for i in range(prompt.choices)
        ],
        "service_tier": prompt.tier or "default",
    }
    if with_usage:
        body["usage"] = usage(prompt, answer)
    return body


def events(prompt: Prompt, answer: Answer, with_usage: bool) -> list[Event]:
    head: Json = {
        "id": "chatcmpl-" + answer.id,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": prompt.model,
        "service_tier": prompt.tier or "default",
    }
    tail: Json = {"usage": None} if prompt.include_usage and with_usage else {}

    def chunk(mark: str, index: int, delta: Json, finish: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        frame = _frame({**head, "choices": [choice], **tail})
        return Event(frame, mark, 4 if mark == "delta" else 0)

    out = []
    for i in range(prompt.choices):
        out.append(chunk("start", i, {"role": "assistant", "content": "", "refusal": None}))
        out += [chunk("delta", i, {"content": piece}) for piece in pieces(answer.text)]
        for n, call in enumerate(answer.calls):
            out += [chunk("delta", i, delta) for delta in _call_deltas(n, call)]
        out.append(chunk("finish", i, {}, _FINISH[answer.finish]))
    if tail:
        out.append(Event(_frame({**head, "choices": [], "usage": usage(prompt, answer)}), "end"))
    out.append(Event(b"data: [DONE]\n\n", "end"))
    return out


def _call_deltas(index: int, call: Any) -> list[Json]:
    whole = _tool_call(call)
    kind = call.tool.kind
    field = "input" if kind == "custom" else "arguments"
    whole[kind] = {**whole[kind], field: ""}
    deltas: list[Json] = [{"tool_calls": [{"index": index, **whole}]}]
    for piece in pieces(call.arguments):
        deltas.append({"tool_calls": [{"index": index, kind: {field: piece}}]})
    return deltas


def _frame(chunk: Json) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(chunk)


def error(status: int, message: str, param: str | None, code: str | None) -> Json:
    """The OpenAI error body; also the one of the Responses dialect."""
    kinds = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_error"}
    codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = {"message": message, "type": kind, "param": param, "code": code or codes.get(status)}
    return {"error": told}


def stream_error(message: str) -> bytes:
    return _frame({"error": {"message": message, "type": "server_error", "code": None}})


DIALECT: Final = Dialect(
    name="chat",
    path=PATH,
    read=read,
    reply=reply,
    events=events,
    error=error,
    stream_error=stream_error,
    usage=usage,
    ping=b": PROCESSING\n\n",
)
