"""What an account's owner reads: balance, limits, wallet transactions. Reads only."""

from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, func, select

from services.backends.sql.engine import read
from services.backends.sql.lease_reads import LIVE, limit_rows, limit_states, pending_of_account
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


_NOTHING: Final = Balance(0, 0, 0, 0, 0)


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
        found = read(self._engine, lambda connection: _balances(connection, account_id))
        return found.get(account_id, _NOTHING)

    def balances(self) -> dict[str, Balance]:
        """Every wallet, by the id of its account."""
        return read(self._engine, _balances)

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


def _balances(connection: Connection, account_id: str | None = None) -> dict[str, Balance]:
    """Of one account, or of all: as many statements for a hundred thousand as for one."""

    def sums(of: ColumnElement[str], nano: ColumnElement[int], *conditions: Any) -> dict[str, int]:
        query = select(of, func.sum(nano)).where(*conditions).group_by(of)
        if account_id is not None:
            query = query.where(of == account_id)
        return {row[0]: int(row[1]) for row in connection.execute(query)}

    held = lease.c.reserved_nano + lease.c.spent_nano - lease.c.consumed_nano
    pending = sums(lease.c.account_id, held, LIVE)
    moved = wallet_movement.c.amount_nano
    topups = sums(wallet_movement.c.account_id, moved, moved > 0)
    query = select(limit_row.c.subject, limit_row.c.limit_nano, limit_row.c.settled_nano)
    if account_id is not None:
        query = query.where(limit_row.c.subject == account_id)
    found = {}
    for subject, limit_nano, settled_nano in connection.execute(
        query.where(limit_row.c.kind == "wallet")
    ):
        limit_nano, pending_nano = limit_nano or 0, max(pending.get(subject, 0), 0)
        found[subject] = Balance(
            limit_nano - settled_nano - pending_nano,
            limit_nano,
            settled_nano,
            pending_nano,
            topups.get(subject, 0),
        )
    return found
