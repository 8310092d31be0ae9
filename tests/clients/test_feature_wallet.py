"""Wallets by the management API: top-ups with a bonus, credits and debits, transactions."""

import uuid

import pytest

from tests.parts.feature import admin_key, api, refused, wait_until
from tests.parts.wire import post

NANO_USD = 0.000000001


@pytest.fixture
def admin(stack):
    return admin_key(stack)


@pytest.fixture
def account(stack, admin):
    body = {"name": f"wallet-{uuid.uuid4().hex[:8]}"}
    return api(stack, "POST", "/accounts", admin, body).json()["id"]


def lines(stack, admin, account):
    told = api(stack, "GET", f"/accounts/{account}/transactions", admin).json()["items"]
    return [(row["kind"], row["amount_usd"], row["balance_after_usd"]) for row in told]


def test_a_top_up_and_its_bonus_are_two_lines(stack, admin, account):
    for paid, earned in ((5, 0), (20, 0.6), (100, 5), (500, 40), (1000, 112)):
        body = {"amount": paid, "bonus": True, "external_id": f"pay-{paid}", "note": "card"}
        told = api(stack, "POST", f"/accounts/{account}/topup", admin, body).json()
        assert (told["amount_usd"], told["bonus_usd"]) == (paid, earned)
        again = api(stack, "POST", f"/accounts/{account}/topup", admin, body).json()
        assert again["movement_ids"] == told["movement_ids"]
    assert lines(stack, admin, account) == [
        ("bonus", 112, 1782.6), ("topup", 1000, 1670.6),
        ("bonus", 40, 670.6), ("topup", 500, 630.6),
        ("bonus", 5, 130.6), ("topup", 100, 125.6),
        ("bonus", 0.6, 25.6), ("topup", 20, 25),
        ("topup", 5, 5),
    ]  # fmt: skip
    key = stack.new_key(account=account)
    assert stack.get("/v1/balance", key)["available_usd"] == 1782.6
    mine = stack.get("/api/v1/me/billing/transactions?kind=bonus&page_size=1", key)
    assert (mine["total"], mine["items"][0]["amount_usd"]) == (4, 112)
    body = {"amount": 6, "external_id": "pay-5"}
    reply = api(stack, "POST", f"/accounts/{account}/topup", admin, body)
    assert refused(reply)[:2] == (409, "conflict")


def test_credits_and_debits_have_a_note_and_an_actor(stack, admin, account):
    path = f"/accounts/{account}"
    credit = {"amount": "1.5", "note": "for the outage"}
    assert api(stack, "POST", f"{path}/credit", admin, credit).json()["amount_usd"] == 1.5
    debit = {"amount": 0.25, "note": "correction"}
    moved = api(stack, "POST", f"{path}/debit", admin, debit).json()
    assert moved["amount_usd"] == -0.25
    assert moved["account"]["balance"]["available_usd"] == 1.25
    told = stack.get("/api/v1/me/billing/transactions", stack.new_key(account=account))["items"]
    assert [(row["kind"], row["note"], row["source"]["actor"]) for row in told] == [
        ("admin_debit", "correction", "operator"),
        ("admin_credit", "for the outage", "operator"),
    ]
    assert lines(stack, admin, account) == [
        ("admin_debit", -0.25, 1.25),
        ("admin_credit", 1.5, 1.5),
    ]


def test_a_debit_takes_idle_money_back_but_never_what_is_spent(stack, admin, account):
    path = f"/accounts/{account}"
    api(stack, "POST", f"{path}/topup", admin, {"amount": 1})
    key = stack.new_key(account=account)
    reply = post(stack, "chat", key, stream=False)  # a worker has a lease now
    assert reply.status == 200
    cost_nano = stack.wait_for_row(reply.header("x-tollgate-request-id"), key)["cost_nano"]

    def settled():
        told = api(stack, "GET", path, admin).json()["balance"]
        return round(told["lifetime_spent_usd"] / NANO_USD) == cost_nano

    wait_until(settled)
    left = f"{(10**9 - cost_nano) / 10**9:.9f}"
    too_much = f"{(10**9 - cost_nano + 1) / 10**9:.9f}"
    reply = api(stack, "POST", f"{path}/debit", admin, {"amount": too_much, "note": "x"})
    assert refused(reply)[:2] == (402, "insufficient_balance")
    debit = {"amount": left, "note": "all of it"}  # waits two seconds for what lies idle

    def taken():
        reply = api(stack, "POST", f"{path}/debit", admin, debit)
        return reply if reply.status == 200 else None

    assert wait_until(taken).json()["account"]["balance"]["available_usd"] == 0
    assert post(stack, "chat", key, stream=False).status == 402


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("topup", {}, "amount"),
        ("topup", {"amount": 0}, "amount"),
        ("topup", {"amount": -5}, "amount"),
        ("topup", {"amount": 1e12}, "amount"),
        ("topup", {"amount": 1_000_000_001}, "amount"),
        ("topup", {"amount": 1, "bonus": "yes"}, "bonus"),
        ("credit", {"amount": 1}, "note"),
        ("debit", {"amount": 1, "note": ""}, "note"),
        ("debit", {"amount": "x", "note": "x"}, "amount"),
    ],
)
def test_a_wrong_field_is_400_with_its_path(stack, admin, account, route, body, param):
    reply = api(stack, "POST", f"/accounts/{account}/{route}", admin, body)
    assert refused(reply) == (400, "invalid_param", param)


def test_accounts_are_the_operators(stack, admin, account):
    key = stack.new_key(account=account)
    for method, path, body in (
        ("GET", "/accounts", None),
        ("POST", "/accounts", {"name": "mine"}),
        ("GET", f"/accounts/{account}", None),
        ("PUT", f"/accounts/{account}", {"concurrency": 0}),
        ("POST", f"/accounts/{account}/credit", {"amount": 1, "note": "please"}),
        ("POST", f"/accounts/{account}/resume", None),
        ("GET", f"/accounts/{account}/transactions", None),
    ):
        reply = api(stack, method, path, key, body)
        assert refused(reply)[:2] == (403, "permission_denied"), (method, path)
    body = {"concurrency": 5, "requests_per_min": 60, "tokens_per_min": 50_000}
    changed = api(stack, "PUT", f"/accounts/{account}", admin, body).json()
    assert {name: changed[name] for name in body} == body
    one = api(stack, "GET", f"/accounts/{account}", admin).json()
    assert {name: one[name] for name in body} == body
    assert refused(api(stack, "GET", "/accounts/acct_none", admin))[:2] == (404, "not_found")
    taken = {"name": one["name"]}
    assert refused(api(stack, "POST", "/accounts", admin, taken))[:2] == (409, "conflict")
    assert api(stack, "GET", "/accounts?page_size=1", admin).json()["page_size"] == 1
