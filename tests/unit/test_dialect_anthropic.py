"""The Anthropic dialect: streams, whole answers and errors."""

import json

import pytest

from schemas.errors import Code
from services.core.dialects import DIALECTS
from tests.parts.streams import (
    START_USAGE,
    anthropic_stream,
    block_delta,
    block_start,
    block_stop,
    compact,
    message_end,
    message_start,
    named,
    text_delta,
)

A = DIALECTS["anthropic"]
PARSED = A.parse_request(b'{"model":"m","max_tokens":9,"stream":true,"messages":[{}]}', {})


def scanned(*pieces):
    scan = A.scan(PARSED)
    for piece in pieces:
        scan.feed(piece)
    return scan


@pytest.mark.parametrize("count", [0, None, "55"])
def test_a_count_of_nothing_tells_only_of_an_answer_without_content(count):
    end = message_end(usage={"output_tokens": count})
    assert scanned(message_start(), end).output_told is (count == 0)
    assert not scanned(message_start(), text_delta("Hello"), end).output_told


def test_usage_is_cumulative_and_never_added():
    scan = scanned(message_start())
    start = {
        "input": 12,
        "cache_read": 4000,
        "cache_write_5m": 100,
        "cache_write_1h": 200,
        "output": 1,
    }
    assert scan.usage == start
    assert not scan.output_told
    scan.feed(message_end(usage={"output_tokens": 55}))
    assert scan.usage == start | {"output": 55}
    assert scan.output_told


@pytest.mark.parametrize(
    ("delta", "changed"),
    [
        ({"input_tokens": 0, "output_tokens": 9}, {"output": 9}),
        ({"input_tokens": 20, "output_tokens": 9}, {"input": 20, "output": 9}),
        ({"cache_read_input_tokens": 5, "output_tokens": 9}, {"cache_read": 5, "output": 9}),
        ({"output_tokens": 0}, {}),
        ({"output_tokens": 9, "cache_creation": None}, {"output": 9}),
        (
            {"output_tokens": 9, "cache_creation_input_tokens": 450},
            {"output": 9, "cache_write_5m": 250},
        ),
        (
            {"output_tokens": 9, "server_tool_use": {"web_search_requests": 2}},
            {"output": 9, "web_search": 2},
        ),
        (
            {"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}},
            {"output": 9, "reasoning": 4},
        ),
    ],
)
def test_the_last_value_that_is_not_zero_wins(delta, changed):
    scan = scanned(message_start(), message_end(usage=delta))
    assert (
        scan.usage
        == {
            "input": 12,
            "cache_read": 4000,
            "cache_write_5m": 100,
            "cache_write_1h": 200,
            "output": 1,
        }
        | changed
    )


def test_several_deltas_and_a_split_that_comes_late():
    start = {"input_tokens": 3, "cache_creation_input_tokens": 70, "cache_creation": None}
    late = {"cache_creation": {"ephemeral_1h_input_tokens": 70}, "output_tokens": 5}
    first = named("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 3})
    scan = scanned(message_start(start), first)
    assert scan.finish_reason == ""
    scan.feed(message_end("tool_use", late))
    assert scan.usage == {"input": 3, "cache_write_1h": 70, "output": 5}
    assert scan.finish_reason == "tool_use"


def test_no_usage_at_all():
    scan = scanned(message_start({}), message_end(usage={}))
    assert scan.usage is None
    assert scan.finished


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([block_start({"type": "text", "text": ""})], False),
        ([block_start({"type": "text", "text": "Hi"})], True),
        ([block_start({"type": "text", "text": ""}), text_delta("")], False),
        ([block_start({"type": "text", "text": ""}), text_delta("x")], True),
        ([block_start({"type": "thinking", "thinking": "", "signature": ""})], False),
        ([block_delta({"type": "thinking_delta", "thinking": "hm"})], True),
        ([block_delta({"type": "signature_delta", "signature": "abc"})], True),
        ([block_start({"type": "redacted_thinking", "data": "x"})], True),
        ([block_start({"type": "tool_use", "id": "t", "name": "n", "input": {}})], True),
        ([block_start({"type": "web_search_tool_result", "content": []})], True),
        ([block_start({"type": ["odd"]})], True),
        ([block_stop(), named("ping")], False),
        ([message_end("refusal")], True),
        ([message_end("end_turn")], False),
    ],
)
def test_first_content(pieces, expected):
    assert scanned(message_start(), *pieces).has_content is expected


def test_output_bytes_are_the_strings_alone():
    scan = scanned(
        message_start(),
        text_delta("abc"),
        block_delta({"type": "thinking_delta", "thinking": "de"}),
        block_delta({"type": "input_json_delta", "partial_json": '{"a":'}),
        b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
        b'"delta": {"type": "text_delta", "text": "fgh"}          }\n\n',
    )
    assert scan.output_bytes == 3 + 2 + len('{\\"a\\":') + 3


def test_long_streams_are_measured_on_the_way():
    scan = scanned(message_start(), *[text_delta("x" * 1000) for _ in range(500)])
    assert scan.output_bytes == 500_000
    assert scan.output_bytes == 500_000


def test_words_inside_texts_do_not_count():
    said = '"message_stop" {"type":"message_stop"} "error" "usage":{"output_tokens":9}'
    call = block_start({"type": "tool_use", "id": "t", "name": "n", "input": {"error": {"a": 1}}})
    odd = block_delta({"type": "input_json_delta", "partial_json": compact({"error": 1}).decode()})
    scan = scanned(message_start(), text_delta(said), call, odd)
    assert not scan.finished
    assert scan.error is None
    assert scan.usage["output"] == 1


def test_an_error_event():
    scan = scanned(message_start(), text_delta("Hel"))
    scan.feed(named("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    assert scan.error == ("overloaded_error", "Overloaded")
    assert not scan.finished
    assert scanned(named("error")).error == ("error", "no message")
    assert scanned(named("error", error="plain words")).error == ("error", "plain words")


def test_data_only_frames_are_understood():
    stream = anthropic_stream(["x"]).split(b"\n")
    bare = b"\n".join(line for line in stream if not line.startswith(b"event:"))
    scan = scanned(bare)
    assert scan.finished
    assert scan.usage["output"] == 40


def test_the_ping_is_the_vendors():
    scan = scanned(message_start())
    assert scan.ping() == b'event: ping\ndata: {"type": "ping"}\n\n'
    scan.feed(b"event: content_block")
    assert scan.ping() == b""


def test_error_frames():
    scan = scanned(message_start())
    rendered = scan.render_error(Code.TIMEOUT, "too slow")
    data = json.loads(rendered.removeprefix(b"event: error\ndata: ").removesuffix(b"\n\n"))
    assert data == {"type": "error", "error": {"type": "api_error", "message": "too slow"}}
    half = b'event: content_block_delta\ndata: {"type":"content_bl'
    scan.feed(half)
    assert scan.render_error(Code.TIMEOUT, "x").startswith(b"\nevent: ping\n\nevent: error\n")


# -- whole answers


def answer(**fields):
    return compact(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [{"type": "text", "text": "Hi é"}],
            "stop_reason": "end_turn",
            "usage": START_USAGE | {"output_tokens": 9},
        }
        | fields
    )


def test_a_whole_answer():
    facts = A.parse_response(answer())
    assert facts.usage["output"] == 9
    assert facts.usage["cache_write_1h"] == 200
    assert (facts.finished, facts.finish_reason) == (True, "end_turn")
    assert facts.has_content
    assert facts.output_bytes == 5
    assert facts.error is None
    assert facts.model == "claude-x"
    assert facts.output_told


@pytest.mark.parametrize("odd", [rb"\ud83d", rb"\ude00 \\ud83d", b"\xff\xfe"])
def test_texts_that_are_no_unicode(odd):
    facts = A.parse_response(answer().replace(b"Hi", odd))
    assert facts.error is None
    assert facts.has_content
    assert facts.output_bytes
    facts.finish_reason.encode()
    failed = b'{"type":"error","error":{"type":"x","message":"' + odd + b'"}}'
    assert A.parse_response(failed).error[1].encode()


@pytest.mark.parametrize(
    ("fields", "content", "finished"),
    [
        ({"content": []}, False, True),
        ({"content": [{"type": "text", "text": ""}]}, False, True),
        ({"content": [{"type": "tool_use", "input": {"a": 1}}]}, True, True),
        ({"content": [{"type": "thinking", "thinking": "hm"}]}, True, True),
        ({"content": [], "stop_reason": "refusal"}, True, True),
        ({"stop_reason": None}, True, False),
        ({"content": None}, False, True),
    ],
)
def test_content_and_end(fields, content, finished):
    facts = A.parse_response(answer(**fields))
    assert (facts.has_content, facts.finished) == (content, finished)


def test_usage_may_be_missing():
    facts = A.parse_response(answer(usage=None))
    assert facts.usage is None
    assert not facts.output_told


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}',
            ("overloaded_error", "busy"),
        ),
        (b'{"error":{"message":"no","code":"bad"}}', ("bad", "no")),
        (b'{"error":"plain"}', ("error", "plain")),
        (b'{"type":"error"}', ("api_error", "the answer is no message")),
        (b"<html>", ("api_error", "the answer is no message")),
        (b"[]", ("api_error", "the answer is no message")),
        (b"", ("api_error", "the answer is no message")),
        (b"\xff\xfe", ("api_error", "the answer is no message")),
        (b"[" * 100_000, ("api_error", "the answer is no message")),
    ],
)
def test_a_body_that_is_no_answer(body, error):
    facts = A.parse_response(body)
    assert facts.error == error
    assert not facts.finished


# -- error bodies


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (Code.INVALID_PARAM, None, "invalid_request_error"),
        (Code.INVALID_API_KEY, None, "authentication_error"),
        (Code.INSUFFICIENT_BALANCE, None, "permission_error"),
        (Code.MODEL_NOT_FOUND, None, "not_found_error"),
        (Code.REQUEST_TOO_LARGE, None, "request_too_large"),
        (Code.RATE_LIMIT_EXCEEDED, None, "rate_limit_error"),
        (Code.NO_CAPACITY, None, "api_error"),
        (Code.UPSTREAM_ERROR, None, "api_error"),
        (Code.UPSTREAM_ERROR, 429, "rate_limit_error"),
        (Code.UPSTREAM_ERROR, 529, "overloaded_error"),
        (Code.UPSTREAM_ERROR, 500, "api_error"),
        (Code.INSUFFICIENT_BALANCE, 400, "permission_error"),
    ],
)
def test_error_bodies(code, status, kind):
    body = A.render_error(code, "why", request_id="r-1", status=status)
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": kind, "message": "why"},
        "request_id": "r-1",
    }


def test_extra_fields_of_an_error():
    body = A.render_error(Code.TIMEOUT, "why", request_id="r", extra={"type": "timeout_error"})
    assert json.loads(body)["error"] == {"type": "timeout_error", "message": "why"}
