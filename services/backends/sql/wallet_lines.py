"""The postings of one wallet in a period, for statements."""

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, and_, func, or_, select

from services.backends.sql.engine import read
from services.backends.sql.tables import posting, settlement, wallet_movement
from services.core.ledger import wallet
from services.core.statements import Line

_PAGE: Final = 5_000


class WalletLines:
    """Reads the ledger only. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def balance_before(self, account_id: str, at: int) -> int:
        """Nano-USD: the sum of the wallet's postings before `at`."""
        query = select(func.coalesce(func.sum(posting.c.amount_nano), 0)).where(
            posting.c.ledger_account == wallet(account_id), posting.c.occurred_at < at
        )
        return int(read(self._engine, lambda connection: connection.execute(query).scalar_one()))

    def between(self, account_id: str, since: int, until: int) -> Iterator[Line]:
        """In the order of time and event id, in pages; what is posted meanwhile may be left out."""
        after: tuple[int, str, int] | None = None
        while True:
            rows = self._page(account_id, since, until, after)
            for row in rows:
                yield _line(row)
            if len(rows) < _PAGE:
                return
            after = (rows[-1].occurred_at, rows[-1].event_id, rows[-1].line)

    def _page(
        self, account_id: str, since: int, until: int, after: tuple[int, str, int] | None
    ) -> list[Any]:
        order = (posting.c.occurred_at, posting.c.event_id.collate(self._binary()), posting.c.line)
        query = (
            select(
                posting.c.occurred_at,
                posting.c.event_id,
                posting.c.line,
                posting.c.amount_nano,
                settlement.c.key_id,
                settlement.c.outcome,
                wallet_movement.c.movement,
                wallet_movement.c.note,
            )
            .outerjoin_from(posting, settlement, settlement.c.event_id == posting.c.event_id)
            .outerjoin(
                wallet_movement, posting.c.event_id == wallet_movement.c.id + ":wallet_movement"
            )
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

        def fn(connection: Connection) -> list[Any]:
            return list(connection.execute(query).all())

        return read(self._engine, fn)

    def _binary(self) -> str:
        # The same order on every database, whatever its locale.
        return "C" if self._engine.dialect.name == "postgresql" else "BINARY"


def _line(row: Any) -> Line:
    if row.movement is not None:
        return Line(row.occurred_at, row.event_id, row.movement, "", row.note, row.amount_nano)
    return Line(
        row.occurred_at,
        row.event_id,
        "usage",
        row.key_id or "",
        row.outcome or "",
        row.amount_nano,
    )
