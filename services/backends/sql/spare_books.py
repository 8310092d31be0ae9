"""A second set of books: what a rebuild needs beside the log, and whether a ledger is empty."""

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, func, insert, select

from services.backends.sql.engine import read, read_long, write
from services.backends.sql.tables import (
    account,
    api_key,
    applied,
    balance,
    dead_event,
    ledger_position,
    limit_row,
    member,
    posting,
    price_schedule,
    price_version,
    settlement,
    sql_outbox,
    wallet_movement,
)

LEDGER: Final = (applied, settlement, posting, balance)
# In the order of their foreign keys. `dead_event` is what people decided about single events; the
# rest is the catalog that the sink asks, and the movements.
_BESIDE: Final = (
    limit_row,
    account,
    member,
    api_key,
    price_version,
    price_schedule,
    wallet_movement,
    dead_event,
)
_PAGE: Final = 5_000
_SERIAL: Final = frozenset({price_schedule.name, dead_event.name})  # the database numbers them


def ledger_is_empty(engine: Engine) -> bool:
    """Whether no event was ever applied here. Raises DatabaseUnavailable."""
    return _are_empty(engine, LEDGER)


def is_untouched(engine: Engine) -> bool:
    """Whether a migrated database holds nothing of anybody. Raises DatabaseUnavailable."""
    return _are_empty(engine, (*LEDGER, *_BESIDE))


def begin_rebuild(engine: Engine, topic: str) -> bool:
    """Notes that a rebuild fills the ledger, unless one was interrupted before: from now on no
    sink posts to it. False: it holds what no rebuild made."""

    def fn(connection: Connection) -> bool:
        if is_rebuilding(connection, topic):
            return True
        moved = select(ledger_position.c.topic).where(
            ledger_position.c.topic == topic, ledger_position.c.next_offset > 0
        )
        empty = _no_rows(connection, LEDGER) and connection.execute(moved).first() is None
        if empty:
            values = {**_mark(topic), "next_offset": 0, "last_event_id": "", "owner_epoch": 0}
            connection.execute(insert(ledger_position).values(values))
        return empty

    return write(engine, fn)


def end_rebuild(engine: Engine, topic: str) -> None:
    """The ledger is whole: sinks may post to it."""
    write(engine, lambda connection: connection.execute(delete(ledger_position).where(*_is(topic))))


def is_rebuilding(connection: Connection, topic: str) -> bool:
    """Whether a rebuild has begun and not ended: the ledger is part-made."""
    return (
        connection.execute(select(ledger_position.c.topic).where(*_is(topic))).first() is not None
    )


def _mark(topic: str) -> dict[str, str | int]:
    return {"topic": f"{topic}#rebuild", "partition": 0}  # no topic of a bus has such a name


def _is(topic: str) -> list[ColumnElement[bool]]:
    return [ledger_position.c[name] == value for name, value in _mark(topic).items()]


def copy_beside(source: Engine, target: Engine) -> None:
    """Copies what is not the ledger but is needed to read the log, as of one moment: keys and
    accounts may be made meanwhile. Nothing is leased in the copy. Raises DatabaseUnavailable."""

    def fn(connection: Connection) -> None:
        for table in _BESIDE:
            order: list[Any] = list(table.primary_key.columns)
            if table is api_key:
                order.insert(0, api_key.c.parent_id.is_not(None))  # parents first
            found = connection.execution_options(yield_per=_PAGE).execute(
                select(table).order_by(*order)
            )
            for page in found.partitions():
                _put(target, table, [dict(row._mapping) for row in page])

    read_long(source, fn)


def _put(target: Engine, table: Table, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if table.name in _SERIAL:
            del row["id"]
        if table is limit_row:
            row["leased_nano"] = 0
        if table is api_key:
            row["secret_sealed"] = ""  # no use for it there
    write(target, lambda connection: connection.execute(insert(table), rows))


def unposted_movements(engine: Engine) -> int:
    """How many wallet movements the ledger has not, although they were sent."""
    query = (
        select(func.count())
        .select_from(wallet_movement)
        .outerjoin(applied, applied.c.event_id == wallet_movement.c.id + ":wallet_movement")
        .outerjoin(sql_outbox, sql_outbox.c.event_id == wallet_movement.c.id + ":wallet_movement")
        .where(applied.c.event_id.is_(None), func.coalesce(sql_outbox.c.shipped, True))
    )
    return int(read_long(engine, lambda connection: connection.execute(query).scalar_one()))


def balances(engine: Engine) -> dict[str, tuple[int, int]]:
    """ledger account -> nano-USD and number of postings."""
    query = select(balance.c.ledger_account, balance.c.amount_nano, balance.c.postings)
    rows = read(engine, lambda connection: connection.execute(query).all())
    return {row[0]: (int(row[1]), int(row[2])) for row in rows}


def _are_empty(engine: Engine, tables: tuple[Table, ...]) -> bool:
    return read(engine, lambda connection: _no_rows(connection, tables))


def _no_rows(connection: Connection, tables: tuple[Table, ...]) -> bool:
    return all(connection.execute(select(each).limit(1)).first() is None for each in tables)
