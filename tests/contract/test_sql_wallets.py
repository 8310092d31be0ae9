"""Money in and out of wallets on both engines."""

import threading

import pytest
from sqlalchemy import select

from schemas.events import MAX_NANO, MOVEMENT_MAX_NANO, WalletMovement, decode
from services.backends.sql.budgets import Charge
from services.backends.sql.engine import read
from services.backends.sql.outbox import SqlOutbox
from services.backends.sql.tables import sql_outbox, wallet_movement
from services.backends.sql.wallets import (
    InsufficientFunds,
    MovementConflict,
    WrongMovement,
    patiently,
)
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World, count, guard_limits


@pytest.fixture
def world(engine):  # noqa: F811
    made = World(engine, wallet_nano=1_000)
    guard_limits(engine)
    yield made
    made.check()


def movements(engine):  # noqa: F811
    bodies = read(engine, lambda c: c.execute(select(sql_outbox.c.body)).scalars().all())
    return [event for event in map(decode, bodies) if isinstance(event, WalletMovement)]


def test_a_topup_raises_the_limit_at_once_and_is_told(world):
    movement_id = world.wallets.move(world.account.id, "topup", 500, "invoice 7", "thanks", "me")
    assert world.limits()["wallet"] == (1_500, 0, 0)
    world.grant("lease_1", 1, 1_500)
    event = movements(world.engine)[-1]
    assert event.event_id == f"{movement_id}:wallet_movement"
    assert (event.account_id, event.movement, event.amount_nano) == (
        world.account.id,
        "topup",
        500,
    )
    assert (event.external_id, event.note, event.actor) == ("invoice 7", "thanks", "me")
    assert (event.source, event.incarnation, event.seq) == ("sql", "", 0)


def test_a_movement_sent_twice_counts_once(world):
    first = world.wallets.move(world.account.id, "topup", 500, "x")
    assert world.wallets.move(world.account.id, "topup", 500, "x") == first
    assert world.limits()["wallet"] == (1_500, 0, 0)
    assert count(world.engine, wallet_movement) == 2
    with pytest.raises(MovementConflict):
        world.wallets.move(world.account.id, "topup", 501, "x")
    with pytest.raises(MovementConflict):
        world.wallets.move(world.account.id, "bonus", 500, "x")


def test_without_external_id_each_movement_counts(world):
    world.wallets.move(world.account.id, "topup", 500)
    world.wallets.move(world.account.id, "topup", 500)
    assert world.limits()["wallet"] == (2_000, 0, 0)


def test_external_ids_are_per_account(world):
    other = world.catalog.create_account("other")
    world.wallets.move(other.id, "topup", 5, "start")
    assert count(world.engine, wallet_movement) == 2


def test_a_debit_never_takes_what_is_spent_or_leased(world):
    world.grant("lease_1", 1, 300)
    world.settle([Charge("lease_1", 100)])
    with pytest.raises(InsufficientFunds) as caught:
        world.wallets.move(world.account.id, "admin_debit", -701, "d")
    assert caught.value.available_nano == 700
    world.wallets.move(world.account.id, "admin_debit", -700, "d")
    assert world.limits()["wallet"] == (300, 100, 200)
    world.wallets.move(world.account.id, "admin_debit", -700, "d")  # the reply was lost
    assert world.limits()["wallet"] == (300, 100, 200)
    with pytest.raises(InsufficientFunds):
        world.wallets.move(world.account.id, "chargeback", -1, "e")


@pytest.mark.parametrize(
    ("movement", "amount_nano"),
    [
        ("gift", 1),
        ("topup", 0),
        ("topup", -1),
        ("bonus", -1),
        ("admin_debit", 1),
        ("chargeback", 1),
        ("correction", MAX_NANO + 1),
        ("topup", MAX_NANO),
        ("topup", MOVEMENT_MAX_NANO + 1),
    ],
)
def test_wrong_movements_are_refused(world, movement, amount_nano):
    with pytest.raises(WrongMovement, match=r"movement|moves|amount"):
        world.wallets.move(world.account.id, movement, amount_nano)
    assert world.limits()["wallet"] == (1_000, 0, 0)


@pytest.mark.parametrize("param", ["note", "external_id"])
def test_a_movement_whose_event_the_books_would_not_take_is_refused(world, param):
    with pytest.raises(WrongMovement) as caught:
        world.wallets.move(world.account.id, "topup", 500, **{param: "x" * 1_001})
    assert caught.value.param == param
    assert world.limits()["wallet"] == (1_000, 0, 0)
    world.wallets.move(world.account.id, "topup", 500, **{param: "x" * 1_000})
    assert movements(world.engine)[-1].amount_nano == 500


def test_a_wallet_holds_at_most_nine_billions(world):
    for _ in range(8):
        world.wallets.move(world.account.id, "topup", MOVEMENT_MAX_NANO)
    with pytest.raises(WrongMovement, match="holds at most"):
        world.wallets.move(world.account.id, "topup", MOVEMENT_MAX_NANO)


def test_no_such_account(world):
    with pytest.raises(LookupError):
        world.wallets.move("acct_none", "topup", 1)


def test_grants_and_debits_race_for_the_same_money(world):
    results = []

    def debit():
        for _ in range(30):
            try:
                world.wallets.move(world.account.id, "admin_debit", -10)
            except InsufficientFunds:
                return
            results.append(10)

    def grants(number):
        for turn in range(1, 31):
            try:
                results.append(world.grant(f"lease_{number}", turn, 10).amount_nano)
            except Exception:
                return

    threads = [threading.Thread(target=debit) for _ in range(2)]
    threads += [threading.Thread(target=grants, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    limit_nano, _, leased_nano = world.limits()["wallet"]
    assert sum(results) == 1_000
    assert limit_nano == leased_nano


def test_the_outbox_hands_out_what_the_bus_has_not(world):
    outbox = SqlOutbox(world.engine)
    rows = outbox.unshipped(100)
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert [row.event_id for row in rows] == [decode(row.body).event_id for row in rows]
    assert rows[-1].partition_key == world.account.id
    outbox.mark_shipped([row.id for row in rows[:-1]])
    outbox.mark_shipped([row.id for row in rows[:-1]])
    outbox.mark_shipped([])
    assert outbox.unshipped(100) == rows[-1:]
    world.wallets.move(world.account.id, "topup", 1)
    assert len(outbox.unshipped(100)) == 2
    assert outbox.unshipped(1) == rows[-1:]


def test_a_top_up_and_its_bonus_are_one_transaction(world):
    ids = world.wallets.top_up(world.account.id, 500, 40, "pay-7", "card", "me")
    assert world.limits()["wallet"] == (1_540, 0, 0)
    paid, bonus = movements(world.engine)[-2:]
    assert [paid.movement_id, bonus.movement_id] == ids
    assert [(event.movement, event.amount_nano) for event in (paid, bonus)] == [
        ("topup", 500),
        ("bonus", 40),
    ]
    assert (bonus.external_id, bonus.note, bonus.actor) == ("pay-7:bonus", "card", "me")
    assert bonus.occurred_at > paid.occurred_at  # their order is told
    # Another ladder is in force when the call is repeated: what was done stands.
    assert world.wallets.top_up(world.account.id, 500, 55, "pay-7") == ids
    assert world.wallets.top_up(world.account.id, 500, 0, "pay-7") == ids
    with pytest.raises(MovementConflict):
        world.wallets.top_up(world.account.id, 501, 40, "pay-7")
    assert world.limits()["wallet"] == (1_540, 0, 0)
    assert len(world.wallets.top_up(world.account.id, 5, 0)) == 1


def test_racing_repeats_of_a_top_up_move_the_money_once(world):
    start = threading.Barrier(4)
    found = []

    def top_up():
        start.wait()
        found.append(world.wallets.top_up(world.account.id, 100, 5, "pay-1"))

    threads = [threading.Thread(target=top_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({tuple(ids) for ids in found}) == 1
    assert world.limits()["wallet"] == (1_105, 0, 0)


def test_a_debit_waits_for_idle_money_but_not_for_what_is_spent(world):
    world.grant("lease_1", 1, 600)
    world.settle([Charge("lease_1", 100)])
    account = world.account.id

    def debit(amount_nano):
        return lambda: world.wallets.move(account, "admin_debit", -amount_nano)

    asked = []

    def give_back():
        world.wallets.recall(account)
        assert "lease_1" in world.budgets.sync(INCARNATION, []).recall
        asked.append(world.budgets.give_back("lease_1", 250, len(asked) + 1))

    patiently(debit(800), give_back, lambda _: None)
    assert asked == [True, True]
    assert world.limits()["wallet"] == (200, 100, 0)
    with pytest.raises(InsufficientFunds) as caught:
        patiently(debit(101), lambda: pytest.fail("nothing to recall"), lambda _: None)
    assert not caught.value.only_leased


def test_a_debit_gives_up_when_nothing_comes_back(world):
    world.grant("lease_1", 1, 600)
    times = iter([0.0, 1.0, 1.9, 2.1])
    with pytest.raises(InsufficientFunds) as caught:
        patiently(
            lambda: world.wallets.move(world.account.id, "admin_debit", -500),
            lambda: world.wallets.recall(world.account.id),
            lambda _: None,
            lambda: next(times),
        )
    assert caught.value.only_leased
    assert list(times) == []
