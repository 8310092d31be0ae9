"""Ledger and analytics tables made again from the log equal the living ones to the nano."""

import json
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from sqlalchemy import delete, text

from schemas.events import TOPIC
from services.backends.clickhouse.client import QueryRefused
from services.backends.clickhouse.store import open_store
from services.backends.sql import migrate, spare_books
from services.backends.sql.engine import open_engine, write
from services.backends.sql.incarnations import Incarnations
from services.backends.sql.plans import Plans
from services.backends.sql.tables import balance, dead_event, ledger_position, settlement
from services.cli.context import Cli
from services.cli.rebuild import rebuild
from services.core.ids import new_id, uuid7_text
from services.meter import rebuild_ledger
from services.meter.booked import Booked
from services.meter.consumer import Halt
from services.meter.dead_repair import DeadRepair
from services.meter.rebuild_clickhouse import ClickHouseRebuild
from services.meter.rebuild_ledger import CannotRebuild, LedgerRebuild, compare, ends_of
from services.meter.replay import replay
from tests.parts.books import MODEL, USD, LeaseLog
from tests.parts.postgres import drop_database, postgres_url

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]

JOB = ("job_A", "video", "completed")
LEDGER = ("balances", "applied", "settlements", "postings", "dead")


def _capped(books) -> LeaseLog:
    """A lease for a model that is capped for the key's member."""
    org = books.catalog.create_account(f"org-{uuid7_text()}", kind="org")
    books.wallets.move(org.id, "topup", 10 * USD)
    member = books.catalog.create_member(org.id, "m", models=["*"], caps_nano={MODEL: 3 * USD})
    key, _ = books.catalog.create_key(org.id, "k", member_id=member.id)
    lease_id = new_id("lease")
    books.budgets.grant(lease_id, 1, books.incarnation, key.id, USD, USD, model=MODEL)
    return LeaseLog(books, org.id, key.id, lease_id)


def _caps(books) -> dict:
    """(limit, settled, leased) of every cap."""
    return {name: value for name, value in books.limits().items() if name[0] == "member_model"}


def _story(plant) -> None:
    """All that a ledger may hold: billed, failed, written off, late, replayed, dismissed, moved,
    sent twice."""
    books = plant.books
    leases = [books.lease(books.account(10), 2 * USD) for _ in range(4)]
    capped = _capped(books)
    film = capped.pair(input=11)
    film[1].job_id, film[1].job_kind, film[1].job_state = JOB
    plant.write([*capped.pair(), *film])
    for each in leases:
        plant.write([*each.pair(), *each.pair(input=7)])
    failed = leases[0].request()
    plant.write([failed, leases[0].error(failed.request_id, provider_cost_nano=5)])
    plant.write([leases[1].usage(uuid7_text(), written_off_nano=100_000)])
    old = leases[1].usage(uuid7_text())
    old.occurred_at -= 500 * 86_400 * 1_000_000
    wrong = [leases[2].usage(uuid7_text()) for _ in range(2)]
    for each in wrong:
        each.charged_nano = 1
    plant.write([old, *wrong, leases[0].close(), leases[1].close()])
    books.wallets.move(leases[0].account_id, "admin_debit", -USD)
    plant.catch_up()
    repair = DeadRepair(books.engine, books.reader)
    for row in books.rows(dead_event):
        if row.reason == "too_old":
            assert repair.replay(row.id)
    repair.dismiss(min(row.id for row in books.rows(dead_event) if row.state == "dead"))
    Incarnations(books.engine, books.budgets).lose(books.incarnation)
    plant.write(leases[3].pair())
    plant.catch_up()
    replay(plant.bus)
    plant.catch_up()
    assert {row.state for row in books.rows(dead_event)} == {
        "dead",
        "replayed",
        "dismissed",
    }


def _ledger(books) -> dict:
    return {name: value for name, value in books.state().items() if name in LEDGER}


def _wipe(books, *tables) -> None:
    """As nobody can: postings are append-only."""

    def fn(connection):
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            connection.execute(text("DROP TRIGGER IF EXISTS posting_no_delete"))
        else:
            connection.execute(text("ALTER TABLE posting DISABLE TRIGGER ALL"))
        for table in tables:
            connection.execute(delete(table))

    write(books.engine, fn)


@pytest.fixture
def spare(plant, tmp_path):
    """The URL of an empty database on the engine of the plant."""
    if plant.config.database.url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'spare.db'}"
        return
    url = postgres_url(migrated=False)
    yield url
    drop_database(url)


def _interrupt_at(events: int):
    def tell(done, of):
        if done >= events:
            raise KeyboardInterrupt

    return tell


def test_a_deleted_ledger_comes_back_to_the_nano(plant, monkeypatch):
    """Also when the rebuild is interrupted and begun again."""
    books = plant.books
    _story(plant)
    before, caps = _ledger(books), _caps(books)
    assert before["balances"]["loss"] < 0 < before["balances"]["revenue"]
    assert [(limit, settled > 0) for limit, settled, _ in caps.values()] == [(3 * USD, True)]
    _wipe(books, *spare_books.LEDGER)
    assert books.balances() == {}
    ranges = ends_of(plant.bus, books.engine)
    monkeypatch.setattr(rebuild_ledger, "_BATCH", 5)
    interrupted = LedgerRebuild(plant.bus, books.engine, books.reader())
    with pytest.raises(CannotRebuild, match="positions are not empty"):
        interrupted.run(ranges)
    _wipe(books, ledger_position)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(ranges, _interrupt_at(12))
    with pytest.raises(Halt, match="run `tollgate rebuild ledger`"):
        books.sink().claim(0)  # it would judge by leases what they were done with long ago
    assert ends_of(plant.bus, books.engine) == ranges
    result = LedgerRebuild(plant.bus, books.engine, books.reader()).run(ranges)
    assert (_ledger(books), _caps(books)) == (before, caps)
    # Everything stands twice in the log, and what was replayed from `dead_event` came once more.
    both = [interrupted.result, result]
    events, repeated = (sum(getattr(r, name) for r in both) for name in ("events", "repeated"))
    assert (result.unposted_movements, repeated) == (0, events // 2 + 1)
    assert events == sum(end for _, end in ranges.values())
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
    books.check()
    plant.reopen()
    books.seq = 0
    plant.write(books.lease(books.account(1), USD).pair())
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, "the sink goes on where the rebuild ended: " + report.text()


def test_a_spare_ledger_equals_the_living_one(plant, spare, tmp_path, monkeypatch):
    _story(plant)
    migrate.upgrade(spare)
    second = open_engine(spare, Path())

    def while_customers_come(engine, fn):
        plant.books.account(1)
        return write(engine, fn)

    with monkeypatch.context() as patched:
        patched.setattr(spare_books, "write", while_customers_come)
        spare_books.copy_beside(plant.books.engine, second)
    ranges = ends_of(plant.bus, plant.books.engine)
    work = LedgerRebuild(plant.bus, second, plant.books.reader())
    result = work.run(ranges)
    compare(second, plant.books.engine, ranges, result)
    assert result.differences == []
    assert result.compared == result.booked + result.dead == result.events - result.repeated
    assert spare_books.balances(second) == spare_books.balances(plant.books.engine)

    with pytest.raises(CannotRebuild, match="not empty"):
        work.run(ranges)
    _falsify(plant.books)
    compare(second, plant.books.engine, ranges, result)
    assert len(result.differences) == 2
    second.dispose()


def _falsify(books) -> None:
    """One settlement and one balance of the living ledger."""

    def fn(connection):
        row = connection.execute(settlement.select().limit(1)).one()
        connection.execute(
            settlement.update()
            .where(settlement.c.request_id == row.request_id)
            .values(outcome="budget_cut")
        )
        connection.execute(
            balance.update().where(balance.c.ledger_account == "revenue").values(amount_nano=1)
        )

    write(books.engine, fn)


def test_the_command_on_both_sides(plant, spare, monkeypatch):
    _story(plant)
    cli = Cli()
    monkeypatch.setattr(Cli, "config", lambda self: plant.config)
    done = CliRunner().invoke(rebuild, ["ledger", "--json", "--into", spare], obj=cli)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    assert answer["differences"] == []
    assert answer["compared"] > 20
    again = CliRunner().invoke(rebuild, ["ledger", "--into", spare], obj=cli)
    assert again.exit_code == 1
    assert "not empty" in again.output
    here = CliRunner().invoke(rebuild, ["ledger"], obj=cli)
    assert here.exit_code == 1
    assert "not empty" in here.output
    both = CliRunner().invoke(rebuild, ["clickhouse", "--json"], obj=cli)
    assert both.exit_code == 0, both.output
    tables = json.loads(both.output)
    assert tables["before"] == tables["after"]
    assert tables["after"]["rows"] > 10
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()


def test_a_log_without_its_beginning_is_refused(plant):
    class Trimmed:
        def bounds(self, topic):
            return {0: (3, 9)}

    with pytest.raises(CannotRebuild, match="beginning"):
        ends_of(Trimmed(), plant.books.engine)


# -- ClickHouse ----------------------------------------------------------------------------------


def test_tables_are_made_again_from_the_log(plant):
    _story(plant)
    database = plant.config.clickhouse.database
    plant.clickhouse(
        f"ALTER TABLE {database}.requests DELETE WHERE cost_nano > 0 SETTINGS mutations_sync = 1",
        f"TRUNCATE TABLE {database}.attempts",
    )
    assert plant.reconcile().exit_code == 1
    store = open_store(plant.config)
    try:
        result = ClickHouseRebuild(
            store, Plans(plant.books.engine), plant.bus, Booked(plant.books.engine)
        ).run()
        jobs = store.clickhouse.select("SELECT job_id, kind, state FROM jobs")
        left = store.clickhouse.select(
            "SELECT name FROM system.tables "
            "WHERE database = currentDatabase() AND name LIKE '%_next%'"
        )
    finally:
        store.close()
    assert result.after.rows > result.before.rows
    assert (left.rows, jobs.rows) == ([], [JOB])
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()


def test_rows_that_the_log_has_lost_are_kept(plant):
    _story(plant)
    store = open_store(plant.config)
    try:
        work = ClickHouseRebuild(
            store, Plans(plant.books.engine), _Forgetful(plant.bus), Booked(plant.books.engine)
        )
        result = work.run()
    finally:
        store.close()
    assert result.before == result.after
    assert work.events < sum(end for _, end in plant.bus.bounds(TOPIC).values())
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()


def test_of_two_rebuilds_at_once_the_first_ends(plant):
    """The second began while the first was filling: no table is exchanged with a hole in it."""
    _story(plant)
    store = open_store(plant.config)

    def work(bus):
        engine = plant.books.engine
        return ClickHouseRebuild(store, Plans(engine), bus, Booked(engine))

    class Interrupted:
        """A log within whose first reading another rebuild begins."""

        bounds = staticmethod(plant.bus.bounds)
        others: ClassVar = []

        def read(self, *where):
            if not self.others:
                self.others.append(work(plant.bus))
                self.others[0]._next.make()
            return plant.bus.read(*where)

    try:
        first = work(Interrupted())
        with pytest.raises(QueryRefused):
            first.run()
        assert not first.exchanged
        second = Interrupted.others[0].run()
    finally:
        store.close()
    assert second.before == second.after
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()


class _Forgetful:
    """A log that begins at offset 3."""

    def __init__(self, bus) -> None:
        self._bus = bus

    def bounds(self, topic):
        return {p: (min(3, end), end) for p, (_, end) in self._bus.bounds(topic).items()}

    def read(self, topic, partition, first, last):
        assert first >= 3
        return self._bus.read(topic, partition, first, last)


def test_readers_and_sink_go_on_during_the_exchange(plant):
    """What was once visible stays visible, and what the sink puts into the old tables meanwhile
    is in the new ones."""
    _story(plant)
    plant.reopen()
    plant.books.seq = 0
    lease = plant.books.lease(plant.books.account(100), 50 * USD)
    stop = threading.Event()
    seen: list[int] = []
    failures: list[str] = []

    def keep_writing():
        while not stop.is_set():
            plant.write(lease.pair(input=10))
            time.sleep(0.01)

    def keep_reading(store):
        while not stop.is_set():
            rows = store.clickhouse.select("SELECT count() FROM requests FINAL").rows
            seen.append(int(rows[0][0]))
            if len(seen) > 1 and seen[-1] < seen[-2]:
                failures.append(f"{seen[-2]} rows, then {seen[-1]}")

    with plant.working() as meter:
        store = meter._analytics.wait(stop)
        writer = threading.Thread(target=keep_writing)
        reader = threading.Thread(target=keep_reading, args=[store])
        writer.start()
        reader.start()
        results = []
        for _ in range(3):
            time.sleep(0.7)
            work = ClickHouseRebuild(
                store, Plans(plant.books.engine), plant.bus, Booked(plant.books.engine)
            )
            results.append(work.run())
        time.sleep(0.5)
        stop.set()
        writer.join()
        reader.join()
    assert failures == []
    assert seen[-1] > seen[0]
    assert all(each.before == each.after for each in results)
    plant.catch_up()
    report = plant.reconcile()
    assert report.exit_code == 0, report.text()
