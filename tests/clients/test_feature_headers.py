"""The accounting headers: on every answer, in their forms, and telling the truth."""

import pytest

from tests.parts.feature import (
    ACCOUNTING,
    assert_accounted,
    each_worker,
    make_key,
    wait_until,
)
from tests.parts.wire import PATHS, post, request, send, text_body

OPEN = (
    "/api/pricing",
    "/v1/receipts/keys",
    "/v1/responses",
    "/nowhere",
    "/v1/nowhere",
    "/v1beta/models/x",
)
KEYED = (
    "/v1/models",
    "/v1/models/gpt-5-mini",
    "/v1/models/gpt-none",
    "/v1/balance",
    "/v1/usage",
    "/v1/usage?limit=x",
    "/api/v1/usage",
    "/api/v1/me/usage",
    "/api/v1/me/usage?since=2020-01-01",
    "/api/v1/me/account",
    "/api/v1/me/billing/transactions",
    "/api/v1/me/billing/transactions?kind=x",
)


def test_every_answer_has_the_five_headers(stack):
    key, poor = stack.key(), stack.new_key(usd="0.000001")
    for path in OPEN + KEYED:
        for secret in (key, "", "sk-toll-nobody"):
            assert_accounted(request(stack.port, "GET", path, key=secret))
    for path in (*PATHS.values(), "/v1/messages/count_tokens", "/v1/models", "/v1/nowhere"):
        for body in (b"{}", b"{not json", b""):
            for secret in (key, ""):
                assert_accounted(request(stack.port, "POST", path, key=secret, body=body))
        assert_accounted(request(stack.port, "DELETE", path, key=key))
    for dialect in PATHS:
        for stream in (True, False):
            assert_accounted(post(stack, dialect, key, stream=stream))
            assert_accounted(post(stack, dialect, poor, stream=stream))
            for fault in (
                "error-400",
                "error-503",
                "close-connect",
                "200-error-body",
                "stall-first",
            ):
                reply = post(stack, dialect, stack.key(f"fault-{fault}"), stream=stream)
                assert reply.status >= 400
                assert_accounted(reply)
    large = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n"
    reply = send(stack.port, (large + f"content-length: {33 << 20}\r\n\r\n").encode() + b"{")
    assert reply.status == 413
    assert_accounted(reply)


def test_the_upstreams_headers_of_the_same_names_are_replaced(stack):
    reply = post(stack, "chat", stack.new_key(usd="7"), stream=False)
    assert reply.status == 200
    for name in ACCOUNTING:
        assert len([value for key, value in reply.headers if key == name]) == 1
    assert reply.header("x-quota-remaining-credits") == "6.99"


@pytest.mark.parametrize("dialect", list(PATHS))
def test_the_estimate_is_the_hold(stack, dialect):
    """In credits, rounded up: the worst case of the request, shown before anything is paid."""
    key = stack.new_key()
    told = {}
    for stream in (True, False):  # the bodies differ by a byte, so their holds do too
        reply = post(stack, dialect, key, stream=stream)
        reply.body()
        told[reply.header("x-tollgate-request-id")] = int(reply.header("x-estimated-credits"))
    rows = {row["request_id"]: row for row in stack.wait_for_rows(2, key)}
    held = {
        row["request_id"]: int(row["hold_nano"])
        for row in stack.sql("SELECT request_id, hold_nano FROM usage")
        if row["request_id"] in told
    }
    assert {name: -(-nano // 1000) for name, nano in held.items()} == told
    assert all(0 < rows[name]["cost_nano"] <= held[name] for name in told)
    poor = post(stack, dialect, stack.new_key(usd="0.000001"), stream=False)
    assert (poor.status, int(poor.header("x-estimated-credits"))) == (402, list(told.values())[-1])
    for change in ({"model": "gpt-none"}, {"model": 7}):
        refused = post(stack, dialect, key, stream=False, **change)
        assert (refused.status // 100, refused.header("x-estimated-credits")) == (4, "0")


def quota(stack, key):
    """The header as every worker tells it."""
    name = "x-quota-remaining-credits"
    return {reply.header(name) for reply in each_worker(stack, "/v1/models", key)}


@pytest.mark.parametrize("dialect", list(PATHS))
def test_a_failure_does_not_move_the_quota(stack, dialect):
    """Its hold is over ten cents: one that were kept would show."""
    account = stack.new_account("5")
    key = stack.new_key(account=account, quota="3")
    more = {"max_output_tokens" if dialect == "responses" else "max_tokens": 60_000}
    assert quota(stack, key) == {"3.00"}
    faults = ("error-400", "error-500", "529", "200-error-body", "empty", "close-connect")
    streamed = ("cut-mid-stream", "error-mid-stream")
    for fault in faults + streamed:
        group = f"fault-{fault}"
        failing = stack.new_key(group, account=account, quota="3")
        reply = post(stack, dialect, failing, stream=fault in streamed, **more)
        reply.body()
        if fault in faults and reply.status != 429:  # 429: the channel rests after other tests
            assert int(reply.header("x-estimated-credits")) > 100_000
            assert reply.header("x-quota-remaining-credits") == "3.00", fault
        wait_until(lambda k=failing: quota(stack, k) == {"3.00"})
    assert post(stack, dialect, key, stream=False, model="gpt-none").status == 404
    assert quota(stack, key) == {"3.00"}
    balance = stack.get("/v1/balance", key)
    assert (balance["available_usd"], balance["lifetime_spent_usd"]) == (5, 0)
    assert stack.get("/api/v1/me/usage", key)["buckets"] == []
    items = stack.get("/api/v1/me/billing/transactions", key)["items"]
    assert [item["kind"] for item in items] == ["topup"]


def test_a_charge_shows_at_every_worker(stack):
    """Also at one that never held money of the key."""
    _, key = make_key(stack)
    assert quota(stack, key) == {"100.00"}
    text = "sim:words 9000"
    reply = post(stack, "anthropic", key, stream=False, text=text, max_tokens=10_000)
    assert len(reply.body()) > 10_000
    spent = stack.wait_for_rows(1, key)[0]["cost_nano"]
    assert spent > 10_000_000
    left = f"{(100 * 10**9 - spent) // 10**7 / 100:.2f}"
    wait_until(lambda: quota(stack, key) == {left}, told=lambda: (quota(stack, key), left))


def test_the_body_of_a_stream_comes_after_all_headers(stack):
    reply = post(stack, "anthropic", stack.key("fault-slow-300"), stream=True)
    assert_accounted(reply)
    assert not reply.whole
    reply.close()


def test_count_tokens_shows_no_estimate(stack):
    body = text_body("anthropic", stream=False)
    reply = request(
        stack.port, "POST", "/v1/messages/count_tokens", key=stack.new_key(usd="2"), body=body
    )
    assert (reply.status, reply.header("x-estimated-credits")) == (200, "0")
    assert reply.header("x-quota-remaining-credits") == "2.00"
