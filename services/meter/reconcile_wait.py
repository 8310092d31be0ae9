"""The watermark of a reconciliation: what was there when it began, and who has not reached it."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from services.backends.bus.port import Bus
from services.backends.outbox_files import (
    IncarnationFiles,
    NotReadable,
    OutboxCorrupt,
    list_incarnations,
)
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.ledger import LedgerStore
from services.backends.sql.plans import Plans
from services.meter.relay_store import FILE

_POLL_S: Final = 0.2


class RelayState(NamedTuple):
    """How far the relay of this host is, and what it could not send: (incarnation, seq)."""

    positions: dict[str, int]
    dead: set[tuple[str, int]]


class Watermark(NamedTuple):
    """`outbox`: last seq per incarnation of this host; `movements`: last number in the SQL outbox;
    `bus`: first and end offset per partition, read once everything before was sent."""

    outbox: dict[str, int]
    movements: int
    bus: dict[int, tuple[int, int]]


class NotCaughtUp(Exception):
    """`lagging` says who is behind, and by how much."""

    def __init__(self, lagging: list[str]) -> None:
        super().__init__("; ".join(lagging))
        self.lagging = lagging


class Waiter:
    """Takes the watermark and waits for relay and sinks to pass it."""

    def __init__(
        self,
        folder: Path,
        bus: Bus,
        topic: str,
        audit: BooksAudit,
        ledger: LedgerStore,
        plans: Plans,
    ) -> None:
        self._folder = folder
        self._bus = bus
        self._topic = topic
        self._audit = audit
        self._ledger = ledger
        self._plans = plans

    def wait(self, wait_s: float) -> Watermark:
        """Raises NotCaughtUp after `wait_s`, BusUnavailable, DatabaseUnavailable."""
        deadline_s = time.monotonic() + wait_s
        outbox = {files.incarnation: _last_seq(files) for files in list_incarnations(self._folder)}
        movements = self._audit.last_movement()
        _until(lambda: self._relay_lag(outbox, movements), deadline_s)
        bounds = self._bus.bounds(self._topic)
        _until(lambda: self._sink_lag(bounds), deadline_s)
        return Watermark(outbox, movements, bounds)

    def _relay_lag(self, outbox: dict[str, int], movements: int) -> list[str]:
        lagging = []
        at = relay_state(self._folder).positions
        present = {files.incarnation for files in list_incarnations(self._folder)}
        for incarnation, last_seq in outbox.items():
            if incarnation in present and at.get(incarnation, 0) < last_seq:
                lagging.append(f"relay: {incarnation} at {at.get(incarnation, 0)} of {last_seq}")
        unshipped = self._audit.unshipped(movements)
        if unshipped:
            lagging.append(f"relay: {unshipped} events of the SQL outbox not sent")
        return lagging

    def _sink_lag(self, bounds: dict[int, tuple[int, int]]) -> list[str]:
        ledger = {p: at.next_offset for p, at in self._ledger.positions(self._topic).items()}
        clickhouse = self._plans.positions(self._topic)
        return [
            f"{name}: partition {partition} at {at.get(partition, 0)} of {end}"
            for name, at in (("ledger", ledger), ("clickhouse", clickhouse))
            for partition, (_, end) in bounds.items()
            if at.get(partition, 0) < end
        ]


def relay_state(folder: Path) -> RelayState:
    """Read beside a living relay, without a lock; empty when there was none yet."""
    path = folder / FILE
    if not path.exists():
        return RelayState({}, set())
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        positions = dict(connection.execute("SELECT incarnation, seq FROM position"))
        dead = set(connection.execute("SELECT incarnation, seq FROM dead"))
    except sqlite3.OperationalError:  # the relay is just making it
        return RelayState({}, set())
    finally:
        connection.close()
    return RelayState(positions, dead)


def _last_seq(files: IncarnationFiles) -> int:
    """0 for files that cannot be read now: the relay says so in its own log."""
    try:
        return max((files.state(number).last_seq for number in files.numbers()), default=0)
    except (NotReadable, OutboxCorrupt):
        return 0


def _until(lag: Callable[[], list[str]], deadline_s: float) -> None:
    while lagging := lag():
        if time.monotonic() >= deadline_s:
            raise NotCaughtUp(lagging)
        time.sleep(_POLL_S)
