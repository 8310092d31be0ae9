"""The Responses dialect: streams, pings, failures and whole answers."""

import json

import pytest

from schemas.errors import Code
from services.core.dialects import DIALECTS
from services.core.framing import events, payload
from tests.parts.streams import (
    RESPONSES_USAGE,
    compact,
    message_item,
    named,
    response,
    responses_stream,
)

R = DIALECTS["responses"]
PARSED = R.parse_request(b'{"model":"m","stream":true,"input":"x"}', {})
SEARCHING = R.parse_request(
    b'{"model":"m","stream":true,"input":"x","tools":[{"type":"web_search"}]}', {}
)
USAGE = {"input": 400, "cache_read": 600, "output": 40, "reasoning": 8}
CREATED = named("response.created", sequence_number=0, response=response())
SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search"}}
OPENED = {"type": "web_search_call", "status": "completed", "action": {"type": "open_page"}}


def scanned(*pieces, parsed=PARSED):
    scan = R.scan(parsed)
    for piece in pieces:
        scan.feed(piece)
    return scan


def only_event(rendered):
    (event,) = events(rendered)
    data = json.loads(payload(event))
    assert event.startswith(b"event: " + data["type"].encode() + b"\n")
    return data


def test_completed():
    scan = scanned(responses_stream())
    assert scan.usage == USAGE
    assert (scan.finished, scan.finish_reason) == (True, "completed")
    assert scan.error is None


def test_incomplete_is_an_end_too():
    reason = {"reason": "max_output_tokens"}
    last = response("incomplete", incomplete_details=reason, usage=RESPONSES_USAGE)
    scan = scanned(responses_stream(last=("response.incomplete", {"response": last})))
    assert (scan.finished, scan.finish_reason) == (True, "max_output_tokens")
    assert scan.usage == USAGE
    assert scan.error is None


def test_failed_is_an_error_and_already_rendered():
    error = {"code": "server_error", "message": "no"}
    failed = response("failed", error=error)
    scan = scanned(responses_stream(last=("response.failed", {"response": failed})))
    assert not scan.finished
    assert scan.error == ("server_error", "no")
    assert scan.render_error(Code.UPSTREAM_STREAM_ERROR, "x") == b""


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"code": "server_error", "message": "no"}, ("server_error", "no"), "server_error"),
        (
            {"code": "rate_limit_exceeded", "message": "try again in 1.5s"},
            ("rate_limit_exceeded", "try again in 1.5s"),
            "rate_limit_exceeded",
        ),
        (
            {"error": {"type": "invalid_prompt", "message": "no"}},
            ("invalid_prompt", "no"),
            "invalid_prompt",
        ),
        (
            {"code": "insufficient_quota", "message": "pay"},
            ("insufficient_quota", "pay"),
            "server_error",
        ),
    ],
)
def test_a_bare_error_event_is_followed_by_response_failed(fields, error, code):
    scan = scanned(CREATED, named("error", sequence_number=1, **fields))
    assert scan.error == error
    failed = only_event(scan.render_error(Code.UPSTREAM_STREAM_ERROR, "ours"))
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == 2
    assert failed["response"]["error"] == {"code": code, "message": error[1]}
    assert failed["response"]["id"] == "resp_1"
    assert failed["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.CONTEXT_LENGTH_EXCEEDED, "context_length_exceeded"),
        (Code.INSUFFICIENT_BALANCE, "insufficient_quota"),
        (Code.QUOTA_EXCEEDED, "insufficient_quota"),
        (Code.RATE_LIMIT_EXCEEDED, "rate_limit_exceeded"),
        (Code.NO_CAPACITY, "slow_down"),
        (Code.INVALID_API_KEY, "invalid_prompt"),
        (Code.TIMEOUT, "server_error"),
        (Code.UPSTREAM_TRUNCATED, "server_error"),
        (Code.INTERNAL_ERROR, "server_error"),
    ],
)
def test_codes_that_codex_knows(code, expected):
    failed = only_event(scanned(CREATED).render_error(code, "why"))
    assert failed["response"]["error"] == {"code": expected, "message": "why"}
    assert failed["sequence_number"] == 1


def test_a_failure_before_anything_was_created():
    failed = only_event(scanned().render_error(Code.TIMEOUT, "why"))["response"]
    assert failed["id"].startswith("resp_")
    assert failed["status"] == "failed"


def test_a_half_event_is_ended_first():
    scan = scanned(CREATED, b"event: response.output_te")
    assert scan.render_error(Code.TIMEOUT, "x").startswith(b"\n\nevent: response.failed\n")
    assert scan.ping() == b""


def test_the_ping_is_a_real_event_with_the_last_number():
    scan = scanned()
    assert scan.ping() == b""
    stream = responses_stream()
    for number, event in enumerate(events(stream)[:-1]):
        for piece in (event, b": keep-alive\n\n"):
            scan.feed(piece)
            ping = only_event(scan.ping())
            assert ping["type"] == "response.in_progress"
            assert ping["sequence_number"] == number
            assert ping["response"] == response() | {"instructions": None, "tools": []}


def item_event(kind, item):
    return named(f"response.output_item.{kind}", sequence_number=2, output_index=0, item=item)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (item_event("added", message_item("")), False),
        (item_event("done", message_item("")), False),
        (item_event("done", message_item("Hi")), True),
        (
            item_event("done", {"type": "message", "content": [{"refusal": "no"}]}),
            True,
        ),
        (item_event("added", {"type": "reasoning", "summary": []}), False),
        (item_event("done", {"type": "reasoning", "summary": []}), False),
        (item_event("done", {"type": "reasoning", "encrypted_content": "gAAA"}), True),
        (item_event("added", {"type": "function_call", "name": "n", "arguments": ""}), True),
        (item_event("done", {"type": "custom_tool_call", "input": "x"}), True),
        (named("response.output_text.delta", delta=""), False),
        (named("response.output_text.delta", delta="x"), True),
        (named("response.refusal.delta", delta="x"), True),
        (named("response.reasoning_summary_text.delta", delta="x"), True),
        (named("response.function_call_arguments.delta", delta="{"), True),
        (named("response.in_progress", response=response()), False),
    ],
)
def test_first_content(event, expected):
    assert scanned(CREATED, event).has_content is expected


def test_a_completed_response_alone_is_enough():
    """Codex needs no more than this, so some upstreams send no more."""
    last = response("completed", output=[message_item("Hi")], usage=RESPONSES_USAGE)
    scan = scanned(named("response.completed", response=last))
    assert scan.has_content
    assert scan.finished
    assert scan.usage == USAGE


def test_output_bytes_are_the_deltas():
    padded = named("response.output_text.delta", delta="abc", obfuscation="x" * 50)
    call = named("response.function_call_arguments.delta", delta='{"a"')
    assert scanned(CREATED, padded, call).output_bytes == 3 + len('{\\"a\\"')


def test_searches_are_counted_once():
    done = [item_event("done", item) for item in (SEARCH, OPENED, SEARCH)]
    scan = scanned(CREATED, *done, parsed=SEARCHING)
    assert scan.usage is None
    output = [SEARCH, OPENED, SEARCH, message_item("Hi")]
    last = response("completed", output=output, usage=RESPONSES_USAGE)
    scan.feed(named("response.completed", response=last))
    assert scan.usage == USAGE | {"web_search": 2}
    short = scanned(
        CREATED,
        *done,
        named("response.completed", response=last | {"output": []}),
        parsed=SEARCHING,
    )
    assert short.usage == USAGE | {"web_search": 2}


def test_a_giant_last_event_is_read():
    picture = {"type": "image_generation_call", "result": "x" * (20 << 20)}
    last = response("completed", output=[picture], usage=RESPONSES_USAGE)
    stream = CREATED + named("response.completed", response=last)
    scan = scanned(*[stream[at : at + 65_536] for at in range(0, len(stream), 65_536)])
    assert scan.finished
    assert scan.usage == USAGE


def test_a_last_event_with_odd_text_or_numbers_is_read():
    stream = responses_stream(["cut"]).replace(b"cut", rb"\ud83d")
    scan = scanned(stream.replace(b'"temperature":1.0', b'"temperature":NaN'))
    assert scan.finished
    assert scan.usage == USAGE
    assert scan.ping()


# -- whole answers


def test_a_whole_answer():
    output = [{"type": "reasoning", "summary": []}, message_item("Hi é"), SEARCH]
    facts = R.parse_response(compact(response("completed", output=output, usage=RESPONSES_USAGE)))
    assert facts.usage == USAGE | {"web_search": 1}
    for told, count in (({"num_requests": 3}, 3), ({"num_requests": "3"}, 1)):
        last = response("completed", output=output, usage=RESPONSES_USAGE)
        last |= {"tool_usage": {"web_search": told}}
        assert R.parse_response(compact(last)).usage == USAGE | {"web_search": count}
        stream = named("response.completed", response=last)
        assert scanned(CREATED, stream, parsed=SEARCHING).usage == USAGE | {"web_search": count}
    assert (facts.finished, facts.finish_reason) == (True, "completed")
    assert facts.has_content
    assert facts.output_bytes == 5
    assert facts.model == "gpt-5"
    assert facts.error is None


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ([], False),
        ([message_item("")], False),
        ([{"type": "reasoning", "summary": []}], False),
        ([{"type": "reasoning", "encrypted_content": "x"}], True),
        ([{"type": "function_call", "name": "n", "arguments": "{}"}], True),
        ([{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}], True),
    ],
)
def test_content(output, content):
    facts = R.parse_response(compact(response("completed", output=output)))
    assert facts.has_content is content
    assert facts.usage is None
    assert not facts.output_told


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            compact(response("failed", error={"code": "server_error", "message": "no"})),
            ("server_error", "no"),
        ),
        (compact(response("in_progress")), ("api_error", "the answer is not finished")),
        (compact(response("queued")), ("api_error", "the answer is not finished")),
        (compact(response("cancelled")), ("api_error", "the answer is not finished")),
        (b'{"error":{"message":"no","type":"x","code":null}}', ("x", "no")),
        (b"<html>", ("api_error", "the answer is not finished")),
    ],
)
def test_a_body_that_is_no_answer(body, error):
    facts = R.parse_response(body)
    assert facts.error == error
    assert not facts.finished


def test_streams_without_numbers_get_pings_without_gaps():
    scan = scanned(named("response.created", response=response()))
    assert only_event(scan.ping())["sequence_number"] == 0
