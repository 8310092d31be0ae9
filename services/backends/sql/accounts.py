"""What an account's owner reads: balance, limits, wallet transactions. Reads only."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, func, select

from services.backends.sql.engine import read
from services.backends.sql.lease_reads import limit_rows, limit_states, pending_of_account
from services.backends.sql.tables import lease, limit_row, wallet_movement
from services.core.budgets import LimitState


class Balance(NamedTuple):
    """Nano-USD. `available = limit - settled - pending`; `pending` is what requests hold and what
    was spent but not settled yet, as the workers last reported; `topup` is all that came in."""

    available_nano: int
    limit_nano: int
    settled_nano: int
    pending_nano: int
    topup_nano: int


class Transaction(NamedTuple):
    """One wallet movement; `balance_after_nano` sums the movements up to and with it."""

    id: str
    created_at: int
    movement: str
    amount_nano: int
    balance_after_nano: int
    external_id: str
    note: str
    actor: str


class Accounts:
    """Over the SQL database; blocks, so the edge calls it in its SQL thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def balance(self, account_id: str) -> Balance:
        """The wallet. An account without one has zeros."""

        def fn(connection: Connection) -> Balance:
            row = connection.execute(
                select(limit_row.c.limit_nano, limit_row.c.settled_nano).where(
                    limit_row.c.kind == "wallet", limit_row.c.subject == account_id
                )
            ).first()
            limit_nano, settled_nano = (row[0] or 0, row[1]) if row else (0, 0)
            pending_nano = _pending(connection, lease.c.account_id == account_id)
            topup_nano = connection.execute(
                select(func.coalesce(func.sum(wallet_movement.c.amount_nano), 0)).where(
                    wallet_movement.c.account_id == account_id, wallet_movement.c.amount_nano > 0
                )
            ).scalar_one()
            available_nano = limit_nano - settled_nano - pending_nano
            return Balance(available_nano, limit_nano, settled_nano, pending_nano, int(topup_nano))

        return read(self._engine, fn)

    def limit_states(self, account_id: str, limit_ids: list[str]) -> list[LimitState]:
        """The present figures of limits of the account, its keys and members; ids that do not
        exist are left out."""

        def fn(connection: Connection) -> list[LimitState]:
            rows = limit_rows(connection, limit_ids)
            return limit_states(rows, pending_of_account(connection, account_id))

        return read(self._engine, fn)

    def transactions(
        self,
        account_id: str,
        movement: str | None,
        since: int | None,
        until: int | None,
        page: int,
        page_size: int,
    ) -> tuple[list[Transaction], int]:
        """One page of wallet movements, newest first, and how many there are in all. `since` is
        inclusive, `until` exclusive, in microseconds."""
        running = func.sum(wallet_movement.c.amount_nano).over(
            order_by=(wallet_movement.c.occurred_at, wallet_movement.c.id)
        )
        every = (
            select(wallet_movement, running.label("balance_after_nano"))
            .where(wallet_movement.c.account_id == account_id)
            .subquery()
        )
        query = select(every)
        if movement is not None:
            query = query.where(every.c.movement == movement)
        if since is not None:
            query = query.where(every.c.occurred_at >= since)
        if until is not None:
            query = query.where(every.c.occurred_at < until)

        def fn(connection: Connection) -> tuple[list[Transaction], int]:
            total = connection.execute(select(func.count()).select_from(query.subquery()))
            rows = connection.execute(
                query.order_by(every.c.occurred_at.desc(), every.c.id.desc())
                .limit(page_size)
                .offset((page - 1) * page_size)
            ).all()
            found = [
                Transaction(
                    row.id,
                    row.occurred_at,
                    row.movement,
                    row.amount_nano,
                    int(row.balance_after_nano),
                    row.external_id or "",
                    row.note,
                    row.actor,
                )
                for row in rows
            ]
            return found, int(total.scalar_one())

        return read(self._engine, fn)


def _pending(connection: Connection, condition: ColumnElement[bool]) -> int:
    held = lease.c.reserved_nano + lease.c.spent_nano - lease.c.consumed_nano
    query = select(func.coalesce(func.sum(held), 0)).where(lease.c.state != "closed", condition)
    return max(int(connection.execute(query).scalar_one()), 0)
