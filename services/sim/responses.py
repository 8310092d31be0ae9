"""OpenAI Responses: requests read, answers written as JSON and as the whole event grammar."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from services.sim.answer import is_forged, pieces
from services.sim.chat import CREATED, error
from services.sim.prompt import (
    Answer,
    BadRequest,
    Dialect,
    Event,
    InputTokens,
    Json,
    Prompt,
    Tool,
    ToolCall,
    last_text,
    positive,
    required,
    served_in,
    text_of,
    tokens,
    weigh,
)

PATH: Final = "/v1/responses"
_OUTPUTS: Final = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_ECHOED: Final = ("parallel_tool_calls", "tool_choice", "tools", "store", "temperature", "top_p")


def read(body: Json, headers: Mapping[str, str]) -> Prompt:
    """Raises BadRequest with the vendor's wording."""
    asked = body.get("input")
    if not asked or not isinstance(asked, str | list):
        raise BadRequest(
            "Missing required parameter: 'input'.", "input", "missing_required_parameter"
        )
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    _check(items)
    reasoning = body.get("reasoning") or {}
    text_format = (body.get("text") or {}).get("format") or {}
    text = next((last_text(i.get("content")) for i in reversed(items) if _is_user(i)), "")
    return Prompt(
        model=required(body, "model", str),
        stream=bool(body.get("stream")),
        text=text,
        tool_results=_tool_results(items),
        tools=_tools(_offered(body, items)),
        thinks=bool(reasoning) and reasoning.get("effort") != "none",
        shows_thinking="reasoning.encrypted_content" in (body.get("include") or []),
        schema=text_format.get("schema"),
        max_output=positive(body, "max_output_tokens"),
        input=_input(body, items),
        session=str(body.get("prompt_cache_key") or headers.get("session-id") or ""),
        asked={name: body[name] for name in _ECHOED if name in body},
        tier=served_in(body, text),
    )


def _is_user(item: Json) -> bool:
    return item.get("role") == "user" and item.get("type", "message") == "message"


def _check(items: list[Any]) -> None:
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRequest(f"Invalid type for 'input[{i}]'.", f"input[{i}]", "invalid_type")
        if item.get("type") == "reasoning":
            thinking = text_of(item.get("summary"))
            if is_forged(thinking, str(item.get("encrypted_content") or "")):
                raise BadRequest("The encrypted content could not be verified.", f"input[{i}]")


def _offered(body: Json, items: list[Any]) -> list[Any]:
    """Tools of the request and those that newer clients hide in an input item."""
    offered = list(body.get("tools") or [])
    for item in items:
        if item.get("type") == "additional_tools":
            offered += item.get("tools") or []
    return offered


def _tools(offered: list[Any], namespace: str = "") -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    for tool in offered:
        kind, name = str(tool.get("type")), str(tool.get("name", ""))
        if kind == "namespace":
            tools.update(_tools(tool.get("tools") or [], name))
        elif kind == "local_shell":
            tools["local_shell"] = Tool("local_shell", kind)
        elif kind in ("function", "custom") and name:
            tools[name] = Tool(name, kind, namespace)
    return tools


def _tool_results(items: list[Any]) -> tuple[str, ...]:
    """The outputs after the last user message or call of the model; the client's own notes
    between them do not end the row."""
    results: list[str] = []
    for item in reversed(items):
        if item.get("type") in _OUTPUTS:
            results.append(text_of(item.get("output")) or "(nothing)")
        elif (
            _is_user(item)
            or item.get("role") == "assistant"
            or str(item.get("type")).endswith("_call")
        ):
            break
    return tuple(reversed(results))


def _input(body: Json, items: list[Any]) -> InputTokens:
    """A prompt is cached up to the model's last turn, automatically."""
    size = weigh(body.get("tools") or []) + weigh(body.get("instructions") or "")
    cached = 0
    was_model = False
    for item in items:
        is_model = item.get("role") == "assistant" or str(item.get("type")).endswith("_call")
        is_model = is_model or item.get("type") == "reasoning"
        if is_model and not was_model:
            cached = size
        was_model = is_model
        size += sum(
            weigh(item[k])
            for k in ("content", "output", "arguments", "input", "tools")
            if item.get(k)
        )
        size += 4
    return InputTokens(uncached=tokens(size) - tokens(cached), cache_read=tokens(cached))


def usage(prompt: Prompt, answer: Answer) -> Json:
    return {
        "input_tokens": prompt.input.total,
        "input_tokens_details": {"cached_tokens": prompt.input.cache_read, "cache_write_tokens": 0},
        "output_tokens": answer.output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning},
        "total_tokens": prompt.input.total + answer.output,
    }


def _items(prompt: Prompt, answer: Answer) -> list[Json]:
    items = [_search_item(f"ws_{answer.id}{number}") for number in range(answer.searches)]
    if answer.thinking:
        summary = [{"type": "summary_text", "text": answer.thinking}]
        item: Json = {"id": "rs_" + answer.id, "type": "reasoning", "summary": summary}
        items.append({**item, "encrypted_content": answer.seal} if prompt.shows_thinking else item)
    if answer.text:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        item = {"id": "msg_" + answer.id, "type": "message", "role": "assistant"}
        items.append({**item, "status": "completed", "content": [part]})
    return items + [_call_item(call) for call in answer.calls]


def _search_item(item_id: str) -> Json:
    action = {"type": "search", "query": "tolls", "sources": []}
    return {"id": item_id, "type": "web_search_call", "status": "completed", "action": action}


def _call_item(call: ToolCall) -> Json:
    tool, call_id = call.tool, "call_" + call.id
    if tool.kind == "local_shell":
        action = {"type": "exec", "env": {}, **orjson.loads(call.arguments)}
        item: Json = {"id": "lsh_" + call.id, "type": "local_shell_call", "call_id": call_id}
        return {**item, "status": "completed", "action": action}
    if tool.kind == "custom":
        item = {"id": "ctc_" + call.id, "type": "custom_tool_call", "status": "completed"}
        item.update(call_id=call_id, name=tool.name, input=call.arguments)
    else:
        item = {"id": "fc_" + call.id, "type": "function_call", "status": "completed"}
        item.update(call_id=call_id, name=tool.name, arguments=call.arguments)
    return {**item, "namespace": tool.namespace} if tool.namespace else item


def _response(prompt: Prompt, answer: Answer, status: str, output: list[Json]) -> Json:
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": "resp_" + answer.id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": cut,
        "instructions": None,
        "max_output_tokens": prompt.max_output,
        "model": prompt.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
        "metadata": {},
        **prompt.asked,
        "service_tier": prompt.tier or "default",
    }


def reply(prompt: Prompt, answer: Answer, with_usage: bool) -> Json:
    status = "incomplete" if answer.finish == "length" else "completed"
    body = _response(prompt, answer, status, _items(prompt, answer))
    if with_usage:
        body["usage"] = usage(prompt, answer)
    return body


class _Script:
    """Collects events and gives each its `sequence_number`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, name: str, mark: str = "start", **fields: Any) -> None:
        data = orjson.dumps({"type": name, "sequence_number": len(self.events), **fields})
        frame = b"event: %s\ndata: %s\n\n" % (name.encode(), data)
        self.events.append(Event(frame, mark, 4 if mark == "delta" else 0))


def events(prompt: Prompt, answer: Answer, with_usage: bool) -> list[Event]:
    script = _Script()
    opening = _response(prompt, answer, "in_progress", [])
    script.add("response.created", response=opening)
    script.add("response.in_progress", response=opening)
    for index, item in enumerate(_items(prompt, answer)):
        kinds = {"message": _message_events, "reasoning": _reasoning_events}
        kinds.get(item["type"], _call_events)(script, index, item)
    whole = reply(prompt, answer, with_usage)
    script.add("response." + whole["status"], "end", response=whole)
    return script.events


def _message_events(script: _Script, index: int, item: Json) -> None:
    at = {"item_id": item["id"], "output_index": index, "content_index": 0}
    part = item["content"][0]
    opened = {**item, "status": "in_progress", "content": []}
    script.add("response.output_item.added", output_index=index, item=opened)
    script.add("response.content_part.added", **at, part={**part, "text": ""})
    for piece in pieces(part["text"]):
        script.add("response.output_text.delta", "delta", **at, delta=piece, logprobs=[])
    script.add("response.output_text.done", **at, text=part["text"], logprobs=[])
    script.add("response.content_part.done", **at, part=part)
    script.add("response.output_item.done", "finish", output_index=index, item=item)


def _reasoning_events(script: _Script, index: int, item: Json) -> None:
    at = {"item_id": item["id"], "output_index": index, "summary_index": 0}
    part = item["summary"][0]
    script.add("response.output_item.added", output_index=index, item={**item, "summary": []})
    script.add("response.reasoning_summary_part.added", **at, part={**part, "text": ""})
    for piece in pieces(part["text"]):
        script.add("response.reasoning_summary_text.delta", "delta", **at, delta=piece)
    script.add("response.reasoning_summary_text.done", **at, text=part["text"])
    script.add("response.reasoning_summary_part.done", **at, part=part)
    script.add("response.output_item.done", output_index=index, item=item)


def _call_events(script: _Script, index: int, item: Json) -> None:
    field, name = {
        "function_call": ("arguments", "function_call_arguments"),
        "custom_tool_call": ("input", "custom_tool_call_input"),
    }.get(item["type"], ("", ""))
    opened = {**item, "status": "in_progress", **({field: ""} if field else {})}
    script.add("response.output_item.added", output_index=index, item=opened)
    if field:
        at = {"item_id": item["id"], "output_index": index}
        for piece in pieces(item[field]):
            script.add(f"response.{name}.delta", "delta", **at, delta=piece)
        script.add(f"response.{name}.done", **at, **{field: item[field]})
    script.add("response.output_item.done", "finish", output_index=index, item=item)


def stream_error(message: str) -> bytes:
    told = {"code": "server_error", "message": message, "param": None, "sequence_number": 99}
    return b"event: error\ndata: %s\n\n" % orjson.dumps({"type": "error", **told})


DIALECT: Final = Dialect(
    name="responses",
    path=PATH,
    read=read,
    reply=reply,
    events=events,
    error=error,
    stream_error=stream_error,
    usage=usage,
    ping=b": ping\n\n",
)
