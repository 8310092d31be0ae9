"""Connections for `requests` that go to addresses which were judged, and end in time.

A name is looked up once, all of its addresses are judged, and the connection goes to one of these
very addresses while `Host` and the TLS name stay the URL's: a second, different answer of the name
server changes nothing.
"""

import socket
import threading
from contextlib import suppress
from ssl import SSLContext
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import create_urllib3_context

from services.core.netguard import Guard, Target


def tls_context(ca_file: str = DEFAULT_CA_BUNDLE_PATH) -> SSLContext:
    """Verifies names and certificates by the ones in `ca_file`; slow to make, so make it once."""
    context = create_urllib3_context()
    context.load_verify_locations(ca_file)
    return context


class Watch:
    """Ends every connection of one exchange when its time is over, whatever it is doing."""

    def __init__(self, deadline_s: float) -> None:
        self.over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(deadline_s, self._end)
        self._timer.daemon = True
        self._timer.start()

    def add(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.append(connected.dup())  # TLS takes the original away
        if self.over:
            self._end()

    def _end(self) -> None:
        self.over = True
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # closed by the other side meanwhile
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()


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
        self._watch = watch

    def open(self, connection: HTTPConnection) -> socket.socket:
        """A socket to one of the judged addresses. Raises UrlRefused, OSError."""
        host, port = connection.host.strip("[]"), connection.port
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = {str(place[0]): (family, place) for family, _, _, _, place in found}
        known = self._trusted is not None and (host, port) == self._trusted.origin[1:]
        if self._guard is not None and not known:
            self._guard.check(host, places)
        problem: OSError | None = None
        for family, place in places.values():
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.settimeout(self._connect_timeout_s)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.connect(place)
            except OSError as error:
                made.close()
                problem = error
                continue
            self._watch.add(made)
            return made
        raise problem or socket.gaierror(f"{host} has no address")


class _UsedOnce(HTTPConnectionPool):
    """Keeps no connection, though the server may offer it."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()


class Adapter(HTTPAdapter):
    """Connections that are made by a `Way`, with one shared TLS context."""

    def __init__(self, way: Way, context: SSLContext) -> None:
        self._way = way
        self._context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **named)
        way = self._way

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return way.open(self)

            def connect(self) -> None:
                super().connect()
                way.made = True

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return way.open(self)

            def connect(self) -> None:
                super().connect()
                way.made = True

        class PlainPool(_UsedOnce, HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(_UsedOnce, HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}  # the shared context verifies

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The shared context verifies."""
