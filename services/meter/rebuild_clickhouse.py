"""The analytics tables once more, from the log, while readers and the sink go on.

A second pair of tables is filled up to where the ledger is in the log. Then, for the milliseconds
in which the sink is kept from planning, the newest rows are copied over and the pairs are
exchanged: a reader finds every row before and after. What the sink has inserted since the fill
ended is filled from the log as well, for the old pair may have been wrong; rows that come twice
meet under one sort key.
"""

from itertools import islice
from typing import Final

import msgspec

from schemas.events import TOPIC
from services.backends.bus.port import Bus
from services.backends.clickhouse.next_tables import NextTables
from services.backends.clickhouse.store import RangeTotals, RequestStore
from services.backends.sql.plans import Plans
from services.core.ids import uuid7_hex
from services.meter.booked import Booked, terminals

_BATCH: Final = 5_000
_CLOSE_EVENTS: Final = 10_000  # so few rows are copied in milliseconds
_ROUNDS: Final = 50
_OPEN_PLAN_S: Final = 15.0


class Totals(msgspec.Struct):
    """Of all partitions up to the same offsets."""

    rows: int = 0
    cost_nano: int = 0
    written_off_nano: int = 0
    provider_cost_nano: int = 0
    ids_hash: int = 0

    def add(self, of: RangeTotals) -> None:
        self.rows += of.rows
        self.cost_nano += of.cost_nano
        self.written_off_nano += of.written_off_nano
        self.provider_cost_nano += of.provider_cost_nano
        self.ids_hash ^= of.ids_hash


class Rebuilt(msgspec.Struct):
    """`before` and `after` are equal unless the old tables were wrong."""

    events: int
    before: Totals
    after: Totals


class ClickHouseRebuild:
    """Raises ClickHouseUnavailable, QueryRefused, BusUnavailable, DatabaseUnavailable: nothing
    was exchanged then, unless `exchanged`; run it again."""

    def __init__(
        self, store: RequestStore, plans: Plans, bus: Bus, booked: Booked, *, topic: str = TOPIC
    ) -> None:
        self._store = store
        self._run_id = uuid7_hex()  # old tokens name other tables' blocks
        self._next = NextTables(store.clickhouse, self._run_id)
        self._plans = plans
        self._bus = bus
        self._booked = booked
        self._topic = topic
        self._filled: dict[int, int] = {}
        self.events = 0
        self.exchanged = False

    def run(self) -> Rebuilt:
        self._next.make()
        for partition, (first, _) in self._bus.bounds(self._topic).items():
            self._next.keep_before(self._topic, partition, first)
            self._filled[partition] = first
        for _ in range(_ROUNDS):
            if self._fill_to_the_end() <= _CLOSE_EVENTS:
                break
        compared = {
            p: min(end, self._plans.positions(self._topic).get(p, 0))
            for p, end in self._filled.items()
        }
        self._plans.hold(self._topic, self._exchange, _OPEN_PLAN_S)
        for partition, end in self._plans.reached(self._topic).items():
            self._fill(self._store, partition, end)
        old, new = Totals(), Totals()
        for partition, end in compared.items():
            old.add(self._next.store.totals(self._topic, partition, end))
            new.add(self._store.totals(self._topic, partition, end))
        self._next.drop()
        return Rebuilt(self.events, old, new)

    def _exchange(self) -> None:
        for partition, end in self._plans.reached(self._topic).items():
            self._next.keep_between(self._topic, partition, self._filled.get(partition, 0), end)
        self._next.exchange()
        self.exchanged = True

    def _fill_to_the_end(self) -> int:
        """How many events of the log were read."""
        before = self.events
        for partition, (_, end) in self._bus.bounds(self._topic).items():
            self._fill(self._next.store, partition, min(end, self._booked.reached(partition)))
        return self.events - before

    def _fill(self, into: RequestStore, partition: int, end: int) -> None:
        first = self._filled.get(partition, 0)
        if first >= end:
            return
        messages = self._bus.read(self._topic, partition, first, end - 1)
        while batch := list(islice(messages, _BATCH)):
            fates = self._booked.fates(partition, batch)
            rows = [each.row for each in terminals(batch, fates)]
            # The sink may have put its own row of this very range there: it counts for nothing,
            # for its attempts may lie in the old table.
            stored = into.stored_event_ids(rows, below=batch[0].offset)
            rows = [row for row in rows if row.event.event_id not in stored]
            name = f"{self._run_id}:{partition}:{batch[0].offset}-{batch[-1].offset}"
            into.insert(self._topic, partition, rows, name)
            self.events += len(batch)
            self._filled[partition] = batch[-1].offset + 1
