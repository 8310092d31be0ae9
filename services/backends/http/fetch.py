"""Fetches from and delivers to URLs that somebody else chose, over `requests`.

A name is looked up once, all of its addresses are judged, and the connection goes to one of these
very addresses while `Host` and the TLS name stay the URL's: a second, different answer of the name
server changes nothing. Every redirect is a new URL, judged the same way.
"""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urljoin

import msgspec
import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout, create_urllib3_context

from services.core.netguard import Guard, Target, UrlRefused, check_url

REDIRECTS_MAX: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PIECE: Final = 256 * 1024
_HEADERS: Final = {"user-agent": "tollgate", "accept-encoding": "identity", "connection": "close"}
_KEPT_REPLY: Final = 1024  # bytes of the answer to a delivery


class FetchRefused(Exception):
    """Will never be fetched as it is: a closed address, a wrong URL, too large, a wrong type."""


class FetchFailed(Exception):
    """Did not work this time: no connection, no time left, an answer that was cut short."""


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a delivery; `body` is its first kilobyte. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Watch:
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


class _Way:
    """How the connections of one exchange are made: looked up, judged, watched."""

    def __init__(
        self, guard: Guard, trusted: Target | None, watch: _Watch, connect_timeout_s: float
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
        if self._trusted is None or (host, port) != self._trusted.origin[1:]:
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


class _Adapter(HTTPAdapter):
    """Connections that are made by a `_Way`, with one shared TLS context."""

    def __init__(self, way: _Way, context: SSLContext) -> None:
        self._way = way
        self._context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **named)
        way = self._way

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return way.open(self)

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return way.open(self)

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


class Fetched:
    """An answer whose body is still to be read, once, through `chunks`."""

    def __init__(self, reply: requests.Response, url: str, limit_bytes: int, watch: _Watch) -> None:
        self.status = reply.status_code
        self.url = url
        self.headers = {name.lower(): value for name, value in reply.headers.items()}
        self._reply = reply
        self._limit_bytes = limit_bytes
        self._watch = watch

    @property
    def type(self) -> str:
        """The media type that the answer claims, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces. Raises FetchRefused when there are too many,
        FetchFailed."""
        size = 0
        try:
            for piece in self._reply.raw.stream(_PIECE, decode_content=False):
                size += len(piece)
                if size > self._limit_bytes:
                    raise FetchRefused(f"it is larger than {self._limit_bytes} bytes")
                yield piece
        except (HTTPError, OSError) as error:
            raise _failed(self._watch, error) from error
        if self._watch.over:
            raise FetchFailed("it took too long")


class Fetcher:
    """Safe in threads. Connections are not kept: every exchange is judged anew. `ca_file` holds the
    certificates that TLS trusts."""

    def __init__(
        self,
        guard: Guard,
        *,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        ca_file: str = DEFAULT_CA_BUNDLE_PATH,
    ) -> None:
        self._guard = guard
        self._connect_timeout_s = connect_timeout_s
        self._timeout = Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._context = create_urllib3_context()
        self._context.load_verify_locations(ca_file)

    @contextmanager
    def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        limit_bytes: int,
        deadline_s: float,
        types: tuple[str, ...] = (),
        trusted: str = "",
    ) -> Iterator[Fetched]:
        """An answer of any status. `types` are prefixes of the media types that are accepted
        (none: every type); `trusted` is a URL whose host and port may be at a closed address;
        `headers` go to the URL's own origin only, not where it redirects to.

        Raises FetchRefused, FetchFailed."""
        watch = _Watch(deadline_s)
        try:
            with closing(self._adapter(watch, trusted)) as adapter:
                target, reply = self._follow(adapter, watch, _target(url), headers)
                with reply:
                    got = Fetched(reply, target.url, limit_bytes, watch)
                    _check(got, types, limit_bytes)
                    yield got
        finally:
            watch.close()

    def send(
        self,
        url: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        deadline_s: float,
        method: str = "POST",
    ) -> Delivered:
        """Delivers `body`; a redirect is an answer like any other. Raises FetchRefused,
        FetchFailed."""
        watch = _Watch(deadline_s)
        try:
            with (
                closing(self._adapter(watch, "")) as adapter,
                self._exchange(adapter, watch, method, _target(url).url, headers, body) as reply,
            ):
                got = Fetched(reply, url, _KEPT_REPLY, watch)
                kept = b""
                with suppress(FetchRefused):  # the rest of a long answer is of no interest
                    for piece in got.chunks():
                        kept += piece
                return Delivered(status=got.status, headers=got.headers, body=kept)
        finally:
            watch.close()

    def _adapter(self, watch: _Watch, trusted: str) -> _Adapter:
        known = _target(trusted) if trusted else None
        way = _Way(self._guard, known, watch, self._connect_timeout_s)
        return _Adapter(way, self._context)

    def _follow(
        self,
        adapter: _Adapter,
        watch: _Watch,
        target: Target,
        headers: Mapping[str, str],
    ) -> tuple[Target, requests.Response]:
        origin = target.origin
        for _ in range(REDIRECTS_MAX + 1):
            sent = headers if target.origin == origin else {}
            reply = self._exchange(adapter, watch, "GET", target.url, sent, None)
            place = reply.headers.get("location")
            if reply.status_code not in _REDIRECTS or place is None:
                return target, reply
            reply.close()
            following = _target(_joined(target.url, place))
            if target.scheme == "https" and following.scheme != "https":
                raise FetchRefused("it redirects from https to http")
            target = following
        raise FetchRefused(f"it redirects more than {REDIRECTS_MAX} times")

    def _exchange(
        self,
        adapter: _Adapter,
        watch: _Watch,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> requests.Response:
        sent = {**_HEADERS, **headers}
        try:
            # Not through a session: that would read the body of a redirect, however long it is.
            prepared = requests.Request(method, url, headers=sent, data=body).prepare()
            return adapter.send(prepared, stream=True, timeout=self._timeout)  # type: ignore[arg-type]
        except UrlRefused as error:
            raise FetchRefused(str(error)) from error
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise _failed(watch, error) from error


def _joined(base: str, place: str) -> str:
    try:
        return urljoin(base, place)
    except ValueError as error:
        raise FetchRefused(f"it redirects to nowhere: {error}") from error


def _target(url: str) -> Target:
    try:
        return check_url(url)
    except UrlRefused as error:
        raise FetchRefused(str(error)) from error


def _check(got: Fetched, types: tuple[str, ...], limit_bytes: int) -> None:
    if not 200 <= got.status < 300:
        return
    told = got.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit_bytes:
        raise FetchRefused(f"it is larger than {limit_bytes} bytes")
    if types and not got.type.startswith(types):
        raise FetchRefused(f"it is {got.type or 'of no type'}")
    if got.headers.get("content-encoding", "identity") != "identity":
        raise FetchRefused("it is compressed although that was not asked for")


def _failed(watch: _Watch, error: Exception) -> FetchFailed:
    return FetchFailed("it took too long" if watch.over else f"{type(error).__name__}: {error}")
