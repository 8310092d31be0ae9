"""Many clients that watch jobs by server-sent events, all idle, in one thread."""

import selectors
import socket
import time
from collections.abc import Sequence

_PIECE = 64 * 1024


class Watchers:
    """`count` open streams at one edge, over `paths` in turn."""

    def __init__(self, port: int, secret: str, paths: Sequence[str], count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._seen: dict[socket.socket, bytes] = {}
        for number in range(count):
            made = socket.create_connection(("127.0.0.1", port), 30)
            path = paths[number % len(paths)]
            lines = f"GET {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {secret}\r\n\r\n"
            made.sendall(lines.encode())
            made.setblocking(False)
            self._selector.register(made, selectors.EVENT_READ)
            self._seen[made] = b""

    def until_all(self, mark: bytes, timeout_s: float = 120.0) -> list[float]:
        """Seconds until each stream has told `mark`, in order. Those that never do are missing."""
        began_s = time.monotonic()
        times: list[float] = []
        waiting = set(self._seen)
        while waiting and time.monotonic() - began_s < timeout_s:
            for key, _ in self._selector.select(1.0):
                made = key.fileobj
                assert isinstance(made, socket.socket)
                data = made.recv(_PIECE)
                self._seen[made] = self._seen[made][-len(mark) :] + data
                if made in waiting and mark in self._seen[made]:
                    waiting.discard(made)
                    times.append(time.monotonic() - began_s)
                if not data:
                    self._selector.unregister(made)
                    waiting.discard(made)
        return times

    def close(self) -> None:
        self._selector.close()
        for made in self._seen:
            made.close()
