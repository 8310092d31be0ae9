"""The edge's HTTP/1.1 client: gevent sockets and the llhttp parser.

    call = pool.request(target, b"POST", b"/v1/messages", head_lines, body, ...)
    try:
        while data := call.read(idle_s):
            ...
    finally:
        call.release()

`head_lines` are the caller's header lines, made by `header_line`, without host and content-length.
Body bytes come as they arrive and are never decoded beyond the transfer coding. The errors are
listed in `upstream_call`.
"""

import re
import time
from collections.abc import Callable

from services.edge.connection_pool import (
    ConnectFailed,
    Connection,
    ConnectionPool,
    Target,
    UpstreamError,
    tls_context,
)
from services.edge.upstream_call import (
    Aborted,
    Call,
    FirstByteTimeout,
    IdleTimeout,
    Truncated,
    UpstreamBroken,
)

__all__ = [
    "Aborted",
    "BadHeader",
    "Call",
    "ConnectFailed",
    "FirstByteTimeout",
    "IdleTimeout",
    "Target",
    "Truncated",
    "UpstreamBroken",
    "UpstreamError",
    "UpstreamPool",
    "header_line",
    "tls_context",
]

_RACE_S = 0.5  # an idle connection closed under a send shows within a round trip

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_PATH = re.compile(rb"/[\x21-\x7e]*")


class BadHeader(ValueError):
    """A header that would break the request's framing."""


def header_line(name: bytes, value: bytes) -> bytes:
    """`name: value` with its line end. Raises BadHeader for anything that could end the line."""
    if not _NAME.fullmatch(name):
        raise BadHeader(f"not a header name: {name!r}")
    if not _VALUE.fullmatch(value):
        raise BadHeader(f"a control character in the value of {name!r}")
    return b"%b: %b\r\n" % (name, value)


class UpstreamPool:
    """The connections of one worker and the way to make calls on them."""

    def __init__(self, *, max_connections: int = 20_000, resolve_ttl_s: float = 5.0) -> None:
        self._connections = ConnectionPool(max_connections, resolve_ttl_s)

    def request(
        self,
        target: Target,
        method: bytes,
        path: bytes,
        head_lines: bytes,
        body: bytes,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        on_connected: Callable[[Call], None] | None = None,
    ) -> Call:
        """Sends a request and waits for the final response head (1xx are skipped).

        `path` is put behind the target's base path. `on_connected(call)` is called once, as soon
        as there is a socket that `call.abort()` can reach: before it connects, TLS included.
        A request is sent again, once and on a fresh connection, only when a reused connection
        broke at once without a byte of response: the close of an idle connection that crossed the
        request. Raises ConnectFailed, FirstByteTimeout, UpstreamBroken, Aborted, BadHeader; the
        connection is then closed already.
        """
        head = _head(target, method, path, head_lines, len(body))
        call = Call(self._connections)
        told = on_connected is None
        reuse = True
        try:
            while True:
                connection = self._connections.idle(target) if reuse else None
                if connection is not None:
                    call._start(connection, reused=True)
                    if not told and on_connected is not None:
                        told = True
                        on_connected(call)
                else:
                    told = self._connect(call, target, connect_timeout_s, on_connected, told)
                if call._aborted:
                    raise call._abort_error()
                sent_at = time.monotonic()
                try:
                    call._exchange(head, body, sent_at + first_byte_timeout_s)
                    return call
                except UpstreamBroken as error:
                    race = time.monotonic() - sent_at < _RACE_S
                    if error.got_bytes or not call.reused or not race:
                        raise
                self._connections.close(call._connection)  # type: ignore[arg-type]
                reuse = False
        except BaseException:
            call.release()
            raise

    def close_idle(self) -> None:
        """Closes what no call uses."""
        self._connections.close_idle()

    @property
    def open_connections(self) -> int:
        return self._connections.count

    def _connect(
        self,
        call: Call,
        target: Target,
        timeout_s: float,
        on_connected: Callable[[Call], None] | None,
        told: bool,
    ) -> bool:
        call._start(None, reused=False)

        def on_socket(connection: Connection) -> None:
            nonlocal told
            call._attach(connection)
            if not told and on_connected is not None:
                told = True
                on_connected(call)
                if call._aborted:
                    raise call._abort_error()

        deadline = time.monotonic() + timeout_s
        try:
            connection = self._connections.connect(target, deadline, on_socket)
        except ConnectFailed:
            call._connection = None
            if call._aborted:
                raise call._abort_error() from None
            raise
        except BaseException:
            call._connection = None
            raise
        call._connection = connection
        return told


def _head(target: Target, method: bytes, path: bytes, head_lines: bytes, length: int) -> bytes:
    # Lines come from `header_line`; this catches a caller that joined them wrongly.
    if b"\r\n\r\n" in head_lines or (head_lines and head_lines[-2:] != b"\r\n"):
        raise BadHeader("the header lines would end the head")
    path = target.base_path + path
    if not _PATH.fullmatch(path):
        raise BadHeader(f"not a path: {path!r}")
    if length == 0 and method == b"GET":
        return b"%b %b HTTP/1.1\r\n%b\r\n%b\r\n" % (method, path, target.host_line, head_lines)
    return b"%b %b HTTP/1.1\r\n%b\r\n%bcontent-length: %d\r\n\r\n" % (
        method,
        path,
        target.host_line,
        head_lines,
        length,
    )
