"""Dead workers: their requests end free, their leases are closed, whoever dies meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from schemas.errors import Code, Outcome, Stage
from schemas.events import Error, IncarnationClosed, LeaseClosed, Request, Usage
from services.backends.clock import SystemClock
from services.backends.lifecycle import die_with_parent
from services.backends.outbox import Outbox
from services.backends.sql.budgets import Budgets, IncarnationNotOpen
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import open_engine, read
from services.backends.sql.migrate import upgrade
from services.backends.sql.tables import lease
from services.backends.sql.wallets import Wallets
from tests.parts.outbox_worker import lease_closed, request, settings, usage
from tests.parts.relay_process import (
    DATABASE,
    RelayProcess,
    events_on,
    first_copies,
    local_bus,
    open_bus,
)

ROOT = Path(__file__).parent.parent.parent
KILLED = -signal.SIGKILL
REAPER_POINTS = [
    "reaper.after_seal",
    "reaper.after_closing",
    "reaper.after_append",
    "reaper.after_publish",
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "outbox"
    path.mkdir()
    return path


@pytest.fixture
def bus_config(tmp_path):
    config = local_bus(tmp_path)
    open_bus(config).ensure_topics()
    return config


@pytest.fixture
def engine(tmp_path):
    upgrade(DATABASE, tmp_path)
    engine = open_engine(DATABASE, tmp_path)
    yield engine
    engine.dispose()


def worker(folder, name, count, *options, crash_at=""):
    command = [sys.executable, "-m", "tests.parts.outbox_worker", folder, name, count, *options]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "TOLLGATE_CRASH_AT": crash_at},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


def killed_worker(folder, name, count, *options) -> None:
    """Writes everything, is then killed, and leaves its files."""
    process = worker(folder, name, count, *options, "--hang")
    assert process.stdout.readline().startswith("done")
    process.kill()
    process.wait()


def wait_until(done, limit_s=40.0):
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def drain(folder, config, data_dir):
    relay = RelayProcess(folder, config, data_dir=data_dir)
    try:
        wait_until(lambda: all(path.name.startswith("relay.") for path in folder.iterdir()))
    finally:
        assert relay.stop() == 0, relay.text()


def check_whole(events, incarnation):
    """Dense seqs, one terminal per request, dense lease_seqs that every lease_closed counts."""
    mine = [e for e in first_copies(events) if e.incarnation == incarnation]
    mine.sort(key=lambda e: e.seq)
    assert [e.seq for e in mine] == list(range(1, len(mine) + 1))
    assert isinstance(mine[-1], IncarnationClosed)
    assert mine[-1].event_id == f"{incarnation}:closed"
    assert sum(isinstance(e, IncarnationClosed) for e in mine) == 1
    ends = Counter(e.request_id for e in mine if isinstance(e, Usage | Error))
    assert ends == Counter(e.request_id for e in mine if isinstance(e, Request))
    closed = {e.lease_id: e.events for e in mine if isinstance(e, LeaseClosed)}
    named = {e.lease_id for e in mine if e.lease_id}
    assert set(closed) == named
    for lease_id in named:
        numbers = [
            e.lease_seq for e in mine if e.lease_id == lease_id and not isinstance(e, LeaseClosed)
        ]
        assert sorted(numbers) == list(range(1, closed[lease_id] + 1))
    return mine


def test_open_requests_of_a_killed_worker_end_free(folder, bus_config, engine, tmp_path):
    killed_worker(folder, "edge-1", 30, "--open", 7, "--accounts", 3)
    drain(folder, bus_config, tmp_path)
    events = check_whole(events_on(bus_config), "edge-1")
    errors = [e for e in events if isinstance(e, Error)]
    assert len(errors) == 7
    for n, error in zip(range(30, 37), errors, strict=True):
        asked = request(n)
        assert error.request_id == asked.request_id
        assert error.event_id == f"{asked.request_id}:error"
        assert (error.code, error.outcome, error.stage, error.status, error.source) == (
            Code.ABANDONED,
            Outcome.ABANDONED,
            Stage.GATEWAY,
            500,
            "reaper",
        )
        assert error.provider_cost_nano == 0
        assert error.account_id == f"acct_{n % 3}"
        for name in ("key_id", "dialect", "path", "model", "group", "price_version", "tags"):
            assert getattr(error, name) == getattr(asked, name)
        assert (error.session_id, error.hold_nano) == (asked.session_id, asked.hold_nano)


@pytest.mark.parametrize("point", REAPER_POINTS)
def test_the_reaper_killed_at_every_step(folder, bus_config, engine, tmp_path, point):
    killed_worker(folder, "edge-1", 20, "--open", 5)
    for _ in range(2):
        dying = RelayProcess(folder, bus_config, data_dir=tmp_path, crash_at=point)
        assert dying.wait() == KILLED
    drain(folder, bus_config, tmp_path)
    events = check_whole(events_on(bus_config), "edge-1")
    assert sum(isinstance(e, Error) for e in events) == 5


@pytest.mark.parametrize("passage", [1, 2, 41, 43, 44])
def test_a_worker_killed_around_each_append(folder, bus_config, engine, tmp_path, passage):
    """21 pairs: requests are the odd appends, their ends the even ones; then the lease's end and
    the incarnation's."""
    process = worker(folder, "edge-1", 21, crash_at=f"outbox.after_append:{passage}")
    assert process.wait(30) == KILLED
    drain(folder, bus_config, tmp_path)
    events = check_whole(events_on(bus_config), "edge-1")
    assert sum(isinstance(e, Error) for e in events) == (passage % 2 if passage < 43 else 0)


def test_a_living_worker_is_left_alone(folder, bus_config, engine, tmp_path):
    process = worker(folder, "edge-1", 5, "--open", 5, "--hang")
    assert process.stdout.readline() == "done 5 0\n"
    relay = RelayProcess(folder, bus_config, data_dir=tmp_path)
    wait_until(lambda: len(events_on(bus_config)) >= 15)
    time.sleep(2.5)
    assert len(events_on(bus_config)) == 15
    process.kill()
    process.wait()
    wait_until(lambda: len(events_on(bus_config)) >= 22)
    assert relay.stop() == 0
    check_whole(events_on(bus_config), "edge-1")


def test_a_clean_end_needs_no_reaper(folder, bus_config, engine, tmp_path):
    process = worker(folder, "edge-1", 10)
    assert process.wait(30) == 0
    drain(folder, bus_config, tmp_path)
    events = events_on(bus_config)
    assert [e.source for e in events] == ["edge"] * 22


def test_a_worker_killed_in_its_last_word_has_one(folder, bus_config, engine, tmp_path):
    """Its `incarnation_closed` is written, but not the mark that nothing follows."""
    process = worker(folder, "edge-1", 10, crash_at="outbox.before_end")
    assert process.wait(30) == -signal.SIGKILL
    drain(folder, bus_config, tmp_path)
    events = events_on(bus_config)
    check_whole(events, "edge-1")
    assert [e.source for e in events if isinstance(e, IncarnationClosed)] == ["edge"]


def test_what_removed_files_left_open_is_still_ended(folder, bus_config, engine, tmp_path):
    """The request is in a file that was shipped and removed long before its worker died."""
    code = """
import sys; from pathlib import Path
from tests.parts.outbox_worker import *
outbox = Outbox.create(Path(sys.argv[1]), "edge-1", settings(rotate_bytes=150000), SystemClock())
syncer = Syncer(outbox)
outbox.append(request(0, lease="lease_old", lease_seq=1))
outbox.append(request(9999, lease="lease_old", lease_seq=2))
for n in range(1, 1500):
    outbox.append(request(n)); outbox.append_last(usage(n)); time.sleep(0.0005)
outbox.append_last(usage(9999, lease="lease_old", lease_seq=3))
syncer.stop(); outbox.sync(); print("done", flush=True); sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    relay = RelayProcess(folder, bus_config, data_dir=tmp_path)
    assert process.stdout.readline() == "done\n"
    wait_until(lambda: not (folder / "edge-1-000001.db").exists())
    relay.kill()
    process.kill()
    process.wait()
    drain(folder, bus_config, tmp_path)
    events = check_whole(events_on(bus_config), "edge-1")
    (error,) = [e for e in events if isinstance(e, Error)]
    assert error.request_id == request(0).request_id
    assert (error.lease_id, error.lease_seq) == ("lease_old", 4)


def test_leases_without_events_are_closed_and_grants_end(folder, bus_config, engine, tmp_path):
    catalog, budgets = Catalog(engine, os.urandom(32)), Budgets(engine)
    account = catalog.create_account("alice")
    key, _ = catalog.create_key(account.id, "laptop")
    Wallets(engine).move(account.id, "topup", 10**9, "first", "", "operator")
    budgets.open_incarnation("edge-1", "edge", "host")
    for lease_id in ("lease_a", "lease_shut", "lease_idle"):
        budgets.grant(lease_id, 1, "edge-1", key.id, 1000, 100_000)
    outbox = Outbox.create(folder, "edge-1", settings(), SystemClock())
    for n in range(3):
        outbox.append(request(n, account=account.id, lease="lease_a", lease_seq=n + 1))
    outbox.append(request(9, account=account.id, lease="lease_shut", lease_seq=1))
    outbox.append_last(usage(9, account=account.id, lease="lease_shut", lease_seq=2))
    outbox.append_last(lease_closed("lease_shut", 2, account.id))
    os.close(outbox._lock_fd)  # it died before the ledger heard of any of this
    drain(folder, bus_config, tmp_path)
    events = first_copies(events_on(bus_config))
    closed = [e for e in events if isinstance(e, LeaseClosed)]
    assert {e.lease_id: e.events for e in closed} == {
        "lease_shut": 2,
        "lease_a": 6,
        "lease_idle": 0,
    }
    assert len(closed) == 3
    assert {e.account_id for e in closed} == {account.id}
    assert next(e.key_id for e in closed if e.lease_id == "lease_idle") == key.id
    with pytest.raises(IncarnationNotOpen):
        budgets.grant("lease_new", 1, "edge-1", key.id, 1000, 1000)
    states = read(engine, lambda c: list(c.execute(select(lease.c.state)).scalars()))
    assert states == ["open"] * 3  # money returns when the ledger has applied their events


def test_a_busy_database_postpones_the_reaper_only(folder, bus_config, engine, tmp_path):
    """Somebody holds the database's write lock: the workers' events flow on."""
    killed_worker(folder, "edge-1", 5, "--open", 1)
    process = worker(folder, "edge-2", 5, "--first", 100)
    assert process.wait(30) == 0
    with engine.connect() as holder:
        holder.execution_options(tollgate_write=True).begin()
        relay = RelayProcess(folder, bus_config, data_dir=tmp_path)
        wait_until(lambda: len(events_on(bus_config)) >= 23)
        time.sleep(1)
        events = events_on(bus_config)
        assert not [e for e in events if e.incarnation == "edge-1" and e.seq > 11]
    wait_until(lambda: len(events_on(bus_config)) >= 26)
    assert relay.stop() == 0
    check_whole(events_on(bus_config), "edge-1")
