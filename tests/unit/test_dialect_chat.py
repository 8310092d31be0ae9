"""The Chat dialect: streams, the usage chunk, whole answers and errors."""

import json

import pytest

from schemas.errors import Code
from services.core.dialects import DIALECTS
from tests.parts.streams import (
    CHAT_DONE,
    CHAT_USAGE,
    chat_chunk,
    chat_stream,
    compact,
    unnamed,
    usage_chunk,
)

C = DIALECTS["chat"]
PLAIN = C.parse_request(b'{"model":"m","stream":true,"messages":[{}]}', {})
ASKED = C.parse_request(
    b'{"model":"m","stream":true,"messages":[{}],"stream_options":{"include_usage":true}}', {}
)
USAGE = {"input": 400, "cache_read": 600, "output": 40, "reasoning": 8}


def scanned(*pieces, parsed=ASKED):
    scan = C.scan(parsed)
    for piece in pieces:
        scan.feed(piece)
    return scan


def relayed(stream, parsed, size=10_000):
    scan = C.scan(parsed)
    out = [scan.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    return b"".join(out) + scan.close(), scan


def test_the_extra_chunk_is_removed_and_nothing_else():
    stream = chat_stream()
    for size in (1, 7, 100, 10_000):
        out, scan = relayed(stream, PLAIN, size)
        assert out == chat_stream(extra=False)
        assert scan.usage == USAGE
        assert scan.finished


def test_who_asked_keeps_the_extra_chunk():
    out, scan = relayed(chat_stream(), ASKED)
    assert out == chat_stream()
    assert scan.usage == USAGE


def test_reads_without_the_extra_chunk_are_the_same_object():
    scan = C.scan(PLAIN)
    read = chat_chunk({"content": "a"}) + chat_chunk({"content": "b"})
    assert scan.feed(read) is read


def test_other_chunks_without_choices_or_with_usage_stay():
    filters = chat_chunk(choices=[], prompt_filter_results=[{"prompt_index": 0}])
    final = chat_chunk(reason="stop", usage=CHAT_USAGE)
    stream = filters + chat_chunk({"content": "x"}) + final + CHAT_DONE
    out, scan = relayed(stream, PLAIN)
    assert out == stream
    assert scan.usage == USAGE


def test_usage_in_every_chunk_is_cumulative():
    def told(count):
        return {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}

    chunks = [chat_chunk({"content": "x"}, usage=told(count)) for count in range(1, 6)]
    scan = scanned(*chunks)
    assert scan.usage == {"input": 10, "output": 5}
    assert scan.finish_reason == ""


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter"])
def test_finish_reasons(reason):
    scan = scanned(chat_chunk({"content": "x"}), chat_chunk(reason=reason))
    assert scan.finish_reason == reason
    assert not scan.finished
    assert not scan.complete_at_eof


def test_an_end_without_done_is_whole_with_reason_and_usage():
    parts = [chat_chunk({"content": "x"}), chat_chunk(reason="stop"), usage_chunk()]
    assert scanned(*parts).complete_at_eof
    assert not scanned(parts[0], parts[2]).complete_at_eof
    assert not scanned(*parts).finished
    assert scanned(*parts, b"data: [DONE]\n\n").finished
    assert scanned(*parts, b"data:[DONE]\n\n").finished


def test_plain_chunks_are_told_from_those_that_matter():
    """A read may hold many chunks: whatever they are, in any spelling, none is overlooked."""
    plain = chat_chunk({"content": "x"})
    spaced = plain.replace(b'"finish_reason":null', b'"finish_reason": null')
    absent = plain.replace(b'"finish_reason":null,', b"")
    ends = [
        chat_chunk(reason="stop"),
        chat_chunk(reason="stop").replace(b'"finish_reason":"', b'"finish_reason": "'),
    ]
    for kind in (plain, spaced, absent):
        for end in ends:
            for place in range(4):
                read = kind * place + end + kind * (3 - place)
                scan = scanned(kind, read)
                assert scan.finish_reason == "stop"
                assert scanned(kind, kind * 3 + usage_chunk()).usage == USAGE
                assert scanned(kind, kind * 3 + CHAT_DONE).finished
                failed = scanned(kind, kind * 3 + unnamed({"error": {"message": "no"}}))
                assert failed.error == ("error", "no")


def test_several_choices_in_one_chunk():
    two = C.parse_request(b'{"model":"m","stream":true,"n":2,"messages":[{}]}', {})
    choices = [{"index": i, "delta": {"content": "x"}, "finish_reason": None} for i in (0, 1)]
    both = chat_chunk(choices=choices)
    failed = unnamed({"error": {"type": "server_error", "message": "no"}})
    scan = scanned(both, both + failed, parsed=two)
    assert scan.error == ("server_error", "no")


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None, "refusal": None}, False),
        ({"content": "x"}, True),
        ({"refusal": "no"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
        ({"reasoning_details": [{"text": "hm"}]}, True),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "n"}}]}, True),
        ({"tool_calls": []}, False),
        ({"function_call": {"name": "n"}}, True),
        ({}, False),
    ],
)
def test_first_content(delta, expected):
    assert scanned(chat_chunk(delta)).has_content is expected


def test_output_bytes_are_the_strings_alone():
    call = {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}
    padded = chat_chunk({"content": "abc"}, obfuscation="x" * 50)
    scan = scanned(padded, chat_chunk({"reasoning_content": "de"}), chat_chunk(call))
    assert scan.output_bytes == 3 + 2 + len('{\\"a\\"')


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "server_error", "message": "no"}, ("server_error", "no")),
        ({"code": 502, "message": "no"}, ("error", "no")),
        ({"code": "bad_gateway"}, ("bad_gateway", "no message")),
        ("plain", ("error", "plain")),
    ],
)
def test_an_error_chunk(error, expected):
    for reason in (None, "error"):
        scan = scanned(chat_chunk({"content": "x"}), chat_chunk(reason=reason, error=error))
        assert scan.error == expected
    assert scan.render_error(Code.UPSTREAM_STREAM_ERROR, "x") == CHAT_DONE
    scan.feed(CHAT_DONE)
    assert scan.render_error(Code.UPSTREAM_STREAM_ERROR, "x") == b""


def test_error_frames():
    scan = scanned(chat_chunk({"content": "x"}))
    rendered = scan.render_error(Code.TIMEOUT, "too slow")
    assert rendered.endswith(b"\n\n" + CHAT_DONE)
    chunk = json.loads(rendered.removeprefix(b"data: ").removesuffix(b"\n\n" + CHAT_DONE))
    assert chunk == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5",
        "choices": [],
        "error": {"message": "too slow", "type": "api_error", "param": None, "code": "timeout"},
    }


def test_held_bytes_come_at_the_end_and_the_error_behind_them():
    stream = chat_chunk({"content": "x"})
    half = b'data: {"id":"chatcmpl-1","choi'
    scan = C.scan(PLAIN)
    assert scan.feed(stream + half) == stream
    assert scan.at_boundary
    assert scan.ping() == b": ping\n\n"
    assert scan.close() == half
    assert not scan.at_boundary
    assert scan.render_error(Code.TIMEOUT, "x").startswith(b"\n\ndata: {")


def test_an_unfinished_extra_chunk_is_removed_too():
    scan = C.scan(PLAIN)
    scan.feed(chat_chunk(reason="stop") + usage_chunk()[:-1])
    assert scan.close() == b""


def test_a_giant_event_flows_in_removal_mode_too():
    giant = chat_chunk({"content": "x" * (2 << 20)})
    stream = chat_chunk({"content": "a"}) + giant + chat_stream(["b"])
    for size in (4096, 1 << 20, 1 << 24):
        out, scan = relayed(stream, PLAIN, size)
        assert out == stream.replace(usage_chunk(), b"")
        assert scan.usage == USAGE
        assert scan.at_boundary


def test_the_ping_is_a_comment():
    scan = scanned(chat_chunk({"content": "x"}))
    assert scan.ping() == b": ping\n\n"
    scan.feed(b"data: ")
    assert scan.ping() == b""


# -- whole answers


def answer(**fields):
    return compact(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-5",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hi é", "refusal": None},
                    "finish_reason": "stop",
                }
            ],
            "usage": CHAT_USAGE,
        }
        | fields
    )


def test_a_whole_answer():
    facts = C.parse_response(answer())
    assert facts.usage == USAGE
    assert (facts.finished, facts.finish_reason) == (True, "stop")
    assert facts.has_content
    assert facts.output_bytes == 5
    assert facts.error is None
    assert facts.model == "gpt-5"


def choice(message, reason="stop"):
    return {"index": 0, "message": message, "finish_reason": reason}


@pytest.mark.parametrize(
    ("choices", "content", "finished"),
    [
        ([], False, False),
        ([choice({"content": ""})], False, True),
        ([choice({"content": None, "tool_calls": [{"function": {"name": "n"}}]})], True, True),
        ([choice({"content": None, "refusal": "no"})], True, True),
        ([choice({"content": "x"}, None)], True, False),
        ([choice({"content": "x"}), choice({"content": "y"}, None)], True, False),
        (["odd"], False, False),
    ],
)
def test_content_and_end(choices, content, finished):
    facts = C.parse_response(answer(choices=choices))
    assert (facts.has_content, facts.finished) == (content, finished)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"error":{"message":"no","type":"server_error","param":null,"code":null}}',
            ("server_error", "no"),
        ),
        (b'{"error":"plain"}', ("error", "plain")),
        (answer(error={"message": "no"}), ("error", "no")),
        (b'{"type":"error","message":"no"}', ("api_error", "the answer has no choices")),
        (b"<html>", ("api_error", "the answer has no choices")),
        (b"", ("api_error", "the answer has no choices")),
    ],
)
def test_a_body_that_is_no_answer(body, error):
    assert C.parse_response(body).error == error


def test_a_byte_order_mark_is_no_error():
    assert C.parse_response(b"\xef\xbb\xbf" + answer()).error is None


def test_a_null_error_is_none():
    assert C.parse_response(answer(error=None)).error is None


# -- error bodies (both OpenAI dialects)


@pytest.mark.parametrize("name", ["chat", "responses"])
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (Code.INVALID_PARAM, None, "invalid_request_error"),
        (Code.INVALID_API_KEY, None, "invalid_request_error"),
        (Code.INSUFFICIENT_BALANCE, None, "permission_error"),
        (Code.INSUFFICIENT_BALANCE, 400, "permission_error"),
        (Code.RATE_LIMIT_EXCEEDED, None, "rate_limit_exceeded"),
        (Code.NO_CAPACITY, None, "api_error"),
        (Code.UPSTREAM_ERROR, None, "api_error"),
        (Code.UPSTREAM_ERROR, 429, "rate_limit_exceeded"),
        (Code.UPSTREAM_ERROR, 400, "invalid_request_error"),
    ],
)
def test_error_bodies(name, code, status, kind):
    body = DIALECTS[name].render_error(
        code, "why", request_id="r-1", param="messages", status=status
    )
    expected = {"message": "why", "type": kind, "param": "messages", "code": code.value}
    assert json.loads(body) == {"error": expected}


def test_extra_fields_of_an_error():
    extra = {"type": "usage_limit_reached", "plan_type": "pro", "resets_at": 7}
    body = DIALECTS["responses"].render_error(
        Code.RATE_LIMIT_EXCEEDED, "why", request_id="r", extra=extra
    )
    expected = {"message": "why", "param": None, "code": "rate_limit_exceeded"} | extra
    assert json.loads(body) == {"error": expected}
