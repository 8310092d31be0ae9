"""Limits and leases: the only code that moves `leased`.

A grant puts money of a budget into a lease; settlement moves it from `leased` to `settled`; a
give-back or the lease's end returns what is left. So `settled + leased <= limit` at every commit
and `consumed <= amount` in every lease. Rows are locked in one order everywhere: incarnation, key,
leases by id, limits by id.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, Engine, select, update

from services.backends.clock import Clock, SystemClock
from services.backends.sql.bulk import among, insert_new
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.lease_reads import (
    LIVE,
    limit_rows,
    limit_states,
    pending_of_account,
    sync_reply,
)
from services.backends.sql.lease_records import (
    Charge,
    ClockOff,
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
from services.backends.sql.lease_writes import (
    GIVE,
    GROW,
    REPORT,
    RESERVE,
    STATE,
    TAKE,
    Owner,
    active_key,
    ids_of,
    insert_lease,
    lease_of,
    limit_ids_of,
    mark_recall,
    move_limits,
)
from services.backends.sql.settlement import Tally
from services.backends.sql.tables import incarnation, lease
from services.core.budgets import LimitFailure, LimitState, Shortfall, grant_nano
from services.core.windows import SLACK_US, clock_off_us

__all__ = [
    "Budgets",
    "Charge",
    "ClockOff",
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


class Budgets:
    """Grants, give-backs and settlement. Every method may raise DatabaseUnavailable, after which
    the same call with the same numbers is safe to repeat."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or SystemClock()

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
                lease.c.incarnation_id == incarnation_id, LIVE, lease.c.state == "open"
            )
            return list(connection.execute(leases.order_by(lease.c.id)).scalars())

        return write(self._engine, close)

    def lease_owners(self, incarnation_id: str) -> dict[str, tuple[str, str]]:
        """(account id, key id) of every lease of the incarnation that is still open."""
        query = select(lease.c.id, lease.c.account_id, lease.c.key_id).where(
            lease.c.incarnation_id == incarnation_id, LIVE, lease.c.state == "open"
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
        model: str = "",
    ) -> Granted:
        """Takes between `need_nano` and `want_nano` from every limit of the key at once, and from
        the cap of `model` when one is named; near a limit at most half of what is left, unless
        the need is more.

        Idempotent by (lease_id, grant_no), numbers dense from 1; the first makes the lease.
        Raises Shortfall (recall marks set when waiting may help), KeyNotActive, ClockOff,
        IncarnationNotOpen, LeaseNotOpen, GrantOutOfOrder."""
        owner = Owner(incarnation_id, key_id, model)
        answer = write(
            self._engine,
            lambda connection: self._grant(
                connection, lease_id, grant_no, owner, need_nano, want_nano, tell=True
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
        model: str = "",
    ) -> Granted | Shortfall:
        """`grant` in the caller's transaction. A Shortfall is returned, so that the recall marks
        can be committed. Its states do not tell what is pending: every open job is a lease, and
        to sum those of the account at each submission would make the thousandth job dear."""
        owner = Owner(incarnation_id, key_id, model)
        return self._grant(connection, lease_id, grant_no, owner, need_nano, want_nano, tell=False)

    def _grant(
        self,
        connection: Connection,
        lease_id: str,
        grant_no: int,
        owner: Owner,
        need_nano: int,
        want_nano: int,
        *,
        tell: bool,
    ) -> Granted | Shortfall:
        self._require_open(connection, owner.incarnation_id)
        key = active_key(connection, owner)
        held = lease_of(connection, lease_id, owner, lock=True)
        limit_ids = limit_ids_of(key)
        rows = limit_rows(connection, limit_ids, lock=True)
        if held is None:
            # The same first grant, sent twice, may have committed while the limits were
            # waited for.
            held = lease_of(connection, lease_id, owner, lock=False)
        pending = pending_of_account(connection, key.account_id) if tell else {}
        states = limit_states(rows, pending)
        if held is not None and held.grant_no == grant_no:
            return Granted(held.grant_nano, held.amount_nano, states)
        if grant_no != (held.grant_no if held else 0) + 1:
            raise GrantOutOfOrder(f"{lease_id}: grant {grant_no}")
        try:
            amount_nano = grant_nano(states, need_nano, want_nano)
        except Shortfall as ex:
            mark_recall(connection, ex)
            return ex
        connection.execute(TAKE, {"limits": limit_ids, "nano": amount_nano})
        if held is None:
            insert_lease(connection, lease_id, owner, key, limit_ids, amount_nano)
        else:
            grown = {"lease": lease_id, "number": grant_no, "nano": amount_nano}
            connection.execute(GROW, grown)
        total_nano = amount_nano + (held.amount_nano if held else 0)
        return Granted(amount_nano, total_nano, [_leased(state, amount_nano) for state in states])

    def reserve_in(self, connection: Connection, lease_id: str) -> None:
        """In the caller's transaction: all of a lease is held by one request."""
        connection.execute(RESERVE, {"lease": lease_id})

    def _require_open(self, connection: Connection, incarnation_id: str) -> None:
        """Raises IncarnationNotOpen, ClockOff."""
        before_us = self._clock.now_us()
        row = connection.execute(STATE, {"incarnation": incarnation_id}).one_or_none()
        after_us = self._clock.now_us()
        if row is None or row.state != "open":
            raise IncarnationNotOpen(f"{incarnation_id}: {row.state if row else 'unknown'}")
        off_us = clock_off_us(before_us, row.now, after_us)
        if abs(off_us) > SLACK_US:
            raise ClockOff(off_us)

    def give_back(self, lease_id: str, amount_nano: int, give_no: int) -> bool:
        """Returns money of an open lease that is neither spent nor reserved. The caller lowers its
        own counter first. Idempotent by `give_no`, dense from 1. False: refused, nothing moved."""
        assert amount_nano >= 0

        def attempt(connection: Connection) -> bool:
            given = {"lease": lease_id, "number": give_no, "nano": amount_nano}
            row = connection.execute(GIVE, given).one_or_none()
            if row is not None:
                returned = dict.fromkeys(ids_of(row.limit_ids), (0, -amount_nano))
                move_limits(connection, returned)
                return True
            done = select(lease.c.give_no).where(lease.c.id == lease_id)
            return connection.execute(done).scalar_one_or_none() == give_no

        return write(self._engine, attempt)

    # -- readings ---------------------------------------------------------------------------

    def sync(self, incarnation_id: str, reports: Sequence[LeaseReport]) -> SyncReply:
        """Stores a worker's reports (only what changed need be told) and answers what it must
        know; without reports it only reads."""
        before_us = self._clock.now_us()
        if reports:
            reply = write(
                self._engine, lambda connection: _report(connection, incarnation_id, reports)
            )
        else:
            reply = read(self._engine, lambda connection: sync_reply(connection, incarnation_id))
        off_us = clock_off_us(before_us, reply.now, self._clock.now_us())
        return msgspec.structs.replace(reply, clock_off=abs(off_us) > SLACK_US)

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
        move_limits(connection, tally.limit_moves(), tally.spends)

    def end_leases(self, connection: Connection, lease_ids: Sequence[str]) -> int:
        """Ends leases as they stand, whatever events are missing, and returns what they have left
        (nano-USD, in sum). Events of them that come later are late. Locks limits last."""
        ids = among(connection, lease_ids)
        query = select(lease).where(lease.c.id.in_(ids), LIVE)
        rows = connection.execute(query.order_by(lease.c.id).with_for_update()).all()
        moves: dict[str, tuple[int, int]] = {}
        for row in rows:
            left_nano = row.amount_nano - row.consumed_nano
            for limit_id in ids_of(row.limit_ids):
                moves[limit_id] = (0, moves.get(limit_id, (0, 0))[1] - left_nano)
        connection.execute(
            update(lease)
            .where(lease.c.id.in_(ids), LIVE)
            .values(state="closed", events_total=lease.c.events_applied, closed_at=now_us())
        )
        move_limits(connection, moves)
        return sum(row.amount_nano - row.consumed_nano for row in rows)


def _report(
    connection: Connection, incarnation_id: str, reports: Sequence[LeaseReport]
) -> SyncReply:
    connection.execute(
        REPORT,
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


def _leased(state: LimitState, amount_nano: int) -> LimitState:
    return msgspec.structs.replace(state, leased_nano=state.leased_nano + amount_nano)
