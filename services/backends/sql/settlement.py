"""What a batch of events does to the leases that it names, worked out under their locks."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Connection, Text, case, select, update
from sqlalchemy.types import TypeEngine

from services.backends.sql.bulk import rows_as_table
from services.backends.sql.engine import now_us
from services.backends.sql.lease_records import Charge, LeaseEnd, SettleRefused
from services.backends.sql.tables import lease
from services.core.windows import counted_at

_FIGURES: Final[dict[str, TypeEngine[Any]]] = {
    "id": Text(),
    "charged": BigInteger(),
    "applied": BigInteger(),
    "total": BigInteger(),
    "state": Text(),
}


class _Lease(msgspec.Struct):
    limit_ids: list[str]
    left_nano: int
    charged_nano: int
    events_applied: int
    events_total: int | None
    state: str
    opened_at: int
    spends: list[tuple[int | None, int]] = []  # (occurred at, nano)

    @property
    def complete(self) -> bool:
        return self.events_applied == self.events_total


class Tally:
    """Locks the leases of `charges` and `closed` in id order and applies both in memory, in the
    order given; what does not fit is left out and named by `refusal()`."""

    def __init__(
        self, connection: Connection, charges: Sequence[Charge], closed: Sequence[LeaseEnd]
    ) -> None:
        self._leases = _locked(
            connection,
            {each.lease_id for each in charges if each.lease_id}
            | {each.lease_id for each in closed},
        )
        self._refused_charges: dict[int, str] = {}
        self._refused_ends: dict[int, str] = {}
        for place, charge in enumerate(charges):
            if reason := self._charge(charge):
                self._refused_charges[place] = reason
        for place, end in enumerate(closed):
            if reason := self._end(end):
                self._refused_ends[place] = reason

    def refusal(self) -> SettleRefused | None:
        if not self._refused_charges and not self._refused_ends:
            return None
        return SettleRefused(self._refused_charges, self._refused_ends)

    def _charge(self, charge: Charge) -> str | None:
        book = self._leases.get(charge.lease_id)
        if book is None:
            if charge.charged_nano == 0:
                return None  # a request that held nothing needs no lease
            return "unknown_lease" if charge.lease_id else "no_lease"
        if book.state == "closed":
            return "lease_closed"
        if charge.charged_nano < 0 or charge.charged_nano > book.left_nano:
            return "lease_overrun"
        if (
            book.events_total is not None
            and book.events_applied + charge.events > book.events_total
        ):
            return "lease_events"
        book.left_nano -= charge.charged_nano
        book.charged_nano += charge.charged_nano
        if charge.charged_nano:
            book.spends.append((charge.occurred_at, charge.charged_nano))
        book.events_applied += charge.events
        return None

    def _end(self, end: LeaseEnd) -> str | None:
        book = self._leases.get(end.lease_id)
        if book is None:
            return None if end.events == 0 else "unknown_lease"  # 0: its first grant was refused
        if book.state == "closed":
            return "lease_closed"
        if book.events_total not in (None, end.events) or end.events < book.events_applied:
            return "lease_events"
        book.events_total = end.events
        return None

    def write_leases(self, connection: Connection) -> None:
        """Stores the leases' new figures."""
        if not self._leases:
            return
        rows = [
            (
                lease_id,
                book.charged_nano,
                book.events_applied,
                book.events_total,
                "closed" if book.complete else "open" if book.events_total is None else "closing",
            )
            for lease_id, book in self._leases.items()
        ]
        new = rows_as_table(connection, "new", _FIGURES, rows)
        connection.execute(
            update(lease)
            .where(lease.c.id == new.c.id)
            .values(
                consumed_nano=lease.c.consumed_nano + new.c.charged,
                events_applied=new.c.applied,
                events_total=new.c.total,
                state=new.c.state,
                closed_at=case((new.c.state == "closed", now_us()), else_=None),
            )
        )

    def limit_moves(self) -> dict[str, tuple[int, int]]:
        """(settled, leased) to add to each limit: what was charged, and the remainder of every
        lease that is complete."""
        moves: dict[str, tuple[int, int]] = {}
        for book in self._leases.values():
            returned_nano = book.left_nano if book.complete else 0
            for limit_id in book.limit_ids:
                settled, leased = moves.get(limit_id, (0, 0))
                moves[limit_id] = (
                    settled + book.charged_nano,
                    leased - book.charged_nano - returned_nano,
                )
        return moves

    def spends(self, limit_id: str, now_us: int) -> list[tuple[int, int]]:
        """(counted at, nano) of every charge that touches the limit."""
        return [
            (counted_at(now_us if at is None else at, book.opened_at, now_us), nano)
            for book in self._leases.values()
            if limit_id in book.limit_ids
            for at, nano in book.spends
        ]


def _locked(connection: Connection, lease_ids: set[str]) -> dict[str, _Lease]:
    if not lease_ids:
        return {}
    named = rows_as_table(connection, "named", {"id": Text()}, [[each] for each in lease_ids])
    rows = connection.execute(
        select(lease)
        .where(lease.c.id.in_(select(named.c.id)))
        .order_by(lease.c.id)
        .with_for_update()
    )
    return {
        row.id: _Lease(
            limit_ids=msgspec.json.decode(row.limit_ids, type=list[str]),
            left_nano=row.amount_nano - row.consumed_nano,
            charged_nano=0,
            events_applied=row.events_applied,
            events_total=row.events_total,
            state=row.state,
            opened_at=row.opened_at,
        )
        for row in rows
    }
