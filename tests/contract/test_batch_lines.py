"""The rule that no line of a batch is sent twice, step by step, on both databases."""

import pytest
from sqlalchemy import insert, update

from services.backends.sql.batch_claims import BatchClaims
from services.backends.sql.batch_lines import BatchLines
from services.backends.sql.batch_records import BatchLost, NewLine, request_of
from services.backends.sql.batches import Batches
from services.backends.sql.engine import write
from services.backends.sql.lease_records import LeaseEnd
from services.backends.sql.tables import dead_event, incarnation, settlement
from services.core.batches import LineState, Lost, Phase
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World

STATES = list(LineState)


class House:
    """A batch of some lines in `world`."""

    def __init__(self, engine) -> None:  # noqa: F811
        self.engine = engine
        self.world = World(engine, 1_000_000)
        self.batches = Batches(engine)
        self.claims = BatchClaims(engine, 30.0)
        self.lines = BatchLines(engine)

    def make(self, **given):
        account = self.world.account
        return self.batches.create(
            account.id,
            self.world.key.id,
            "/v1/messages",
            input_id="",
            lines_id="",
            headers={},
            extra={},
            total=0,
            keep_s=60,
            open_max=given.get("open_max", 10),
        )

    def started(self, count=3):
        self.make()
        held = self.claims.claim()
        return self.claims.start(held, [NewLine(f"l{i}", 10 * i, 10) for i in range(count)])

    def line(self, held, no):
        return next(each for each in self.claims.page(held, STATES, 0) if each.no == no)

    def move(self, incarnation_id, state):
        statement = update(incarnation).where(incarnation.c.id == incarnation_id)
        write(self.engine, lambda c: c.execute(statement.values(state=state)))

    def settled(self, request_id, outcome="completed", charged_nano=1):
        row = {
            "request_id": request_id,
            "event_id": f"{request_id}:usage",
            "account_id": self.world.account.id,
            "key_id": self.world.key.id,
            "charged_nano": charged_nano,
            "cost_nano": charged_nano,
            "provider_cost_nano": 0,
            "outcome": outcome,
            "occurred_at": 1,
        }
        write(self.engine, lambda c: c.execute(insert(settlement).values(row)))

    def dead(self, request_id):
        row = {
            "topic": "t",
            "partition": 0,
            "offset": 1,
            "event_id": f"{request_id}:usage",
            "account_id": self.world.account.id,
            "reason": "hash_conflict",
            "detail": "",
            "body": b"{}",
            "state": "dead",
            "dead_at": 1,
        }
        write(self.engine, lambda c: c.execute(insert(dead_event).values(row)))


@pytest.fixture
def house(engine):  # noqa: F811
    return House(engine)


def test_a_try_is_taken_once_and_never_after_it_was_given_up(house):
    held = house.started()
    first, second = house.lines.begin(held, 2)
    assert (first.no, second.no, first.try_no) == (1, 2, 1)
    assert house.lines.take(held.id, 1, 1, INCARNATION)
    assert not house.lines.take(held.id, 1, 1, "edge-2")
    assert not house.lines.take(held.id, 2, 2, INCARNATION)
    assert not house.lines.take(held.id, 3, 1, INCARNATION)
    assert house.lines.left(held, [second], over=False) == 0
    assert house.line(held, 2).state is LineState.QUEUED
    assert not house.lines.take(held.id, 2, 1, INCARNATION)
    again = house.lines.begin(held, 1)[0]
    assert (again.no, again.try_no) == (2, 2)
    assert request_of(held, again) != request_of(held, second)
    assert not house.lines.end(second, LineState.SUCCEEDED)  # of an older try
    assert not house.lines.take(held.id, 2, 1, INCARNATION)
    assert house.lines.take(held.id, 2, 2, INCARNATION)


def test_a_taken_line_waits_for_the_books(house):
    held = house.started(7)
    lines = house.lines.begin(held, 7)
    house.world.budgets.open_incarnation("edge-2", "edge", "here")
    for line, worker in zip(lines, [INCARNATION] * 5 + ["edge-2", "edge-2"], strict=True):
        assert house.lines.take(held.id, line.no, 1, worker)
    assert house.lines.left(held, lines, over=False) == 7
    house.settled(request_of(held, lines[0]))
    house.settled(request_of(held, lines[3]), "client_gone", 0)
    house.settled(request_of(held, lines[4]), "failed", 0)
    house.dead(request_of(held, lines[1]))
    house.move("edge-2", "lost")
    assert house.lines.left(held, lines, over=False) == 1
    told = [house.line(held, line.no) for line in lines]
    assert [(each.state, each.code) for each in told] == [
        (LineState.ERRORED, Lost.CHARGED),
        (LineState.ERRORED, Lost.UNKNOWN),
        (LineState.SENDING, ""),
        (LineState.ERRORED, Lost.INTERRUPTED),
        (LineState.ERRORED, Lost.FAILED),
        (LineState.ERRORED, Lost.UNKNOWN),
        (LineState.ERRORED, Lost.UNKNOWN),
    ]
    assert house.claims.now(held).errored == 6
    assert house.lines.left(held, [lines[2]], over=True) == 0
    assert house.claims.now(held).errored == 7


def test_what_a_closed_worker_never_admitted_is_sent_again(house):
    held = house.started(1)
    house.world.grant("lease-1", 1, 100)
    line = house.lines.begin(held, 1)[0]
    assert house.lines.take(held.id, 1, 1, INCARNATION)
    house.move(INCARNATION, "closed")
    assert house.lines.left(held, [line], over=False) == 1  # an event may still be on its way
    house.world.settle([], [LeaseEnd("lease-1", 0)])
    assert house.lines.left(held, [line], over=False) == 0
    assert house.line(held, 1).state is LineState.QUEUED


def test_one_batch_of_an_account_is_worked_on_at_a_time(house):
    first, second = house.make(), house.make()
    held = house.claims.claim()
    assert held.id == first.id
    assert house.claims.claim() is None
    house.claims.give_back(held, 30.0)
    assert house.claims.claim() is None  # the other one was put off for a moment
    write(
        house.engine,
        lambda c: c.exec_driver_sql("UPDATE batch SET next_at = 1 WHERE claims = 0"),
    )
    taken = house.claims.claim()
    assert taken.id in (first.id, second.id)
    assert taken.epoch >= 1


def test_who_lost_a_batch_writes_nothing_more(house):
    held = house.started()
    write(house.engine, lambda c: c.exec_driver_sql("UPDATE batch SET next_at = 1"))
    heir = house.claims.claim()
    assert (heir.id, heir.epoch) == (held.id, held.epoch + 1)
    for step in (
        lambda: house.lines.begin(held, 1),
        lambda: house.claims.give_back(held, 0),
        lambda: house.claims.end_queued(held, LineState.CANCELED),
        lambda: house.claims.end(held, Phase.COMPLETED, None, None),
        lambda: house.claims.now(held),
    ):
        with pytest.raises(BatchLost):
            step()
    line = house.lines.begin(heir, 1)[0]
    assert house.lines.end(line, LineState.SUCCEEDED, status=200)
    assert not house.lines.end(line, LineState.ERRORED)
    assert house.claims.now(heir).succeeded == 1


def test_a_cancelled_batch_ends_what_it_did_not_send(house):
    held = house.started()
    sent = house.lines.begin(held, 1)[0]
    house.batches.cancel(held.id)
    assert house.claims.now(held).cancel_at is not None
    after = house.claims.end_queued(held, LineState.CANCELED)
    assert after.canceled == 2
    assert house.lines.begin(held, 5) == []
    assert house.lines.end(sent, LineState.SUCCEEDED, status=200)
