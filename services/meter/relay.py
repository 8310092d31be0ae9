"""Outbox -> bus: ships every event of this host, in seq order per incarnation, at least once.

One position per incarnation, written after the bus has the rows: a crash in between sends them
again, and readers drop repeats by event id. While the bus is away nothing is read, so memory stays
at one batch and the files grow. The relay only reads outbox files, removes the ones that are
finished and shipped, and reaps dead incarnations.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from schemas import config as schema
from services.backends.bus.port import Bus, BusUnavailable, Record
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.backends.outbox_files import (
    NotReadable,
    OutboxCorrupt,
    Row,
    list_incarnations,
    remove_orphans,
)
from services.backends.telemetry import get_logger, metric
from services.meter.reaper import Budgets
from services.meter.relay_figures import RelayFigures
from services.meter.relay_send import damaged_row, dead_row, send_all
from services.meter.relay_source import Source, position_of
from services.meter.relay_sql import SqlLoop, SqlOutbox
from services.meter.relay_store import BALLAST_BYTES, RelayStore, StoreFull

GUARD: Final = "relay.guard"
_BATCH_BYTES: Final = 4 * 1024 * 1024
_CLEAN_S: Final = 1.0
_RETRY_S: Final = 15.0
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 2.0


class AnotherRelay(Exception):
    """A living relay has this folder: exit."""


class Relay:
    """The role `relay`. With `budgets` it also reaps; `seen` tells the centre whose files are
    here."""

    def __init__(
        self,
        folder: Path,
        bus: Bus,
        sql_outbox: SqlOutbox | None,
        clock: Clock,
        settings: schema.Meter,
        budgets: Budgets | None = None,
        beat: Callable[[], None] = lambda: None,
        seen: Callable[[Sequence[str]], None] = lambda incarnations: None,
    ) -> None:
        self._folder = folder
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._beat = beat
        self._removal = threading.Lock()
        self._sql = SqlLoop(folder, bus, sql_outbox, budgets, clock, settings, self._removal, seen)
        self._escaped: BaseException | None = None
        self._sources: dict[str, Source] = {}
        self._retry_at_s: dict[str, float] = {}
        self._figures = RelayFigures(folder, clock)
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        """Ships until `stop`. Raises `AnotherRelay`, `Halt`."""
        guard = self._take_guard()
        self._store = RelayStore(self._folder, BALLAST_BYTES)
        self._producer = self._bus.producer()
        side_stop = threading.Event()
        side = threading.Thread(target=self._run_side, args=(side_stop,), name="relay-sql")
        side.start()
        self._log.info("relay_started", folder=str(self._folder))
        try:
            self._loop(stop)
        finally:
            side_stop.set()
            side.join()
            self._producer.close()
            self._store.close()
            os.close(guard)
        if self._escaped is not None:
            raise self._escaped

    def _run_side(self, stop: threading.Event) -> None:
        try:
            self._sql.run(stop)
        except BaseException as error:
            self._escaped = error

    def _take_guard(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._folder / GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AnotherRelay(f"another relay ships {self._folder}") from None
        return fd

    def _loop(self, stop: threading.Event) -> None:
        failures = 0
        clean_at_s = 0.0
        while not stop.is_set() and self._escaped is None:
            self._beat()
            if self._clock.monotonic_s() >= clean_at_s:
                self._find_sources()
                self._clean()
                clean_at_s = self._clock.monotonic_s() + _CLEAN_S
            try:
                sent = self._round(stop)
                failures = 0
            except (BusUnavailable, StoreFull) as error:
                failures += 1
                what = "bus_unavailable" if isinstance(error, BusUnavailable) else "store_full"
                metric("tollgate_ship_errors_total").labels(what).inc()
                self._figures.turn()
                self._log.warning(what, failures=failures, error=str(error))
                stop.wait(min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(failures, 10)))
                continue
            self._figures.turn()
            if sent < self._settings.relay_batch:  # what comes meanwhile goes together
                stop.wait(self._settings.relay_poll_s)

    # -- what there is -----------------------------------------------------------------------

    def _find_sources(self) -> None:
        found = list_incarnations(self._folder)
        names = {files.incarnation for files in found}
        self._sources = {name: each for name, each in self._sources.items() if name in names}
        for files in found:
            name = files.incarnation
            if name in self._sources or self._waits(name):
                continue
            try:
                self._sources[name] = Source(files, self._store)
            except (OutboxCorrupt, NotReadable) as error:
                self._postpone(name, error)

    def _waits(self, name: str) -> bool:
        return self._retry_at_s.get(name, 0.0) > self._clock.monotonic_s()

    def _postpone(self, name: str, error: Exception) -> None:
        """One unreadable incarnation must not stop the others."""
        if isinstance(error, NotReadable):
            self._log.info("outbox_not_readable", incarnation=name, error=str(error))
            return
        self._retry_at_s[name] = self._clock.monotonic_s() + _RETRY_S
        metric("tollgate_outbox_corrupt_total").labels("file").inc()
        self._log.critical("outbox_corrupt", incarnation=name, error=str(error))

    # -- shipping ----------------------------------------------------------------------------

    def _round(self, stop: threading.Event) -> int:
        """One batch of every source in turn, so that a long backlog of one delays no other."""
        sent = 0
        for name, source in list(self._sources.items()):
            if stop.is_set() or self._waits(name):
                continue
            try:
                rows = source.read(self._settings.relay_batch, _BATCH_BYTES)
            except (OutboxCorrupt, NotReadable) as error:
                self._postpone(name, error)
                continue
            self._figures.read(name, rows)
            if rows:
                self._ship(source, rows)
                sent += len(rows)
        return sent

    def _ship(self, source: Source, rows: list[Row]) -> None:
        name = source.name
        gap = rows[-1].seq - source.position.seq - len(rows)
        if gap:
            metric("tollgate_outbox_seq_gap_total").inc(gap)
            self._log.critical("outbox_gap", incarnation=name, missing=gap, upto=rows[-1].seq)
        damaged = [row for row in rows if not row.intact]
        records = [Record(row.partition_key, row.body) for row in rows if row.intact]
        now_us = self._clock.now_us()
        dead = [damaged_row(name, row, now_us) for row in damaged]
        if damaged:
            metric("tollgate_outbox_corrupt_total").labels("row").inc(len(damaged))
            self._log.critical(
                "outbox_rows_damaged", incarnation=name, seqs=[r.seq for r in damaged]
            )
        seqs = [row.seq for row in rows if row.intact]
        self._figures.sending(name, rows)
        for index in send_all(self._producer, records):
            dead.append(dead_row(name, seqs[index], "too_large", records[index], now_us))
        crash_point("relay.after_send")
        position = position_of(rows[-1])
        self._store.advance(name, position, dead)
        crash_point("relay.after_mark")
        source.advance(position, rows)
        self._figures.acknowledged(name, len(rows))

    # -- what is done ------------------------------------------------------------------------

    def _clean(self) -> None:
        if not self._removal.acquire(blocking=False):
            return  # the reaper reads; the next time will do
        try:
            self._store.keep_ballast()
            remove_orphans(self._folder)
            for name, source in list(self._sources.items()):
                if not self._waits(name):
                    self._remove_shipped(name, source)
        finally:
            self._removal.release()
        unreadable = [name for name in self._retry_at_s if self._waits(name)]
        self._figures.look(self._sources, unreadable, self._store.dead_counts())

    def _remove_shipped(self, name: str, source: Source) -> None:
        try:
            if source.remove_shipped(self._store):
                del self._sources[name]
        except (OutboxCorrupt, NotReadable) as error:
            self._postpone(name, error)
        except StoreFull as error:
            self._log.warning("store_full", error=str(error))
