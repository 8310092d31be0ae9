"""Spend windows, sub-keys and members' limits on both engines: grants, settlement, clocks."""

import threading
import time

import pytest
from sqlalchemy import select, update

from services.backends.clock import FakeClock
from services.backends.sql.budgets import Budgets, Charge, ClockOff, KeyNotActive, Shortfall
from services.backends.sql.engine import database_now_us, read, write
from services.backends.sql.tables import lease, limit_row
from services.core.budgets import WINDOWS_US
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World, guard_limits

S = 1_000_000


@pytest.fixture
def world(engine):  # noqa: F811
    made = World(engine, wallet_nano=1_000, window_5h_nano=100, window_7d_nano=250)
    guard_limits(engine)
    yield made
    made.check()


def now(world):
    return read(world.engine, database_now_us)


def limits(world, subject):
    query = select(limit_row).where(limit_row.c.subject == subject)
    rows = read(world.engine, lambda c: c.execute(query).all())
    return {row.kind: row for row in rows}


def shorten(world, window_us):
    """The five hours of every such window pass in `window_us`."""
    change = update(limit_row).where(limit_row.c.kind == "window_5h").values(window_us=window_us)
    write(world.engine, lambda c: c.execute(change))


def failing(world, *args, **kwargs):
    with pytest.raises(Shortfall) as caught:
        world.grant(*args, **kwargs)
    return {each.kind: each for each in caught.value.failing}


def test_a_window_is_a_limit_like_any_other(world):
    world.grant("lease_1", 1, 100)
    short = failing(world, "lease_2", 1, 1)
    assert set(short) == {"window_5h"}
    assert (short["window_5h"].missing_nano, short["window_5h"].only_leased) == (1, True)
    world.settle([Charge("lease_1", 60, occurred_at=now(world))])
    assert world.budgets.give_back("lease_1", 40, 1)
    assert world.grant("lease_2", 1, 40).amount_nano == 40
    short = failing(world, "lease_2", 2, 50)["window_5h"]
    assert (short.settled_nano, short.leased_nano, short.only_leased) == (60, 40, False)
    assert short.fits_at > now(world) + WINDOWS_US["window_5h"] - S


def test_every_window_that_fails_is_named(world):
    assert set(failing(world, "lease_1", 1, 300)) == {"window_5h", "window_7d"}


def test_what_left_the_window_may_be_spent_again(world):
    world.grant("lease_1", 1, 100)
    long_ago = now(world) - WINDOWS_US["window_5h"] - 3_600 * S
    age_lease(world, long_ago)
    world.settle([Charge("lease_1", 30, occurred_at=long_ago), Charge("lease_1", 70)])
    rows = limits(world, world.key.id)
    assert {kind: row.settled_nano for kind, row in rows.items()} == {
        "key_quota": 100,
        "window_5h": 100,
        "window_7d": 100,
    }
    states = {s.kind: s for s in world.budgets.sync(INCARNATION, []).limits.values()}
    assert states["window_5h"].settled_nano == 70  # of the seven days' window still 100
    assert states["window_7d"].settled_nano == 100
    assert world.grant("lease_1", 2, 30).amount_nano == 30
    failing(world, "lease_1", 3, 1)


def age_lease(world, opened_at):
    write(world.engine, lambda c: c.execute(update(lease).values(opened_at=opened_at)))


def test_spend_never_counts_before_its_lease_nor_in_the_future(world):
    world.grant("lease_1", 1, 100)
    granted = now(world)
    world.settle([Charge("lease_1", 10, occurred_at=1), Charge("lease_1", 5, occurred_at=2**60)])
    state = next(s for s in world.budgets.sync(INCARNATION, []).limits.values() if s.returns)
    assert sum(nano for _, nano in state.returns) == 15
    for at, _ in state.returns:
        assert abs(at - granted - WINDOWS_US[state.kind]) < WINDOWS_US[state.kind] / 30


@pytest.mark.parametrize(("off_s", "granted"), [(-1.5, False), (1.5, False), (0.5, True)])
def test_a_worker_whose_clock_is_off_gets_no_grant(world, off_s, granted):
    budgets = Budgets(world.engine, FakeClock(now(world) + round(off_s * S)))
    ask = ("lease_1", 1, INCARNATION, world.key.id, 10, 10)
    if granted:
        assert budgets.grant(*ask).amount_nano == 10
        return
    with pytest.raises(ClockOff) as caught:
        budgets.grant(*ask)
    assert caught.value.off_us / S == pytest.approx(off_s, abs=0.4)
    assert limits(world, world.key.id)["key_quota"].leased_nano == 0


@pytest.mark.parametrize("off_us", [-900_000, 900_000])
def test_no_interval_of_the_windows_length_holds_more_than_its_limit(engine, off_us):  # noqa: F811
    """Workers lease, spend and settle as fast as they can while a short window rolls on; their
    clock is `off_us` off."""
    world = World(engine, wallet_nano=100_000, window_5h_nano=100)
    window_us = 500_000
    shorten(world, window_us)
    begun = now(world)
    spent, lock = [], threading.Lock()

    def work(number):
        turn = 0
        while now(world) < begun + 4 * S:
            turn += 1
            lease_id = f"lease_{number}_{turn}"
            try:
                world.grant(lease_id, 1, 7)
            except Shortfall:
                time.sleep(0.02)
                continue
            at = now(world)
            with lock:
                spent.append((at, 7))
            world.settle([Charge(lease_id, 7, occurred_at=at + off_us)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(spent) > 14, "the window rolled on, so there was a second round"
    for start, _ in spent:
        assert sum(nano for at, nano in spent if start <= at <= start + window_us) <= 100
    world.check()


# -- parents, members, caps --------------------------------------------------------------------


def test_a_sub_keys_spend_counts_for_its_parent(world):
    child, _ = world.catalog.create_key(world.account.id, "child", parent_id=world.key.id)
    other, _ = world.catalog.create_key(
        world.account.id, "small", parent_id=world.key.id, quota_nano=20
    )
    world.budgets.grant("lease_c", 1, INCARNATION, child.id, 60, 60)
    world.settle([Charge("lease_c", 50)])
    rows = limits(world, world.key.id)
    assert (rows["window_5h"].settled_nano, rows["window_5h"].leased_nano) == (50, 10)
    assert (rows["key_quota"].settled_nano, rows["key_quota"].leased_nano) == (50, 10)
    with pytest.raises(Shortfall) as caught:
        world.budgets.grant("lease_o", 1, INCARNATION, other.id, 21, 21)
    assert [each.kind for each in caught.value.failing] == ["key_quota"]
    with pytest.raises(Shortfall) as caught:
        world.budgets.grant("lease_c", 2, INCARNATION, child.id, 41, 41)
    assert {each.limit_id for each in caught.value.failing} == {
        limits(world, key.id)["window_5h"].id for key in (child, world.key)
    }
    failing(world, "lease_p", 1, 41)


def test_a_sub_key_of_a_dead_parent_gets_nothing(world):
    child, _ = world.catalog.create_key(world.account.id, "child", parent_id=world.key.id)
    world.catalog.set_key_status(world.key.id, "disabled")
    with pytest.raises(KeyNotActive):
        world.budgets.grant("lease_c", 1, INCARNATION, child.id, 1, 1)
    world.catalog.set_key_status(world.key.id, "active")
    world.budgets.grant("lease_c", 1, INCARNATION, child.id, 1, 1)
    world.catalog.update_key(world.key.id, expires_at=now(world) - 1)
    with pytest.raises(KeyNotActive):
        world.budgets.grant("lease_c", 2, INCARNATION, child.id, 1, 1)


def test_a_window_added_to_a_parent_counts_what_its_sub_keys_have_out(world):
    parent, _ = world.catalog.create_key(world.account.id, "parent")
    child, _ = world.catalog.create_key(world.account.id, "child", parent_id=parent.id)
    world.budgets.grant("lease_c", 1, INCARNATION, child.id, 60, 60)
    world.settle([Charge("lease_c", 10)])
    world.catalog.update_key(parent.id, window_1d_nano=55)
    row = limits(world, parent.id)["window_1d"]
    assert (row.settled_nano, row.leased_nano) == (10, 50)
    world.settle([Charge("lease_c", 20)])  # from the lease that is older than the window
    with pytest.raises(Shortfall) as caught:
        world.budgets.grant("lease_c", 2, INCARNATION, child.id, 6, 6)
    (short,) = caught.value.failing
    assert (short.kind, short.settled_nano, short.leased_nano) == ("window_1d", 20, 30)
    world.budgets.grant("lease_c", 2, INCARNATION, child.id, 5, 5)


@pytest.fixture
def member(world):
    org = world.catalog.create_account("org", kind="org")
    world.wallets.move(org.id, "topup", 1_000, "start")
    made = world.catalog.create_member(org.id, "ann", quota_nano=200, caps_nano={"claude-a": 30})
    world.key, _ = world.catalog.create_key(org.id, "hers", member_id=made.id)
    return made


def test_an_allotment_holds_over_all_keys_of_the_member(world, member):
    second, _ = world.catalog.create_key(member.account_id, "hers too", member_id=member.id)
    world.grant("lease_1", 1, 150)
    world.settle([Charge("lease_1", 120)])
    with pytest.raises(Shortfall) as caught:
        world.budgets.grant("lease_2", 1, INCARNATION, second.id, 51, 51)
    (short,) = caught.value.failing
    assert (short.kind, short.settled_nano, short.missing_nano) == ("member_quota", 120, 1)
    assert world.budgets.grant("lease_2", 1, INCARNATION, second.id, 50, 50).amount_nano == 50


def test_a_cap_bounds_its_model_alone(world, member):
    def grant(lease_id, need_nano, model):
        return world.budgets.grant(
            lease_id, 1, INCARNATION, world.key.id, need_nano, need_nano, model
        )

    with pytest.raises(Shortfall) as caught:
        grant("lease_a", 31, "claude-a")
    assert [each.kind for each in caught.value.failing] == ["member_model"]
    grant("lease_a", 30, "claude-a")
    grant("lease_b", 100, "")
    world.settle([Charge("lease_a", 25), Charge("lease_b", 90)])
    cap = limits(world, f"{member.id}:claude-a")["member_model"]
    assert (cap.settled_nano, cap.leased_nano) == (25, 5)
    allotment = limits(world, member.id)["member_quota"]
    assert (allotment.settled_nano, allotment.leased_nano) == (115, 15)
    with pytest.raises(ValueError, match="no cap"):
        grant("lease_c", 1, "claude-b")


def test_a_disabled_member_gets_nothing(world, member):
    world.grant("lease_1", 1, 1)
    world.catalog.update_member(member.id, status="disabled")
    with pytest.raises(KeyNotActive):
        world.grant("lease_1", 2, 1)
