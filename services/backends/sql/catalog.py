"""Accounts, keys, groups, channels and prices: every change bumps the catalog's version and is
told by an audit event, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, Engine, or_, select

from schemas import config
from services.backends.sql import prices
from services.backends.sql.catalog_accounts import AccountCatalog, read_accounts
from services.backends.sql.catalog_changes import (
    COMMON,
    accounts_changed,
    bump_version,
    present_version,
)
from services.backends.sql.catalog_ground import (
    OPERATOR,
    AlreadyInCatalog,
    NotInCatalog,
    lock,
)
from services.backends.sql.catalog_keys import KeyCatalog
from services.backends.sql.catalog_members import MemberCatalog, read_members
from services.backends.sql.config_sync import read_channels, read_groups, sync_channels, sync_groups
from services.backends.sql.engine import read, write
from services.backends.sql.key_reads import holding, many_keys
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import account, api_key, member, routing_group
from services.core.catalog import Snapshot
from services.core.prices import ModelPrice, Overrides, PriceBook, PriceVersion
from services.core.routing import ModelIndex

__all__ = ["KEPT_US", "OPERATOR", "AlreadyInCatalog", "Catalog", "NotInCatalog"]

KEPT_US: Final = 30 * 86_400 * 1_000_000  # a dead key stays in the snapshot, to say why it is dead


class Catalog(AccountCatalog, MemberCatalog, KeyCatalog):
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, secret_key: bytes) -> None:
        self._engine = engine
        self._sealer = Sealer(secret_key)

    # -- configuration and prices -------------------------------------------------------------

    def sync(
        self,
        channels: Sequence[config.Channel],
        groups: Sequence[config.Group],
        book_models: Mapping[str, ModelPrice],
        now: int,
        *,
        actor: str = "config",
    ) -> PriceVersion:
        """Makes channels, groups and the price book what the configuration says. Imported prices
        rule over `book_models`. What is equal already is left alone, so repeating it is harmless.
        Raises ConfigError when a channel's secret is not there."""

        def apply(connection: Connection) -> PriceVersion:
            lock(connection)
            names = {"default"} | {name for each in channels for name in each.groups}
            changed = sync_groups(connection, groups, names, actor)
            changed |= sync_channels(connection, channels, self._sealer, actor)
            built_in = PriceBook(models=dict(book_models), multipliers_ppm=_multipliers(connection))
            book = built_in.with_own(prices.overrides(connection))
            return self._put_book(connection, book, now, actor, bump=changed)

        return write(self._engine, apply)

    def import_prices(
        self, own: Overrides, now: int, *, actor: str = OPERATOR, dry_run: bool = False
    ) -> PriceVersion:
        """Prices of the operator's own, for models and for single channels: they replace those of
        the same name, now and at every later sync. In force at once; a dry run only tells the
        version that it would be."""

        def apply(connection: Connection) -> PriceVersion:
            if not dry_run:
                lock(connection)
            before = prices.current(connection).book
            multipliers = _multipliers(connection)
            book = msgspec.structs.replace(before, multipliers_ppm=multipliers).with_own(own)
            if dry_run:
                return PriceVersion(id=book.version_id(), effective_at=now, book=book)
            prices.store_overrides(connection, own)
            return self._put_book(connection, book, now, actor, bump=False)

        return (read if dry_run else write)(self._engine, apply)

    def price_versions(self) -> list[prices.InForce]:
        """Every coming into force, newest first."""
        return read(self._engine, prices.history)

    def price_version(self, version_id: str) -> PriceVersion:
        """Raises NotInCatalog."""
        found = read(self._engine, lambda connection: prices.load(connection, version_id))
        if found is None:
            raise NotInCatalog(f"there is no price version {version_id!r}")
        return found

    def diff_prices(self, old_id: str, new_id: str) -> list[prices.PriceChange]:
        """What changed from one version to another. Raises NotInCatalog."""
        return prices.diff(self.price_version(old_id).book, self.price_version(new_id).book)

    # -- what the edge reads ------------------------------------------------------------------

    def version(self) -> int:
        """Grows with every change of the catalog."""
        return read(self._engine, present_version)

    def opened_version(self) -> int:
        """As `version`, once channels, groups and prices were read. Raises WrongSecret."""

        def fn(connection: Connection) -> int:
            self._ground(connection)
            return present_version(connection)

        return read(self._engine, fn)

    def snapshot(self, now_us: int, before: Snapshot | None = None) -> Snapshot:
        """One consistent reading. Keys that died more than 30 days before `now_us` are left out.
        What did not change since `before` is taken over from it, the same objects: accounts one by
        one, channels, groups and prices together. Raises WrongSecret when the channels were
        written with another secret key."""

        def take(connection: Connection) -> Snapshot:
            version = present_version(connection)
            changed = None
            if before is not None:
                changed = accounts_changed(connection, before.version, version)
            if before is None or changed is None:
                ground = self._ground(connection)
                empty = Snapshot(version=version, accounts={}, keys={}, **ground)
                return _renewed(connection, empty, version, None, now_us)
            old = before
            if COMMON in changed:
                old = msgspec.structs.replace(before, **self._ground(connection))
            return _renewed(connection, old, version, changed - {COMMON}, now_us)

        return read(self._engine, take)

    def _ground(self, connection: Connection) -> dict[str, Any]:
        """What is of no account, as fields of a snapshot."""
        prices_now = prices.current(connection)
        index = ModelIndex(prices_now.book)
        return {
            "groups": read_groups(connection, index),
            "channels": read_channels(connection, self._sealer, index),
            "prices": prices_now,
        }

    def _put_book(
        self, connection: Connection, book: PriceBook, now: int, actor: str, *, bump: bool
    ) -> PriceVersion:
        before = prices.current(connection)
        version, changed = prices.put(connection, book, now)
        if changed:
            detail = {"before": before.id, "prices": str(len(prices.diff(before.book, book)))}
            audit(connection, "price.change", version.id, actor, detail)
        if changed or bump:
            bump_version(connection)
        return version


def _renewed(
    connection: Connection, old: Snapshot, version: int, ids: set[str] | None, now_us: int
) -> Snapshot:
    """`old` with the accounts `ids` (None: every account) read again, their members and keys too.
    Accounts and members are never deleted; keys are, here, once they are dead for long."""

    def of(column: Column[str]) -> tuple[ColumnElement[bool], ...]:
        return () if ids is None else (column.in_(ids),)

    oldest = now_us - KEPT_US
    members = {each.id: each for each in read_members(connection, *of(member.c.account_id))}
    alive = (
        or_(api_key.c.revoked_at.is_(None), api_key.c.revoked_at > oldest),
        or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > oldest),
        *of(api_key.c.account_id),
    )
    found = holding(many_keys(connection, alive, whole=ids is None), members)
    keys, keys_by_id = dict(old.keys), dict(old.keys_by_id)
    if ids is not None:
        theirs = select(api_key.c.id).where(api_key.c.account_id.in_(ids))
        for key_id in connection.execute(theirs).scalars():
            gone = keys_by_id.pop(key_id, None)
            if gone is not None:
                del keys[gone.secret_sha256]
    for key in found:
        keys[key.secret_sha256] = keys_by_id[key.id] = key
    accounts = {each.id: each for each in read_accounts(connection, *of(account.c.id))}
    return msgspec.structs.replace(
        old,
        version=version,
        accounts=old.accounts | accounts,
        members=old.members | members,
        keys=keys,
        keys_by_id=keys_by_id,
    )


def _multipliers(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(routing_group.c.name, routing_group.c.multiplier_ppm))
    return {row.name: row.multiplier_ppm for row in rows}
