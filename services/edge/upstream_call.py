"""One call of the edge's HTTP/1.1 client: the response as it arrives, and the ways it can fail.

UpstreamError
+-- FirstByteTimeout     no response head in time
+-- IdleTimeout          nothing new within `timeout_s`; `read` may be called again
+-- Aborted              `abort()` ended it
+-- UpstreamBroken       the connection broke or spoke no HTTP; the provider may have worked
    +-- Truncated        the body ended before its end
"""

import time
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from services.edge.connection_pool import Connection, ConnectionPool, UpstreamError, send_all

_READ_BYTES: Final = 65536
_HEAD_BYTES_MAX: Final = 256 * 1024
_JOIN_BYTES_MAX: Final = 128 * 1024  # head and body in one send up to here


class FirstByteTimeout(UpstreamError):
    """No response head in time."""


class IdleTimeout(UpstreamError):
    """Nothing new within the time given to `read`, which may be called again."""


class UpstreamBroken(UpstreamError):
    """The connection broke, or the reply was no HTTP.

    `sent_whole`: the upstream may have the whole request; `got_bytes`: it began to answer.
    """

    def __init__(self, message: str, *, sent_whole: bool, got_bytes: bool) -> None:
        super().__init__(message)
        self.sent_whole = sent_whole
        self.got_bytes = got_bytes


class Truncated(UpstreamBroken):
    """The body ended before its end."""


class Aborted(UpstreamBroken):
    """`abort()` was called on this call."""


class Call:
    """One request and its response. Its own protocol object for the parser.

    `status` and `headers` (names in lower case, repeats kept) are set when `request` returns;
    `reused` tells whether the connection had served a call before.
    """

    __slots__ = (
        "_aborted",
        "_chunks",
        "_connection",
        "_done",
        "_framed",
        "_got",
        "_head",
        "_keep",
        "_parser",
        "_pool",
        "_sent_whole",
        "headers",
        "reused",
        "status",
    )

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: Connection | None = None
        self._aborted = False
        self._start(None, reused=False)

    def _start(self, connection: Connection | None, *, reused: bool) -> None:
        self._connection = connection
        self.reused = reused
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._head = self._done = self._keep = self._framed = self._sent_whole = False
        self._got = 0
        self._parser: Any = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("bytes after the end of the response")
        self.headers = []  # again after a 1xx

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:  # later ones are trailers
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._head = True
            for name, value in self.headers:
                if name == b"content-length" or (
                    name == b"transfer-encoding" and b"chunked" in value.lower()
                ):
                    self._framed = True

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._head:
            self._done = True
            self._keep = self._parser.should_keep_alive()

    # What the caller uses.

    def read(self, timeout_s: float) -> bytes:
        """What is there, at least one byte; b"" at the end.

        Raises IdleTimeout (resumable), Truncated, UpstreamBroken, Aborted.
        """
        chunks = self._chunks
        if not chunks:
            if self._done:
                return b""
            connection = self._connection
            if connection is None:
                raise self._broken("read after release")
            if connection.sock.timeout != timeout_s:
                connection.sock.settimeout(timeout_s)
            until_s, got = 0.0, self._got
            while not chunks:
                if self._got > got:  # framing without a byte of body: it is bounded, too
                    until_s = until_s or time.monotonic() + timeout_s
                    connection.sock.settimeout(max(until_s - time.monotonic(), 0.001))
                    if self._got - got > _HEAD_BYTES_MAX:
                        raise self._broken("the framing of the body is too large")
                try:
                    more = self._receive(connection)
                except TimeoutError as error:
                    raise IdleTimeout(f"nothing within {timeout_s:g} s") from error
                if not more:
                    if self._framed:
                        raise Truncated("cut in the body", sent_whole=True, got_bytes=True)
                    self._done = True
                    return b""
                if self._done and not chunks:
                    return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return data

    def peek(self, timeout_s: float) -> bytes:
        """What the next `read` returns. Raises what it raises."""
        data = self.read(timeout_s)
        if data:
            self._chunks.append(data)
        return data

    def read_all(self, limit: int, deadline_s: float) -> bytes:
        """The whole body, within `deadline_s` seconds from now.

        Raises IdleTimeout at the deadline, UpstreamBroken when it is longer than `limit` bytes.
        """
        deadline = time.monotonic() + deadline_s
        parts, size = [], 0
        while data := self.read(max(deadline - time.monotonic(), 0.001)):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise self._broken(f"a reply of more than {limit} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def abort(self) -> None:
        """Cancels the call from any greenlet or the hub: whoever waits in it gets Aborted."""
        self._aborted = True
        if self._connection is not None:
            self._connection.shut()

    def release(self) -> None:
        """Gives the connection back, or closes it when the response was not read to its end.

        Closing is how an upstream learns that nobody wants the rest. May be called twice.
        """
        connection, self._connection = self._connection, None
        self._parser = None  # it refers back to this object
        if connection is not None:
            if self._done and self._keep and not self._aborted:
                self._pool.keep(connection)
            else:
                self._pool.close(connection)

    # Inside.

    def _attach(self, connection: Connection) -> None:
        """A socket exists, not yet connected: from here on abort() can reach it."""
        self._connection = connection
        if self._aborted:
            raise self._abort_error()

    def _exchange(self, head: bytes, body: bytes, deadline: float) -> None:
        """Sends the request and reads the response head. `deadline`: a time.monotonic() value."""
        connection = self._connection
        assert connection is not None
        connection.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            self._send(connection, head, body)
        except TimeoutError as error:
            raise FirstByteTimeout("the upstream stopped reading the request") from error
        except OSError as error:
            if self._aborted:
                raise self._abort_error() from None
            # It may have answered without reading everything (413, 401): what it said counts.
            try:
                self._read_head(connection, deadline)
            except UpstreamBroken:
                raise self._broken(f"connection lost while sending: {error}") from error
            return
        self._read_head(connection, deadline)

    def _send(self, connection: Connection, head: bytes, body: bytes) -> None:
        sock = connection.sock
        if len(body) <= _JOIN_BYTES_MAX:
            send_all(sock, head + body)
        else:
            sock.sendall(head)
            sock.sendall(body)
        self._sent_whole = True

    def _receive(self, connection: Connection) -> bytes:
        """One recv, fed to the parser. Returns the bytes, b"" at the end of the connection."""
        try:
            data: bytes = connection.sock.recv(_READ_BYTES)
        except TimeoutError:
            if self._aborted:
                raise self._abort_error() from None
            raise
        except OSError as error:
            if self._aborted:
                raise self._abort_error() from None
            raise self._broken(f"connection lost: {error}") from error
        if self._aborted:
            raise self._abort_error()
        if data:
            self._got += len(data)
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade) as error:
                if not self._done:
                    raise self._broken(f"not HTTP: {error!r}") from error
                self._keep = False  # bytes after the end: the response is whole, the rest is noise
        return data

    def _read_head(self, connection: Connection, deadline: float) -> None:
        self._parser = HttpResponseParser(self)
        while not self._head:
            try:
                data = self._receive(connection)
            except TimeoutError as error:
                raise FirstByteTimeout("no response head in time") from error
            if self._head:
                break
            if not data:
                raise self._broken("closed without a response")
            if self._got > _HEAD_BYTES_MAX:
                raise self._broken("the response head is too large")
            connection.sock.settimeout(max(deadline - time.monotonic(), 0.001))

    def _abort_error(self) -> Aborted:
        return Aborted("aborted", sent_whole=self._sent_whole, got_bytes=self._got > 0)

    def _broken(self, message: str) -> UpstreamBroken:
        return UpstreamBroken(message, sent_whole=self._sent_whole, got_bytes=self._got > 0)
