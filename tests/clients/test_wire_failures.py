"""Upstreams that fail, seen from the client's socket: the dialect's words, and nothing to pay."""

import json
import socket
import time

import pytest

from tests.parts.feature import (
    files,
    statuses,
    wait_acted,
    wait_everywhere,
    wait_until,
    within,
)
from tests.parts.wire import PATHS, Reply, frames, post, request, text_body

STREAM_END = {"anthropic": b"message_stop", "chat": b"[DONE]", "responses": b"response.completed"}


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


def row_of(stack, reply, key):
    return stack.wait_for_row(reply.header("x-tollgate-request-id"), key)


def assert_free(stack, reply, key, code=None):
    row = row_of(stack, reply, key)
    assert (row["cost_nano"], row["outcome"]) == (0, "failed"), row
    if code:
        assert row["error_code"] == code
    return row


@pytest.mark.parametrize("fault", ["error-400", "too-long"])
def test_a_refusal_of_the_upstream_passes_unmodified(stack, dialect, fault):
    key = stack.key(f"fault-{fault}")
    reply = post(stack, dialect, key, stream=True)
    got = reply.body()
    assert reply.status == 400
    assert got == stack.sim.echo_of(reply)["reply_body"]
    assert_free(stack, reply, key)


@pytest.mark.parametrize("fault", ["529", "error-500", "error-503", "error-404"])
def test_the_last_upstreams_error_passes_unmodified(stack, dialect, fault):
    key = stack.key(f"fault-{fault}")
    reply = post(stack, dialect, key, stream=False)
    got = reply.body()
    assert reply.status == int(fault.removeprefix("error-"))
    assert got == stack.sim.echo_of(reply)["reply_body"]
    assert_free(stack, reply, key)

    def logged() -> list[str]:
        text = "".join(path.read_text() for path in files(stack, ".log"))
        wanted = reply.header("x-tollgate-request-id")
        return [line for line in text.splitlines(True) if wanted in line and line[-1] == "\n"]

    (told,) = map(json.loads, wait_until(logged))
    assert (told["event"], told["status"]) == ("request_not_answered", reply.status)
    assert (told["code"], told["channel"]) == ("upstream_error", f"f-{fault}-{dialect}")


def test_retry_after_comes_down_and_then_the_channel_rests(stack, dialect):
    key = stack.key("fault-429-7")
    reply = post(stack, dialect, key, stream=False)
    assert (reply.status, reply.header("retry-after")) == (429, "7")
    for _ in range(4):  # whichever worker answers: none waits for more than the 7 seconds
        again = post(stack, dialect, key, stream=False)
        assert again.status == 429
        assert 1 <= int(again.header("retry-after")) <= 7


@pytest.mark.parametrize("fault", ["error-401", "error-403"])
def test_the_upstreams_own_credential_trouble_is_never_the_clients(stack, dialect, fault):
    key, before = stack.key(f"wire-{fault}"), stack.sim.last_id()
    statuses = {post(stack, dialect, key, stream=True).status for _ in range(6)}
    assert statuses == {503}
    calls = stack.sim.calls(after=before, fault="error")
    assert 1 <= len(calls) <= 2  # parked: at most once by each of the two workers


@pytest.mark.parametrize(
    "fault",
    ["529", "429-7", "error-401", "error-404", "error-500", "close-connect", "closed"],
)
@pytest.mark.parametrize("stream", [True, False])
def test_another_channel_takes_over_and_one_is_billed(stack, dialect, fault, stream):
    key = stack.key(f"over-{fault}")
    reply = post(stack, dialect, key, stream=stream)
    got = reply.body()
    assert reply.status == 200, got
    assert b"say hello" in got or b"say hel" in got
    row = row_of(stack, reply, key)
    assert row["outcome"] == "completed"
    assert row["cost_nano"] > 0
    assert row["channel"] == f"b-{fault}-{dialect}"


def test_an_error_in_a_200_gets_a_status_and_is_free(stack, dialect):
    key = stack.key("fault-200-error-body")
    for stream in (True, False):
        reply = post(stack, dialect, key, stream=stream)
        assert reply.status >= 500, reply.body()
        assert "error" in reply.json()
        assert_free(stack, reply, key, "upstream_error")


def test_a_stream_cut_short_ends_with_the_dialects_error(stack, dialect):
    key = stack.key("fault-cut-mid-stream")
    reply = post(stack, dialect, key, stream=True)
    got = reply.body()
    assert reply.status == 200
    last = frames(got)[-2:] if dialect == "chat" else frames(got)[-1:]
    told = json.loads(last[0][1])
    if dialect == "anthropic":
        assert (last[0][0], told["error"]["type"]) == ("error", "api_error")
    elif dialect == "chat":
        assert told["error"]["type"] == "api_error"
        assert last[1][1] == "[DONE]"
    else:
        assert (last[0][0], told["response"]["status"]) == ("response.failed", "failed")
    assert_free(stack, reply, key, "upstream_truncated")


def test_an_error_event_of_the_upstream_ends_the_stream_free(stack, dialect):
    key = stack.key("fault-error-mid-stream")
    reply = post(stack, dialect, key, stream=True)
    got = reply.body()
    assert b"Overloaded" in got
    if dialect == "responses":  # Codex takes a bare error event for a lost connection
        assert frames(got)[-1][0] == "response.failed"
    assert_free(stack, reply, key)


@pytest.mark.parametrize("fault", ["empty", "truncated-json", "bad-json"])
def test_an_answer_without_use_is_an_error_and_free(stack, dialect, fault):
    key = stack.key(f"fault-{fault}")
    reply = post(stack, dialect, key, stream=False)
    assert reply.status == 502, reply.body()
    assert "error" in reply.json()
    assert_free(stack, reply, key)


def test_an_empty_stream_is_free(stack, dialect):
    key = stack.key("fault-empty")
    reply = post(stack, dialect, key, stream=True)
    reply.body()
    assert_free(stack, reply, key)


def test_a_stream_without_usage_is_billed_by_estimate(stack, dialect):
    key = stack.key("fault-no-usage")
    reply = post(stack, dialect, key, stream=True)
    assert STREAM_END[dialect] in reply.body()
    row = row_of(stack, reply, key)
    assert row["estimated"]
    assert row["cost_nano"] > 0


@pytest.mark.parametrize("fault", ["stall-first", "hang-head"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_never_begins(stack, dialect, fault, stream):
    """A stream waits one second here for its first byte, a whole answer two."""
    key = stack.key(f"fault-{fault}")
    began = time.monotonic()
    reply = post(stack, dialect, key, stream=stream)
    assert (reply.status, time.monotonic() - began < 15) == (504, True)
    assert_free(stack, reply, key, "timeout")


def test_a_silent_upstream_is_bridged_by_pings_and_then_given_up(stack, dialect):
    key, before = stack.key("fault-stall-60"), stack.sim.last_id()
    began = time.monotonic()
    reply = post(stack, dialect, key, stream=True)
    got = reply.body()
    assert 1.0 < time.monotonic() - began < 15.0  # idle limit 1.5 s, a ping each 0.5 s
    events = [name for name, _ in frames(got)]
    ping = {"anthropic": "ping", "chat": ":", "responses": "response.in_progress"}[dialect]
    own = 1 if dialect == "responses" else 0  # the upstream sends one itself
    assert events.count(ping) - own >= 1, events
    assert_free(stack, reply, key, "timeout")
    call = stack.sim.wait_for_calls(1, after=before)[0]
    assert call["client_gone"]


@pytest.mark.parametrize("after_content", [True, False])
def test_a_hang_up_is_noticed_within_a_second(stack, dialect, after_content):
    keys: list[str] = []

    def noticed_s() -> float:
        keys.append(stack.new_key("slow" if after_content else "fault-stall-first"))
        before = stack.sim.last_id()
        body = text_body(dialect, stream=True)
        head = f"POST {PATHS[dialect]} HTTP/1.1\r\nhost: x\r\nx-api-key: {keys[-1]}\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", stack.port), 20) as client:
            client.sendall(head.encode() + body)
            if after_content:
                next(Reply(client).reads())
                time.sleep(0.3)
            else:
                wait_until(lambda: stack.sim.last_id() > before)
        began = time.monotonic()
        call = stack.sim.wait_for_calls(1, after=before)[0]
        assert call["client_gone"]
        return time.monotonic() - began

    # A second after it was asked, the upstream without a first byte would be given up.
    within(1.0 if after_content else 0.7, noticed_s)
    row = stack.wait_for_rows(1, keys[-1])[0]
    if after_content:
        assert (row["outcome"], row["estimated"]) == ("client_aborted", True)
        assert row["cost_nano"] > 0
    else:
        assert (row["outcome"], row["cost_nano"]) == ("client_gone", 0)


REFUSALS = {
    "no key": ("", {}, 401, "invalid_api_key", "authentication_error"),
    "wrong key": ("sk-toll-nobody", {}, 401, "invalid_api_key", "authentication_error"),
    "unknown model": ("KEY", {"model": "gpt-none"}, 404, "model_not_found", "not_found_error"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_refusals_have_the_dialects_shape(stack, dialect, case):
    key, change, status, code, anthropic_type = REFUSALS[case]
    reply = post(stack, dialect, key.replace("KEY", stack.key()), stream=True, **change)
    error = reply.json()
    assert reply.status == status, error
    if dialect == "anthropic":
        assert (error["type"], error["error"]["type"]) == ("error", anthropic_type)
    else:
        assert error["error"]["code"] == code
    assert reply.header("x-estimated-credits") == "0"
    assert reply.header("x-tollgate-request-id")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"{not json", None),
        (b'{"model": "gpt-5-mini"}', "messages"),
        (b'{"model": "gpt-5-mini", "messages": "x"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
    ],
)
def test_a_bad_body_is_named_by_its_path(stack, body, path):
    reply = request(stack.port, "POST", PATHS["chat"], key=stack.key(), body=body)
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (400, "invalid_param")
    if path:
        assert error["param"] == path


def test_money_that_does_not_suffice(stack, dialect):
    poor = stack.new_key(usd="0.000001")
    reply = post(stack, dialect, poor, stream=True)
    error = reply.json()["error"]
    assert reply.status == 402
    assert error["message"].startswith("insufficient_balance")
    codex = [("originator", "codex_exec"), ("user-agent", "codex_exec/0.169.0")]
    body = text_body("responses", stream=True)
    again = request(stack.port, "POST", PATHS["responses"], key=poor, headers=codex, body=body)
    assert again.status == 400
    assert again.json()["error"]["code"] == "insufficient_balance"


def test_a_quota_that_does_not_suffice(stack):
    key = stack.new_key(quota="0.000001")
    reply = post(stack, "chat", key, stream=False)
    assert (reply.status, reply.json()["error"]["code"]) == (402, "quota_exceeded")


def test_a_revoked_key_stops_within_a_second(stack):
    """Counted from the end of the command."""

    def stopped_s() -> float:
        key = stack.new_key()
        assert post(stack, "chat", key, stream=False).status == 200
        listed = json.loads(stack.cli("key", "list", "--json").stdout)
        mine = [row["id"] for row in listed if row["key"].endswith(key[-4:])]
        stack.cli("key", "revoke", mine[-1])
        began = time.monotonic()
        wait_acted(stack)
        took_s = time.monotonic() - began
        reply = post(stack, "chat", key, stream=False)
        assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        return took_s

    within(1.0, stopped_s)


def test_revocation_ends_running_streams(stack, dialect):
    """With the dialect's error for a key that is none; what was sent is due."""
    account = stack.new_account()
    piece = {"anthropic": b"text_delta", "chat": b'"delta":{"content"', "responses": b"text.delta"}
    ended: list[tuple[Reply, bytes]] = []

    def ended_s() -> float:
        key = stack.new_key("slow-long", account=account)
        reply = post(stack, dialect, key, stream=True, text="sim:words 200")
        reads = reply.reads()
        got = b""
        while got.count(piece[dialect]) < 3:  # then the provider falls silent
            got += next(reads)[1]
        stack.revoke(key)
        began = time.monotonic()
        got += b"".join(data for _, data in reads)
        ended.append((reply, got))
        return time.monotonic() - began

    within(1.5, ended_s)  # 1 s, and some patience with a busy machine
    reply, got = ended[-1]
    assert STREAM_END[dialect] not in got or dialect == "chat"
    frame = {
        "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"authentication_error"',
        "chat": b'"code":"invalid_api_key"',
        "responses": b'"status":"failed","error":{"code":"invalid_prompt"',
    }[dialect]
    assert got.count(frame) == 1, got
    assert b"this API key was revoked" in got
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), stack.new_key(account=account))
    assert (row["outcome"], row["error_code"], row["estimated"]) == ("budget_cut", None, True)
    assert 0 < row["cost_nano"] < 10**8
    assert 0 < row["output_tokens"] < 50, "three pieces of 16 bytes, not 200 words"


@pytest.mark.parametrize("ended_by", ["revoked", "expired"])
def test_a_key_that_ends_takes_the_streams_of_its_sub_keys_along(stack, ended_by):
    account = stack.new_account()
    catalog = stack._open_books().catalog
    ended: list[Reply] = []

    def ended_s() -> float:
        ends_s = time.time() + 4.0
        parent, _ = catalog.create_key(
            account,
            "parent",
            group="slow-long",
            expires_at=int(ends_s * 1e6) if ended_by == "expired" else None,
        )
        _, secret = catalog.create_key(account, "child", group="slow-long", parent_id=parent.id)
        reply = post(stack, "anthropic", secret, stream=True)
        reads = reply.reads()
        got = b""
        while got.count(b"content_block_delta") < 2:
            got += next(reads)[1]
        if ended_by == "revoked":
            catalog.revoke_key(parent.id)
            ends_s = time.time()
        got += b"".join(data for _, data in reads)
        took_s = time.time() - ends_s
        assert took_s > 0
        assert b'"authentication_error"' in got
        assert ended_by.encode() in got
        ended.append(reply)
        return took_s

    within(1.5, ended_s)
    reply = ended[-1]
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), stack.new_key(account=account))
    assert (row["outcome"], row["cost_nano"] > 0) == ("budget_cut", True)


def test_a_key_that_is_revoked_while_the_body_arrives_is_refused(stack):
    """Authenticated before, admitted never: no upstream call, nothing to pay."""
    account = stack.new_account()
    key = stack.new_key(account=account)
    body = text_body("anthropic", stream=True)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.port), 20) as client:
        client.sendall(head.encode() + body[:10])
        answered = request(stack.port, "GET", "/v1/balance", key=key)
        assert answered.status == 200
        before = stack.sim.last_id()
        stack.revoke(key)
        wait_everywhere(lambda: statuses(stack, key) == {401})
        client.sendall(body[10:])
        reply = Reply(client)
        assert (reply.status, reply.json()["error"]["type"]) == (401, "authentication_error")
    assert stack.sim.calls(after=before) == []
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), stack.new_key(account=account))
    assert (row["outcome"], row["cost_nano"]) == ("refused", 0)


def test_an_answer_cut_in_the_middle_of_its_json_is_an_error_and_free(stack, dialect):
    key = stack.key("fault-cut-mid-stream")
    reply = post(stack, dialect, key, stream=False)
    assert (reply.status, "error" in reply.json()) == (502, True)
    assert_free(stack, reply, key, "upstream_truncated")


def test_a_finish_reason_without_an_end_marker_is_a_broken_answer(stack, dialect):
    """Neither usage nor end followed: nobody knows what was lost, so it is free."""
    key = stack.key("fault-cut-after-finish")
    reply = post(stack, dialect, key, stream=True)
    got = reply.body()
    told = {"anthropic": b"event: error", "chat": b'"error":', "responses": b"response.failed"}
    assert told[dialect] in got
    assert_free(stack, reply, key, "upstream_truncated")
