"""Calls upstreams of media channels: `requests`, one session per thread, no redirects.

What a failure means is told apart by whether anything can have been sent."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import msgspec
import requests

_CONNECT_S: Final = 5.0
_REPLY_MAX: Final = 64 * 1024 * 1024
_CHUNK: Final = 64 * 1024


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
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


class HttpClient:
    """Safe in threads."""

    def __init__(self) -> None:
        self._own = threading.local()

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
        Raises NotConnected, NoReply."""
        body = None if json is None else msgspec.json.encode(json)
        sent = dict(headers)
        if body is not None:
            sent.setdefault("content-type", "application/json")
        try:
            with (
                self._session(method) as session,
                session.request(
                    method,
                    url,
                    headers=sent,
                    data=body if form is None else dict(form),
                    files=dict(files) if files else None,
                    timeout=(min(_CONNECT_S, timeout_s), timeout_s),
                    allow_redirects=False,
                    stream=True,
                ) as reply,
            ):
                read = _whole(reply)
                return Reply(
                    status=reply.status_code,
                    headers={name.lower(): value for name, value in reply.headers.items()},
                    body=read,
                )
        except (
            requests.ConnectTimeout,
            requests.exceptions.SSLError,
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            requests.exceptions.InvalidSchema,
        ) as ex:
            raise NotConnected(str(ex)) from ex
        except requests.ConnectionError as ex:
            # A refused connection and a failed name lookup arrive as this too.
            if "NewConnectionError" in repr(ex) or "NameResolutionError" in repr(ex):
                raise NotConnected(str(ex)) from ex
            raise NoReply(str(ex)) from ex
        except (requests.RequestException, OSError) as ex:
            raise NoReply(str(ex)) from ex

    def _session(self, method: str) -> AbstractContextManager[requests.Session]:
        # A kept connection that the upstream has just closed would make it unsure whether a create
        # arrived, so what makes something gets a connection of its own.
        if method not in ("GET", "HEAD"):
            return _session()
        kept: requests.Session | None = getattr(self._own, "session", None)
        if kept is None:
            kept = self._own.session = _session()
        return nullcontext(kept)


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy of the environment is not ours to use
    return session


def _whole(reply: requests.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in reply.iter_content(_CHUNK):
        size += len(part)
        if size > _REPLY_MAX:
            raise NoReply(f"the reply is larger than {_REPLY_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
