"""Money in and out of a wallet, not by usage."""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, Row, insert, select, update

from schemas.events import MAX_NANO, MOVEMENT_MAX_NANO, MOVEMENTS, WalletMovement
from services.backends.sql.catalog_ground import NotInCatalog
from services.backends.sql.engine import database_now_us, now_us, write
from services.backends.sql.outbox import SOURCE, append
from services.backends.sql.tables import account, limit_row, wallet_movement
from services.core.ids import new_id
from services.core.money import exact_usd

T = TypeVar("T")

_CREDITS: Final = frozenset({"topup", "bonus", "admin_credit"})
_DEBITS: Final = frozenset({"admin_debit", "chargeback"})
_TEXT_MAX: Final = 1000  # characters of a note or an external id; events take little more
_PATIENCE_S: Final = 2.0
_PAUSE_S: Final = 0.1


class InsufficientFunds(Exception):
    """The debit is more than what is neither spent nor leased: `available_nano`. `only_leased`: it
    would fit if the money that is out in leases came back, so waiting can help."""

    def __init__(self, available_nano: int, *, only_leased: bool) -> None:
        super().__init__(f"only ${exact_usd(available_nano)} are free")
        self.available_nano = available_nano
        self.only_leased = only_leased


class MovementConflict(Exception):
    """The external id belongs to another movement of this account: nothing was moved."""


class WrongMovement(ValueError):
    """No such movement can be made: `param` is what is wrong with it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


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

        Idempotent by `external_id` when one is given. Raises NotInCatalog (no such account),
        InsufficientFunds (a debit never takes what is spent or leased), MovementConflict,
        WrongMovement (unknown, an amount that has not its sign or is too large, a long text)."""
        wanted = _Wanted(account_id, movement, amount_nano, external_id, note, actor)
        return write(self._engine, lambda connection: _move(connection, wanted))

    def top_up(
        self,
        account_id: str,
        amount_nano: int,
        bonus_nano: int,
        external_id: str = "",
        note: str = "",
        actor: str = "operator",
    ) -> list[str]:
        """Principal and bonus as two movements of one transaction, the bonus only when it is above
        0. Returns their ids. A repeated `external_id` gives the ids of the first time, whatever
        bonus is due today. Raises as `move`."""
        paid = _Wanted(account_id, "topup", amount_nano, external_id, note, actor)
        bonus_id = f"{external_id}:bonus" if external_id else ""
        bonus = _Wanted(account_id, "bonus", bonus_nano, bonus_id, note, actor)

        def apply(connection: Connection) -> list[str]:
            repeated = bool(external_id) and _done(connection, paid) is not None
            ids = [_move(connection, paid)]
            if repeated:
                earlier = _movement_of(connection, account_id, bonus_id)
                return ids if earlier is None else [*ids, str(earlier.id)]
            return [*ids, _move(connection, bonus, after_us=1)] if bonus_nano else ids

        return write(self._engine, apply)

    def recall(self, account_id: str) -> None:
        """Asks the workers for the idle money of their leases, for the next two seconds."""
        write(
            self._engine,
            lambda connection: connection.execute(
                update(limit_row)
                .where(limit_row.c.kind == "wallet", limit_row.c.subject == account_id)
                .values(recall_at=now_us())
            ),
        )


def patiently(
    debit: Callable[[], T],
    recall: Callable[[], object],
    sleep: Callable[[float], object],
    monotonic_s: Callable[[], float] = time.monotonic,
) -> T:
    """What `debit` returns; while money that lies idle in leases would do, it is recalled and
    waited for, up to two seconds. Raises InsufficientFunds."""
    deadline_s = monotonic_s() + _PATIENCE_S
    while True:
        try:
            return debit()
        except InsufficientFunds as ex:
            if not ex.only_leased or monotonic_s() >= deadline_s:
                raise
        recall()
        sleep(_PAUSE_S)


class _Wanted(NamedTuple):
    account_id: str
    movement: str
    amount_nano: int
    external_id: str
    note: str
    actor: str


def _move(connection: Connection, wanted: _Wanted, after_us: int = 0) -> str:
    """One movement; `after_us` orders those of one transaction."""
    account_id, movement, amount_nano, external_id, note, actor = wanted
    _check(wanted)
    wallet = _locked_wallet(connection, account_id)
    if external_id:
        done = _done(connection, wanted)
        if done is not None:
            return done
    unspent_nano = wallet.limit_nano - wallet.settled_nano
    free_nano = unspent_nano - wallet.leased_nano
    if amount_nano < 0 and free_nano + amount_nano < 0:
        raise InsufficientFunds(max(free_nano, 0), only_leased=unspent_nano + amount_nano >= 0)
    if wallet.limit_nano + amount_nano > MAX_NANO:
        raise WrongMovement("amount", "a wallet holds at most 9 billion USD")
    connection.execute(
        update(limit_row)
        .where(limit_row.c.id == wallet.id)
        .values(limit_nano=limit_row.c.limit_nano + amount_nano)
    )
    event = WalletMovement(
        event_id="",
        account_id=account_id,
        occurred_at=database_now_us(connection) + after_us,
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


def _done(connection: Connection, wanted: _Wanted) -> str | None:
    """The movement that has the external id already. Raises MovementConflict."""
    done = _movement_of(connection, wanted.account_id, wanted.external_id)
    if done is None:
        return None
    if (done.movement, done.amount_nano) != (wanted.movement, wanted.amount_nano):
        raise MovementConflict(f"{wanted.external_id!r} is {done.movement} {done.id}")
    return str(done.id)


def _check(wanted: _Wanted) -> None:
    """What the books would not take must not reach the wallet."""
    movement, amount_nano = wanted.movement, wanted.amount_nano
    if movement not in MOVEMENTS:
        raise WrongMovement("movement", f"no such movement: {movement} ({', '.join(MOVEMENTS)})")
    if amount_nano == 0 or abs(amount_nano) > MOVEMENT_MAX_NANO:
        raise WrongMovement("amount", f"a {movement} moves some money, at most 1 billion USD")
    if movement in _CREDITS and amount_nano < 0:
        raise WrongMovement("amount", f"a {movement} adds money: its amount is positive")
    if movement in _DEBITS and amount_nano > 0:
        raise WrongMovement("amount", f"a {movement} takes money: its amount is negative")
    for param in ("external_id", "note"):
        if len(getattr(wanted, param)) > _TEXT_MAX:
            raise WrongMovement(param, f"at most {_TEXT_MAX} characters")


def _locked_wallet(connection: Connection, account_id: str) -> Row[Any]:
    row = connection.execute(
        select(limit_row)
        .join(account, account.c.wallet_limit_id == limit_row.c.id)
        .where(account.c.id == account_id)
        .with_for_update(of=limit_row)
    ).one_or_none()
    if row is None:
        raise NotInCatalog(f"there is no account {account_id!r}")
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
