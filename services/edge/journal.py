"""The worker's outbox as its greenlets use it: what they append in one turn of the event loop goes
into one transaction, and each of them goes on once that is durable.

PERF: under load a row costs a tenth of a transaction of its own. Where nobody else is in flight
nobody can join, and the event is written at once: the turn of the loop costs more than the row."""

import time
from collections.abc import Callable, Sized
from typing import Final, TypeVar

from gevent import get_hub
from gevent.hub import Waiter

from schemas.events import AnyEvent
from services.backends.outbox import DiskFull, Outbox, OutboxFailed, Sealed
from services.edge.counters import Counters

T = TypeVar("T")

MEASURED: Final = 64  # one transaction of so many is measured


class _Entry:
    __slots__ = ("alone", "event", "waiter")

    def __init__(self, event: AnyEvent, alone: Callable[[AnyEvent], None]) -> None:
        self.event = event
        self.alone = alone
        self.waiter = Waiter()


class Journal:
    """Call from greenlets, never from the hub: an append waits. `in_flight`: the requests that this
    worker answers now."""

    def __init__(self, outbox: Outbox, counters: Counters, in_flight: Sized) -> None:
        self._outbox = outbox
        self._in_flight = in_flight
        self._counters = counters
        self._flushes = 0
        self._entries: list[_Entry] = []
        self._loop = get_hub().loop

    def append(self, event: AnyEvent) -> None:
        """As `Outbox.append`."""
        if self._is_alone():
            self._timed(self._outbox.append, event)
            return
        self._outbox.require_space()
        self._wait(_Entry(event, self._outbox.append))

    def append_last(self, event: AnyEvent) -> None:
        """As `Outbox.append_last`."""
        if self._is_alone():
            self._timed(self._outbox.append_last, event)
            return
        self._wait(_Entry(event, self._outbox.append_last))

    def _is_alone(self) -> bool:
        return len(self._in_flight) < 2 and not self._entries

    def _wait(self, entry: _Entry) -> None:
        if not self._entries:
            self._loop.run_callback(self._flush)
        self._entries.append(entry)
        try:
            entry.waiter.get()
        except BaseException:
            # Killed before it was written: nobody would know of the event, so it must not be.
            if entry in self._entries:
                self._entries.remove(entry)
            raise

    def _flush(self) -> None:
        """In the hub, once per turn: must not raise or wait."""
        entries, self._entries = self._entries, []
        if not entries:
            return
        try:
            self._timed(self._outbox.append_group, [entry.event for entry in entries])
        except DiskFull:
            for entry in entries:  # each as it may: the last ones have the ballast
                self._alone(entry)
            return
        except (Sealed, OutboxFailed) as ex:
            for entry in entries:
                entry.waiter.throw(ex)
            return
        for entry in entries:
            entry.waiter.switch(None)

    def _timed(self, write: Callable[[T], None], what: T) -> None:
        self._flushes += 1
        if self._flushes % MEASURED != 1:
            write(what)
            return
        started_s = time.perf_counter()
        write(what)
        self._counters.observe("tollgate_outbox_append_seconds", time.perf_counter() - started_s)

    @staticmethod
    def _alone(entry: _Entry) -> None:
        try:
            entry.alone(entry.event)
        except (DiskFull, Sealed, OutboxFailed) as ex:
            entry.waiter.throw(ex)
        else:
            entry.waiter.switch(None)
