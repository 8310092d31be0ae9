"""Accounts, keys, groups, channels and prices: every change bumps the catalog's version and is
told by an audit event, in one transaction."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Engine, Row, Select, exc, insert, or_, select, update

from schemas import config
from services.backends.sql import prices
from services.backends.sql.config_sync import read_channels, read_groups, sync_channels, sync_groups
from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import (
    account,
    api_key,
    catalog_version,
    limit_row,
    routing_group,
)
from services.core import keys
from services.core.catalog import Account, Key, Snapshot
from services.core.ids import new_id
from services.core.prices import ModelPrice, PriceBook, PriceVersion
from services.core.routing import ModelIndex

T = TypeVar("T")

OPERATOR: Final = "operator"
KEPT_US: Final = 30 * 86_400 * 1_000_000  # a dead key stays in the snapshot, to say why it is dead


class NotInCatalog(LookupError):
    """There is no such account, key, group or price version."""


class AlreadyInCatalog(Exception):
    """The account's name or the key's secret is taken."""


class Catalog:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, secret_key: bytes) -> None:
        self._engine = engine
        self._sealer = Sealer(secret_key)

    # -- accounts -----------------------------------------------------------------------------

    def create_account(
        self, name: str, kind: str = "individual", *, actor: str = OPERATOR
    ) -> Account:
        """A new account with an empty wallet. Raises AlreadyInCatalog."""

        def create(connection: Connection) -> Account:
            now = database_now_us(connection)
            made = Account(id=new_id("acct"), name=name, kind=kind, created_at=now)
            wallet = _insert_limit(connection, "wallet", made.id, 0)
            row = msgspec.structs.asdict(made) | {"wallet_limit_id": wallet}
            connection.execute(insert(account).values(row))
            _bump(connection)
            detail = {"name": name, "kind": kind}
            audit(connection, "account.create", made.id, actor, detail, made.id)
            return made

        return self._create(create, f"the account {name!r} exists already")

    def account(self, name_or_id: str) -> Account:
        """Raises NotInCatalog."""
        query = select(account).where(or_(account.c.id == name_or_id, account.c.name == name_or_id))
        rows = read(self._engine, lambda connection: connection.execute(query).all())
        if not rows:
            raise NotInCatalog(f"there is no account {name_or_id!r}")
        # An account may be named like the id of another: the id counts.
        return _account(max(rows, key=lambda row: bool(row.id == name_or_id)))

    def accounts(self) -> list[Account]:
        """All, oldest first."""
        return read(self._engine, _accounts)

    # -- keys ---------------------------------------------------------------------------------

    def create_key(
        self,
        account_id: str,
        name: str,
        group: str = "default",
        quota_nano: int | None = None,
        expires_at: int | None = None,
        secret: str | None = None,
        *,
        actor: str = OPERATOR,
    ) -> tuple[Key, str]:
        """A new key and its secret, made unless given. Its quota is a limit row of its own, NULL
        without quota. Raises NotInCatalog (account or group), AlreadyInCatalog (secret)."""
        clear = secret or keys.generate()
        key_id = new_id("key")

        def create(connection: Connection) -> Key:
            _require(connection, account.c.id, account_id, "account")
            _require(connection, routing_group.c.name, group, "group")
            row = {
                "id": key_id,
                "account_id": account_id,
                "name": name,
                "masked": keys.masked(clear),
                "secret_sha256": keys.sha256_hex(clear),
                "secret_sealed": self._sealer.seal(clear),
                "group_name": group,
                "status": "active",
                "quota_limit_id": _insert_limit(connection, "key_quota", key_id, quota_nano),
                "expires_at": expires_at,
                "created_at": now_us(),
            }
            connection.execute(insert(api_key).values(row))
            _bump(connection)
            made = _key(connection.execute(_keys().where(api_key.c.id == key_id)).one())
            audit(connection, "key.create", key_id, actor, _facts(made), account_id)
            return made

        return self._create(create, "that secret is a key already"), clear

    def keys(self, account_id: str | None = None) -> list[Key]:
        """All, or those of one account, oldest first."""
        query = _keys().order_by(api_key.c.created_at, api_key.c.id)
        if account_id is not None:
            query = query.where(api_key.c.account_id == account_id)
        return read(
            self._engine, lambda connection: [_key(row) for row in connection.execute(query)]
        )

    def key_by_sha256(self, secret_sha256: str) -> Key | None:
        """The key with that lookup hash, in whatever state."""
        query = _keys().where(api_key.c.secret_sha256 == secret_sha256)
        row = read(self._engine, lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _key(row)

    def key_secret(self, key_id: str) -> str:
        """The key in clear text, for its owner only. Raises NotInCatalog, WrongSecret."""
        query = select(api_key.c.secret_sealed).where(api_key.c.id == key_id)
        sealed = read(
            self._engine, lambda connection: connection.execute(query).scalar_one_or_none()
        )
        if sealed is None:
            raise NotInCatalog(f"there is no key {key_id!r}")
        return self._sealer.unseal(sealed)

    def revoke_key(self, key_id: str, *, actor: str = OPERATOR) -> Key:
        """From its commit on the key gets no grant. Revoking again changes nothing. Raises
        NotInCatalog."""

        def revoke(connection: Connection) -> Key:
            changed = connection.execute(
                update(api_key)
                .where(api_key.c.id == key_id, api_key.c.status != "revoked")
                .values(status="revoked", revoked_at=now_us())
            ).rowcount
            row = connection.execute(_keys().where(api_key.c.id == key_id)).one_or_none()
            if row is None:
                raise NotInCatalog(f"there is no key {key_id!r}")
            revoked = _key(row)
            if changed:
                _bump(connection)
                audit(connection, "key.revoke", key_id, actor, _facts(revoked), revoked.account_id)
            return revoked

        return write(self._engine, revoke)

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
            _lock(connection)
            names = {"default"} | {name for each in channels for name in each.groups}
            changed = sync_groups(connection, groups, names, actor)
            changed |= sync_channels(connection, channels, self._sealer, actor)
            imported, channel_prices = prices.overrides(connection)
            book = PriceBook(
                models={**book_models, **imported},
                multipliers_ppm=_multipliers(connection),
                channels=channel_prices,
            )
            return self._put_book(connection, book, now, actor, bump=changed)

        return write(self._engine, apply)

    def import_prices(
        self,
        models: Mapping[str, ModelPrice],
        now: int,
        *,
        channels: prices.ChannelPrices | None = None,
        actor: str = OPERATOR,
    ) -> PriceVersion:
        """Prices of the operator's own, for models and for single channels: they replace those of
        the same name, now and at every later sync. In force at once."""

        def apply(connection: Connection) -> PriceVersion:
            _lock(connection)
            prices.store_overrides(connection, models, channels or {})
            _, channel_prices = prices.overrides(connection)
            before = prices.current(connection).book
            book = PriceBook(
                models={**before.models, **models},
                multipliers_ppm=_multipliers(connection),
                channels=channel_prices,
            )
            return self._put_book(connection, book, now, actor, bump=False)

        return write(self._engine, apply)

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
            live = _keys().where(
                or_(api_key.c.revoked_at.is_(None), api_key.c.revoked_at > oldest),
                or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > oldest),
            )
            found = [_key(row) for row in connection.execute(live)]
            index = ModelIndex(version.book)
            return Snapshot(
                version=_version(connection),
                accounts={each.id: each for each in _accounts(connection)},
                keys={each.secret_sha256: each for each in found},
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
            _bump(connection)
        return version

    def _create(self, fn: Callable[[Connection], T], taken: str) -> T:
        try:
            return write(self._engine, fn)
        except exc.IntegrityError as ex:
            raise AlreadyInCatalog(taken) from ex


def _version(connection: Connection) -> int:
    return int(connection.execute(select(catalog_version.c.version)).scalar_one())


def _bump(connection: Connection) -> None:
    connection.execute(update(catalog_version).values(version=catalog_version.c.version + 1))


def _lock(connection: Connection) -> None:
    # Two processes that apply a configuration at once do it one after the other.
    connection.execute(select(catalog_version.c.version).with_for_update())


def _require(connection: Connection, column: Column[str], value: str, word: str) -> None:
    if connection.execute(select(column).where(column == value)).first() is None:
        raise NotInCatalog(f"there is no {word} {value!r}")


def _insert_limit(connection: Connection, kind: str, subject: str, limit_nano: int | None) -> str:
    row = {
        "id": new_id("lim"),
        "kind": kind,
        "subject": subject,
        "limit_nano": limit_nano,
        "settled_nano": 0,
        "leased_nano": 0,
    }
    connection.execute(insert(limit_row).values(row))
    return str(row["id"])


def _multipliers(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(routing_group.c.name, routing_group.c.multiplier_ppm))
    return {row.name: row.multiplier_ppm for row in rows}


def _accounts(connection: Connection) -> list[Account]:
    rows = connection.execute(select(account).order_by(account.c.created_at, account.c.id))
    return [_account(row) for row in rows]


def _account(row: Row[Any]) -> Account:
    return Account(
        id=row.id, name=row.name, kind=row.kind, status=row.status, created_at=row.created_at
    )


def _keys() -> Select[Any]:
    return (
        select(api_key, account.c.wallet_limit_id, limit_row.c.limit_nano.label("quota_nano"))
        .join(account, account.c.id == api_key.c.account_id)
        .join(limit_row, limit_row.c.id == api_key.c.quota_limit_id)
    )


def _key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        account_id=row.account_id,
        name=row.name,
        masked=row.masked,
        secret_sha256=row.secret_sha256,
        group=row.group_name,
        status=row.status,
        quota_nano=row.quota_nano,
        expires_at=row.expires_at,
        created_at=row.created_at,
        limit_ids=(row.quota_limit_id, row.wallet_limit_id),
    )


def _facts(key: Key) -> dict[str, str]:
    facts = {"name": key.name, "masked": key.masked, "group": key.group}
    if key.quota_nano is not None:
        facts["quota_nano"] = str(key.quota_nano)
    if key.expires_at is not None:
        facts["expires_at"] = str(key.expires_at)
    return facts
