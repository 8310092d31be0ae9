"""Errors by route: the caller's envelope, the right status, nothing to pay."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.config import Channel
from tests.parts.wire import PATHS, post, request


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


def shape(reply) -> dict:
    """Every value of an error body by the name of its type, but for those that name the error."""
    told = json.loads(reply.body())
    kept = ("type", "code", "param")

    def of(value, name=""):
        if isinstance(value, dict):
            return {key: of(each, key) for key, each in value.items()}
        return value if name in kept else type(value).__name__

    return of(told)


def anthropic(kind):
    error = {"type": kind, "message": "str"}
    return {"type": "error", "error": error, "request_id": "str"}


def openai(kind, code, param=None):
    return {"error": {"message": "str", "type": kind, "param": param, "code": code}}


OTHERS = "a model that only channels of another protocol serve"
BAD, PERMISSION = "invalid_request_error", "permission_error"
ENVELOPES = {
    # case -> model asked, key, status, Anthropic type, OpenAI type, code, param
    "no key": (None, "", 401, "authentication_error", BAD, "invalid_api_key", None),
    "no money": (None, "poor", 402, PERMISSION, PERMISSION, "insufficient_balance", None),
    "no quota": (None, "small", 402, PERMISSION, PERMISSION, "quota_exceeded", None),
    "group": ("gpt-4o", "narrow", 403, PERMISSION, PERMISSION, "model_not_in_group", "model"),
    "unknown model": ("gpt-none", "", 404, "not_found_error", BAD, "model_not_found", "model"),
    "protocol": (OTHERS, "", 400, BAD, BAD, "unsupported_model", "model"),
    "wrong type": (7, "", 400, BAD, BAD, "invalid_param", "model"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ENVELOPES))
def test_the_envelope_is_the_routes(stack, dialect, case):
    model, which, status, claude, kind, code, param = ENVELOPES[case]
    keys = {
        "poor": lambda: stack.new_key(usd="0"),
        "small": lambda: stack.new_key(quota="0.0000001"),
        "narrow": lambda: stack.key("narrow"),
    }
    secret = keys.get(which, stack.key)() if case != "no key" else ""
    if model == OTHERS:
        model = "gpt-5-mini" if dialect == "anthropic" else "claude-haiku-4-5"
    change = {} if model is None else {"model": model}
    reply = post(stack, dialect, secret, stream=True, **change)
    assert reply.status == status
    assert reply.header("content-type").startswith("application/json")
    told = shape(reply)
    assert told == (anthropic(claude) if dialect == "anthropic" else openai(kind, code, param))
    id_header = "request-id" if dialect == "anthropic" else "x-request-id"
    assert reply.header(id_header) == reply.header("x-tollgate-request-id")


MEDIA = {
    "/v1/tasks/submit": (400, "invalid_param", "model"),
    "/v1/tasks/query": (400, "invalid_param", "task_id"),
    "/v1/images/generations": (400, "invalid_param", "model"),
    "/api/v1/x": (404, "not_found", None),
}  # fmt: skip


@pytest.mark.parametrize("path", list(MEDIA))
def test_tasks_and_images_speak_openai_whatever_the_headers(stack, path):
    status, code, param = MEDIA[path]
    headers = [("anthropic-version", "2023-06-01")]
    reply = request(stack.port, "POST", path, key=stack.key(), headers=headers, body=b"{}")
    assert (reply.status, shape(reply)) == (status, openai(BAD, code, param))


def test_unknown_routes_keep_the_envelope(stack):
    for path in ("/nowhere", "/v1/chat/nothing", "/v1/responses/resp_1", "/api/v1/nothing"):
        reply = request(stack.port, "GET", path, key=stack.key())
        assert (reply.status, shape(reply)) == (404, openai(BAD, "not_found")), path
    for path in ("/v1/messages/batches/none", "/anthropic/v1/messages/x"):
        reply = request(stack.port, "GET", path, key=stack.key())
        assert (reply.status, shape(reply)) == (404, anthropic("not_found_error")), path
    google = "/v1beta/models/gemini-2-5-pro:generateContent"
    for path in (google, "/v1beta/models", "/prefix" + google):
        reply = request(stack.port, "POST", path, key=stack.key(), body=b"{}")
        error = reply.json()["error"]
        assert reply.status == 404
        assert set(error) == {"code", "message", "status"}
        assert (error["code"], error["status"]) == (404, "NOT_FOUND")
    for method in ("GET", "PUT"):
        reply = request(stack.port, method, "/v1/messages", key=stack.key())
        assert (reply.status, reply.json()["type"]) == (405, "error")
        assert "POST" in reply.header("allow").split(", ")


def assert_upstream_fault(stack, dialect, stream, fault, status, code):
    key = stack.key(f"fault-{fault}")
    began = time.monotonic()
    reply = post(stack, dialect, key, stream=stream)
    took_s = time.monotonic() - began
    error = reply.json()["error"]
    assert (reply.status, error["type"]) == (status, "api_error"), error
    assert dialect == "anthropic" or error["code"] == code
    if status == 504:  # the stack's channels wait 1 s for a stream's first byte, 2 s for the whole
        limit_s = 1.0 if stream else 2.0
        assert limit_s - 0.1 < took_s < limit_s + 10  # not the default of 30 s
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), key)
    assert (row["cost_nano"], row["outcome"], row["error_code"]) == (0, "failed", code)


@pytest.mark.parametrize("stream", [True, False])
def test_upstream_faults_become_502_503_504(stack, stream):
    cases = [("close-connect", 502, "upstream_error"), ("stall-first", 504, "timeout")]
    for fault, _, _ in cases:
        stack.key(f"fault-{fault}")  # made once, not in a race
    with ThreadPoolExecutor(6) as clients:
        running = [
            clients.submit(assert_upstream_fault, stack, dialect, stream, *case)
            for dialect in PATHS
            for case in cases
        ]
    for each in running:
        each.result()
    parked = stack.key("fault-error-401")
    for dialect in PATHS:
        for _ in range(3):
            reply = post(stack, dialect, parked, stream=stream)
            error = reply.json()["error"]
            assert (reply.status, error["message"]) == (503, "no available accounts")
            assert error["type"] == "api_error"
    poor = stack.new_key("fault-error-401", usd="0")  # what the key lacks itself is told first
    for _ in range(6):  # every worker, whether its channel rests or not
        reply = post(stack, "chat", poor, stream=stream)
        assert (reply.status, reply.json()["error"]["code"]) == (402, "insufficient_balance")


def test_the_time_limits_are_settings_with_the_promised_defaults():
    channel = Channel(name="x", dialect="chat", base_url="http://x", models=[])
    assert channel.first_byte_timeout_s == 30  # streams
    assert channel.total_timeout_s == 600  # whole answers
