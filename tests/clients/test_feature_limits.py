"""Limits of money as a client meets them: spend windows, sub-keys, members of an org."""

import re
import time

import pytest
from sqlalchemy import update

from services.backends import settings
from services.backends.sql.engine import open_engine, write
from services.backends.sql.tables import limit_row
from services.core.money import parse_usd
from tests.parts.feature import NANO, assert_accounted, make_key, wait_everywhere, wait_until
from tests.parts.wire import PATHS, post, request, text_body

HOURS_S = 3600
BIG = {"anthropic": "max_tokens", "chat": "max_tokens", "responses": "max_output_tokens"}


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


def books(stack):
    return stack._open_books()


def whole(stack, dialect, key, **more):
    """A small request that is not streamed."""
    return post(stack, dialect, key, stream=False, **more)


def too_big(stack, dialect, key, **more):
    """One that may cost about $0.2."""
    return whole(stack, dialect, key, **{BIG[dialect]: 60_000}, **more)


def wait_settled(stack, secret, count):
    """What `count` requests cost, once their spend is settled: then nothing is leased idle."""
    rows = stack.wait_for_rows(count, secret)
    return sum(row["cost_nano"] for row in rows)


# -- windows -----------------------------------------------------------------------------------


def test_a_full_window_is_429_with_its_reset_and_no_upstream_call(stack, dialect):
    _, secret = make_key(stack, window_5h_nano=NANO // 100, window_7d_nano=NANO)
    before = stack.sim.last_id()
    reply = too_big(stack, dialect, secret)
    body = reply.json()["error"]
    assert reply.status == 429
    assert_accounted(reply)
    assert re.match(r"rate_limit_5h exceeded: \d+\.\d\d / 0\.01 used; ", body["message"])
    assert stack.sim.calls(after=before) == []
    assert reply.header("x-ratelimit-limit") == "0.01"
    assert abs(int(reply.header("x-ratelimit-reset")) - time.time()) < 30  # nothing is spent
    if dialect == "anthropic":
        assert body["type"] == "rate_limit_error"
        assert reply.header("x-should-retry") == "false"
    else:
        assert (body["type"], body["code"]) == ("rate_limit_exceeded",) * 2
        assert reply.header("x-should-retry") == ""
    assert whole(stack, dialect, secret).status == 200  # a smaller one fits
    rows = stack.wait_for_rows(2, secret)
    assert [row["error_code"] for row in rows] == [None, "rate_limit_exceeded"]
    assert rows[1]["cost_nano"] == 0


def spend(stack, secret, count=3):
    """Some requests, and what they cost."""
    for _ in range(count):
        assert whole(stack, "anthropic", secret, text="sim:words 300").status == 200
    return wait_settled(stack, secret, count)


def test_a_spent_window_tells_when_it_has_room_again(stack):
    key, secret = make_key(stack, window_5h_nano=NANO)
    spent_nano = spend(stack, secret)
    # From now on the window is as large as what was spent, and a little more.
    books(stack).catalog.update_key(key.id, window_5h_nano=spent_nano + 1000)
    # While something of the window is still leased, nobody knows when it has room.
    reply = wait_until(lambda: timed_refusal(stack, secret))
    wait_s = int(reply.header("retry-after"))
    assert 5 * HOURS_S - 60 < wait_s < 5 * HOURS_S + 400
    assert abs(int(reply.header("x-ratelimit-reset")) - time.time() - wait_s) < 30
    assert reply.header("x-ratelimit-remaining") == "0.00"
    assert re.search(
        r"resets at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", reply.json()["error"]["message"]
    )


def refused(stack, secret, status, dialect="anthropic", **more):
    reply = whole(stack, dialect, secret, **more)
    return reply if reply.status == status else None


def timed_refusal(stack, secret):
    reply = refused(stack, secret, 429)
    return reply if reply is not None and reply.header("retry-after") else None


def test_codex_is_told_to_stop_and_when_to_come_back(stack):
    key, secret = make_key(stack, window_1d_nano=NANO)
    spent_nano = spend(stack, secret)
    books(stack).catalog.update_key(key.id, window_1d_nano=spent_nano + 1000)
    wait_everywhere(lambda: refused(stack, secret, 429))
    body = text_body("responses", stream=True, max_output_tokens=60_000)
    reply = request(
        stack.port,
        "POST",
        PATHS["responses"],
        key=secret,
        body=body,
        headers=[("user-agent", "codex_cli_rs/0.50"), ("originator", "codex_cli_rs")],
    )
    error = reply.json()["error"]
    assert reply.status == 429
    assert reply.header("retry-after") == ""
    assert (error["type"], error["code"]) == ("usage_limit_reached", "rate_limit_exceeded")
    assert error["plan_type"]
    # More than the window will ever have free for it, so it resets at once or within a day.
    assert time.time() - 30 < error["resets_at"] < time.time() + 25 * HOURS_S
    plain = too_big(stack, "responses", secret)
    assert plain.json()["error"]["type"] == "rate_limit_exceeded"


def test_the_tightest_window_is_told(stack):
    caps = {"window_5h_nano": 5 * NANO, "window_1d_nano": 3 * NANO, "window_7d_nano": 4 * NANO}
    key, secret = make_key(stack, **caps)
    reply = whole(stack, "chat", secret)
    assert reply.status == 200
    assert_accounted(reply)
    assert reply.header("x-ratelimit-limit") == "3.00"
    assert reply.header("x-ratelimit-remaining") in ("2.99", "3.00")
    books(stack).catalog.update_key(key.id, window_7d_nano=2 * NANO)
    wait_until(lambda: whole(stack, "chat", secret).header("x-ratelimit-limit") == "2.00")
    books(stack).catalog.update_key(
        key.id, window_7d_nano=None, window_1d_nano=None, window_5h_nano=None
    )
    wait_until(lambda: whole(stack, "chat", secret).header("x-ratelimit-limit") == "0.00")


def test_a_window_rolls_on(stack):
    """With a window of two seconds instead of five hours: full, then free again."""
    key, secret = make_key(stack, window_5h_nano=NANO // 100)
    engine = open_engine(stack_database(stack), stack.data_dir)
    shorter = update(limit_row).where(
        limit_row.c.subject == key.id, limit_row.c.kind == "window_5h"
    )
    write(engine, lambda c: c.execute(shorter.values(window_us=2_000_000)))
    engine.dispose()
    statuses = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        reply = whole(stack, "anthropic", secret, text="sim:words 1500", max_tokens=1_900)
        statuses.append(reply.status)
        if 429 in statuses and reply.status == 200 and statuses[-2] == 429:
            break
    assert set(statuses) == {200, 429}
    assert statuses[-2:] == [429, 200]


def stack_database(stack):
    return settings.load(stack.config_file, {}, data_dir=str(stack.data_dir)).database.url


# -- sub-keys ----------------------------------------------------------------------------------


def test_a_sub_keys_spend_is_its_parents(stack):
    account = stack.new_account()
    parent, secret = make_key(stack, account=account, quota_nano=NANO // 10)
    catalog = books(stack).catalog
    _, first = catalog.create_key(account, "first", parent_id=parent.id)
    _, second = catalog.create_key(account, "second", parent_id=parent.id, quota_nano=NANO // 50)
    assert whole(stack, "chat", first).status == 200
    small = too_big(stack, "anthropic", second, model="claude-sonnet-4-5")
    assert small.status == 402
    assert "the key's quota has $" in small.json()["error"]["message"]
    spent_nano = stack.wait_for_rows(2, first)[1]["cost_nano"]
    # What is left of the parent's quota is what every one of its sub-keys has left.
    left = f"{(NANO // 10 - spent_nano) // 10_000_000 / 100:.2f}"
    wait_until(
        lambda: (
            {
                request(stack.port, "GET", "/v1/models", key=each).header(
                    "x-quota-remaining-credits"
                )
                for each in (first, secret)
            }
            == {left}
        )
    )
    catalog.update_key(parent.id, quota_nano=NANO // 1000)
    full = wait_until(lambda: refused(stack, first, 402, text="sim:words 900"))
    assert full.json()["error"]["message"].startswith("quota_exceeded: the parent key's quota has")


def test_a_sub_key_and_its_stream_end_with_the_parent(stack):
    account = stack.new_account()
    parent, _ = make_key(stack, account=account, group="slow-long")
    _, child = books(stack).catalog.create_key(account, "child", parent_id=parent.id)
    reply = post(stack, "anthropic", child, stream=True, max_tokens=2_000, text="sim:words 1500")
    assert reply.status == 200
    books(stack).catalog.revoke_key(parent.id)
    assert b"event: error" in reply.body()
    assert wait_until(lambda: refused(stack, child, 401))


# -- members of an org -------------------------------------------------------------------------


@pytest.fixture
def org(stack):
    opened = books(stack)
    made = opened.catalog.create_account(f"org-{time.time_ns()}", kind="org")
    opened.wallets.move(made.id, "topup", parse_usd("50"), "", "test")
    return made


def test_a_member_is_stopped_by_its_allotment_while_the_org_has_money(stack, org):
    catalog = books(stack).catalog
    poor = catalog.create_member(org.id, "poor", models=["*"], quota_nano=NANO // 100)
    rich = catalog.create_member(org.id, "rich", models=["*"])
    _, first = catalog.create_key(org.id, "a", member_id=poor.id)
    _, second = catalog.create_key(org.id, "b", member_id=rich.id)
    before = stack.sim.last_id()
    reply = too_big(stack, "chat", first)
    assert reply.status == 402
    error = reply.json()["error"]
    assert error["code"] == "quota_exceeded"
    assert error["message"].startswith("quota_exceeded: the member's allotment has $0.01 left")
    assert stack.sim.calls(after=before) == []
    assert too_big(stack, "chat", second).status == 200
    assert_accounted(reply)
    assert reply.header("x-quota-remaining-credits") == "0.01"
    assert reply.header("x-org-quota-remaining-credits") in ("49.99", "50.00")
    plain = whole(stack, "chat", stack.key())
    assert plain.header("x-org-quota-remaining-credits") == ""


def test_a_cap_stops_one_model_and_the_account_shows_it(stack, org):
    catalog = books(stack).catalog
    member = catalog.create_member(
        org.id, "ann", role="admin", models=["*"], caps_nano={"claude-haiku-4-5": NANO // 100}
    )
    _, secret = catalog.create_key(org.id, "hers", member_id=member.id)
    assert whole(stack, "anthropic", secret).status == 200
    reply = too_big(stack, "anthropic", secret)
    assert reply.status == 402
    message = reply.json()["error"]["message"]
    assert message.startswith("quota_exceeded: the member's cap for this model has $0.0")
    assert too_big(stack, "anthropic", secret, model="claude-sonnet-4-5").status == 200
    stack.wait_for_rows(3, secret)

    def shown():
        told = stack.get("/api/v1/me/account", secret)
        models = {each["id"]: each for each in told["allowed_models"]}
        used_nano = round(models["claude-haiku-4-5"]["quota_used_usd"] * NANO)
        return told if 0 <= used_nano - cost_nano_of(stack, secret) < 1000 else None

    told = wait_until(shown)
    assert told["org"] == {"id": org.id, "name": org.name, "role": "admin"}
    models = {each["id"]: each for each in told["allowed_models"]}
    assert models["claude-haiku-4-5"]["quota_cap_usd"] == 0.01
    assert models["claude-sonnet-4-5"]["quota_cap_usd"] is None
    assert stack.get("/api/v1/me/account", stack.key())["org"] is None


def cost_nano_of(stack, secret):
    rows = stack.usage_rows(secret)
    return sum(row["cost_nano"] for row in rows if row["model"] == "claude-haiku-4-5")
