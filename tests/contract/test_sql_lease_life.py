"""Random lives of leases against a model that knows only the promises (SQLite: it is quick)."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import event

from services.backends.sql.budgets import (
    Charge,
    IncarnationNotOpen,
    KeyNotActive,
    LeaseEnd,
    LeaseNotOpen,
    SettleRefused,
    Shortfall,
)
from services.backends.sql.engine import open_engine
from services.backends.sql.wallets import InsufficientFunds
from tests.parts.sql_world import INCARNATION, World, guard_limits
from tests.parts.sqlite import migrated_url

NAMES = ["lease_a", "lease_b", "lease_c", "lease_d"]
LEASES = st.sampled_from(NAMES)
SMALL = st.integers(0, 60)


class Book:
    """What the promises say about one lease."""

    def __init__(self):
        self.amount = self.consumed = self.events = 0
        self.grants = []
        self.gives = []
        self.total = None

    @property
    def closed(self):
        return self.total is not None and self.events == self.total


class LeaseLife(RuleBasedStateMachine):
    @initialize(
        wallet=st.integers(40, 300), quota=st.none() | st.integers(1, 300), need=st.integers(0, 40)
    )
    def start(self, wallet, quota, need):
        self.folder = Path(tempfile.mkdtemp(prefix="tollgate-lease-life-"))
        self.engine = open_engine(migrated_url(self.folder), self.folder)
        event.listen(
            self.engine,
            "connect",
            lambda connection, _: connection.execute("PRAGMA synchronous=OFF"),
        )
        self.world = World(self.engine, wallet, quota)
        guard_limits(self.engine)
        self.wallet, self.quota = wallet, quota
        self.books = {}
        self.closing = self.revoked = False
        self.steps = 0
        for name in NAMES[:3]:
            self.grant_once(name, need, 10)

    def pick(self, data, of):
        """One of the leases that exist, mostly among those that `of` likes."""
        liked = [name for name in self.books if of(self.books[name])]
        return data.draw(st.sampled_from(liked or list(self.books) or NAMES))

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.dispose()
            shutil.rmtree(self.folder)

    def leased(self):
        return sum(b.amount - b.consumed for b in self.books.values() if not b.closed)

    def settled(self):
        return sum(b.consumed for b in self.books.values())

    def room(self):
        limits = [self.wallet] + ([] if self.quota is None else [self.quota])
        return min(limits) - self.settled() - self.leased()

    @rule(name=LEASES, need=SMALL, more=SMALL)
    def grant(self, name, need, more):
        self.grant_once(name, need, more)

    def grant_once(self, name, need, more):
        book = self.books.get(name, Book())
        try:
            granted = self.world.grant(name, len(book.grants) + 1, need, need + more)
        except IncarnationNotOpen:
            assert self.closing
        except KeyNotActive:
            assert self.revoked
        except LeaseNotOpen:
            assert book.total is not None
        except Shortfall as ex:
            missing = max(each.missing_nano for each in ex.failing)
            assert missing == need - self.room() > 0
        else:
            assert not self.closing
            assert not self.revoked
            assert book.total is None
            assert need <= granted.amount_nano <= need + more
            assert granted.amount_nano <= self.room()
            book.amount += granted.amount_nano
            book.grants.append(granted.amount_nano)
            self.books[name] = book
            assert granted.total_nano == book.amount

    @rule(name=LEASES)
    def the_reply_of_the_last_grant_was_lost(self, name):
        book = self.books.get(name)
        if book is None or self.closing or self.revoked or book.total is not None:
            return
        again = self.world.grant(name, len(book.grants), 0, 0)
        assert (again.amount_nano, again.total_nano) == (book.grants[-1], book.amount)

    @rule(data=st.data(), twice=st.booleans())
    def give_back(self, data, twice):
        name = self.pick(data, lambda book: book.total is None)
        book = self.books.get(name)
        nano = data.draw(st.integers(0, book.amount - book.consumed + 1 if book else 1))
        number = len(book.gives) + 1 if book else 1
        allowed = book is not None and book.total is None and nano <= book.amount - book.consumed
        assert self.world.budgets.give_back(name, nano, number) == allowed
        if allowed:
            book.amount -= nano
            book.gives.append(nano)
            if twice:
                assert self.world.budgets.give_back(name, nano, number)

    @rule(data=st.data(), number=st.integers(1, 4), wrong=st.integers(0, 9))
    def settle(self, data, number, wrong):
        charges = []
        for _ in range(number):
            name = self.pick(data, lambda book: not book.closed)
            book = self.books.get(name)
            left = book.amount - book.consumed if book else 5
            nano = data.draw(st.integers(0, left // number))
            charges.append((name, left + 1 if wrong == 0 else nano))
        taken = {}
        fits = True
        for name, nano in charges:
            book = self.books.get(name)
            if book is None:
                fits &= nano == 0
                continue
            sofar, events = taken.get(name, (0, 0))
            taken[name] = (sofar + nano, events + 1)
            fits &= not book.closed and book.consumed + sofar + nano <= book.amount
            fits &= book.total is None or book.events + events + 1 <= book.total
        try:
            self.world.settle([Charge(name, nano) for name, nano in charges])
        except SettleRefused:
            assert not fits
            return
        assert fits
        for name, (nano, events) in taken.items():
            self.books[name].consumed += nano
            self.books[name].events += events

    @rule(data=st.data(), later=st.integers(0, 2))
    def end(self, data, later):
        book = self.books.get(name := self.pick(data, lambda book: book.total is None))
        if book is None or book.total is not None:
            return
        self.world.settle([], [LeaseEnd(name, book.events + later)])
        book.total = book.events + later

    @rule(nano=st.integers(-80, 80).filter(bool))
    def move(self, nano):
        try:
            self.world.wallets.move(self.world.account.id, "correction", nano)
        except InsufficientFunds:
            assert self.wallet + nano < self.settled() + self.leased()
        else:
            self.wallet += nano

    @precondition(lambda self: not self.closing and self.steps > 15)
    @rule()
    def close_incarnation(self):
        self.closing = True
        live = sorted(name for name, book in self.books.items() if book.total is None)
        assert self.world.budgets.start_closing(INCARNATION) == live

    @precondition(lambda self: not self.revoked and self.steps > 20)
    @rule()
    def revoke(self):
        self.revoked = True
        self.world.catalog.revoke_key(self.world.key.id)

    @invariant()
    def the_limits_are_what_the_model_says(self):
        if not hasattr(self, "books"):
            return
        self.steps += 1
        assert self.world.limits() == {
            "wallet": (self.wallet, self.settled(), self.leased()),
            "key_quota": (self.quota, self.settled(), self.leased()),
        }
        for name, book in self.books.items():
            row = self.world.lease(name)
            assert (row.amount_nano, row.consumed_nano) == (book.amount, book.consumed)
            assert (row.events_applied, row.events_total) == (book.events, book.total)
            assert (row.state == "closed") == book.closed
        self.world.check()


LeaseLife.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
TestLeaseLife = LeaseLife.TestCase
