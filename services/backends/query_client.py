"""Asks the meter's query API, over its private unix socket or over TCP.

Every call carries a freshly signed identity. Works in gevent workers and in plain processes: it
is the standard library's HTTP over one connection per call.
"""

import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from schemas.config import Config
from services.backends import settings
from services.backends.clock import Clock, SystemClock
from services.backends.http.unix_socket import UnixConnection
from services.backends.identity import HEADER, OPERATOR, Identity, identities, identity

_CONNECT_TIMEOUT_S: Final = 2.0
_ANSWER_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024


class QueryUnavailable(Exception):
    """No query API answers: none runs, or it is overloaded. The store may be opened directly
    when none runs on this machine."""


class QueryFailed(Exception):
    """The API answered with an error: `status` and the `error` object's `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class QueryClient:
    """Calls go to `edge.query_url` of the configuration: `unix:PATH` (relative to the data folder)
    or `http://host:port`."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._url = config.edge.query_url
        self._socket_path: Path | None = None
        if self._url.startswith("unix:"):
            self._socket_path = settings.under(config, self._url.removeprefix("unix:"))
        self._identities = identities(settings.load_secret(config.data_dir))
        self._clock = clock or SystemClock()

    def get(self, path: str, account_id: str, params: Mapping[str, str] | None = None) -> Any:
        """The decoded JSON answer for an account. Raises QueryUnavailable or QueryFailed."""
        caller = identity(account_id, "", self._clock.now_us())
        status, body = self._call("GET", path, urlencode(params or {}), caller, None)
        return _decoded(status, body)

    def forward(
        self, path: str, query_string: str, account_id: str, key_id: str
    ) -> tuple[int, bytes]:
        """Status and JSON body as the API gave them. Raises QueryUnavailable."""
        caller = identity(account_id, key_id, self._clock.now_us())
        return self._call("GET", path, query_string, caller, None)

    def sql(self, sql: str) -> Any:
        """`{"columns": [...], "types": [...], "rows": [[...]]}` of one read-only statement of the
        operator. Raises QueryUnavailable or QueryFailed."""
        caller = identity(OPERATOR, "", self._clock.now_us())
        body = msgspec.json.encode({"sql": sql})
        return _decoded(*self._call("POST", "/internal/sql", "", caller, body))

    def health(self) -> Any:
        """The API's own state. Raises QueryUnavailable or QueryFailed."""
        caller = identity(OPERATOR, "", self._clock.now_us())
        return _decoded(*self._call("GET", "/internal/health", "", caller, None))

    def _call(
        self, method: str, path: str, query_string: str, caller: Identity, body: bytes | None
    ) -> tuple[int, bytes]:
        headers = {HEADER: self._identities.sign(caller)}
        if body is not None:
            headers["content-type"] = "application/json"
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(_ANSWER_TIMEOUT_S)
            target = f"{path}?{query_string}" if query_string else path
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as ex:
            raise QueryUnavailable(f"no query API at {self._url}: {ex}") from ex
        finally:
            connection.close()
        if len(answer) > _MAX_ANSWER_BYTES:
            raise QueryUnavailable("the answer is larger than 64 MB")
        return response.status, answer

    def _connection(self) -> http.client.HTTPConnection:
        if self._socket_path is not None:
            return UnixConnection(self._socket_path, _CONNECT_TIMEOUT_S)
        parts = urlsplit(self._url)
        if parts.scheme != "http" or not parts.hostname:
            raise settings.ConfigError("edge.query_url: write unix:PATH or http://host:port")
        return http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=_CONNECT_TIMEOUT_S
        )


def _decoded(status: int, body: bytes) -> Any:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError as ex:
        raise QueryUnavailable(f"the query API answered {status} without JSON") from ex
    if status != 200:
        error = answer.get("error") if isinstance(answer, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        raise QueryFailed(status, str(message or f"status {status}"))
    return answer
