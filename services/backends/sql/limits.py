"""Limit rows: how they are made and how their limits change. What they hold is the work of
`budgets` alone, except that a new window begins with what its key has leased."""

from sqlalchemy import Connection, insert, select, update

from services.backends.sql.catalog_ground import as_json, as_tuple
from services.backends.sql.engine import database_now_us, now_us
from services.backends.sql.lease_reads import LIVE
from services.backends.sql.tables import api_key, lease, limit_row
from services.core.budgets import WINDOWS_US
from services.core.ids import new_id


def insert_limit(
    connection: Connection,
    kind: str,
    subject: str,
    limit_nano: int | None,
    *,
    settled_nano: int = 0,
    leased_nano: int = 0,
) -> str:
    """A new row; returns its id."""
    row = {
        "id": new_id("lim"),
        "kind": kind,
        "subject": subject,
        "limit_nano": limit_nano,
        "settled_nano": settled_nano,
        "leased_nano": leased_nano,
    }
    if kind in WINDOWS_US:
        row |= {
            "window_us": WINDOWS_US[kind],
            "since_at": database_now_us(connection),
            "buckets": "[]",
        }
    connection.execute(insert(limit_row).values(row))
    return str(row["id"])


def set_limit(connection: Connection, limit_id: str, limit_nano: int | None) -> None:
    """The limit from now on. Below what is out already it stops grants; idle leases come back."""
    connection.execute(
        update(limit_row)
        .where(limit_row.c.id == limit_id)
        .values(limit_nano=limit_nano, recall_at=now_us())
    )


def add_window(
    connection: Connection, kind: str, key_id: str, quota_limit_id: str, limit_nano: int
) -> None:
    """A window of a key that may have been used already. It counts what is spent from now on,
    also from the live leases of the key and its sub-keys: these are told of it, so that their
    settlement touches it, and their money is leased at it too.

    Locks as `budgets` does: keys, leases by id, limits. The key's quota has leased and settled
    exactly what a window of the same key has."""
    keys = connection.execute(
        select(api_key.c.id, api_key.c.account_id, api_key.c.more_limit_ids)
        .where((api_key.c.id == key_id) | (api_key.c.parent_id == key_id))
        .order_by(api_key.c.id)
        .with_for_update()
    ).all()
    leases = connection.execute(
        select(lease.c.id, lease.c.limit_ids)
        .where(
            lease.c.account_id.in_({row.account_id for row in keys}),
            lease.c.key_id.in_([row.id for row in keys]),
            LIVE,
        )
        .order_by(lease.c.id)
        .with_for_update()
    ).all()
    quota = connection.execute(
        select(limit_row).where(limit_row.c.id == quota_limit_id).with_for_update()
    ).one()
    made = insert_limit(
        connection,
        kind,
        key_id,
        limit_nano,
        settled_nano=quota.settled_nano,
        leased_nano=quota.leased_nano,
    )
    for row in keys:
        more = as_json([*as_tuple(row.more_limit_ids), made])
        connection.execute(
            update(api_key).where(api_key.c.id == row.id).values(more_limit_ids=more)
        )
    for lease_id, limit_ids in leases:
        ids = as_json(sorted([*as_tuple(limit_ids), made]))
        connection.execute(update(lease).where(lease.c.id == lease_id).values(limit_ids=ids))
    set_limit(connection, made, limit_nano)  # marks the recall: idle money comes back
