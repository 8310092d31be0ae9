"""Fetches from and delivers to URLs that somebody else chose, over `requests`.

Every exchange, and every redirect in it, is judged anew: the URL by its form, the address by where
it is (`judged.py`).
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Final
from urllib.parse import urljoin

import msgspec
import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from services.backends.http.judged import Adapter, Watch, Way, places, tls_context
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


class Fetched:
    """An answer whose body is still to be read, once, through `chunks`."""

    def __init__(self, reply: requests.Response, url: str, limit_bytes: int, watch: Watch) -> None:
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
        self._context = tls_context(ca_file)

    def judge(self, url: str) -> None:
        """Whether somebody else may be sent there on a client's behalf: it is looked up, not
        called. Raises FetchRefused, FetchFailed."""
        target = _target(url)
        try:
            self._guard.check(target.host, places(target.host, target.port))
        except UrlRefused as error:
            raise FetchRefused(str(error)) from error
        except OSError as error:
            raise FetchFailed(f"{target.host} cannot be looked up: {error}") from error

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
        watch = Watch(deadline_s)
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
        watch = Watch(deadline_s)
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

    def _adapter(self, watch: Watch, trusted: str) -> Adapter:
        known = _target(trusted) if trusted else None
        way = Way(self._guard, known, watch, self._connect_timeout_s)
        return Adapter(way, self._context)

    def _follow(
        self,
        adapter: Adapter,
        watch: Watch,
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
        adapter: Adapter,
        watch: Watch,
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


def _failed(watch: Watch, error: Exception) -> FetchFailed:
    return FetchFailed("it took too long" if watch.over else f"{type(error).__name__}: {error}")
