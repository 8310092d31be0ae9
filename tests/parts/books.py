"""A small world for the tests of the books: accounts, keys, prices, leases, and the events that a
worker would write for them, with everything a test wants to know about the money."""

import time
from pathlib import Path

from sqlalchemy import func, select

from schemas import config as schema
from schemas.errors import Code, Outcome, Stage
from schemas.events import (
    AnyEvent,
    Error,
    IncarnationClosed,
    LeaseClosed,
    Request,
    Usage,
    encode,
)
from services.backends.bus.port import Record
from services.backends.settings import load_secret
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog, NotInCatalog
from services.backends.sql.engine import open_engine, read
from services.backends.sql.ledger import LedgerStore
from services.backends.sql.outbox import SqlOutbox
from services.backends.sql.tables import (
    applied,
    balance,
    dead_event,
    lease,
    limit_row,
    posting,
    settlement,
)
from services.backends.sql.wallets import Wallets
from services.core.ids import new_id, uuid7_hex, uuid7_text
from services.core.prices import ModelPrice
from services.core.rating import rate
from services.meter.dead import Limits
from services.meter.entries import EntryReader
from services.meter.ledger_sink import LedgerSink

USD = 1_000_000_000
MODEL = "claude-sonnet-4-6"
PRICES = {
    "input": 3_000_000_000,
    "cache_read": 300_000_000,
    "output": 15_000_000_000,
}


def now_us() -> int:
    return time.time_ns() // 1000


class Books:
    """One channel, one price version and one living worker in the migrated database of `url`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.engine = open_engine(url, folder)
        self.catalog = Catalog(self.engine, load_secret(folder))
        self.budgets = Budgets(self.engine)
        self.wallets = Wallets(self.engine)
        self.store = LedgerStore(self.engine)
        model = ModelPrice(
            model=MODEL,
            vendor="anthropic",
            context_window=200_000,
            max_output_tokens=64_000,
            classes=PRICES,
        )
        channel = schema.Channel(
            name="main", dialect="anthropic", base_url="http://127.0.0.1:9", models=[MODEL]
        )
        self.prices = self.catalog.sync([channel], [], {MODEL: model}, now_us())
        self.incarnation = f"edge-{uuid7_hex()}"
        self.budgets.open_incarnation(self.incarnation, "edge", "here")
        self.seq = 0

    def close(self) -> None:
        self.engine.dispose()

    # -- making ------------------------------------------------------------------------------

    def account(self, usd: int = 10) -> str:
        account_id = self.catalog.create_account(f"a-{uuid7_hex()}").id
        if usd:
            self.wallets.move(account_id, "topup", usd * USD)
        return account_id

    def lease(self, account_id: str, amount_nano: int = USD) -> "LeaseLog":
        key, _ = self.catalog.create_key(account_id, "k")
        lease_id = new_id("lease")
        self.budgets.grant(lease_id, 1, self.incarnation, key.id, amount_nano, amount_nano)
        return LeaseLog(self, account_id, key.id, lease_id)

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def closed(self) -> IncarnationClosed:
        return IncarnationClosed(
            event_id=f"{self.incarnation}:closed",
            account_id="-",
            occurred_at=now_us(),
            source="edge",
            incarnation=self.incarnation,
            seq=self.next_seq(),
        )

    def sql_records(self) -> list[Record]:
        """The events that wallet movements and catalog changes wrote, marked as shipped."""
        outbox = SqlOutbox(self.engine)
        rows = outbox.unshipped(10_000)
        outbox.mark_shipped([row.id for row in rows])
        return [Record(row.partition_key, row.body) for row in rows]

    def sink(self, *, dead_ratio: float = 1.0, dead_in_a_row: int = 10**6, **more) -> LedgerSink:
        return LedgerSink(self.engine, self.reader(), Limits(dead_ratio, dead_in_a_row), **more)

    def reader(self) -> EntryReader:
        return EntryReader(self._has_account, self._load_prices)

    def _has_account(self, account_id: str) -> bool:
        try:
            return self.catalog.account(account_id).id == account_id
        except NotInCatalog:
            return False

    def _load_prices(self, version_id: str):
        try:
            return self.catalog.price_version(version_id)
        except NotInCatalog:
            return None

    # -- looking -----------------------------------------------------------------------------

    def rows(self, table, *columns):
        query = select(*columns) if columns else select(table)
        return read(self.engine, lambda connection: connection.execute(query).all())

    def count(self, table) -> int:
        query = select(func.count()).select_from(table)
        return read(self.engine, lambda connection: connection.execute(query).scalar_one())

    def balances(self) -> dict[str, int]:
        rows = self.rows(balance, balance.c.ledger_account, balance.c.amount_nano)
        return {name: amount for name, amount in rows if amount}

    def wallet(self, account_id: str) -> int:
        return self.balances().get(f"wallet:{account_id}", 0)

    def leases(self) -> dict[str, tuple[int, int, int, str]]:
        """id -> amount, consumed, events applied, state."""
        return {
            row.id: (row.amount_nano, row.consumed_nano, row.events_applied, row.state)
            for row in self.rows(lease)
        }

    def limits(self) -> dict[tuple[str, str], tuple[int | None, int, int]]:
        """(kind, subject) -> limit, settled, leased."""
        return {
            (row.kind, row.subject): (row.limit_nano, row.settled_nano, row.leased_nano)
            for row in self.rows(limit_row)
        }

    def dead(self) -> list[tuple[str, str]]:
        """(event_id, reason), in the order of arrival."""
        rows = self.rows(dead_event, dead_event.c.event_id, dead_event.c.reason, dead_event.c.id)
        return [(row.event_id, row.reason) for row in sorted(rows, key=lambda row: row.id)]

    def state(self) -> dict[str, object]:
        """All that a replay must not change."""
        return {
            "balances": self.balances(),
            "leases": self.leases(),
            "limits": self.limits(),
            "applied": sorted(self.rows(applied, applied.c.event_id)),
            "settlements": sorted(self.rows(settlement)),
            "postings": sorted(self.rows(posting)),
            "dead": sorted(self.dead()),
        }

    def check(self) -> None:
        """What holds after every commit, whatever happened."""
        rows = self.rows(posting)
        assert sum(row.amount_nano for row in rows) == 0, "trial balance"
        sums: dict[str, int] = {}
        for row in rows:
            sums[row.ledger_account] = sums.get(row.ledger_account, 0) + row.amount_nano
        assert {name: amount for name, amount in sums.items() if amount} == self.balances()
        charged: dict[str, int] = {}
        for row in self.rows(settlement):
            charged[row.account_id] = charged.get(row.account_id, 0) + row.charged_nano
        for (kind, subject), (limit, settled, leased) in self.limits().items():
            assert limit is None or settled + leased <= limit
            if kind == "wallet":
                assert settled == charged.get(subject, 0)
        open_nano: dict[str, int] = {}
        for row in self.rows(lease):
            assert row.consumed_nano <= row.amount_nano
            if row.state != "closed":
                left_nano = row.amount_nano - row.consumed_nano
                open_nano[row.account_id] = open_nano.get(row.account_id, 0) + left_nano
        for (kind, subject), (_, _, leased) in self.limits().items():
            if kind == "wallet":
                assert leased == open_nano.get(subject, 0)


class LeaseLog:
    """Writes one lease's events, numbered as a worker numbers them."""

    def __init__(self, books: Books, account_id: str, key_id: str, lease_id: str) -> None:
        self.books = books
        self.account_id = account_id
        self.key_id = key_id
        self.lease_id = lease_id
        self.events = 0
        self.spent_nano = 0

    def _envelope(self, request_id: str, kind: str) -> dict:
        self.events += 1
        return {
            "event_id": f"{request_id}:{kind}",
            "request_id": request_id,
            "account_id": self.account_id,
            "key_id": self.key_id,
            "occurred_at": now_us(),
            "source": "edge",
            "incarnation": self.books.incarnation,
            "seq": self.books.next_seq(),
            "lease_id": self.lease_id,
            "lease_seq": self.events,
            "dialect": "anthropic",
            "path": "/v1/messages",
            "model": MODEL,
            "group": "default",
            "price_version": self.books.prices.id,
        }

    def request(self, request_id: str | None = None) -> Request:
        request_id = request_id or uuid7_text()
        return Request(**self._envelope(request_id, "request"), hold_nano=USD // 10)

    def usage(self, request_id: str, *, written_off_nano: int = 0, **units: int) -> Usage:
        used = units or {"input": 1000, "output": 100}
        rated = rate(
            self.books.prices.book,
            channel="main",
            priced_as=MODEL,
            group="default",
            usage=used,
        )
        charged_nano = rated.cost_nano - written_off_nano
        self.spent_nano += charged_nano
        return Usage(
            **self._envelope(request_id, "usage"),
            status=200,
            outcome=Outcome.COMPLETED,
            channel="main",
            priced_as=MODEL,
            upstream_model=MODEL,
            usage=used,
            multiplier_ppm=rated.multiplier_ppm,
            cost_nano=rated.cost_nano,
            charged_nano=charged_nano,
            written_off_nano=written_off_nano,
            provider_cost_nano=rated.provider_cost_nano,
            hold_nano=USD // 10,
        )

    def error(self, request_id: str, *, provider_cost_nano: int = 0) -> Error:
        return Error(
            **self._envelope(request_id, "error"),
            status=502,
            outcome=Outcome.FAILED,
            channel="main",
            code=Code.UPSTREAM_ERROR,
            stage=Stage.UPSTREAM,
            provider_cost_nano=provider_cost_nano,
        )

    def pair(self, **units: int) -> list[AnyEvent]:
        request = self.request()
        return [request, self.usage(request.request_id, **units)]

    def close(self) -> LeaseClosed:
        return LeaseClosed(
            event_id=f"{self.lease_id}:lease_closed",
            account_id=self.account_id,
            key_id=self.key_id,
            occurred_at=now_us(),
            source="edge",
            incarnation=self.books.incarnation,
            seq=self.books.next_seq(),
            lease_id=self.lease_id,
            events=self.events,
        )


def record(event: AnyEvent) -> Record:
    return Record(event.account_id, encode(event))


def records(events: list[AnyEvent]) -> list[Record]:
    return [record(event) for event in events]
