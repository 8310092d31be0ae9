"""The statements of `budgets`: what a grant locks and writes, and how limits are moved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Connection, Row, Text, bindparam, insert, or_, select, update
from sqlalchemy.types import TypeEngine

from services.backends.sql.bulk import rows_as_table
from services.backends.sql.engine import now_us
from services.backends.sql.lease_reads import limit_rows
from services.backends.sql.lease_records import KeyNotActive, LeaseNotOpen
from services.backends.sql.tables import (
    account,
    api_key,
    incarnation,
    lease,
    limit_row,
    member,
    member_model_cap,
)
from services.core import windows
from services.core.budgets import Shortfall

_MOVES: Final[dict[str, TypeEngine[Any]]] = {
    "id": Text(),
    "settled": BigInteger(),
    "leased": BigInteger(),
    "buckets": Text(),
}


class Owner(NamedTuple):
    """Whose lease it is; `model` is the capped model, empty for all others."""

    incarnation_id: str
    key_id: str
    model: str


# Built once: building a statement costs as much time as running it.
STATE: Final = (
    select(incarnation.c.state, now_us().label("now"))
    .where(incarnation.c.id == bindparam("incarnation"))
    .with_for_update(read=True)
)
_PARENT: Final = api_key.alias("parent")
_KEY: Final = (
    select(
        api_key.c.id,
        api_key.c.account_id,
        api_key.c.quota_limit_id,
        api_key.c.more_limit_ids,
        account.c.wallet_limit_id,
        member_model_cap.c.limit_id.label("cap_limit_id"),
        (
            (api_key.c.status == "active")
            & (account.c.status == "active")
            & or_(api_key.c.parent_id.is_(None), _PARENT.c.status == "active")
            & or_(api_key.c.member_id.is_(None), member.c.status == "active")
            & or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > now_us())
            & or_(_PARENT.c.expires_at.is_(None), _PARENT.c.expires_at > now_us())
        ).label("live"),
    )
    .join(account, account.c.id == api_key.c.account_id)
    .outerjoin(_PARENT, _PARENT.c.id == api_key.c.parent_id)
    .outerjoin(member, member.c.id == api_key.c.member_id)
    .outerjoin(
        member_model_cap,
        (member_model_cap.c.member_id == api_key.c.member_id)
        & (member_model_cap.c.model == bindparam("model")),
    )
    .where(api_key.c.id == bindparam("key"))
    .with_for_update(read=True, of=api_key)
)
_LEASE: Final = select(lease).where(lease.c.id == bindparam("lease"))
_LEASE_LOCKED: Final = _LEASE.with_for_update()
_NEW_LEASE: Final = insert(lease).values(opened_at=now_us())
GROW: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"))
    .values(
        amount_nano=lease.c.amount_nano + bindparam("nano"),
        grant_no=bindparam("number"),
        grant_nano=bindparam("nano"),
    )
)
TAKE: Final = (
    update(limit_row)
    .where(limit_row.c.id.in_(bindparam("limits", expanding=True)))
    .values(leased_nano=limit_row.c.leased_nano + bindparam("nano"))
)
GIVE: Final = (
    update(lease)
    .where(
        lease.c.id == bindparam("lease"),
        lease.c.state == "open",
        lease.c.give_no == bindparam("number") - 1,
        lease.c.amount_nano - lease.c.consumed_nano >= bindparam("nano"),
    )
    .values(amount_nano=lease.c.amount_nano - bindparam("nano"), give_no=bindparam("number"))
    .returning(lease.c.limit_ids)
)
REPORT: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"), lease.c.incarnation_id == bindparam("incarnation"))
    .values(reserved_nano=bindparam("reserved"), spent_nano=bindparam("spent"))
)
RESERVE: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"))
    .values(reserved_nano=lease.c.amount_nano - lease.c.consumed_nano)
)


def ids_of(text: str) -> list[str]:
    """A JSON list of ids."""
    return msgspec.json.decode(text, type=list[str])


def active_key(connection: Connection, owner: Owner) -> Row[Any]:
    """The owner's key with the ids of its limits, locked. Raises KeyNotActive."""
    names = {"key": owner.key_id, "model": owner.model}
    row = connection.execute(_KEY, names).one_or_none()
    if row is None or not row.live:
        raise KeyNotActive(owner.key_id)
    if owner.model and row.cap_limit_id is None:
        raise ValueError(f"{owner}: the model has no cap")  # a cap once made is never removed
    return row


def limit_ids_of(key: Row[Any]) -> list[str]:
    """In the order in which they are locked. Those of a live lease are the same, for whoever adds
    a limit to a key adds it to its leases."""
    ids = {key.quota_limit_id, key.wallet_limit_id, *ids_of(key.more_limit_ids)}
    return sorted(ids if key.cap_limit_id is None else ids | {key.cap_limit_id})


def lease_of(connection: Connection, lease_id: str, owner: Owner, *, lock: bool) -> Row[Any] | None:
    """The open lease; None when there is none yet. Raises LeaseNotOpen (ended, or another's)."""
    query = _LEASE_LOCKED if lock else _LEASE
    row = connection.execute(query, {"lease": lease_id}).one_or_none()
    if row is not None and (
        row.state != "open" or (row.incarnation_id, row.key_id, row.model) != owner
    ):
        raise LeaseNotOpen(lease_id)
    return row


def mark_recall(connection: Connection, shortfall: Shortfall) -> None:
    if shortfall.only_leased:
        connection.execute(
            update(limit_row)
            .where(limit_row.c.id.in_([each.limit_id for each in shortfall.failing]))
            .values(recall_at=now_us())
        )


def insert_lease(
    connection: Connection,
    lease_id: str,
    owner: Owner,
    key: Row[Any],
    limit_ids: Sequence[str],
    amount_nano: int,
) -> None:
    row = {
        "id": lease_id,
        "incarnation_id": owner.incarnation_id,
        "account_id": key.account_id,
        "key_id": key.id,
        "model": owner.model,
        "limit_ids": msgspec.json.encode(limit_ids).decode(),
        "amount_nano": amount_nano,
        "consumed_nano": 0,
        "reserved_nano": 0,
        "spent_nano": 0,
        "events_applied": 0,
        "grant_no": 1,
        "grant_nano": amount_nano,
        "give_no": 0,
        "state": "open",
    }
    connection.execute(_NEW_LEASE, row)


def move_limits(
    connection: Connection,
    moves: Mapping[str, tuple[int, int]],
    spends: Callable[[str, int], list[tuple[int, int]]] | None = None,
) -> None:
    """Adds (settled, leased) nano to each limit, locked in id order; to windows what `spends`
    says of (limit id, now)."""
    changed = {limit_id: move for limit_id, move in moves.items() if move != (0, 0)}
    if not changed:
        return
    rows = [
        (row.id, *changed[row.id], _buckets(row, spends))
        for row in limit_rows(connection, changed, lock=True)
    ]
    add = rows_as_table(connection, "add", _MOVES, rows)
    connection.execute(
        update(limit_row)
        .where(limit_row.c.id == add.c.id)
        .values(
            settled_nano=limit_row.c.settled_nano + add.c.settled,
            leased_nano=limit_row.c.leased_nano + add.c.leased,
            buckets=add.c.buckets,
        )
    )


def _buckets(
    row: Row[Any], spends: Callable[[str, int], list[tuple[int, int]]] | None
) -> str | None:
    """The row's buckets after the move. Its `now` is not before any event that is settled."""
    if row.window_us is None or spends is None:
        return row.buckets  # type: ignore[no-any-return]
    found = windows.decode(row.buckets)
    return windows.encode(windows.added(found, row.window_us, spends(row.id, row.now), row.now))
