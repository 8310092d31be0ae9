"""What the relay does with the database: ships its outbox and reaps dead incarnations.

A thread of its own with a producer of its own: a database that is away or slow must not delay the
events of the workers."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from schemas import config as schema
from services.backends.bus.port import Bus, BusUnavailable, Record
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.backends.outbox_files import list_incarnations
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.telemetry import get_logger, metric
from services.meter.reaper import Budgets, Reaper
from services.meter.relay_send import dead_row, send_all
from services.meter.relay_store import RelayStore

_REAP_S: Final = 1.0
_SEEN_S: Final = 30.0  # less than a look of `lost_hosts`: a host that slept is there in time
_SEEN_PER_LOSS: Final = 10  # a host tells so often that it is there until it counts as gone
_RETRY_S: Final = 1.0
_IDLE_S: Final = 0.2  # between two looks that find nothing; each is a query


class SqlRow(Protocol):
    id: Any
    event_id: str
    partition_key: str
    body: bytes


class SqlOutbox(Protocol):
    def unshipped(self, limit: int) -> Sequence[SqlRow]:
        """The oldest rows not marked, in order. Raises `DatabaseUnavailable`."""

    def mark_shipped(self, ids: Sequence[Any]) -> None:
        """Repeating it is harmless. Raises `DatabaseUnavailable`."""


class SqlLoop:
    """`removal` is held while a dead incarnation is read: its files must stay meanwhile. `seen`
    tells the database whose files are here; raises `DatabaseUnavailable`."""

    def __init__(
        self,
        folder: Path,
        bus: Bus,
        sql_outbox: SqlOutbox | None,
        budgets: Budgets | None,
        clock: Clock,
        settings: schema.Meter,
        removal: threading.Lock,
        seen: Callable[[Sequence[str]], None],
    ) -> None:
        self._folder = folder
        self._bus = bus
        self._sql_outbox = sql_outbox
        self._budgets = budgets
        self._clock = clock
        self._settings = settings
        self._removal = removal
        self._seen = seen
        self._seen_at_s = 0.0
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        store = RelayStore(self._folder)
        producer = self._bus.producer()
        reaper = None
        if self._budgets is not None:
            reaper = Reaper(self._folder, self._budgets, self._clock, store.carried, self._removal)
        reap_at_s = 0.0
        try:
            while not stop.is_set():
                if reaper is not None and self._clock.monotonic_s() >= reap_at_s:
                    reaper.run_once()
                    reap_at_s = self._clock.monotonic_s() + _REAP_S
                try:
                    self._tell_seen()
                    sent = self._ship(producer, store)
                except (BusUnavailable, DatabaseUnavailable) as error:
                    reason = "bus" if isinstance(error, BusUnavailable) else "database"
                    metric("tollgate_ship_errors_total").labels(f"{reason}_unavailable").inc()
                    self._log.warning("sql_outbox_postponed", error=str(error))
                    stop.wait(_RETRY_S)
                    continue
                if not sent:
                    stop.wait(_IDLE_S)
        finally:
            producer.close()
            store.close()

    def _tell_seen(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._seen_at_s:
            return
        self._seen([files.incarnation for files in list_incarnations(self._folder)])
        self._seen_at_s = now_s + min(_SEEN_S, self._settings.lost_after_s / _SEEN_PER_LOSS)

    def _ship(self, producer: Any, store: RelayStore) -> int:
        if self._sql_outbox is None:
            return 0
        rows = self._sql_outbox.unshipped(self._settings.relay_batch)
        if not rows:
            return 0
        records = [Record(row.partition_key, row.body) for row in rows]
        refused = send_all(producer, records)
        now_us = self._clock.now_us()
        store.add_dead([dead_row("sql", 0, "too_large", records[i], now_us) for i in refused])
        crash_point("relay.sql_after_send")
        self._sql_outbox.mark_shipped([row.id for row in rows])
        metric("tollgate_ship_records_total").inc(len(rows))
        return len(rows)
