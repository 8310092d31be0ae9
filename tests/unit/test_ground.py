import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import ground
from services.cli.ground import (
    FolderLock,
    Refused,
    file_system,
    make_folder,
    require_port,
    require_writable,
)


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(Refused, match=rf"process {os.getpid()}\) runs on {tmp_path}"):
            FolderLock(tmp_path).__enter__()
        assert (tmp_path / "run" / "up.lock").exists()
    assert not (tmp_path / "run" / "up.lock").exists()
    with FolderLock(tmp_path):
        pass


def test_a_killed_owner_leaves_no_lock(tmp_path):
    code = f"""
import time
from pathlib import Path
from services.cli.ground import FolderLock
FolderLock(Path({str(tmp_path)!r})).__enter__()
print("held", flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"held\n"
    with pytest.raises(Refused, match=f"process {owner.pid}"):
        FolderLock(tmp_path).__enter__()
    owner.kill()
    owner.wait()
    with FolderLock(tmp_path):
        pass


def test_a_child_does_not_inherit_the_lock(tmp_path):
    with FolderLock(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False
        )
    try:
        with FolderLock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_folder_is_made_and_left_clean(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null/nothing"])
def test_a_folder_that_cannot_be_written_is_refused(place):
    for make in (make_folder, require_writable):
        with pytest.raises(Refused, match=f"cannot write into {place}"):
            make(Path(place))


def test_a_network_folder_is_refused(tmp_path, monkeypatch):
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: mounts if str(self) == "/proc/self/mounts" else real(self, *a, **k),
    )
    assert file_system(tmp_path / "data") == "nfs4"
    assert file_system(tmp_path.parent) == "ext4"
    with pytest.raises(Refused, match=r"network file system \(nfs4\)"):
        make_folder(tmp_path / "data")


def test_the_real_file_system_has_a_type(tmp_path):
    assert file_system(tmp_path) not in ground._NETWORK
    assert file_system(Path("/proc")) == "proc"


def test_a_busy_port_is_refused_and_a_free_one_is_left_free():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} of 127.0.0.1: it is in use"):
            require_port("127.0.0.1", port)
    require_port("127.0.0.1", port)
    require_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_refused(host):
    with pytest.raises(Refused, match=f"cannot listen on .*{host}"):
        require_port(host, 1)
