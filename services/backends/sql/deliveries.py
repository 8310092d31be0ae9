"""Webhook deliveries: planned in the transaction of what they tell, tried until the receiver takes
them or the schedule is over. Claimed like jobs: `next_at` moves ahead, `epoch` fences."""

from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    exists,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from services.backends.sql.batch_records import Batch
from services.backends.sql.endpoints import Endpoint, judge, told_of
from services.backends.sql.engine import now_us, read, statement_us, write
from services.backends.sql.job_records import Job
from services.backends.sql.job_rows import storable
from services.backends.sql.job_tables import DELIVERIES, batch_delivery, delivery, endpoint
from services.core.ids import new_id
from services.core.webhooks import ENDS, PROGRESS, delivered

_CLAIM_US: Final = 60 * 1_000_000
_TEXT_MAX: Final = 500
_PROGRESS_US: Final = 5 * 1_000_000  # between two that tell of a job's progress


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `webhook_delivery`, or, with a `batch_id`, of `webhook_batch_delivery`."""

    id: str
    job_id: str = ""
    batch_id: str = ""
    account_id: str
    endpoint_id: str | None
    url: str
    type: str
    body: str
    epoch: int
    next_at: int | None
    tries: int
    status: int
    message: str
    created_at: int
    delivered_at: int | None

    @property
    def table(self) -> Table:
        """Where its row stands."""
        return batch_delivery if self.batch_id else delivery


def plan(connection: Connection, held: Job, kind: str, now: int) -> None:
    """In the transaction of what is told: the endpoints that want to know it, and at its end the
    job's own receiver, are due at once."""
    found = told_of(connection, held.account_id, kind)
    if found and kind == PROGRESS and _told_lately(connection, held.id, now):
        return
    rows = [row_of(each, kind, now, job_id=held.id) for each in found]
    if held.callback_url and kind in ENDS:
        own = {"endpoint_id": None, "url": held.callback_url}
        rows.append(_row(held.account_id, kind, now, job_id=held.id, **own))
    if rows:
        connection.execute(insert(delivery), rows)


def plan_batch(connection: Connection, ended: Batch, now: int) -> None:
    """In the transaction that ends the batch."""
    kind = f"batch.{ended.phase.value}"
    found = told_of(connection, ended.account_id, kind)
    if found:
        rows = [row_of(each, kind, now, batch_id=ended.id) for each in found]
        connection.execute(insert(batch_delivery), rows)


def row_of(receiver: Endpoint, kind: str, now: int, **of: str) -> dict[str, Any]:
    """A delivery to an endpoint; `of`: `job_id` or `batch_id`."""
    place = {"endpoint_id": receiver.id, "url": receiver.url}
    return _row(receiver.account_id, kind, now, **place, **of)


def _row(account_id: str, kind: str, now: int, **more: str | None) -> dict[str, Any]:
    return {
        "id": new_id("whd"),
        "account_id": account_id,
        "type": kind,
        "body": "",
        "epoch": 0,
        "next_at": now,
        "tries": 0,
        "status": 0,
        "message": "",
        "created_at": now,
        **more,
    }


def _told_lately(connection: Connection, job_id: str, now: int) -> bool:
    mine = (delivery.c.job_id == job_id, delivery.c.type == PROGRESS)
    query = select(delivery.c.id).where(*mine, delivery.c.created_at > now - _PROGRESS_US)
    return connection.execute(query.limit(1)).first() is not None


class Deliveries:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, limit: int) -> list[Delivery]:
        """Due deliveries, the longest due first."""
        found: list[Delivery] = []
        for table in DELIVERIES:
            found += self._claim(table, limit - len(found))
        return found

    def _claim(self, table: Table, limit: int) -> list[Delivery]:
        def none_due(connection: Connection) -> bool:
            query = select(table.c.id).where(table.c.next_at <= statement_us()).limit(1)
            return connection.execute(query).first() is None

        def fn(connection: Connection) -> list[Delivery]:
            due = (
                select(table.c.id)
                .where(table.c.next_at <= statement_us())
                .order_by(table.c.next_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(
                update(table)
                .where(table.c.id.in_(due))
                .values(epoch=table.c.epoch + 1, next_at=now_us() + _CLAIM_US)
                .returning(table)
            )
            return [Delivery(**row._mapping) for row in rows]

        if limit <= 0 or read(self._engine, none_due):
            return []
        return write(self._engine, fn)

    def tried(
        self, held: Delivery, body: str, status: int, message: str, wait_s: float | None
    ) -> None:
        """A try is over. `wait_s` None: there is no other, it was delivered or is given up."""
        table = held.table
        values: dict[str, Any] = {
            "body": body,
            "tries": table.c.tries + 1,
            "status": status,
            "message": storable(message[:_TEXT_MAX]),
            "next_at": None if wait_s is None else now_us() + round(wait_s * 1_000_000),
        }
        if delivered(status):
            values["delivered_at"] = now_us()
        statement = (
            update(table).where(table.c.id == held.id, table.c.epoch == held.epoch).values(values)
        )

        def fn(connection: Connection) -> None:
            if held.endpoint_id is None:
                connection.execute(statement)
                return
            # Its row before those of its deliveries, as whoever disables it takes them.
            row = select(endpoint.c.id).where(endpoint.c.id == held.endpoint_id)
            connection.execute(row.with_for_update())
            if connection.execute(statement).rowcount:
                judge(connection, held.endpoint_id, held.id, status)

        write(self._engine, fn)

    def listed(self, account_id: str, job_id: str) -> list[Delivery]:
        """Of one job, oldest first."""
        query = (
            select(delivery)
            .where(delivery.c.account_id == account_id, delivery.c.job_id == job_id)
            .order_by(delivery.c.created_at, delivery.c.id)
        )
        return read(
            self._engine,
            lambda connection: [Delivery(**row._mapping) for row in connection.execute(query)],
        )

    def sent_to(
        self, endpoint_id: str, limit: int, after: tuple[int, str] | None
    ) -> list[Delivery]:
        """Of one endpoint, newest first, from behind `after` (created_at, id) on."""

        def page(table: Table) -> Select[Any]:
            query = select(table).where(table.c.endpoint_id == endpoint_id)
            if after is not None:
                place = tuple_(table.c.created_at, table.c.id)
                query = query.where(place < tuple_(*after))
            return query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)

        def fn(connection: Connection) -> list[Delivery]:
            rows = [row for table in DELIVERIES for row in connection.execute(page(table))]
            return [Delivery(**row._mapping) for row in rows]

        found = read(self._engine, fn)
        return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)[:limit]

    def again(self, account_id: str, delivery_id: str) -> bool:
        """Tried once more, at once, whatever became of it. False: there is no such delivery, or its
        endpoint was deleted."""

        def fn(connection: Connection) -> bool:
            done = [connection.execute(_again(t, account_id, delivery_id)) for t in DELIVERIES]
            return any(each.rowcount for each in done)

        return write(self._engine, fn)


def _again(table: Table, account_id: str, delivery_id: str) -> Any:
    there = exists().where(endpoint.c.id == table.c.endpoint_id)
    whose = or_(table.c.endpoint_id.is_(None), there)
    mine = (table.c.account_id == account_id, table.c.id == delivery_id)
    return update(table).where(*mine, whose).values(next_at=now_us())
