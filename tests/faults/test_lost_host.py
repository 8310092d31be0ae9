"""A host that does not come back: after a while (scaled here) its workers are declared lost, their
money returns, and what it sends later after all is our loss, never the customer's."""

import time

import pytest
from sqlalchemy import update

from schemas.events import TOPIC
from services.backends.settings import load
from services.backends.sql.engine import write
from services.backends.sql.incarnations import BATCH, HoldsJobs, Incarnations
from services.backends.sql.lease_records import IncarnationNotOpen
from services.backends.sql.tables import incarnation
from services.meter.lost_hosts import LostHosts
from tests.parts.books import USD
from tests.parts.plant import Plant
from tests.parts.postgres import database_url  # noqa: F401

AFTER_S = 2.0


@pytest.fixture
def plant(tmp_path, database_url):  # noqa: F811
    config = load(
        None,
        {},
        data_dir=str(tmp_path),
        database__url=database_url,
        bus__partitions=3,
        meter__lost_after_s=AFTER_S,
    )
    made = Plant(config)
    yield made
    made.close()


def state(plant, name="") -> str:
    rows = plant.books.rows(incarnation, incarnation.c.id, incarnation.c.state)
    return {row.id: row.state for row in rows}[name or plant.books.incarnation]


def wait_until(done, what):
    deadline = time.monotonic() + 40
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_host_that_does_not_come_back(plant):
    books = plant.books
    books.budgets.open_incarnation("batch", BATCH, "-")  # jobs hold their money through it
    since = update(incarnation).where(incarnation.c.id == "batch").values(seen_at=1)
    write(books.engine, lambda connection: connection.execute(since))
    account = books.account(10)
    lease = books.lease(account, 2 * USD)
    plant.write(lease.pair())
    with plant.working(("relay", "ledger")):
        wait_until(lambda: books.wallet(account) == 10 * USD - lease.spent_nano, "not booked")
        began = time.monotonic()
        while time.monotonic() - began < 2 * AFTER_S:
            assert state(plant) == "open", "its relay has the files: it is not lost"
            time.sleep(0.1)
    paid_nano = lease.spent_nano
    plant.write(lease.pair())  # stays on the host
    with plant.working(("ledger",)):
        wait_until(lambda: state(plant) == "lost", "the host never counts as lost")
    assert books.leases()[lease.lease_id][3] == "closed"
    assert books.limits()["wallet", account] == (10 * USD, paid_nano, 0)
    with pytest.raises(IncarnationNotOpen):
        books.lease(account)
    audits = [r for r in books.sql_records() if b"incarnation.lost" in r.value]
    assert len(audits) == 1
    assert state(plant, "batch") == "open"
    with pytest.raises(HoldsJobs):
        Incarnations(books.engine, books.budgets).lose("batch")
    books.check()

    with plant.working(("relay", "ledger")):  # it comes back after all
        wait_until(lambda: len(books.dead()) == 2, "what came late is not set aside")
    assert {reason for _, reason in books.dead()} == {"late"}
    assert books.wallet(account) == 10 * USD - paid_nano
    assert books.balances()["loss"] < 0
    books.check()


def test_nobody_is_judged_before_the_books_have_what_was_sent(plant):
    """A ledger that was away itself finds old workers and their events on the bus."""
    books = plant.books
    incarnations = Incarnations(books.engine, books.budgets)
    incarnations.seen([books.incarnation])
    lease = books.lease(books.account(10), 2 * USD)
    plant.write(lease.pair())
    with plant.working(("relay",)):
        wait_until(lambda: sum(end for _, end in plant.bus.bounds(TOPIC).values()) >= 2, "unsent")
    time.sleep(AFTER_S)
    positions: dict[int, int] = {}
    hosts = LostHosts(plant.bus, lambda: positions, incarnations, AFTER_S)
    for _ in range(3):
        hosts.look()
    assert state(plant) == "open"
    positions.update({p: end for p, (_, end) in plant.bus.bounds(TOPIC).items()})
    hosts.look()
    assert state(plant) == "lost"


def test_a_host_that_is_back_in_the_last_moment_is_not_lost(plant):
    books = plant.books
    incarnations = Incarnations(books.engine, books.budgets)
    incarnations.seen([books.incarnation])
    since_us = incarnations.now_us() + 1_000
    assert incarnations.unseen(since_us) == [books.incarnation]
    time.sleep(0.01)
    incarnations.seen([books.incarnation])
    lost = incarnations.lose(books.incarnation, unseen_since_us=since_us)
    assert (lost.leases, state(plant)) == (0, "open")


def test_a_worker_that_no_relay_ever_told_of_is_not_judged(plant):
    """One of an older program."""
    incarnations = Incarnations(plant.books.engine, plant.books.budgets)
    assert incarnations.unseen(incarnations.now_us() + 10**9) == []
    assert state(plant) == "open"
