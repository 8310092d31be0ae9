"""Notices that the client hung up, also while its request waits for a silent upstream."""

import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub

_READABLE: Final = 1
_ESTABLISHED: Final = 1  # tcpi_state, the first byte of Linux' tcp_info


class ClientWatch:
    """Calls `on_gone()` once, in the hub, when the client closes its side.

    `sock` is `environ["gunicorn.socket"]`; the request's body must have been read. `on_gone` must
    neither block nor raise. Call `close()` before gunicorn reads the next request from the socket.
    A client that only closes its sending side counts as gone.
    """

    __slots__ = ("_io", "_on_gone", "_sock", "gone")

    def __init__(self, sock: Any, on_gone: Callable[[], None]) -> None:
        self.gone = False
        self._sock = sock
        self._on_gone = on_gone
        self._io = get_hub().loop.io(sock.fileno(), _READABLE)
        self._io.start(self._fire)

    def close(self) -> None:
        """May be called twice."""
        if self._io is not None:
            self._io.stop()
            self._io.close()
            self._io = None
            self._on_gone = _nothing  # what it refers to may refer to this object

    def _fire(self) -> None:
        self._io.stop()  # level-triggered: pipelined bytes would spin
        if _closed(self._sock):
            self.gone = True
            self._on_gone()


def _nothing() -> None:
    pass


def _closed(sock: Any) -> bool:
    try:
        if sys.platform == "linux":
            state: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] != _ESTABLISHED
        return sock.recv(1, socket.MSG_PEEK) == b""  # readable: does not wait
    except OSError:
        return True
