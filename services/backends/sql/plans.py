"""What the ClickHouse sink was about to insert: a plan is written before the insert and confirmed
after it, so that a range whose outcome is unknown is inserted again exactly as it was cut."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, delete, select, update

from services.backends.sql import fencing
from services.backends.sql.bulk import insert_new
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.tables import sink_plan, sink_position

_POLL_S = 0.02
KEPT = 1000  # confirmed plans kept per partition, for reconciliation by range


class Plan(NamedTuple):
    """The contiguous offsets `first`..`last` of one partition. `dropped`: what is not inserted, ids
    of events that were stored before and offsets of those that the ledger has set aside. `sha256`:
    hex, of the rows as inserted."""

    topic: str
    partition: int
    first: int
    last: int
    last_event_id: str
    n_rows: int
    dropped: tuple[str | int, ...]
    sha256: str
    table_epoch: int


class Claim(NamedTuple):
    """`open_plan`: to be inserted again, with the same token, before anything else."""

    owner_epoch: int
    next_offset: int
    last_event_id: str
    open_plan: Plan | None


class Plans:
    """Over the SQL database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, topic: str, partition: int) -> Claim:
        """Makes the caller the partition's only owner: every older owner's `open` and `done`
        fail."""

        def take(connection: Connection) -> Claim:
            at = fencing.claim(connection, sink_position, topic, partition)
            query = select(sink_plan).where(
                sink_plan.c.topic == topic,
                sink_plan.c.partition == partition,
                sink_plan.c.state == "OPEN",
            )
            plan = connection.execute(query).one_or_none()
            return Claim(*at, open_plan=None if plan is None else _plan(plan))

        return write(self._engine, take)

    def open(self, plan: Plan, owner_epoch: int) -> bool:
        """Writes the plan before its insert. False: the caller is no longer the owner, the
        position is not `plan.first`, or a plan is open; claim again."""

        def note(connection: Connection) -> bool:
            query = (
                select(sink_position.c.next_offset)
                .where(
                    sink_position.c.topic == plan.topic,
                    sink_position.c.partition == plan.partition,
                    sink_position.c.owner_epoch == owner_epoch,
                )
                .with_for_update()
            )
            if connection.execute(query).scalar_one_or_none() != plan.first:
                return False
            added = connection.execute(
                insert_new(connection, sink_plan)
                .values(
                    topic=plan.topic,
                    partition=plan.partition,
                    first_offset=plan.first,
                    last_offset=plan.last,
                    last_event_id=plan.last_event_id,
                    n_rows=plan.n_rows,
                    dropped=msgspec.json.encode(plan.dropped).decode(),
                    sha256=plan.sha256,
                    table_epoch=plan.table_epoch,
                    state="OPEN",
                    made_at=now_us(),
                )
                .returning(sink_plan.c.id)
            )
            return added.one_or_none() is not None

        return write(self._engine, note)

    def done(self, plan: Plan, owner_epoch: int) -> bool:
        """Confirms the open plan after its insert and moves the position behind it, at once.
        False: the caller is no longer the owner."""

        def confirm(connection: Connection) -> bool:
            moved = connection.execute(
                update(sink_position)
                .where(
                    sink_position.c.topic == plan.topic,
                    sink_position.c.partition == plan.partition,
                    sink_position.c.owner_epoch == owner_epoch,
                    sink_position.c.next_offset == plan.first,
                )
                .values(next_offset=plan.last + 1, last_event_id=plan.last_event_id)
            )
            if moved.rowcount != 1:
                return False
            row = connection.execute(
                update(sink_plan)
                .where(
                    sink_plan.c.topic == plan.topic,
                    sink_plan.c.partition == plan.partition,
                    sink_plan.c.first_offset == plan.first,
                    sink_plan.c.state == "OPEN",
                )
                .values(state="DONE")
                .returning(sink_plan.c.id)
            ).one()
            if row.id % KEPT == 0:
                _forget(connection, plan.topic, plan.partition)
            return True

        return write(self._engine, confirm)

    def positions(self, topic: str) -> dict[int, int]:
        """The next offset of each partition of `topic`."""
        query = select(sink_position.c.partition, sink_position.c.next_offset)
        return read(
            self._engine,
            lambda connection: {
                row.partition: row.next_offset
                for row in connection.execute(query.where(sink_position.c.topic == topic))
            },
        )

    def hold(self, topic: str, fn: Callable[[], None], wait_s: float) -> None:
        """Runs `fn` once while no plan is open and none can be opened: nobody inserts then. A
        plan still open after `wait_s` is one that a dead sink left, and is not waited for. `fn`
        takes milliseconds, for writers wait that long."""
        deadline_s = time.monotonic() + wait_s
        done = False

        def attempt(connection: Connection) -> bool:
            nonlocal done
            mine = select(sink_position.c.partition).where(sink_position.c.topic == topic)
            connection.execute(mine.order_by(sink_position.c.partition).with_for_update()).all()
            still = select(sink_plan.c.id).where(
                sink_plan.c.topic == topic, sink_plan.c.state == "OPEN"
            )
            waits = connection.execute(still.limit(1)).first() is not None
            if waits and time.monotonic() < deadline_s:
                return False
            if not done:  # the transaction may run more than once
                fn()
                done = True
            return True

        while not write(self._engine, attempt):
            time.sleep(_POLL_S)

    def reached(self, topic: str) -> dict[int, int]:
        """The offset behind everything that may have been inserted, by partition: the end of an
        open plan, else the position."""
        position = select(sink_position.c.partition, sink_position.c.next_offset)
        planned = select(sink_plan.c.partition, sink_plan.c.last_offset + 1).where(
            sink_plan.c.topic == topic, sink_plan.c.state == "OPEN"
        )

        def fn(connection: Connection) -> dict[int, int]:
            ends: dict[int, int] = {}
            for query in (position.where(sink_position.c.topic == topic), planned):
                for partition, end in connection.execute(query):
                    ends[partition] = max(ends.get(partition, 0), end)
            return ends

        return read(self._engine, fn)


def _forget(connection: Connection, topic: str, partition: int) -> None:
    """Deletes confirmed plans but the newest of the partition; at most 2 * KEPT remain of it."""
    mine = (sink_plan.c.topic == topic, sink_plan.c.partition == partition)
    oldest = (
        select(sink_plan.c.id).where(*mine).order_by(sink_plan.c.id.desc()).offset(KEPT).limit(1)
    )
    kept_from = connection.execute(oldest).scalar_one_or_none()
    if kept_from is not None:
        connection.execute(
            delete(sink_plan).where(*mine, sink_plan.c.state == "DONE", sink_plan.c.id <= kept_from)
        )


def _plan(row: Row[Any]) -> Plan:
    return Plan(
        topic=row.topic,
        partition=row.partition,
        first=row.first_offset,
        last=row.last_offset,
        last_event_id=row.last_event_id,
        n_rows=row.n_rows,
        dropped=msgspec.json.decode(row.dropped, type=tuple[str | int, ...]),
        sha256=row.sha256,
        table_epoch=row.table_epoch,
    )
