"""A full disk and a failing one, under the outbox."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas import config as schema
from services.backends.clock import SystemClock
from services.backends.heartbeat import Heartbeat
from services.backends.outbox import DiskFull, Outbox, OutboxFailed
from services.backends.outbox_files import IncarnationFiles
from services.backends.outbox_seal import seal
from services.backends.settings import load
from services.edge.worker import Worker
from services.meter.relay import Relay
from services.meter.relay_store import BALLAST_BYTES, RelayStore
from tests.parts.outbox_worker import request, settings, usage
from tests.parts.relay_process import events_on, local_bus, open_bus

BALLAST = 256 * 1024


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no right to mount a tmpfs: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def make(folder, name="edge-1", **values) -> Outbox:
    options = settings(ballast_bytes=BALLAST, **values)
    return Outbox.create(folder, name, options, SystemClock())


def fill(outbox, first=0) -> int:
    """Admits requests until the disk is full; returns the number of the refused one."""
    for n in range(first, first + 100_000):
        try:
            outbox.append(request(n))
        except DiskFull:
            return n
        if n % 20 == 0:
            outbox.sync()
    raise AssertionError("the disk never filled")


def fill_up(outbox) -> int:
    """As `fill`, past the room of a spare file."""
    refused = fill(outbox)
    while (later := fill(outbox, refused)) > refused:
        refused = later
    return refused


def test_a_full_disk_refuses_new_requests_and_ends_the_admitted(small_disk):
    outbox = make(small_disk, rotate_bytes=300_000)
    refused = fill_up(outbox)
    assert refused > 100
    admitted = outbox.last_seq
    with pytest.raises(DiskFull):
        outbox.append(request(refused))
    ended = 0
    for n in range(refused - 20, refused):  # needs the ballast
        outbox.append_last(usage(n))
        ended += 1
    assert not (small_disk / "edge-1.ballast").exists()
    with pytest.raises(DiskFull):  # the room made is not for new requests
        outbox.append(request(refused))
    outbox.sync()
    assert outbox.last_seq == admitted + ended
    rows = list(IncarnationFiles(small_disk, "edge-1").scan(0, 10**9))
    assert [row.seq for row in rows] == list(range(1, admitted + ended + 1))
    assert all(row.intact for row in rows)


def test_admission_comes_back_with_the_space(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("services.backends.outbox._SPACE_CHECK_S", 0.0)
    RelayStore(small_disk, BALLAST_BYTES).close()  # the relay ran before and has its ballast
    outbox = make(small_disk, rotate_bytes=300_000)
    refused = 0
    while (ballast := small_disk / "edge-1.ballast").exists():  # `sync` finds room for a while
        refused = fill(outbox, refused)
        outbox.append_last(usage(refused - 1))
        outbox.sync()
    config = local_bus(tmp_path)
    bus = open_bus(config)
    bus.ensure_topics()
    stop = threading.Event()
    relay = Relay(small_disk, bus, None, SystemClock(), schema.Meter(relay_poll_s=0.01))
    thread = threading.Thread(target=relay.run, args=(stop,))
    thread.start()
    admitted = outbox.last_seq
    try:
        for _ in range(2000):
            outbox.sync()
            try:
                outbox.append(request(refused))
                break
            except DiskFull:
                stop.wait(0.02)
    finally:
        stop.set()
        thread.join()
    assert outbox.last_seq == admitted + 1
    assert ballast.exists()
    assert len(events_on(config)) == admitted


def test_a_worker_that_can_record_nothing_is_not_ready(tmp_path, monkeypatch):
    monkeypatch.setattr("services.backends.outbox._SPACE_CHECK_S", 0.0)
    outbox = make(tmp_path, max_bytes=10**6)
    config = load(None, {}, data_dir=str(tmp_path), bus__kind="kafka")
    worker = SimpleNamespace(
        config=config, outbox=outbox, stopping=False, snapshots=SimpleNamespace(fresh=True)
    )
    heartbeat = Heartbeat(config, "relay")
    heartbeat.beat()
    assert Worker.not_ready(worker) == []
    (tmp_path / "large").write_bytes(bytes(10**6))
    outbox.sync()
    assert Worker.not_ready(worker) == ["the outbox is full"]
    (tmp_path / "large").unlink()
    outbox.sync()
    assert Worker.not_ready(worker) == []
    heartbeat.stop()


def test_a_dead_worker_on_a_full_disk_can_be_sealed(small_disk):
    outbox = make(small_disk)
    refused = fill(outbox)
    os.close(outbox._lock_fd)
    (small_disk / "filler").write_bytes(b"")
    sealed = seal(small_disk, "edge-1")
    assert len(sealed.open_requests()) == refused
    sealed.append([usage(n) for n in range(50)])
    sealed.publish()
    sealed.release()
    assert IncarnationFiles(small_disk, "edge-1").synced_seq() == refused + 50


def test_a_failed_fsync_ends_the_worker(tmp_path, monkeypatch):
    outbox = make(tmp_path)
    outbox.append(request(1))
    outbox.sync()
    outbox.append(request(2))

    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OutboxFailed, match="fsync"):
        outbox.sync()
    monkeypatch.undo()
    # The kernel may have dropped the pages and forgotten the error: a second try proves nothing.
    for call in (
        outbox.sync,
        lambda: outbox.append(request(3)),
        lambda: outbox.append_last(usage(1)),
    ):
        with pytest.raises(OutboxFailed):
            call()
    files = IncarnationFiles(tmp_path, "edge-1")
    assert files.synced_seq() == 1
    os.close(outbox._lock_fd)
    sealed = seal(tmp_path, "edge-1")  # the next process re-reads what the disk really has
    assert sealed.last_seq == 2
    sealed.release()


def test_a_worker_exits_when_its_disk_fails(tmp_path):
    """The same with a real error: writes beyond RLIMIT_FSIZE fail, as on a broken disk."""
    code = """
import resource, signal, sys; from pathlib import Path
from services.meter.relay_store import BALLAST_BYTES, RelayStore
from tests.parts.outbox_worker import *
from services.backends.outbox import OutboxFailed
outbox = Outbox.create(Path(sys.argv[1]), "edge-1", settings(rotate_bytes=10**9), SystemClock())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
n = 0
try:
    while True:
        outbox.append(request(n)); n += 1
except OutboxFailed:
    print(n); sys.exit(70)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 70, done.stderr
    sealed = seal(tmp_path, "edge-1")
    assert sealed.last_seq == int(done.stdout) > 10
    sealed.release()
