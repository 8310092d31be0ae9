"""What the ledger set aside: read by people, closed by `tollgate dead`."""

from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Row, Text, select, update

from services.backends.sql.bulk import rows_as_table
from services.backends.sql.engine import read
from services.backends.sql.tables import applied, dead_event

DEAD: Final = "dead"
REPLAYED: Final = "replayed"
DISMISSED: Final = "dismissed"


class _Hold(msgspec.Struct):
    kind: str = ""
    hold_nano: int = 0


class DeadEvent(msgspec.Struct, frozen=True):
    """One event as it was read. `state`: dead | replayed | dismissed; `dead_at` microseconds."""

    id: int
    topic: str
    partition: int
    offset: int
    event_id: str
    account_id: str  # the partition key
    reason: str
    detail: str
    body: bytes
    state: str
    dead_at: int

    @property
    def held_nano(self) -> int:
        """What the request of a dead `usage` keeps on its lease meanwhile; 0 when nothing waits
        for it, or the bytes do not tell."""
        if self.state != DEAD or self.reason == "late":
            return 0
        try:
            hold = msgspec.json.decode(self.body, type=_Hold)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 0
        return max(hold.hold_nano, 0) if hold.kind == "usage" else 0


class NoSuchDeadEvent(LookupError):
    """There is no dead event of that number."""


class DeadEvents:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def listed(
        self, *, state: str = "", reason: str = "", after: int = 0, limit: int = 100
    ) -> list[DeadEvent]:
        """In the order of arrival, those with a number above `after`; empty texts mean any."""
        query = _ALL.where(dead_event.c.id > after, *_those(state, reason))
        query = query.order_by(dead_event.c.id).limit(limit)
        return read(
            self._engine, lambda connection: [_dead(row) for row in connection.execute(query)]
        )

    def numbers(self, *, state: str = "", reason: str = "") -> list[int]:
        """Of all of them, however many, in the order of arrival."""
        query = select(dead_event.c.id).where(*_those(state, reason)).order_by(dead_event.c.id)
        return read(self._engine, lambda connection: list(connection.execute(query).scalars()))

    def get(self, dead_id: int) -> DeadEvent:
        """Raises NoSuchDeadEvent."""
        return read(self._engine, lambda connection: _one(connection, dead_id, lock=False))

    def any_of(self, topic: str, partition: int) -> bool:
        """Whether anything of the partition was ever set aside."""
        query = select(dead_event.c.id).where(
            dead_event.c.topic == topic, dead_event.c.partition == partition
        )
        return read(
            self._engine, lambda connection: connection.execute(query.limit(1)).first() is not None
        )

    def by_event_id(
        self, topic: str, partition: int, event_ids: Collection[str]
    ) -> dict[str, list[DeadEvent]]:
        """All that was set aside of the partition under these ids, by id, in whatever state."""
        found: dict[str, list[DeadEvent]] = {}

        def fn(connection: Connection) -> dict[str, list[DeadEvent]]:
            ids = [[each] for each in sorted(event_ids)]
            named = rows_as_table(connection, "named", {"id": Text()}, ids)
            query = _ALL.where(
                dead_event.c.topic == topic,
                dead_event.c.partition == partition,
                dead_event.c.event_id.in_(select(named.c.id)),
            )
            for row in connection.execute(query.order_by(dead_event.c.id)):
                found.setdefault(row.event_id, []).append(_dead(row))
            return found

        return read(self._engine, fn)

    def between(
        self, connection: Connection, topic: str, partition: int, first: int, last: int
    ) -> dict[int, DeadEvent]:
        """Those of a range of the log, by offset."""
        query = _ALL.where(
            dead_event.c.topic == topic,
            dead_event.c.partition == partition,
            dead_event.c.offset.between(first, last),
        )
        return {row.offset: _dead(row) for row in connection.execute(query)}


def _those(state: str, reason: str) -> list[ColumnElement[bool]]:
    wanted = ((dead_event.c.state, state), (dead_event.c.reason, reason))
    return [column == value for column, value in wanted if value]


def lock(connection: Connection, dead_id: int) -> DeadEvent:
    """The event, for a change in the caller's transaction. Raises NoSuchDeadEvent."""
    return _one(connection, dead_id, lock=True)


def close(connection: Connection, dead_id: int, state: str) -> None:
    """From now on it is `replayed` or `dismissed`, for good."""
    connection.execute(update(dead_event).where(dead_event.c.id == dead_id).values(state=state))


def give_reason(connection: Connection, dead_id: int, reason: str, detail: str) -> None:
    """It stays dead, now for another reason."""
    connection.execute(
        update(dead_event).where(dead_event.c.id == dead_id).values(reason=reason, detail=detail)
    )


def applied_hash(connection: Connection, event_id: str) -> str:
    """Of the bytes that the ledger took under this id; empty when it took none."""
    query = select(applied.c.body_hash).where(applied.c.event_id == event_id)
    return connection.execute(query).scalar_one_or_none() or ""


_ALL: Final = select(*(dead_event.c[name] for name in DeadEvent.__struct_fields__))


def _one(connection: Connection, dead_id: int, *, lock: bool) -> DeadEvent:
    query = _ALL.where(dead_event.c.id == dead_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NoSuchDeadEvent(f"there is no dead event {dead_id}")
    return _dead(row)


def _dead(row: Row[Any]) -> DeadEvent:
    values = dict(row._mapping)
    return DeadEvent(**{**values, "body": bytes(values["body"])})
