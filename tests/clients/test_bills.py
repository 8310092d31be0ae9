"""One account, every kind of ending: its rows, buckets, balance, the ledger and the provider's log
tell the same to the nano-dollar, on each foundation of the program."""

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from tests.parts.bill import assert_bill_matches, charged_nano
from tests.parts.feature import wait_until
from tests.parts.wire import PATHS, post, request, text_body

USD_NANO = 10**9


def balance_nano(stack, account: str) -> int:
    """What the ledger says is left, once it has booked everything."""
    listed = json.loads(stack.cli("account", "list", "--json").stdout)
    row = next(row for row in listed if row["id"] == account)
    return int(Decimal(row["topped_up_usd"]) * USD_NANO - Decimal(row["charged_usd"]) * USD_NANO)


def served(stack, key: str, **more) -> int:
    """One JSON and one stream call in each dialect; how many."""
    for dialect in PATHS:
        for stream in (True, False):
            reply = post(stack, dialect, key, stream=stream, **more)
            assert (reply.status, bool(reply.body())) == (200, True)
    return 2 * len(PATHS)


def test_rows_buckets_balance_ledger_and_the_providers_log_agree(each_stack):
    stack = each_stack
    before, account = stack.sim.last_id(), stack.new_account()
    key = stack.new_key(account=account)
    count = served(stack, key) + served(stack, key, text="sim:words 900")
    for fault in ("error-500", "200-error-body", "cut-mid-stream", "empty"):
        failing = stack.new_key(f"fault-{fault}", account=account)
        for dialect in PATHS:
            post(stack, dialect, failing, stream=fault == "cut-mid-stream").body()
            count += 1
    assert post(stack, "chat", key, stream=False, model="gpt-none").status == 404
    count += 1

    rows = stack.wait_for_rows(count, key)
    assert len(rows) == count
    calls = stack.sim.calls(after=before)
    assert_bill_matches(rows, [c for c in calls if c["fault"] is None])
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert cost_nano == sum(Decimal(row["cost_usd"]) for row in rows) * USD_NANO
    wait_until(lambda: balance_nano(stack, account) == 100 * USD_NANO - cost_nano)
    buckets = stack.get("/api/v1/me/usage", key)
    assert buckets["totals"]["call_count"] == sum(row["cost_nano"] > 0 for row in rows)
    assert Decimal(buckets["totals"]["total_usd"]) * USD_NANO == cost_nano


def test_each_row_is_the_call_that_the_provider_logged(each_stack):
    stack = each_stack
    before, account = stack.sim.last_id(), stack.new_account()
    key = stack.new_key(account=account)
    stack.wait_for_rows(served(stack, key), key)
    told = stack.sql(
        "SELECT upstream_request_id, cost_nano, input_tokens, output_tokens, client, path "
        f"FROM usage WHERE account_id = '{account}'"
    )
    by_id = {f"req_sim_{call['id']:08d}": call for call in stack.sim.calls(after=before)}
    assert {row["upstream_request_id"] for row in told} == set(by_id)
    for row in told:
        call = by_id[row["upstream_request_id"]]
        assert int(row["cost_nano"]) == charged_nano(call)
        assert int(row["output_tokens"]) == call["units"]["output"]
        assert row["path"] == call["path"]


def test_a_client_that_hangs_up_pays_for_its_part(each_stack):
    stack = each_stack
    before, account = stack.sim.last_id(), stack.new_account()
    key = stack.new_key("fault-slow-300", account=account)
    for dialect in PATHS:
        reply = post(stack, dialect, key, stream=True, text="sim:words 200")
        for n, _ in enumerate(reply.reads()):
            if n >= 6:
                break
        reply.close()
    rows = stack.wait_for_rows(3, key)
    assert {row["outcome"] for row in rows} == {"client_aborted"}
    whole = {c["dialect"]: charged_nano(c) for c in stack.sim.wait_for_calls(3, after=before)}
    for row in rows:
        assert 0 < row["cost_nano"] < whole[row["dialect"]], row
        assert row["estimated"]
    cost_nano = sum(row["cost_nano"] for row in rows)
    wait_until(lambda: balance_nano(stack, account) == 100 * USD_NANO - cost_nano)


@pytest.mark.parametrize("dialect", list(PATHS))
def test_a_provider_that_uses_too_much_never_passes_the_limit(stack, dialect):
    """The answer costs three times the hold; the wallet holds little more than the hold."""
    wallet_nano = 5_000_000 if dialect == "anthropic" else 1_700_000
    account = stack.new_account(str(Decimal(wallet_nano) / USD_NANO))
    key = stack.new_key("fault-huge-usage", account=account)
    before = stack.sim.last_id()
    for _ in range(4):
        post(stack, dialect, key, stream=False).body()
    rows = stack.wait_for_rows(4, key)
    charged = sum(row["cost_nano"] for row in rows)
    assert 0 < charged <= wallet_nano
    calls = [c for c in stack.sim.calls(after=before) if c["status"] == 200]
    assert sum(charged_nano(c) for c in calls) > charged  # the rest is ours
    wait_until(lambda: balance_nano(stack, account) == wallet_nano - charged)
    assert "completed" in {row["outcome"] for row in rows}


def test_a_provider_that_tells_absurd_numbers_takes_no_more_than_there_is(stack):
    account = stack.new_account("1")
    key = stack.new_key("absurd", account=account)
    reply = post(stack, "anthropic", key, stream=False)
    reply.body()
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), key)
    assert row["cost_nano"] <= USD_NANO
    assert post(stack, "anthropic", stack.new_key(account=account), stream=False).status in (
        200,
        402,
    )
    wait_until(lambda: balance_nano(stack, account) <= USD_NANO - row["cost_nano"])


def test_twenty_clients_at_once_on_a_small_wallet(each_stack):
    """However many race, what they are charged stays within the wallet."""
    stack = each_stack
    wallet_nano = 20_000_000
    account = stack.new_account("0.02")
    key = stack.new_key(account=account)

    def one(_) -> int:
        reply = post(stack, "anthropic", key, stream=True, text="sim:words 400")
        reply.body()
        return reply.status

    with ThreadPoolExecutor(20) as clients:
        statuses = list(clients.map(one, range(100)))
    rows = stack.wait_for_rows(100, key)
    assert len(statuses) == 100
    assert set(statuses) <= {200, 402}
    assert sum(row["outcome"] == "completed" for row in rows) == statuses.count(200) > 0
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert cost_nano <= wallet_nano
    wait_until(lambda: balance_nano(stack, account) == wallet_nano - cost_nano)


def test_count_tokens_is_free_and_parallel(stack):
    key = stack.new_key()
    body = text_body("anthropic", stream=False)
    path = "/v1/messages/count_tokens?beta=true"
    replies = [request(stack.port, "POST", path, key=key, body=body) for _ in range(10)]
    assert {reply.json()["input_tokens"] > 0 for reply in replies} == {True}
    assert stack.usage_rows(key) == []


def test_an_upstream_that_cannot_count_is_estimated_for(stack):
    key, before = stack.key("uncounted"), stack.sim.last_id()
    body = text_body("anthropic", stream=False, text="x" * 4000)
    reply = request(stack.port, "POST", "/v1/messages/count_tokens", key=key, body=body)
    assert reply.status == 200
    assert reply.header("x-tollgate-estimated") == "true"
    assert 900 < reply.json()["input_tokens"] < 1200
    assert stack.sim.calls(after=before) == []


@pytest.mark.parametrize("text", ["a\0b", "a\\u0000b", "\x7f\u2028"], ids=ascii)
def test_texts_that_a_database_may_not_store_do_not_stop_the_bill(each_stack, text):
    stack = each_stack
    account = stack.new_account()
    key = stack.new_key(account=account)
    post(stack, "chat", key, stream=False, prompt_cache_key=text).body()
    post(stack, "responses", key, stream=True, prompt_cache_key=text).body()
    post(stack, "anthropic", key, stream=False, path="/a%00b/v1/messages").body()
    assert post(stack, "anthropic", key, stream=False, model=text).status == 404
    rows = stack.wait_for_rows(4, key)
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert sum(row["cost_nano"] > 0 for row in rows) == 3
    wait_until(lambda: balance_nano(stack, account) == 100 * USD_NANO - cost_nano)


def test_the_session_and_agent_of_a_call_are_kept(stack):
    account = stack.new_account()
    key = stack.new_key(account=account)
    headers = [
        ("x-claude-code-session-id", "5e551011-0000-4000-8000-000000000001"),
        ("x-claude-code-agent-id", "agent-7"),
        ("user-agent", "claude-cli/2.1.197 (external, cli)"),
    ]
    body = text_body("anthropic", stream=True)
    request(stack.port, "POST", PATHS["anthropic"], key=key, headers=headers, body=body).body()
    stack.wait_for_rows(1, key)
    told = stack.sql(
        f"SELECT session_id, agent_id, client FROM usage WHERE account_id = '{account}'"
    )
    assert told == [
        {"session_id": headers[0][1], "agent_id": "agent-7", "client": "claude-cli/2.1.197"}
    ]


def test_half_a_dollar_admits_a_coding_agents_request(stack):
    """76 KB of prompt with a long-lived cache, up to 64,000 tokens of answer: a dollar at worst."""
    key = stack.new_key(usd="0.50")
    part = {"type": "text", "text": "x" * 75_600}
    part["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    system = {"model": "claude-sonnet-4-5", "max_tokens": 64_000, "system": [part]}
    whole = post(stack, "anthropic", key, stream=False, **system)
    assert whole.status == 402
    reply = post(stack, "anthropic", key, stream=True, **system)
    assert reply.status == 200
    assert int(reply.header("x-estimated-credits")) > 1_000_000
    assert b"message_stop" in reply.body()
    row = stack.wait_for_rows(2, key)[0]
    assert row["outcome"] == "completed"
    assert 0 < row["cost_nano"] < 500_000_000
