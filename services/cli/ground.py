"""What must hold before a data folder is used: one owner, a local disk, a free port."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Final

import click

_NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "fuse.sshfs", "fuse.glusterfs",
        "glusterfs", "lustre", "afs", "gpfs", "beegfs", "ncpfs", "fuse.s3fs", "fuse.rclone",
    }
)  # fmt: skip
_LOCK: Final = "run/up.lock"


class Refused(click.ClickException):
    """One line for the operator; exit code 1."""


class FolderLock:
    """Held by `tollgate up` as long as it runs. The kernel drops it however the process ends."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _LOCK
        self._handle = -1

    def __enter__(self) -> "FolderLock":
        """Raises Refused when another process holds the folder."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(self._handle, 20).decode("ascii", "replace").strip()
                os.close(self._handle)
                raise Refused(
                    f"another `tollgate up` (process {owner}) runs on {self._path.parent.parent}"
                ) from None
            if self._is_current():
                break
            os.close(self._handle)  # its last owner removed it between our two steps
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{os.getpid()}\n".encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._handle)

    def _is_current(self) -> bool:
        try:
            return os.stat(self._path).st_ino == os.fstat(self._handle).st_ino
        except FileNotFoundError:
            return False


def is_up(data_dir: Path) -> bool:
    """Whether a `tollgate up` runs on the folder, as far as its process id tells."""
    try:
        os.kill(int((data_dir / _LOCK).read_text("ascii")), 0)
    except PermissionError:
        return True  # somebody else's
    except (OSError, ValueError):
        return False
    return True


def require_writable(folder: Path) -> None:
    """Makes the folder. Raises Refused when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as ex:
        raise Refused(f"cannot write into {folder}: {ex.strerror}") from ex


def make_folder(data_dir: Path) -> None:
    """Makes a folder that locks count in. Raises Refused when it cannot be written or is on a
    network."""
    require_writable(data_dir)
    kind = file_system(data_dir)
    if kind in _NETWORK:
        raise Refused(
            f"{data_dir} is on a network file system ({kind}), whose locks prove nothing: "
            "use a local disk"
        )


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`; empty when the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    where = path.resolve()
    best, kind = "", ""
    for line in mounts:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if len(point) >= len(best) and (where == Path(point) or where.is_relative_to(point)):
            best, kind = point, fields[2]
    return kind


def require_port(host: str, port: int) -> None:
    """Raises Refused when `host`:`port` cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as ex:
        raise Refused(f"cannot listen on {host}: {ex.strerror}") from ex
    except OSError as ex:
        why = "it is in use" if ex.errno == errno.EADDRINUSE else ex.strerror
        raise Refused(f"cannot listen on port {port} of {host}: {why}") from ex
