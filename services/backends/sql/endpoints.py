"""Webhook endpoints: URLs of an account that are told of all its jobs.

One that answers 410, or takes nothing for FAILING_US, is disabled and what waits for it is given
up; its account enables it again.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, delete, exc, func, insert, select, update

from services.backends.sql.engine import database_now_us, now_us, read, write
from services.backends.sql.job_tables import DELIVERIES, endpoint
from services.core.ids import new_id
from services.core.webhooks import delivered, disables

ENDPOINTS_MAX: Final = 20  # of an account
FAILING_US: Final = 5 * 86_400 * 1_000_000
ACTIVE: Final = "active"
DISABLED: Final = "disabled"
_GONE: Final = "it answered 410"
_FAILING: Final = "it took nothing for 5 days"
_BREAK_US: Final = 60 * 1_000_000


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `webhook_endpoint`."""

    id: str
    account_id: str
    url: str
    events: tuple[str, ...]
    description: str
    status: str
    reason: str
    secret_no: int
    rotated_at: int | None
    failing_at: int | None
    created_at: int
    updated_at: int


class UrlTaken(Exception):
    """The account has an endpoint of that URL."""


class TooMany(Exception):
    """The account has ENDPOINTS_MAX endpoints."""


class Endpoints:
    """Over the SQL database. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, account_id: str, url: str, events: Sequence[str], description: str) -> Endpoint:
        """A new one, active. Raises UrlTaken, TooMany."""

        def fn(connection: Connection) -> Endpoint:
            mine = select(func.count()).where(endpoint.c.account_id == account_id)
            if connection.execute(mine).scalar_one() >= ENDPOINTS_MAX:
                raise TooMany
            now = database_now_us(connection)
            made = Endpoint(
                id=new_id("whk"),
                account_id=account_id,
                url=url,
                events=tuple(events),
                description=description,
                status=ACTIVE,
                reason="",
                secret_no=1,
                rotated_at=None,
                failing_at=None,
                created_at=now,
                updated_at=now,
            )
            row = msgspec.structs.asdict(made) | {"events": _packed(events)}
            connection.execute(insert(endpoint).values(row))
            return made

        try:
            return write(self._engine, fn)
        except exc.IntegrityError as ex:
            raise UrlTaken from ex

    def get(self, account_id: str, endpoint_id: str) -> Endpoint | None:
        query = select(endpoint).where(
            endpoint.c.account_id == account_id, endpoint.c.id == endpoint_id
        )
        return read(self._engine, lambda c: _one(c.execute(query).one_or_none()))

    def listed(self, account_id: str) -> list[Endpoint]:
        """All of the account, oldest first."""
        query = select(endpoint).where(endpoint.c.account_id == account_id).order_by(endpoint.c.id)
        return read(self._engine, lambda c: [_endpoint(row) for row in c.execute(query)])

    def change(self, account_id: str, endpoint_id: str, **changes: Any) -> Endpoint | None:
        """Sets `url`, `events`, `description`, `status`; None: there is no such endpoint. One that
        is made active is well again, one that is disabled gets nothing more. Raises UrlTaken."""
        if "events" in changes:
            changes["events"] = _packed(changes["events"])
        if "status" in changes:
            changes |= {"reason": "", "failing_at": None}

        def fn(connection: Connection) -> Endpoint | None:
            found = self._update(connection, account_id, endpoint_id, **changes)
            if found is not None and found.status == DISABLED:
                give_up(connection, endpoint_id)
            return found

        try:
            return write(self._engine, fn)
        except exc.IntegrityError as ex:
            raise UrlTaken from ex

    def rotate(self, account_id: str, endpoint_id: str) -> Endpoint | None:
        """Has another secret from now on; None: there is no such endpoint."""
        changes = {"secret_no": endpoint.c.secret_no + 1, "rotated_at": now_us()}
        return write(self._engine, lambda c: self._update(c, account_id, endpoint_id, **changes))

    def delete(self, account_id: str, endpoint_id: str) -> bool:
        """Whether there was one; what waits for it is given up, its log stays."""
        statement = delete(endpoint).where(
            endpoint.c.account_id == account_id, endpoint.c.id == endpoint_id
        )

        def fn(connection: Connection) -> bool:
            found = connection.execute(statement).rowcount > 0
            if found:
                give_up(connection, endpoint_id)
            return found

        return write(self._engine, fn)

    @staticmethod
    def _update(
        connection: Connection, account_id: str, endpoint_id: str, **changes: Any
    ) -> Endpoint | None:
        statement = (
            update(endpoint)
            .where(endpoint.c.account_id == account_id, endpoint.c.id == endpoint_id)
            .values(updated_at=now_us(), **changes)
            .returning(endpoint)
        )
        return _one(connection.execute(statement).one_or_none())


def told_of(connection: Connection, account_id: str, kind: str) -> list[Endpoint]:
    """The active endpoints that want events of `kind`."""
    query = select(endpoint).where(endpoint.c.account_id == account_id, endpoint.c.status == ACTIVE)
    return [each for row in connection.execute(query) if kind in (each := _endpoint(row)).events]


def wanting(connection: Connection, kind: str) -> list[Endpoint]:
    """The active endpoints of all accounts that want events of `kind`."""
    named = endpoint.c.events.contains(f'"{kind}"', autoescape=True)
    query = select(endpoint).where(endpoint.c.status == ACTIVE, named)
    return [_endpoint(row) for row in connection.execute(query)]


def judge(connection: Connection, endpoint_id: str, delivery_id: str, status: int) -> None:
    """What the status of a try says about its endpoint: whether it is well, failing or over. When
    it did not answer (0), its other deliveries wait a minute: it must not use up the threads."""
    mine = endpoint.c.id == endpoint_id
    if delivered(status):
        well = update(endpoint).where(mine, endpoint.c.failing_at.is_not(None))
        connection.execute(well.values(failing_at=None))
        return
    now = database_now_us(connection)
    since = connection.execute(
        update(endpoint)
        .where(mine)
        .values(failing_at=func.coalesce(endpoint.c.failing_at, now))
        .returning(endpoint.c.failing_at)
    ).scalar_one_or_none()
    if since is None:
        return
    if disables(status) or now - since >= FAILING_US:
        reason = _GONE if disables(status) else _FAILING
        connection.execute(update(endpoint).where(mine).values(status=DISABLED, reason=reason))
        give_up(connection, endpoint_id)
    elif status == 0:
        later = now + _BREAK_US
        for table in DELIVERIES:
            others = (table.c.endpoint_id == endpoint_id, table.c.id != delivery_id)
            due = table.c.next_at < later
            connection.execute(update(table).where(*others, due).values(next_at=later))


def give_up(connection: Connection, endpoint_id: str) -> None:
    """Nothing that waits for the endpoint is sent by itself any more; a try that is under way
    writes nothing."""
    for table in DELIVERIES:
        waits = (table.c.endpoint_id == endpoint_id, table.c.next_at.is_not(None))
        connection.execute(
            update(table).where(*waits).values(next_at=None, epoch=table.c.epoch + 1)
        )


def _packed(events: Sequence[str]) -> str:
    return msgspec.json.encode(events).decode()


def _one(row: Any) -> Endpoint | None:
    return None if row is None else _endpoint(row)


def _endpoint(row: Any) -> Endpoint:
    fields = dict(row._mapping)
    return Endpoint(**fields | {"events": tuple(msgspec.json.decode(fields["events"]))})
