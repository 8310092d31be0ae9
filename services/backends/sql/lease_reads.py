"""Readings of limits and leases; nothing here changes a row."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Text, and_, case, func, select

from services.backends.sql.bulk import rows_as_table
from services.backends.sql.engine import now_us
from services.backends.sql.lease_records import Balance, SyncReply
from services.backends.sql.tables import account, incarnation, lease, limit_row
from services.core.budgets import LimitState

RECALL_US: Final = 2_000_000  # how long a recall mark stands: as long as a request may wait

LIVE: Final = lease.c.state != "closed"


def limit_states(rows: Iterable[Row[Any]], pending: dict[str, int]) -> list[LimitState]:
    """The states of limit rows; `pending` is nano by limit id, over the live leases of every
    worker, the asking one's too."""
    return [
        LimitState(
            limit_id=row.id,
            kind=row.kind,
            limit_nano=row.limit_nano,
            settled_nano=row.settled_nano,
            leased_nano=row.leased_nano,
            pending_nano=pending.get(row.id, 0),
        )
        for row in rows
    ]


def pending_by_limit(connection: Connection, accounts: ColumnElement[bool]) -> dict[str, int]:
    """Held or spent and not settled, nano by limit id, over the live leases of `accounts`."""
    unsettled = lease.c.reserved_nano + lease.c.spent_nano - lease.c.consumed_nano
    left = lease.c.amount_nano - lease.c.consumed_nano
    # A report may be older than the settlement of what it tells: never below 0, never above left.
    pending = case((unsettled < 0, 0), (unsettled > left, left), else_=unsettled)
    rows = connection.execute(
        select(lease.c.limit_ids, func.sum(pending).label("nano"))
        .where(LIVE, accounts)
        .group_by(lease.c.limit_ids)
    )
    totals: dict[str, int] = {}
    for row in rows:
        for limit_id in msgspec.json.decode(row.limit_ids, type=list[str]):
            totals[limit_id] = totals.get(limit_id, 0) + int(row.nano)
    return totals


def limit_rows(
    connection: Connection, limit_ids: Iterable[str], *, lock: bool = False
) -> Sequence[Row[Any]]:
    """The rows of `limit_ids` in id order, `recalled` telling whether a recall mark stands."""
    named = rows_as_table(connection, "named", {"id": Text()}, [[each] for each in limit_ids])
    query = (
        select(limit_row, (limit_row.c.recall_at > now_us() - RECALL_US).label("recalled"))
        .where(limit_row.c.id.in_(select(named.c.id)))
        .order_by(limit_row.c.id)
    )
    return connection.execute(query.with_for_update(of=limit_row) if lock else query).all()


def sync_reply(connection: Connection, incarnation_id: str) -> SyncReply:
    """What a worker must know about its leases' limits."""
    state = connection.execute(
        select(incarnation.c.state).where(incarnation.c.id == incarnation_id)
    ).scalar_one_or_none()
    mine = and_(lease.c.incarnation_id == incarnation_id, LIVE)
    own = [
        (row.id, msgspec.json.decode(row.limit_ids, type=list[str]))
        for row in connection.execute(select(lease.c.id, lease.c.limit_ids).where(mine))
    ]
    if not own:
        return SyncReply({}, set(), state or "unknown")
    rows = limit_rows(connection, {each for _, ids in own for each in ids})
    accounts = lease.c.account_id.in_(select(lease.c.account_id).where(mine))
    states = limit_states(rows, pending_by_limit(connection, accounts))
    recalled = {row.id for row in rows if row.recalled}
    return SyncReply(
        {each.limit_id: each for each in states},
        {lease_id for lease_id, ids in own if not recalled.isdisjoint(ids)},
        state or "unknown",
    )


def wallet_balance(connection: Connection, account_id: str) -> Balance | None:
    """The wallet of an account; None when there is no such account."""
    row = connection.execute(
        select(limit_row)
        .join(account, account.c.wallet_limit_id == limit_row.c.id)
        .where(account.c.id == account_id)
    ).one_or_none()
    if row is None:
        return None
    held = pending_by_limit(connection, lease.c.account_id == account_id).get(row.id, 0)
    return Balance(
        available_nano=row.limit_nano - row.settled_nano - held,
        limit_nano=row.limit_nano,
        settled_nano=row.settled_nano,
        held_nano=held,
    )
