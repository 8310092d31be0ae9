"""A quota that is lowered while money of it is out: no new money, what is out stays the bound of
what can still be spent, and raising it again helps at once."""

import pytest
from sqlalchemy import update

from services.backends.sql.engine import write
from services.backends.sql.tables import limit_row
from services.core.errors import Refusal
from tests.contract.test_leases import USD, Desk
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import World


@pytest.fixture
def world(engine):  # noqa: F811
    return World(engine, wallet_nano=10 * USD, quota_nano=8 * USD)


def _quota(world):
    return world.limits()["key_quota"]


def test_a_quota_lowered_below_what_is_out(world):
    desk, other = Desk(world), Desk(world)
    held = desk.book.reserve(desk.key, USD)
    desk.book.settle(held, USD)
    held = desk.book.reserve(desk.key, USD)
    _, settled, leased = _quota(world)
    exposure = settled + leased
    world.catalog.update_key(world.key.id, quota_nano=USD)
    assert _quota(world)[0] == USD < exposure

    with pytest.raises(Refusal):
        other.book.reserve(other.key, 1)  # another lease gets nothing
    charged = desk.book.charge(held, 100 * USD)
    desk.book.settle(held, charged)
    with pytest.raises(Refusal):
        _spend_all(desk)
    assert _quota(world)[1] + _quota(world)[2] <= exposure
    assert desk.book.reserve(desk.key, 0).lease.spent_nano <= exposure

    world.catalog.update_key(world.key.id, quota_nano=10 * USD)
    other.clock.sleep(1)
    assert other.book.reserve(other.key, USD // 100)


def test_what_a_request_holds_when_a_quota_is_lowered_serves_no_other_one(world):
    desk = Desk(world)
    held = desk.book.reserve(desk.key, 4 * USD)
    world.catalog.update_key(world.key.id, quota_nano=USD)
    # As after a long stream: nobody waits for the money any more.
    write(world.engine, lambda c: c.execute(update(limit_row).values(recall_at=None)))
    desk.book.settle(held, 2 * USD)
    desk.book.poll()
    with pytest.raises(Refusal):
        desk.book.reserve(desk.key, 1)
    assert _quota(world)[2] == 2 * USD  # spent, not settled yet


def _spend_all(desk):
    """Until its lease has nothing left."""
    while True:
        held = desk.book.reserve(desk.key, USD // 10)
        desk.book.settle(held, USD // 10)
