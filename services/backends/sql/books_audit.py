"""Readings of the books for reconciliation: by event, in totals, and against themselves."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Select,
    and_,
    func,
    literal_column,
    select,
)

from services.backends.sql.books_checks import CHECKS, REBUILT_CHECKS, not_taken
from services.backends.sql.bulk import among
from services.backends.sql.engine import read_long
from services.backends.sql.ledger import SettlementRow
from services.backends.sql.tables import (
    UNSHIPPED,
    applied,
    dead_event,
    posting,
    settlement,
    sql_outbox,
    wallet_movement,
)
from services.backends.sql.window_checks import window_findings
from services.core.ledger import Posting

_HOUR_US: Final = 3_600_000_000
_NAMED: Final = 100  # findings of one kind that are listed


class TakenAt(NamedTuple):
    """Where and as what the ledger took an event."""

    body_hash: str
    partition: int
    offset: int


class Movement(NamedTuple):
    account_id: str
    amount_nano: int


class Chunk(NamedTuple):
    """All that the books hold about some events: by event id, request id, movement id."""

    taken: dict[str, TakenAt]
    dead: dict[str, list[tuple[str, bytes]]]  # (reason, body)
    settlements: dict[str, SettlementRow]
    postings: dict[str, list[Posting]]
    movements: dict[str, Movement]


class Totals(NamedTuple):
    """Of the settlements whose terminals lie in a range of the log."""

    events: int
    requests: int
    charged_nano: int
    cost_nano: int
    provider_cost_nano: int


class Finding(NamedTuple):
    """Something that contradicts something else; `subject` is an event id or what is named."""

    pair: str
    subject: str
    detail: str


class BooksAudit:
    """Reads only. Every method may raise DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def chunk(
        self, event_ids: Sequence[str], request_ids: Sequence[str], movement_ids: Sequence[str]
    ) -> Chunk:
        """One consistent reading of everything about these."""

        def fn(connection: Connection) -> Chunk:
            events = among(connection, event_ids)
            taken = select(
                applied.c.event_id, applied.c.body_hash, applied.c.partition, applied.c.offset
            ).where(applied.c.event_id.in_(events))
            dead = (
                select(dead_event.c.event_id, dead_event.c.reason, dead_event.c.body)
                .where(dead_event.c.event_id.in_(events), dead_event.c.state != "replayed")
                .order_by(dead_event.c.id)
            )
            lines = (
                select(posting.c.event_id, posting.c.ledger_account, posting.c.amount_nano)
                .where(posting.c.event_id.in_(events))
                .order_by(posting.c.event_id, posting.c.line)
            )
            settled = select(*(settlement.c[name] for name in SettlementRow._fields)).where(
                settlement.c.request_id.in_(among(connection, request_ids))
            )
            moved = select(
                wallet_movement.c.id, wallet_movement.c.account_id, wallet_movement.c.amount_nano
            ).where(wallet_movement.c.id.in_(among(connection, movement_ids)))
            found = Chunk(
                taken={row[0]: TakenAt(*row[1:]) for row in connection.execute(taken)},
                dead={},
                settlements={row[0]: SettlementRow(*row) for row in connection.execute(settled)},
                postings={},
                movements={row[0]: Movement(*row[1:]) for row in connection.execute(moved)},
            )
            for event_id, reason, body in connection.execute(dead):
                found.dead.setdefault(event_id, []).append((reason, bytes(body)))
            for event_id, account, amount_nano in connection.execute(lines):
                found.postings.setdefault(event_id, []).append(Posting(account, amount_nano))
            return found

        return read_long(self._engine, fn)

    def totals(self, topic: str, partition: int, first: int, end: int) -> Totals:
        """Of the partition's events with `first` <= offset < `end`."""
        within = _within(topic, partition, first, end)
        events = select(func.count()).select_from(applied).where(within)
        sums = (
            select(
                func.count(),
                func.coalesce(func.sum(settlement.c.charged_nano), 0),
                func.coalesce(func.sum(settlement.c.cost_nano), 0),
                func.coalesce(func.sum(settlement.c.provider_cost_nano), 0),
            )
            .select_from(settlement)
            .join(applied, applied.c.event_id == settlement.c.event_id)
            .where(within)
        )

        def fn(connection: Connection) -> Totals:
            count = connection.execute(events).scalar_one()
            return Totals(count, *(int(value) for value in connection.execute(sums).one()))

        return read_long(self._engine, fn)

    def account_hours(
        self, topic: str, partition: int, first: int, end: int
    ) -> list[tuple[str, int, int, int, int, int]]:
        """Account id, hour since the epoch, requests, charged, written off and provider's cost of
        the settlements whose terminals lie in that range, by the hour of the terminal."""
        hour = settlement.c.occurred_at // literal_column(str(_HOUR_US), BigInteger())
        query = (
            select(
                settlement.c.account_id,
                hour,
                func.count(),
                func.sum(settlement.c.charged_nano),
                func.sum(settlement.c.cost_nano - settlement.c.charged_nano),
                func.sum(settlement.c.provider_cost_nano),
            )
            .join(applied, applied.c.event_id == settlement.c.event_id)
            .where(_within(topic, partition, first, end))
            .group_by(settlement.c.account_id, hour)
        )
        rows = read_long(self._engine, lambda connection: connection.execute(query).all())
        return [(row[0], *(int(value) for value in row[1:])) for row in rows]

    def taken_between(self, topic: str, partition: int, first: int, end: int) -> dict[str, int]:
        """event_id -> offset of everything taken from that range. Reads the whole table."""
        query = select(applied.c.event_id, applied.c.offset).where(
            _within(topic, partition, first, end)
        )
        return read_long(
            self._engine,
            lambda connection: {row[0]: row[1] for row in connection.execute(query)},
        )

    def taken_of(self, event_ids: Sequence[str]) -> set[str]:
        """Which of these were taken, from whatever partition."""

        def fn(connection: Connection) -> set[str]:
            query = select(applied.c.event_id).where(
                applied.c.event_id.in_(among(connection, event_ids))
            )
            return set(connection.execute(query).scalars())

        return read_long(self._engine, fn)

    def last_movement(self) -> int:
        """The number of the newest event in the SQL outbox; 0 without one."""
        query = select(func.coalesce(func.max(sql_outbox.c.id), 0))
        return int(read_long(self._engine, lambda c: c.execute(query).scalar_one()))

    def unshipped(self, up_to: int) -> int:
        """How many of the SQL outbox's events up to that number the bus has not."""
        query = select(func.count()).where(UNSHIPPED, sql_outbox.c.id <= up_to)
        return int(read_long(self._engine, lambda c: c.execute(query).scalar_one()))

    def findings(self, outbox_up_to: int) -> list[Finding]:
        """The books against themselves, on one snapshot: nothing without its event, every sum
        equal to what it sums, every event of the SQL outbox up to that number taken."""

        def fn(connection: Connection) -> list[Finding]:
            found = _findings(connection, CHECKS)
            lost = not_taken(outbox_up_to).limit(_NAMED)
            return found + [Finding(*row) for row in connection.execute(lost)]

        return read_long(self._engine, fn)

    def limit_findings(self) -> list[Finding]:
        """Limits and windows against the settlements alone, leases left aside."""
        return read_long(self._engine, lambda connection: _findings(connection, REBUILT_CHECKS))

    def trial_balance_nano(self) -> int:
        """The sum of all postings: 0."""
        query = select(func.coalesce(func.sum(posting.c.amount_nano), 0))
        return int(read_long(self._engine, lambda c: c.execute(query).scalar_one()))


def _findings(connection: Connection, checks: Sequence[Select[Any]]) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        found += [Finding(*row) for row in connection.execute(check.limit(_NAMED))]
    return found + [Finding(*each) for each in islice(window_findings(connection), _NAMED)]


def _within(topic: str, partition: int, first: int, end: int) -> Any:
    return and_(
        applied.c.topic == topic,
        applied.c.partition == partition,
        applied.c.offset >= first,
        applied.c.offset < end,
    )
