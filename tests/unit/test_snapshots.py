"""The worker's copy of the catalog when many greenlets want it read at once."""

from collections.abc import Callable

import gevent
import pytest

from services.backends.clock import FakeClock
from services.backends.sql.engine import DatabaseUnavailable
from services.core.addresses import networks
from services.core.catalog import Key, Snapshot
from services.core.prices import PriceBook, PriceVersion
from services.edge.snapshot import RENEWAL_S, Snapshots

FIRST_REQUESTS = 200


class Centre:
    """A catalog, and the thread that asks it; `meanwhile` runs between reading and telling."""

    def __init__(self) -> None:
        self.now = 1
        self.readings = 0
        self.questions = 0
        self.slow_s = 0.0
        self.away = False
        self.stored: dict[str, Key] = {}
        self.meanwhile: Callable[[], None] | None = None

    def version(self) -> int:
        self.questions += 1
        if self.away:
            raise DatabaseUnavailable("away")
        return self.now

    def snapshot(self, now_us: int, before: Snapshot | None = None) -> Snapshot:
        self.readings += 1
        prices = PriceVersion(
            id="pv", effective_at=0, book=PriceBook(models={}, multipliers_ppm={}, channels={})
        )
        return Snapshot(
            version=self.now,
            accounts={},
            keys=dict(self.stored),
            groups={},
            channels=(),
            prices=prices,
        )

    def add(self, digest: str) -> None:
        self.now += 1
        self.stored[digest] = Key(
            id=digest,
            secret_sha256=digest,
            account_id="a",
            name="k",
            masked="m",
            group="default",
            status="active",
        )

    def apply(self, fn, args=()):
        told = fn(*args)
        gevent.sleep(self.slow_s)
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


def test_every_first_request_of_a_new_key_finds_it():
    """However many there are, and however slow the database: they share its answer. A key that is
    made while a reading runs is in the next one."""
    centre = Centre()
    snapshots = Snapshots(centre, centre, FakeClock(), 5.0, networks([]))
    centre.slow_s = 0.05
    found = []

    def first_request(digest: str) -> None:
        snapshots.renew()
        found.append(digest in snapshots.current.snapshot.keys)

    asking = []
    for number in range(3):
        centre.add(f"key-{number}")
        asking += [gevent.spawn(first_request, f"key-{number}") for _ in range(FIRST_REQUESTS)]
        gevent.sleep(0.03)  # the reading for the key before is under way
    gevent.joinall(asking, timeout=10)
    assert found == [True] * (3 * FIRST_REQUESTS)
    assert centre.questions <= 4


def test_a_flood_of_wrong_keys_is_no_flood_of_questions():
    centre = Centre()
    snapshots = Snapshots(centre, centre, FakeClock(), 5.0, networks([]))
    rounds = 5
    for _ in range(rounds):
        flood = [gevent.spawn(snapshots.renew) for _ in range(1000)]
        assert len(gevent.joinall(flood, timeout=RENEWAL_S * 20)) == len(flood)
    assert (centre.questions, centre.readings) == (rounds, 1)  # that of the start


def test_who_waits_for_a_catalog_that_is_away_is_told_so():
    centre = Centre()
    snapshots = Snapshots(centre, centre, FakeClock(), 5.0, networks([]))
    centre.away = True
    waiting = [gevent.spawn(_away, snapshots) for _ in range(50)]
    gevent.joinall(waiting, timeout=5)
    assert [each.value for each in waiting] == ["told"] * 50
    assert centre.questions == 1
    centre.away = False
    snapshots.renew()


def _away(snapshots: Snapshots) -> str:
    with pytest.raises(DatabaseUnavailable):
        snapshots.renew()
    return "told"
