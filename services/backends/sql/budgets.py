"""Limits and leases: the only code that moves `leased`.

A grant puts money of a budget into a lease; settlement moves it from `leased` to `settled`; a
give-back or the lease's end returns what is left. So `settled + leased <= limit` at every commit
and `consumed <= amount` in every lease. Rows are locked in one order everywhere: incarnation, key,
leases by id, limits by id.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Row,
    Text,
    bindparam,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from services.backends.sql.bulk import insert_new, rows_as_table
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.lease_reads import (
    limit_rows,
    limit_states,
    pending_of_account,
    sync_reply,
)
from services.backends.sql.lease_records import (
    Charge,
    Granted,
    GrantOutOfOrder,
    IncarnationNotOpen,
    KeyNotActive,
    LeaseEnd,
    LeaseNotOpen,
    LeaseReport,
    SettleRefused,
    SyncReply,
)
from services.backends.sql.settlement import Tally
from services.backends.sql.tables import account, api_key, incarnation, lease, limit_row
from services.core.budgets import LimitFailure, LimitState, Shortfall, grant_nano

__all__ = [
    "Budgets",
    "Charge",
    "GrantOutOfOrder",
    "Granted",
    "IncarnationNotOpen",
    "KeyNotActive",
    "LeaseEnd",
    "LeaseNotOpen",
    "LeaseReport",
    "LimitFailure",
    "LimitState",
    "SettleRefused",
    "Shortfall",
    "SyncReply",
]

_MOVES: Final[dict[str, TypeEngine[Any]]] = {
    "id": Text(),
    "settled": BigInteger(),
    "leased": BigInteger(),
}


class Budgets:
    """Grants, give-backs and settlement. Every method may raise DatabaseUnavailable, after which
    the same call with the same numbers is safe to repeat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- incarnations -----------------------------------------------------------------------

    def open_incarnation(self, incarnation_id: str, role: str, host: str) -> None:
        """Registers one run of one worker; repeating it changes nothing."""
        row = {
            "id": incarnation_id,
            "role": role,
            "host": host,
            "state": "open",
            "opened_at": now_us(),
        }
        write(
            self._engine,
            lambda connection: connection.execute(insert_new(connection, incarnation).values(row)),
        )

    def start_closing(self, incarnation_id: str) -> list[str]:
        """From its commit on no grant reaches the incarnation. Returns its leases whose
        lease_closed was not applied yet; repeating it is harmless."""

        def close(connection: Connection) -> list[str]:
            connection.execute(
                update(incarnation)
                .where(incarnation.c.id == incarnation_id, incarnation.c.state == "open")
                .values(state="closing", closing_at=now_us())
            )
            leases = select(lease.c.id).where(
                lease.c.incarnation_id == incarnation_id, lease.c.state == "open"
            )
            return list(connection.execute(leases.order_by(lease.c.id)).scalars())

        return write(self._engine, close)

    def lease_owners(self, incarnation_id: str) -> dict[str, tuple[str, str]]:
        """(account id, key id) of every lease of the incarnation that is still open."""
        query = select(lease.c.id, lease.c.account_id, lease.c.key_id).where(
            lease.c.incarnation_id == incarnation_id, lease.c.state == "open"
        )
        rows = read(self._engine, lambda connection: connection.execute(query).all())
        return {row.id: (row.account_id, row.key_id) for row in rows}

    def finish_closing(self, connection: Connection, incarnation_ids: Sequence[str]) -> None:
        """In the ledger's transaction: their incarnation_closed was applied, no event follows.
        Their leases end by their own lease_closed, maybe in other partitions."""
        connection.execute(
            update(incarnation)
            .where(
                incarnation.c.id.in_(incarnation_ids),
                incarnation.c.state.in_(("open", "closing")),
            )
            .values(state="closed", closed_at=now_us())
        )

    # -- grants -----------------------------------------------------------------------------

    def grant(
        self,
        lease_id: str,
        grant_no: int,
        incarnation_id: str,
        key_id: str,
        need_nano: int,
        want_nano: int,
    ) -> Granted:
        """Takes between `need_nano` and `want_nano` from every limit of the key at once; near a
        limit at most half of what is left, unless the need is more.

        Idempotent by (lease_id, grant_no), numbers dense from 1; the first makes the lease.
        Raises Shortfall (recall marks set when waiting may help), KeyNotActive,
        IncarnationNotOpen, LeaseNotOpen, GrantOutOfOrder."""

        answer = write(
            self._engine,
            lambda connection: self.grant_in(
                connection, lease_id, grant_no, incarnation_id, key_id, need_nano, want_nano
            ),
        )
        if isinstance(answer, Shortfall):
            raise answer
        return answer

    def grant_in(
        self,
        connection: Connection,
        lease_id: str,
        grant_no: int,
        incarnation_id: str,
        key_id: str,
        need_nano: int,
        want_nano: int,
    ) -> Granted | Shortfall:
        """`grant` in the caller's transaction. A Shortfall is returned, so that the recall marks
        can be committed."""
        _require_open(connection, incarnation_id)
        key = _active_key(connection, key_id)
        held = _lease_of(connection, lease_id, incarnation_id, key_id, lock=True)
        limit_ids = sorted({key.quota_limit_id, key.wallet_limit_id})
        rows = limit_rows(connection, limit_ids, lock=True)
        if held is None:
            # The same first grant, sent twice, may have committed while the limits were
            # waited for.
            held = _lease_of(connection, lease_id, incarnation_id, key_id, lock=False)
        pending = pending_of_account(connection, key.account_id)
        states = limit_states(rows, pending)
        if held is not None and held.grant_no == grant_no:
            return Granted(held.grant_nano, held.amount_nano, states)
        if grant_no != (held.grant_no if held else 0) + 1:
            raise GrantOutOfOrder(f"{lease_id}: grant {grant_no}")
        try:
            amount_nano = grant_nano(states, need_nano, want_nano)
        except Shortfall as ex:
            _mark_recall(connection, ex)
            return ex
        connection.execute(_TAKE, {"limits": limit_ids, "nano": amount_nano})
        if held is None:
            _insert_lease(connection, lease_id, incarnation_id, key, limit_ids, amount_nano)
        else:
            grown = {"lease": lease_id, "number": grant_no, "nano": amount_nano}
            connection.execute(_GROW, grown)
        total_nano = amount_nano + (held.amount_nano if held else 0)
        return Granted(amount_nano, total_nano, [_leased(state, amount_nano) for state in states])

    def reserve_in(self, connection: Connection, lease_id: str) -> None:
        """In the caller's transaction: all of a lease is held by one request."""
        connection.execute(_RESERVE, {"lease": lease_id})

    def give_back(self, lease_id: str, amount_nano: int, give_no: int) -> bool:
        """Returns money of an open lease that is neither spent nor reserved. The caller lowers its
        own counter first. Idempotent by `give_no`, dense from 1. False: refused, nothing moved."""
        assert amount_nano >= 0

        def attempt(connection: Connection) -> bool:
            given = {"lease": lease_id, "number": give_no, "nano": amount_nano}
            row = connection.execute(_GIVE, given).one_or_none()
            if row is not None:
                returned = dict.fromkeys(_ids(row.limit_ids), (0, -amount_nano))
                _move_limits(connection, returned)
                return True
            done = select(lease.c.give_no).where(lease.c.id == lease_id)
            return connection.execute(done).scalar_one_or_none() == give_no

        return write(self._engine, attempt)

    # -- readings ---------------------------------------------------------------------------

    def sync(self, incarnation_id: str, reports: Sequence[LeaseReport]) -> SyncReply:
        """Stores a worker's reports (only what changed need be told) and answers what it must
        know; without reports it only reads."""
        if not reports:
            return read(self._engine, lambda connection: sync_reply(connection, incarnation_id))

        def attempt(connection: Connection) -> SyncReply:
            connection.execute(
                _REPORT,
                [
                    {
                        "lease": each.lease_id,
                        "incarnation": incarnation_id,
                        "reserved": each.reserved_nano,
                        "spent": each.spent_nano,
                    }
                    for each in sorted(reports)
                ],
            )
            return sync_reply(connection, incarnation_id)

        return write(self._engine, attempt)

    # -- settlement, in the ledger's transaction --------------------------------------------

    def settle(
        self, connection: Connection, charges: Sequence[Charge], closed: Sequence[LeaseEnd] = ()
    ) -> None:
        """Settles `charges`, ends the leases of `closed`, returns the remainder of every lease
        whose events have all come. Last in its transaction: it locks limits.

        Raises SettleRefused, with nothing settled."""
        tally = Tally(connection, charges, closed)
        refusal = tally.refusal()
        if refusal is not None:
            raise refusal
        tally.write_leases(connection)
        _move_limits(connection, tally.limit_moves())

    def end_leases(self, connection: Connection, lease_ids: Sequence[str]) -> int:
        """Ends leases as they stand, whatever events are missing, and returns what they have left
        (nano-USD, in sum). Events of them that come later are late. Locks limits last."""
        query = select(lease).where(lease.c.id.in_(lease_ids), lease.c.state != "closed")
        rows = connection.execute(query.order_by(lease.c.id).with_for_update()).all()
        moves: dict[str, tuple[int, int]] = {}
        for row in rows:
            left_nano = row.amount_nano - row.consumed_nano
            for limit_id in _ids(row.limit_ids):
                moves[limit_id] = (0, moves.get(limit_id, (0, 0))[1] - left_nano)
        connection.execute(
            update(lease)
            .where(lease.c.id.in_([row.id for row in rows]))
            .values(state="closed", events_total=lease.c.events_applied, closed_at=now_us())
        )
        _move_limits(connection, moves)
        return sum(row.amount_nano - row.consumed_nano for row in rows)


def _ids(text: str) -> list[str]:
    return msgspec.json.decode(text, type=list[str])


# Built once: building a statement costs as much time as running it.
_STATE: Final = (
    select(incarnation.c.state)
    .where(incarnation.c.id == bindparam("incarnation"))
    .with_for_update(read=True)
)
_KEY: Final = (
    select(
        api_key.c.id,
        api_key.c.account_id,
        api_key.c.quota_limit_id,
        account.c.wallet_limit_id,
        (
            (api_key.c.status == "active")
            & (account.c.status == "active")
            & or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > now_us())
        ).label("live"),
    )
    .join(account, account.c.id == api_key.c.account_id)
    .where(api_key.c.id == bindparam("key"))
    .with_for_update(read=True, of=api_key)
)
_LEASE: Final = select(lease).where(lease.c.id == bindparam("lease"))
_LEASE_LOCKED: Final = _LEASE.with_for_update()
_NEW_LEASE: Final = insert(lease).values(opened_at=now_us())
_GROW: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"))
    .values(
        amount_nano=lease.c.amount_nano + bindparam("nano"),
        grant_no=bindparam("number"),
        grant_nano=bindparam("nano"),
    )
)
_TAKE: Final = (
    update(limit_row)
    .where(limit_row.c.id.in_(bindparam("limits", expanding=True)))
    .values(leased_nano=limit_row.c.leased_nano + bindparam("nano"))
)
_GIVE: Final = (
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
_REPORT: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"), lease.c.incarnation_id == bindparam("incarnation"))
    .values(reserved_nano=bindparam("reserved"), spent_nano=bindparam("spent"))
)
_RESERVE: Final = (
    update(lease)
    .where(lease.c.id == bindparam("lease"))
    .values(reserved_nano=lease.c.amount_nano - lease.c.consumed_nano)
)


def _require_open(connection: Connection, incarnation_id: str) -> None:
    state = connection.execute(_STATE, {"incarnation": incarnation_id}).scalar_one_or_none()
    if state != "open":
        raise IncarnationNotOpen(f"{incarnation_id}: {state or 'unknown'}")


def _active_key(connection: Connection, key_id: str) -> Row[Any]:
    row = connection.execute(_KEY, {"key": key_id}).one_or_none()
    if row is None or not row.live:
        raise KeyNotActive(key_id)
    return row


def _lease_of(
    connection: Connection, lease_id: str, incarnation_id: str, key_id: str, *, lock: bool
) -> Row[Any] | None:
    query = _LEASE_LOCKED if lock else _LEASE
    row = connection.execute(query, {"lease": lease_id}).one_or_none()
    if row is not None and (
        row.state != "open" or row.incarnation_id != incarnation_id or row.key_id != key_id
    ):
        raise LeaseNotOpen(lease_id)
    return row


def _leased(state: LimitState, amount_nano: int) -> LimitState:
    return msgspec.structs.replace(state, leased_nano=state.leased_nano + amount_nano)


def _mark_recall(connection: Connection, shortfall: Shortfall) -> None:
    if shortfall.only_leased:
        connection.execute(
            update(limit_row)
            .where(limit_row.c.id.in_([each.limit_id for each in shortfall.failing]))
            .values(recall_at=now_us())
        )


def _insert_lease(
    connection: Connection,
    lease_id: str,
    incarnation_id: str,
    key: Row[Any],
    limit_ids: Sequence[str],
    amount_nano: int,
) -> None:
    row = {
        "id": lease_id,
        "incarnation_id": incarnation_id,
        "account_id": key.account_id,
        "key_id": key.id,
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


def _move_limits(connection: Connection, moves: dict[str, tuple[int, int]]) -> None:
    """Adds (settled, leased) nano to each limit, locked in id order."""
    changed = {limit_id: move for limit_id, move in moves.items() if move != (0, 0)}
    if not changed:
        return
    limit_rows(connection, changed, lock=True)
    rows = [(limit_id, *move) for limit_id, move in changed.items()]
    add = rows_as_table(connection, "add", _MOVES, rows)
    connection.execute(
        update(limit_row)
        .where(limit_row.c.id == add.c.id)
        .values(
            settled_nano=limit_row.c.settled_nano + add.c.settled,
            leased_nano=limit_row.c.leased_nano + add.c.leased,
        )
    )
