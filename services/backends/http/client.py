"""Calls upstreams of media channels over `requests`, without redirects.

What a failure means is told apart by whether anything can have been sent."""

import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

import msgspec
import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import HTTPError

from services.backends.http.judged import Adapter, Watch, Way, tls_context

_CONNECT_S: Final = 5.0
_WHOLE_S: Final = 300.0  # for a whole answer to what only asks; silence ends it sooner
_REPLY_MAX: Final = 64 * 1024 * 1024
_CHUNK: Final = 64 * 1024
_HEADERS: Final = {"user-agent": "tollgate"}
_TROUBLE: Final = (requests.RequestException, HTTPError, OSError, ValueError)


class NotConnected(Exception):
    """Nothing was sent."""


class NoReply(Exception):
    """Something may have been sent, and no whole answer came back."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer of the upstream. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retry_after_s(self) -> float | None:
        """The header in seconds; a date or nonsense is None."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isdecimal() else None

    def json(self) -> Any:
        """The decoded body; None when it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class HttpClient:
    """Safe in threads. What only asks (GET) goes over kept connections. What makes something gets
    a connection of its own: only then is it certain whether any of it can have been sent."""

    def __init__(self, *, ca_file: str = DEFAULT_CA_BUNDLE_PATH) -> None:
        self._own = threading.local()
        self._made_now: set[Watch] = set()
        self._context = tls_context(ca_file)

    def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        json: Any = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        timeout_s: float = 30.0,
    ) -> Reply:
        """`files`: name -> (file name, bytes, media type), sent as multipart with `form`.
        `timeout_s`: for the whole exchange; of what only asks, which may bring a film along, for
        each silence in it. Raises NotConnected, NoReply."""
        sent = {**_HEADERS, **headers}
        body: bytes | dict[str, str] | None = dict(form) if form is not None else None
        if json is not None:
            body = msgspec.json.encode(json)
            sent.setdefault("content-type", "application/json")
        try:
            prepared = requests.Request(
                method, url, headers=sent, data=body, files=dict(files) if files else None
            ).prepare()
        except (requests.RequestException, ValueError) as ex:
            raise NotConnected(str(ex)) from ex
        if method in ("GET", "HEAD"):
            return self._asked(prepared, timeout_s)
        return self._made(prepared, timeout_s)

    def _asked(self, prepared: requests.PreparedRequest, timeout_s: float) -> Reply:
        watch = Watch(max(timeout_s, _WHOLE_S))
        way = Way(None, None, watch, min(_CONNECT_S, timeout_s))
        kept: Adapter | None = getattr(self._own, "adapter", None)
        if kept is None:
            kept = self._own.adapter = Adapter(way, self._context, keeps=True)
        kept.way = way
        try:
            return _sent(kept, prepared, timeout_s, watch)
        except _TROUBLE as ex:
            raise NoReply(f"{type(ex).__name__}: {ex}") from ex
        finally:
            watch.close()

    def _made(self, prepared: requests.PreparedRequest, timeout_s: float) -> Reply:
        watch = Watch(timeout_s)
        self._made_now.add(watch)
        way = Way(None, None, watch, min(_CONNECT_S, timeout_s))
        try:
            with closing(Adapter(way, self._context)) as adapter:
                return _sent(adapter, prepared, timeout_s, watch)
        except _TROUBLE as ex:
            message = f"{type(ex).__name__}: {ex}"
            raise NoReply(message) if way.made else NotConnected(message) from ex
        finally:
            self._made_now.discard(watch)
            watch.close()

    def abort(self) -> None:
        """Ends every call that makes something, whatever it waits for: NoReply is raised there."""
        for watch in list(self._made_now):
            watch.end()


def _sent(
    adapter: Adapter, prepared: requests.PreparedRequest, timeout_s: float, watch: Watch
) -> Reply:
    # Not through a session: that would read the body of a redirect, however long it is.
    limits = (min(_CONNECT_S, timeout_s), timeout_s)
    with adapter.send(prepared, stream=True, timeout=limits) as reply:
        body = _whole(reply)
        if watch.over:  # what ended then may have ended early
            raise NoReply("it took too long")
        return Reply(
            status=reply.status_code,
            headers={name.lower(): value for name, value in reply.headers.items()},
            body=body,
        )


def _whole(reply: requests.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in reply.iter_content(_CHUNK):
        size += len(part)
        if size > _REPLY_MAX:
            raise NoReply(f"the reply is larger than {_REPLY_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
