"""Readings of limits and leases; nothing here changes a row."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    select,
)

from services.backends.sql.bulk import ids_table, ids_value
from services.backends.sql.engine import now_us
from services.backends.sql.lease_records import SyncReply
from services.backends.sql.tables import incarnation, lease, limit_row
from services.core import windows
from services.core.budgets import LimitState, headroom_nano

RECALL_US: Final = 2_000_000  # how long a recall mark stands: as long as a request may wait

LIVE: Final = lease.c.state != "closed"


def limit_states(rows: Iterable[Row[Any]], pending: dict[str, int]) -> list[LimitState]:
    """The states of limit rows; `pending` is nano by limit id, over the live leases of every
    worker, the asking one's too."""
    return [_limit_state(row, pending.get(row.id, 0)) for row in rows]


def _limit_state(row: Row[Any], pending_nano: int) -> LimitState:
    settled_nano = row.settled_nano
    returns: tuple[tuple[int, int], ...] = ()
    if row.window_us is not None:
        returns = windows.returns(windows.decode(row.buckets), row.window_us, row.now)
        settled_nano = sum(nano for _, nano in returns)
    return LimitState(
        limit_id=row.id,
        kind=row.kind,
        limit_nano=row.limit_nano,
        settled_nano=settled_nano,
        leased_nano=row.leased_nano,
        pending_nano=pending_nano,
        returns=returns,
    )


def _pending(accounts: ColumnElement[bool]) -> Select[Any]:
    unsettled = lease.c.reserved_nano + lease.c.spent_nano - lease.c.consumed_nano
    left = lease.c.amount_nano - lease.c.consumed_nano
    # A report may be older than the settlement of what it tells: never below 0, never above left.
    nano = case((unsettled < 0, 0), (unsettled > left, left), else_=unsettled)
    return (
        select(lease.c.limit_ids, func.sum(nano).label("nano"))
        .where(LIVE, accounts, left > 0)
        .group_by(lease.c.limit_ids)
    )


# Built once: building a statement costs as much time as running it. A lease of which the holder
# said that all is spent has nothing to recall, and whoever wants to use it asks for a grant first:
# most leases of a worker are like that.
_MINE: Final = and_(
    lease.c.incarnation_id == bindparam("incarnation"),
    LIVE,
    lease.c.amount_nano > lease.c.spent_nano,
)
_OWN: Final = select(lease.c.id, lease.c.limit_ids).where(_MINE)
_STATE: Final = select(
    now_us().label("now"),
    select(incarnation.c.state)
    .where(incarnation.c.id == bindparam("incarnation"))
    .scalar_subquery()
    .label("state"),
)
_PENDING_OF_ACCOUNT: Final = _pending(lease.c.account_id == bindparam("account"))
_PENDING_OF_MINE: Final = _pending(lease.c.account_id.in_(select(lease.c.account_id).where(_MINE)))


@functools.cache
def _limits(dialect: str, *, lock: bool) -> Select[Any]:
    query = (
        select(
            limit_row,
            (limit_row.c.recall_at > now_us() - RECALL_US).label("recalled"),
            now_us().label("now"),
        )
        .where(limit_row.c.id.in_(select(ids_table(dialect).c.id)))
        .order_by(limit_row.c.id)
    )
    return query.with_for_update(of=limit_row) if lock else query


def limit_rows(
    connection: Connection, limit_ids: Iterable[str], *, lock: bool = False
) -> Sequence[Row[Any]]:
    """The rows of `limit_ids` in id order, `recalled` telling whether a recall mark stands, `now`
    the database's time. Of rows that were waited for, `now` may be from before the wait."""
    dialect = connection.dialect.name
    query = _limits(dialect, lock=lock)
    return connection.execute(query, {"ids": ids_value(dialect, limit_ids)}).all()


def pending_of_account(connection: Connection, account_id: str) -> dict[str, int]:
    """Held or spent and not settled, nano by limit id, over the account's live leases."""
    return _by_limit(connection.execute(_PENDING_OF_ACCOUNT, {"account": account_id}))


def _by_limit(rows: Iterable[Row[Any]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for row in rows:
        for limit_id in msgspec.json.decode(row.limit_ids, type=list[str]):
            totals[limit_id] = totals.get(limit_id, 0) + int(row.nano)
    return totals


def sync_reply(connection: Connection, incarnation_id: str) -> SyncReply:
    """What a worker must know about the limits of its leases that have money."""
    me = {"incarnation": incarnation_id}
    now, state = connection.execute(_STATE, me).one()
    state = state or "unknown"
    own = [
        (row.id, msgspec.json.decode(row.limit_ids, type=list[str]))
        for row in connection.execute(_OWN, me)
    ]
    if not own:
        return SyncReply({}, set(), state, now)
    rows = limit_rows(connection, {each for _, ids in own for each in ids})
    states = limit_states(rows, _by_limit(connection.execute(_PENDING_OF_MINE, me)))
    recalled = {row.id for row in rows if row.recalled}
    # Of a limit that was lowered below what is out all comes back, as requests end.
    recalled |= {each.limit_id for each in states if (headroom_nano(each) or 0) < 0}
    return SyncReply(
        {each.limit_id: each for each in states},
        {lease_id for lease_id, ids in own if not recalled.isdisjoint(ids)},
        state,
        now,
    )
