"""Reads a request's body: whole, bounded in size and time, decoded when it came compressed."""

import socket
import zlib
from typing import Any, Final

from gunicorn.http.errors import NoMoreData, ParseException

from schemas.errors import Code
from services.core.errors import InvalidRequest, Refusal

CHUNK: Final = 65536
_WBITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def read_body(environ: dict[str, Any], max_bytes: int, timeout_s: float) -> bytes:
    """The body's bytes after content decoding.

    Raises Refusal: 413 when it is larger than `max_bytes`, 400 when it ends early, takes longer
    than `timeout_s` between two reads or does not decode, 415-like 400 for an unknown coding."""
    length = environ.get("CONTENT_LENGTH") or ""
    if length and int(length) > max_bytes:
        raise _too_large(max_bytes)
    sock: socket.socket | None = environ.get("gunicorn.socket")
    if sock is not None:
        sock.settimeout(timeout_s)
    try:
        if length:
            body = _exactly(environ["wsgi.input"], int(length))
        else:
            body = _until_end(environ["wsgi.input"], max_bytes)
    except TimeoutError as ex:
        raise InvalidRequest("the request body did not arrive in time") from ex
    except ParseException as ex:
        raise InvalidRequest("the request body is not valid chunked coding") from ex
    except NoMoreData as ex:
        raise InvalidRequest("the request body ended early") from ex
    finally:
        if sock is not None:
            sock.settimeout(None)
    coding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding and coding != "identity":
        return _decode(body, coding, max_bytes)
    return body


def _exactly(stream: Any, length: int) -> bytes:
    body: bytes = stream.read(length)
    if len(body) != length:
        raise InvalidRequest("the request body ended before its content-length")
    return body


def _until_end(stream: Any, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        part = stream.read(CHUNK)
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)


def _decode(body: bytes, coding: str, max_bytes: int) -> bytes:
    wbits = _WBITS.get(coding)
    if wbits is None:
        raise InvalidRequest(f"content-encoding {coding!r} is not supported; send gzip or none")
    decoder = zlib.decompressobj(wbits)
    try:
        out = decoder.decompress(body, max_bytes + 1)
    except zlib.error as ex:
        raise InvalidRequest(f"the request body is not valid {coding}") from ex
    if len(out) > max_bytes:
        raise _too_large(max_bytes)
    if not decoder.eof:
        raise InvalidRequest(f"the request body is not valid {coding}")
    return out


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(Code.REQUEST_TOO_LARGE, f"the request body is larger than {max_bytes} bytes")
