"""The worker's outbox as its greenlets use it: what they append in one turn of the event loop goes
into one transaction, and each of them goes on once that is durable.

PERF: under load a row costs a tenth of a transaction of its own; alone it is written alone."""

import time
from collections.abc import Callable
from typing import Final

from gevent import get_hub
from gevent.hub import Waiter

from schemas.events import AnyEvent
from services.backends.outbox import DiskFull, Outbox, OutboxFailed, Sealed
from services.edge.counters import Counters

MEASURED: Final = 64  # one transaction of so many is measured


class _Entry:
    __slots__ = ("alone", "event", "waiter")

    def __init__(self, event: AnyEvent, alone: Callable[[AnyEvent], None]) -> None:
        self.event = event
        self.alone = alone
        self.waiter = Waiter()


class Journal:
    """Call from greenlets, never from the hub: an append waits."""

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        self._outbox = outbox
        self._counters = counters
        self._flushes = 0
        self._entries: list[_Entry] = []
        self._loop = get_hub().loop

    def append(self, event: AnyEvent) -> None:
        """As `Outbox.append`."""
        self._outbox.require_space()
        self._wait(_Entry(event, self._outbox.append))

    def append_last(self, event: AnyEvent) -> None:
        """As `Outbox.append_last`."""
        self._wait(_Entry(event, self._outbox.append_last))

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
            self._append([entry.event for entry in entries])
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

    def _append(self, events: list[AnyEvent]) -> None:
        self._flushes += 1
        if self._flushes % MEASURED != 1:
            self._outbox.append_group(events)
            return
        started_s = time.perf_counter()
        self._outbox.append_group(events)
        self._counters.observe("tollgate_outbox_append_seconds", time.perf_counter() - started_s)

    @staticmethod
    def _alone(entry: _Entry) -> None:
        try:
            entry.alone(entry.event)
        except (DiskFull, Sealed, OutboxFailed) as ex:
            entry.waiter.throw(ex)
        else:
            entry.waiter.switch(None)
