"""The worker's copy of the catalog when two greenlets read it at once."""

from collections.abc import Callable

from services.backends.clock import FakeClock
from services.core.addresses import networks
from services.core.catalog import Snapshot
from services.core.prices import PriceBook, PriceVersion
from services.edge.snapshot import Snapshots


class Centre:
    """A catalog, and the thread that asks it; `meanwhile` runs between reading and telling."""

    def __init__(self) -> None:
        self.now = 1
        self.meanwhile: Callable[[], None] | None = None

    def version(self) -> int:
        return self.now

    def snapshot(self, now_us: int, before: Snapshot | None = None) -> Snapshot:
        prices = PriceVersion(
            id="pv", effective_at=0, book=PriceBook(models={}, multipliers_ppm={}, channels={})
        )
        return Snapshot(
            version=self.now, accounts={}, keys={}, groups={}, channels=(), prices=prices
        )

    def apply(self, fn, args=()):
        told = fn(*args)
        step, self.meanwhile = self.meanwhile, None
        if fn == self.snapshot and step is not None:
            step()
        else:
            self.meanwhile = step
        return told


def test_an_earlier_reading_never_replaces_a_later_one():
    centre = Centre()
    snapshots = Snapshots(centre, centre, FakeClock(), 5.0, networks([]))

    def a_later_reading():
        centre.now = 3
        snapshots.poll()
        assert snapshots.current.version == 3

    centre.now = 2
    centre.meanwhile = a_later_reading
    snapshots.poll()
    assert snapshots.current.version == 3
    centre.now = 2  # a database that was restored counts all the same
    snapshots.poll()
    assert snapshots.current.version == 2
