"""The ledger against a plain model, in any order of steps: a log of three partitions in which
events are repeated, contradicted and broken, sinks that take it in any batches, lose a commit, or
are fenced by another; dead events replayed and dismissed.

What is claimed in every step: each event counts once, the first that came; nothing of a broken or
contradicting one counts; trial balance 0; settled and leased are those of the leases and
settlements. In the end a ledger rebuilt from the log alone equals the living one to the nano, and
the whole log once more changes nothing."""

import random
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.events import TOPIC, Usage, encode
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Record
from services.backends.sql import spare_books
from services.backends.sql.engine import open_engine
from services.backends.sql.tables import dead_event, settlement
from services.core.ids import uuid7_text
from services.meter.consumer import NotOwner, TryLater
from services.meter.dead_repair import DeadRepair, StillDead
from services.meter.rebuild_ledger import LedgerRebuild, compare, ends_of
from services.meter.replay import replay
from tests.parts.books import USD, Books, record, records
from tests.parts.sqlite import migrated_url

ACCOUNTS = 3
WHO = st.integers(0, ACCOUNTS - 1)
SEED = st.integers(0, 2**16)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tollgate-ledger-"))
        self.books = Books(migrated_url(self.folder), self.folder)
        self.bus = LocalBus(self.folder / "bus.db", 3)
        self.bus.ensure_topics()
        self.producer = self.bus.producer()
        self.sink = self.books.sink()
        self.at = dict.fromkeys(self.bus.bounds(TOPIC), 0)
        for partition in self.at:
            self.sink.claim(partition)
        self.accounts = [self.books.account(10) for _ in range(ACCOUNTS)]
        self.leases = [self.books.lease(account, 5 * USD) for account in self.accounts]
        self.written: list[Record] = []
        self.usages: list[Usage] = []
        # The model: event id -> (account, nano), of what counts; and what is dead.
        self.sound: dict[str, tuple[str, int]] = {}
        self.broken: dict[str, tuple[str, int]] = {}
        self._send(self.books.sql_records())

    def _send(self, given: list[Record]) -> None:
        self.producer.send(TOPIC, given)
        self.written += given

    # -- what is written ---------------------------------------------------------------------

    @rule(who=WHO, units=st.integers(1, 5_000))
    def bill(self, who, units):
        lease = self.leases[who]
        request = lease.request()
        usage = lease.usage(request.request_id, input=units)
        self.usages.append(usage)
        self.sound[usage.event_id] = (usage.account_id, usage.charged_nano)
        self._send(records([request, usage]))

    @rule(who=WHO)
    def fail(self, who):
        lease = self.leases[who]
        request = lease.request()
        self._send(records([request, lease.error(request.request_id, provider_cost_nano=7)]))

    @rule(who=WHO)
    def misprice(self, who):
        """An event that the rating contradicts: dead, and nothing of it counts."""
        usage = self.leases[who].usage(uuid7_text())
        usage.charged_nano, usage.cost_nano = usage.charged_nano + 1, usage.cost_nano + 1
        self.broken[usage.event_id] = (usage.account_id, usage.charged_nano)
        self._send([record(usage)])

    @rule(who=WHO)
    def garble(self, who):
        self._send([Record(self.accounts[who], b'{"kind": "usage", "v": ')])

    @precondition(lambda self: self.written)
    @rule(seed=SEED, count=st.integers(1, 5))
    def repeat(self, seed, count):
        """At-least-once: anything that was sent may come again."""
        self._send(random.Random(seed).choices(self.written, k=count))

    @precondition(lambda self: self.usages)
    @rule(seed=SEED)
    def contradict(self, seed):
        """Other bytes under a known id, behind the first."""
        usage = random.Random(seed).choice(self.usages)
        other = msgspec.structs.replace(usage, total_ms=usage.total_ms + seed + 1)
        self._send([Record(usage.account_id, encode(other))])

    @rule(who=WHO, usd=st.integers(1, 3))
    def top_up(self, who, usd):
        self.books.wallets.move(self.accounts[who], "topup", usd * USD)
        self._send(self.books.sql_records())

    # -- what the sinks do -------------------------------------------------------------------

    @rule(partition=st.integers(0, 2), count=st.integers(1, 20))
    def take(self, partition, count):
        end = min(self.at[partition] + count, self.bus.bounds(TOPIC)[partition][1])
        if self.at[partition] < end:
            messages = list(self.bus.read(TOPIC, partition, self.at[partition], end - 1))
            self.sink.handle(partition, messages)
            self.at[partition] = end

    @rule(partition=st.integers(0, 2), back=st.integers(1, 20))
    def take_again(self, partition, back):
        """A redelivery: what lies before the position changes nothing."""
        first = max(self.at[partition] - back, 0)
        if first < self.at[partition]:
            before = self.books.state()
            messages = list(self.bus.read(TOPIC, partition, first, self.at[partition] - 1))
            self.sink.handle(partition, messages)
            assert self.books.state() == before

    @rule(partition=st.integers(0, 2))
    def another_owner(self, partition):
        """A second sink takes everything over; the first writes no more."""
        old, self.sink = self.sink, self.books.sink()
        for each in self.at:
            self.sink.claim(each)
        end = self.bus.bounds(TOPIC)[partition][1]
        if self.at[partition] < end:
            before = self.books.state()
            with pytest.raises((NotOwner, TryLater)):
                old.handle(
                    partition, list(self.bus.read(TOPIC, partition, self.at[partition], end - 1))
                )
            assert self.books.state() == before

    @rule(seed=SEED)
    def dismiss(self, seed):
        dead = [row for row in self.books.rows(dead_event) if row.state == "dead"]
        if dead:
            chosen = random.Random(seed).choice(dead)
            DeadRepair(self.books.engine, self.books.reader).dismiss(chosen.id)

    @rule(seed=SEED)
    def replay_a_dead_one(self, seed):
        """Its cause is not fixed: nothing is booked."""
        dead = [row for row in self.books.rows(dead_event) if row.state == "dead"]
        if dead:
            before = self.books.balances()
            chosen = random.Random(seed).choice(dead)
            with pytest.raises(StillDead):
                DeadRepair(self.books.engine, self.books.reader).replay(chosen.id)
            assert self.books.balances() == before

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def every_sum_is_that_of_its_parts(self):
        self.books.check()

    @invariant()
    def what_was_taken_counts_once(self):
        taken = self._settled()
        assert not taken & set(self.broken)
        for who, account in enumerate(self.accounts):
            spent = sum(n for e, (a, n) in self.sound.items() if a == account and e in taken)
            charged = self.books.limits()["wallet", account][1]
            assert charged == spent <= self.leases[who].spent_nano

    def _settled(self) -> set[str]:
        return {row.event_id for row in self.books.rows(settlement)}

    def teardown(self):
        try:
            for partition in self.at:
                self.take(partition, 1 << 30)
            assert set(self.sound) <= self._settled()
            self.every_sum_is_that_of_its_parts()
            self.what_was_taken_counts_once()
            self._rebuilt_is_equal()
            before = self.books.state()
            replay(self.bus)
            for partition in self.at:
                self.take(partition, 1 << 30)
            assert self.books.state() == before
        finally:
            self.producer.close()
            self.bus.close()
            self.books.close()
            shutil.rmtree(self.folder)

    def _rebuilt_is_equal(self):
        spare = open_engine(migrated_url(self.folder, "spare.db"), self.folder)
        spare_books.copy_beside(self.books.engine, spare)
        ranges = ends_of(self.bus, self.books.engine)
        result = LedgerRebuild(self.bus, spare, self.books.reader()).run(ranges)
        compare(spare, self.books.engine, ranges, result)
        assert result.differences == []
        assert spare_books.balances(spare) == spare_books.balances(self.books.engine)
        spare.dispose()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
