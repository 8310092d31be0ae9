"""Brings dead events to an end: booked after all, once, or dismissed.

A dead event is noted as applied and stands in the log for good, so replaying it does not touch the
log: the stored bytes are read again, and what the sink would have done with them is done in one
transaction with the change of their state. So a second replay, a replay of the log and a rebuild
all find it done. A booked terminal is sent once more, for its row of the analytics tables.
"""

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, Engine

from schemas.events import Error, Usage
from services.backends.bus.port import Message
from services.backends.sql import dead_events
from services.backends.sql.budgets import Budgets, Charge, SettleRefused
from services.backends.sql.dead_events import DEAD, DISMISSED, REPLAYED, DeadEvent, DeadEvents
from services.backends.sql.engine import database_now_us, write
from services.backends.sql.ledger import LedgerStore
from services.backends.sql.outbox import audit, send_again
from services.meter.booking import Booking, Refused
from services.meter.dead import UNREADABLE, Poison, Reason, TimeLimits, body_hash
from services.meter.entries import Entry, EntryReader

_UNCOUNTED = (Reason.UNKNOWN_LEASE, Reason.LEASE_OVERDRAWN, Reason.LATE, Reason.HASH_CONFLICT)


class StillDead(Exception):
    """The cause is not fixed: nothing was booked, the event stays as it is."""


class AlreadyClosed(Exception):
    """The event was brought to the other end before."""


class _Place(msgspec.Struct):
    """What can be told of an event that may be none."""

    kind: str = ""
    lease_id: str = ""


class DeadRepair:
    """`new_reader` makes a reader that remembers nothing: the cause may be fixed just now. Every
    method may raise NoSuchDeadEvent and DatabaseUnavailable, and may be repeated."""

    def __init__(self, engine: Engine, new_reader: Callable[[], EntryReader]) -> None:
        self._engine = engine
        self._events = DeadEvents(engine)
        self._budgets = Budgets(engine)
        self._store = LedgerStore(engine)
        self._new_reader = new_reader

    def replay(self, dead_id: int, *, actor: str = "operator") -> bool:
        """Books the stored bytes. False: they were booked by an earlier replay.

        The time of the event is not held against it again, unless it is still to come. Raises
        StillDead, AlreadyClosed."""
        reader = self._new_reader()
        entry = _read(reader, self._events.get(dead_id))

        def fn(connection: Connection) -> bool:
            row = dead_events.lock(connection, dead_id)
            if not _is_dead(row, REPLAYED):
                return False
            if row.reason == Reason.LATE:
                raise StillDead("late: it is booked as our loss already; dismiss it")
            _require_sound(connection, row, entry, reader.times)
            booking = Booking(self._store, self._budgets, row.topic)
            booking.rebook(connection, entry, counted=_counted(row))
            self._close(connection, row, REPLAYED, actor)
            if isinstance(entry.event, Usage | Error):  # its row of the analytics tables
                send_again(connection, row.event_id, row.account_id, row.body)
            return True

        try:
            return write(self._engine, fn)
        except Refused as ex:
            assert entry.poison is not None
            if entry.poison.reason is Reason.LATE:
                self._book_late(dead_id, entry, entry.poison)
            raise StillDead(str(entry.poison)) from ex

    def dismiss(self, dead_id: int, *, actor: str = "operator", note: str = "") -> bool:
        """Closes the event unbooked: nobody is charged, and its lease waits for it no longer.
        False: it was dismissed before. Raises AlreadyClosed."""

        def fn(connection: Connection) -> bool:
            row = dead_events.lock(connection, dead_id)
            if not _is_dead(row, DISMISSED):
                return False
            self._close(connection, row, DISMISSED, actor, note)
            self._release(connection, row)
            return True

        return write(self._engine, fn)

    def _book_late(self, dead_id: int, entry: Entry, poison: Poison) -> None:
        """Its lease ended meanwhile: the loss is ours, and the event is late from now on."""

        def fn(connection: Connection) -> None:
            row = dead_events.lock(connection, dead_id)
            if row.state == DEAD and row.reason != Reason.LATE:
                Booking(self._store, self._budgets, row.topic).book_late(connection, entry, poison)
                dead_events.give_reason(connection, dead_id, poison.reason, poison.detail)

        write(self._engine, fn)

    def _release(self, connection: Connection, row: DeadEvent) -> None:
        """What it kept leased. Bytes that tell no lease keep theirs until its incarnation is
        declared lost."""
        try:
            place = msgspec.json.decode(row.body, type=_Place)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        own = dead_events.applied_hash(connection, row.event_id) == body_hash(row.body)
        if not place.lease_id or not own or row.reason == Reason.LATE:
            return
        if place.kind == "lease_closed":
            self._budgets.end_leases(connection, [place.lease_id])
        elif place.kind == "usage" or (place.kind in ("request", "error") and not _counted(row)):
            try:
                self._budgets.settle(connection, [Charge(place.lease_id, 0)])
            except SettleRefused:
                pass  # the lease is over: nothing waits

    def _close(
        self, connection: Connection, row: DeadEvent, state: str, actor: str, note: str = ""
    ) -> None:
        dead_events.close(connection, row.id, state)
        detail = {"event_id": row.event_id, "reason": row.reason}
        if note:
            detail["note"] = note
        action = "dead.replay" if state == REPLAYED else "dead.dismiss"
        audit(connection, action, f"{row.topic}/{row.partition}/{row.offset}", actor, detail)


def _is_dead(row: DeadEvent, wanted: str) -> bool:
    """False: it has come to the wanted end already."""
    if row.state not in (DEAD, wanted):
        raise AlreadyClosed(f"dead event {row.id} was {row.state}")
    return row.state == DEAD


def _counted(row: DeadEvent) -> bool:
    """Whether the lease counted the event when it was set aside (see `booking`)."""
    if row.reason in _UNCOUNTED or row.detail.startswith(UNREADABLE):
        return False
    try:
        place = msgspec.json.decode(row.body, type=_Place)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return place.kind in ("request", "error")


def _read(reader: EntryReader, row: DeadEvent) -> Entry:
    message = Message(row.topic, row.partition, row.offset, row.account_id, row.body, 0)
    return reader.read([message])[0]


def _require_sound(connection: Connection, row: DeadEvent, entry: Entry, times: TimeLimits) -> None:
    if entry.poison is not None:
        raise StillDead(str(entry.poison))
    assert entry.event is not None
    ahead_us = entry.event.occurred_at - database_now_us(connection)
    if ahead_us > times.future_max_us:
        raise StillDead(f"{Reason.FUTURE_CLOCK}: still {ahead_us // 1_000_000} s ahead")
    if entry.event_id != row.event_id:
        raise StillDead(f"{row.reason}: it was taken as {row.event_id}")
    if dead_events.applied_hash(connection, entry.event_id) != entry.body_hash:
        raise StillDead(f"{Reason.HASH_CONFLICT}: other bytes were booked under its event_id")
