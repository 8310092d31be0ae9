"""Keys by the management API: made, listed, changed, revealed, rotated, ended; sub-keys."""

import json
import re
import time

import pytest
from sqlalchemy import select

from schemas import events
from services.backends.sql.engine import read
from services.backends.sql.tables import sql_outbox
from tests.parts.feature import (
    admin_key,
    api,
    assert_accounted,
    each_worker,
    make_key,
    refused,
    statuses,
    wait_until,
)
from tests.parts.wire import PATHS, frames, post, request, text_body

SECRET = re.compile(r"sk-toll-[A-Za-z0-9_-]{43}")
WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
FIELDS = {
    "id", "name", "key", "account_id", "parent_id", "member_id", "group_id", "group", "status",
    "quota", "rate_limit_5h", "rate_limit_1d", "rate_limit_7d", "ip_whitelist", "ip_blacklist",
    "models", "concurrency", "requests_per_min", "tokens_per_min", "expires_at", "created_at",
}  # fmt: skip


@pytest.fixture
def account(stack):
    return stack.new_account()


@pytest.fixture
def owner(stack, account):
    """The secret of a key without limits."""
    return stack.new_key(account=account)


def create(stack, manager, **body):
    reply = api(stack, "POST", "/keys", manager, {"name": "made", **body})
    assert reply.status == 201, reply.body()
    assert_accounted(reply)
    return reply.json()


def test_a_key_is_made_with_every_field_and_listed_masked(stack, owner, account):
    body = {
        "group_id": "default",
        "quota": 200,
        "rate_limit_5h": "0.5",
        "rate_limit_1d": 20,
        "rate_limit_7d": 50.25,
        "ip_whitelist": ["127.0.0.0/8", "2001:db8::/32"],
        "ip_blacklist": ["192.0.2.7/32"],
        "models": ["gpt-5-mini", "claude-haiku-4.5"],
        "concurrency": 3,
        "requests_per_min": 60,
        "tokens_per_min": 50_000,
        "expires_in_days": 90,
    }
    made = create(stack, owner, **body)
    assert set(made) == FIELDS
    assert SECRET.fullmatch(made["key"])
    kept = {name: made[name] for name in body if name not in ("expires_in_days", "models")}
    assert kept == {name: body[name] for name in kept} | {"rate_limit_5h": 0.5}
    assert made["models"] == ["gpt-5-mini", "claude-haiku-4-5"]
    assert (made["account_id"], made["status"], made["parent_id"]) == (account, "active", None)
    assert WHEN.fullmatch(made["expires_at"])
    assert WHEN.fullmatch(made["created_at"])
    days = time.strptime(made["expires_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(days) - time.mktime(time.gmtime()) - 90 * 86_400) < 7200

    reply = api(stack, "GET", "/keys", owner)
    listed = reply.body()
    assert made["key"].encode() not in listed
    told = json.loads(listed)
    assert (told["total"], told["page"], told["page_size"]) == (2, 1, 50)
    row = next(item for item in told["items"] if item["id"] == made["id"])
    assert row == {**made, "key": f"sk-toll-...****{made['key'][-4:]}"}
    one = api(stack, "GET", f"/keys/{made['id']}", owner).json()
    used = {name: one.pop(name) for name in list(one) if name.endswith("_used")}
    assert one == row
    assert used == {
        "quota_used": 0, "rate_limit_5h_used": 0, "rate_limit_1d_used": 0, "rate_limit_7d_used": 0,
    }  # fmt: skip
    assert request(stack.port, "GET", "/v1/models", key=made["key"]).status == 200


def test_what_is_not_said_is_no_limit(stack, owner):
    made = create(stack, owner)
    assert [made[name] for name in ("quota", "rate_limit_5h", "rate_limit_7d")] == [0, 0, 0]
    assert [made[name] for name in ("ip_whitelist", "models", "expires_at")] == [[], [], None]
    assert made["group"] == "default"
    assert create(stack, owner, quota=0, rate_limit_5h=None)["quota"] == 0
    assert create(stack, owner, status="disabled")["status"] == "disabled"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\u0000b"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "k", "quota": -1}, "quota"),
        ({"name": "k", "quota": "ten"}, "quota"),
        ({"name": "k", "quota": 1e300}, "quota"),
        ({"name": "k", "quota": "0.0000000001"}, "quota"),
        ({"name": "k", "rate_limit_1d": [1]}, "rate_limit_1d"),
        ({"name": "k", "ip_whitelist": ["10.0.0.0/8", "ten"]}, "ip_whitelist[1]"),
        ({"name": "k", "ip_blacklist": [1]}, "ip_blacklist[0]"),
        ({"name": "k", "models": ["gpt-none"]}, "models[0]"),
        ({"name": "k", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "k", "concurrency": -1}, "concurrency"),
        ({"name": "k", "status": "revoked"}, "status"),
        ({"name": "k", "custom_key": "too-short"}, "custom_key"),
        ({"name": "k", "custom_key": "with spaces in between"}, "custom_key"),
        ({"name": "k", "custom_key": "x" * 257}, "custom_key"),
        ({"name": "k", "color": "red"}, "color"),
        ([], None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_400_with_its_path(stack, owner, body, param):
    assert refused(api(stack, "POST", "/keys", owner, body)) == (400, "invalid_param", param)


def test_what_is_not_json_or_too_large_is_refused(stack, owner):
    reply = request(stack.port, "POST", "/api/v1/keys", key=owner, body=b'{"name": ')
    assert refused(reply) == (400, "invalid_param", None)
    reply = request(stack.port, "POST", "/api/v1/keys", key=owner, body=b" " * (2**20 + 1))
    assert refused(reply)[:2] == (413, "request_entity_too_large")


def test_groups_and_keys_that_are_not_there_are_404(stack, owner):
    assert refused(api(stack, "POST", "/keys", owner, {"name": "k", "group": "none"}))[0] == 404
    stranger, _ = make_key(stack)
    for key_id in ("key_none", stranger.id):
        assert refused(api(stack, "GET", f"/keys/{key_id}", owner))[:2] == (404, "not_found")
        assert refused(api(stack, "PUT", f"/keys/{key_id}", owner, {"name": "x"}))[0] == 404
        assert refused(api(stack, "GET", f"/keys/{key_id}/reveal", owner))[0] == 404
        assert refused(api(stack, "POST", f"/keys/{key_id}/rotate", owner))[0] == 404
        assert refused(api(stack, "DELETE", f"/keys/{key_id}", owner))[0] == 404
    assert (
        refused(api(stack, "POST", "/keys", owner, {"name": "k", "parent_id": stranger.id}))[0]
        == 404
    )
    assert api(stack, "GET", "/keys", "").status == 401


def test_a_change_holds_at_every_worker_when_it_is_answered(stack, owner):
    made = create(stack, owner, quota=1)
    changed = api(
        stack, "PUT", f"/keys/{made['id']}", owner,
        {"name": "renamed", "group": "narrow", "quota": 7.5, "expires_in_days": None},
    )  # fmt: skip
    assert changed.status == 200, changed.body()
    told = changed.json()
    assert (told["name"], told["group"], told["quota"]) == ("renamed", "narrow", 7.5)
    for reply in each_worker(stack, "/v1/models", made["key"]):
        assert [row["id"] for row in reply.json()["data"]] == ["gpt-5-mini"]
        assert reply.header("x-quota-remaining-credits") == "7.50"
    api(stack, "PATCH", f"/keys/{made['id']}", owner, {"status": "disabled"})
    assert statuses(stack, made["key"]) == {401}
    assert api(stack, "POST", f"/keys/{made['id']}/enable", owner).json()["status"] == "active"
    assert statuses(stack, made["key"]) == {200}
    assert api(stack, "POST", f"/keys/{made['id']}/disable", owner).json()["status"] == "disabled"
    assert statuses(stack, made["key"]) == {401}


def test_the_secret_is_told_once_and_revealed_to_its_owner_only(stack, owner):
    made = create(stack, owner)
    for path in ("/keys", f"/keys/{made['id']}"):
        assert made["key"].encode() not in api(stack, "GET", path, owner).body()
    revealed = api(stack, "GET", f"/keys/{made['id']}/reveal", owner)
    assert revealed.json() == {"id": made["id"], "key": made["key"]}
    assert revealed.header("cache-control") == "no-store"
    assert refused(api(stack, "GET", f"/keys/{made['id']}/reveal", ""))[0] == 401
    assert refused(api(stack, "GET", f"/keys/{made['id']}/reveal", stack.new_key()))[0] == 404


def test_rotation_kills_the_old_secret_at_once(stack, owner):
    made = create(stack, owner, quota=5)
    rotated = api(stack, "POST", f"/keys/{made['id']}/rotate", owner).json()
    assert rotated["id"] == made["id"]
    assert rotated["quota"] == 5
    assert rotated["key"] != made["key"]
    assert statuses(stack, made["key"]) == {401}
    assert statuses(stack, rotated["key"]) == {200}
    again = api(stack, "POST", f"/keys/{made['id']}/rotate", rotated["key"])
    assert again.status == 403  # a key with a limit of its own does not manage itself


def test_keys_are_managed_on_every_foundation(each_stack):
    owner = each_stack.new_key()
    made = create(each_stack, owner, quota=5, rate_limit_5h=1, custom_key=f"own.{time.time_ns()}")
    assert statuses(each_stack, made["key"]) == {200}
    one = api(each_stack, "GET", f"/keys/{made['id']}", owner).json()
    assert (one["quota_used"], one["rate_limit_5h_used"]) == (0, 0)
    assert api(each_stack, "PUT", f"/keys/{made['id']}", owner, {"quota": 7}).json()["quota"] == 7
    rotated = api(each_stack, "POST", f"/keys/{made['id']}/rotate", owner).json()
    assert statuses(each_stack, made["key"]) == {401}
    assert statuses(each_stack, rotated["key"]) == {200}
    child = create(each_stack, rotated["key"], parent_id=made["id"])
    assert api(each_stack, "DELETE", f"/keys/{made['id']}", owner).status == 204
    assert statuses(each_stack, child["key"]) == {401}
    body = {"name": "again", "custom_key": made["key"], "group": "none"}
    assert refused(api(each_stack, "POST", "/keys", owner, body))[0] == 404


def test_a_chosen_secret_is_taken_once(stack, owner):
    chosen = f"my-own-secret.{time.time_ns()}"
    assert create(stack, owner, custom_key=chosen)["key"] == chosen
    assert statuses(stack, chosen) == {200}
    body = {"name": "again", "custom_key": chosen}
    assert refused(api(stack, "POST", "/keys", owner, body))[:2] == (409, "conflict")


def test_a_deleted_key_is_none(stack, owner):
    made = create(stack, owner)
    gone = api(stack, "DELETE", f"/keys/{made['id']}", owner)
    assert (gone.status, gone.body()) == (204, b"")
    assert statuses(stack, made["key"]) == {401}
    assert refused(api(stack, "GET", f"/keys/{made['id']}", owner))[0] == 404
    listed = [row["id"] for row in api(stack, "GET", "/keys", owner).json()["items"]]
    assert made["id"] not in listed
    ended = api(stack, "GET", "/keys?status=revoked", owner).json()["items"]
    assert [row["id"] for row in ended] == [made["id"]]


def audits(stack, subject):
    """The audit events of a subject, in their order."""
    query = select(sql_outbox.c.body).order_by(sql_outbox.c.id)
    bodies = read(stack._open_books().catalog._engine, lambda c: c.execute(query).scalars().all())
    found = [events.decode(bytes(body)) for body in bodies]
    return [each for each in found if isinstance(each, events.Audit) and each.subject == subject]


def test_a_change_tells_who_made_it_from_where(stack, owner):
    headers = [("user-agent", "acme-console/2.1"), ("content-type", "application/json")]
    path, body = "/api/v1/keys", json.dumps({"name": "k"}).encode()
    made = request(stack.port, "POST", path, key=owner, body=body, headers=headers).json()
    stack.cli("key", "revoke", made["id"])
    created, revoked = audits(stack, made["id"])
    assert (created.action, created.ip, created.user_agent) == (
        "key.create",
        "127.0.0.1",
        "acme-console/2.1",
    )
    assert created.actor.startswith("key_")
    assert (revoked.actor, revoked.ip, revoked.user_agent) == ("operator", "", "")


@pytest.mark.parametrize("dialect", list(PATHS))
def test_deleting_a_key_ends_its_running_stream(stack, dialect):
    account = stack.new_account()
    owner = stack.new_key(account=account)
    made = create(stack, owner, group="slow-long")
    body = text_body(dialect, stream=True, text="write a long answer")
    reply = request(stack.port, "POST", PATHS[dialect], key=made["key"], body=body)
    assert reply.status == 200
    pieces = reply.reads()
    got = [next(pieces)[1]]
    assert api(stack, "DELETE", f"/keys/{made['id']}", owner).status == 204
    got += [data for _, data in pieces]
    assert reply.whole
    told = frames(b"".join(got))
    if dialect == "anthropic":
        event, data = told[-1]
        assert (event, json.loads(data)["error"]["type"]) == ("error", "authentication_error")
    elif dialect == "chat":
        assert told[-1][1] == "[DONE]"
        assert json.loads(told[-2][1])["error"]["code"] == "invalid_api_key"
    else:
        event, data = told[-1]
        assert event in ("response.failed", "error")
        assert "revoked" in data


@pytest.mark.parametrize("path", ["/keys/%00", "/keys?parent_id=%00", "/keys/a%00b/reveal"])
def test_a_nul_is_part_of_no_name(stack, owner, path):
    for key in (owner, admin_key(stack)):
        assert refused(api(stack, "GET", path, key))[:2] == (400, "invalid_param")


def test_the_list_is_paged_and_filtered(stack, owner):
    ids = [create(stack, owner, name=f"k{n}")["id"] for n in range(3)]
    first = api(stack, "GET", "/keys?page=1&page_size=2", owner).json()
    second = api(stack, "GET", "/keys?page=2&page_size=2", owner).json()
    assert (len(first["items"]), len(second["items"]), first["total"]) == (2, 2, 4)
    assert {row["id"] for row in first["items"] + second["items"]} >= set(ids)
    for query in ("page=0", "page_size=201", "page=x", f"page={'9' * 5000}", "status=gone"):
        assert refused(api(stack, "GET", f"/keys?{query}", owner))[:2] == (400, "invalid_param")


def test_groups_for_the_create_dialog(stack, owner):
    told = {row["id"]: row for row in api(stack, "GET", "/groups/available", owner).json()["items"]}
    assert {"default", "narrow"} <= set(told)
    assert told["narrow"] == {
        "id": "narrow", "name": "narrow", "multiplier": 1.0, "models": ["gpt-5-mini"],
    }  # fmt: skip
    assert api(stack, "GET", "/groups/available", admin_key(stack)).json()["items"] == list(
        told.values()
    )


# -- sub-keys --------------------------------------------------------------------------------------


def test_a_holder_derives_sub_keys_within_its_own_limits(stack, account, owner):
    parent = create(
        stack, owner, quota=10, rate_limit_5h=5, models=["gpt-5-mini", "gpt-4o"], concurrency=4,
        ip_whitelist=["127.0.0.0/8"],
    )  # fmt: skip
    child = create(stack, parent["key"], parent_id=parent["id"], quota=4)
    assert child["parent_id"] == parent["id"]
    assert (child["quota"], child["rate_limit_5h"], child["concurrency"]) == (4, 5, 4)
    assert child["models"] == parent["models"]
    assert child["ip_whitelist"] == parent["ip_whitelist"]
    for wider, param in (
        ({"quota": 11}, "quota"),
        ({"rate_limit_5h": 6}, "rate_limit_5h"),
        ({"models": ["gpt-4o-mini"]}, "models"),
        ({"concurrency": 5}, "concurrency"),
        ({"ip_whitelist": ["10.0.0.0/8"]}, "ip_whitelist"),
        ({"group": "narrow"}, "group"),
    ):
        body = {"name": "wide", "parent_id": parent["id"], **wider}
        reply = api(stack, "POST", "/keys", parent["key"], body)
        assert refused(reply) == (400, "invalid_param", param), wider
        if param != "group":
            changed = api(stack, "PUT", f"/keys/{child['id']}", parent["key"], wider)
            assert refused(changed) == (400, "invalid_param", param), wider
    listed = api(stack, "GET", "/keys", parent["key"]).json()["items"]
    assert {row["id"] for row in listed} == {parent["id"], child["id"]}
    only = api(stack, "GET", f"/keys?parent_id={parent['id']}", owner).json()["items"]
    assert [row["id"] for row in only] == [child["id"]]


def test_a_limited_key_lifts_no_limit(stack, owner):
    parent = create(stack, owner, quota=10)
    child = create(stack, parent["key"], parent_id=parent["id"])
    for key, target in ((parent, parent), (child, child), (child, parent)):
        path = f"/keys/{target['id']}"
        if target is parent and key is child:
            assert refused(api(stack, "GET", path, key["key"]))[0] == 404
            continue
        assert api(stack, "GET", path, key["key"]).status == 200
        for method, rest, body in (
            ("PUT", "", {"quota": 0}),
            ("DELETE", "", None),
            ("GET", "/reveal", None),
            ("POST", "/rotate", None),
            ("POST", "/disable", None),
        ):
            reply = api(stack, method, path + rest, key["key"], body)
            assert refused(reply)[:2] == (403, "permission_denied"), (method, rest)
    for secret in (parent["key"], child["key"]):
        reply = api(stack, "POST", "/keys", secret, {"name": "free"})
        assert refused(reply)[:2] == (403, "permission_denied")
    body = {"name": "grandchild", "parent_id": child["id"]}
    assert refused(api(stack, "POST", "/keys", child["key"], body))[:2] == (
        403, "permission_denied",
    )  # fmt: skip
    assert refused(api(stack, "POST", "/keys", owner, body)) == (400, "invalid_param", "parent_id")


def test_sub_keys_spend_their_parents_quota_and_end_with_it(stack, owner):
    parent = create(stack, owner, quota=10)
    child = create(stack, parent["key"], parent_id=parent["id"], quota=4)
    reply = post(stack, "chat", child["key"], stream=False)
    assert reply.status == 200, reply.body()
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), child["key"])

    def used() -> list[float]:
        told = [api(stack, "GET", f"/keys/{key['id']}", owner).json() for key in (child, parent)]
        return [each["quota_used"] for each in told]

    wait_until(lambda: used() == [row["cost_nano"] / 1e9] * 2, told=used)
    api(stack, "POST", f"/keys/{parent['id']}/disable", owner)
    assert statuses(stack, child["key"]) == {401}
    api(stack, "POST", f"/keys/{parent['id']}/enable", owner)
    assert statuses(stack, child["key"]) == {200}
    api(stack, "DELETE", f"/keys/{parent['id']}", owner)
    assert statuses(stack, child["key"]) == {401}


# -- the operator ----------------------------------------------------------------------------------


def test_the_operator_manages_everybodys_keys_and_calls_no_model(stack, account, owner):
    admin = admin_key(stack)
    body = {"name": "by the operator", "account_id": account, "quota": 3}
    made = api(stack, "POST", "/keys", admin, body)
    assert made.status == 201, made.body()
    assert_accounted(made)
    key = made.json()
    assert statuses(stack, key["key"]) == {200}
    assert refused(api(stack, "POST", "/keys", admin, {"name": "nobody's"})) == (
        400, "invalid_param", "account_id",
    )  # fmt: skip
    listed = api(stack, "GET", f"/keys?account_id={account}", admin).json()["items"]
    assert {row["account_id"] for row in listed} == {account}
    assert key["id"] in {row["id"] for row in listed}
    assert api(stack, "GET", f"/keys/{key['id']}/reveal", admin).json()["key"] == key["key"]
    assert api(stack, "PUT", f"/keys/{key['id']}", admin, {"quota": 0}).json()["quota"] == 0
    assert api(stack, "DELETE", f"/keys/{key['id']}", admin).status == 204
    assert post(stack, "chat", admin, stream=False).status == 401
    assert request(stack.port, "GET", "/v1/models", key=admin).status == 401
    assert refused(api(stack, "GET", "/keys", admin + "x"))[0] == 401
