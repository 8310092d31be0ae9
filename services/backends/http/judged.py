"""Connections for `requests` that go to addresses which were judged, and end in time.

A name is looked up once, all of its addresses are judged, and the connection goes to one of these
very addresses while `Host` and the TLS name stay the URL's: a second, different answer of the name
server changes nothing.
"""

import math
import os
import socket
import threading
import time
from contextlib import suppress
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import create_urllib3_context

from services.core.netguard import Guard, Target

_POOLS_MAX: Final = 16  # origins of one adapter


def tls_context(ca_file: str = DEFAULT_CA_BUNDLE_PATH) -> SSLContext:
    """Verifies names and certificates by the ones in `ca_file`; slow to make, so make it once."""
    context = create_urllib3_context()
    context.load_verify_locations(ca_file)
    return context


def places(host: str, port: int) -> dict[str, tuple[int, Any]]:
    """Where a name leads: family and place of each address. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(place[0]): (family, place) for family, _, _, _, place in found}


class Watch:
    """Ends every connection of one exchange when its time is over, whatever it is doing."""

    def __init__(self, deadline_s: float) -> None:
        self.over = False
        self.until_s = time.monotonic() + deadline_s
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        _ALARM.add(self)

    def add(self, connected: socket.socket) -> None:
        with self._lock:
            # A copy: TLS takes the original away, and has none of its own to give.
            self._sockets.append(socket.socket(fileno=os.dup(connected.fileno())))
        if self.over:
            self.end()

    def end(self) -> None:
        """Its time is over."""
        self.over = True
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # closed by the other side meanwhile
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        _ALARM.drop(self)
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()


class _Alarm:
    """One thread for all watches, started with the first one: a timer each would cost a thread
    each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._next_s = math.inf
        self._thread: threading.Thread | None = None

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
                self._thread.start()
            elif watch.until_s < self._next_s:
                self._changed.notify()

    def drop(self, watch: Watch) -> None:
        with self._changed:
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._next_s = min((each.until_s for each in self._watches), default=math.inf)
                wait_s = min(self._next_s - time.monotonic(), threading.TIMEOUT_MAX)
                if wait_s > 0:
                    self._changed.wait(wait_s)
                now_s = time.monotonic()
                over = {each for each in self._watches if each.until_s <= now_s}
                self._watches -= over
            for each in over:
                each.end()


_ALARM = _Alarm()


class Way:
    """How the connections of one exchange are made: looked up, judged (without a guard every
    address is open), watched. `made`: one is ready, so that something may have been sent."""

    made = False

    def __init__(
        self, guard: Guard | None, trusted: Target | None, watch: Watch, connect_timeout_s: float
    ) -> None:
        self._guard = guard
        self._connect_timeout_s = connect_timeout_s
        self._trusted = trusted
        self.watch = watch

    def open(self, connection: HTTPConnection) -> socket.socket:
        """A socket to one of the judged addresses. Raises UrlRefused, OSError."""
        host, port = connection.host.strip("[]"), connection.port
        found = places(host, port)
        known = self._trusted is not None and (host, port) == self._trusted.origin[1:]
        if self._guard is not None and not known:
            self._guard.check(host, found)
        problem: OSError | None = None
        for family, place in found.values():
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.settimeout(self._connect_timeout_s)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.connect(place)
            except OSError as error:
                made.close()
                problem = error
                continue
            self.watch.add(made)
            return made
        raise problem or socket.gaierror(f"{host} has no address")


class _Judged:
    """What both kinds of connections do."""

    way: Way

    def _new_conn(self) -> socket.socket:
        return self.way.open(self)  # type: ignore[arg-type]

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.way.made = True


class _Plain(_Judged, HTTPConnection):
    pass


class _Secure(_Judged, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    """`keeps`: connections are used again; else none is, though the server may offer it."""

    way: Way
    keeps = False

    def _get_conn(self, timeout: float | None = None) -> Any:
        found: Any = super()._get_conn(timeout)
        found.way = self.way
        if found.sock is not None:
            self.way.watch.add(found.sock)
        return found

    def _put_conn(self, conn: Any) -> None:
        if self.keeps:
            super()._put_conn(conn)
        elif conn is not None:
            conn.close()


class _PlainPool(_Pool, HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _Secure


class Adapter(HTTPAdapter):
    """Connections that are made by a `Way`, with one shared TLS context. `keeps`: they are used
    again by later exchanges with the same origin, one at a time, each with a `way` of its own."""

    def __init__(self, way: Way, context: SSLContext, *, keeps: bool = False) -> None:
        self.way = way
        self._context = context
        self._keeps = keeps
        self._pools: dict[tuple[str, str, int | None], _Pool] = {}
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """There is none: every origin has a pool of its own."""

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> HTTPConnectionPool:
        url = urlsplit(str(request.url))
        origin = (url.scheme, str(url.hostname), url.port)
        pool = self._pools.get(origin)
        if pool is None:
            if len(self._pools) >= _POOLS_MAX:
                self.close()
            pool = self._pools[origin] = self._pool(*origin)
        pool.way = self.way
        return pool

    def _pool(self, scheme: str, host: str, port: int | None) -> _Pool:
        made: _Pool
        if scheme == "https":
            made = _SecurePool(host, port, ssl_context=self._context)
        else:
            made = _PlainPool(host, port)
        made.keeps = self._keeps
        return made

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The shared context verifies."""

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
