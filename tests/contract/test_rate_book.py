"""Rates at several workers over the real centre, on both engines: from memory, in rounds, recalled,
and when an answer of the centre is lost."""

import random

import gevent
import pytest

from schemas.errors import Code
from services.backends.clock import SystemClock
from services.backends.outbox import Sealed
from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.rates import Rates
from services.core.errors import Refusal
from services.core.rates import BUCKETS, MINUTE_US, SMALL_CONCURRENCY, Rule
from services.edge.counters import Counters
from services.edge.rates import RateBook
from tests.parts.postgres import database_url, engine  # noqa: F401


class Inline:
    """Runs the call here; `lose` makes the next answers be lost after they took effect."""

    def __init__(self) -> None:
        self.calls = 0
        self.lose = 0

    def apply(self, fn, args=()):
        self.calls += 1
        answer = fn(*args)
        if self.lose:
            self.lose -= 1
            raise DatabaseUnavailable("the answer was lost")
        return answer


class Desk:
    """One worker."""

    def __init__(self, engine, number, minute_us):  # noqa: F811
        name = f"edge-{number}"
        Budgets(engine).open_incarnation(name, "edge", "here")
        self.threads = Inline()
        self.counters = Counters()
        rates = Rates(engine, minute_us)
        self.book = RateBook(rates, name, self.threads, SystemClock(), self.counters)

    def admit(self, *rules, tokens=0):
        return self.book.admit(rules, tokens)

    def all_it_gets(self, *rules, most=1000):
        got = []
        try:
            while len(got) < most:
                got.append(self.admit(*rules))
        except Refusal as ex:
            return got, ex
        return got, None


@pytest.fixture
def open_desk(engine):  # noqa: F811
    count = 0

    def make(minute_us=MINUTE_US):
        nonlocal count
        count += 1
        return Desk(engine, count, minute_us)

    return make


@pytest.fixture
def polling():
    """Polls the books of desks, as their workers do."""
    greenlets = []

    def start(*desks):
        def poll(desk):
            while True:
                desk.book.poll()
                gevent.sleep(0.05)

        greenlets.extend(gevent.spawn(poll, desk) for desk in desks)

    yield start
    gevent.killall(greenlets)


def test_a_full_concurrency_is_refused_and_named(open_desk):
    ours, theirs = open_desk(), open_desk()
    rule = Rule("acct_a", "account", concurrency=3)
    first = [ours.admit(rule), theirs.admit(rule), ours.admit(rule)]
    with pytest.raises(Refusal) as caught:
        theirs.admit(rule)
    assert caught.value.code is Code.CONCURRENCY_LIMIT
    assert caught.value.message.startswith("concurrency_limit: 3 of 3 requests at once of this acc")
    assert caught.value.retry_after_s in (1, 2, 3)
    first[0].end(wait_s=5)
    gevent.sleep(0.15)  # a refusal of a moment ago is repeated from memory
    theirs.admit(rule)


def test_a_permit_ends_once(open_desk):
    desk, rule = open_desk(), Rule("acct_a", "account", concurrency=2)
    permits = [desk.admit(rule), desk.admit(rule)]
    for _ in range(3):
        permits[0].end(wait_s=5)
    assert len(desk.all_it_gets(rule)[0]) == 1


def test_several_limits_hold_at_once_and_a_refusal_holds_nothing(open_desk):
    desk = open_desk()
    account = Rule("acct_a", "account", concurrency=5, requests_per_min=9)
    key = Rule("key_b", "key", concurrency=2)
    held, refusal = desk.all_it_gets(key, account)
    assert len(held) == 2
    assert "this key" in refusal.message
    other = Rule("key_c", "key", concurrency=100)
    more, refusal = desk.all_it_gets(other, account)
    assert len(more) == 3
    assert "this account" in refusal.message
    for permit in held + more:
        permit.end(wait_s=5)
    got = 0
    while refusal.code is Code.CONCURRENCY_LIMIT:
        found, refusal = desk.all_it_gets(other, account, most=1)
        got += len(found)
        for permit in found:
            permit.end(wait_s=5)
        if not found:
            break
        refusal = refusal or Refusal(Code.CONCURRENCY_LIMIT, "")
    assert got == 9 - 5  # of nine starts the refused requests used none
    assert refusal.code is Code.RATE_LIMIT_EXCEEDED


def test_requests_per_minute_tell_when_there_is_room(open_desk):
    ours, theirs = open_desk(), open_desk()
    rule = Rule("key_b", "key", requests_per_min=4)
    assert len(ours.all_it_gets(rule, most=3)[0]) == 3
    got, refusal = theirs.all_it_gets(rule)
    assert len(got) == 1
    assert refusal.code is Code.RATE_LIMIT_EXCEEDED
    assert refusal.message.startswith(
        "rate_limit_requests exceeded: 4 / 4 requests per minute of this key used"
    )
    assert 50 <= refusal.retry_after_s <= 61
    headers = dict(theirs.book.headers((rule,)))
    assert headers["x-ratelimit-limit-requests"] == "4"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 50 <= int(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 61


def test_a_minute_later_there_is_room_again(open_desk):
    minute_us = 2_400_000
    desk, rule = open_desk(minute_us), Rule("key_b", "key", requests_per_min=4)
    assert len(desk.all_it_gets(rule)[0]) == 4
    gevent.sleep(minute_us / 1e6 * (1 + 3 / BUCKETS))
    assert len(desk.all_it_gets(rule)[0]) == 4


@pytest.mark.parametrize("rule", [
    Rule("acct_a", "account", concurrency=SMALL_CONCURRENCY * 4),
    Rule("acct_a", "account", requests_per_min=600),
])  # fmt: skip
def test_of_a_large_limit_some_is_taken_in_advance(open_desk, rule):
    desk = open_desk()
    desk.admit(rule)
    calls = desk.threads.calls
    for _ in range(3):
        desk.admit(rule)
    assert desk.threads.calls == calls


@pytest.mark.parametrize("rule", [
    Rule("acct_a", "account", concurrency=200),
    Rule("acct_a", "account", requests_per_min=400),
])  # fmt: skip
def test_a_large_limit_can_be_used_whole_and_not_passed(open_desk, polling, rule):
    """What lies idle at the others is recalled."""
    desks = [open_desk() for _ in range(3)]
    polling(*desks)
    limit = rule.concurrency or rule.requests_per_min
    held = [permit for desk in desks for permit in desk.all_it_gets(rule, most=2)[0]]
    got, refusal = desks[0].all_it_gets(rule)
    assert refusal is not None
    assert len(held) + len(got) == limit


def test_idle_slots_come_back_by_themselves(open_desk, polling):
    ours, theirs = open_desk(), open_desk()
    rule = Rule("acct_a", "account", concurrency=160)
    ours.admit(rule).end()
    polling(ours)
    gevent.sleep(4.5)  # two looks
    calls = theirs.threads.calls
    assert len(theirs.all_it_gets(rule, most=160)[0]) == 160
    assert theirs.threads.calls - calls < 40


def test_a_crowd_asks_in_few_rounds(open_desk):
    desk, rule = open_desk(), Rule("acct_a", "account", concurrency=5)
    answers = []

    def one():
        try:
            answers.append(desk.admit(rule))
        except Refusal as ex:
            answers.append(ex.code)

    gevent.joinall([gevent.spawn(one) for _ in range(64)], timeout=60)
    assert answers.count(Code.CONCURRENCY_LIMIT) == 59
    assert desk.threads.calls <= 3


def test_lost_answers_cost_nothing_in_the_end(open_desk):
    desk, rule = open_desk(), Rule("acct_a", "account", concurrency=2)
    desk.threads.lose = 2
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            desk.admit(rule)
        assert caught.value.code is Code.UNAVAILABLE
    held, _ = desk.all_it_gets(rule)
    assert len(held) == 2
    desk.threads.lose = 1
    held[0].end(wait_s=5)  # does not hang, does not raise
    desk.book.poll()
    assert len(desk.all_it_gets(rule)[0]) == 1


def test_a_worker_that_was_ended_gets_nothing(open_desk, engine):  # noqa: F811
    desk, rule = open_desk(), Rule("acct_a", "account", concurrency=2)
    desk.admit(rule)
    Budgets(engine).start_closing("edge-1")
    with pytest.raises(Sealed):
        desk.admit(rule)
    assert len(open_desk().all_it_gets(rule)[0]) == 2


def test_a_worker_that_stops_gives_everything_back(open_desk):
    ours, theirs = open_desk(), open_desk()
    rule = Rule("acct_a", "account", concurrency=200, requests_per_min=400)
    ours.admit(rule).end()
    ours.book.close()
    assert len(theirs.all_it_gets(rule, most=200)[0]) == 200


def test_tokens_are_admitted_by_estimate_and_counted_as_they_flow(open_desk):
    ours, theirs = open_desk(), open_desk()
    rule = Rule("key_b", "key", tokens_per_min=1_000)
    running = ours.admit(rule, tokens=300)
    running.flowed(200)
    ours.admit(rule, tokens=400).end(500)  # more than estimated: 1,000 in all
    with pytest.raises(Refusal) as caught:
        ours.admit(rule, tokens=1)
    assert caught.value.code is Code.RATE_LIMIT_EXCEEDED
    assert caught.value.message.startswith(
        "rate_limit_tokens exceeded: 1000 / 1000 tokens per minute of this key used"
    )
    assert 1 <= caught.value.retry_after_s <= 61
    gevent.sleep(0.6)
    ours.book.poll()  # others hear of it
    with pytest.raises(Refusal):
        theirs.admit(rule, tokens=1)
    running.end(300)  # it made less in the end
    gevent.sleep(0.6)
    ours.book.poll()
    gevent.sleep(1.1)
    theirs.admit(rule, tokens=150)
    headers = dict(theirs.book.headers((rule,)))
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-remaining-tokens"] == "50"


def test_a_request_larger_than_the_minute_never_fits(open_desk):
    with pytest.raises(Refusal, match="it never fits") as caught:
        open_desk().admit(Rule("key_b", "key", tokens_per_min=100), tokens=101)
    assert caught.value.retry_after_s is None


def test_a_changed_limit_holds_from_the_next_request_on(open_desk):
    desk = open_desk()
    assert len(desk.all_it_gets(Rule("acct_a", "account", concurrency=2))[0]) == 2
    assert len(desk.all_it_gets(Rule("acct_a", "account", concurrency=5))[0]) == 3
    assert desk.all_it_gets(Rule("acct_a", "account", concurrency=1))[0] == []


def test_limits_that_nobody_uses_are_forgotten(open_desk, monkeypatch):
    monkeypatch.setattr("services.edge.rates.FORGET_S", 0.05)
    desk = open_desk()
    rule = Rule("acct_a", "account", concurrency=200, requests_per_min=9, tokens_per_min=99)
    held = desk.admit(rule)
    gevent.sleep(0.1)
    desk.book.poll()
    assert desk.book.known > 0
    held.end(0)
    gevent.sleep(0.6)
    desk.book.close()
    gevent.sleep(0.1)
    desk.book.poll()
    assert desk.book.known == 0


@pytest.mark.parametrize("limit", [3, 150])
def test_random_work_at_three_workers_never_passes_a_limit(open_desk, polling, limit):
    desks = [open_desk() for _ in range(3)]
    polling(*desks)
    rule = Rule("acct_a", "account", concurrency=limit)
    running, most = 0, 0

    def client(number):
        nonlocal running, most
        mixed = random.Random(number)
        for _ in range(12):
            desk = mixed.choice(desks)
            try:
                permit = desk.admit(rule)
            except Refusal:
                gevent.sleep(mixed.uniform(0, 0.05))
                continue
            running += 1
            most = max(most, running)
            gevent.sleep(mixed.uniform(0, 0.05))
            running -= 1
            permit.end(wait_s=mixed.choice([0, 5]))
            desk.threads.lose = int(mixed.random() < 0.05)

    clients = [gevent.spawn(client, number) for number in range(limit * 3 // 2 + 5)]
    gevent.joinall(clients, timeout=120, raise_error=True)
    assert limit * 2 // 3 <= most <= limit
