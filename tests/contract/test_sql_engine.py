"""Transactions: whole or not at all, repeated when that helps, also when a process dies in one."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import exc, insert, select, text, update

from services.backends.sql import engine as engine_module
from services.backends.sql.batch_tables import batch
from services.backends.sql.engine import (
    DatabaseUnavailable,
    database_now_us,
    open_engine,
    read,
    read_long,
    statement_us,
    write,
)
from services.backends.sql.job_tables import delivery, job
from services.backends.sql.tables import catalog_version, limit_row, routing_group
from tests.parts.postgres import POSTGRES, database_url, engine  # noqa: F401
from tests.parts.sql_world import World

ROOT = Path(__file__).parent.parent.parent


def version(engine):  # noqa: F811
    return read(engine, lambda c: c.execute(select(catalog_version.c.version)).scalar_one())


def bump(connection):
    connection.execute(update(catalog_version).values(version=catalog_version.c.version + 1))


def test_an_exception_rolls_back_and_passes(engine):  # noqa: F811
    class Stop(Exception):
        pass

    def fn(connection):
        bump(connection)
        raise Stop

    with pytest.raises(Stop):
        write(engine, fn)
    assert version(engine) == 1


def test_writers_take_turns(engine):  # noqa: F811
    def many():
        for _ in range(25):
            write(engine, bump)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert version(engine) == 101


def test_a_reader_sees_one_moment(engine):  # noqa: F811
    def fn(connection):
        before = connection.execute(select(catalog_version.c.version)).scalar_one()
        write(engine, bump)
        return before, connection.execute(select(catalog_version.c.version)).scalar_one()

    assert read(engine, fn) == (1, 1)
    assert version(engine) == 2


@pytest.mark.part("postgres")
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_deadlock_is_repeated(engine):  # noqa: F811
    write(
        engine,
        lambda c: c.execute(
            insert(routing_group),
            [{"name": name, "multiplier_ppm": 0, "models": "[]"} for name in ("a", "b")],
        ),
    )
    both = threading.Barrier(2, timeout=20)
    tries = []

    def fn(order):
        first_try = order not in tries
        tries.append(order)

        def run(connection):
            for place, name in enumerate(order):
                if place and first_try and tries.count(order) == 1:
                    both.wait()
                connection.execute(
                    update(routing_group)
                    .where(routing_group.c.name == name)
                    .values(multiplier_ppm=routing_group.c.multiplier_ppm + 1)
                )

        return run

    def crossed(order):
        write(engine, lambda connection: fn(order)(connection))

    threads = [threading.Thread(target=crossed, args=(order,)) for order in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(tries) >= 3  # one of the two was the victim
    rows = read(engine, lambda c: c.execute(select(routing_group.c.multiplier_ppm)).scalars().all())
    assert sorted(rows) == [2, 2, 1_000_000]


@pytest.mark.parametrize("database_url", [POSTGRES], indirect=True)
def test_a_process_that_stands_still_in_a_transaction_loses_its_locks(database_url, monkeypatch):  # noqa: F811
    """And begins it anew when it wakes up."""
    monkeypatch.setattr(engine_module, "IDLE_TIMEOUT_MS", 300)
    slow, quick = (open_engine(database_url, Path()) for _ in range(2))
    attempts = []

    def fn(connection):
        attempts.append(version(quick))
        bump(connection)
        if len(attempts) == 1:
            time.sleep(1.0)
            write(quick, bump)  # the row is free by now
        bump(connection)

    write(slow, fn)
    assert attempts == [1, 2]
    assert version(quick) == 4
    slow.dispose()
    quick.dispose()


def test_a_wrong_statement_is_not_taken_for_an_outage(engine):  # noqa: F811
    with pytest.raises((exc.OperationalError, exc.ProgrammingError)):
        write(engine, lambda c: c.execute(text("SELECT * FROM no_such_table")))


def test_a_database_that_is_away_is_told(tmp_path):
    away = open_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", tmp_path)
    for run in (read, write):
        with pytest.raises(DatabaseUnavailable):
            run(away, lambda c: c.execute(text("SELECT 1")))


def test_other_databases_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mysql"):
        open_engine("mysql://host/db", tmp_path)


def test_sqlite_is_durable_and_checks_references(tmp_path):
    opened = open_engine("sqlite:///inside/some.db", tmp_path)
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    found = read(
        opened, lambda c: [c.exec_driver_sql(f"PRAGMA {each}").scalar_one() for each in pragmas]
    )
    assert found == ["wal", 2, 1, 3000]
    assert (tmp_path / "inside" / "some.db").exists()


def test_the_databases_clock(engine):  # noqa: F811
    before = time.time()
    told = read(engine, database_now_us)
    assert before - 0.01 <= told / 1e6 <= time.time() + 0.01


@pytest.mark.parametrize("table", [job, batch, delivery], ids=lambda table: table.name)
def test_what_is_due_is_found_by_its_index(engine, table):  # noqa: F811
    due = select(table.c.id).where(table.c.next_at <= statement_us())
    query = str(due.compile(engine))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # with few rows it is cheap
            plan = connection.execute(text(f"EXPLAIN {query}")).scalars().all()
            assert any("Cond: (next_at <= " in line for line in plan), plan
        else:
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
            assert any(f"ix_{table.name}_due (next_at<?)" in row.detail for row in plan), plan


DIES_IN_A_GRANT = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from services.backends.sql.budgets import Budgets
from services.backends.sql.engine import open_engine

def grant_until(statements):
    engine = open_engine(sys.argv[1], Path())
    seen = []

    @event.listens_for(engine, "after_cursor_execute")
    def die(*args):
        seen.append(1)
        if len(seen) == statements:
            os.kill(os.getpid(), signal.SIGKILL)

    Budgets(engine).grant("lease_1", 1, "edge-1", sys.argv[2], 100, 100)

for line in sys.stdin:
    child = os.fork()
    if not child:
        grant_until(int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_process_killed_between_the_statements_of_a_grant(engine, database_url):  # noqa: F811
    """After each statement in turn: nothing is taken until the commit, and the repeated grant
    counts once."""
    world = World(engine, wallet_nano=1_000)
    killed = 0
    with subprocess.Popen(
        [sys.executable, "-c", DIES_IN_A_GRANT, database_url, world.key.id],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forks:
        for statements in range(2, 40):
            forks.stdin.write(f"{statements}\n")
            forks.stdin.flush()
            code = int(forks.stdout.readline())
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            assert world.limits()["wallet"] == (1_000, 0, 0)
        forks.stdin.close()
    assert killed >= 5
    assert world.limits()["wallet"] == (1_000, 0, 100)
    assert world.grant("lease_1", 1, 100).total_nano == 100
    assert world.limits()["wallet"] == (1_000, 0, 100)
    world.check()


def test_money_has_64_bits(engine):  # noqa: F811
    world = World(engine, wallet_nano=10**18)
    for number in range(8):  # as much as one movement may
        world.wallets.move(world.account.id, "topup", 10**18, f"more-{number}")
    world.grant("lease_1", 1, 8_000_000_000_000_000_000)
    query = select(limit_row.c.leased_nano).where(limit_row.c.kind == "wallet")
    assert read(engine, lambda c: c.execute(query).scalar_one()) == 8 * 10**18


def test_what_goes_over_whole_tables_has_an_hour(engine):  # noqa: F811
    if engine.dialect.name == "postgresql":
        shown = [
            way(engine, lambda c: c.execute(text("SHOW statement_timeout")).scalar_one())
            for way in (read, read_long, read)
        ]
        assert shown == ["1min", "1h", "1min"]
    else:
        assert read_long(engine, lambda c: c.execute(text("SELECT 1")).scalar_one()) == 1
