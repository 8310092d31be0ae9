"""Calls a private API of ours, over its unix socket or TCP, with a freshly signed identity.

The standard library's HTTP over one connection per call: it works in gevent workers and in plain
processes alike.
"""

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from schemas.config import Config
from services.backends import settings
from services.backends.clock import Clock, SystemClock
from services.backends.http.unix_socket import UnixConnection
from services.backends.identity import HEADER, OPERATOR, identities, identity

_HEALTH_TIMEOUT_S: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_MAX: Final = 64 * 1024 * 1024
_PIECE: Final = 64 * 1024


class ApiUnavailable(Exception):
    """Nobody answers there, or not in time."""


class NotReached(ApiUnavailable):
    """Nothing was sent."""


class Answer:
    """Status, headers (lower-case names) and the body, to be read once."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        reply: http.client.HTTPResponse,
        method: str,
    ) -> None:
        self.status = reply.status
        self.headers = {name.lower(): value for name, value in reply.getheaders()}
        self._connection = connection
        self._reply = reply
        self._bodyless = reply.status in (204, 304) or method == "HEAD"

    def body(self) -> bytes:
        """All of it, at most 64 MB. Raises ApiUnavailable."""
        try:
            found = self._reply.read(ANSWER_MAX + 1)
        except (OSError, http.client.HTTPException) as ex:
            raise ApiUnavailable(str(ex)) from ex
        finally:
            self.close()
        if len(found) > ANSWER_MAX:
            raise ApiUnavailable("the answer is larger than 64 MB")
        if self._is_short(len(found)):
            raise ApiUnavailable("the answer ended early")
        return found

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises OSError when it ends early."""
        size = 0
        try:
            while piece := self._reply.read(_PIECE):
                size += len(piece)
                yield piece
            if self._is_short(size):
                raise OSError("the answer ended early")
        finally:
            self.close()

    def close(self) -> None:
        self._connection.close()

    def _is_short(self, size: int) -> bool:
        # Reading in pieces, the library takes the end of the connection for the end of the body.
        told = self.headers.get("content-length", "")
        return told.isdecimal() and size < int(told) and not self._bodyless


class PrivateClient:
    """Calls go to `url`: `unix:PATH` (relative to the data folder) or `http://host:port`."""

    def __init__(self, config: Config, url: str, clock: Clock | None = None) -> None:
        self._url = url
        self._socket_path: Path | None = None
        self._host, self._port = "", 0
        if url.startswith("unix:"):
            self._socket_path = settings.under(config, url.removeprefix("unix:"))
        else:
            host, _, port = url.removeprefix("http://").rpartition(":")
            if not url.startswith("http://") or not host or not port.isdecimal():
                raise settings.ConfigError(f"{url}: write unix:PATH or http://host:port")
            self._host, self._port = host, int(port)
        self._identities = identities(settings.load_secret(config.data_dir))
        self._clock = clock or SystemClock()

    def call(
        self,
        method: str,
        target: str,
        *,
        account_id: str,
        key_id: str = "",
        headers: Mapping[str, str] = {},
        body: Any = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """`target` is path and query; `body` bytes or an iterator of bytes (with content-length
        in `headers`). Raises ApiUnavailable, NotReached."""
        caller = identity(account_id, key_id, self._clock.now_us())
        connection = self._connection()
        try:
            connection.connect()
        except OSError as ex:
            raise NotReached(f"nobody listens at {self._url}: {ex}") from ex
        try:
            connection.sock.settimeout(timeout_s)
            signed = {**headers, HEADER: self._identities.sign(caller)}
            connection.request(method, target, body, signed)
            return Answer(connection, connection.getresponse(), method)
        except (OSError, http.client.HTTPException) as ex:
            connection.close()
            raise ApiUnavailable(f"nobody answers at {self._url}: {ex}") from ex

    def _connection(self) -> http.client.HTTPConnection:
        if self._socket_path is not None:
            return UnixConnection(self._socket_path, _CONNECT_TIMEOUT_S)
        return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)


def is_healthy(client: PrivateClient) -> bool:
    """Whether the service behind it answers and reaches its database, within a second."""
    try:
        answer = client.call(
            "GET", "/internal/health", account_id=OPERATOR, timeout_s=_HEALTH_TIMEOUT_S
        )
        answer.close()
    except ApiUnavailable:
        return False
    return answer.status == 200
