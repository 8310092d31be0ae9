"""Accounts in the catalog."""

from sys import intern
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, insert, or_, select, update

from services.backends.sql.catalog_changes import bump_version
from services.backends.sql.catalog_ground import (
    OPERATOR,
    NotInCatalog,
    create,
    facts,
    page_of_ids,
)
from services.backends.sql.engine import database_now_us, read
from services.backends.sql.limits import insert_limit
from services.backends.sql.outbox import audit
from services.backends.sql.tables import account
from services.core.catalog import Account
from services.core.errors import InvalidRequest
from services.core.ids import new_id
from services.core.names import check_name

STATUSES: Final = ("active", "paused", "disabled")
_FIELDS: Final = Account.__struct_fields__
_ACCOUNTS: Final = select(*(account.c[name] for name in _FIELDS))
_SETTINGS: Final = ("name", "status", "concurrency", "requests_per_min", "tokens_per_min")


class AccountCatalog:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    _engine: Engine

    def create_account(
        self,
        name: str,
        kind: str = "individual",
        *,
        concurrency: int = 0,
        requests_per_min: int = 0,
        tokens_per_min: int = 0,
        actor: str = OPERATOR,
    ) -> Account:
        """A new account with an empty wallet. Raises AlreadyInCatalog, InvalidRequest."""
        check_name(name)

        def insert_it(connection: Connection) -> Account:
            made = Account(
                id=new_id("acct"),
                name=name,
                kind=kind,
                created_at=database_now_us(connection),
                concurrency=concurrency,
                requests_per_min=requests_per_min,
                tokens_per_min=tokens_per_min,
            )
            wallet = insert_limit(connection, "wallet", made.id, 0)
            values = {each: getattr(made, each) for each in made.__struct_fields__}
            connection.execute(insert(account).values(wallet_limit_id=wallet, **values))
            bump_version(connection, made.id)
            detail = facts({"name": name, "kind": kind} | _rates(made))
            audit(connection, "account.create", made.id, actor, detail, made.id)
            return made

        return create(self._engine, insert_it, f"the account {name!r} exists already")

    def update_account(self, account_id: str, *, actor: str = OPERATOR, **fields: Any) -> Account:
        """Changes name, status, concurrency, requests_per_min, tokens_per_min. Raises NotInCatalog,
        AlreadyInCatalog (name), InvalidRequest."""
        for name in fields:
            if name not in _SETTINGS:
                raise InvalidRequest(f"{name}: an account has no such setting", param=name)
        if "name" in fields:
            check_name(fields["name"])
        if fields.get("status", "active") not in STATUSES:
            raise InvalidRequest(f"status: one of {', '.join(STATUSES)}", param="status")

        def change(connection: Connection) -> Account:
            if fields:
                connection.execute(
                    update(account).where(account.c.id == account_id).values(**fields)
                )
            row = connection.execute(_ACCOUNTS.where(account.c.id == account_id)).first()
            if row is None:
                raise NotInCatalog(f"there is no account {account_id!r}")
            bump_version(connection, account_id)
            detail = {name: str(value) for name, value in fields.items()}
            audit(connection, "account.update", account_id, actor, detail, account_id)
            return account_of(row)

        return create(self._engine, change, f"the account {fields.get('name')!r} exists already")

    def account(self, name_or_id: str) -> Account:
        """Raises NotInCatalog."""
        query = _ACCOUNTS.where(or_(account.c.id == name_or_id, account.c.name == name_or_id))
        rows = read(self._engine, lambda connection: connection.execute(query).all())
        if not rows:
            raise NotInCatalog(f"there is no account {name_or_id!r}")
        # An account may be named like the id of another: the id counts.
        return account_of(max(rows, key=lambda row: bool(row.id == name_or_id)))

    def accounts(self) -> list[Account]:
        """All, oldest first."""
        return read(self._engine, read_accounts)

    def accounts_page(self, limit: int, offset: int) -> tuple[list[Account], int]:
        """A part of them, and how many there are in all."""

        def fn(connection: Connection) -> tuple[list[Account], int]:
            ids, total = page_of_ids(connection, account, (), limit, offset)
            return read_accounts(connection, account.c.id.in_(ids)), total

        return read(self._engine, fn)


def read_accounts(connection: Connection, *conditions: Any) -> list[Account]:
    query = _ACCOUNTS.where(*conditions).order_by(account.c.created_at, account.c.id)
    return [account_of(row) for row in connection.execute(query)]


def account_of(row: Row[Any]) -> Account:
    """Of a row of `_ACCOUNTS`."""
    values = dict(zip(_FIELDS, row, strict=True))
    return Account(**values | {"id": intern(row.id)})  # its keys have the same text


def _rates(made: Account) -> dict[str, Any]:
    return {
        name: getattr(made, name) for name in ("concurrency", "requests_per_min", "tokens_per_min")
    }
