"""What an account's owner reads: account, usage, transactions, prices, and their aliases."""

import json
import re
from decimal import Decimal

import pytest

from tests.parts.feature import NANO, make_key, wait_until
from tests.parts.stack import price_data
from tests.parts.wire import PATHS, post, request

WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(scope="module")
def spent(stack):
    """An account with two keys, billed calls on both and one failure: (account, [(key, secret)],
    rows of /v1/usage)."""
    account = stack.new_account("10")
    keys = [make_key(stack, account=account) for _ in range(2)]
    for _, secret in keys:
        for dialect in PATHS:
            assert post(stack, dialect, secret, stream=True).body()
    assert post(stack, "chat", keys[0][1], stream=False, model="gpt-none").status == 404
    rows = stack.wait_for_rows(7, keys[0][1])
    total_nano = sum(row["cost_nano"] for row in rows)

    def settled() -> bool:
        told = stack.get("/v1/balance", keys[0][1])
        return round(told["lifetime_spent_usd"] * NANO) == total_nano

    wait_until(settled)
    return account, keys, rows


def test_the_account(stack, spent):
    account, keys, rows = spent
    told = stack.get("/api/v1/me/account", keys[0][1])
    assert set(told) == {"user", "balance", "allowed_models", "org"}
    assert set(told["user"]) == {"id", "username", "email", "created_at", "tier"}
    assert (told["user"]["id"], told["user"]["tier"]) == (account, "individual")
    assert WHEN.fullmatch(told["user"]["created_at"])
    assert set(told["balance"]) == {
        "available_usd", "lifetime_topup_usd", "lifetime_spent_usd",
        "low_balance_threshold_usd", "low_balance_flagged",
    }  # fmt: skip
    cost_nano = sum(row["cost_nano"] for row in rows)
    assert told["balance"]["lifetime_topup_usd"] == 10
    assert round(told["balance"]["lifetime_spent_usd"] * NANO) == cost_nano > 0
    assert told["balance"]["low_balance_flagged"] is False
    assert {frozenset(row) for row in told["allowed_models"]} == {
        frozenset({"id", "quota_used_usd", "quota_cap_usd"})
    }
    listed = stack.get("/v1/models", keys[0][1])["data"]
    assert [row["id"] for row in told["allowed_models"]] == [row["id"] for row in listed]
    assert told["org"] is None
    poor = stack.get("/api/v1/me/account", stack.new_key(usd="0.5"))["balance"]
    assert (poor["low_balance_flagged"], poor["available_usd"]) == (True, 0.5)


@pytest.mark.parametrize("group_by", ["day", "hour", "model", "api_key", "hour,model,api_key"])
def test_usage_in_buckets(stack, spent, group_by):
    _, keys, rows = spent
    billed = [row for row in rows if row["cost_nano"]]
    names = {
        "day": lambda row: {"bucket": row["created_at"][:10]},
        "hour": lambda row: {"bucket": row["created_at"][:13] + ":00:00Z"},
        "model": lambda row: {"model": row["model"]},
        "api_key": lambda row: {"api_key": row["api_key_id"]},
    }
    wanted: dict[str, dict] = {}
    for row in billed:
        bucket = {k: v for word in group_by.split(",") for k, v in names[word](row).items()}
        into = wanted.setdefault(
            json.dumps(bucket, sort_keys=True),
            {
                **bucket,
                "total_usd": Decimal(0),
                "input_tokens": 0,
                "output_tokens": 0,
                "call_count": 0,
            },
        )
        into["total_usd"] += Decimal(row["cost_usd"])
        into["output_tokens"] += row["output_tokens"]
        into["input_tokens"] += row["input_tokens"]
        into["call_count"] += 1
    told = stack.get(f"/api/v1/me/usage?group_by={group_by}", keys[1][1])
    got = [{**bucket, "total_usd": Decimal(bucket["total_usd"])} for bucket in told["buckets"]]

    def order(bucket):
        return json.dumps(bucket, sort_keys=True, default=str)

    assert sorted(got, key=order) == sorted(wanted.values(), key=order)
    assert told["totals"]["call_count"] == len(billed) == 6
    assert Decimal(told["totals"]["total_usd"]) == sum(Decimal(row["cost_usd"]) for row in billed)


def test_a_window_over_90_days_is_refused(stack, spent):
    key = spent[1][0][1]
    for query, status in (
        ("since=2026-01-01&until=2026-04-01", 200),
        ("since=2026-01-01&until=2026-04-01T00:00:01Z", 400),
        ("since=2020-01-01", 400),
    ):
        for path in ("/api/v1/me/usage", "/api/v1/usage"):
            reply = request(stack.port, "GET", f"{path}?{query}", key=key)
            assert reply.status == status, reply.body()
            assert status == 200 or reply.json()["error"]["code"] == "invalid_param"


def test_single_calls_by_limit_key_and_id(stack, spent):
    _, keys, rows = spent
    (first, secret), (second, _) = keys
    billed = {row["request_id"]: row for row in rows if row["cost_nano"]}
    items = stack.get("/api/v1/me/usage?limit=100", secret)["items"]
    assert {item["request_id"] for item in items} == set(billed)
    for item in items:
        row = billed[item["request_id"]]
        assert set(item) == {
            "request_id", "api_key_id", "model", "prompt_tokens", "completion_tokens", "credits",
            "created_at",
        }  # fmt: skip
        assert round(item["credits"] * 1000) == row["cost_nano"]
        assert item["completion_tokens"] == row["output_tokens"]
        assert item["api_key_id"] == row["api_key_id"]
        one = stack.get(f"/api/v1/me/usage?request_id={item['request_id']}", secret)["items"]
        assert one == [item]
    mine = stack.get(f"/api/v1/me/usage?limit=100&api_key_id={second.id}", secret)["items"]
    assert [item["api_key_id"] for item in mine] == [second.id] * 3
    shown = stack.get(f"/api/v1/me/usage?limit=100&api_key={first.masked}", secret)["items"]
    assert [item["api_key_id"] for item in shown] == [first.id] * 3
    stranger = stack.new_key()
    for request_id in billed:
        assert stack.get(f"/api/v1/me/usage?request_id={request_id}", stranger)["items"] == []


def test_wallet_transactions(stack):
    account = stack.new_account("10")
    wallets = stack._open_books().wallets
    wallets.move(account, "admin_debit", -1_500_000_000, "", "test")
    wallets.move(account, "refund", 250_000_000, "receipt-7", "test")
    key = stack.new_key(account=account)
    assert post(stack, "chat", key, stream=False).status == 200  # spending never appears here
    told = stack.get("/api/v1/me/billing/transactions", key)
    assert (told["total"], told["page"], told["page_size"]) == (3, 1, 50)
    assert [(i["kind"], i["amount_usd"], i["balance_after_usd"]) for i in told["items"]] == [
        ("refund", 0.25, 8.75),
        ("admin_debit", -1.5, 8.5),
        ("topup", 10, 10),
    ]
    assert all(WHEN.fullmatch(item["created_at"]) for item in told["items"])
    fields = {"id", "created_at", "kind", "amount_usd", "balance_after_usd", "source", "note"}
    assert all(set(item) == fields for item in told["items"])
    assert told["items"][0]["source"]["receipt_id"] == "receipt-7"
    page = stack.get("/api/v1/me/billing/transactions?page=2&page_size=2", key)
    assert [item["kind"] for item in page["items"]] == ["topup"]
    one = stack.get("/api/v1/me/billing/transactions?kind=topup&page_size=200", key)
    assert [item["balance_after_usd"] for item in one["items"]] == [10]
    none = stack.get("/api/v1/me/billing/transactions?kind=subscription_renew", key)
    assert (none["total"], none["items"]) == (0, [])
    for query in ("kind=spend", "page_size=201", "page=0", "since=x"):
        reply = request(stack.port, "GET", f"/api/v1/me/billing/transactions?{query}", key=key)
        assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_param"), query


def test_the_aliases_tell_the_same_numbers(stack, spent):
    _, keys, rows = spent
    secret = keys[0][1]
    assert stack.get("/v1/balance", secret) == stack.get("/api/v1/me/account", secret)["balance"]
    for query in ("", "?group_by=model,hour", "?limit=3", f"?request_id={rows[0]['request_id']}"):
        ours = stack.get(f"/api/v1/me/usage{query}", secret)
        assert ours == stack.get(f"/api/v1/usage{query}", secret)
    totals = stack.get("/api/v1/usage", secret)["totals"]
    assert Decimal(totals["total_usd"]) == sum(Decimal(row["cost_usd"]) for row in rows)
    assert totals["output_tokens"] == sum(row["output_tokens"] for row in rows)


def test_the_public_price_list_is_the_price_data(stack):
    reply = request(stack.port, "GET", "/api/pricing")
    assert reply.status == 200
    told = {row["model"]: row for row in reply.json()}
    served = {row["id"] for row in stack.get("/v1/models", stack.key())["data"]}
    assert set(told) == served
    classes = {
        "input": "input_per_1m",
        "cache_write_5m": "cache_write_per_1m",
        "cache_read": "cache_read_per_1m",
        "output": "output_per_1m",
    }
    for vendor in ("anthropic", "openai"):
        data = price_data(vendor)
        assert data.keys() & told.keys() == {n for n, r in told.items() if r["vendor"] == vendor}
        for name, prices in data.items():
            row = told[name]
            assert set(row) == {"model", "category", "vendor", "rates", "updated_at"}
            assert (row["category"], row["rates"]["currency"]) == ("text", "USD")
            assert WHEN.fullmatch(row["updated_at"])
            for ours, theirs in classes.items():
                assert Decimal(str(row["rates"][theirs])) == Decimal(prices[ours]), name
