"""Streams built by hand as the vendors send them, and ways to cut them into reads."""

import itertools
import json

from hypothesis import strategies as st


def compact(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def named(kind: str, **fields) -> bytes:
    """One event with an `event` line, as Anthropic and Responses streams have it."""
    return f"event: {kind}\n".encode() + b"data: " + compact({"type": kind, **fields}) + b"\n\n"


def unnamed(value) -> bytes:
    return b"data: " + compact(value) + b"\n\n"


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """The stream in the pieces between the given offsets."""
    edges = [0, *sorted({place for place in at if 0 < place < len(stream)}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def cuts(stream: bytes):
    """Any way to cut this stream: a few places, or every byte alone."""
    places = st.lists(st.integers(1, max(len(stream) - 1, 1)), max_size=30)
    return (places | st.just(list(range(1, len(stream))))).map(lambda at: cut(stream, at))


# -- Anthropic

START_USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 4000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    "output_tokens": 1,
    "service_tier": "standard",
}


def message_start(usage=START_USAGE) -> bytes:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    return named("message_start", message=message)


def block_start(block, index=0) -> bytes:
    return named("content_block_start", index=index, content_block=block)


def block_delta(delta, index=0) -> bytes:
    return named("content_block_delta", index=index, delta=delta)


def text_delta(text, index=0) -> bytes:
    return block_delta({"type": "text_delta", "text": text}, index)


def block_stop(index=0) -> bytes:
    return named("content_block_stop", index=index)


def message_end(reason="end_turn", usage=None) -> bytes:
    delta = named(
        "message_delta",
        delta={"stop_reason": reason, "stop_sequence": None},
        usage={"output_tokens": 40} if usage is None else usage,
    )
    return delta + named("message_stop")


def anthropic_stream(texts=("Hello", " there"), usage=None) -> bytes:
    deltas = b"".join(text_delta(text) for text in texts)
    return (
        message_start()
        + block_start({"type": "text", "text": ""})
        + named("ping")
        + deltas
        + block_stop()
        + message_end(usage=usage)
    )


# -- Chat

CHAT_USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 40,
    "total_tokens": 1040,
    "prompt_tokens_details": {"cached_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 8},
}
CHAT_DONE = b"data: [DONE]\n\n"


def chat_chunk(delta=None, reason=None, **fields) -> bytes:
    choices = [{"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": reason}]
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5",
        "choices": choices,
        "usage": None,
    }
    return unnamed(chunk | fields)


def usage_chunk(usage=CHAT_USAGE) -> bytes:
    return chat_chunk(choices=[], usage=usage)


def chat_stream(texts=("Hello", " there"), extra=True) -> bytes:
    return (
        chat_chunk({"role": "assistant", "content": ""})
        + b"".join(chat_chunk({"content": text}) for text in texts)
        + chat_chunk(reason="stop")
        + (usage_chunk() if extra else b"")
        + CHAT_DONE
    )


# -- Responses

RESPONSES_USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 0},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 8},
    "total_tokens": 1040,
}


def response(status="in_progress", **fields):
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "model": "gpt-5",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "function", "name": "shell", "parameters": {}, "strict": False}],
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": None,
    } | fields


def message_item(text, status="completed"):
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part] if text else [],
    }


def numbered(bodies) -> bytes:
    """Events of (type, fields) with their sequence numbers."""
    return b"".join(
        named(kind, sequence_number=number, **fields)
        for number, (kind, fields) in enumerate(bodies)
    )


def responses_stream(texts=("Hello", " there"), last=None) -> bytes:
    whole = "".join(texts)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    done = {"response": response("completed", output=[message_item(whole)], usage=RESPONSES_USAGE)}
    return numbered(
        [
            ("response.created", {"response": response()}),
            ("response.in_progress", {"response": response()}),
            (
                "response.output_item.added",
                {"output_index": 0, "item": message_item("", "in_progress")},
            ),
            (
                "response.content_part.added",
                place | {"part": {"type": "output_text", "text": "", "annotations": []}},
            ),
            *(
                ("response.output_text.delta", place | {"delta": text, "logprobs": []})
                for text in texts
            ),
            ("response.output_text.done", place | {"text": whole, "logprobs": []}),
            ("response.output_item.done", {"output_index": 0, "item": message_item(whole)}),
            last or ("response.completed", done),
        ]
    )
