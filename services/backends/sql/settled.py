"""Where in the log the end of a billed request stands."""

from typing import NamedTuple

from sqlalchemy import Engine, select

from schemas.errors import BILLED
from services.backends.sql.engine import read
from services.backends.sql.tables import applied, settlement


class Settled(NamedTuple):
    event_id: str
    charged_nano: int
    body_hash: str
    topic: str
    partition: int
    offset: int


def billed(engine: Engine, account_id: str, request_id: str) -> Settled | None:
    """None unless the account has paid for this request. Raises DatabaseUnavailable."""
    if "\0" in request_id:  # none of ours, and PostgreSQL takes no such text
        return None
    query = (
        select(
            settlement.c.event_id,
            settlement.c.charged_nano,
            applied.c.body_hash,
            applied.c.topic,
            applied.c.partition,
            applied.c.offset,
        )
        .join(applied, applied.c.event_id == settlement.c.event_id)
        .where(
            settlement.c.request_id == request_id,
            settlement.c.account_id == account_id,
            settlement.c.outcome.in_([each.value for each in BILLED]),
        )
    )
    row = read(engine, lambda connection: connection.execute(query).one_or_none())
    return None if row is None else Settled(*row)
