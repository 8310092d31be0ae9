"""Money in and out of a wallet, not by usage."""

from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, insert, select, update

from schemas.events import MAX_NANO, MOVEMENTS, WalletMovement
from services.backends.sql.engine import database_now_us, write
from services.backends.sql.outbox import SOURCE, append
from services.backends.sql.tables import account, limit_row, wallet_movement
from services.core.ids import new_id

_CREDITS: Final = frozenset({"topup", "bonus", "admin_credit"})
_DEBITS: Final = frozenset({"admin_debit", "chargeback"})


class InsufficientFunds(Exception):
    """The debit is more than what is neither spent nor leased: `available_nano`."""

    def __init__(self, available_nano: int) -> None:
        super().__init__(f"only {available_nano} nano-USD are free")
        self.available_nano = available_nano


class MovementConflict(Exception):
    """The external id belongs to another movement of this account: nothing was moved."""


class Wallets:
    """Over the SQL database. May raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def move(
        self,
        account_id: str,
        movement: str,
        amount_nano: int,
        external_id: str = "",
        note: str = "",
        actor: str = "operator",
    ) -> str:
        """Adds `amount_nano` (a debit is negative) to the wallet's limit at once, and writes the
        movement and its event in the same transaction. Returns the movement's id.

        Idempotent by `external_id` when one is given. Raises LookupError (no such account),
        InsufficientFunds (a debit never takes what is spent or leased), MovementConflict,
        ValueError (unknown movement, or an amount that has not its sign)."""
        _check(movement, amount_nano)

        def apply(connection: Connection) -> str:
            wallet = _locked_wallet(connection, account_id)
            if external_id:
                done = _movement_of(connection, account_id, external_id)
                if done is not None:
                    if (done.movement, done.amount_nano) != (movement, amount_nano):
                        raise MovementConflict(f"{external_id!r} is {done.movement} {done.id}")
                    return str(done.id)
            free_nano = wallet.limit_nano - wallet.settled_nano - wallet.leased_nano
            if amount_nano < 0 and free_nano + amount_nano < 0:
                raise InsufficientFunds(max(free_nano, 0))
            if wallet.limit_nano + amount_nano > MAX_NANO:
                raise ValueError("a wallet holds at most 9 billion USD")
            connection.execute(
                update(limit_row)
                .where(limit_row.c.id == wallet.id)
                .values(limit_nano=limit_row.c.limit_nano + amount_nano)
            )
            event = WalletMovement(
                event_id="",
                account_id=account_id,
                occurred_at=database_now_us(connection),
                source=SOURCE,
                movement_id=new_id("mov"),
                movement=movement,
                amount_nano=amount_nano,
                external_id=external_id,
                note=note,
                actor=actor,
            )
            event.event_id = f"{event.movement_id}:wallet_movement"
            connection.execute(insert(wallet_movement).values(_row(event)))
            append(connection, event)
            return event.movement_id

        return write(self._engine, apply)


def _check(movement: str, amount_nano: int) -> None:
    if movement not in MOVEMENTS:
        raise ValueError(f"no such movement: {movement} ({', '.join(MOVEMENTS)})")
    if amount_nano == 0 or abs(amount_nano) > MAX_NANO:
        raise ValueError(f"a {movement} moves some money, at most 9 billion USD")
    if movement in _CREDITS and amount_nano < 0:
        raise ValueError(f"a {movement} adds money: its amount is positive")
    if movement in _DEBITS and amount_nano > 0:
        raise ValueError(f"a {movement} takes money: its amount is negative")


def _locked_wallet(connection: Connection, account_id: str) -> Row[Any]:
    row = connection.execute(
        select(limit_row)
        .join(account, account.c.wallet_limit_id == limit_row.c.id)
        .where(account.c.id == account_id)
        .with_for_update(of=limit_row)
    ).one_or_none()
    if row is None:
        raise LookupError(f"there is no account {account_id!r}")
    return row


def _movement_of(connection: Connection, account_id: str, external_id: str) -> Row[Any] | None:
    return connection.execute(
        select(wallet_movement).where(
            wallet_movement.c.account_id == account_id,
            wallet_movement.c.external_id == external_id,
        )
    ).one_or_none()


def _row(event: WalletMovement) -> dict[str, object]:
    return {
        "id": event.movement_id,
        "account_id": event.account_id,
        "movement": event.movement,
        "amount_nano": event.amount_nano,
        "external_id": event.external_id or None,
        "note": event.note,
        "actor": event.actor,
        "occurred_at": event.occurred_at,
    }
