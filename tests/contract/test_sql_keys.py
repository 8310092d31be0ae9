"""Keys with all their rules, sub-keys and members, on both engines."""

import msgspec
import pytest
from sqlalchemy import select, update

from schemas.config import Group
from services.backends.sql.budgets import KeyNotActive
from services.backends.sql.catalog import KEPT_US, AlreadyInCatalog, NotInCatalog
from services.backends.sql.engine import read, write
from services.backends.sql.key_reads import KeyFilter
from services.backends.sql.tables import catalog_version, lease, limit_row
from services.core.errors import InvalidRequest
from services.core.subkeys import NO_MODEL
from services.edge.manage.desk import OPERATOR, Manager
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import World

NOW = 1_900_000_000_000_000


@pytest.fixture
def world(engine):  # noqa: F811
    return World(engine, wallet_nano=1_000, quota_nano=600)


@pytest.fixture
def catalog(world):
    return world.catalog


def held(catalog, key_id):
    found = catalog.snapshot(0).keys.values()
    return next(key for key in found if key.id == key_id)


FIELDS = {
    "quota_nano": 50,
    "window_5h_nano": 5,
    "window_1d_nano": 10,
    "window_7d_nano": 20,
    "expires_at": NOW + 7,
    "ip_allow": ("10.0.0.0/8", "fd00::/8"),
    "ip_deny": ("10.1.0.0/16",),
    "models": ("claude-a", "claude-b"),
    "concurrency": 3,
    "requests_per_min": 60,
    "tokens_per_min": 1_000,
}


def test_a_key_keeps_all_its_fields(catalog, world):
    key, _ = catalog.create_key(world.account.id, "full", **FIELDS)
    assert {name: getattr(key, name) for name in FIELDS} == FIELDS
    assert catalog.key(key.id) == key == held(catalog, key.id)
    assert len(key.limit_ids) == len(set(key.limit_ids)) == 5
    assert len(key.window_ids) == 3
    assert key.limit_ids[-1] == world.key.limit_ids[-1]


def test_what_is_zero_or_empty_is_no_rule(catalog, world):
    key, _ = catalog.create_key(
        world.account.id, "open", quota_nano=0, window_5h_nano=0, ip_allow=(), models=()
    )
    assert key.quota_nano is None
    assert (key.window_5h_nano, key.window_ids, len(key.limit_ids)) == (None, (), 2)


def test_addresses_have_one_spelling(catalog, world):
    key, _ = catalog.create_key(world.account.id, "a", ip_allow=["10.1.2.3", "10.0.0.9/8"])
    assert key.ip_allow == ("10.1.2.3/32", "10.0.0.0/8")
    with pytest.raises(InvalidRequest) as caught:
        catalog.create_key(world.account.id, "b", ip_deny=["10.0.0.0/8", "nowhere"])
    assert caught.value.param == "ip_deny[1]"


def test_an_update_changes_only_what_it_names(catalog, world):
    key, _ = catalog.create_key(world.account.id, "full", **FIELDS)
    changed = catalog.update_key(key.id, name="new", quota_nano=60, ip_deny=(), window_5h_nano=None)
    assert changed == msgspec.structs.replace(
        key, name="new", quota_nano=60, ip_deny=(), window_5h_nano=None
    )
    with pytest.raises(InvalidRequest, match="no such setting"):
        catalog.update_key(key.id, account_id="acct_other")
    with pytest.raises(NotInCatalog):
        catalog.update_key("key_none", name="x")


def test_a_window_made_later_knows_the_leases_that_are_out(catalog, world):
    world.grant("lease_1", 1, 300)
    changed = catalog.update_key(world.key.id, window_1d_nano=400)
    (window,) = changed.window_ids
    assert changed.limit_ids == (world.key.limit_ids[0], window, world.key.limit_ids[1])
    row = read(world.engine, lambda c: c.execute(select(limit_row).filter_by(id=window)).one())
    assert (row.limit_nano, row.settled_nano, row.leased_nano) == (400, 0, 300)
    ids = read(world.engine, lambda c: c.execute(select(lease.c.limit_ids)).scalar_one())
    assert set(msgspec.json.decode(ids)) == set(changed.limit_ids)
    world.check()


def test_rotating_ends_the_old_secret(catalog, world):
    before = catalog.version()
    key, secret = catalog.rotate_key(world.key.id)
    assert secret != world.secret
    assert catalog.reveal_key(key.id) == secret
    assert catalog.snapshot(NOW).keys == {key.secret_sha256: key}
    assert catalog.version() == before + 1
    catalog.revoke_key(key.id)
    with pytest.raises(InvalidRequest):
        catalog.rotate_key(key.id)


def test_a_key_can_be_disabled_and_enabled_but_not_unrevoked(catalog, world):
    assert catalog.set_key_status(world.key.id, "disabled").status == "disabled"
    with pytest.raises(KeyNotActive):
        world.grant("lease_1", 1, 1)
    assert catalog.set_key_status(world.key.id, "active").status == "active"
    world.grant("lease_1", 1, 1)
    catalog.set_key_status(world.key.id, "revoked")
    with pytest.raises(InvalidRequest):
        catalog.set_key_status(world.key.id, "active")


# -- sub-keys ----------------------------------------------------------------------------------


@pytest.fixture
def parent(catalog, world):
    return catalog.create_key(world.account.id, "parent", **FIELDS)[0]


def test_a_sub_key_takes_what_it_leaves_open_from_its_parent(catalog, world, parent):
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    assert {name: getattr(child, name) for name in FIELDS} == FIELDS
    assert child.parent_id == parent.id
    assert set(parent.limit_ids) < set(child.limit_ids)
    assert len(child.limit_ids) == 9  # four of its own, four of its parent, the wallet
    assert child.limit_ids[-1] == parent.limit_ids[-1]
    assert len(child.window_ids) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quota_nano", 51),
        ("window_5h_nano", 6),
        ("window_1d_nano", 11),
        ("window_7d_nano", 21),
        ("expires_at", NOW + 8),
        ("ip_allow", ("11.0.0.0/8",)),
        ("ip_allow", ("10.0.0.0/7",)),
        ("models", ("claude-c",)),
        ("concurrency", 4),
        ("requests_per_min", 61),
        ("tokens_per_min", 1_001),
        ("group", "other"),
    ],
)
def test_a_sub_key_is_never_wider(catalog, world, parent, field, value):
    before = len(catalog.keys())
    with pytest.raises(InvalidRequest) as caught:
        catalog.create_key(world.account.id, "child", parent_id=parent.id, **{field: value})
    assert caught.value.param == field
    assert len(catalog.keys()) == before
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    with pytest.raises(InvalidRequest) as caught:
        catalog.update_key(child.id, **{field: value})
    assert caught.value.param == field


def test_widening_the_parent_widens_no_sub_key(catalog, world, parent):
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    catalog.update_key(
        parent.id, quota_nano=None, window_5h_nano=None, ip_allow=(), models=(), expires_at=None
    )
    now = held(catalog, child.id)
    for name in ("quota_nano", "window_5h_nano", "ip_allow", "models", "expires_at"):
        assert getattr(now, name) == FIELDS[name]


def test_an_ipv4_network_inside_ipv6_is_within_the_ipv4_one_of_the_parent(catalog, world, parent):
    child, _ = catalog.create_key(
        world.account.id, "child", parent_id=parent.id, ip_allow=["::ffff:10.2.0.0/112"]
    )
    assert child.ip_allow == ("10.2.0.0/16",)
    catalog.update_key(parent.id, ip_allow=["::ffff:10.0.0.0/104"])
    assert held(catalog, child.id).ip_allow == ("10.2.0.0/16",)


def test_narrowing_the_parent_narrows_its_sub_keys(catalog, world, parent):
    child, _ = catalog.create_key(
        world.account.id,
        "child",
        parent_id=parent.id,
        models=["claude-a"],
        ip_allow=["10.2.0.0/16"],
    )
    catalog.update_key(
        parent.id,
        models=["claude-b"],
        ip_allow=["10.2.3.0/24"],
        ip_deny=["10.2.3.4"],
        expires_at=NOW,
    )
    now = held(catalog, child.id)
    assert now.models == NO_MODEL
    assert now.ip_allow == ("10.2.3.0/24",)
    assert now.ip_deny == ("10.1.0.0/16", "10.2.3.4/32")
    assert now.expires_at == NOW
    assert catalog.key(child.id).models == ("claude-a",)  # as it was set


def test_a_sub_key_ends_with_its_parent(catalog, world, parent):
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    catalog.set_key_status(parent.id, "disabled")
    assert held(catalog, child.id).status == "disabled"
    assert catalog.key(child.id).status == "active"
    catalog.set_key_status(parent.id, "active")
    assert held(catalog, child.id).status == "active"
    catalog.revoke_key(parent.id)
    assert held(catalog, child.id).status == "revoked"
    assert catalog.key(child.id).status == "revoked"


def test_a_sub_key_does_not_come_back_when_its_dead_parent_is_forgotten(catalog, world, parent):
    """Its own time is not over; what it may is only known with its parent."""
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    catalog.update_key(parent.id, expires_at=NOW)
    assert held(catalog, child.id).expires_at == NOW
    catalog.update_key(child.id, name="still there")
    later = catalog.snapshot(NOW + KEPT_US + 1).keys.values()
    assert not {parent.id, child.id} & {key.id for key in later}


def test_a_sub_key_has_no_sub_keys(catalog, world, parent):
    child, _ = catalog.create_key(world.account.id, "child", parent_id=parent.id)
    with pytest.raises(InvalidRequest) as caught:
        catalog.create_key(world.account.id, "grandchild", parent_id=child.id)
    assert caught.value.param == "parent_id"
    other = catalog.create_account("other")
    with pytest.raises(NotInCatalog):
        catalog.create_key(other.id, "child", parent_id=parent.id)


# -- members -----------------------------------------------------------------------------------


@pytest.fixture
def org(catalog):
    return catalog.create_account("org", kind="org", concurrency=9)


def test_a_member_and_its_keys(catalog, org):
    member = catalog.create_member(
        org.id, "ann", email="ann@example.com", quota_nano=7, caps_nano={"claude-a": 3}
    )
    assert (member.role, member.status, member.models) == ("member", "active", ())
    assert (member.quota_nano, member.caps_nano) == (7, {"claude-a": 3})
    assert catalog.member(member.id) == member
    assert catalog.members(org.id) == [member]
    key, _ = catalog.create_key(org.id, "hers", member_id=member.id)
    assert key.limit_ids[1] == member.quota_limit_id
    child, _ = catalog.create_key(org.id, "sub", parent_id=key.id)
    assert child.member_id == member.id
    snapshot = catalog.snapshot(NOW)
    assert snapshot.members == {member.id: member}
    assert {each.id: each.model_caps for each in snapshot.keys.values() if each.member_id} == {
        key.id: member.cap_limit_ids,
        child.id: member.cap_limit_ids,
    }
    catalog.update_member(member.id, status="disabled")
    assert held(catalog, key.id).status == "disabled"


def test_a_member_is_changed_field_by_field(catalog, org):
    member = catalog.create_member(org.id, "ann", caps_nano={"claude-a": 3})
    changed = catalog.update_member(
        member.id, role="admin", models=["*"], quota_nano=9, caps_nano={"claude-b": 2}
    )
    assert changed.cap_limit_ids["claude-a"] == member.cap_limit_ids["claude-a"]
    assert (changed.role, changed.models, changed.quota_nano) == ("admin", ("*",), 9)
    assert changed.caps_nano == {"claude-a": 3, "claude-b": 2}
    without = catalog.update_member(member.id, caps_nano={"claude-a": None})
    assert without.caps_nano == {"claude-a": None, "claude-b": 2}
    assert without.quota_nano == 9
    for wrong in ({"role": "king"}, {"status": "gone"}, {"account_id": "x"}):
        with pytest.raises(InvalidRequest):
            catalog.update_member(member.id, **wrong)


def test_only_an_org_has_members_with_names_of_their_own(catalog, world, org):
    with pytest.raises(InvalidRequest):
        catalog.create_member(world.account.id, "ann")
    catalog.create_member(org.id, "ann")
    with pytest.raises(AlreadyInCatalog):
        catalog.create_member(org.id, "ann")
    elsewhere = catalog.create_member(catalog.create_account("two", kind="org").id, "ann")
    with pytest.raises(NotInCatalog):
        catalog.create_key(org.id, "k", member_id=elsewhere.id)
    with pytest.raises(NotInCatalog):
        catalog.create_member("acct_none", "ann")


def test_an_account_is_changed_field_by_field(catalog, org):
    assert catalog.account("org").concurrency == 9
    changed = catalog.update_account(org.id, status="paused", requests_per_min=5)
    assert changed == msgspec.structs.replace(org, status="paused", requests_per_min=5)
    assert catalog.snapshot(NOW).accounts[org.id] == changed
    for wrong in ({"status": "gone"}, {"kind": "individual"}):
        with pytest.raises(InvalidRequest):
            catalog.update_account(org.id, **wrong)
    with pytest.raises(NotInCatalog):
        catalog.update_account("acct_none", status="paused")
    catalog.create_account("taken")
    with pytest.raises(AlreadyInCatalog):
        catalog.update_account(org.id, name="taken")


def _whole(catalog):
    """The catalog read anew."""
    return catalog.snapshot(NOW)


def _kept(before, after):
    """The keys that were not read again."""
    return {key.id for name, key in after.keys.items() if before.keys.get(name) is key}


def test_a_change_reads_again_what_its_account_has_and_no_more(catalog, world, org):
    member = catalog.create_member(org.id, "ann", caps_nano={"claude-a": 3})
    hers, _ = catalog.create_key(org.id, "hers", member_id=member.id)
    other, _ = catalog.create_key(org.id, "other")
    elsewhere = world.key
    seen = _whole(catalog)
    for change in (
        lambda: catalog.update_key(hers.id, concurrency=2),
        lambda: catalog.create_key(org.id, "sub", parent_id=hers.id),
        lambda: catalog.rotate_key(other.id),
        lambda: catalog.set_key_status(hers.id, "revoked"),
        lambda: catalog.update_member(member.id, models=["*"], caps_nano={"claude-a": 9}),
        lambda: catalog.create_member(org.id, "bob"),
        lambda: catalog.update_account(org.id, status="paused"),
        lambda: catalog.remove_member(member.id),
    ):
        change()
        renewed = catalog.snapshot(NOW, seen)
        assert renewed == _whole(catalog)
        assert _kept(seen, renewed) == {elsewhere.id}
        assert renewed.prices is seen.prices
        assert renewed.channels is seen.channels
        seen = renewed
    assert catalog.snapshot(NOW, seen) == seen, "nothing has changed"
    added = catalog.create_account("three")
    catalog.create_key(added.id, "first")
    catalog.update_key(elsewhere.id, name="renamed")
    renewed = catalog.snapshot(NOW, seen)
    assert renewed == _whole(catalog)
    assert _kept(seen, renewed) == {key.id for key in seen.keys.values()} - {elsewhere.id}


def test_more_than_accounts_may_have_changed(catalog, world):
    seen = _whole(catalog)
    catalog.sync([], [Group(name="gold", multiplier=2.0)], {}, NOW)
    renewed = catalog.snapshot(NOW, seen)
    assert renewed == _whole(catalog)
    assert set(renewed.groups) == {"default", "gold"}
    assert _kept(seen, renewed) == set(seen.keys_by_id), "what is of no account changes no key"
    # An older program makes versions without saying whose, and a restored database has fewer.
    for version in (renewed.version + 1, renewed.version - 2):
        write(
            world.engine, lambda c, v=version: c.execute(update(catalog_version).values(version=v))
        )
        again = catalog.snapshot(NOW, renewed)
        assert again == _whole(catalog)
        assert not _kept(renewed, again)


def test_a_list_of_keys_is_read_page_by_page(catalog, world, org):
    """Each manager gets the keys that it sees, in their order, and only those of the page."""
    ann, bob = (catalog.create_member(org.id, name) for name in ("ann", "bob"))
    own, _ = catalog.create_key(org.id, "own")
    hers, _ = catalog.create_key(org.id, "hers", member_id=ann.id)
    more, _ = catalog.create_key(org.id, "more", member_id=ann.id)
    catalog.create_key(org.id, "his", member_id=bob.id)
    catalog.create_key(org.id, "sub", parent_id=hers.id)
    off, _ = catalog.create_key(org.id, "off")
    catalog.set_key_status(off.id, "disabled")
    catalog.revoke_key(catalog.create_key(org.id, "gone")[0].id)
    limited = catalog.update_key(more.id, quota_nano=5)
    managers = (
        (OPERATOR, None),
        (Manager("a", own), org.id),
        (Manager("a", hers, "member"), org.id),
        (Manager("a", limited, "member"), org.id),
    )
    for manager, account_id in managers:
        wanted = [
            key.id for key in catalog.keys(account_id)
            if manager.sees(key) and key.status != "revoked"
        ]  # fmt: skip
        chosen = KeyFilter(account_id, around=manager.around)
        found = []
        for offset in range(0, len(wanted) + 2, 2):
            page, total = catalog.keys_page(chosen, 2, offset)
            assert len(page) <= 2
            assert total == len(wanted)
            found += [key.id for key in page]
        assert found == wanted
    for chosen, name in (
        (KeyFilter(org.id, "revoked"), "gone"),
        (KeyFilter(org.id, "disabled"), "off"),
        (KeyFilter(parent_id=hers.id), "sub"),
        (KeyFilter(member_id=bob.id), "his"),
    ):
        (key,), total = catalog.keys_page(chosen, 10, 0)
        assert (key.name, total) == (name, 1)
    assert [each.id for each in catalog.accounts_page(1, 1)[0]] == [org.id]
    assert catalog.members_page(org.id, 1, 1) == ([bob], 2)
    catalog.update_member(bob.id, role="owner")
    assert catalog.owners(org.id) == {bob.id}
