"""What the program asks its database all the time must cost what is asked for, not what is there:
every statement of these calls reaches its rows by an index, on both engines.

SQLite tells its plan as it is, PostgreSQL with sequential scans forbidden: what scans then has no
index to go by."""

import re
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from services.backends.sql.accounts import Accounts
from services.backends.sql.books_audit import BooksAudit
from services.backends.sql.endpoints import Endpoints, give_up, judge
from services.backends.sql.engine import write
from services.backends.sql.figures import Figures
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.housekeeping import Housekeeping
from services.backends.sql.incarnations import Incarnations
from services.backends.sql.job_claims import JobClaims
from services.backends.sql.lease_records import Charge, LeaseReport
from services.backends.sql.outbox import SqlOutbox
from services.backends.sql.tables import metadata
from services.backends.sql.wallet_lines import WalletLines
from services.core.webhooks import EXPIRING
from tests.parts.jobs_world import JobsWorld
from tests.parts.postgres import database_url, engine  # noqa: F401
from tests.parts.sql_world import INCARNATION, World

USD = 1_000_000_000
# One row each, or as many as processes, groups and channels.
SMALL = {"catalog_version", "incarnation", "routing_group", "channel", "leader", "webhook_endpoint"}
# Parts of tables: what is live.
LIVE = re.compile(r"ix_\w+_(live|due|open|active|watched|kept|waiting|unshipped)$")


class Scans:
    """The tables, and whole indexes, that statements went over."""

    def __init__(self, opened, but) -> None:
        self._known = {*metadata.tables, "parent"} - SMALL - set(but)
        self._sqlite = opened.dialect.name == "sqlite"
        self.found: list[tuple[str, str]] = []
        self.seen = 0
        self.reached: set[tuple[str, str]] = set()

    def look(self, connection, cursor, statement, parameters, context, many) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            return
        self.seen += 1
        given = parameters[0] if many else parameters
        asked = cursor.connection.cursor()
        if self._sqlite:
            rows = asked.execute(f"EXPLAIN QUERY PLAN {statement}", given).fetchall()
            steps = [row[3] for row in rows]
            told = [re.match(r"SCAN (\w+)(?:.*INDEX (\w+))?", step) for step in steps]
        else:
            asked.execute("SET LOCAL enable_seqscan = off")
            asked.execute(f"EXPLAIN {statement}", given)
            steps = [row[0] for row in asked.fetchall()]
            asked.execute("SET LOCAL enable_seqscan = on")
            told = [re.search(r"Seq Scan on (\w+)()", step) for step in steps]
        for step in steps:
            by = re.search(r"(\w+) USING (?:COVERING )?INDEX (\w+)", step)
            self.reached.update({by.groups()} if by else ())
        for step in filter(None, told):
            table, index = step.groups()
            if table not in self._known or LIVE.match(index or ""):
                continue
            self.found.append((table, statement))


@contextmanager
def no_scans(opened, but=()):
    """No statement inside goes over a whole table; `but` are those that are looked through."""
    scans = Scans(opened, but)
    event.listen(opened, "before_cursor_execute", scans.look)
    try:
        yield scans
    finally:
        event.remove(opened, "before_cursor_execute", scans.look)
    assert scans.seen
    assert not scans.found, scans.found


@pytest.fixture
def world(engine):  # noqa: F811
    return World(engine, wallet_nano=10 * USD, quota_nano=5 * USD)


def test_grants_recall_and_the_ends_of_workers(world):
    with no_scans(world.engine):
        world.grant("lease_a", 1, USD)
        world.budgets.sync(INCARNATION, [LeaseReport("lease_a", 1, 0)])
        world.budgets.sync(INCARNATION, [])
        world.budgets.give_back("lease_a", 10, 1)
        world.settle([Charge("lease_a", 5)])
        world.budgets.start_closing(INCARNATION)
        world.budgets.lease_owners(INCARNATION)
        incarnations = Incarnations(world.engine, world.budgets)
        assert [each.leases for each in incarnations.listed()] == [1]
        assert incarnations.lose(INCARNATION).leases == 1


def test_changes_of_keys_and_members(world):
    catalog = world.catalog
    org = catalog.create_account("acme", "org")
    with no_scans(world.engine):
        ann = catalog.create_member(org.id, "ann", caps_nano={"claude-a": 3})
        hers, _ = catalog.create_key(org.id, "hers", member_id=ann.id, window_1d_nano=4)
        catalog.create_key(org.id, "sub", parent_id=hers.id)
        catalog.update_key(hers.id, quota_nano=3, window_5h_nano=5, window_7d_nano=9)
        catalog.grant_models(org.id, ["*"])
        catalog.rotate_key(hers.id)
        catalog.remove_member(ann.id)
        Accounts(world.engine).balance(org.id)
        Accounts(world.engine).transactions(org.id, None, None, None, 1, 10)


def test_a_worker_reads_again_one_account(world):
    seen = world.catalog.snapshot(0)
    world.catalog.update_key(world.key.id, window_5h_nano=5)
    with no_scans(world.engine):
        assert world.catalog.snapshot(0, seen) == world.catalog.snapshot(0, seen)


def test_the_doctor_reads_no_key(world):
    with no_scans(world.engine, but=["price_schedule"]):
        assert world.catalog.opened_version() == world.catalog.version()


def test_figures_watched_every_ten_seconds(engine):  # noqa: F811
    figures = Figures(engine)
    with no_scans(engine):
        figures.leases()
        figures.dead()


def test_what_waits_for_an_endpoint(engine):  # noqa: F811
    with no_scans(engine):
        write(engine, lambda c: judge(c, "whk_1", "whd_1", 0))
        write(engine, lambda c: give_up(c, "whk_1"))


def test_the_end_of_a_worker_with_very_many_leases(world):
    """More than a statement may have parameters on either engine."""
    ids = [f"lease_{number}" for number in range(70_000)]
    world.grant(ids[-1], 1, USD)
    assert write(world.engine, lambda c: world.budgets.end_leases(c, ids)) == USD


def test_statements_do_not_grow_with_what_they_change(world):
    """One for all members of an org, and for all endpoints that want to know something."""
    catalog, sent = world.catalog, []
    org = catalog.create_account("acme", "org")
    hooks, housekeeping = Endpoints(world.engine), Housekeeping(world.engine)
    for number in range(6):
        catalog.create_member(org.id, f"member {number}")
        hooks.add(org.id, f"https://example.com/{number}", [EXPIRING], "")
        if number not in (0, 5):
            continue
        with no_scans(world.engine) as scans:
            assert len(catalog.grant_models(org.id, ["*"])) == number + 1
            housekeeping.announce(10)
        sent.append(scans.seen)
    assert sent[0] == sent[1]


def test_a_statement_goes_over_postings_alone(world):
    with no_scans(world.engine, but=["posting"]):
        assert not list(WalletLines(world.engine).between(world.account.id, 0, 1))


def test_the_relay_and_the_engine_of_jobs_pass_over_what_is_done(engine):  # noqa: F811
    writes = GroupedWrites(engine)
    world = JobsWorld(engine)
    outbox, audit = SqlOutbox(engine), BooksAudit(engine)
    claims = JobClaims(writes, 60.0)
    made = world.submit().job
    (claimed,) = claims.claim(1)
    with no_scans(engine) as scans:
        assert outbox.unshipped(10)
        assert audit.unshipped(10**9)
        claims.begin_attempt(claimed.job, "media", "m", account_max=2, channel_max=2)
        world.submit("another")
    indexes = [index for table, index in scans.reached if table == "job" and "ix_" in index]
    assert made.id == claimed.job.id
    if engine.dialect.name == "sqlite":
        assert {"ix_job_channel", "ix_job_open"} <= set(indexes)
    assert "ix_job_listed" not in indexes
