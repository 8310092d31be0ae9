"""The ledger once more, from an empty one and the log, and its comparison with the living one.

Everything is read, rated and posted again by the code of the sink. Two things are not decided
again: what leases said at the time (a rebuild has none), and what people decided about single
events; both are in `dead_event`, which is kept like the log. Limits and leases are left alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec
from sqlalchemy import Connection, Engine

from schemas.events import TOPIC
from services.backends.bus.port import Bus, Message
from services.backends.sql import spare_books
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.budgets import Charge, LeaseEnd
from services.backends.sql.dead_events import REPLAYED, DeadEvent, DeadEvents
from services.backends.sql.engine import read, write
from services.backends.sql.ledger import LedgerStore
from services.meter.booking import Booking, Outcome, Refused
from services.meter.dead import Poison, Reason
from services.meter.entries import Entry, EntryReader

_BATCH: Final = 1000
_NAMED: Final = 100


class CannotRebuild(Exception):
    """The ledger holds something, the log has lost its beginning, or another posts at the same
    time: says which."""


class Rebuilt(msgspec.Struct):
    """What was done, and where the living ledger tells otherwise (the first 100)."""

    events: int = 0
    booked: int = 0
    dead: int = 0
    repeated: int = 0
    compared: int = 0
    unposted_movements: int = 0
    differences: list[str] = []

    def differ(self, subject: str, detail: str) -> None:
        if len(self.differences) < _NAMED:
            self.differences.append(f"{subject}: {detail}")


class _NoLeases:
    """Leases are no part of the ledger."""

    def settle(
        self, connection: Connection, charges: Sequence[Charge], closed: Sequence[LeaseEnd] = ()
    ) -> None:
        pass

    def finish_closing(self, connection: Connection, incarnation_ids: Sequence[str]) -> None:
        pass


def ends_of(bus: Bus, live: Engine, topic: str = TOPIC) -> dict[int, tuple[int, int]]:
    """The range of each partition to rebuild: up to where the living ledger is, or the whole log
    when there is none. Raises CannotRebuild, BusUnavailable, DatabaseUnavailable."""
    bounds = bus.bounds(topic)
    trimmed = [partition for partition, (first, _) in bounds.items() if first > 0]
    if trimmed:
        raise CannotRebuild(f"the log has lost its beginning in partitions {trimmed}")
    if spare_books.ledger_is_empty(live) or _is_part_made(live, topic):
        return bounds
    positions = LedgerStore(live).positions(topic)
    return {
        partition: (first, min(end, positions[partition].next_offset))
        for partition, (first, end) in bounds.items()
        if partition in positions
    }


def _is_part_made(engine: Engine, topic: str) -> bool:
    return read(engine, lambda connection: spare_books.is_rebuilding(connection, topic))


class LedgerRebuild:
    """`target` is a migrated database with the catalog and an empty ledger, or one that an
    interrupted rebuild began; `reader` reads with that catalog."""

    def __init__(
        self, bus: Bus, target: Engine, reader: EntryReader, *, topic: str = TOPIC
    ) -> None:
        self._bus = bus
        self._engine = target
        self._store = LedgerStore(target)
        self._decided = DeadEvents(target)
        self._booking = Booking(self._store, _NoLeases(), topic)
        self._reader = reader
        self._topic = topic
        self.result = Rebuilt()

    def run(
        self,
        ranges: dict[int, tuple[int, int]],
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> Rebuilt:
        """Goes on where an interrupted rebuild ended. Raises CannotRebuild, BusUnavailable,
        DatabaseUnavailable; then the ledger may be part-made, and no sink posts to it before a
        rebuild has ended."""
        if not spare_books.begin_rebuild(self._engine, self._topic):
            raise CannotRebuild("the ledger or its positions are not empty")
        total = sum(end - first for first, end in ranges.values())
        for partition, (first, end) in sorted(ranges.items()):
            for batch in self._batches(partition, first, end):
                self._book(partition, batch)
                tell(self.result.events, total)
        spare_books.end_rebuild(self._engine, self._topic)
        self.result.unposted_movements = spare_books.unposted_movements(self._engine)
        return self.result

    def _batches(self, partition: int, first: int, end: int) -> Iterator[list[Message]]:
        claimed = self._store.claim(self._topic, partition, for_rebuild=True)
        self._epoch, self._next = claimed.owner_epoch, claimed.next_offset
        first = max(first, self._next)
        if first < end:
            messages = self._bus.read(self._topic, partition, first, end - 1)
            while batch := list(islice(messages, _BATCH)):
                yield batch

    def _book(self, partition: int, batch: list[Message]) -> None:
        entries: list[Entry] = []

        def fn(connection: Connection) -> Outcome:
            nonlocal entries
            if not entries:
                entries = self._entries(connection, partition, batch)
            moved = self._store.advance(
                connection,
                self._topic,
                partition,
                owner_epoch=self._epoch,
                expected=self._next,
                next_offset=batch[-1].offset + 1,
                last_event_id=entries[-1].event_id,
            )
            if not moved:
                raise CannotRebuild(f"partition {partition}: another process posts to this ledger")
            return self._booking.book(connection, partition, entries)

        while True:
            try:
                outcome = write(self._engine, fn)
                break
            except Refused:  # each time at least one more entry is dead
                continue
        self._next = batch[-1].offset + 1
        self.result.events += len(batch)
        self.result.booked += len(outcome.booked)
        self.result.dead += len(outcome.dead)
        self.result.repeated += outcome.duplicates

    def _entries(self, connection: Connection, partition: int, batch: list[Message]) -> list[Entry]:
        decided = self._decided.between(
            connection, self._topic, partition, batch[0].offset, batch[-1].offset
        )
        accepted = {offset for offset, row in decided.items() if row.state == REPLAYED}
        entries = self._reader.read(
            [m._replace(timestamp_us=0) if m.offset in accepted else m for m in batch]
        )
        for entry in entries:
            row = decided.get(entry.message.offset)
            if row is not None and row.state != REPLAYED:
                entry.poison = _poison(row)
        return entries


def compare(
    rebuilt: Engine,
    live: Engine,
    ranges: dict[int, tuple[int, int]],
    result: Rebuilt,
    topic: str = TOPIC,
) -> None:
    """Holds every event's postings and settlement, and when nothing was posted meanwhile every
    balance and limit, against the living ledger. Raises DatabaseUnavailable."""
    before = LedgerStore(live).positions(topic)
    mine, theirs = BooksAudit(rebuilt), BooksAudit(live)
    for partition, (first, end) in sorted(ranges.items()):
        found = mine.taken_between(topic, partition, first, end)
        lost = theirs.taken_between(topic, partition, first, end).keys() - found.keys()
        for event_id in _not_taken(mine, sorted(lost)):
            result.differ(event_id, "only in the living ledger")
        ids = iter(found)
        while part := list(islice(ids, _BATCH)):
            requests = [each.rpartition(":")[0] for each in part]
            one, other = (audit.chunk(part, requests, []) for audit in (mine, theirs))
            result.compared += len(part)
            for event_id in part:
                _compare_event(event_id, one.postings, other.postings, result)
            for request_id in one.settlements.keys() | other.settlements.keys():
                _compare_event(request_id, one.settlements, other.settlements, result)
    if {p: end for p, (_, end) in ranges.items()} == {
        p: at.next_offset for p, at in before.items()
    }:
        one_side, other_side = spare_books.balances(rebuilt), spare_books.balances(live)
        if LedgerStore(live).positions(topic) == before:
            for account in sorted(one_side.keys() | other_side.keys()):
                _compare_event(account, one_side, other_side, result)
            # The limits are the living ones, copied; the settlements beside them are rebuilt.
            for finding in mine.limit_findings():
                result.differ(finding.subject, finding.detail)


def _not_taken(audit: BooksAudit, event_ids: list[str]) -> Iterator[str]:
    """Without those that were taken from another partition: bytes that nobody can read have one
    id wherever they lie, and the first copy that is met is the one that counts."""
    rest = iter(event_ids)
    while part := list(islice(rest, _BATCH)):
        taken = audit.taken_of(part)
        yield from (each for each in part if each not in taken)


def _compare_event(name: str, mine: object, theirs: object, result: Rebuilt) -> None:
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    if mine.get(name) != theirs.get(name):
        result.differ(name, f"{mine.get(name)} rebuilt, {theirs.get(name)} living")


def _poison(row: DeadEvent) -> Poison:
    return Poison(Reason(row.reason), row.detail)
