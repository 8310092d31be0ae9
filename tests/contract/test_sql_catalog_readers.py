"""Who has read a change of the catalog, on both engines."""

import pytest

from services.backends.sql.catalog_readers import CatalogReaders, wait_for_readers
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World


@pytest.fixture
def world(engine):  # noqa: F811
    return World(engine, wallet_nano=1_000)


@pytest.fixture
def readers(world):
    return CatalogReaders(world.engine)


def test_open_edge_workers_are_waited_for_until_they_confirm(world, readers):
    world.budgets.open_incarnation("edge-2", "edge", "here")
    world.budgets.open_incarnation("batch-1", "batch", "here")  # reads no catalog
    version = readers.version()
    assert version == world.catalog.version()
    assert readers.behind(version) == 2
    readers.confirm(INCARNATION, version)
    assert readers.behind(version) == 1
    readers.confirm("edge-2", version + 1)
    assert readers.behind(version) == 0
    world.catalog.revoke_key(world.key.id)
    assert readers.behind(readers.version()) == 1
    world.budgets.start_closing(INCARNATION)
    assert readers.behind(readers.version()) == 0


def test_the_wait_ends_when_nobody_is_behind():
    left = [2, 1, 0]
    pauses = []
    wait_for_readers(lambda: left.pop(0), pauses.append)
    assert (left, len(pauses)) == ([], 2)


def test_the_wait_ends_after_a_second(monkeypatch):
    now_s = [0.0]

    def sleep(pause_s):
        now_s[0] += pause_s

    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    wait_for_readers(lambda: 1, sleep)
    assert 1.0 <= now_s[0] < 1.1


def test_models_are_granted_to_all_or_none_and_a_removed_member_loses_its_keys(world):
    catalog = world.catalog
    org = catalog.create_account("acme", "org")
    ann, ben = (catalog.create_member(org.id, name) for name in ("ann", "ben"))
    with pytest.raises(LookupError):
        catalog.grant_models(org.id, ["gpt-4o"], [ann.id, "mem_none"])
    assert [member.models for member in catalog.members(org.id)] == [(), ()]
    changed = catalog.grant_models(org.id, ["gpt-4o"], [ben.id, ben.id])
    assert [(member.id, member.models) for member in changed] == [(ben.id, ("gpt-4o",))]
    assert len(catalog.grant_models(org.id, ["*"])) == 2
    parent, _ = catalog.create_key(org.id, "k", member_id=ann.id)
    child, _ = catalog.create_key(org.id, "sub", parent_id=parent.id)
    other, _ = catalog.create_key(org.id, "other", member_id=ben.id)
    assert catalog.remove_member(ann.id).status == "disabled"
    assert [catalog.key(key.id).status for key in (parent, child, other)] == [
        "revoked", "revoked", "active",
    ]  # fmt: skip
    assert catalog.remove_member(ann.id).status == "disabled"
    with pytest.raises(LookupError):
        catalog.remove_member("mem_none")
