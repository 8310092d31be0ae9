"""An account with a wallet and a key, and the laws of the limits as triggers in the database."""

import msgspec
from sqlalchemy import Connection, Engine, func, select, text

from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import read, write
from services.backends.sql.tables import incarnation, lease, limit_row
from services.backends.sql.wallets import Wallets
from services.core.prices import ModelPrice

SECRET = bytes(range(32))
INCARNATION = "edge-1"


class World:
    """One account with one key, ready to take grants."""

    def __init__(
        self, engine: Engine, wallet_nano: int, quota_nano: int | None = None, **fields
    ) -> None:
        self.engine = engine
        self.catalog = Catalog(engine, SECRET)
        self.wallets = Wallets(engine)
        self.budgets = Budgets(engine)
        self.account = self.catalog.create_account("someone")
        self.key, self.secret = self.catalog.create_key(
            self.account.id, "first", quota_nano=quota_nano, **fields
        )
        if wallet_nano:
            self.wallets.move(self.account.id, "topup", wallet_nano, "start")
        self.budgets.open_incarnation(INCARNATION, "edge", "here")

    def grant(self, lease_id, grant_no, need_nano, want_nano=None, incarnation=INCARNATION):
        return self.budgets.grant(
            lease_id, grant_no, incarnation, self.key.id, need_nano, want_nano or need_nano
        )

    def settle(self, charges, closed=()):
        write(self.engine, lambda connection: self.budgets.settle(connection, charges, closed))

    def limits(self):
        """(limit, settled, leased) by kind."""
        rows = read(self.engine, lambda connection: connection.execute(select(limit_row)).all())
        return {row.kind: (row.limit_nano, row.settled_nano, row.leased_nano) for row in rows}

    def pending(self):
        """What the wallet says to a worker with a lease, nano."""
        states = self.budgets.sync(INCARNATION, []).limits.values()
        return next(state.pending_nano for state in states if state.kind == "wallet")

    def incarnations(self, state):
        query = select(incarnation.c.id).where(incarnation.c.state == state)
        return read(self.engine, lambda connection: connection.execute(query).scalars().all())

    def lease(self, lease_id):
        query = select(lease).where(lease.c.id == lease_id)
        return read(self.engine, lambda connection: connection.execute(query).one())

    def check(self):
        """What is leased at a limit is exactly what live leases have left."""
        read(self.engine, _check)


def _check(connection: Connection) -> None:
    left: dict[str, int] = {}
    used: dict[str, int] = {}
    for row in connection.execute(select(lease)):
        assert 0 <= row.consumed_nano <= row.amount_nano
        for limit_id in msgspec.json.decode(row.limit_ids):
            used[limit_id] = used.get(limit_id, 0) + row.consumed_nano
            if row.state != "closed":
                rest = row.amount_nano - row.consumed_nano
                left[limit_id] = left.get(limit_id, 0) + rest
    for row in connection.execute(select(limit_row)):
        assert row.leased_nano == left.get(row.id, 0), row
        if row.window_us is None:  # a window made later begins with what its key spent before
            assert row.settled_nano == used.get(row.id, 0), row
        if row.window_us is None and row.limit_nano is not None:
            assert row.settled_nano + row.leased_nano <= row.limit_nano


def guard_limits(engine: Engine) -> None:
    """From now on the database itself refuses every change that passes a limit, so that a test
    which ends well has kept the limits at every commit, not only at its end."""
    if engine.dialect.name == "postgresql":
        statement = (
            "ALTER TABLE limit_row ADD CONSTRAINT test_law "
            "CHECK (limit_nano IS NULL OR window_us IS NOT NULL "
            "OR settled_nano + leased_nano <= limit_nano)"
        )
    else:
        statement = (
            "CREATE TRIGGER test_law AFTER UPDATE ON limit_row "
            "WHEN NEW.window_us IS NULL AND NEW.settled_nano + NEW.leased_nano > NEW.limit_nano "
            "BEGIN SELECT RAISE(ABORT, 'limit passed'); END"
        )
    write(engine, lambda connection: connection.execute(text(statement)))


def count(engine: Engine, table) -> int:
    query = select(func.count()).select_from(table)
    return read(engine, lambda connection: connection.execute(query).scalar_one())


def model(name: str, output_nano: int = 1_000_000_000, **more) -> ModelPrice:
    return ModelPrice(
        model=name,
        vendor="anthropic",
        context_window=200_000,
        max_output_tokens=8_000,
        classes={"input": 100, "output": output_nano},
        **more,
    )
