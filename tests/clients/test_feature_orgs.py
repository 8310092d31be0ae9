"""Orgs by the management API: one wallet, members with roles, models, allotments and caps."""

import uuid

import pytest

from tests.parts.feature import NANO, admin_key, api, each_worker, refused, statuses, wait_until
from tests.parts.wire import post


class Org:
    """An org with $100 and an owner's key, made by the operator over HTTP."""

    def __init__(self, stack):
        self.stack = stack
        self.admin = admin_key(stack)
        body = {"name": f"org-{uuid.uuid4().hex[:8]}", "kind": "org"}
        made = api(stack, "POST", "/accounts", self.admin, body)
        assert made.status == 201, made.body()
        self.id = made.json()["id"]
        paid = api(stack, "POST", f"/accounts/{self.id}/topup", self.admin, {"amount": 100})
        assert paid.status == 200, paid.body()
        self.owner = self.key(self.admin, self.add(self.admin, "the owner", role="owner"))

    def call(self, method, path, key, body=None):
        return api(self.stack, method, f"/orgs/{self.id}{path}", key, body)

    def add(self, manager, name, **fields):
        """The id of a new member."""
        made = self.call("POST", "/members", manager, {"name": name, **fields})
        assert made.status == 201, made.body()
        return made.json()["id"]

    def key(self, manager, member_id, **fields):
        """The secret of a new key of the member."""
        body = {"name": "k", "account_id": self.id, "member_id": member_id, **fields}
        made = api(self.stack, "POST", "/keys", manager, body)
        assert made.status == 201, made.body()
        return made.json()["key"]


@pytest.fixture(scope="module")
def org(stack):
    return Org(stack)


def test_members_are_added_listed_changed_and_removed(stack, org):
    body = {
        "name": "bob", "email": "bob@example.com", "role": "admin", "models": ["gpt-5-mini"],
        "quota": 7.5, "model_caps": {"gpt-5-mini": 2}, "concurrency": 3,
    }  # fmt: skip
    bob = org.call("POST", "/members", org.owner, body).json()
    assert {name: bob[name] for name in body} == body
    assert (bob["status"], bob["org_id"]) == ("active", org.id)
    one = org.call("GET", f"/members/{bob['id']}", org.owner).json()
    assert (one["quota_used"], one["model_caps_used"]) == (0, {"gpt-5-mini": 0})
    changed = org.call(
        "PUT", f"/members/{bob['id']}", org.owner,
        {"role": "member", "models": ["*"], "quota": 0, "model_caps": {"gpt-5-mini": 0}},
    ).json()  # fmt: skip
    assert (changed["role"], changed["models"]) == ("member", ["*"])
    assert (changed["quota"], changed["model_caps"]) == (0, {})
    secret = org.key(org.owner, bob["id"])
    listed = org.call("GET", "/members", org.owner).json()
    assert bob["id"] in {row["id"] for row in listed["items"]}
    assert refused(org.call("POST", "/members", org.owner, {"name": "bob"}))[:2] == (
        409, "conflict",
    )  # fmt: skip
    assert org.call("DELETE", f"/members/{bob['id']}", org.owner).status == 204
    gone = org.call("GET", f"/members/{bob['id']}", org.owner).json()
    assert gone["status"] == "disabled"
    assert statuses(stack, secret) == {401}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "x", "role": "king"}, "role"),
        ({"name": "x", "models": ["gpt-none"]}, "models[0]"),
        ({"name": "x", "quota": -1}, "quota"),
        ({"name": "x", "model_caps": {"gpt-none": 1}}, "model_caps.gpt-none"),
        ({"name": "x", "model_caps": {"gpt-4o": -1}}, "model_caps.gpt-4o"),
    ],
)
def test_a_wrong_field_is_400_with_its_path(org, body, param):
    reply = org.call("POST", "/members", org.owner, body)
    assert refused(reply) == (400, "invalid_param", param)


def test_roles_say_who_manages(stack, org):
    carl = org.add(org.owner, "carl", role="admin")
    dora = org.add(org.owner, "dora")
    admin, member = org.key(org.owner, carl), org.key(org.owner, dora)
    assert org.call("GET", "/members", admin).status == 200
    assert org.call("PUT", f"/members/{dora}", admin, {"quota": 5}).status == 200
    for path, body in ((f"/members/{carl}", {"role": "owner"}), (f"/members/{dora}", {"quota": 0})):
        reply = org.call("PUT", path, member, body)
        assert refused(reply)[:2] == (403, "permission_denied")
    assert refused(org.call("GET", "/members", member))[:2] == (403, "permission_denied")
    owner_id = org.call("GET", "/members", org.owner).json()["items"][0]["id"]
    for method, body in (("PUT", {"role": "member"}), ("DELETE", None)):
        reply = org.call(method, f"/members/{owner_id}", admin, body)
        assert refused(reply)[:2] == (403, "permission_denied")
    reply = org.call("POST", "/members", admin, {"name": "second owner", "role": "owner"})
    assert refused(reply)[:2] == (403, "permission_denied")
    keys = api(stack, "GET", "/keys?page_size=200", admin).json()["items"]
    owners = next(row["id"] for row in keys if row["member_id"] == owner_id)
    for method, path, body in (
        ("GET", f"/keys/{owners}/reveal", None),
        ("POST", f"/keys/{owners}/rotate", None),
        ("POST", "/keys", {"name": "the org's"}),
        ("POST", "/keys", {"name": "the owner's", "member_id": owner_id}),
        ("POST", "/keys", {"name": "below the owner's", "parent_id": owners}),
    ):
        reply = api(stack, method, path, admin, body)
        assert refused(reply)[:2] == (403, "permission_denied"), path
    made = api(stack, "POST", "/keys", admin, {"name": "dora's", "member_id": dora})
    assert made.status == 201, made.body()
    below = {"name": "below dora's", "parent_id": made.json()["id"]}
    assert api(stack, "POST", "/keys", admin, below).status == 201
    named = {"models": [], "member_ids": [owner_id, dora]}
    reply = org.call("PUT", "/members/allowed-models", admin, named)
    assert refused(reply)[:2] == (403, "permission_denied")
    for secret, role in ((org.owner, "owner"), (admin, "admin"), (member, "member")):
        told = stack.get("/api/v1/me/account", secret)
        assert told["org"]["role"] == role
        assert (told["org"]["id"], told["user"]["tier"]) == (org.id, "enterprise")
    stranger = stack.new_key()
    assert refused(org.call("GET", "/members", stranger))[:2] == (404, "not_found")
    assert refused(api(stack, "GET", "/accounts", org.owner))[:2] == (403, "permission_denied")


def test_a_member_manages_its_own_keys_only(stack, org):
    eve = org.add(org.owner, "eve", models=["*"])
    mine = org.key(org.owner, eve)
    made = api(stack, "POST", "/keys", mine, {"name": "laptop", "quota": 3})
    assert made.status == 201, made.body()
    key = made.json()
    assert key["member_id"] == eve
    seen = {row["member_id"] for row in api(stack, "GET", "/keys", mine).json()["items"]}
    assert seen == {eve}
    assert api(stack, "GET", f"/keys/{key['id']}/reveal", mine).json()["key"] == key["key"]
    other = org.add(org.owner, "fred")
    body = {"name": "not mine", "member_id": other}
    assert refused(api(stack, "POST", "/keys", mine, body))[:2] == (403, "permission_denied")
    all_keys = api(stack, "GET", "/keys?page_size=200", org.owner).json()["items"]
    theirs = next(row for row in all_keys if row["member_id"] not in (eve, None))
    assert refused(api(stack, "GET", f"/keys/{theirs['id']}", mine))[0] == 404


def test_a_member_calls_only_the_models_granted_to_it(stack, org):
    gina, hugo = org.add(org.owner, "gina"), org.add(org.owner, "hugo")
    secrets = [org.key(org.owner, each) for each in (gina, hugo)]
    for secret in secrets:
        reply = post(stack, "chat", secret, stream=False)
        assert refused(reply)[:2] == (403, "model_not_in_group")
        assert stack.get("/v1/models", secret)["data"] == []
    body = {"models": ["gpt-5.5", "gpt-5-mini"], "member_ids": [gina, hugo]}
    changed = org.call("PUT", "/members/allowed-models", org.owner, body)
    assert changed.status == 200, changed.body()
    assert {row["id"] for row in changed.json()["items"]} == {gina, hugo}
    for secret in secrets:
        assert post(stack, "chat", secret, stream=False).status == 200
        assert post(stack, "anthropic", secret, stream=False).status == 403
        listed = [row["id"] for row in stack.get("/v1/models", secret)["data"]]
        assert listed == ["gpt-5-5", "gpt-5-mini"]
    body = {"models": [], "member_ids": [gina, "mem_none"]}
    assert refused(org.call("PUT", "/members/allowed-models", org.owner, body))[0] == 404
    assert post(stack, "chat", secrets[0], stream=False).status == 200  # all or none


def test_an_allotment_ends_while_the_org_has_funds(stack, org):
    ivan = org.add(org.owner, "ivan", models=["*"], quota="0.000001")
    secret = org.key(org.owner, ivan)
    before = stack.sim.last_id()
    reply = post(stack, "chat", secret, stream=False)
    assert (reply.status, stack.sim.calls(after=before)) == (402, [])
    assert stack.get("/v1/balance", secret)["available_usd"] > 90
    org.call("PUT", f"/members/{ivan}", org.owner, {"quota": 5})
    reply = post(stack, "chat", secret, stream=False)
    assert reply.status == 200, reply.body()
    row = stack.wait_for_row(reply.header("x-tollgate-request-id"), secret)

    def used():
        told = org.call("GET", f"/members/{ivan}", org.owner).json()["quota_used"]
        return round(told * NANO) == row["cost_nano"]

    wait_until(used)


def test_a_cap_on_one_model_leaves_the_others(stack, org):
    judy = org.add(org.owner, "judy", models=["*"], model_caps={"gpt-5-mini": "0.000001"})
    secret = org.key(org.owner, judy)
    assert post(stack, "chat", secret, stream=False).status == 402
    assert post(stack, "chat", secret, stream=False, model="gpt-4o").status == 200
    told = stack.get("/api/v1/me/account", secret)["allowed_models"]
    by_id = {row["id"]: row for row in told}
    assert by_id["gpt-5-mini"]["quota_cap_usd"] == 0.000001
    assert by_id["gpt-5-mini"]["quota_used_usd"] == 0
    assert by_id["gpt-4o"]["quota_cap_usd"] is None


def test_a_paused_org_is_403_for_every_key(stack):
    org = Org(stack)
    secrets = [org.owner, org.key(org.admin, org.add(org.admin, "kim", models=["*"]))]
    paused = api(stack, "POST", f"/accounts/{org.id}/pause", org.admin)
    assert paused.json()["status"] == "paused"
    for secret in secrets:
        replies = each_worker(stack, "/v1/models", secret)
        assert {refused(reply)[:2] for reply in replies} == {(403, "permission_denied")}
        assert post(stack, "chat", secret, stream=False).status == 403
    assert api(stack, "POST", f"/accounts/{org.id}/resume", org.admin).status == 200
    for secret in secrets:
        assert statuses(stack, secret) == {200}
