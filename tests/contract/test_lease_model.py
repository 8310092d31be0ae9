"""Leases against a plain model, in any order of steps: two workers with real lease books over real
budgets, a ledger that applies their events late and in any order, lost replies, kills, closings.

What is claimed in every step (metering, the four laws of a lease): no limit is passed by what is
settled and leased (the database itself refuses it); a worker never has more than the centre
granted, nor spends or reserves what it has not; the centre never counts more than was spent; a
lease ends with exactly what its events charged. In the end all money is back."""

import random
import shutil
import tempfile
from pathlib import Path

import gevent
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.backends.clock import FakeClock
from services.backends.sql.engine import DatabaseUnavailable, open_engine
from services.backends.sql.lease_records import Charge, LeaseEnd
from services.core.errors import Refusal
from services.core.ids import uuid7_hex
from services.edge.counters import Counters
from services.edge.leases import IDLE_CLOSE_S, IDLE_RETURN_S, LeaseBook
from tests.parts.sql_world import World, guard_limits
from tests.parts.sqlite import migrated_url

WALLET = 10_000
QUOTA = 4_000
NANO = st.integers(0, 3_000)
WHO = st.integers(0, 1)


class Threads:
    """Runs the call here. `trouble`: one fails before it, or its answer is lost, after `quiet`
    calls that go well."""

    trouble = ""
    quiet = 0

    def apply(self, fn, args=()):
        trouble = ""
        if self.quiet:
            self.quiet -= 1
        else:
            trouble, self.trouble = self.trouble, ""
        if trouble == "before":
            raise DatabaseUnavailable("nothing was done")
        answer = fn(*args)
        if trouble == "after":
            raise DatabaseUnavailable("the answer was lost")
        return answer


class Worker:
    """One incarnation: its book, what is in flight, and what it wrote, in order."""

    def __init__(self, world, log):
        self.id = f"edge-{uuid7_hex()}"
        self.world = world
        self.log = log  # events of all workers that the ledger has not applied
        self.clock = FakeClock()
        self.threads = Threads()
        self.flying = []
        self.leases = {}
        world.budgets.open_incarnation(self.id, "edge", "here")
        self.book = LeaseBook(
            world.budgets,
            self.id,
            self.threads,
            self.clock,
            Counters(),
            wait_s=0.0,
            on_closed=self._closed,
        )

    def admit(self, key, hold, least):
        held = self.book.reserve(key, hold, least)
        self.flying.append(held)
        self.leases[held.lease.id] = held.lease
        self._event(held.lease, 0)

    def end(self, place, cost):
        held = self.flying.pop(place % len(self.flying))
        charged = self.book.charge(held, cost)
        assert 0 <= charged <= cost
        self._event(held.lease, charged)
        self.book.settle(held, charged)
        return charged

    def _event(self, lease, charged):
        lease.events += 1
        self.log.append(Charge(lease.id, charged))

    def _closed(self, lease):
        self.log.append(LeaseEnd(lease.id, lease.events))


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tollgate-leases-"))
        self.engine = open_engine(migrated_url(self.folder), self.folder)
        self.world = World(self.engine, wallet_nano=WALLET, quota_nano=QUOTA)
        guard_limits(self.engine)
        plain, _ = self.world.catalog.create_key(self.world.account.id, "second")
        self.keys = [self.world.key, plain]
        self.log = []
        self.spent = {key.id: 0 for key in self.keys}
        self.topped_up = WALLET
        self.charged = {}  # lease id -> what its events charge in all
        self.workers = [Worker(self.world, self.log) for _ in range(2)]

    # -- what clients and the network do ----------------------------------------------------

    @rule(who=WHO, which=WHO, hold=NANO, less=NANO)
    def admit(self, who, which, hold, less):
        try:
            self.workers[who].admit(self.keys[which], hold, max(hold - less, 0))
        except Refusal:
            return

    @rule(who=WHO, place=st.integers(0, 50), cost=st.integers(0, 4_000))
    def end(self, who, place, cost):
        worker = self.workers[who]
        if worker.flying:
            held = worker.flying[place % len(worker.flying)]
            charged = worker.end(place, cost)
            self.spent[held.lease.key_id] += charged
            lease_id = held.lease.id
            self.charged[lease_id] = self.charged.get(lease_id, 0) + charged

    @rule(who=WHO, place=st.integers(0, 50), need=NANO)
    def grow(self, who, place, need):
        worker = self.workers[who]
        if worker.flying:
            worker.book.extend(worker.flying[place % len(worker.flying)], need)

    @rule(who=WHO, how=st.sampled_from(["before", "after"]), quiet=st.integers(0, 2))
    def lose_a_reply(self, who, how, quiet):
        threads = self.workers[who].threads
        threads.trouble, threads.quiet = how, quiet

    @rule(who=WHO, seconds=st.sampled_from([0.1, IDLE_RETURN_S + 0.1, IDLE_CLOSE_S + 0.1]))
    def poll(self, who, seconds):
        worker = self.workers[who]
        worker.clock.sleep(seconds)
        try:
            worker.book.poll()
        except DatabaseUnavailable:
            return

    @rule()
    def what_was_left_to_the_hub(self):
        gevent.idle()

    @rule(nano=st.integers(1, 1_000))
    def top_up(self, nano):
        self.world.wallets.move(self.world.account.id, "topup", nano, uuid7_hex())
        self.topped_up += nano

    # -- what the ledger and the reaper do ---------------------------------------------------

    @precondition(lambda self: self.log)
    @rule(count=st.integers(1, 10), seed=st.integers(0, 2**16))
    def apply(self, count, seed):
        """Any of the events that are left, in any order, in one transaction."""
        taken = random.Random(seed).sample(self.log, min(count, len(self.log)))
        for event in taken:
            self.log.remove(event)
        ends = [event for event in taken if isinstance(event, LeaseEnd)]
        charges = [event for event in taken if isinstance(event, Charge)]
        self.world.settle(charges, ends)

    @rule(who=WHO)
    def kill(self, who):
        """What was in flight is abandoned; the centre's list of leases is closed."""
        gevent.idle()
        worker = self.workers[who]
        for lease_id in self.world.budgets.start_closing(worker.id):
            lease = worker.leases.get(lease_id)
            written = lease.events if lease else 0
            for held in worker.flying:
                if held.lease.id == lease_id:
                    self.log.append(Charge(lease_id, 0))
                    written += 1
            if not any(isinstance(e, LeaseEnd) and e.lease_id == lease_id for e in self.log):
                self.log.append(LeaseEnd(lease_id, written))
        self.workers[who] = Worker(self.world, self.log)

    @rule(who=WHO)
    def close(self, who):
        """In order, unless the database is away: then as a death."""
        worker = self.workers[who]
        while worker.flying:
            self.end(who, 0, 0)
        try:
            if worker.book.close_all():
                self.workers[who] = Worker(self.world, self.log)
                return
        except DatabaseUnavailable:
            pass
        self.kill(who)

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def a_worker_has_what_was_granted(self):
        for worker in self.workers:
            for lease in worker.leases.values():
                assert lease.free_nano >= 0
                row = self.world.lease(lease.id)
                if row.state == "open":
                    assert lease.amount_nano <= row.amount_nano
                assert row.consumed_nano <= self.charged.get(lease.id, 0) <= row.amount_nano

    @invariant()
    def what_is_not_told_yet_is_known_of_every_limit(self):
        for worker in self.workers:
            figures = worker.book.figures
            for lease in worker.leases.values():
                assert lease in figures.leases or not lease.untold_nano or lease.closed
            for limit_id, leases in figures._leases.items():
                assert figures._untold_nano[limit_id] == sum(each.untold_nano for each in leases)

    @invariant()
    def the_sums_are_those_of_the_leases(self):
        self.world.check()

    @invariant()
    def what_is_spent_and_held_fits(self):
        held = {key.id: 0 for key in self.keys}
        for worker in self.workers:
            for reservation in worker.flying:
                held[reservation.lease.key_id] += reservation.hold_nano
        assert self.spent[self.keys[0].id] + held[self.keys[0].id] <= QUOTA
        assert sum(self.spent.values()) + sum(held.values()) <= self.topped_up

    def teardown(self):
        try:
            for who in (0, 1):
                self.kill(who)
            while self.log:
                self.apply(7, 0)
            limits = self.world.limits()
            total = sum(self.spent.values())
            assert limits["wallet"] == (self.topped_up, total, 0)
            # Nothing is stuck: all that is left can be spent at once.
            left = self.topped_up - total
            self.workers[0].admit(self.keys[1], left, left)
        finally:
            self.engine.dispose()
            shutil.rmtree(self.folder)


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
