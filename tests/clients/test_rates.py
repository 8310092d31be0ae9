"""Concurrency, requests and tokens per minute through the public door, with several workers; the
provider's own log tells how many requests were in flight."""

import json
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from services.edge.rates import RETURN_WAIT_S
from tests.parts.feature import make_key, wait_everywhere, wait_until, within, worker_of
from tests.parts.stack import Stack
from tests.parts.wire import PATHS, Reply, post, request, text_body

SLOW = "fault-slow-300"  # 300 ms from one event to the next
HANGING = "slow-long"  # streams that stand still for 20 s in the middle


def limited(stack: Stack, **limits: int) -> str:
    """A funded account with limits of its own."""
    account = stack.new_account()
    stack._open_books().catalog.update_account(account, **limits)
    return account


def most_at_once(calls: list[dict]) -> int:
    """The most calls that the provider had in flight at one time: a stream until its end marker,
    after which this provider only waits, any other until its answer was sent."""
    moments = [(call["time_us"], 1) for call in calls]
    for call in calls:
        end_us = call["time_us"] + call["total_ms"] * 1000
        moments.append((call["event_times_us"][-1] if call["stream"] else end_us, -1))
    most = now = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


def refused(reply: Reply) -> tuple[int, str]:
    body = reply.body()
    if reply.status == 200:
        return 200, ""
    error = json.loads(body)["error"]
    return reply.status, error.get("code", error["type"])


def test_64_clients_never_have_more_in_flight_than_the_account_may(stack):
    account = limited(stack, concurrency=5)
    keys = [make_key(stack, account=account, group=SLOW)[1] for _ in range(2)]
    before, until_s = stack.sim.last_id(), time.monotonic() + 8

    def client(number: int) -> Counter:
        seen: Counter = Counter()
        while time.monotonic() < until_s:
            stream = number % 4 > 0
            reply = post(stack, "chat", keys[number % 2], stream=stream, text="sim:words 8")
            seen[refused(reply)] += 1
            time.sleep(0.2)
        return seen

    with ThreadPoolExecutor(64) as clients:
        seen = sum(clients.map(client, range(64)), Counter())
    assert set(seen) == {(200, ""), (429, "concurrency_limit")}, seen
    calls = stack.sim.wait_for_calls(seen[200, ""], after=before)
    assert len(calls) == seen[200, ""]  # a refusal calls nobody
    assert 4 <= most_at_once(calls) <= 5, seen


def test_a_refusal_for_concurrency_has_the_routes_shape(stack):
    account = limited(stack, concurrency=1)
    held = post(stack, "anthropic", stack.new_key(HANGING, account=account), stream=True)
    assert held.status == 200
    key = stack.new_key(account=account)
    for dialect in PATHS:
        reply = post(stack, dialect, key, stream=True)
        body = reply.json()
        assert reply.status == 429
        error = body["error"]
        assert error["message"] == (
            "concurrency_limit: 1 of 1 requests at once of this account are in flight; send the "
            "next one when one of them has ended"
        )
        if dialect == "anthropic":
            assert (body["type"], error["type"]) == ("error", "rate_limit_error")
        else:
            assert (error["type"], error["code"]) == ("rate_limit_exceeded", "concurrency_limit")
        assert reply.header("retry-after") in ("1", "2", "3")
        assert reply.header("x-ratelimit-reset") == ""
        assert reply.header("x-ratelimit-limit")
        assert reply.header("x-quota-remaining-credits")
    held.close()


def test_a_client_that_comes_one_by_one_is_never_refused(stack):
    """Each request on a connection of its own, so at another worker: the permit is back before the
    last byte."""
    account = limited(stack, concurrency=1)
    key = stack.new_key(account=account)
    waited_s = 0.0
    for number in range(40):
        began_s = time.monotonic()
        reply = post(stack, list(PATHS)[number % 3], key, stream=number % 2 == 0)
        told = refused(reply)
        # Last bytes wait no longer for the centre: then it has the permit a moment later.
        assert told == (200, "") or waited_s >= RETURN_WAIT_S, number
        waited_s = time.monotonic() - began_s


@pytest.mark.parametrize("ending", ["answer", "upstream error", "no first byte", "middle", "crash"])
def test_a_permit_comes_back_however_a_request_ends(stack, ending):
    account = limited(stack, concurrency=1)
    groups = {"upstream error": "fault-error-500", "no first byte": "fault-hang-head"}
    groups |= {"middle": HANGING, "crash": "fault-cut-mid-stream"}
    first = stack.new_key(groups.get(ending, "default"), account=account)
    if ending == "no first byte":
        body = text_body("chat", stream=True)
        with pytest.raises(TimeoutError):
            request(stack.port, "POST", PATHS["chat"], key=first, body=body, timeout_s=0.3)
    else:
        reply = post(stack, "chat", first, stream=ending in ("middle", "crash"))
        if ending == "middle":
            next(reply.reads())
            reply.close()
        else:
            reply.body()
    key = stack.new_key(account=account)
    # A worker that refused a moment ago says so again without asking.
    wait_everywhere(lambda: refused(post(stack, "chat", key, stream=False)) == (200, ""))


def test_a_request_that_is_refused_for_money_holds_no_permit(stack):
    account = stack.new_account("0.01")
    stack._open_books().catalog.update_account(account, concurrency=1, requests_per_min=3)
    key = stack.new_key(account=account)
    for _ in range(5):
        reply = post(stack, "chat", key, stream=False, max_tokens=60_000)
        assert refused(reply) == (402, "insufficient_balance")
    for _ in range(3):
        assert refused(post(stack, "chat", key, stream=False)) == (200, "")


def test_a_killed_workers_permits_are_back_within_ten_seconds(stack):
    account = limited(stack, concurrency=4)
    hanging = stack.new_key(HANGING, account=account)
    held = [post(stack, "chat", hanging, stream=True) for _ in range(4)]
    key = stack.new_key(account=account)
    assert refused(post(stack, "chat", key, stream=False)) == (429, "concurrency_limit")
    victims = Counter(worker_of(stack, reply).pid for reply in held)
    pid, lost = victims.most_common()[0]
    psutil.Process(pid).kill()
    killed_s = time.monotonic()

    def served() -> bool:
        try:
            return refused(post(stack, "chat", key, stream=False)) == (200, "")
        except (ConnectionError, OSError):
            return False

    wait_until(served, 10.0)
    again: list[Reply] = []

    def all_back() -> bool:
        reply = post(stack, "chat", hanging, stream=True)
        if reply.status == 200:
            again.append(reply)
        else:
            reply.close()
        return len(again) == lost

    wait_until(all_back, 10.0 - (time.monotonic() - killed_s))
    over = post(stack, "chat", key, stream=False)
    assert refused(over) == (429, "concurrency_limit")  # the others still run
    for reply in held + again:
        reply.close()


def test_concurrency_of_a_key_and_of_its_parent(stack):
    account = stack.new_account()
    parent, _ = make_key(stack, account=account, group=HANGING, concurrency=3)
    keys = [
        make_key(stack, account=account, parent_id=parent.id, concurrency=2)[1] for _ in range(2)
    ]
    held = [post(stack, "chat", keys[0], stream=True) for _ in range(2)]
    over = post(stack, "chat", keys[0], stream=True)
    assert "of this key are" in over.json()["error"]["message"]
    held.append(post(stack, "chat", keys[1], stream=True))
    over = post(stack, "chat", keys[1], stream=True)
    assert "3 of 3 requests at once of this parent key are" in over.json()["error"]["message"]
    assert [reply.status for reply in held] == [200] * 3
    for reply in held:
        reply.close()


def test_concurrency_of_a_member(stack):
    catalog = stack._open_books().catalog
    org = catalog.create_account(f"org-{uuid.uuid4().hex[:8]}", "org", concurrency=100).id
    stack._open_books().wallets.move(org, "topup", 10**10, "", "test")
    member = catalog.create_member(org, "someone", models=["*"], concurrency=1)
    keys = [make_key(stack, account=org, group=HANGING, member_id=member.id)[1] for _ in range(2)]
    held = post(stack, "chat", keys[0], stream=True)
    over = post(stack, "chat", keys[1], stream=True)
    assert held.status == 200
    assert "1 of 1 requests at once of this member are" in over.json()["error"]["message"]
    other = make_key(stack, account=org)[1]
    assert refused(post(stack, "chat", other, stream=False)) == (200, "")
    held.close()


@pytest.mark.parametrize("whose", ["key", "account"])
def test_requests_per_minute_are_strict(stack, whose):
    limits = {"requests_per_min": 7}
    account = limited(stack, **(limits if whose == "account" else {"concurrency": 0}))
    more = limits if whose == "key" else {}
    keys = [make_key(stack, account=account, **more)[1] for _ in range(1 if more else 2)]
    before = stack.sim.last_id()

    def client(number: int) -> Reply:
        return post(stack, "chat", keys[number % len(keys)], stream=number % 2 == 0)

    with ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(client, range(40)))
    seen = Counter(map(refused, replies))
    assert seen == {(200, ""): 7, (429, "rate_limit_exceeded"): 33}
    assert len(stack.sim.calls(after=before)) == 7
    over = client(0)
    message = over.json()["error"]["message"]
    assert message.startswith(
        f"rate_limit_requests exceeded: 7 / 7 requests per minute of this {whose} used; "
    )
    wait_s = int(over.header("retry-after"))
    assert 20 <= wait_s <= 61
    assert message.endswith(f"in {wait_s} s")
    assert over.header("x-ratelimit-limit-requests") == "7"
    assert over.header("x-ratelimit-remaining-requests") == "0"
    assert over.header("x-ratelimit-reset-requests").endswith("s")


def test_tokens_per_minute(stack):
    key = make_key(stack, tokens_per_min=2_000)[1]
    reply = post(stack, "anthropic", key, stream=False, text="x" * 4_000)
    assert reply.status == 200
    usage = reply.json()["usage"]
    assert reply.header("x-ratelimit-limit-tokens") == "2000"

    def known() -> bool:
        """Every worker counts the answer."""
        replies = [post(stack, "anthropic", key, stream=False, text="x" * 4_000) for _ in range(6)]
        return {reply.status for reply in replies} == {429}

    wait_until(known)
    assert usage["input_tokens"] + usage["output_tokens"] > 1_000
    over = post(stack, "anthropic", key, stream=False, text="x" * 40_000)
    error = over.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert "tokens per minute of this key used" in error["message"]
    assert "it never fits this limit" in error["message"]
    assert over.header("retry-after") == ""


def test_free_routes_never_count(stack):
    account = limited(stack, concurrency=1, requests_per_min=2, tokens_per_min=1_000)
    held = post(stack, "anthropic", stack.new_key(HANGING, account=account), stream=True)
    assert held.status == 200
    key = stack.new_key(account=account)
    count = json.dumps(
        {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "x"}]}
    ).encode()
    for _ in range(4):
        for path in ("/v1/models", "/api/v1/me/account", "/v1/balance", "/v1/usage",
                     "/api/v1/me/usage", "/api/v1/me/billing/transactions"):  # fmt: skip
            assert request(stack.port, "GET", path, key=key).status == 200, path
        counted = request(stack.port, "POST", "/v1/messages/count_tokens", key=key, body=count)
        assert counted.status == 200
        for path, body in (("query", b'{"task_id":"task_none"}'), ("cancel/task_none", b"{}")):
            asked = request(stack.port, "POST", f"/v1/tasks/{path}", key=key, body=body)
            assert (asked.status, asked.json()["error"]["code"]) == (404, "task_not_found"), path
    over = post(stack, "anthropic", key, stream=True)
    assert over.json()["error"]["message"].startswith("concurrency_limit")
    held.close()
    wait_until(lambda: post(stack, "anthropic", key, stream=False).status == 200)

    def told() -> str:
        return post(stack, "anthropic", key, stream=False).json()["error"]["message"]

    # On a busy machine the place of the last answer may return a moment after its last byte.
    wait_until(lambda: told().startswith("rate_limit_requests exceeded: 2 / 2"))


def test_a_limit_that_is_changed_holds_within_a_second(stack):
    def held_s() -> float:
        account = limited(stack, requests_per_min=1)
        key = stack.new_key(account=account)
        assert refused(post(stack, "chat", key, stream=False)) == (200, "")
        assert refused(post(stack, "chat", key, stream=False))[0] == 429
        stack._open_books().catalog.update_account(account, requests_per_min=0)
        began_s = time.monotonic()
        wait_until(lambda: refused(post(stack, "chat", key, stream=False))[0] == 200)
        return time.monotonic() - began_s

    within(1.5, held_s)


def test_refusals_are_told_in_usage_and_metrics(stack):
    account = limited(stack, requests_per_min=1)
    key = stack.new_key(account=account)
    post(stack, "chat", key, stream=False).body()
    assert refused(post(stack, "chat", key, stream=False))[0] == 429
    rows = stack.wait_for_rows(2, key)
    assert {(row["status"], row["error_code"], row["cost_nano"] > 0) for row in rows} == {
        (200, None, True),
        (429, "rate_limit_exceeded", False),
    }

    def told() -> bool:
        with_reason = 'tollgate_quota_denied_total{reason="requests"}'
        return with_reason.encode() in request(stack.port, "GET", "/metrics").body()

    wait_until(told)
