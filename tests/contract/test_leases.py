"""A worker's leases over the real budgets, on both engines: admission from memory, growth,
give-back, recall, and what happens when the centre's answer is lost."""

import time

import gevent
import pytest
from sqlalchemy import update

from schemas.errors import Code
from services.backends.clock import FakeClock, WorkerClock
from services.backends.sql.budgets import Budgets, Charge, LeaseEnd
from services.backends.sql.engine import DatabaseUnavailable, database_now_us, read, write
from services.backends.sql.tables import lease
from services.core.budgets import Shortfall
from services.core.errors import Refusal
from services.core.shortfalls import WindowFull
from services.edge.counters import Counters
from services.edge.leases import IDLE_CLOSE_S, IDLE_RETURN_S, LeaseBook
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World

USD = 1_000_000_000


class Inline:
    """Runs the call here; `lose` makes the next call's answer be lost after it took effect."""

    lose = False

    def apply(self, fn, args=()):
        answer = fn(*args)
        if self.lose:
            self.lose = False
            raise DatabaseUnavailable("the answer was lost")
        return answer


@pytest.fixture
def world(engine):  # noqa: F811
    made = World(engine, wallet_nano=10 * USD, quota_nano=8 * USD)
    yield made
    made.check()


class Desk:
    """One worker's lease book and what it needs."""

    def __init__(self, world, wait_s=0.0, clock=None):
        self.clock = clock or FakeClock()
        self.threads = Inline()
        self.closed = []
        self.key = world.key
        self.book = LeaseBook(
            world.budgets,
            INCARNATION,
            self.threads,
            self.clock,
            Counters(),
            wait_s=wait_s,
            on_closed=self.closed.append,
        )

    def later(self, seconds):
        self.clock.sleep(seconds)
        self.book.poll()


def left(desk, limit_id):
    return desk.book.figures.remaining_nano(desk.book.figures.get(limit_id))


@pytest.fixture
def desk(world):
    return Desk(world)


def test_a_hold_is_taken_from_memory_once_the_lease_is_there(world, desk):
    first = desk.book.reserve(desk.key, USD // 100)
    grants = first.lease.grant_no
    for _ in range(3):
        desk.book.settle(desk.book.reserve(desk.key, USD // 100), 0)
    assert first.lease.grant_no == grants
    assert first.lease.reserved_nano == USD // 100


def test_what_does_not_fit_is_refused_with_what_is_missing(desk):
    with pytest.raises(Refusal) as caught:
        desk.book.reserve(desk.key, 9 * USD)
    assert caught.value.code is Code.QUOTA_EXCEEDED
    assert caught.value.missing_nano == 1 * USD
    assert caught.value.message.startswith("quota_exceeded")


def test_the_charge_is_spent_and_the_rest_is_free_again(desk):
    held = desk.book.reserve(desk.key, USD)
    free = held.lease.free_nano
    desk.book.settle(held, USD // 4)
    assert held.lease.spent_nano == USD // 4
    assert held.lease.free_nano == free + USD - USD // 4
    desk.book.settle(held, USD // 4)  # a second end changes nothing
    assert held.lease.spent_nano == USD // 4


def test_an_overrun_takes_unreserved_money_then_one_grant_then_no_more(desk):
    held = desk.book.reserve(desk.key, USD)
    assert desk.book.charge(held, 3 * USD) == 3 * USD
    desk.book.settle(held, 3 * USD)
    big = desk.book.reserve(desk.key, 4 * USD)
    assert desk.book.charge(big, 9 * USD) == 5 * USD  # 8 - 3 are left of the quota
    desk.book.settle(big, 5 * USD)


def test_an_overrun_that_another_grant_has_covered_meanwhile_asks_for_nothing(desk):
    held = desk.book.reserve(desk.key, USD // 100)
    lease = held.lease
    lease.reserved_nano = lease.amount_nano  # nothing is free
    lease.lock.acquire()  # another request's grant is under way
    charging = gevent.spawn(desk.book.charge, held, USD // 50)
    gevent.idle()
    lease.reserved_nano -= USD // 10  # it brought more than enough
    lease.lock.release()
    assert charging.get(timeout=5) == USD // 50
    assert lease.grant_no == 1


def test_idle_money_goes_back_and_an_idle_lease_ends(world, desk):
    held = desk.book.reserve(desk.key, USD)
    desk.book.settle(held, USD // 2)
    desk.later(IDLE_RETURN_S + 0.1)
    assert world.lease(held.lease.id).amount_nano == USD // 2
    assert not desk.closed
    desk.later(IDLE_CLOSE_S)
    assert desk.closed == [held.lease]
    assert desk.book.reserve(desk.key, 1).lease is not held.lease


def test_leases_of_which_all_is_spent_cost_nothing_until_they_are_used(world, desk):
    asked = []
    sync = world.budgets.sync
    world.budgets.sync = lambda *call: asked.append(sync(*call)) or asked[-1]
    held = desk.book.reserve(desk.key, USD // 100)
    desk.book.settle(held, USD // 200)
    desk.later(0.1)
    assert set(asked[-1].limits) == set(desk.key.limit_ids)
    assert desk.book.figures.unknown(desk.key.limit_ids) == []
    desk.later(IDLE_RETURN_S)  # what is free goes back
    desk.later(0.1)
    assert (asked[-1].limits, asked[-1].state) == ({}, "open")
    assert desk.book.figures.leases == set()
    assert desk.book.figures.unknown(desk.key.limit_ids) == []
    desk.later(1.1)
    assert desk.book.figures.unknown(desk.key.limit_ids) == list(desk.key.limit_ids)
    again = desk.book.reserve(desk.key, USD // 100)
    assert again.lease is held.lease
    assert left(desk, desk.key.limit_ids[0]) == 8 * USD - USD // 200 - USD // 100
    desk.later(0.1)
    assert set(asked[-1].limits) == set(desk.key.limit_ids)
    desk.book.settle(again, 0)


def test_a_key_that_was_only_refused_is_forgotten(desk):
    with pytest.raises(Refusal):
        desk.book.reserve(desk.key, 9 * USD)
    assert len(desk.book._leases) == 1
    desk.later(IDLE_CLOSE_S)
    assert (desk.book._leases, desk.closed) == ({}, [])


def test_a_lease_does_not_end_under_a_running_request_that_holds_nothing(world, desk):
    """A request of a free group; its events belong to the lease all the same."""
    held = desk.book.reserve(desk.key, 0)
    desk.later(IDLE_CLOSE_S + 1)
    assert not desk.closed
    assert not desk.book.close_all()
    desk.book.settle(held, 0)
    desk.later(IDLE_CLOSE_S + 1)
    assert desk.closed == [held.lease]


def test_a_lost_answer_to_a_grant_counts_once(world, desk):
    desk.threads.lose = True
    with pytest.raises(Refusal) as caught:
        desk.book.reserve(desk.key, USD)
    assert caught.value.code is Code.UNAVAILABLE
    held = desk.book.reserve(desk.key, USD)
    assert world.lease(held.lease.id).amount_nano == held.lease.amount_nano


def test_a_first_grant_whose_answer_was_lost_comes_back_when_nobody_asks_again(world, desk):
    desk.threads.lose = True
    with pytest.raises(Refusal):
        desk.book.reserve(desk.key, USD)
    assert world.limits()["wallet"][2] >= USD
    desk.later(IDLE_CLOSE_S + 1)
    (ended,) = desk.closed
    world.settle([], [LeaseEnd(ended.id, ended.events)])
    assert world.limits()["wallet"][2] == 0


def test_a_lost_answer_to_a_give_back_counts_once(world, desk):
    held = desk.book.reserve(desk.key, USD)
    desk.book.settle(held, USD)
    desk.threads.lose = False
    desk.clock.sleep(IDLE_RETURN_S + 0.1)
    desk.book.poll()
    assert world.lease(held.lease.id).amount_nano == held.lease.amount_nano == USD
    more = desk.book.reserve(desk.key, USD)
    desk.book.settle(more, 0)
    desk.clock.sleep(IDLE_RETURN_S + 0.1)
    real = desk.threads.apply

    def lost_give(fn, args=()):
        desk.threads.lose = fn.__name__ == "give_back"
        return real(fn, args)

    desk.threads.apply = lost_give
    with pytest.raises(DatabaseUnavailable):
        desk.book.poll()
    desk.threads.apply = real
    desk.book.poll()
    assert world.lease(held.lease.id).amount_nano == held.lease.amount_nano


def test_a_recall_brings_idle_money_of_another_worker(world):
    world.budgets.open_incarnation("edge-other", "edge", "host")
    mine, other = Desk(world), Desk(world, wait_s=2.0)
    other.book._incarnation = "edge-other"
    idle = mine.book.reserve(mine.key, 6 * USD)
    mine.book.settle(idle, 0)
    with pytest.raises(Refusal) as caught:
        Desk(world).book.reserve(mine.key, 4 * USD)  # does not wait
    assert caught.value.code is Code.QUOTA_EXCEEDED
    mine.book.poll()  # the recall mark is set: what is idle goes back at once
    assert other.book.reserve(other.key, 4 * USD).hold_nano == 4 * USD


def test_the_headers_number_counts_holds_and_unsettled_spend(world, desk):
    held = desk.book.reserve(desk.key, USD)
    desk.book.poll()
    limits = desk.key.limit_ids
    assert [left(desk, limit) for limit in limits] == [
        state.limit_nano - USD for state in map(desk.book.figures.get, limits)
    ]
    desk.book.settle(held, USD // 2)  # not reported yet, counted all the same
    assert min(left(desk, limit) for limit in limits) == 8 * USD - USD // 2


def test_a_free_request_has_a_lease_that_the_centre_knows(world, desk):
    """Otherwise its events could not be counted, and the lease could never be closed."""
    held = desk.book.reserve(desk.key, 0)
    assert world.lease(held.lease.id).amount_nano == 0
    grants = held.lease.grant_no
    desk.book.settle(desk.book.reserve(desk.key, 0), 0)
    assert held.lease.grant_no == grants


def test_a_hold_in_flight_grows_by_what_is_asked_or_by_what_is_left(desk):
    held = desk.book.reserve(desk.key, USD)
    assert desk.book.extend(held, 3 * USD) == 3 * USD
    assert held.hold_nano == held.lease.reserved_nano == 4 * USD
    assert desk.book.extend(held, 5 * USD) == 4 * USD  # 8 are the quota
    assert desk.book.extend(held, 1) == 0
    desk.book.settle(held, 8 * USD)
    assert desk.book.extend(held, 1) == 0  # it has ended
    assert held.lease.reserved_nano == 0


def test_growth_goes_before_a_new_request(desk):
    """What a stream waits for is not given to a newcomer of the key."""
    held = desk.book.reserve(desk.key, USD)
    held.lease.growing_nano = 7 * USD
    with pytest.raises(Refusal):
        desk.book.reserve(desk.key, USD)
    held.lease.growing_nano = 0
    assert desk.book.extend(held, 7 * USD) == 7 * USD


def test_what_a_stream_waits_for_is_not_given_back(world, desk):
    held = desk.book.reserve(desk.key, USD // 100)
    assert held.lease.spare_nano > 2
    held.lease.growing_nano = held.lease.free_nano - 1
    desk.later(IDLE_RETURN_S + 0.1)
    assert held.lease.free_nano == held.lease.growing_nano


def test_a_smaller_hold_is_taken_where_the_larger_has_no_room(desk):
    held = desk.book.reserve(desk.key, 9 * USD, 2 * USD)
    assert held.hold_nano == 2 * USD
    assert desk.book.reserve(desk.key, USD, USD // 2).hold_nano == USD


def test_while_others_wait_a_grant_is_no_larger_than_its_need(world, desk):
    held = desk.book.reserve(desk.key, USD // 100)
    with pytest.raises(Refusal):
        Desk(world).book.reserve(desk.key, 79 * USD // 10)  # leaves its recall mark
    desk.book.poll()
    assert held.lease.free_nano == 0
    more = desk.book.reserve(desk.key, USD // 100)
    assert more.lease.free_nano == 0


def test_growth_outlasts_a_short_outage_of_the_budgets(world):
    desk = Desk(world, wait_s=2.0)
    held = desk.book.reserve(desk.key, USD)
    desk.threads.lose = True
    assert desk.book.extend(held, held.lease.free_nano + USD) > USD
    assert world.lease(held.lease.id).amount_nano == held.lease.amount_nano


def test_what_did_not_fit_a_moment_ago_is_not_asked_again(world):
    """A crowd at a limit asks for it once; a smaller need is another question."""
    desk = Desk(world)
    calls = []
    real = desk.threads.apply
    desk.threads.apply = lambda fn, args=(): calls.append(fn.__name__) or real(fn, args)
    for need in (9, 10, 9):
        with pytest.raises(Refusal) as caught:
            desk.book.reserve(desk.key, need * USD)
        assert caught.value.missing_nano == (need - 8) * USD
    assert calls == ["grant"]
    desk.book.reserve(desk.key, 7 * USD)
    desk.clock.sleep(0.1)
    with pytest.raises(Refusal):
        desk.book.reserve(desk.key, 9 * USD)
    assert calls.count("grant") >= 3


# -- windows and caps --------------------------------------------------------------------------


def test_a_full_window_is_refused_until_it_has_room(world):
    world.key, _ = world.catalog.create_key(world.account.id, "w", window_5h_nano=USD)
    desk = Desk(world)
    held = desk.book.reserve(desk.key, USD)
    desk.clock.advance(database_s(world) - desk.clock.now_us() / 1e6)
    world.settle([Charge(held.lease.id, USD)])
    desk.book.settle(held, USD)
    with pytest.raises(WindowFull) as caught:
        desk.book.reserve(desk.key, USD // 100)
    refusal = caught.value
    assert refusal.code is Code.RATE_LIMIT_EXCEEDED
    assert refusal.message.startswith("rate_limit_5h exceeded: 1.00 / 1.00 used; resets at 20")
    assert refusal.window.limit_nano == USD
    assert refusal.window.left_nano == 0
    assert 5 * 3600 - 5 < refusal.retry_after_s <= 5 * 3600 + 302
    assert abs(refusal.window.resets_at_s - database_s(world) - refusal.retry_after_s) < 30


def test_a_window_comes_before_the_quota_and_the_quota_before_the_wallet(world):
    world.key, _ = world.catalog.create_key(
        world.account.id, "w", quota_nano=USD, window_1d_nano=USD
    )
    desk = Desk(world)
    with pytest.raises(WindowFull):
        desk.book.reserve(desk.key, 99 * USD)
    world.key = world.catalog.update_key(desk.key.id, window_1d_nano=None)
    with pytest.raises(Refusal) as caught:
        Desk(world).book.reserve(world.key, 99 * USD)
    assert caught.value.code is Code.QUOTA_EXCEEDED


def test_a_capped_model_has_a_lease_of_its_own(world):
    org = world.catalog.create_account("org", kind="org")
    world.wallets.move(org.id, "topup", 10 * USD, "start")
    member = world.catalog.create_member(org.id, "ann", caps_nano={"claude-a": USD})
    key, _ = world.catalog.create_key(org.id, "hers", member_id=member.id)
    key = world.catalog.snapshot(0).keys[key.secret_sha256]
    desk = Desk(world)
    capped = desk.book.reserve(key, USD, None, "claude-a")
    free = desk.book.reserve(key, 3 * USD, None, "claude-b")
    assert (capped.lease.model, free.lease.model) == ("claude-a", "")
    with pytest.raises(Refusal) as caught:
        desk.book.reserve(key, 1, None, "claude-a")
    assert caught.value.code is Code.QUOTA_EXCEEDED
    assert "the member's cap for this model has $0" in caught.value.message
    desk.book.settle(capped, 0)
    desk.book.settle(free, 0)
    desk.later(IDLE_CLOSE_S)
    assert {lease.model for lease in desk.closed} == {"", "claude-a"}


def database_s(world):
    return read(world.engine, database_now_us) / 1e6


def test_a_worker_that_cannot_give_back_says_that_leases_are_open(world, desk):
    held = desk.book.reserve(desk.key, USD)
    desk.threads.lose = True
    with pytest.raises(DatabaseUnavailable):
        desk.book.close_all()
    assert not desk.closed
    assert not desk.book.close_all()  # a request is still in flight
    desk.book.settle(held, USD)
    assert desk.book.close_all()
    assert desk.closed == [held.lease]


def test_a_clock_that_steps_gives_its_money_back_and_admits_nothing(world):
    clock = FakeClock()
    clock.advance(database_s(world) - clock.now_us() / 1e6)
    world.budgets = Budgets(world.engine, clock)
    desk = Desk(world)
    held = desk.book.reserve(desk.key, USD // 100)
    assert held.lease.free_nano > 0
    clock.advance(-3600)
    desk.book.poll()
    assert held.lease.free_nano == 0
    with pytest.raises(Refusal) as caught:
        desk.book.reserve(desk.key, USD // 100)
    assert caught.value.code is Code.UNAVAILABLE
    assert "3600" in caught.value.message
    desk.book.settle(held, 0)
    clock.advance(database_s(world) - clock.now_us() / 1e6)
    desk.book.poll()
    assert desk.book.reserve(desk.key, USD // 100)


def test_what_is_under_way_when_the_machines_clock_steps_still_counts_in_its_window(
    engine,  # noqa: F811
    monkeypatch,
):
    world = World(engine, wallet_nano=10 * USD, window_5h_nano=USD)
    desk = Desk(world, clock=WorkerClock())
    held = desk.book.reserve(desk.key, USD)
    opened_at = lease.c.opened_at - 10 * 3600 * 1_000_000  # as that of a key that is always busy
    write(engine, lambda c: c.execute(update(lease).values(opened_at=opened_at)))
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() - 6 * 3600 * 10**9)
    desk.book.poll()
    ended_at = desk.clock.now_us()
    desk.book.settle(held, USD)
    world.settle([Charge(held.lease.id, USD, occurred_at=ended_at)])
    with pytest.raises(Shortfall):
        Budgets(engine, FakeClock(int(database_s(world) * 1e6))).grant(
            "lease_2", 1, INCARNATION, world.key.id, 1, 1
        )
    monkeypatch.undo()
    desk.book.poll()
    assert abs(desk.clock.now_us() / 1e6 - time.time()) < 1


@pytest.mark.parametrize("off_s", [-600, 600])
def test_what_a_worker_whose_clock_is_off_refuses_is_told_at_the_right_time(
    world, monkeypatch, off_s
):
    """Events of the future are set aside, and many of them stop the ledger."""
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + off_s * 10**9)
    desk = Desk(world, clock=WorkerClock())
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            desk.book.reserve(desk.key, USD // 100)
        assert caught.value.code is Code.UNAVAILABLE
        assert abs(desk.clock.now_us() / 1e6 - database_s(world)) < 2
        desk.book._leases.clear()  # as after a while
        desk.book.poll()
    monkeypatch.undo()
    assert desk.book.reserve(desk.key, USD // 100)
    assert abs(desk.clock.now_us() / 1e6 - database_s(world)) < 2
