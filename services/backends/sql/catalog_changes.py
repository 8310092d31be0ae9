"""The catalog's version, and whose change made each: a worker with very many keys reads again what
one account has, not all."""

from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from services.backends.sql.tables import catalog_change, catalog_version

COMMON: Final = ""  # in place of an account: channels, groups and prices
KEPT: Final = 10_000
_ACCOUNTS_MAX: Final = 500

_BUMP: Final = (
    update(catalog_version)
    .values(version=catalog_version.c.version + 1)
    .returning(catalog_version.c.version)
)


def bump_version(connection: Connection, account_id: str = COMMON) -> None:
    """Every worker reads again what the account has: itself, its members and keys; without one
    channels, groups and prices."""
    version = connection.execute(_BUMP).scalar_one()
    connection.execute(insert(catalog_change).values(version=version, account_id=account_id))
    connection.execute(delete(catalog_change).where(catalog_change.c.version <= version - KEPT))


def present_version(connection: Connection) -> int:
    return int(connection.execute(select(catalog_version.c.version)).scalar_one())


def accounts_changed(connection: Connection, after: int, upto: int) -> set[str] | None:
    """Whose changes made the versions above `after`, up to `upto`, COMMON among them. None: more
    than some accounts changed, or it is no longer known what did."""
    query = select(catalog_change.c.account_id).where(
        catalog_change.c.version > after, catalog_change.c.version <= upto
    )
    if not 0 <= upto - after <= KEPT:
        return None
    found = list(connection.execute(query).scalars())
    accounts = set(found)
    if len(found) != upto - after or len(accounts) > _ACCOUNTS_MAX:
        return None
    return accounts
