"""HTTP/1.1 by hand, so that every byte, pause and broken end is under control."""

import socket as std_socket
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from gevent import socket

_HEAD_MAX: Final = 256 * 1024
_BODY_MAX: Final = 64 * 1024 * 1024
_KEPT_MAX: Final = 1024 * 1024
_REASONS: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


class ClientGone(Exception):
    """The client closed its connection."""


class HungUp(Exception):
    """The connection is to be closed without a proper end."""


class Request:
    """One request with its raw bytes. Header names are lower case; `fields` keeps all of them in
    order, `headers` the last of each name."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.raw_head = head
        self.body = body
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ", 2)
        self.fields = [
            (name.strip().lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        ]
        self.headers = dict(self.fields)
        parts = urlsplit(self.target)
        self.path = parts.path
        self.query = dict(parse_qsl(parts.query))


class Connection:
    """One client connection: reads requests, writes replies, knows when the client has gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = b""
        self._chunked = False
        self.bytes_sent = 0  # of the present reply's body, without framing
        self.status = 0
        self.reply_head: list[tuple[str, str]] = []
        self.reply_body = bytearray()
        sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)

    def read_request(self) -> Request | None:
        """The next request, None at the end of the connection."""
        while b"\r\n\r\n" not in self._held:
            if not self._fill() or len(self._held) > _HEAD_MAX:
                return None
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        request = Request(head, b"")
        if request.headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in request.headers.get("transfer-encoding", "").lower():
            request.body = self._read_chunks()
        else:
            request.body = self._take(int(request.headers.get("content-length", "0")))
        self.bytes_sent, self.status, self._chunked = 0, 0, False
        self.reply_head, self.reply_body = [], bytearray()
        return request

    def _fill(self) -> bool:
        self._sock.settimeout(None)
        try:
            data = self._sock.recv(262_144)
        except OSError:
            data = b""
        self._held += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        if size > _BODY_MAX:
            raise ClientGone
        parts, have = [self._held], len(self._held)
        while have < size:
            data = self._sock.recv(min(262_144, size - have))
            if not data:
                raise ClientGone
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._held = whole[size:]
        return whole[:size]

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while True:
            while b"\r\n" not in self._held:
                if not self._fill():
                    raise ClientGone
            line, _, self._held = self._held.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += self._take(size)
            self._take(2)
            if size == 0:
                return bytes(body)

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """A whole reply with its length."""
        head = self._head(status, [*headers, ("content-length", str(len(body)))])
        self._send(head + body)
        self._count(body)

    def start(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The head of a chunked reply."""
        self._chunked = True
        self._send(self._head(status, [*headers, ("transfer-encoding", "chunked")]))

    def write(self, data: bytes) -> None:
        self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)
        self._count(data)

    def write_all(self, frames: list[bytes]) -> None:
        """Several chunks in one system call."""
        self._send(b"".join(b"%x\r\n%s\r\n" % (len(f), f) for f in frames))
        for frame in frames:
            self._count(frame)

    def finish(self) -> None:
        self._send(b"0\r\n\r\n")

    def send_raw(self, data: bytes) -> None:
        """Bytes outside the rules of HTTP."""
        self._send(data)

    def pause(self, seconds: float) -> None:
        """Waits; raises ClientGone as soon as the client closes its side."""
        self._sock.settimeout(seconds)
        try:
            gone = not self._held and self._sock.recv(1, std_socket.MSG_PEEK) == b""
        except TimeoutError:
            return
        except OSError as error:
            raise ClientGone from error
        if gone:
            raise ClientGone

    def close(self) -> None:
        try:
            self._sock.shutdown(std_socket.SHUT_RDWR)
        except OSError:
            pass  # already closed by the client
        self._sock.close()

    def _head(self, status: int, headers: list[tuple[str, str]]) -> bytes:
        self.status = status
        self.reply_head = headers
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _count(self, data: bytes) -> None:
        self.bytes_sent += len(data)
        if len(self.reply_body) < _KEPT_MAX:
            self.reply_body += data

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(None)
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise ClientGone from error
