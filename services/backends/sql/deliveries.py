"""Webhook deliveries: planned in the transaction that ends a job, tried until the receiver takes
them or the schedule is over. Claimed like jobs: `next_at` moves ahead, `epoch` fences."""

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, exists, insert, or_, select, tuple_, update

from services.backends.sql.endpoints import judge, told_of
from services.backends.sql.engine import now_us, read, statement_us, write
from services.backends.sql.job_records import Job
from services.backends.sql.job_tables import delivery, endpoint
from services.core.ids import new_id
from services.core.webhooks import delivered

_CLAIM_US: Final = 60 * 1_000_000
_TEXT_MAX: Final = 500


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `webhook_delivery`."""

    id: str
    job_id: str
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


def plan(connection: Connection, held: Job, kind: str, now: int) -> None:
    """In the transaction that ends the job: its callback and those of the account's endpoints are
    due at once."""
    rows = [
        {
            "id": new_id("whd"),
            "job_id": held.id,
            "account_id": held.account_id,
            "endpoint_id": endpoint_id,
            "url": url,
            "type": kind,
            "body": "",
            "epoch": 0,
            "next_at": now,
            "tries": 0,
            "status": 0,
            "message": "",
            "created_at": now,
        }
        for endpoint_id, url in _receivers(connection, held, kind)
    ]
    if rows:
        connection.execute(insert(delivery), rows)


def _receivers(connection: Connection, held: Job, kind: str) -> list[tuple[str | None, str]]:
    found = told_of(connection, held.account_id, kind)
    own: list[tuple[str | None, str]] = [(None, held.callback_url)] if held.callback_url else []
    return own + [(each.id, each.url) for each in found]


class Deliveries:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, limit: int) -> list[Delivery]:
        """Due deliveries, the longest due first."""

        def none_due(connection: Connection) -> bool:
            query = select(delivery.c.id).where(delivery.c.next_at <= statement_us()).limit(1)
            return connection.execute(query).first() is None

        def fn(connection: Connection) -> list[Delivery]:
            due = (
                select(delivery.c.id)
                .where(delivery.c.next_at <= statement_us())
                .order_by(delivery.c.next_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(
                update(delivery)
                .where(delivery.c.id.in_(due))
                .values(epoch=delivery.c.epoch + 1, next_at=now_us() + _CLAIM_US)
                .returning(delivery)
            )
            return [Delivery(**row._mapping) for row in rows]

        return [] if read(self._engine, none_due) else write(self._engine, fn)

    def tried(
        self, held: Delivery, body: str, status: int, message: str, wait_s: float | None
    ) -> None:
        """A try is over. `wait_s` None: there is no other, it was delivered or is given up."""
        values: dict[str, Any] = {
            "body": body,
            "tries": delivery.c.tries + 1,
            "status": status,
            "message": message[:_TEXT_MAX],
            "next_at": None if wait_s is None else now_us() + round(wait_s * 1_000_000),
        }
        if delivered(status):
            values["delivered_at"] = now_us()
        statement = (
            update(delivery)
            .where(delivery.c.id == held.id, delivery.c.epoch == held.epoch)
            .values(values)
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
        query = select(delivery).where(delivery.c.endpoint_id == endpoint_id)
        place = tuple_(delivery.c.created_at, delivery.c.id)
        if after is not None:
            query = query.where(place < tuple_(*after))
        query = query.order_by(delivery.c.created_at.desc(), delivery.c.id.desc()).limit(limit)
        return read(
            self._engine,
            lambda connection: [Delivery(**row._mapping) for row in connection.execute(query)],
        )

    def again(self, account_id: str, delivery_id: str) -> bool:
        """Tried once more, at once, whatever became of it. False: there is no such delivery, or its
        endpoint was deleted."""
        whose = or_(
            delivery.c.endpoint_id.is_(None),
            exists().where(endpoint.c.id == delivery.c.endpoint_id),
        )
        statement = (
            update(delivery)
            .where(delivery.c.account_id == account_id, delivery.c.id == delivery_id, whose)
            .values(next_at=now_us())
        )
        return write(self._engine, lambda c: c.execute(statement).rowcount > 0)
