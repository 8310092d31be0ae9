"""The ledger's tables: positions, applied events, settlements, postings, dead events.

The ledger sink composes the functions that take a connection into one transaction per batch:
`advance` first (it fences and refuses a stale owner), limits last. Each takes a whole batch and
makes one or two round trips.
"""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Integer,
    Text,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from services.backends.sql import fencing, spare_books
from services.backends.sql.bulk import insert_into, insert_new, rows_as_table
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.fencing import Position
from services.backends.sql.tables import (
    applied,
    balance,
    dead_event,
    ledger_position,
    posting,
    settlement,
)
from services.core.ledger import Posting


class Taken(StrEnum):
    """What `add_applied` found out about an event."""

    NEW = "new"
    DUPLICATE = "duplicate"  # the same bytes were applied before
    CONFLICT = "conflict"  # other bytes were applied under this id


class AppliedRow(NamedTuple):
    event_id: str
    body_hash: str  # of `body_hash()`
    offset: int


class SettlementRow(NamedTuple):
    request_id: str
    event_id: str
    account_id: str
    key_id: str
    charged_nano: int
    cost_nano: int
    provider_cost_nano: int
    outcome: str
    occurred_at: int


class Entry(NamedTuple):
    """One transaction of the books: its postings sum to zero."""

    event_id: str
    occurred_at: int
    postings: Sequence[Posting]


class DeadRow(NamedTuple):
    offset: int
    event_id: str
    account_id: str
    reason: str
    detail: str
    body: bytes


class Unbalanced(Exception):
    """The postings of an event do not sum to zero: a programmer's error, nothing was written."""


class RebuildUnfinished(Exception):
    """A rebuild has made a part of the ledger and ended before the rest."""

    def __init__(self) -> None:
        super().__init__("a rebuild of the ledger has not ended: run `tollgate rebuild ledger`")


_APPLIED: Final[dict[str, TypeEngine[Any]]] = {
    "event_id": Text(),
    "body_hash": Text(),
    "offset": BigInteger(),
}
_SETTLEMENT: Final[dict[str, TypeEngine[Any]]] = {
    name: BigInteger() if name.endswith(("_nano", "_at")) else Text()
    for name in SettlementRow._fields
}
_POSTING: Final[dict[str, TypeEngine[Any]]] = {
    "event_id": Text(),
    "line": Integer(),
    "ledger_account": Text(),
    "amount_nano": BigInteger(),
    "occurred_at": BigInteger(),
}
_BALANCE: Final[dict[str, TypeEngine[Any]]] = {
    "ledger_account": Text(),
    "amount_nano": BigInteger(),
    "postings": BigInteger(),
}


def body_hash(body: bytes) -> str:
    """SHA-256 of an event's bytes, hex."""
    return hashlib.sha256(body).hexdigest()


class LedgerStore:
    """Over the SQL database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- positions ----------------------------------------------------------------------------

    def claim(self, topic: str, partition: int, *, for_rebuild: bool = False) -> Position:
        """Makes the caller the partition's only owner: every older owner's `advance` fails.
        Raises RebuildUnfinished, for which only the rebuild itself may claim."""

        def fn(connection: Connection) -> Position:
            if not for_rebuild and spare_books.is_rebuilding(connection, topic):
                raise RebuildUnfinished
            return fencing.claim(connection, ledger_position, topic, partition)

        return write(self._engine, fn)

    def positions(self, topic: str) -> dict[int, Position]:
        """Where each partition of `topic` stands."""
        query = select(
            ledger_position.c.partition,
            ledger_position.c.owner_epoch,
            ledger_position.c.next_offset,
            ledger_position.c.last_event_id,
        ).where(ledger_position.c.topic == topic)
        return read(
            self._engine,
            lambda connection: {row[0]: Position(*row[1:]) for row in connection.execute(query)},
        )

    def advance(
        self,
        connection: Connection,
        topic: str,
        partition: int,
        *,
        owner_epoch: int,
        expected: int,
        next_offset: int,
        last_event_id: str,
    ) -> bool:
        """Moves the position from `expected` to `next_offset`. False: another owns the partition
        or it stands elsewhere; roll back, drop the batch, claim again."""
        moved = connection.execute(
            update(ledger_position)
            .where(
                ledger_position.c.topic == topic,
                ledger_position.c.partition == partition,
                ledger_position.c.owner_epoch == owner_epoch,
                ledger_position.c.next_offset == expected,
            )
            .values(next_offset=next_offset, last_event_id=last_event_id)
        )
        return moved.rowcount == 1

    # -- a batch ------------------------------------------------------------------------------

    def add_applied(
        self, connection: Connection, topic: str, partition: int, rows: Sequence[AppliedRow]
    ) -> list[Taken]:
        """Notes the events as taken; for each, whether it is new. Of two with one id in `rows`
        the first counts."""
        if not rows:
            return []
        given = rows_as_table(connection, "given", _APPLIED, rows)
        values = select(
            given.c.event_id,
            given.c.body_hash,
            literal(topic, Text()),
            literal(partition, Integer()),
            given.c.offset,
        ).where(given.c.event_id.is_not(None))
        names = ["event_id", "body_hash", "topic", "partition", "offset"]
        added = set(
            connection.execute(
                insert_new(connection, applied)
                .from_select(names, values.order_by(given.c.place))
                .returning(applied.c.event_id)
            ).scalars()
        )
        known: dict[str, str] = {}
        if len(added) < len(rows):
            old = rows_as_table(connection, "old", {"id": Text()}, [[row.event_id] for row in rows])
            query = select(applied.c.event_id, applied.c.body_hash)
            found = connection.execute(query.where(applied.c.event_id.in_(select(old.c.id))))
            known = {row.event_id: row.body_hash for row in found}
        taken = []
        for row in rows:
            if row.event_id in added:
                added.discard(row.event_id)  # the next one with this id is no longer new
                taken.append(Taken.NEW)
            elif known[row.event_id] == row.body_hash:
                taken.append(Taken.DUPLICATE)
            else:
                taken.append(Taken.CONFLICT)
        return taken

    def add_settlements(self, connection: Connection, rows: Sequence[SettlementRow]) -> set[str]:
        """Notes the terminals; returns the event ids of those whose request had none before."""
        if not rows:
            return set()
        given = rows_as_table(connection, "given", _SETTLEMENT, rows)
        values = select(*(given.c[name] for name in _SETTLEMENT)).where(
            given.c.request_id.is_not(None)
        )
        added = connection.execute(
            insert_new(connection, settlement)
            .from_select(list(_SETTLEMENT), values.order_by(given.c.place))
            .returning(settlement.c.event_id)
        )
        return set(added.scalars())

    def add_postings(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Writes the postings and moves the balances. Raises Unbalanced."""
        rows = []
        sums: dict[str, tuple[int, int]] = {}
        for entry in entries:
            if sum(each.amount_nano for each in entry.postings):
                raise Unbalanced(f"{entry.event_id}: {entry.postings}")
            for line, each in enumerate(entry.postings, 1):
                rows.append(
                    (entry.event_id, line, each.account, each.amount_nano, entry.occurred_at)
                )
                amount_nano, count = sums.get(each.account, (0, 0))
                sums[each.account] = (amount_nano + each.amount_nano, count + 1)
        if not rows:
            return
        given = rows_as_table(connection, "given", _POSTING, rows)
        values = select(*(given.c[name] for name in _POSTING))
        connection.execute(insert(posting).from_select(list(_POSTING), values))
        _add_to_balances(connection, sums)

    def add_dead(
        self, connection: Connection, topic: str, partition: int, rows: Sequence[DeadRow]
    ) -> None:
        """Keeps events that cannot be applied; one that is there already stays as it is."""
        if not rows:
            return
        connection.execute(
            insert_new(connection, dead_event).values(state="dead", dead_at=now_us()),
            [
                {
                    "topic": topic,
                    "partition": partition,
                    "offset": row.offset,
                    "event_id": _storable(row.event_id),
                    "account_id": _storable(row.account_id),
                    "reason": row.reason,
                    "detail": _storable(row.detail),
                    "body": row.body,
                }
                for row in rows
            ],
        )

    def is_dead(self, connection: Connection, event_id: str, body: bytes) -> bool:
        """Whether these bytes were set aside under this id."""
        query = select(dead_event.c.id).where(
            dead_event.c.event_id == _storable(event_id), dead_event.c.body == body
        )
        return connection.execute(query.limit(1)).first() is not None


def _add_to_balances(connection: Connection, sums: dict[str, tuple[int, int]]) -> None:
    rows = [(name, *sums[name]) for name in sorted(sums)]  # one lock order for all partitions
    given = rows_as_table(connection, "given", _BALANCE, rows)
    values = select(*(given.c[name] for name in _BALANCE))
    add = insert_into(connection, balance).from_select(
        list(_BALANCE), values.where(given.c.place.is_not(None)).order_by(given.c.place)
    )
    connection.execute(
        add.on_conflict_do_update(
            index_elements=[balance.c.ledger_account],
            set_={
                "amount_nano": balance.c.amount_nano + add.excluded.amount_nano,
                "postings": balance.c.postings + add.excluded.postings,
            },
        )
    )


def _storable(text: str) -> str:
    # PostgreSQL stores no NUL; the body keeps the bytes as they were.
    return text.replace("\0", "\ufffd")
