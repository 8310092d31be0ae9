"""Figures of the books that are watched all the time: each costs what is live, not what was."""

from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, and_, func, select

from services.backends.sql.dead_events import DEAD
from services.backends.sql.engine import database_now_us, read
from services.backends.sql.lease_reads import LIVE
from services.backends.sql.tables import balance, dead_event, incarnation, lease, sink_plan

_READ_MAX: Final = 10_000  # dead events whose bodies are read for their money


class LeaseFigures(NamedTuple):
    """Nano-USD in live leases; of it what ended workers left, in how many leases, and since when
    (seconds; 0 when there are none)."""

    leased_nano: int
    stranded_nano: int
    unresolved: int
    oldest_s: float


class _Charge(msgspec.Struct):
    kind: str = ""
    charged_nano: int = 0


_charge: Final = msgspec.json.Decoder(_Charge)
_LEFT: Final = lease.c.amount_nano - lease.c.consumed_nano
_LEASES: Final = (
    select(
        incarnation.c.state,
        func.count(),
        func.sum(_LEFT),
        func.min(func.coalesce(incarnation.c.closing_at, incarnation.c.closed_at)),
    )
    .select_from(lease)
    .join(incarnation, incarnation.c.id == lease.c.incarnation_id)
    .where(LIVE)
    .group_by(incarnation.c.state)
)
_DEAD: Final = (
    select(dead_event.c.reason, func.count(), func.max(dead_event.c.id))
    .where(dead_event.c.state == DEAD)
    .group_by(dead_event.c.reason)
)


class Figures:
    """For one thread. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dead: list[tuple[str, int, int]] = []
        self._suspense_nano = 0

    def trial_balance_nano(self) -> int:
        """The sum of all balances: 0. That each is the sum of its postings, `reconcile` proves."""
        query = select(func.coalesce(func.sum(balance.c.amount_nano), 0))
        return int(read(self._engine, lambda c: c.execute(query).scalar_one()))

    def leases(self) -> LeaseFigures:
        def fn(connection: Connection) -> LeaseFigures:
            now_us = database_now_us(connection)
            leased = stranded = unresolved = 0
            oldest_s = 0.0
            for state, count, left_nano, since_us in connection.execute(_LEASES):
                leased += int(left_nano)
                if state != "open":
                    stranded += int(left_nano)
                    unresolved += count
                    oldest_s = max(oldest_s, (now_us - (since_us or now_us)) / 1e6)
            return LeaseFigures(leased, stranded, unresolved, oldest_s)

        return read(self._engine, fn)

    def dead(self) -> tuple[dict[str, int], int]:
        """How many events are set aside, by reason, and what they would charge, nano-USD. Late
        ones are booked as our loss already."""

        def fn(connection: Connection) -> tuple[dict[str, int], int]:
            rows = connection.execute(_DEAD.order_by(dead_event.c.reason))
            found = [(str(reason), int(count), int(last)) for reason, count, last in rows]
            if found != self._dead:
                self._suspense_nano = _suspense_nano(connection)
                self._dead = found
            return {reason: count for reason, count, _ in found}, self._suspense_nano

        return read(self._engine, fn)

    def open_plan_age_s(self, topic: str) -> float:
        """Age of the oldest plan of the ClickHouse sink that is not confirmed; 0 without one."""
        query = select(func.min(sink_plan.c.made_at)).where(
            and_(sink_plan.c.state == "OPEN", sink_plan.c.topic == topic)
        )

        def fn(connection: Connection) -> float:
            made_us = connection.execute(query).scalar_one()
            return 0.0 if made_us is None else (database_now_us(connection) - made_us) / 1e6

        return max(0.0, read(self._engine, fn))


def _suspense_nano(connection: Connection) -> int:
    query = select(dead_event.c.body).where(
        dead_event.c.state == DEAD, dead_event.c.reason != "late"
    )
    total_nano = 0
    for body in connection.execute(query.limit(_READ_MAX)).scalars():
        try:
            total_nano += max(0, _charge.decode(bytes(body)).charged_nano)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return total_nano
