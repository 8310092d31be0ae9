"""Workers as the centre knows them, and the tombstone of one whose host is lost."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, func, select, update

from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.lease_reads import LIVE
from services.backends.sql.outbox import audit
from services.backends.sql.tables import incarnation, lease

RUNNING: Final = ("open", "closing")
BATCH: Final = "batch"  # the role that is no process


class IncarnationState(msgspec.Struct, frozen=True):
    """`leases` live ones, with `leased_nano` left in them; times in microseconds, 0: not yet."""

    id: str
    role: str
    host: str
    state: str
    opened_at: int
    closing_at: int
    closed_at: int
    leases: int
    leased_nano: int


class Lost(NamedTuple):
    """`leases` were ended and gave `returned_nano` back; both 0 when it was done before."""

    leases: int
    returned_nano: int


class NoSuchIncarnation(LookupError):
    """There is no incarnation of that name."""


class HoldsJobs(Exception):
    """That incarnation is no run of a process: it holds the money of all open jobs, for ever."""


class Incarnations:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine, budgets: Budgets) -> None:
        self._engine = engine
        self._budgets = budgets

    def listed(self, *, finished: bool = False) -> list[IncarnationState]:
        """Oldest first; without `finished` only those that run or still hold money."""
        live = (
            select(
                lease.c.incarnation_id,
                func.count().label("leases"),
                func.sum(lease.c.amount_nano - lease.c.consumed_nano).label("left_nano"),
            )
            .where(LIVE)
            .group_by(lease.c.incarnation_id)
            .subquery()
        )
        leases = func.coalesce(live.c.leases, 0)
        query = (
            select(
                incarnation.c.id,
                incarnation.c.role,
                incarnation.c.host,
                incarnation.c.state,
                incarnation.c.opened_at,
                func.coalesce(incarnation.c.closing_at, 0),
                func.coalesce(incarnation.c.closed_at, 0),
                leases,
                func.coalesce(live.c.left_nano, 0),
            )
            .outerjoin_from(incarnation, live, live.c.incarnation_id == incarnation.c.id)
            .order_by(incarnation.c.opened_at, incarnation.c.id)
        )
        if not finished:
            query = query.where((leases > 0) | incarnation.c.state.in_(RUNNING))
        rows = read(self._engine, lambda connection: connection.execute(query).all())
        return [IncarnationState(*row[:7], int(row[7]), int(row[8])) for row in rows]

    def seen(self, incarnation_ids: Sequence[str]) -> None:
        """A relay has the files of these: what they hold may still come."""
        if not incarnation_ids:
            return
        mine = update(incarnation).where(
            incarnation.c.id.in_(incarnation_ids), incarnation.c.state.in_(RUNNING)
        )
        write(self._engine, lambda connection: connection.execute(mine.values(seen_at=now_us())))

    def now_us(self) -> int:
        """The database's clock, microseconds."""
        return read(self._engine, database_now_us)

    def unseen(self, since_us: int) -> list[str]:
        """Those that did not end and that no relay has had since, oldest first. One that no relay
        ever told of is not among them, nor is that of the jobs."""
        query = select(incarnation.c.id).where(
            incarnation.c.state.in_(RUNNING),
            incarnation.c.seen_at < since_us,
            incarnation.c.role != BATCH,
        )
        ordered = query.order_by(incarnation.c.seen_at, incarnation.c.id)
        return list(read(self._engine, lambda connection: connection.execute(ordered).scalars()))

    def lose(
        self, incarnation_id: str, *, actor: str = "operator", unseen_since_us: int | None = None
    ) -> Lost:
        """Writes the tombstone: its leases end as they stand and what they have left returns.
        What comes of it later is our loss. Repeating it changes nothing; nor does it when a relay
        was there after `unseen_since_us`.

        Raises NoSuchIncarnation, HoldsJobs."""

        def fn(connection: Connection) -> Lost:
            query = select(incarnation.c.state, incarnation.c.seen_at, incarnation.c.role)
            mine = query.where(incarnation.c.id == incarnation_id)
            row = connection.execute(mine.with_for_update()).one_or_none()
            if row is None:
                raise NoSuchIncarnation(f"there is no incarnation {incarnation_id!r}")
            if row.role == BATCH:
                raise HoldsJobs(f"{incarnation_id} holds the money of jobs: cancel those instead")
            state = row.state
            if unseen_since_us is not None and (
                state not in RUNNING or (row.seen_at or 0) >= unseen_since_us
            ):
                return Lost(0, 0)
            held = select(lease.c.id).where(lease.c.incarnation_id == incarnation_id, LIVE)
            ids = list(connection.execute(held.order_by(lease.c.id)).scalars())
            if not ids and state in ("closed", "lost"):
                return Lost(0, 0)
            connection.execute(
                update(incarnation)
                .where(incarnation.c.id == incarnation_id)
                .values(state="lost", closed_at=func.coalesce(incarnation.c.closed_at, now_us()))
            )
            returned_nano = self._budgets.end_leases(connection, ids)
            detail = {"leases": str(len(ids)), "returned_nano": str(returned_nano)}
            audit(connection, "incarnation.lost", incarnation_id, actor, detail)
            return Lost(len(ids), returned_nano)

        return write(self._engine, fn)
