"""Holds, charges and quotas as a customer can see them, on the running program."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parts.feature import NANO, balances, make_key, wait_until, worker_of
from tests.parts.wire import PATHS, frames, post


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


def near(told: set[float], wanted_nano: int) -> bool:
    """Every worker tells the amount, to the micro-dollar (what is left is rounded down)."""
    return all(abs(usd * NANO - wanted_nano) <= 1_000 for usd in told)


def hang_up(reply) -> None:
    """Once something of the answer has come, which is due."""
    got, reads = b"", reply.reads()
    while b"delta" not in got:
        got += next(reads)[1]
    reply.close()


def test_a_hold_shows_while_its_request_runs(stack):
    """In the balance of every worker; afterwards only the cost is gone."""
    key = stack.new_key("slow-long")
    # No more output than the first slice of an elastic hold: all of it is held.
    reply = post(stack, "anthropic", key, stream=True, max_tokens=2_000, model="claude-sonnet-4-5")
    hold_nano = int(reply.header("x-estimated-credits")) * 1000
    assert hold_nano > 0.02 * NANO
    wait_until(lambda: near(balances(stack, key), 100 * NANO - hold_nano), 10.0)
    hang_up(reply)
    cost_nano = stack.wait_for_rows(1, key)[0]["cost_nano"]
    assert cost_nano > 0
    wait_until(lambda: near(balances(stack, key), 100 * NANO - cost_nano))


def test_what_was_charged_and_what_is_held_are_what_is_gone(stack):
    account = stack.new_account("1")
    key = stack.new_key(account=account)
    for dialect in PATHS:
        for stream in (True, False):
            assert post(stack, dialect, key, stream=stream).body()
    rows = stack.wait_for_rows(6, key)
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert len({row["request_id"] for row in rows}) == 6
    slow = post(stack, "chat", stack.new_key("slow-long", account=account), stream=True)
    hold_nano = int(slow.header("x-estimated-credits")) * 1000
    wait_until(lambda: near(balances(stack, key), NANO - cost_nano - hold_nano), 10.0)
    hang_up(slow)
    rows = stack.wait_for_rows(7, key)
    cost_nano = sum(row["cost_nano"] for row in rows)

    def settled() -> bool:
        told = stack.get("/v1/balance", key)
        return round(told["lifetime_spent_usd"] * NANO) == cost_nano

    wait_until(settled)
    wait_until(lambda: near(balances(stack, key), NANO - cost_nano))


def test_a_hold_that_does_not_fit_calls_no_upstream(stack, dialect):
    before, key = stack.sim.last_id(), stack.new_key(usd="0.01")
    cap = {"max_output_tokens" if dialect == "responses" else "max_tokens": 60_000}
    for stream in (True, False):
        reply = post(stack, dialect, key, stream=stream, **cap)
        message = reply.json()["error"]["message"]
        assert reply.status == 402
        assert message.startswith("insufficient_balance")
        missing_usd = float(re.search(r"cost \$([\d.]+) more", message)[1])
        estimate_usd = int(reply.header("x-estimated-credits")) / 1e6
        if stream and dialect == "anthropic":  # elastic: only a first slice was asked for
            assert 0 < missing_usd < estimate_usd - 0.01
        else:
            assert 0 <= estimate_usd - 0.01 - missing_usd < 1e-6
    assert post(stack, dialect, key, stream=False).status == 200  # a smaller one fits
    calls = stack.sim.calls(after=before)
    assert len(calls) == 1
    assert stack.wait_for_rows(3, key)[0]["outcome"] == "completed"


def test_an_error_after_300_tokens_is_free(stack, dialect):
    key = stack.new_key("fault-error-mid-stream-90")
    reply = post(stack, dialect, key, stream=True, text="sim:words 900")
    got = frames(reply.body())
    assert reply.status == 200
    assert len(got) > 75  # four tokens each
    row = stack.wait_for_rows(1, key)[0]
    assert (row["outcome"], row["cost_nano"], row["status"]) == ("failed", 0, 200)
    assert row["error_code"] == "upstream_stream_error"
    wait_until(lambda: balances(stack, key) == {100.0})
    written_off = stack.sql(
        f"SELECT provider_cost_nano FROM usage WHERE key_id = '{row['api_key_id']}'"
    )
    assert len(written_off) == 1


@pytest.mark.parametrize("quota", ["0.02", "0.05"])
def test_a_quota_is_never_passed_by_a_race(stack, quota):
    """32 clients on two workers, each request a large part of the quota."""
    quota_nano = int(float(quota) * NANO)
    key, secret = make_key(stack, quota_nano=quota_nano)

    def one(number: int) -> tuple[int, str]:
        dialect = list(PATHS)[number % 3]
        reply = post(stack, dialect, secret, stream=number % 2 == 0, text="sim:words 400")
        body = reply.body()
        return reply.status, "quota_exceeded" if b"quota_exceeded" in body else ""

    with ThreadPoolExecutor(32) as clients:
        answers = Counter(clients.map(one, range(96)))
    assert set(answers) == {(200, ""), (402, "quota_exceeded")}, answers
    rows = stack.wait_for_rows(96, secret)
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert 0.5 * quota_nano < cost_nano <= quota_nano
    assert Counter(row["outcome"] for row in rows) == {
        "completed": answers[200, ""],
        "refused": answers[402, "quota_exceeded"],
    }
    workers = stack.sql(f"SELECT DISTINCT incarnation FROM usage WHERE key_id = '{key.id}'")
    assert len(workers) == 2


def test_a_hold_comes_back_when_its_worker_is_killed(stack):
    key = stack.new_key("slow-long")
    reply = post(stack, "anthropic", key, stream=True, max_tokens=2_000)
    hold_nano = int(reply.header("x-estimated-credits")) * 1000
    wait_until(lambda: near(balances(stack, key), 100 * NANO - hold_nano), 10.0)
    worker = worker_of(stack, reply)
    worker.kill()
    worker.wait(10)  # a connection that it has just taken would break
    row = stack.wait_for_rows(1, key)[0]
    assert (row["outcome"], row["error_code"], row["cost_nano"]) == ("abandoned", "abandoned", 0)
    wait_until(lambda: balances(stack, key) == {100.0}, told=lambda: balances(stack, key))
    wait_until(lambda: stack._status("/readyz") == 200)
    again = post(stack, "anthropic", stack.key(), stream=False)
    assert again.status == 200
