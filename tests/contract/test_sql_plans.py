"""The ClickHouse sink's plans on both engines: one open plan per partition, one owner."""

import pytest
from sqlalchemy import select

from services.backends.sql import plans as module
from services.backends.sql.engine import read
from services.backends.sql.plans import Plan, Plans
from services.backends.sql.tables import sink_plan
from tests.parts.postgres import database_url, engine  # noqa: F401

TOPIC = "tollgate.events.v1"


@pytest.fixture
def plans(engine):  # noqa: F811
    return Plans(engine)


def plan(first, last, partition=0, dropped=("e1", "e2")):
    return Plan(TOPIC, partition, first, last, f"e{last}", last - first + 1, dropped, "ab" * 32, 1)


def test_plan_insert_confirm(plans):
    claim = plans.claim(TOPIC, 0)
    assert claim == (1, 0, "", None)
    assert plans.open(plan(0, 9), 1)
    assert plans.positions(TOPIC) == {0: 0}
    assert plans.done(plan(0, 9), 1)
    assert plans.positions(TOPIC) == {0: 10}
    assert plans.claim(TOPIC, 0) == (2, 10, "e9", None)


def test_an_open_plan_is_found_as_it_was_written(plans):
    plans.claim(TOPIC, 0)
    plans.claim(TOPIC, 1)
    written = plan(0, 9)
    assert plans.open(written, 1)
    claim = plans.claim(TOPIC, 0)
    assert claim.open_plan == written
    assert (claim.owner_epoch, claim.next_offset) == (2, 0)
    assert plans.claim(TOPIC, 1).open_plan is None
    assert plans.done(written, 2)
    assert plans.claim(TOPIC, 0).open_plan is None


def test_a_second_open_plan_is_refused(plans):
    plans.claim(TOPIC, 0)
    plans.claim(TOPIC, 1)
    assert plans.open(plan(0, 9), 1)
    assert not plans.open(plan(0, 5), 1)
    assert not plans.open(plan(10, 12), 1)
    assert plans.open(plan(0, 3, partition=1), 1)


def test_a_stale_owner_neither_plans_nor_confirms(plans):
    plans.claim(TOPIC, 0)
    assert plans.open(plan(0, 9), 1)
    plans.claim(TOPIC, 0)
    assert not plans.done(plan(0, 9), 1)
    assert plans.done(plan(0, 9), 2)
    assert not plans.done(plan(0, 9), 2)
    assert not plans.open(plan(10, 12), 1)
    assert not plans.open(plan(11, 12), 2)
    assert plans.open(plan(10, 12, dropped=()), 2)


def test_old_plans_are_forgotten(plans, engine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "KEPT", 5)
    plans.claim(TOPIC, 0)
    for first in range(20):
        assert plans.open(plan(first, first), 1)
        assert plans.done(plan(first, first), 1)
    kept = read(engine, lambda c: c.execute(select(sink_plan.c.first_offset)).scalars().all())
    assert kept == [15, 16, 17, 18, 19]
    assert plans.positions(TOPIC) == {0: 20}
