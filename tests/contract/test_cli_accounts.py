"""The commands for keys, orgs, members and wallets on a data folder where nothing runs."""

import json

import pytest

from tests.contract.test_cli import Installation

pytest_plugins = ["tests.parts.clickhouse_fixtures"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Installation(tmp_path_factory.mktemp("cli") / "data")
    made.account = made.json("account", "create", "alice")["id"]
    return made


def make_key(here, name="k", *options):
    return here.json("key", "create", "--account", "alice", "--name", name, *options)


def test_a_key_with_every_limit_is_shown_and_changed(here):
    made = make_key(
        here, "all", "--quota", "2.5", "--window-5h", "$0.5", "--window-1d", "1", "--window-7d",
        "2", "--ip-allow", "10.0.0.0/8", "--ip-allow", "2001:db8::1", "--ip-deny", "10.1.0.0/16",
        "--model", "claude-haiku-4.5", "--concurrency", "3", "--rpm", "60", "--tpm", "50000",
        "--expires-in-days", "30",
    )  # fmt: skip
    shown = here.json("key", "show", made["id"])
    money = [shown[f"{name}_usd"] for name in ("quota", "window_5h", "window_1d", "window_7d")]
    assert money == ["2.5", "0.5", "1", "2"]
    assert shown["ip_allow"] == ["10.0.0.0/8", "2001:db8::1/128"]
    assert (shown["ip_deny"], shown["models"]) == (["10.1.0.0/16"], ["claude-haiku-4-5"])
    assert [shown[n] for n in ("concurrency", "requests_per_min", "tokens_per_min")] == [
        3, 60, 50000,
    ]  # fmt: skip
    kinds = {limit["kind"]: limit["limit_usd"] for limit in shown["limits"]}
    assert kinds == {
        "key_quota": "2.5", "window_5h": "0.5", "window_1d": "1", "window_7d": "2", "wallet": "0",
    }  # fmt: skip
    assert "10.0.0.0/8" in here.text("key", "show", made["id"])
    changed = here.json(
        "key", "update", made["id"], "--quota", "0", "--window-5h", "0.25", "--ip-allow", "all",
        "--model", "all", "--expires-in-days", "0", "--name", "other", "--rpm", "0",
    )  # fmt: skip
    assert (changed["quota_usd"], changed["window_5h_usd"], changed["name"]) == (
        None, "0.25", "other",
    )  # fmt: skip
    assert (changed["ip_allow"], changed["models"], changed["expires_at"]) == ([], [], None)
    assert (changed["requests_per_min"], changed["concurrency"]) == (0, 3)
    assert "what is to change" in here.refused("key", "update", made["id"], code=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quota", "ten"), "not an amount"),
        (("--quota", "-1"), "--quota"),
        (("--ip-allow", "ten"), "--ip-allow"),
        (("--model", "gpt-none"), "gpt-none"),
        (("--concurrency", "-1"), "--concurrency"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(here, options, said):
    told = here.refused("key", "create", "--account", "alice", "--name", "k", *options, code=2)
    assert said in told


def test_a_secret_is_revealed_rotated_and_chosen(here, tmp_path):
    made = make_key(here)
    assert here.text("key", "reveal", made["id"]).strip() == made["key"]
    rotated = here.json("key", "rotate", made["id"])
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert here.json("key", "reveal", made["id"])["key"] == rotated["key"]
    file = tmp_path / "secret"
    file.write_text("my-own-secret-of-the-day\n")
    chosen = make_key(here, "own", "--custom-secret-file", str(file))
    assert chosen["key"] == "my-own-secret-of-the-day"
    again = ("key", "create", "--account", "alice", "--name", "x", "--custom-secret-file")
    assert "is a key already" in here.refused(*again, str(file))
    file.write_text("short")
    assert "--custom-secret-file: 16 to 256" in here.refused(*again, str(file), code=2)


def test_a_key_is_disabled_enabled_and_revoked(here):
    made = make_key(here)
    for command, status in (
        ("disable", "disabled"),
        ("enable", "active"),
        ("revoke", "revoked"),
        ("revoke", "revoked"),
    ):
        assert here.json("key", command, made["id"])["status"] == status
    assert "stays revoked" in here.refused("key", "enable", made["id"], code=2)
    assert "revoked" in here.refused("key", "rotate", made["id"], code=2)
    for command in ("show", "reveal", "rotate", "disable", "enable", "revoke"):
        assert "there is no key 'key_x'" in here.refused("key", command, "key_x")


def test_a_sub_key_is_never_wider_than_its_parent(here):
    parent = make_key(here, "parent", "--quota", "10", "--concurrency", "4")
    child = here.json("key", "create", "--parent", parent["id"], "--name", "c", "--quota", "4")
    shown = here.json("key", "show", child["id"])
    assert (shown["parent_id"], shown["account_id"]) == (parent["id"], here.account)
    assert (shown["quota_usd"], shown["concurrency"]) == ("4", 4)
    wide = ("key", "create", "--parent", parent["id"], "--name", "w")
    assert "--quota: more than" in here.refused(*wide, "--quota", "11", code=2)
    assert "--concurrency: more than" in here.refused(*wide, "--concurrency", "5", code=2)
    assert "sub-key has no sub-keys" in here.refused(
        "key", "create", "--parent", child["id"], "--name", "g", code=2
    )
    here.json("key", "revoke", parent["id"])
    assert here.json("key", "show", child["id"])["status"] == "revoked"


def test_an_org_has_members_with_roles_models_allotments_and_caps(here):
    org = here.json("org", "create", "acme", "--concurrency", "10")
    assert (org["kind"], org["members"], org["available_usd"]) == ("org", 0, "0")
    bob = here.json(
        "member", "add", "--org", "acme", "--name", "bob", "--email", "bob@example.com",
        "--role", "admin", "--model", "gpt-5.5", "--quota", "7", "--concurrency", "2",
    )  # fmt: skip
    assert (bob["org_id"], bob["role"], bob["status"]) == (org["id"], "admin", "active")
    assert (bob["models"], bob["quota_usd"], bob["concurrency"]) == (["gpt-5-5"], "7", 2)
    assert here.json("member", "add", "--org", "acme", "--name", "eve")["models"] == []
    assert "already" in here.refused("member", "add", "--org", "acme", "--name", "bob")
    assert "only an org" in here.refused("member", "add", "--org", "alice", "--name", "x", code=2)
    capped = here.json("member", "cap", bob["id"], "gpt-5.5", "1.25")
    assert capped["caps_usd"] == {"gpt-5-5": "1.25"}
    assert here.json("member", "cap", bob["id"], "gpt-5-5", "0")["caps_usd"] == {}
    changed = here.json(
        "member", "update", bob["id"], "--role", "member", "--model", "all", "--quota", "0"
    )
    assert (changed["role"], changed["models"], changed["quota_usd"]) == ("member", ["*"], None)
    assert here.json("member", "update", bob["id"], "--model", "none")["models"] == []
    key = here.json("key", "create", "--member", bob["id"], "--name", "laptop")
    assert here.json("key", "show", key["id"])["member_id"] == bob["id"]
    gone = here.json("member", "remove", bob["id"])
    assert gone["status"] == "disabled"
    assert here.json("key", "show", key["id"])["status"] == "revoked"
    names = [(row["name"], row["status"]) for row in here.json("member", "list", "--org", "acme")]
    assert names == [("bob", "disabled"), ("eve", "active")]
    assert [row["members"] for row in here.json("org", "list")] == [2]
    assert "eve" in here.text("member", "list", "--org", "acme")
    assert "there is no member" in here.refused("member", "update", "mem_x", "--role", "admin")


def test_an_account_is_limited_paused_and_resumed(here):
    here.json("account", "create", "carol", "--rpm", "10")
    shown = here.json("account", "show", "carol")
    assert (shown["requests_per_min"], shown["status"]) == (10, "active")
    changed = here.json(
        "account", "update", "carol", "--concurrency", "5", "--tpm", "9", "--rpm", "0"
    )
    assert [changed[n] for n in ("concurrency", "requests_per_min", "tokens_per_min")] == [5, 0, 9]
    assert here.json("account", "pause", "carol")["status"] == "paused"
    assert here.json("account", "resume", "carol")["status"] == "active"
    assert "carol" in here.text("account", "show", "carol")
    assert "what is to change" in here.refused("account", "update", "carol", code=2)


def test_money_comes_with_a_bonus_and_goes_with_a_note(here):
    here.json("account", "create", "dora")
    once = ("account", "topup", "dora", "100", "--bonus", "--external-id", "pay-1")
    moved = here.json(*once)
    assert (len(moved["movement_ids"]), moved["bonus_usd"]) == (2, "5")
    assert moved["available_usd"] == "105"
    assert here.json(*once)["movement_ids"] == moved["movement_ids"]
    small = here.json("account", "topup", "dora", "5", "--bonus")
    assert (len(small["movement_ids"]), small["bonus_usd"]) == (1, "0")
    assert here.json("account", "credit", "dora", "1.5", "--note", "sorry")["available_usd"] == (
        "111.5"
    )
    debit = here.json("account", "debit", "dora", "11.5", "--note", "oops")
    assert debit["available_usd"] == "100"
    assert "only $100 are free" in here.refused("account", "debit", "dora", "101", "--note", "x")
    assert "--note" in here.refused("account", "debit", "dora", "1", code=2)
    rows = here.json("account", "transactions", "dora")
    assert [(row["kind"], row["amount_usd"], row["balance_after_usd"]) for row in rows] == [
        ("admin_debit", "-11.5", "100"),
        ("admin_credit", "1.5", "111.5"),
        ("topup", "5", "110"),
        ("bonus", "5", "105"),
        ("topup", "100", "100"),
    ]
    assert [row["note"] for row in rows[:2]] == ["oops", "sorry"]
    only = here.json("account", "transactions", "dora", "--kind", "bonus")
    assert [row["balance_after_usd"] for row in only] == ["105"]
    assert "admin_credit" in here.text("account", "transactions", "dora")


def test_the_admin_key_is_shown_and_rotated(here):
    first = here.json("admin", "show")["admin_key"]
    assert here.text("admin", "show").strip() == first
    here.json("demo")
    second = here.json("admin", "rotate")["admin_key"]
    assert json.loads((here.folder / "demo.json").read_text())["admin_key"] == second
    assert second != first
    assert here.json("admin", "show")["admin_key"] == second
