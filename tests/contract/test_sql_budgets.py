"""Limits and leases on both engines: never past a limit, each call counted once."""

import random
import threading
import time

import pytest
from sqlalchemy import update

from services.backends.sql.budgets import (
    Charge,
    GrantOutOfOrder,
    IncarnationNotOpen,
    KeyNotActive,
    LeaseEnd,
    LeaseNotOpen,
    LeaseReport,
    SettleRefused,
    Shortfall,
)
from services.backends.sql.engine import write
from services.backends.sql.tables import account, limit_row
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World, guard_limits


@pytest.fixture
def world(engine):  # noqa: F811
    made = World(engine, wallet_nano=1_000, quota_nano=600)
    guard_limits(engine)
    yield made
    made.check()


def test_a_grant_takes_from_every_limit(world):
    granted = world.grant("lease_1", 1, 100, 200)
    assert (granted.amount_nano, granted.total_nano) == (200, 200)
    assert world.limits() == {"wallet": (1_000, 0, 200), "key_quota": (600, 0, 200)}
    assert {state.kind: state.leased_nano for state in granted.limits} == {
        "wallet": 200,
        "key_quota": 200,
    }


def test_grants_halve_toward_the_limit_but_meet_the_need(world):
    assert world.grant("lease_1", 1, 10, 5_000).amount_nano == 300
    assert world.grant("lease_1", 2, 10, 5_000).amount_nano == 150
    assert world.grant("lease_1", 3, 140, 5_000).amount_nano == 140
    assert world.lease("lease_1").amount_nano == 590


def test_a_grant_sent_twice_counts_once(world):
    first = world.grant("lease_1", 1, 100)
    again = world.grant("lease_1", 1, 100)
    assert (again.amount_nano, again.total_nano) == (first.amount_nano, first.total_nano)
    world.grant("lease_1", 2, 50)
    assert world.grant("lease_1", 2, 50).total_nano == 150
    assert world.limits()["wallet"] == (1_000, 0, 150)


def test_grant_numbers_are_dense(world):
    with pytest.raises(GrantOutOfOrder):
        world.grant("lease_1", 2, 100)
    world.grant("lease_1", 1, 100)
    world.grant("lease_1", 2, 100)
    for wrong in (1, 4):
        with pytest.raises(GrantOutOfOrder):
            world.grant("lease_1", wrong, 100)


def test_one_first_grant_from_two_threads_at_once(world):
    answers = in_threads(4, lambda _: world.grant("lease_1", 1, 100).total_nano)
    assert answers == [100] * 4
    assert world.limits()["key_quota"] == (600, 0, 100)


def test_a_shortfall_names_every_limit(world):
    world.grant("lease_1", 1, 500)
    with pytest.raises(Shortfall) as caught:
        world.grant("lease_2", 1, 700)
    failing = {each.kind: each for each in caught.value.failing}
    assert failing["key_quota"].missing_nano == 600
    assert failing["wallet"].missing_nano == 200
    assert not failing["key_quota"].only_leased  # 700 never fits 600
    assert failing["wallet"].only_leased
    assert world.limits()["wallet"] == (1_000, 0, 500)


def test_a_refused_first_grant_may_be_repeated_with_its_number(world):
    world.grant("lease_1", 1, 600)
    with pytest.raises(Shortfall):
        world.grant("lease_2", 1, 100)
    assert world.budgets.give_back("lease_1", 300, 1)
    assert world.grant("lease_2", 1, 100).amount_nano == 100


def test_waiting_recalls_idle_leases_and_definite_refusal_does_not(world):
    world.grant("lease_1", 1, 500)
    with pytest.raises(Shortfall):
        world.grant("lease_2", 1, 700)
    assert world.budgets.sync(INCARNATION, []).recall == set()
    with pytest.raises(Shortfall):
        world.grant("lease_2", 1, 200)
    assert world.budgets.sync(INCARNATION, []).recall == {"lease_1"}


def test_a_recall_mark_fades(world):
    world.grant("lease_1", 1, 600)
    with pytest.raises(Shortfall):
        world.grant("lease_2", 1, 100)
    write(
        world.engine,
        lambda connection: connection.execute(
            update(limit_row).values(recall_at=limit_row.c.recall_at - 2_000_001)
        ),
    )
    assert world.budgets.sync(INCARNATION, []).recall == set()


def test_a_revoked_expired_or_paused_key_gets_nothing(world):
    world.grant("lease_1", 1, 10)
    past, _ = world.catalog.create_key(
        world.account.id, "old", expires_at=int(time.time() * 1e6) - 1
    )
    with pytest.raises(KeyNotActive):
        world.budgets.grant("lease_2", 1, INCARNATION, past.id, 1, 1)
    with pytest.raises(KeyNotActive):
        world.budgets.grant("lease_2", 1, INCARNATION, "key_none", 1, 1)
    write(
        world.engine,
        lambda connection: connection.execute(update(account).values(status="paused")),
    )
    with pytest.raises(KeyNotActive):
        world.grant("lease_1", 2, 10)
    write(
        world.engine,
        lambda connection: connection.execute(update(account).values(status="active")),
    )
    world.catalog.revoke_key(world.key.id)
    with pytest.raises(KeyNotActive):
        world.grant("lease_1", 2, 10)


def test_a_lease_belongs_to_one_incarnation_and_one_key(world):
    world.grant("lease_1", 1, 10)
    world.budgets.open_incarnation("edge-2", "edge", "there")
    with pytest.raises(LeaseNotOpen):
        world.grant("lease_1", 2, 10, incarnation="edge-2")
    other, _ = world.catalog.create_key(world.account.id, "second")
    with pytest.raises(LeaseNotOpen):
        world.budgets.grant("lease_1", 2, INCARNATION, other.id, 10, 10)


def test_an_unlimited_key_is_bound_by_its_wallet(engine):  # noqa: F811
    world = World(engine, wallet_nano=1_000)
    assert world.limits()["key_quota"] == (None, 0, 0)
    world.grant("lease_1", 1, 1_000)
    with pytest.raises(Shortfall) as caught:
        world.grant("lease_1", 2, 1)
    assert [each.kind for each in caught.value.failing] == ["wallet"]
    world.settle([Charge("lease_1", 1_000)])
    assert world.limits() == {"wallet": (1_000, 1_000, 0), "key_quota": (None, 1_000, 0)}
    world.check()


def test_a_grant_of_nothing_makes_a_lease(world):
    assert world.grant("lease_1", 1, 0).total_nano == 0
    world.settle([Charge("lease_1", 0)], [LeaseEnd("lease_1", 1)])
    assert world.lease("lease_1").state == "closed"


# -- give back ---------------------------------------------------------------------------------


def test_give_back_counts_once(world):
    world.grant("lease_1", 1, 300)
    assert world.budgets.give_back("lease_1", 100, 1)
    assert world.budgets.give_back("lease_1", 100, 1)
    assert world.limits()["wallet"] == (1_000, 0, 200)
    assert world.budgets.give_back("lease_1", 50, 2)
    assert not world.budgets.give_back("lease_1", 50, 1)
    assert not world.budgets.give_back("lease_1", 50, 4)
    assert world.lease("lease_1").amount_nano == 150


def test_give_back_never_takes_what_is_consumed(world):
    world.grant("lease_1", 1, 300)
    world.settle([Charge("lease_1", 250)])
    assert not world.budgets.give_back("lease_1", 51, 1)
    assert world.budgets.give_back("lease_1", 50, 1)
    assert world.limits()["wallet"] == (1_000, 250, 0)
    assert not world.budgets.give_back("lease_none", 0, 1)


# -- settlement --------------------------------------------------------------------------------


def test_settle_then_close_then_the_remainder_is_back(world):
    world.grant("lease_1", 1, 300)
    world.settle([Charge("lease_1", 0), Charge("lease_1", 120)])
    assert world.limits()["wallet"] == (1_000, 120, 180)
    world.settle([], [LeaseEnd("lease_1", 3)])
    assert world.lease("lease_1").state == "closing"
    assert world.limits()["wallet"] == (1_000, 120, 180)
    world.settle([Charge("lease_1", 30)])
    assert world.lease("lease_1").state == "closed"
    assert world.lease("lease_1").closed_at is not None
    assert world.limits() == {"wallet": (1_000, 150, 0), "key_quota": (600, 150, 0)}


def test_charges_and_end_in_one_batch(world):
    world.grant("lease_1", 1, 300)
    world.grant("lease_2", 1, 100)
    world.settle(
        [Charge("lease_1", 100), Charge("lease_2", 100), Charge("", 0), Charge("lease_1", 50)],
        [LeaseEnd("lease_1", 2), LeaseEnd("lease_2", 2)],
    )
    assert world.lease("lease_1").state == "closed"
    assert world.lease("lease_2").state == "closing"
    assert world.limits()["wallet"] == (1_000, 250, 0)


@pytest.mark.parametrize(
    ("charge", "reason"),
    [
        (Charge("lease_1", 301), "lease_overrun"),
        (Charge("lease_1", -1), "lease_overrun"),
        (Charge("lease_none", 1), "unknown_lease"),
        (Charge("", 1), "no_lease"),
    ],
)
def test_a_charge_that_does_not_fit_is_refused_whole(world, charge, reason):
    world.grant("lease_1", 1, 300)
    with pytest.raises(SettleRefused) as caught:
        world.settle([Charge("lease_1", 10), charge])
    assert caught.value.charges == {1: reason}
    assert world.limits()["wallet"] == (1_000, 0, 300)
    assert world.lease("lease_1").events_applied == 0


def test_a_refused_charge_leaves_room_for_the_next(world):
    world.grant("lease_1", 1, 300)
    charges = [Charge("lease_1", 200), Charge("lease_1", 101), Charge("lease_1", 100)]
    with pytest.raises(SettleRefused) as caught:
        world.settle(charges)
    assert caught.value.charges == {1: "lease_overrun"}
    del charges[1]
    world.settle(charges)
    assert world.limits()["wallet"] == (1_000, 300, 0)


def test_a_late_event_of_a_closed_lease_is_refused(world):
    world.grant("lease_1", 1, 300)
    world.settle([], [LeaseEnd("lease_1", 0)])
    assert world.limits()["wallet"] == (1_000, 0, 0)
    for charge in (Charge("lease_1", 1), Charge("lease_1", 0)):
        with pytest.raises(SettleRefused) as caught:
            world.settle([charge])
        assert caught.value.charges == {0: "lease_closed"}
    with pytest.raises(SettleRefused) as caught:
        world.settle([], [LeaseEnd("lease_1", 1)])
    assert caught.value.ends == {0: "lease_closed"}
    with pytest.raises(LeaseNotOpen):
        world.grant("lease_1", 2, 1)
    assert not world.budgets.give_back("lease_1", 1, 1)


def test_more_events_than_the_lease_said_are_refused(world):
    world.grant("lease_1", 1, 300)
    world.settle([Charge("lease_1", 1)], [LeaseEnd("lease_1", 2)])
    with pytest.raises(SettleRefused) as caught:
        world.settle([Charge("lease_1", 1, events=2)])
    assert caught.value.charges == {0: "lease_events"}
    with pytest.raises(SettleRefused) as caught:
        world.settle([], [LeaseEnd("lease_1", 3)])
    assert caught.value.ends == {0: "lease_events"}
    with pytest.raises(SettleRefused):
        world.settle([], [LeaseEnd("lease_none", 1)])
    world.settle([], [LeaseEnd("lease_none", 0)])  # its first grant was refused


# -- incarnations ------------------------------------------------------------------------------


def test_a_closing_incarnation_gets_no_grant(world):
    world.grant("lease_1", 1, 100)
    world.grant("lease_2", 1, 100)
    world.settle([], [LeaseEnd("lease_2", 0)])
    assert world.budgets.start_closing(INCARNATION) == ["lease_1"]
    assert world.budgets.start_closing(INCARNATION) == ["lease_1"]
    for lease_id, grant_no in (("lease_1", 2), ("lease_3", 1)):
        with pytest.raises(IncarnationNotOpen):
            world.grant(lease_id, grant_no, 10)
    with pytest.raises(IncarnationNotOpen):
        world.grant("lease_4", 1, 10, incarnation="edge-unknown")
    assert world.budgets.sync(INCARNATION, []).state == "closing"
    world.budgets.open_incarnation(INCARNATION, "edge", "here")
    assert world.incarnations("closing") == [INCARNATION]


def test_grants_that_race_with_closing_are_in_its_answer_or_refused(world):
    granted = []

    def grants(number):
        for turn in range(50):
            lease_id = f"lease_{number}_{turn}"
            try:
                world.grant(lease_id, 1, 1)
            except IncarnationNotOpen:
                return
            granted.append(lease_id)

    def close(_):
        time.sleep(0.05)
        return world.budgets.start_closing(INCARNATION)

    answers = in_threads(4, lambda number: close(number) if number == 3 else grants(number))
    assert set(answers[3]) == set(granted)


def test_the_incarnation_is_closed_when_its_log_has_ended(world):
    world.grant("lease_1", 1, 100)
    write(world.engine, lambda c: world.budgets.finish_closing(c, [INCARNATION, "edge-unknown"]))
    assert world.incarnations("closed") == [INCARNATION]
    with pytest.raises(IncarnationNotOpen):
        world.grant("lease_1", 2, 1)
    assert world.budgets.start_closing(INCARNATION) == ["lease_1"]
    assert world.incarnations("closed") == [INCARNATION]
    world.settle([Charge("lease_1", 70)], [LeaseEnd("lease_1", 1)])
    assert world.limits()["wallet"] == (1_000, 70, 0)


# -- reports and readings ----------------------------------------------------------------------


def test_reports_show_what_is_pending(world):
    world.budgets.open_incarnation("edge-2", "edge", "there")
    world.grant("lease_1", 1, 300)
    world.grant("lease_2", 1, 200, incarnation="edge-2")
    world.budgets.sync("edge-2", [LeaseReport("lease_2", 50, 70)])
    reply = world.budgets.sync(INCARNATION, [LeaseReport("lease_1", 100, 0)])
    assert {state.kind: state.pending_nano for state in reply.limits.values()} == {
        "wallet": 220,
        "key_quota": 220,
    }
    assert world.pending() == 220
    world.settle([Charge("lease_2", 70)])
    assert world.pending() == 150
    # lease_1's report is older than what the ledger already settled of it
    world.settle([Charge("lease_1", 200)])
    assert world.pending() == 50


def test_a_report_of_another_incarnations_lease_is_ignored(world):
    world.budgets.open_incarnation("edge-2", "edge", "there")
    world.grant("lease_1", 1, 300)
    world.budgets.sync("edge-2", [LeaseReport("lease_1", 300, 0)])
    assert world.pending() == 0


# -- races -------------------------------------------------------------------------------------


def test_racing_grants_never_pass_the_limit(world):
    """Eight leases race for 600 until nothing is left; the database refuses any step past it."""

    def race(number):
        taken, turn = 0, 1
        while True:
            try:
                granted = world.grant(f"lease_{number}", turn, 7, 20)
            except Shortfall:
                return taken
            taken, turn = taken + granted.amount_nano, turn + 1

    taken = in_threads(8, race)
    limit_nano, settled_nano, leased_nano = world.limits()["key_quota"]
    assert sum(taken) == leased_nano
    assert limit_nano - 7 < settled_nano + leased_nano <= limit_nano


def test_grants_gives_and_settlements_race(world):
    """Workers take, report, give and end leases while two sinks settle batches of several; no
    deadlock gets through, and at the end every nano is accounted for."""
    spent = []

    def worker(number):
        rng = random.Random(number)
        for turn in range(12):
            lease_id = f"lease_{number}_{turn}"
            try:
                total = world.grant(lease_id, 1, 10, 40).total_nano
            except Shortfall:
                continue
            charge = rng.randint(0, min(total, 4))
            world.budgets.sync(INCARNATION, [LeaseReport(lease_id, 0, charge)])
            if rng.random() < 0.5:
                world.budgets.give_back(lease_id, total - charge, 1)
            spent.append((lease_id, charge))
            done.release()

    stop = threading.Event()
    done = threading.Semaphore(0)
    settled = []
    taking = threading.Lock()

    def sink(number):
        while True:
            with taking:
                batch = [spent.pop() for _ in range(min(len(spent), 3))]
            if not batch:
                if stop.is_set():
                    return
                done.acquire(timeout=0.01)
                continue
            random.Random(len(settled)).shuffle(batch)
            world.settle(
                [Charge(lease_id, nano) for lease_id, nano in batch],
                [LeaseEnd(lease_id, 1) for lease_id, _ in batch],
            )
            settled.extend(batch)

    sinks = [threading.Thread(target=sink, args=(number,)) for number in range(2)]
    for thread in sinks:
        thread.start()
    in_threads(4, worker)
    stop.set()
    for thread in sinks:
        thread.join(60)
        assert not thread.is_alive()
    total = sum(nano for _, nano in settled)
    assert world.limits() == {"wallet": (1_000, total, 0), "key_quota": (600, total, 0)}


def test_settlements_and_give_backs_of_one_lease_race(world):
    """Two sinks settle one lease while its worker gives back and its end arrives: what is
    returned is what is left, once."""
    for turn in range(15):
        lease_id = f"lease_{turn}"
        world.grant(lease_id, 1, 30)

        def act(number, lease_id=lease_id):
            if number == 0:
                world.budgets.give_back(lease_id, 10, 1)
            elif number == 1:
                world.settle([Charge(lease_id, 1)], [LeaseEnd(lease_id, 3)])
            else:
                world.settle([Charge(lease_id, 2)])

        in_threads(4, act)
        assert world.lease(lease_id).state == "closed"
        assert world.limits()["wallet"] == (1_000, 5 * (turn + 1), 0)


def in_threads(number, fn):
    """`fn(0..number-1)` at once; the results in order, or the first exception."""
    results = [None] * number
    errors = []
    start = threading.Barrier(number)

    def run(at):
        start.wait()
        try:
            results[at] = fn(at)
        except Exception as ex:
            errors.append(ex)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results
