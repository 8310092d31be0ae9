"""The SQL outbox: events that are written in the transaction of the change that they tell."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Connection, Engine, delete, insert, select, update

from schemas.events import AnyEvent, Audit, encode
from services.backends.sql.bulk import rows_as_table
from services.backends.sql.engine import database_now_us, read, write
from services.backends.sql.tables import UNSHIPPED, applied, sql_outbox
from services.core.ids import new_id

KEPT: Final = 100_000  # rows
TRIM_EVERY: Final = 1_000
SOURCE = "sql"
NO_ACCOUNT = "-"  # the account of an event that belongs to none
_NEW = insert(sql_outbox)  # built once: building a statement costs as much time as running it


class Origin(NamedTuple):
    """The call that asks for a change."""

    ip: str = ""
    user_agent: str = ""


_NO_CALL: Final = Origin()
_origin: Final[ContextVar[Origin]] = ContextVar("origin", default=_NO_CALL)


class OutboxRow(msgspec.Struct):
    """One event to ship."""

    id: int
    event_id: str
    partition_key: str
    body: bytes


class SqlOutbox:
    """The relay's side."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unshipped(self, limit: int) -> list[OutboxRow]:
        """The oldest events that the bus has not, at most `limit`, in the order to ship. Events of
        one account appear in the order of their commits."""
        query = (
            select(
                sql_outbox.c.id, sql_outbox.c.event_id, sql_outbox.c.account_id, sql_outbox.c.body
            )
            .where(UNSHIPPED)
            .order_by(sql_outbox.c.id)
            .limit(limit)
        )
        return read(
            self._engine,
            lambda connection: [OutboxRow(*row) for row in connection.execute(query)],
        )

    def mark_shipped(self, ids: Sequence[int]) -> None:
        """The bus has them; repeating it is harmless. Now and then the oldest rows that the books
        have are deleted: the newest `KEPT` stay for reconciliation."""
        if not ids:
            return

        def mark(connection: Connection) -> None:
            kinds = {"id": BigInteger()}
            done = rows_as_table(connection, "done", kinds, [[each] for each in ids])
            connection.execute(
                update(sql_outbox)
                .where(sql_outbox.c.id.in_(select(done.c.id)))
                .values(shipped=True)
            )
            if any(each % TRIM_EVERY == 0 for each in ids):
                _trim(connection, max(ids) - KEPT)

        write(self._engine, mark)


def _trim(connection: Connection, below: int) -> None:
    """A bounded number of rows: where there are many more the next times do the rest."""
    old = (
        select(sql_outbox.c.id)
        .join(applied, applied.c.event_id == sql_outbox.c.event_id)
        .where(sql_outbox.c.shipped, sql_outbox.c.id < below)
        .order_by(sql_outbox.c.id)
        .limit(2 * TRIM_EVERY)
    )
    ids = connection.execute(old).scalars().all()
    if not ids:
        return
    kinds = {"id": BigInteger()}
    gone = rows_as_table(connection, "gone", kinds, [[each] for each in ids])
    connection.execute(delete(sql_outbox).where(sql_outbox.c.id.in_(select(gone.c.id))))


def append(connection: Connection, event: AnyEvent) -> None:
    """Writes `event` in the caller's transaction."""
    connection.execute(_NEW, _row(event))


def _row(event: AnyEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "account_id": event.account_id,
        "body": encode(event),
        "shipped": False,
    }


def send_again(connection: Connection, event_id: str, account_id: str, body: bytes) -> None:
    """Has the relay send an event that the log holds already; readers know it by its id."""
    sent = update(sql_outbox).where(sql_outbox.c.event_id == event_id).values(shipped=False)
    if not connection.execute(sent).rowcount:
        row = {"event_id": event_id, "account_id": account_id, "body": body, "shipped": False}
        connection.execute(insert(sql_outbox).values(row))


@contextmanager
def coming_from(origin: Origin) -> Iterator[None]:
    """What is audited inside tells `origin`: it is the same for all that one call changes, and no
    matter of the rules in between. Another thread needs a copy of the context."""
    before = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(before)


class Told(NamedTuple):
    """What was changed, for `audit_all`. `detail` holds no secret."""

    subject: str
    detail: dict[str, str]
    account_id: str = NO_ACCOUNT


def audit(
    connection: Connection,
    action: str,
    subject: str,
    actor: str,
    detail: dict[str, str],
    account_id: str = NO_ACCOUNT,
) -> None:
    """Writes that `actor` did `action` to `subject`. `detail` holds no secret."""
    audit_all(connection, action, actor, [Told(subject, detail, account_id)])


def audit_all(connection: Connection, action: str, actor: str, told: Sequence[Told]) -> None:
    """As `audit` of each, in two statements: one change may be of thousands."""
    if not told:
        return
    now = database_now_us(connection)
    origin = _origin.get()._asdict()
    made = [
        Audit(
            event_id=f"{new_id('audit')}:audit",
            account_id=each.account_id,
            occurred_at=now,
            source=SOURCE,
            action=action,
            actor=actor,
            subject=each.subject,
            detail=each.detail,
            **origin,
        )
        for each in told
    ]
    connection.execute(_NEW, [_row(event) for event in made])
