"""Connections to upstreams: targets, name resolution, TLS, the idle list.

One pool per worker, made after the fork. Connections are kept per origin and taken last in, first
out, so that few stay warm; one that the other side closed, or that idled too long, is dropped
before use.
"""

import _socket
import ipaddress
import select
import time
from collections import deque
from typing import Any, Final

import gevent
from gevent import monkey, socket, ssl
from gevent.event import Event

from services.core import urls

_IDLE_MAX_S: Final = 50.0  # below the usual 60 s of load balancers, which drop silently
_IDLE_PER_ORIGIN: Final = 512
_poll = monkey.get_original("select", "poll")


class UpstreamError(Exception):
    """The attempt failed."""


class ConnectFailed(UpstreamError):
    """Nothing was sent: another channel may be tried at no risk."""


class Target:
    """Where a channel's calls go: scheme, host, port, base path, TLS context.

    Targets of one origin and context share connections.
    """

    __slots__ = ("base_path", "host", "host_line", "origin", "port", "scheme", "tls")

    def __init__(self, scheme: str, host: str, port: int, base_path: str, tls: Any) -> None:
        self.scheme, self.host, self.port, self.tls = scheme, host, port, tls
        self.base_path = base_path.encode("ascii")
        self.origin = (host, port, tls)
        shown = f"[{host}]" if ":" in host else host
        default = port == (443 if scheme == "https" else 80)
        authority = shown if default else f"{shown}:{port}"
        self.host_line = b"host: " + authority.encode("idna" if not shown.isascii() else "ascii")

    @classmethod
    def from_url(cls, base_url: str, tls: Any = None) -> "Target":
        """`https://host[:port][/base]`; `tls`: an SSLContext, else the one that trusts the system.

        Raises ValueError for anything that is not such a URL.
        """
        try:
            parts = urls.base_url(base_url)
        except ValueError as ex:
            raise ValueError(f"the base URL {base_url!r} {ex}") from ex
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        context = (tls or system_tls()) if secure else None
        return cls(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/"), context)


_system_tls: list[Any] = []


def system_tls() -> Any:
    """The process's SSLContext with the system's roots (made once: it takes tens of ms)."""
    if not _system_tls:
        _system_tls.append(tls_context())
    return _system_tls[0]


def tls_context(ca_file: str | None = None) -> Any:
    """An SSLContext that verifies chain and name, for HTTP/1.1."""
    # Not ssl.create_default_context(): unless the standard library is patched it would make a
    # context whose sockets block the whole loop.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Connection:
    """One open socket and the list it returns to."""

    __slots__ = ("idle_since", "open", "origin", "sock")

    def __init__(self, sock: Any, origin: tuple[str, int, Any]) -> None:
        self.sock = sock
        self.origin = origin
        self.idle_since = 0.0
        self.open = True

    def shut(self) -> None:
        """Ends both directions; a greenlet blocked in it wakes. Safe from the hub."""
        try:
            # Not sock.shutdown(): on a TLS socket it drops the TLS state under the blocked reader.
            raw = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, self.sock.fileno())
        except (OSError, ValueError):
            return  # closed already
        try:
            raw.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # not connected
        finally:
            raw.detach()

    def is_dead(self) -> bool:
        """Whether an idle connection was closed by the other side, or has bytes nobody asked for.

        poll, not select: no limit on the descriptor; and no peek, which blocks under TLS.
        """
        poller = _poll()
        poller.register(self.sock.fileno(), select.POLLIN)
        return bool(poller.poll(0))


class Resolver:
    """Addresses of a name, cached for `ttl_s`; while a name server fails the last answer serves."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}

    def addresses(self, host: str, port: int, timeout_s: float) -> list[Any]:
        """[(family, socket address)]. Raises ConnectFailed."""
        now = time.monotonic()
        known = self._known.get((host, port))
        if known is not None:
            if now < known[0]:
                return known[1]
            # One greenlet asks again; the others go on with what is known.
            self._known[host, port] = (now + self._ttl_s, known[1])
        try:
            found = _numeric(host, port) or _lookup(host, port, timeout_s)
        except ConnectFailed:
            if known is not None:
                return known[1]
            raise
        if len(self._known) > 1000:
            self._known.clear()
        self._known[host, port] = (now + self._ttl_s, found)
        return found


def _numeric(host: str, port: int) -> list[Any]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return []
    if version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]


def _lookup(host: str, port: int, timeout_s: float) -> list[Any]:
    with gevent.Timeout(timeout_s, ConnectFailed(f"no answer for the name {host}")):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectFailed(f"cannot resolve {host}: {error}") from error
        except UnicodeError as error:
            raise ConnectFailed(f"not a host name: {host!r}") from error
    return [(family, address) for family, _, _, _, address in found]


class ConnectionPool:
    """Open connections by origin; bounded in number, the wait for one is bounded too."""

    def __init__(self, max_connections: int, resolve_ttl_s: float) -> None:
        self._max = max_connections
        self._resolver = Resolver(resolve_ttl_s)
        self._idle: dict[tuple[str, int, Any], deque[Connection]] = {}
        self._room = Event()
        self.count = 0  # open connections, idle ones included

    def idle(self, target: Target) -> Connection | None:
        """A warm connection of this origin, or None."""
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            if time.monotonic() - connection.idle_since < _IDLE_MAX_S and not connection.is_dead():
                return connection
            self.close(connection)
        return None

    def connect(self, target: Target, deadline: float, on_socket: Any) -> Connection:
        """A new connection, TLS included. `on_socket(connection)` is called before it connects.

        `deadline` is a time.monotonic() value. Raises ConnectFailed.
        """
        self._take_slot(deadline)
        try:
            addresses = self._resolver.addresses(target.host, target.port, _left(deadline))
            return self._first_that_answers(target, addresses, deadline, on_socket)
        except BaseException:
            self._give_slot()
            raise

    def keep(self, connection: Connection) -> None:
        """Back to the idle list."""
        connection.idle_since = now = time.monotonic()
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = deque()
        idle.append(connection)
        # The oldest are at the left: drop what no call would take.
        if len(idle) > _IDLE_PER_ORIGIN or now - idle[0].idle_since > _IDLE_MAX_S:
            self.close(idle.popleft())
        if self.count >= self._max:
            self._room.set()

    def close(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            connection.sock.close()
            self._give_slot()

    def close_idle(self) -> None:
        for idle in self._idle.values():
            while idle:
                self.close(idle.pop())

    def _take_slot(self, deadline: float) -> None:
        while self.count >= self._max:
            if not self._close_one_idle():
                self._room.clear()
                if not self._room.wait(_left(deadline)):
                    raise ConnectFailed(f"all {self._max} upstream connections are in use")
        self.count += 1

    def _give_slot(self) -> None:
        self.count -= 1
        self._room.set()

    def _close_one_idle(self) -> bool:
        for idle in self._idle.values():
            if idle:
                self.close(idle.popleft())
                return True
        return False

    def _first_that_answers(
        self, target: Target, addresses: list[Any], deadline: float, on_socket: Any
    ) -> Connection:
        error: Exception | None = None
        for index, (family, address) in enumerate(addresses):
            left = _left(deadline)
            if left <= 0:
                break
            share = left / (len(addresses) - index)
            try:
                return _open(target, family, address, time.monotonic() + share, on_socket)
            except (OSError, ValueError) as failed:  # ssl errors are OSErrors
                error = failed
        raise ConnectFailed(f"{target.host}:{target.port}: {error or 'timed out'}") from error


def _open(target: Target, family: int, address: Any, deadline: float, on_socket: Any) -> Connection:
    sock = socket.socket(family, socket.SOCK_STREAM)
    connection = Connection(sock, target.origin)
    try:
        sock.settimeout(_left(deadline))
        on_socket(connection)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.tls is not None:
            sock.settimeout(_left(deadline))
            connection.sock = sock = target.tls.wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        connection.sock.close()
        sock.close()
        raise
    return connection


def send_all(sock: Any, data: bytes) -> None:
    """sendall, without the two calls it makes first: most data fits at once."""
    sent = sock.send(data)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def _left(deadline: float) -> float:
    """Seconds until the deadline, never 0 (which would mean non-blocking to a socket)."""
    return max(deadline - time.monotonic(), 0.0001)
