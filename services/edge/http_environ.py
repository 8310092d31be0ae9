"""From gunicorn's checked request head to the WSGI environ.

gunicorn's policy against smuggling stands; what is our own is which names with underscores pass,
and an environ that is filled in one go.
"""

from typing import Any, Final

from gunicorn import util
from gunicorn.http.errors import ObsoleteFolding
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

# Underscore names that clients really send (older Codex). Any other is dropped: it would take the
# environ key of the hyphenated header, which a proxy in front may have filtered.
UNDERSCORE_HEADERS: Final = ("SESSION_ID", "CONVERSATION_ID")
HEAD_BYTES_MAX: Final = 128 * 1024  # of all headers together


class CheckedRequest(Request):  # type: ignore[misc]
    """gunicorn's request head; of underscore names only ours pass, from any peer, and the whole
    head is bounded, not only each of its fields."""

    max_buffer_headers = property(lambda _: HEAD_BYTES_MAX, lambda _, computed: None)

    def _peer_trusted_for_forwarded(self) -> tuple[dict[str, str], tuple[str, ...]]:
        return {}, UNDERSCORE_HEADERS


class CheckedParser(RequestParser):  # type: ignore[misc]
    mesg_class = CheckedRequest


def environ_of(base: dict[str, Any], req: Any, client: Any, address: Any) -> dict[str, Any]:
    """`base` and what the request's head says. Of a repeated header the values are joined.
    Raises ObsoleteFolding."""
    environ = base.copy()
    body = req.body
    if req._expected_100_continue:
        body = ContinueInput(client, body)
    environ["wsgi.input"] = body
    environ["gunicorn.socket"] = client
    environ["REQUEST_METHOD"] = req.method
    environ["QUERY_STRING"] = req.query
    environ["RAW_URI"] = req.uri
    path = req.path
    environ["PATH_INFO"] = util.unquote_to_wsgi_str(path) if "%" in path else path
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if req.version >= (1, 1) else "HTTP/1.0"
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"] = address[0]
        environ["REMOTE_PORT"] = str(address[1])
    underscored = None
    for name, value in req.headers:
        key = _keys.get(name) or _key(name)
        if "_" in name:
            underscored = underscored or []
            underscored.append((key, value))
        elif key in environ:
            environ[key] += "," + value
        else:
            environ[key] = value
    if underscored:
        for key, value in underscored:
            environ.setdefault(key, value)  # never joined to, nor instead of, the hyphenated header
    return environ


_keys: dict[str, str] = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}


def _key(name: str) -> str:
    if not name:  # a folded line: the C parser hands it out as a header without a name
        raise ObsoleteFolding(name)
    key = "HTTP_" + name.replace("-", "_")
    if len(_keys) < 1000:
        _keys[name] = key
    return key


class ContinueInput:
    """A body whose client waits for `100 Continue`: sent when somebody wants the body."""

    def __init__(self, client: Any, body: Any) -> None:
        self._client = client
        self._body = body
        self.wanted = False

    def read(self, size: int | None = None) -> bytes:
        if not self.wanted:
            self.wanted = True
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data: bytes = self._body.read(size)
        return data


def unread(body: Any) -> bool:
    """Whether some of the body may still be on the wire."""
    left: int | None = getattr(body.reader, "length", None)  # None: chunked
    return left != 0
