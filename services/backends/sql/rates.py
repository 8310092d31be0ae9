"""Rates at the centre: slots of concurrency by worker, the minute's starts and tokens by subject.

One round of a worker is one transaction, whatever number of requests it asks for. What a worker
tells of slots is absolute (how many it keeps), so that a round whose answer was lost is put right
by the next one; rounds are numbered, so that one that arrives late changes nothing. Slots count
only while their worker's incarnation is open: with its death they are free.

Rows are locked in the order of their subjects; nothing else is locked with them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, Text, bindparam, delete, select, update
from sqlalchemy.types import TypeEngine

from services.backends.sql.bulk import (
    ids_table,
    ids_value,
    insert_into,
    insert_new,
    rows_as_table,
)
from services.backends.sql.engine import now_us, read, write
from services.backends.sql.lease_records import IncarnationNotOpen
from services.backends.sql.rate_tables import rate, rate_slot
from services.backends.sql.tables import incarnation
from services.core.rates import MINUTE_US, Ask, Centre, Kind, Line, Ruling, Window

RECALL_US: Final = 1_000_000  # a mark is heeded so long

_WINDOWS: Final[dict[str, TypeEngine[Any]]] = {
    "subject": Text(),
    "requests": Text(),
    "tokens": Text(),
}


class RoundOutOfOrder(Exception):
    """A later round of the worker was here before: nothing was changed."""


class Answer(NamedTuple):
    """To one round: the ruling on its asks and, for each subject whose tokens were told or asked
    for, the tokens of the last minute by bucket, of all workers. `now_us`: the database's."""

    now_us: int
    ruling: Ruling
    tokens: dict[str, dict[int, int]]


class Rates:
    """Over the SQL database. Every method may raise DatabaseUnavailable; the outcome of a round is
    unknown then, and the next one puts it right. `minute_us` is a minute but in tests."""

    def __init__(self, engine: Engine, minute_us: int = MINUTE_US) -> None:
        self._engine = engine
        self._minute_us = minute_us

    def round(
        self,
        incarnation_id: str,
        number: int,
        lines: Sequence[Line],
        asks: Sequence[Ask] = (),
        tokens: Mapping[str, int] | None = None,
        recall: Sequence[str] = (),
    ) -> Answer:
        """Stores what the worker keeps and gives back, rules on its `asks` (places in `lines`, of
        which each subject and kind has one), adds `tokens` by subject (0 only reads them) and
        marks the subjects of `recall`. `number` grows from round to round of an incarnation.

        Raises IncarnationNotOpen, RoundOutOfOrder; nothing has changed then."""
        told = tokens or {}
        subjects = sorted({line.subject for line in lines} | told.keys() | set(recall))

        def attempt(connection: Connection) -> Answer:
            rows = _locked(connection, subjects)
            centre_us = _time_of_open(connection, incarnation_id)  # after the wait for the locks
            centre = Centre(centre_us)
            centre.windows = {row.subject: self._window(row.requests) for row in rows}
            centre.others = _slots_of_others(connection, incarnation_id, number, lines)
            ruling = centre.rule(lines, asks)
            spent = {row.subject: self._window(row.tokens) for row in rows if row.subject in told}
            for subject, n in told.items():
                if n:
                    spent[subject].add(centre_us, n)
            totals = {subject: window.counts(centre_us) for subject, window in spent.items()}
            _store_windows(connection, rows, centre, totals)
            _store_slots(connection, incarnation_id, number, lines, ruling)
            if recall:
                connection.execute(_MARK[connection.dialect.name], _named(connection, recall))
            return Answer(centre_us, ruling, totals)

        return write(self._engine, attempt)

    def recalled(self, subjects: Sequence[str]) -> set[str]:
        """Those of the subjects for which a worker waits for idle slots or starts."""

        def look(connection: Connection) -> set[str]:
            query = select(rate.c.subject).where(
                rate.c.subject.in_(select(ids_table(connection.dialect.name).c.id)),
                rate.c.recall_at > now_us() - RECALL_US,
            )
            return set(connection.execute(query, _named(connection, subjects)).scalars())

        return read(self._engine, look)

    def sweep(self) -> int:
        """Removes the slots of ended workers, which have not counted since; returns how many."""
        ended = select(incarnation.c.id).where(incarnation.c.state != "open")
        gone = delete(rate_slot).where(rate_slot.c.incarnation_id.in_(ended))

        def remove(connection: Connection) -> int:
            return sum(connection.execute(gone.returning(rate_slot.c.slots)).scalars().all())

        return write(self._engine, remove)

    def _window(self, text: str) -> Window:
        return Window(msgspec.json.decode(text, type=dict[int, int]), self._minute_us)


_STATE: Final = select(incarnation.c.state, now_us().label("now")).where(
    incarnation.c.id == bindparam("incarnation")
)
_MARK: Final = {
    name: update(rate)
    .where(rate.c.subject.in_(select(ids_table(name).c.id)))
    .values(recall_at=now_us())
    for name in ("sqlite", "postgresql")
}


def _named(connection: Connection, subjects: Sequence[str]) -> dict[str, Any]:
    return {"ids": ids_value(connection.dialect.name, subjects)}


def _locked(connection: Connection, subjects: Sequence[str]) -> Sequence[Row[Any]]:
    """The rows of the subjects, made where they are missing."""
    named = select(ids_table(connection.dialect.name).c.id)
    query = select(rate).where(rate.c.subject.in_(named)).order_by(rate.c.subject)
    rows = connection.execute(query.with_for_update(), _named(connection, subjects)).all()
    if len(rows) == len(subjects):
        return rows
    empty = {"requests": "{}", "tokens": "{}"}
    missing = sorted(set(subjects) - {row.subject for row in rows})
    for subject in missing:
        row = {"subject": subject, **empty}
        connection.execute(insert_new(connection, rate).values(row))
    return connection.execute(query.with_for_update(), _named(connection, subjects)).all()


def _time_of_open(connection: Connection, incarnation_id: str) -> int:
    """The database's time, for a worker that has not ended."""
    row = connection.execute(_STATE, {"incarnation": incarnation_id}).one_or_none()
    if row is None or row.state != "open":
        raise IncarnationNotOpen(f"{incarnation_id}: {row.state if row else 'unknown'}")
    return int(row.now)


def _slots_of_others(
    connection: Connection, incarnation_id: str, number: int, lines: Sequence[Line]
) -> dict[str, int]:
    """What living workers keep, by subject, the asker left out. Raises RoundOutOfOrder."""
    counted = [line.subject for line in lines if line.kind is Kind.CONCURRENCY]
    if not counted:
        return {}
    query = (
        select(rate_slot)
        .join(incarnation, incarnation.c.id == rate_slot.c.incarnation_id)
        .where(
            rate_slot.c.subject.in_(select(ids_table(connection.dialect.name).c.id)),
            incarnation.c.state == "open",
        )
    )
    others: dict[str, int] = {}
    for row in connection.execute(query, _named(connection, counted)):
        if row.incarnation_id != incarnation_id:
            others[row.subject] = others.get(row.subject, 0) + row.slots
        elif row.round_no >= number:
            raise RoundOutOfOrder(f"{incarnation_id}: round {number} after {row.round_no}")
    return others


def _store_windows(
    connection: Connection,
    rows: Sequence[Row[Any]],
    centre: Centre,
    tokens: Mapping[str, Mapping[int, int]],
) -> None:
    changed = []
    for row in rows:
        requests = _json(centre.windows[row.subject].counts(centre.now_us))
        spent = _json(tokens[row.subject]) if row.subject in tokens else row.tokens
        if (requests, spent) != (row.requests, row.tokens):
            changed.append((row.subject, requests, spent))
    if not changed:
        return
    new = rows_as_table(connection, "new", _WINDOWS, changed)
    connection.execute(
        update(rate)
        .where(rate.c.subject == new.c.subject)
        .values(requests=new.c.requests, tokens=new.c.tokens)
    )


def _store_slots(
    connection: Connection,
    incarnation_id: str,
    number: int,
    lines: Sequence[Line],
    ruling: Ruling,
) -> None:
    kept = [
        {
            "subject": line.subject,
            "incarnation_id": incarnation_id,
            "slots": line.keep + taken.n,
            "round_no": number,
        }
        for line, taken in zip(lines, ruling.taken, strict=True)
        if line.kind is Kind.CONCURRENCY
    ]
    if not kept:
        return
    put = insert_into(connection, rate_slot)
    new = {"slots": put.excluded.slots, "round_no": put.excluded.round_no}
    connection.execute(
        put.on_conflict_do_update(index_elements=["subject", "incarnation_id"], set_=new), kept
    )


def _json(counts: Mapping[int, int]) -> str:
    return msgspec.json.encode(counts).decode()
