"""The worker's copy of the catalog when two greenlets read it at once."""

from collections.abc import Callable

from services.backends.clock import FakeClock
from services.core.addresses import networks
from services.core.catalog import Key, Snapshot
from services.core.prices import PriceBook, PriceVersion
from services.edge.snapshot import LOOKUPS_MAX, UNKNOWN_KEY_S, Snapshots


class Centre:
    """A catalog, and the thread that asks it; `meanwhile` runs between reading and telling."""

    def __init__(self) -> None:
        self.now = 1
        self.readings = 0
        self.lookups = 0
        self.stored: dict[str, Key] = {}
        self.meanwhile: Callable[[], None] | None = None

    def version(self) -> int:
        return self.now

    def key_by_sha256(self, digest: str) -> Key | None:
        self.lookups += 1
        return self.stored.get(digest)

    def snapshot(self, now_us: int, before: Snapshot | None = None) -> Snapshot:
        self.readings += 1
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


def test_a_key_that_died_long_ago_does_not_have_the_catalog_read_again():
    """The centre still has it, but no reading of the catalog holds it."""
    centre, clock = Centre(), FakeClock()
    names = {"id": "key_1", "account_id": "a", "name": "k", "masked": "m", "group": "default"}
    for status in ("revoked", "active"):  # active, but expired
        centre.stored[status] = Key(secret_sha256=status, status=status, **names)
    snapshots = Snapshots(centre, centre, clock, 5.0, networks([]))
    for _ in range(10):
        snapshots.missing("revoked")
    assert (centre.readings, centre.lookups) == (1, 1)
    for _ in range(10):
        snapshots.missing("active")
    assert (centre.readings, centre.lookups) == (1, 2)
    centre.now = 2  # one of them was made a moment ago, and maybe revoked since
    clock.sleep(UNKNOWN_KEY_S)
    snapshots.missing("revoked")
    assert (centre.readings, snapshots.current.version) == (2, 2)


def test_a_flood_of_wrong_keys_is_no_flood_of_questions():
    centre, clock = Centre(), FakeClock()
    snapshots = Snapshots(centre, centre, clock, 5.0, networks([]))
    for number in range(1000):
        snapshots.missing(f"wrong-{number}")
    assert centre.lookups == LOOKUPS_MAX
    clock.sleep(UNKNOWN_KEY_S)
    snapshots.missing("another")
    assert centre.lookups == LOOKUPS_MAX + 1
