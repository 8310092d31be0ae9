"""The watched figures of the books, on both engines."""

from schemas.events import encode
from services.backends.sql.engine import write
from services.backends.sql.figures import Figures
from services.backends.sql.ledger import DeadRow, Entry, LedgerStore
from services.backends.sql.plans import Plans
from services.backends.sql.tables import balance
from services.core.ledger import Posting
from tests.contract.test_sql_plans import TOPIC, plan
from tests.parts.outbox_worker import request, usage
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World

USD = 1_000_000_000


def test_empty_books(engine):  # noqa: F811
    figures = Figures(engine)
    assert figures.trial_balance_nano() == 0
    assert figures.leases() == (0, 0, 0, 0.0)
    assert figures.dead() == ({}, 0)
    assert figures.open_plan_age_s(TOPIC) == 0


def test_money_of_ended_workers_is_stranded(engine):  # noqa: F811
    world = World(engine, wallet_nano=10 * USD)
    world.budgets.open_incarnation("edge-2", "edge", "there")
    world.grant("lease_a", 1, USD)
    world.grant("lease_b", 1, 2 * USD, incarnation="edge-2")
    world.grant("lease_c", 1, 3 * USD, incarnation="edge-2")
    figures = Figures(engine)
    assert figures.leases() == (6 * USD, 0, 0, 0.0)
    world.budgets.start_closing("edge-2")
    found = figures.leases()
    assert found[:3] == (6 * USD, 5 * USD, 2)
    assert 0 <= found.oldest_s < 60
    world.budgets.start_closing(INCARNATION)
    assert figures.leases()[:3] == (6 * USD, 6 * USD, 3)


def test_books_that_do_not_add_up_show(engine):  # noqa: F811
    store = LedgerStore(engine)
    postings = (Posting("wallet:a", -5), Posting("revenue", 5))
    write(engine, lambda c: store.add_postings(c, [Entry("e1", 1, postings)]))
    figures = Figures(engine)
    assert figures.trial_balance_nano() == 0
    wrong = balance.update().where(balance.c.ledger_account == "revenue").values(amount_nano=2)
    write(engine, lambda c: c.execute(wrong))
    assert figures.trial_balance_nano() == -3


def test_what_dead_events_would_charge_is_in_suspense(engine):  # noqa: F811
    store, figures = LedgerStore(engine), Figures(engine)

    def kill(offset, reason, body):
        row = DeadRow(offset, f"e{offset}", "acct_1", reason, "", body)
        write(engine, lambda c: store.add_dead(c, TOPIC, 0, [row]))

    kill(1, "unknown_account", encode(usage(1)))
    kill(2, "bad_json", b"\xff no event")
    kill(3, "unknown_account", encode(request(3)))
    assert figures.dead() == ({"unknown_account": 2, "bad_json": 1}, 100)
    kill(4, "late", encode(usage(4)))  # posted as our loss
    kill(5, "price_mismatch", encode(usage(5)))
    found = {"unknown_account": 2, "bad_json": 1, "late": 1, "price_mismatch": 1}
    assert figures.dead() == (found, 200)
    assert figures.dead() == (found, 200)


def test_an_open_plan_ages(engine):  # noqa: F811
    plans, figures = Plans(engine), Figures(engine)
    plans.claim(TOPIC, 0)
    assert plans.open(plan(0, 9), 1)
    first = figures.open_plan_age_s(TOPIC)
    assert 0 <= first < 60
    assert figures.open_plan_age_s(TOPIC) >= first
    assert plans.done(plan(0, 9), 1)
    assert figures.open_plan_age_s(TOPIC) == 0
