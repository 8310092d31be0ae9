"""What the batch service knows of the catalog: accounts, keys, media channels, prices."""

import threading
from collections import OrderedDict
from typing import Final

from services.backends.clock import Clock
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import DatabaseUnavailable
from services.core.catalog import Channel, Snapshot
from services.core.prices import PriceBook
from services.core.routing import ModelIndex

_LOOK_S: Final = 0.25
_BOOKS: Final = 64


class View:
    """One reading of the catalog."""

    def __init__(self, snapshot: Snapshot, index: ModelIndex) -> None:
        self.snapshot = snapshot
        self.index = index
        self.keys = snapshot.keys_by_id

    def channel(self, name: str) -> Channel | None:
        """The media channel of that name."""
        found = (each for each in self.snapshot.channels if each.name == name and each.provider)
        return next(found, None)

    def serving(self, group: str, priced_as: str) -> list[Channel]:
        """The media channels that may make `priced_as` for the group, best first."""
        fitting = [
            each
            for each in self.snapshot.channels
            if each.provider and priced_as in each.models and group in each.groups
        ]
        return sorted(fitting, key=lambda each: (-each.priority, each.name))


class Views:
    """Read again when the catalog's version has changed, looked at four times a second. While the
    database is away the last reading stands. Safe in threads."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._looked_s = 0.0
        self._books: OrderedDict[str, PriceBook] = OrderedDict()

    def view(self, *, now: bool = False) -> View:
        """Raises DatabaseUnavailable when there was no reading yet. `now`: looks at once."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._view is None or now or now_s - self._looked_s >= _LOOK_S:
                self._look()
                self._looked_s = now_s
            assert self._view is not None
            return self._view

    def _look(self) -> None:
        try:
            before = self._view
            if before is None:
                found = self._catalog.snapshot(self._clock.now_us())
                self._view = View(found, ModelIndex(found.prices.book))
            elif self._catalog.version() != before.snapshot.version:
                found = self._catalog.snapshot(self._clock.now_us(), before.snapshot)
                same = found.prices is before.snapshot.prices
                self._view = View(found, before.index if same else ModelIndex(found.prices.book))
        except DatabaseUnavailable:
            if self._view is None:
                raise

    def book(self, version_id: str) -> PriceBook:
        """The price book of a job. Raises DatabaseUnavailable."""
        with self._lock:
            found = self._books.get(version_id)
        if found is None:
            found = self._catalog.price_version(version_id).book
            with self._lock:
                self._books[version_id] = found
                if len(self._books) > _BOOKS:
                    self._books.popitem(last=False)
        return found
