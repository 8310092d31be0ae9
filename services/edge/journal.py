"""The worker's outbox as its greenlets use it: what they append in one turn of the event loop goes
into one transaction, and each of them goes on once that is durable.

PERF: under load a row costs a tenth of a transaction of its own; alone it is written alone."""

from collections.abc import Callable

from gevent import get_hub
from gevent.hub import Waiter

from schemas.events import AnyEvent
from services.backends.outbox import DiskFull, Outbox, OutboxFailed, Sealed


class _Entry:
    __slots__ = ("alone", "event", "waiter")

    def __init__(self, event: AnyEvent, alone: Callable[[AnyEvent], None]) -> None:
        self.event = event
        self.alone = alone
        self.waiter = Waiter()


class Journal:
    """Call from greenlets, never from the hub: an append waits."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
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
        entry.waiter.get()

    def _flush(self) -> None:
        """In the hub, once per turn: must not raise or wait."""
        entries, self._entries = self._entries, []
        try:
            self._outbox.append_group([entry.event for entry in entries])
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

    @staticmethod
    def _alone(entry: _Entry) -> None:
        try:
            entry.alone(entry.event)
        except (DiskFull, Sealed, OutboxFailed) as ex:
            entry.waiter.throw(ex)
        else:
            entry.waiter.switch(None)
