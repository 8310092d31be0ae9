"""What the canned upstream answers and what the load generator asks.

An answer is one file of nginx; a stream is written by it in one piece, so the figures for streams
are those of parsing and relaying events, not of waiting for them.
"""

import json
from typing import NamedTuple

DIALECT_PATHS = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions"}
ANSWERS = ("json", "sse20", "sse200")
MODELS = {  # one model per kind of answer, so that a gateway can route by model alone
    ("anthropic", "json"): "claude-sonnet-4-5",
    ("anthropic", "sse20"): "claude-haiku-4-5",
    ("anthropic", "sse200"): "claude-opus-4-5",
    ("anthropic", "slow"): "claude-sonnet-4-6",  # written by the upstream of tests.bench.streams
    ("chat", "json"): "gpt-4o",
    ("chat", "sse20"): "gpt-4o-mini",
    ("chat", "sse200"): "gpt-5-mini",
}
LARGE_BODY_BYTES = 76 * 1024
OUTPUT_TOKENS = 80
MAX_TOKENS = 1024


class Case(NamedTuple):
    """One kind of load: `answer` of ANSWERS, `body` small | large, client `connections`."""

    dialect: str
    answer: str
    body: str
    connections: int

    @property
    def name(self) -> str:
        return f"{self.dialect} {self.answer} {self.body} c={self.connections}"

    @property
    def prefix(self) -> str:
        """The path below which the upstream gives this answer."""
        return f"/{self.dialect}-{self.answer}"

    @property
    def path(self) -> str:
        return DIALECT_PATHS[self.dialect]

    @property
    def model(self) -> str:
        return MODELS[self.dialect, self.answer]


CASES = [
    Case("anthropic", "json", "small", 1),
    Case("anthropic", "json", "small", 32),
    Case("anthropic", "json", "large", 1),
    Case("anthropic", "json", "large", 32),
    Case("anthropic", "sse20", "small", 1),
    Case("anthropic", "sse20", "small", 32),
    Case("anthropic", "sse200", "small", 32),
    Case("chat", "json", "small", 1),
    Case("chat", "json", "small", 32),
    Case("chat", "sse20", "small", 32),
]
QUICK_CASES = [CASES[0], CASES[1], CASES[5]]


def request_body(case: Case) -> bytes:
    """About 0.5 KB, or 76 KB shaped like a coding agent's: instructions, tools, a short ask."""
    system = "You are a careful assistant for a software team. Answer in one paragraph."
    tools = []
    if case.body == "large":
        system = (system + " ") * 300
        tools = [_tool(number) for number in range(40)]
    asked = "Why does a reader of a log keep its position in the store it writes to? " * 4
    body: dict = {"model": case.model, "max_tokens": MAX_TOKENS, "stream": case.answer != "json"}
    if case.dialect == "anthropic":
        body["system"] = [{"type": "text", "text": system}]
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
        if tools:
            body["tools"] = tools
    else:
        body["messages"] = [
            {"role": "system", "content": system},
            {"role": "user", "content": asked},
        ]
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        if tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool["name"],
                        "description": tool["description"],
                        "parameters": tool["input_schema"],
                    },
                }
                for tool in tools
            ]
    data = json.dumps(body).encode()
    if case.body == "large":
        missing = LARGE_BODY_BYTES - len(data)
        assert missing > 0, f"the large body is {-missing} bytes too long"
        body["metadata" if case.dialect == "anthropic" else "user"] = (
            {"user_id": "u" * (missing - 31)} if case.dialect == "anthropic" else "u" * missing
        )
        data = json.dumps(body).encode()
    return data


def _tool(number: int) -> dict:
    described = "Reads a part of a file of the workspace and returns its lines with numbers. " * 8
    text = {"type": "string", "description": "An absolute path inside the workspace."}
    whole = {"type": "integer", "description": "The first line to return, from 1."}
    schema = {
        "type": "object",
        "properties": {"path": text, "first": whole, "count": whole},
        "required": ["path"],
    }
    return {"name": f"read_file_{number}", "description": described, "input_schema": schema}


def answer(dialect: str, kind: str) -> bytes:
    """The bytes of the canned answer."""
    model = MODELS[dialect, kind]
    if dialect == "anthropic":
        return _anthropic_json(model) if kind == "json" else _anthropic_stream(model, int(kind[3:]))
    return _chat_json(model) if kind == "json" else _chat_stream(model, int(kind[3:]))


def _compact(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _anthropic_message(model: str, content: list, stop: str | None, output: int) -> dict:
    return {
        "id": "msg_01Bench",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 120,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output,
        },
    }


def _anthropic_json(model: str) -> bytes:
    text = "A position kept beside the data it covers cannot disagree with it. " * 5
    content = [{"type": "text", "text": text.strip()}]
    return _compact(_anthropic_message(model, content, "end_turn", OUTPUT_TOKENS))


def _anthropic_stream(model: str, count: int) -> bytes:
    start = _anthropic_message(model, [], None, 1)
    block = {"type": "text", "text": ""}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
    ]
    for number in range(count - 5):
        delta = {"type": "text_delta", "text": f"word {number} "}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": OUTPUT_TOKENS},
        },
        {"type": "message_stop"},
    ]
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), _compact(event))
        for event in events
    )


_CHAT_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": 120 + OUTPUT_TOKENS,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def _chat_json(model: str) -> bytes:
    text = "A position kept beside the data it covers cannot disagree with it. " * 3
    message = {"role": "assistant", "content": text.strip(), "refusal": None}
    return _compact(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_780_000_000,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _CHAT_USAGE,
        }
    )


def _chat_stream(model: str, count: int) -> bytes:
    def chunk(choices: list, usage: dict | None = None) -> bytes:
        return b"data: %b\n\n" % _compact(
            {
                "id": "chatcmpl-bench",
                "object": "chat.completion.chunk",
                "created": 1_780_000_000,
                "model": model,
                "choices": choices,
                "usage": usage,
            }
        )

    def choice(delta: dict, finish: str | None = None) -> list:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    chunks = [chunk(choice({"role": "assistant", "content": ""}))]
    chunks += [chunk(choice({"content": f"word {number} "})) for number in range(count - 4)]
    chunks += [chunk(choice({}, "stop")), chunk([], _CHAT_USAGE), b"data: [DONE]\n\n"]
    return b"".join(chunks)
