"""Unix sockets in a data folder, however long its path: an address holds 107 bytes."""

import contextlib
import errno
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ADDRESS_MAX: Final = 107
_DESCRIPTORS: Final = "/proc/self/fd"


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket at `path` that fits an address: its own, else one by way of its folder's
    descriptor, for as long as the context lasts. Raises OSError."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX:
        yield str(path)
        return
    if not Path(_DESCRIPTORS).exists():
        raise OSError(errno.ENAMETOOLONG, f"longer than {_ADDRESS_MAX} bytes", str(path))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"{_DESCRIPTORS}/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_listened_on(name: str) -> bool:
    """Whether a process listens on the socket; one that was killed leaves its own behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except TimeoutError:
            return True  # nobody takes the calls, but they wait for somebody
        except OSError:
            return False
    return True


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket at `path`."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        with short_name(self._path) as name:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(name)
