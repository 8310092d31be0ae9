"""Rates at the centre on both engines: strict under racing workers, slots end with their worker."""

import itertools
import random
import threading
import time

import pytest
from sqlalchemy import select

from services.backends.sql.budgets import Budgets, IncarnationNotOpen
from services.backends.sql.engine import read
from services.backends.sql.incarnations import Incarnations
from services.backends.sql.rate_tables import rate, rate_slot
from services.backends.sql.rates import Rates, RoundOutOfOrder
from services.core.rates import BUCKETS, Kind, Line
from tests.parts.postgres import database_url, engine  # noqa: F401

MINUTE_US = 2_400_000  # of these tests
WIDTH_US = MINUTE_US // BUCKETS


class Workers:
    """Some open incarnations and the rounds that they make."""

    def __init__(self, engine) -> None:  # noqa: F811
        self.engine = engine
        self.rates = Rates(engine, MINUTE_US)
        self.budgets = Budgets(engine)
        self._numbers = itertools.count(1)
        for name in ("edge-1", "edge-2", "edge-3"):
            self.budgets.open_incarnation(name, "edge", "here")

    def round(self, worker, lines, asks=(), tokens=None, recall=(), number=None):
        return self.rates.round(
            f"edge-{worker}", number or next(self._numbers), lines, asks, tokens, recall
        )

    def keep(self, worker, keep, n=1, limit=5):
        """Asks for `n` slots more than the worker keeps; how many it keeps then."""
        line = Line("acct_a", Kind.CONCURRENCY, limit, keep=keep)
        answer = self.round(worker, [line], [[0]] * n)
        return keep + answer.ruling.taken[0].n

    def start(self, worker, n=1, limit=5):
        """How many of `n` requests may start."""
        line = Line("acct_a", Kind.REQUESTS, limit)
        return self.round(worker, [line], [[0]] * n).ruling.taken[0].n

    def slots(self):
        query = select(rate_slot.c.incarnation_id, rate_slot.c.slots)
        return dict(read(self.engine, lambda connection: connection.execute(query).all()))


@pytest.fixture
def workers(engine):  # noqa: F811
    return Workers(engine)


def test_slots_of_all_workers_count(workers):
    assert workers.keep(1, 0, n=3) == 3
    assert workers.keep(2, 0, n=3) == 2
    assert workers.keep(3, 0) == 0
    assert workers.slots() == {"edge-1": 3, "edge-2": 2, "edge-3": 0}


def test_a_refusal_tells_how_much_is_used(workers):
    workers.keep(1, 0, n=5)
    line = Line("acct_a", Kind.CONCURRENCY, 5)
    (failing,) = workers.round(2, [line], [[0]]).ruling.failing
    assert [(each.line, each.used, each.wait_us) for each in failing] == [(0, 5, 0)]


def test_what_a_worker_keeps_no_more_is_free_at_once(workers):
    workers.keep(1, 0, n=5)
    workers.round(1, [Line("acct_a", Kind.CONCURRENCY, 5, keep=2)])
    assert workers.keep(2, 0, n=5) == 3


def test_a_round_whose_answer_was_lost_is_put_right_by_the_next(workers):
    workers.keep(1, 0, n=2)  # the worker does not know that it has them
    assert workers.keep(1, 0, n=2) == 2
    assert workers.slots()["edge-1"] == 2


def test_a_round_that_comes_late_changes_nothing(workers):
    line = Line("acct_a", Kind.CONCURRENCY, 5)
    workers.round(1, [line], [[0]] * 3, number=1007)
    for late in (1007, 1006):
        with pytest.raises(RoundOutOfOrder):
            workers.round(1, [line], [[0]] * 5, number=late)
    assert workers.slots() == {"edge-1": 3}


def test_slots_end_with_their_worker(workers):
    workers.keep(1, 0, n=5)
    assert workers.keep(2, 0) == 0
    workers.budgets.start_closing("edge-1")
    assert workers.keep(2, 0, n=5) == 5
    with pytest.raises(IncarnationNotOpen):
        workers.keep(1, 5)
    assert workers.rates.sweep() == 5
    assert workers.slots() == {"edge-2": 5}


def test_slots_of_a_lost_host_end_too(workers):
    workers.keep(1, 0, n=5)
    Incarnations(workers.engine, workers.budgets).lose("edge-1")
    assert workers.keep(2, 0, n=5) == 5


def test_an_unknown_worker_gets_nothing(workers):
    with pytest.raises(IncarnationNotOpen):
        workers.keep(9, 0)
    assert workers.slots() == {}


def test_a_lowered_limit_takes_nothing_away_and_gives_nothing(workers):
    workers.keep(1, 0, n=5)
    assert workers.keep(1, 5, limit=2) == 5
    assert workers.keep(1, 1, limit=2) == 2


def test_several_limits_are_taken_together_or_not_at_all(workers):
    lines = [
        Line("acct_a", Kind.CONCURRENCY, 10),
        Line("key_b", Kind.CONCURRENCY, 2),
        Line("key_b", Kind.REQUESTS, 10),
    ]
    answer = workers.round(1, lines, [[0, 1, 2]] * 3)
    assert [bool(failing) for failing in answer.ruling.failing] == [False, False, True]
    assert [taken.n for taken in answer.ruling.taken] == [2, 2, 2]


def test_a_minute_holds_no_more_starts_than_the_limit(workers):
    assert workers.start(1, n=4) == 4
    assert workers.start(2, n=4) == 1
    line = Line("acct_a", Kind.REQUESTS, 5)
    ((failing,),) = workers.round(3, [line], [[0]]).ruling.failing
    assert failing.used == 5
    assert 0 < failing.wait_us <= MINUTE_US + 2 * WIDTH_US
    time.sleep(failing.wait_us / 1e6)
    assert workers.start(1, n=4) >= 1


def test_starts_that_were_not_used_come_back(workers):
    line = Line("acct_a", Kind.REQUESTS, 100, want=20)
    taken = workers.round(1, [line], [[0]]).ruling.taken[0]
    assert (taken.n, taken.used) == (21, 21)
    assert 0 < taken.valid_us <= 2 * WIDTH_US
    line = Line("acct_a", Kind.REQUESTS, 100, back=20, bucket=taken.bucket)
    assert workers.round(1, [line], [[0]]).ruling.taken[0].used == 2


def test_tokens_of_all_workers_are_told_to_each(workers):
    assert sum(workers.round(1, [], tokens={"key_b": 70}).tokens["key_b"].values()) == 70
    told = workers.round(2, [], tokens={"key_b": 30, "acct_a": 0}).tokens
    assert {subject: sum(counts.values()) for subject, counts in told.items()} == {
        "key_b": 100,
        "acct_a": 0,
    }


def test_a_recall_is_seen_and_fades(workers):
    workers.round(1, [], recall=["acct_a"])
    workers.keep(1, 0)
    assert workers.rates.recalled(["acct_a", "key_b"]) == {"acct_a"}
    deadline = time.monotonic() + 10
    while workers.rates.recalled(["acct_a"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_old_minutes_are_not_kept(workers):
    workers.start(1, n=5)
    time.sleep((MINUTE_US + 2 * WIDTH_US) / 1e6)
    workers.start(1)
    query = select(rate.c.requests)
    stored = read(workers.engine, lambda connection: connection.execute(query).scalar_one())
    assert stored.count(":") == 1


def test_racing_workers_never_pass_a_limit(workers):
    """Each worker follows the protocol in threads of its own, with some answers lost."""
    limit, problems, most = 7, [], []
    in_use, lock = [0, 0, 0], threading.Lock()

    def run(index):
        mixed = random.Random(index)
        numbers = itertools.count(1)
        kept = 0
        try:
            for _ in range(60):
                n = mixed.randrange(1, 4)
                line = Line("acct_a", Kind.CONCURRENCY, limit, keep=kept)
                answer = workers.rates.round(f"edge-{index + 1}", next(numbers), [line], [[0]] * n)
                if mixed.random() < 0.8:  # else as if the answer had been lost
                    kept += answer.ruling.taken[0].n
                with lock:
                    in_use[index] = kept
                    most.append(sum(in_use))
                kept = mixed.randrange(kept + 1)
                with lock:
                    in_use[index] = kept  # ours first, the centre after
        except Exception as ex:
            problems.append(ex)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not problems
    assert limit // 2 <= max(most) <= limit


def test_racing_workers_never_pass_a_minute(workers):
    """Every start that was granted happened between its grant and the end of its bucket."""
    limit, begun, lock = 10, [], threading.Lock()
    end_s = time.monotonic() + 2 * MINUTE_US / 1e6
    problems = []

    def run(index):
        try:
            while time.monotonic() < end_s:
                before_s = time.monotonic()
                n = workers.start(index + 1, n=2, limit=limit)
                with lock:
                    begun.extend([(before_s, time.monotonic())] * n)
        except Exception as ex:
            problems.append(ex)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not problems
    assert len(begun) > limit
    minute_s = MINUTE_US / 1e6
    for begin, _ in begun:  # what surely happened in the minute from then on
        assert sum(a >= begin and b < begin + minute_s for a, b in begun) <= limit
