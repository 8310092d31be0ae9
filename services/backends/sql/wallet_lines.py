"""The postings of one wallet in a period, for statements."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine, and_, func, or_, select

from services.backends.sql.bulk import among
from services.backends.sql.engine import read_long
from services.backends.sql.tables import posting, settlement, wallet_movement
from services.core.ledger import wallet
from services.core.statements import Line

_MOVEMENT: Final = "wallet_movement"  # ends the ids of such events
_PAGE: Final = 50_000  # each page goes over the postings of all wallets


class _Told(NamedTuple):
    """What a posting is of: a movement, or the settlement of a request."""

    kind: str = "usage"
    key_id: str = ""
    detail: str = ""


class _Posting(NamedTuple):
    occurred_at: int
    event_id: str
    line: int
    amount_nano: int
    told: _Told


class WalletLines:
    """Reads the ledger only. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def balance_before(self, account_id: str, at: int) -> int:
        """Nano-USD: the sum of the wallet's postings before `at`."""
        query = select(func.coalesce(func.sum(posting.c.amount_nano), 0)).where(
            posting.c.ledger_account == wallet(account_id), posting.c.occurred_at < at
        )
        return int(
            read_long(self._engine, lambda connection: connection.execute(query).scalar_one())
        )

    def between(self, account_id: str, since: int, until: int) -> Iterator[Line]:
        """In the order of time and event id, in pages; what is posted meanwhile may be left out."""
        after: tuple[int, str, int] | None = None
        while True:
            rows = self._page(account_id, since, until, after)
            for row in rows:
                kind, key_id, detail = row.told
                yield Line(row.occurred_at, row.event_id, kind, key_id, detail, row.amount_nano)
            if len(rows) < _PAGE:
                return
            after = (rows[-1].occurred_at, rows[-1].event_id, rows[-1].line)

    def _page(
        self, account_id: str, since: int, until: int, after: tuple[int, str, int] | None
    ) -> list[_Posting]:
        order = (posting.c.occurred_at, posting.c.event_id.collate(self._binary()), posting.c.line)
        query = (
            select(posting.c.occurred_at, posting.c.event_id, posting.c.line, posting.c.amount_nano)
            .where(
                posting.c.ledger_account == wallet(account_id),
                posting.c.occurred_at >= since,
                posting.c.occurred_at < until,
            )
            .order_by(*order)
            .limit(_PAGE)
        )
        if after is not None:
            at, event_id, line = after
            query = query.where(
                or_(
                    order[0] > at,
                    and_(order[0] == at, order[1] > event_id),
                    and_(order[0] == at, posting.c.event_id == event_id, order[2] > line),
                )
            )

        def fn(connection: Connection) -> list[_Posting]:
            rows = connection.execute(query).all()
            told = _told(connection, {row.event_id for row in rows})
            return [_Posting(*row, told.get(row.event_id, _Told())) for row in rows]

        return read_long(self._engine, fn)

    def _binary(self) -> str:
        # The same order on every database, whatever its locale.
        return "C" if self._engine.dialect.name == "postgresql" else "BINARY"


def _told(connection: Connection, event_ids: set[str]) -> dict[str, _Told]:
    """By event id. Ids are made from what they name, so both are found by their primary keys."""
    names: dict[str, str] = {}
    for event_id in event_ids:
        name, _, kind = event_id.rpartition(":")
        names[name] = kind
    found: dict[str, _Told] = {}
    movements = select(wallet_movement.c.id, wallet_movement.c.movement, wallet_movement.c.note)
    moved = [name for name, kind in names.items() if kind == _MOVEMENT]
    for row in connection.execute(
        movements.where(wallet_movement.c.id.in_(among(connection, moved)))
    ):
        found[f"{row.id}:{_MOVEMENT}"] = _Told(row.movement, "", row.note)
    settlements = select(settlement.c.event_id, settlement.c.key_id, settlement.c.outcome)
    settled = [name for name, kind in names.items() if kind != _MOVEMENT]
    for row in connection.execute(
        settlements.where(settlement.c.request_id.in_(among(connection, settled)))
    ):
        found[row.event_id] = _Told(key_id=row.key_id, detail=row.outcome)
    return found
