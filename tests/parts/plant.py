"""An installation whose roles run in threads of the test: on the embedded parts, and on Kafka,
PostgreSQL and ClickHouse over HTTP."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from schemas import config as schema
from schemas.events import TOPIC
from services.backends.clickhouse.client import ClickHouse
from services.backends.clock import SystemClock
from services.backends.outbox import Outbox
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.engine import write
from services.backends.sql.plans import Plans
from services.core.ids import uuid7_hex
from services.meter.bootstrap import Meter, open_bus
from services.meter.reconcile import reconcile
from services.meter.reconcile_wait import NotCaughtUp, Waiter
from tests.parts.books import Books


class Plant:
    """An installation whose roles run in threads of this process while `working`."""

    def __init__(self, config: schema.Config) -> None:
        self.config = config
        self.books = Books(config.database.url, Path(config.data_dir))
        self.bus = open_bus(config)
        self.bus.ensure_topics()
        self.folder = Path(config.data_dir) / config.outbox.path
        self.outbox = self._worker()
        self._engine: Any = None

    def keep_engine(self) -> None:
        """The embedded engine stays up between two openings: each takes a fifth of a second."""
        self._engine = clickhouse_connect.get_client(dsn=self.config.clickhouse.dsn)

    def leave_engine(self) -> None:
        """To another process."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _worker(self) -> Outbox:
        """One incarnation with an outbox; the leases of `books` are granted to it."""
        name = f"edge-{uuid7_hex()}"
        self.books.budgets.open_incarnation(name, "edge", "here")
        self.books.incarnation = name
        return Outbox.create(self.folder, name, self.config.outbox, SystemClock())

    def reopen(self) -> None:
        """A new worker, for the old one's leases are over."""
        self.outbox.close()
        self.outbox = self._worker()

    def write(self, events) -> None:
        for event in events:
            self.outbox.append_last(event)
        self.outbox.sync()

    @contextlib.contextmanager
    def working(self, roles=("relay", "ledger", "clickhouse")):
        stop = threading.Event()
        meter = Meter(self.config, set(roles))
        threads = [threading.Thread(target=loop, args=[stop]) for loop in meter.loops.values()]
        for thread in threads:
            thread.start()
        try:
            yield meter
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
            meter.close()

    def reconcile(self, wait_s: float = 0.0):
        return reconcile(self.config, wait_s)

    def catch_up(self, roles=("relay", "ledger", "clickhouse")):
        """Lets the roles work until reconciliation may begin."""
        with self.working(roles):
            deadline = time.monotonic() + 60
            while lagging := self._lagging():
                assert time.monotonic() < deadline, lagging
                time.sleep(0.1)

    def _lagging(self) -> list[str]:
        engine = self.books.engine
        waiter = Waiter(
            self.folder, self.bus, TOPIC, BooksAudit(engine), self.books.store, Plans(engine)
        )
        try:
            waiter.wait(0.0)
        except NotCaughtUp as ex:
            return ex.lagging
        return []

    def sql(self, statement) -> None:
        write(self.books.engine, lambda connection: connection.execute(statement))

    def clickhouse(self, *statements: str) -> None:
        settings = self.config.clickhouse
        opened = ClickHouse(settings.dsn, settings.database, folder=Path(self.config.data_dir))
        for statement in statements:
            opened.command(statement)
        opened.close()

    def close(self) -> None:
        self.leave_engine()
        with contextlib.suppress(Exception):
            self.outbox.close()
        self.books.close()
        self.bus.close()


EMBEDDED = pytest.param("embedded", id="embedded", marks=pytest.mark.part("chdb"))
SERVED = pytest.param(
    "served",
    id="served",
    marks=[pytest.mark.part(name) for name in ("kafka", "postgres", "clickhouse-http")],
)
