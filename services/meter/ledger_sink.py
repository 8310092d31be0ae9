"""Log -> books: the only code that posts.

One transaction per batch of a partition: the position moves (only for its owner, only from where
it stood), every event is noted as applied, terminals settle their request once, postings that sum
to zero, poison set aside, then leases and limits. Committed whole or not at all, so an event seen
again - resent, replayed, read by two owners - finds itself applied and does nothing.
"""

import time
from collections import Counter

from sqlalchemy import Connection, Engine, exc

from schemas.events import TOPIC, Error, Usage, WalletMovement
from services.backends.bus.port import Message
from services.backends.lifecycle import crash_point
from services.backends.observations import Observations
from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import DatabaseUnavailable, write
from services.backends.sql.ledger import LedgerStore, RebuildUnfinished
from services.backends.telemetry import get_logger, metric
from services.meter.booking import Booking, Outcome, Refused
from services.meter.consumer import Halt, NotOwner, Position, TryLater
from services.meter.dead import Limits, Poison, Reason
from services.meter.entries import Entry, EntryReader
from services.meter.live import Live


class _Owned:
    """What this owner knows of a partition. `sure` False: a commit's answer was lost."""

    def __init__(self, epoch: int, next_offset: int) -> None:
        self.epoch = epoch
        self.next_offset = next_offset
        self.sure = True


class _Moved(Exception):
    """The position is not ours, or not where we left it."""


class LedgerSink:
    """A `Sink` of the consumer; one instance per consumer, used by one thread."""

    group = "ledger"

    def __init__(
        self,
        engine: Engine,
        reader: EntryReader,
        limits: Limits,
        *,
        topic: str = TOPIC,
        live: Live | None = None,
    ) -> None:
        self._engine = engine
        self._store = LedgerStore(engine)
        self._booking = Booking(self._store, Budgets(engine), topic)
        self._reader = reader
        self._limits = limits
        self._topic = topic
        self._live = live
        self._owned: dict[int, _Owned] = {}
        self._log = get_logger().bind(sink=self.group)

    def claim(self, partition: int) -> Position:
        """Fences every earlier owner."""
        try:
            at = self._store.claim(self._topic, partition)
        except DatabaseUnavailable as ex:
            raise TryLater(str(ex)) from ex
        except RebuildUnfinished as ex:
            raise Halt(str(ex)) from ex
        self._owned[partition] = _Owned(at.owner_epoch, at.next_offset)
        return Position(at.next_offset, at.last_event_id)

    def release(self, partition: int) -> None:
        self._owned.pop(partition, None)

    def handle(self, partition: int, messages: list[Message]) -> None:
        owned = self._owned.get(partition)
        if owned is None:
            raise NotOwner(f"partition {partition} was never claimed")
        try:
            if not owned.sure:
                self._ask_position(partition, owned)
            started_s = time.monotonic()
            entries = self._reader.read([m for m in messages if m.offset >= owned.next_offset])
            self._stage("read", started_s)
            crash_point("ledger.read")
            self._book(partition, owned, entries)
        except (DatabaseUnavailable, _Moved) as ex:
            owned.sure = False  # a commit may have taken effect though its answer was lost
            raise TryLater(str(ex)) from ex

    def _ask_position(self, partition: int, owned: _Owned) -> None:
        """Learns where the books are. Raises NotOwner, DatabaseUnavailable."""
        at = self._store.positions(self._topic)[partition]
        if at.owner_epoch != owned.epoch:
            raise NotOwner(f"epoch {owned.epoch} is over, {at.owner_epoch} began")
        owned.next_offset, owned.sure = at.next_offset, True

    def _book(self, partition: int, owned: _Owned, entries: list[Entry]) -> None:
        """All entries in one transaction, unless the database itself refuses one of them."""
        if not entries:
            return
        started_s = time.monotonic()
        try:
            outcome = self._write(partition, owned, entries)
        except (exc.DataError, exc.IntegrityError, OverflowError) as ex:
            if len(entries) == 1:
                if entries[0].poison is not None:
                    raise
                entries[0].poison = Poison(Reason.OUT_OF_RANGE, str(getattr(ex, "orig", ex)))
            half = len(entries) // 2  # 0 for a single one, which is dead now
            self._book(partition, owned, entries[:half])
            self._book(partition, owned, entries[half:])
            return
        crash_point("ledger.committed")
        owned.next_offset = entries[-1].message.offset + 1
        self._stage("book", started_s)
        self._tell(outcome)

    def _stage(self, stage: str, started_s: float) -> None:
        seconds = time.monotonic() - started_s
        metric("tollgate_batch_seconds").labels(self.group, stage).observe(seconds)

    def _write(self, partition: int, owned: _Owned, entries: list[Entry]) -> Outcome:
        while True:
            try:
                return write(
                    self._engine,
                    lambda connection: self._transaction(connection, partition, owned, entries),
                )
            except Refused:  # each time at least one more entry is dead
                continue

    def _transaction(
        self, connection: Connection, partition: int, owned: _Owned, entries: list[Entry]
    ) -> Outcome:
        """Changes nothing but the database: it may run more than once."""
        crash_point("ledger.begun")
        moved = self._store.advance(
            connection,
            self._topic,
            partition,
            owner_epoch=owned.epoch,
            expected=owned.next_offset,
            next_offset=entries[-1].message.offset + 1,
            last_event_id=entries[-1].event_id,
        )
        if not moved:
            raise _Moved(f"partition {partition}: not at {owned.next_offset} or not ours")
        crash_point("ledger.advanced")
        outcome = self._booking.book(connection, partition, entries)
        why = self._limits.passed(outcome.fates)
        if why:
            raise Halt(
                f"ledger: {self._topic}/{partition} at offset {owned.next_offset}: {why} (now "
                f"{outcome.dead[-1][1]}); this batch was not booked. Find the cause; to book past "
                "it raise meter.dead_ratio_max and meter.dead_consecutive_max"
            )
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        self._limits.add(outcome.fates)
        self._count(outcome)
        for entry, poison in outcome.dead:
            self._log.error(
                "dead_event",
                event_id=entry.event_id,
                reason=poison.reason.value,
                detail=poison.detail,
                partition=entry.message.partition,
                offset=entry.message.offset,
            )
        if self._live is not None:
            self._live.show([e.event for e in outcome.booked if isinstance(e.event, Usage | Error)])

    @staticmethod
    def _count(outcome: Outcome) -> None:
        kinds: Counter[str] = Counter()
        latencies = Observations("tollgate_posting_latency_seconds")
        now_us = time.time() * 1e6
        for entry in outcome.booked:
            kinds[entry.kind] += 1
            if isinstance(entry.event, Usage | Error | WalletMovement):
                latencies.add(max(0.0, (now_us - entry.event.occurred_at) / 1e6))
        for kind, count in kinds.items():
            metric("tollgate_ledger_applied_total").labels(kind).inc(count)
        latencies.write()
        seen = metric("tollgate_ledger_duplicate_total")
        if outcome.duplicates > outcome.dead_again:
            seen.labels("applied").inc(outcome.duplicates - outcome.dead_again)
        if outcome.dead_again:
            seen.labels("dead").inc(outcome.dead_again)
        conflicts = sum(poison.reason is Reason.HASH_CONFLICT for _, poison in outcome.dead)
        metric("tollgate_ledger_conflict_total").inc(conflicts)
