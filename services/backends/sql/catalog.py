"""Accounts, keys, groups, channels and prices: every change bumps the catalog's version and is
told by an audit event, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, Engine, or_, select

from schemas import config
from services.backends.sql import prices
from services.backends.sql.catalog_accounts import AccountCatalog, read_accounts
from services.backends.sql.catalog_ground import (
    OPERATOR,
    AlreadyInCatalog,
    NotInCatalog,
    bump_version,
    lock,
)
from services.backends.sql.catalog_keys import KeyCatalog
from services.backends.sql.catalog_members import MemberCatalog, read_members
from services.backends.sql.config_sync import read_channels, read_groups, sync_channels, sync_groups
from services.backends.sql.engine import read, write
from services.backends.sql.key_reads import holding, keys_where
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import api_key, catalog_version, routing_group
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
        return read(self._engine, _version)

    def snapshot(self, now_us: int) -> Snapshot:
        """One consistent reading. Keys that died more than 30 days before `now_us` are left out.
        Raises WrongSecret when the channels were written with another secret key."""

        def take(connection: Connection) -> Snapshot:
            version = prices.current(connection)
            oldest = now_us - KEPT_US
            found = keys_where(
                connection,
                or_(api_key.c.revoked_at.is_(None), api_key.c.revoked_at > oldest),
                or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > oldest),
            )
            members = {each.id: each for each in read_members(connection)}
            index = ModelIndex(version.book)
            return Snapshot(
                version=_version(connection),
                accounts={each.id: each for each in read_accounts(connection)},
                members=members,
                keys=holding(found, members),
                groups=read_groups(connection, index),
                channels=read_channels(connection, self._sealer, index),
                prices=version,
            )

        return read(self._engine, take)

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


def _version(connection: Connection) -> int:
    return int(connection.execute(select(catalog_version.c.version)).scalar_one())


def _multipliers(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(routing_group.c.name, routing_group.c.multiplier_ppm))
    return {row.name: row.multiplier_ppm for row in rows}
