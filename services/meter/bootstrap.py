"""Builds the meter's roles. The only file of the meter that names concrete adapters.

What is heavy (Kafka, ClickHouse) is imported by the role that needs it, so that the books stay
small and a crash of the embedded analytics engine never takes them along."""

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import Engine

from schemas.config import Config
from schemas.events import TOPIC
from services.backends import settings
from services.backends.bus.port import Bus, BusUnavailable
from services.backends.clock import SystemClock
from services.backends.heartbeat import Heartbeat
from services.backends.lifecycle import Loop
from services.backends.sql import revision
from services.backends.sql.accounts import Accounts
from services.backends.sql.budgets import Budgets
from services.backends.sql.catalog import Catalog, NotInCatalog
from services.backends.sql.engine import DatabaseUnavailable, open_engine
from services.backends.sql.figures import Figures
from services.backends.sql.incarnations import Incarnations
from services.backends.sql.ledger import LedgerStore
from services.backends.sql.outbox import SqlOutbox
from services.backends.sql.plans import Plans
from services.backends.telemetry import get_logger
from services.core.prices import PriceVersion
from services.meter.consumer import Consumer
from services.meter.dead import Limits, TimeLimits
from services.meter.entries import EntryReader
from services.meter.gauges import BooksGauges, ConsumerGauges, Refresh
from services.meter.ledger_sink import LedgerSink
from services.meter.live import Live
from services.meter.lost_hosts import LostHosts
from services.meter.relay import Relay

if TYPE_CHECKING:
    from services.backends.clickhouse.store import RequestStore

T = TypeVar("T")

_RETRY_S: Final = 1.0


def open_bus(config: Config) -> Bus:
    """The bus of the configuration. Raises BusUnavailable."""
    if config.bus.kind == "kafka":
        from services.backends.bus.kafka import KafkaBus

        return KafkaBus(config.bus)
    from services.backends.bus.local import LocalBus

    return LocalBus(settings.under(config, config.bus.path), config.bus.partitions)


def open_database(config: Config) -> Engine:
    """The SQL database of the configuration; connects at first use."""
    return open_engine(config.database.url, settings.under(config, "."))


def entry_reader(engine: Engine, config: Config) -> EntryReader:
    """Reads messages with the accounts and price versions of the database."""
    catalog = Catalog(engine, settings.load_secret(config.data_dir))

    def has_account(account_id: str) -> bool:
        try:
            return catalog.account(account_id).id == account_id
        except NotInCatalog:
            return False

    def load_prices(version_id: str) -> PriceVersion | None:
        try:
            return catalog.price_version(version_id)
        except NotInCatalog:
            return None

    meter = config.meter
    times = TimeLimits(round(meter.future_max_s * 1e6), meter.age_max_days * 86_400_000_000)
    return EntryReader(has_account, load_prices, times)


class Meter:
    """The loops of the asked roles, by name, and what they share."""

    def __init__(self, config: Config, roles: set[str], *, live: bool = False) -> None:
        self._config = config
        self._engine = open_database(config)
        self._bus = open_bus(config)
        self._beats: list[Heartbeat] = []
        self._analytics = _SharedStore(config)
        self.loops: dict[str, Loop] = {}
        if "relay" in roles:
            self.loops["relay"] = self._relay()
        if "ledger" in roles:
            self._add_ledger(live)
        if "clickhouse" in roles:
            self._add_clickhouse()
        if "query" in roles:
            self.loops["query"] = self._query

    def require_schema(self) -> None:
        """While the database is away the relay ships all the same. Raises SchemaTooOld."""
        with contextlib.suppress(DatabaseUnavailable):
            revision.require(self._engine)

    def close(self) -> None:
        """After the loops have ended."""
        for beat in self._beats:
            beat.stop()
        self._analytics.close()
        self._bus.close()
        self._engine.dispose()

    def _beat(self, role: str) -> Callable[[], None]:
        heartbeat = Heartbeat(self._config, role)
        self._beats.append(heartbeat)
        return heartbeat.beat

    def _with_topics(self, loop: Loop) -> Loop:
        def run(stop: threading.Event) -> None:
            _wait_for(self._bus.ensure_topics, BusUnavailable, stop)
            if not stop.is_set():
                loop(stop)

        return run

    def _relay(self) -> Loop:
        config = self._config
        relay = Relay(
            settings.under(config, config.outbox.path),
            self._bus,
            SqlOutbox(self._engine),
            SystemClock(),
            config.meter,
            Budgets(self._engine),
            beat=self._beat("relay"),
            seen=Incarnations(self._engine, Budgets(self._engine)).seen,
        )
        return self._with_topics(relay.run)

    def _add_ledger(self, live: bool) -> None:
        meter = self._config.meter
        lines = None
        if live:
            accounts = Accounts(self._engine)
            lines = Live(accounts.balance)
            self.loops["live"] = lines.run
        store = LedgerStore(self._engine)

        def positions() -> dict[int, int]:
            return {p: at.next_offset for p, at in store.positions(TOPIC).items()}

        gauges = ConsumerGauges(self._bus, "ledger", positions)
        sink = LedgerSink(
            self._engine,
            entry_reader(self._engine, self._config),
            Limits(meter.dead_ratio_max, meter.dead_consecutive_max),
            live=lines,
        )
        consumer = Consumer(
            self._bus,
            sink,
            batch=meter.ledger_batch,
            wait_s=meter.ledger_wait_s,
            beat=_both(self._beat("ledger"), gauges.turned),
        )
        self.loops["ledger"] = self._with_topics(consumer.run)
        incarnations = Incarnations(self._engine, Budgets(self._engine))
        lost = LostHosts(self._bus, positions, incarnations, meter.lost_after_s)
        self.loops["ledger-lost"] = self._with_topics(lost.run)
        books = BooksGauges(self._config, Figures(self._engine))
        self.loops["ledger-gauges"] = Refresh(gauges, books).run

    def _add_clickhouse(self) -> None:
        plans = Plans(self._engine)
        gauges = ConsumerGauges(self._bus, "clickhouse", lambda: plans.positions(TOPIC))
        self.loops["clickhouse"] = lambda stop: self._clickhouse(stop, gauges)
        self.loops["clickhouse-gauges"] = lambda stop: self._clickhouse_gauges(stop, gauges)

    def _clickhouse_gauges(self, stop: threading.Event, gauges: ConsumerGauges) -> None:
        from services.meter.clickhouse_gauges import ClickHouseGauges

        store = self._analytics.wait(stop)
        if store is not None:
            Refresh(gauges, ClickHouseGauges(store, Figures(self._engine))).run(stop)

    def _clickhouse(self, stop: threading.Event, gauges: ConsumerGauges) -> None:
        from services.meter.booked import Booked
        from services.meter.clickhouse_sink import ClickHouseSink

        store = self._analytics.wait(stop)
        if store is None:
            return
        consumer = Consumer(
            self._bus,
            ClickHouseSink(store, Plans(self._engine), self._bus, Booked(self._engine)),
            batch=self._config.meter.clickhouse_batch,
            wait_s=self._config.meter.clickhouse_wait_s,
            beat=_both(self._beat("clickhouse"), gauges.turned),
        )
        self._with_topics(consumer.run)(stop)

    def _query(self, stop: threading.Event) -> None:
        from services.backends.receipt_keys import ReceiptKeys
        from services.meter.query_api import create_app
        from services.meter.query_server import QueryServer
        from services.meter.receipts import Receipts

        store = self._analytics.wait(stop)
        if store is None:
            return
        secret = settings.load_secret(self._config.data_dir)
        catalog = Catalog(self._engine, secret)

        def find_key(account_id: str, masked: str) -> str | None:
            found = (key.id for key in catalog.keys(account_id) if key.masked == masked)
            return next(found, None)

        receipts = Receipts(self._engine, self._bus, ReceiptKeys(self._config.data_dir))
        app = create_app(store, secret, SystemClock(), find_key=find_key, receipts=receipts)
        QueryServer(self._config, app).run(stop)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


class _SharedStore:
    """The analytics store, opened once by whichever role comes first; waits for a server that is
    not there yet."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._store: RequestStore | None = None

    def wait(self, stop: threading.Event) -> "RequestStore | None":
        """None when told to stop before it could be opened. Raises EngineBusy."""
        from services.backends.clickhouse.client import ClickHouseUnavailable
        from services.backends.clickhouse.store import open_store

        with self._lock:
            if self._store is None:
                self._store = _wait_for(
                    lambda: open_store(self._config), ClickHouseUnavailable, stop
                )
            return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def _wait_for(
    make: Callable[[], T], unavailable: type[Exception], stop: threading.Event
) -> T | None:
    """What `make` returns once it does not raise `unavailable`; None when told to stop."""
    while not stop.is_set():
        try:
            return make()
        except unavailable as ex:
            get_logger().warning("waiting", error=str(ex))
            stop.wait(_RETRY_S)
    return None
