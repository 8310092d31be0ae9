"""The outbox: what its writer promises, what readers see, how a dead one is sealed."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.events import decode
from services.backends.clock import SystemClock
from services.backends.outbox import DiskFull, Outbox, OutboxFailed, Sealed
from services.backends.outbox_files import IncarnationFiles, list_incarnations, remove_orphans
from services.backends.outbox_seal import OpenWork, seal
from tests.parts.outbox_worker import Syncer, lease_closed, request, settings, usage

ROOT = Path(__file__).parent.parent.parent
EVERYTHING = 10**9


def make(folder, name="edge-1", **values) -> Outbox:
    return Outbox.create(folder, name, settings(**values), SystemClock())


def rows_of(folder, name="edge-1", upto=EVERYTHING):
    return list(IncarnationFiles(folder, name).scan(0, upto))


def die(outbox) -> None:
    """What the end of the process does to the lock."""
    os.close(outbox._lock_fd)


def run(code, *args, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **kwargs,
    )


def test_rows_come_back_in_order_with_a_dense_seq(tmp_path):
    outbox = make(tmp_path)
    events = [request(1, lease="lease_1", lease_seq=1), usage(1, lease="lease_1", lease_seq=2)]
    for event in events:
        outbox.append(event)
    rows = rows_of(tmp_path)
    assert [row.seq for row in rows] == [1, 2]
    assert [row.kind for row in rows] == ["request", "usage"]
    assert [(row.lease_id, row.lease_seq) for row in rows] == [("lease_1", 1), ("lease_1", 2)]
    assert all(row.intact for row in rows)
    assert [decode(row.body) for row in rows] == events
    assert decode(rows[1].body).incarnation == "edge-1"
    assert rows[0].partition_key == "acct_1"


def test_a_group_is_written_whole_or_not_at_all(tmp_path):
    outbox = make(tmp_path)
    outbox.append_group([request(1), usage(1), request(2)])
    outbox.append_last(usage(2))
    assert [row.seq for row in rows_of(tmp_path)] == [1, 2, 3, 4]
    (tmp_path / "edge-1.lock").unlink()
    (tmp_path / "edge-1.lock").touch()
    seal(tmp_path, "edge-1").release()
    with pytest.raises(Sealed):
        outbox.append_group([request(3), usage(3)])
    assert outbox.last_seq == len(rows_of(tmp_path)) == 4


def test_only_synced_rows_are_published(tmp_path):
    outbox = make(tmp_path)
    files = IncarnationFiles(tmp_path, "edge-1")
    outbox.append(request(1))
    assert files.synced_seq() == 0
    outbox.sync()
    assert files.synced_seq() == 1
    outbox.append(request(2))
    assert files.synced_seq() == 1


@pytest.mark.parametrize("sync", ["interval", "full"])
def test_rotation_keeps_the_seq_dense(tmp_path, sync):
    outbox = make(tmp_path, rotate_bytes=300_000, sync=sync)
    for n in range(1, 2001):
        outbox.append(request(n))
        if n % 50 == 0:
            outbox.sync()
    files = IncarnationFiles(tmp_path, "edge-1")
    states = [files.state(number) for number in files.numbers()]
    started = [state for state in states if state.started]
    assert len(started) > 5
    assert [state.finished for state in started] == [True] * (len(started) - 1) + [False]
    assert [row.seq for row in rows_of(tmp_path)] == list(range(1, 2001))
    for number in files.numbers()[: len(started) - 1]:  # closed files are compact: no rows in a WAL
        path = tmp_path / f"edge-1-{number:06d}.db"
        assert not Path(f"{path}-wal").exists()
        assert path.stat().st_size < 300_000


def test_reading_by_batches_crosses_files(tmp_path):
    outbox = make(tmp_path, rotate_bytes=200_000)
    for n in range(1, 501):
        outbox.append(request(n))
        outbox.sync()
    files = IncarnationFiles(tmp_path, "edge-1")
    assert len(files.numbers()) > 3
    assert [r.seq for r in files.rows(190, 100, EVERYTHING, 500)] == list(range(191, 291))
    assert [r.seq for r in files.rows(490, 100, EVERYTHING, 495)] == list(range(491, 496))
    assert len(files.rows(0, 100, 1, 500)) == 1  # at least one, however large it is


def test_close_ends_the_incarnation(tmp_path):
    outbox = make(tmp_path, rotate_bytes=200_000)
    for n in range(1, 301):
        outbox.append(request(n))
        outbox.sync()
    outbox.close()
    files = IncarnationFiles(tmp_path, "edge-1")
    rows = rows_of(tmp_path)
    assert [row.seq for row in rows] == list(range(1, 302))
    assert rows[-1].kind == "incarnation_closed"
    assert decode(rows[-1].body).event_id == "edge-1:closed"
    assert files.ended()
    assert files.synced_seq() == 301
    assert all(files.state(number).finished for number in files.numbers())
    assert not list(tmp_path.glob("*.ballast"))
    with (tmp_path / "edge-1.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(OutboxFailed):
        outbox.append(request(999))


def test_a_reader_changes_nothing(tmp_path):
    code = """
import sys; from pathlib import Path; from tests.contract.test_outbox import make, request
outbox = make(Path(sys.argv[1]))
for n in range(100): outbox.append(request(n))
outbox.sync()
import os, signal; os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, tmp_path).returncode == -signal.SIGKILL

    def digest():
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in tmp_path.iterdir()
            if not path.name.endswith("-shm")
        }

    before = digest()
    assert len(rows_of(tmp_path)) == 100
    assert digest() == before


def test_a_second_worker_of_the_same_name_is_refused(tmp_path):
    make(tmp_path)
    (tmp_path / "edge-1.newborn").touch()
    with pytest.raises(FileExistsError):
        make(tmp_path)


def test_seal_needs_a_dead_worker(tmp_path):
    outbox = make(tmp_path)
    outbox.append(request(1))
    assert seal(tmp_path, "edge-1") is None
    outbox.append(request(2))
    die(outbox)
    sealed = seal(tmp_path, "edge-1")
    assert sealed is not None
    assert [r.request_id for r in sealed.open_requests()] == [
        request(1).request_id,
        request(2).request_id,
    ]
    sealed.release()


def test_a_worker_that_is_sealed_writes_no_more(tmp_path):
    """A lock that failed (a network file system) must not let two writers end one request."""
    outbox = make(tmp_path)
    outbox.append(request(1))
    (tmp_path / "edge-1.lock").unlink()
    (tmp_path / "edge-1.lock").touch()
    sealed = seal(tmp_path, "edge-1")
    with pytest.raises(Sealed):
        outbox.append_last(usage(1))
    with pytest.raises(OutboxFailed):
        outbox.append_last(usage(1))
    sealed.append([usage(1)])
    sealed.publish()
    sealed.release()
    assert [row.kind for row in rows_of(tmp_path)] == ["request", "usage"]


def test_a_reader_opens_no_file_that_it_has_behind_it(tmp_path, monkeypatch):
    outbox = make(tmp_path, rotate_bytes=150_000)
    for n in range(800):
        outbox.append(request(n))
        outbox.sync()
    files = IncarnationFiles(tmp_path, "edge-1")
    assert len(files.numbers()) > 3
    opened = []
    really = IncarnationFiles._open
    monkeypatch.setattr(
        IncarnationFiles,
        "_open",
        lambda self, number: opened.append(number) or really(self, number),
    )
    after, seen, most = 0, [], 0
    while rows := files.rows(after, 20, EVERYTHING, EVERYTHING):
        seen += [row.seq for row in rows]
        after = rows[-1].seq
        most = max(most, len(opened))
        opened.clear()
    assert seen == list(range(1, 801))
    assert most <= 3  # the end of one file, the next, and the spare
    assert [row.seq for row in files.rows(0, 5, EVERYTHING, EVERYTHING)] == [1, 2, 3, 4, 5]
    outbox.close()


def test_seal_sees_open_work_in_all_files(tmp_path):
    outbox = make(tmp_path, rotate_bytes=150_000)
    outbox.append(request(0, lease="lease_a", lease_seq=1))
    for n in range(1, 400):
        outbox.append(request(n, lease="lease_b", lease_seq=2 * n - 1))
        outbox.append(usage(n, lease="lease_b", lease_seq=2 * n))
        outbox.sync()
    outbox.append(lease_closed("lease_b", 798))
    outbox.append(request(400, lease="lease_c", lease_seq=1))
    die(outbox)
    assert len(IncarnationFiles(tmp_path, "edge-1").numbers()) > 3
    sealed = seal(tmp_path, "edge-1")
    ids = [r.request_id for r in sealed.open_requests()]
    assert ids == [request(0).request_id, request(400).request_id]
    assert {k: (v.account_id, v.key_id, v.events) for k, v in sealed.work.leases.items()} == {
        "lease_a": ("acct_1", "key_1", 1),
        "lease_c": ("acct_1", "key_1", 1),
    }
    assert sealed.last_seq == 801
    sealed.append([usage(400)])
    sealed.publish()
    sealed.release()
    files = IncarnationFiles(tmp_path, "edge-1")
    assert files.synced_seq() == 802
    assert files.ended()
    assert [row.seq for row in rows_of(tmp_path)] == list(range(1, 803))
    again = seal(tmp_path, "edge-1")
    assert again.ended
    assert again.work.seq == 0, "what is ended is not read again"
    again.release()


def test_a_number_that_found_no_space_is_not_waited_for(tmp_path):
    """A `request` that the disk had no room for took a lease_seq that no row has."""
    outbox = make(tmp_path)
    outbox.append(request(1, lease="lease_a", lease_seq=1))
    outbox.append_last(usage(1, lease="lease_a", lease_seq=2))
    outbox.append(request(3, lease="lease_a", lease_seq=4))
    die(outbox)
    sealed = seal(tmp_path, "edge-1")
    assert sealed.work.leases["lease_a"].events == 3
    sealed.release()


def test_carried_work_stands_in_for_removed_files(tmp_path):
    outbox = make(tmp_path, rotate_bytes=150_000)
    outbox.append(request(0, lease="lease_a", lease_seq=1))
    for n in range(1, 200):
        outbox.append(request(n))
        outbox.append(usage(n))
        outbox.sync()
    files = IncarnationFiles(tmp_path, "edge-1")
    carried = OpenWork()
    first = files.numbers()[0]
    for row in files.scan(0, files.state(first).last_seq):
        carried.see(row)
    files.remove_file(first)
    die(outbox)
    sealed = seal(tmp_path, "edge-1", carried)
    assert [r.request_id for r in sealed.open_requests()] == [request(0).request_id]
    assert sealed.open_requests()[0].tags == {"team": "a"}
    assert sealed.work.leases["lease_a"].events == 1
    sealed.release()


def test_seal_of_an_incarnation_that_wrote_nothing(tmp_path):
    (tmp_path / "edge-1.lock").touch()
    sealed = seal(tmp_path, "edge-1")
    assert sealed.open_requests() == []
    sealed.append([usage(1)])
    sealed.publish()
    sealed.release()
    assert [row.seq for row in rows_of(tmp_path)] == [1]


def test_rows_that_the_disk_lost_leave_a_gap(tmp_path):
    outbox = make(tmp_path)
    for n in range(1, 11):
        outbox.append(request(n))
    outbox.sync()
    die(outbox)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("edge-1*"):
        shutil.copy(path, copy)
    (copy / "edge-1-000001.db-shm").unlink()
    wal = copy / "edge-1-000001.db-wal"
    os.truncate(wal, wal.stat().st_size - 5000)
    sealed = seal(copy, "edge-1")
    assert sealed.lost > 0
    sealed.append([usage(11)])
    sealed.release()
    seqs = [row.seq for row in rows_of(copy)]
    assert seqs == [*range(1, 11 - sealed.lost), 11]


def test_torn_tail_at_every_byte_of_the_last_commit(tmp_path):
    code = """
import os, signal, sys; from pathlib import Path
from tests.contract.test_outbox import make, request
outbox = make(Path(sys.argv[1]))
wal = Path(sys.argv[1], "edge-1-000001.db-wal")
for n in range(1, 8): outbox.append(request(n))
before = wal.stat().st_size
outbox.append(request(8))
print(before, wal.stat().st_size, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run(code, tmp_path)
    before, after = map(int, done.stdout.split())
    assert after > before + 4000
    torn = tmp_path / "torn"
    torn.mkdir()
    name = "edge-1-000001.db"
    whole = (tmp_path / f"{name}-wal").read_bytes()
    database = (tmp_path / name).read_bytes()
    for size in range(before, after + 1):
        (torn / name).write_bytes(database)
        (torn / f"{name}-wal").write_bytes(whole[:size])
        with contextlib.suppress(FileNotFoundError):
            (torn / f"{name}-shm").unlink()
        rows = rows_of(torn)
        expected = 8 if size == after else 7
        assert [row.seq for row in rows] == list(range(1, expected + 1)), f"cut at {size}"
        assert all(row.intact for row in rows)
        if size % 512 == 0:  # a seal of what is left works too
            (torn / "edge-1.lock").touch()
            sealed = seal(torn, "edge-1")
            assert sealed.last_seq == 7
            sealed.release()
            (torn / f"{name}-wal").unlink(missing_ok=True)


def test_back_pressure_at_max_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("services.backends.outbox._SPACE_CHECK_S", 0.0)
    outbox = make(tmp_path, max_bytes=400_000)
    outbox.sync()

    def fill():
        for n in range(1000):
            outbox.append(request(n))
            outbox.sync()

    with pytest.raises(DiskFull):
        fill()
    admitted = outbox.last_seq
    assert 20 < admitted < 200
    outbox.append_last(usage(0))
    assert outbox.last_seq == admitted + 1


def test_a_slow_disk_does_not_stop_the_hub_of_a_patched_process(tmp_path):
    """Each fsync takes 0.2 s here; greenlets append and run on meanwhile."""
    code = """
from gevent import monkey; monkey.patch_all()
import os, sys, time, gevent
from gevent.threadpool import ThreadPool
from pathlib import Path
from tests.contract.test_outbox import make, request
blocking_sleep = monkey.get_original("time", "sleep")
fdatasync, syncing, ticks = os.fdatasync, [False], [0]
def slow(fd):
    syncing[0] = True
    blocking_sleep(0.2); fdatasync(fd)
    syncing[0] = False
os.fdatasync = slow
outbox = make(Path(sys.argv[1]), rotate_bytes=1_000_000)
pool = ThreadPool(1)
def sync():
    while True:
        pool.apply(outbox.sync)
        gevent.sleep(0.01)
loop = gevent.spawn(sync)
for n in range(2000):
    outbox.append(request(n))
    ticks[0] += syncing[0]
    gevent.sleep(0.0005)
gevent.kill(loop)
os.fdatasync = fdatasync
pool.apply(outbox.close)
print(ticks[0])
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000  # appends made while the disk was busy
    assert [row.seq for row in rows_of(tmp_path)] == list(range(1, 2002))
    assert len(IncarnationFiles(tmp_path, "edge-1").numbers()) > 2


@pytest.mark.parametrize("passage", [1, 7, 64])
@pytest.mark.parametrize("point", ["outbox.before_append", "outbox.after_append"])
def test_kill_around_an_append(tmp_path, point, passage):
    """A row whose append returned is there; one before it is not, and nothing is half there."""
    env = {**os.environ, "TOLLGATE_CRASH_AT": f"{point}:{passage}"}
    command = [sys.executable, "-m", "tests.parts.outbox_worker", tmp_path, "edge-1", "100"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    sealed = seal(tmp_path, "edge-1")
    assert sealed.last_seq == (passage if point == "outbox.after_append" else passage - 1)
    assert len(sealed.open_requests()) == sealed.last_seq % 2
    sealed.release()
    assert [row.seq for row in rows_of(tmp_path)] == list(range(1, sealed.last_seq + 1))


def test_listing_is_by_name_and_ignores_other_files(tmp_path):
    for name in ("edge-b", "edge-a"):
        make(tmp_path, name)
    (tmp_path / "relay.db").touch()
    (tmp_path / "edge-c.lock").touch()
    names = [files.incarnation for files in list_incarnations(tmp_path)]
    assert names == ["edge-a", "edge-b", "edge-c"]


def test_orphans_of_a_crash_are_removed_and_nothing_else(tmp_path):
    outbox = make(tmp_path)
    outbox.append(request(1))
    (tmp_path / "edge-0-000001.db-wal").touch()
    (tmp_path / "edge-0-000001.db-shm").touch()
    before = {path.name for path in tmp_path.glob("edge-1*")}
    remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert len(rows_of(tmp_path)) == 1


def test_append_is_quick(tmp_path):
    outbox = make(tmp_path)
    syncer = Syncer(outbox, 0.05)
    spent = []
    for n in range(5000):
        event = request(n)
        at = time.perf_counter()
        outbox.append(event)
        spent.append(time.perf_counter() - at)
    syncer.stop()
    spent.sort()
    assert spent[len(spent) // 2] < 0.0005  # 15 us on an idle machine


def test_sqlite_is_built_for_threads():
    assert sqlite3.threadsafety == 3
