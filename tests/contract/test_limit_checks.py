"""The books' checks of limits know parents, members, caps and windows: silent while all is well,
and each corrupted figure is found, on both engines."""

import itertools

import pytest
from sqlalchemy import update

from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.budgets import Charge
from services.backends.sql.engine import database_now_us, read, write
from services.backends.sql.ledger import AppliedRow, LedgerStore, SettlementRow
from services.backends.sql.tables import lease, limit_row
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World

NUMBERS = itertools.count()


class Org(World):
    """An org's member with a capped model, a key with windows and a sub-key, all of them used."""

    def __init__(self, engine):  # noqa: F811
        super().__init__(engine, 1_000)
        org = self.catalog.create_account("org", kind="org")
        self.wallets.move(org.id, "topup", 10_000, "start")
        self.member = self.catalog.create_member(
            org.id, "ann", quota_nano=5_000, caps_nano={"claude-a": 2_000}
        )
        self.account = org
        self.key, _ = self.catalog.create_key(
            org.id, "parent", member_id=self.member.id, window_5h_nano=3_000, window_7d_nano=4_000
        )
        self.child, _ = self.catalog.create_key(org.id, "child", parent_id=self.key.id)
        self.now_us = read(engine, database_now_us)
        earlier = update(limit_row).values(since_at=limit_row.c.since_at - 36_000_000_000)
        write(engine, lambda c: c.execute(earlier))
        self.use(self.key, 100)
        self.use(self.child, 200, "claude-a")
        self.use(self.child, 30, ago_us=3_600_000_000)

    def use(self, key, nano, model="", ago_us=0, off_us=0):
        """A lease, a charge and its settlement, as the ledger posts them."""
        number = next(NUMBERS)
        lease_id, request_id = f"lease_{number}", f"request_{number}"
        self.budgets.grant(lease_id, 1, INCARNATION, key.id, nano + 7, nano + 7, model)
        if ago_us:
            self.age(lease_id, ago_us)
        at = read(self.engine, database_now_us) - ago_us + off_us
        row = SettlementRow(
            request_id,
            f"{request_id}:usage",
            key.account_id,
            key.id,
            nano,
            nano,
            0,
            "completed",
            at,
        )
        store = LedgerStore(self.engine)

        def book(connection):
            store.add_applied(connection, "t", 0, [AppliedRow(row.event_id, "h", number)])
            store.add_settlements(connection, [row])
            self.budgets.settle(connection, [Charge(lease_id, nano, occurred_at=at)])

        write(self.engine, book)

    def age(self, lease_id, ago_us):
        change = update(lease).where(lease.c.id == lease_id)
        write(
            self.engine,
            lambda c: c.execute(change.values(opened_at=lease.c.opened_at - 2 * ago_us)),
        )

    def findings(self):
        """What concerns limits; nothing was posted here, so the wallet's entries are left out."""
        found = BooksAudit(self.engine).findings(0)
        pairs = ("settlements-limit", "leases-limit", "settlements-window", "settlements-leases")
        return [(each.pair, each.subject) for each in found if each.pair in pairs]

    def corrupt(self, kind, subject, **values):
        change = update(limit_row).where(limit_row.c.kind == kind, limit_row.c.subject == subject)
        assert write(self.engine, lambda c: c.execute(change.values(**values)).rowcount) == 1


@pytest.fixture
def org(engine):  # noqa: F811
    return Org(engine)


def test_the_books_of_every_kind_of_limit_agree(org):
    assert org.findings() == []
    assert BooksAudit(org.engine).limit_findings() == []
    org.catalog.update_key(org.key.id, window_1d_nano=3_500)  # begins with what was spent before
    org.use(org.child, 11)
    org.use(org.key, 13, off_us=900_000)
    org.use(org.key, 17, off_us=-900_000)
    assert org.findings() == []
    org.check()


@pytest.mark.parametrize("column", ["settled_nano", "leased_nano"])
def test_a_wrong_sum_is_found_whatever_the_kind(org, column):
    pair = "settlements-limit" if column == "settled_nano" else "leases-limit"
    subjects = {
        "wallet": org.account.id,
        "key_quota": org.key.id,
        "window_7d": org.key.id,
        "member_quota": org.member.id,
        "member_model": f"{org.member.id}:claude-a",
    }
    for kind, subject in subjects.items():
        org.corrupt(kind, subject, **{column: limit_row.c[column] + 1})
    assert set(org.findings()) == {(pair, f"{k}:{s}") for k, s in subjects.items()}


@pytest.mark.parametrize("buckets", ["[]", "more", "later"])
def test_wrong_buckets_are_found(org, buckets):
    length_us = 300_000_000
    number = org.now_us // length_us
    if buckets == "more":
        buckets = f"[[{number - 3}, 331]]"  # one more than was spent
    elif buckets == "later":
        buckets = f"[[{number}, 330]]"  # what was spent an hour ago counts as if it were now
    org.corrupt("window_5h", org.key.id, buckets=buckets)
    assert org.findings() == [("settlements-window", f"window_5h:{org.key.id}")]
    assert len(BooksAudit(org.engine).limit_findings()) == 1
