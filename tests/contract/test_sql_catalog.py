"""Accounts, keys, channels, groups and prices on both engines."""

import msgspec
import pytest
from sqlalchemy import select

from schemas import config
from schemas.events import Audit, decode
from services.backends.settings import ConfigError
from services.backends.sql.catalog import KEPT_US, AlreadyInCatalog, Catalog, NotInCatalog
from services.backends.sql.engine import read
from services.backends.sql.sealing import WrongSecret
from services.backends.sql.tables import api_key, channel, price_version, sql_outbox
from services.core.prices import ChannelPrice, Overrides, PriceBook
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import SECRET, count, model

NOW = 1_900_000_000_000_000


@pytest.fixture
def catalog(engine):  # noqa: F811
    return Catalog(engine, SECRET)


@pytest.fixture
def account(catalog):
    return catalog.create_account("someone")


def audits(engine):  # noqa: F811
    bodies = read(
        engine,
        lambda c: c.execute(select(sql_outbox.c.body).order_by(sql_outbox.c.id)).scalars().all(),
    )
    return [event for event in map(decode, bodies) if isinstance(event, Audit)]


def a_channel(name="one", **more):
    values = {"dialect": "anthropic", "base_url": "http://up", "models": ["claude-a"]}
    return config.Channel(name=name, **(values | more))


BOOK = {"claude-a": model("claude-a", aliases=["claude-a-alias"]), "claude-b": model("claude-b")}


# -- accounts and keys -------------------------------------------------------------------------


def test_an_account_is_found_by_name_and_by_id(catalog, account):
    assert account.id.startswith("acct_")
    assert catalog.account("someone") == account
    assert catalog.account(account.id) == account
    named_like_it = catalog.create_account(account.id, kind="org")
    assert catalog.account(account.id) == account
    assert catalog.accounts() == [account, named_like_it]
    with pytest.raises(NotInCatalog):
        catalog.account("nobody")
    with pytest.raises(AlreadyInCatalog):
        catalog.create_account("someone")


def test_a_key_is_stored_without_its_secret(catalog, account, engine):  # noqa: F811
    key, secret = catalog.create_key(account.id, "mine", quota_nano=5, expires_at=NOW)
    assert secret.startswith("sk-toll-")
    assert len(secret) == len("sk-toll-") + 43
    assert (key.quota_nano, key.expires_at, key.status, key.group) == (5, NOW, "active", "default")
    assert len(set(key.limit_ids)) == 2
    assert catalog.snapshot(NOW - 1).keys == {key.secret_sha256: key}
    assert catalog.reveal_key(key.id) == secret
    row = read(engine, lambda c: c.execute(select(api_key)).one())
    assert all(secret not in str(value) for value in row)
    assert secret not in str(audits(engine))
    with pytest.raises(WrongSecret):
        Catalog(engine, bytes(32)).reveal_key(key.id)


def test_keys_of_an_account_share_its_wallet_limit(catalog, account):
    first, _ = catalog.create_key(account.id, "a")
    second, _ = catalog.create_key(account.id, "a")
    assert first.limit_ids[1] == second.limit_ids[1]
    assert first.limit_ids[0] != second.limit_ids[0]
    other = catalog.create_account("other")
    catalog.create_key(other.id, "b")
    assert catalog.keys(account.id) == [first, second]
    assert len(catalog.keys()) == 3


def test_a_given_secret_is_kept_and_taken_once(catalog, account):
    _, secret = catalog.create_key(account.id, "a", custom_secret="sk-toll-given-by-its-owner")
    assert secret == "sk-toll-given-by-its-owner"
    with pytest.raises(AlreadyInCatalog):
        catalog.create_key(account.id, "b", custom_secret="sk-toll-given-by-its-owner")
    assert len(catalog.keys()) == 1


def test_a_key_needs_its_account_and_group(catalog, account):
    with pytest.raises(NotInCatalog, match="account"):
        catalog.create_key("acct_none", "a")
    with pytest.raises(NotInCatalog, match="group"):
        catalog.create_key(account.id, "a", group="none")


def test_revoking_is_told_once(catalog, account, engine):  # noqa: F811
    key, _ = catalog.create_key(account.id, "a")
    before = catalog.version()
    revoked = catalog.revoke_key(key.id, actor="boss")
    assert revoked.status == "revoked"
    assert catalog.revoke_key(key.id) == revoked
    assert catalog.version() == before + 1
    told = [event for event in audits(engine) if event.action == "key.revoke"]
    assert [(event.subject, event.actor, event.account_id) for event in told] == [
        (key.id, "boss", account.id)
    ]
    with pytest.raises(NotInCatalog):
        catalog.revoke_key("key_none")


def test_dead_keys_leave_the_snapshot_after_a_while(catalog, account):
    revoked, _ = catalog.create_key(account.id, "a")
    expired, _ = catalog.create_key(account.id, "b", expires_at=NOW)
    live, _ = catalog.create_key(account.id, "c")
    catalog.revoke_key(revoked.id)
    soon = catalog.snapshot(expired.created_at)
    assert {key.id for key in soon.keys.values()} == {revoked.id, expired.id, live.id}
    late = catalog.snapshot(NOW + KEPT_US + 1)
    assert {key.id for key in late.keys.values()} == {live.id}


# -- configuration -----------------------------------------------------------------------------


def test_a_synced_snapshot(catalog, account, tmp_path):
    secret_file = tmp_path / "credential"
    secret_file.write_text("up-secret\n")
    channels = [
        a_channel(credential=f"file:{secret_file}", priority=3, groups=["default", "vip"]),
        a_channel("two", dialect="chat", models={"claude-a-alias": "other", "new": "newer"}),
    ]
    groups = [config.Group(name="vip", multiplier=0.8, models=["claude-a-alias"])]
    key, _ = catalog.create_key(account.id, "a")
    version = catalog.sync(channels, groups, BOOK, NOW)
    snapshot = catalog.snapshot(NOW)
    assert snapshot.version == catalog.version()
    assert snapshot.prices == version
    assert version.effective_at == NOW
    assert version.book.multipliers_ppm == {"default": 1_000_000, "vip": 800_000}
    assert snapshot.keys == {key.secret_sha256: key}
    assert snapshot.accounts == {account.id: account}
    assert snapshot.groups["vip"].models == ("claude-a",)
    one, two = snapshot.channels
    assert (one.credential, one.priority, one.groups) == ("up-secret", 3, ("default", "vip"))
    assert one.models == {"claude-a": "claude-a"}
    assert two.models == {"claude-a": "other", "new": "newer"}
    assert two.credential == ""


def test_credentials_are_sealed(catalog, engine, monkeypatch):  # noqa: F811
    monkeypatch.setenv("UPSTREAM_KEY", "up-secret")
    channels = [a_channel(credential="env:UPSTREAM_KEY")]
    catalog.sync(channels, [], BOOK, NOW)
    row = read(engine, lambda c: c.execute(select(channel)).one())
    assert all("up-secret" not in str(value) for value in row)
    assert "up-secret" not in str(audits(engine))
    with pytest.raises(WrongSecret):
        Catalog(engine, bytes(32)).snapshot(NOW)
    other = Catalog(engine, bytes(32))
    other.sync(channels, [], BOOK, NOW)  # with the present secret key all is well again
    assert other.snapshot(NOW).channels[0].credential == "up-secret"


def test_a_secret_that_is_missing_changes_nothing(catalog):
    before = catalog.version()
    with pytest.raises(ConfigError):
        catalog.sync([a_channel(credential="env:TOLLGATE_NO_SUCH")], [], BOOK, NOW)
    assert catalog.version() == before
    assert catalog.snapshot(NOW).channels == ()


def test_sync_is_idempotent(catalog, engine, monkeypatch):  # noqa: F811
    monkeypatch.setenv("UPSTREAM_KEY", "one")
    channels = [a_channel(credential="env:UPSTREAM_KEY")]
    groups = [config.Group(name="vip", multiplier=0.8)]
    first = catalog.sync(channels, groups, BOOK, NOW)
    version, told = catalog.version(), len(audits(engine))
    assert catalog.sync(channels, groups, BOOK, NOW + 1) == first
    assert (catalog.version(), len(audits(engine))) == (version, told)
    monkeypatch.setenv("UPSTREAM_KEY", "two")
    catalog.sync(channels, groups, BOOK, NOW + 2)
    assert catalog.snapshot(NOW).channels[0].credential == "two"
    assert catalog.version() == version + 1
    assert audits(engine)[-1].action == "channel.change"


def test_what_leaves_the_configuration_leaves_routing(catalog, account, engine):  # noqa: F811
    groups = [config.Group(name="vip", multiplier=0.8), config.Group(name="empty")]
    catalog.sync([a_channel(), a_channel("two", groups=["side"])], groups, BOOK, NOW)
    catalog.create_key(account.id, "a", group="vip")
    catalog.sync([a_channel()], [], BOOK, NOW)
    snapshot = catalog.snapshot(NOW)
    assert [each.name for each in snapshot.channels] == ["one"]
    assert set(snapshot.groups) == {"default", "vip"}  # a key is in vip
    assert snapshot.groups["vip"].multiplier_ppm == 800_000
    actions = [(event.action, event.subject) for event in audits(engine)]
    assert ("channel.remove", "two") in actions
    assert ("group.remove", "side") in actions


# -- prices ------------------------------------------------------------------------------------


def test_before_the_first_sync_nothing_has_a_price(catalog):
    assert catalog.snapshot(NOW).prices.book == PriceBook(models={}, multipliers_ppm={})
    assert catalog.price_versions() == []


def test_a_price_version_is_new_only_when_the_book_changed(catalog, engine):  # noqa: F811
    first = catalog.sync([], [], BOOK, NOW)
    dearer = BOOK | {"claude-b": model("claude-b", output_nano=7)}
    second = catalog.sync([], [], dearer, NOW + 1)
    assert second.id == second.book.version_id() != first.id
    third = catalog.sync([], [], BOOK, NOW + 2)  # back to the old prices: the old version rules
    assert third.id == first.id
    assert catalog.snapshot(NOW).prices.id == first.id
    assert [each.price_version_id for each in catalog.price_versions()] == [
        first.id,
        second.id,
        first.id,
    ]
    assert count(engine, price_version) == 2
    assert catalog.price_version(first.id) == first
    assert [tuple(change) for change in catalog.diff_prices(first.id, second.id)] == [
        ("", "claude-b", "output", 1_000_000_000, 7)
    ]
    with pytest.raises(NotInCatalog):
        catalog.price_version("pv_none")


def test_a_multiplier_is_part_of_the_version(catalog):
    first = catalog.sync([], [config.Group(name="vip", multiplier=0.8)], BOOK, NOW)
    second = catalog.sync([], [config.Group(name="vip", multiplier=0.7)], BOOK, NOW)
    assert first.id != second.id
    assert catalog.price_version(first.id).book.multipliers_ppm["vip"] == 800_000


def test_imported_prices_rule_over_built_in_ones(catalog, engine):  # noqa: F811
    catalog.sync([], [], BOOK, NOW)
    own = {"claude-a": model("claude-a", output_nano=3), "mine": model("mine")}
    dearer = {"one": {"claude-a": ChannelPrice(classes={"output": 9})}}
    given = Overrides(models=own, channels=dearer)
    tried = catalog.import_prices(given, NOW + 1, dry_run=True)
    assert len(catalog.price_versions()) == 1, "a dry run changes nothing"
    imported = catalog.import_prices(given, NOW + 1, actor="boss")
    assert imported.id == tried.id
    assert imported.book.models == BOOK | own
    assert imported.book.channels == {"one": {"claude-a": {"output": 9}}}
    assert catalog.sync([], [], BOOK, NOW + 2).id == imported.id
    mine = Overrides(models={"mine": model("mine", output_nano=4)})
    again = catalog.import_prices(mine, NOW + 3)
    assert again.book.models["mine"].classes["output"] == 4
    assert again.book.channels == imported.book.channels
    told = [event for event in audits(engine) if event.action == "price.change"]
    assert [event.subject for event in told][1:] == [imported.id, again.id]
    assert told[1].actor == "boss"


def test_a_version_survives_its_way_through_the_database(catalog):
    version = catalog.sync([], [], BOOK, NOW)
    stored = catalog.price_version(version.id)
    assert msgspec.json.encode(stored.book) == msgspec.json.encode(version.book)
    assert stored.book.version_id() == version.id
