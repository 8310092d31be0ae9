"""Reading a request's body: whole, bounded, decoded; what is no body is the client's error."""

import gzip
import io
import zlib

import pytest
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.unreader import IterUnreader

from schemas.errors import Code
from services.core.errors import InvalidRequest, Refusal
from services.edge.body import read_body


class NoLimits:
    limit_request_field_size = 0
    max_buffer_headers = 0


def environ(data: bytes, length: int | None, coding: str = "") -> dict:
    made = {"wsgi.input": io.BytesIO(data), "HTTP_CONTENT_ENCODING": coding}
    return made if length is None else made | {"CONTENT_LENGTH": str(length)}


def chunked(*parts: bytes) -> dict:
    return {"wsgi.input": Body(ChunkedReader(NoLimits(), IterUnreader(iter(parts))))}


def test_a_body_of_known_length():
    assert read_body(environ(b"hello", 5), 5, 1) == b"hello"


def test_a_chunked_body():
    assert (
        read_body(chunked(b"5\r\nhello\r\n6\r\n world\r\n", b"0\r\n\r\n"), 100, 1) == b"hello world"
    )


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate"])
def test_a_compressed_body(coding):
    data = gzip.compress(b"hello") if "gzip" in coding else zlib.compress(b"hello")
    assert read_body(environ(data, len(data), coding), 100, 1) == b"hello"


@pytest.mark.parametrize(
    "given",
    [
        environ(b"12345678", 8),
        chunked(b"8\r\n12345678\r\n", b"0\r\n\r\n"),
        environ(gzip.compress(b"1" * 100), len(gzip.compress(b"1" * 100)), "gzip"),
    ],
)
def test_a_larger_body_is_refused(given):
    with pytest.raises(Refusal) as refused:
        read_body(given, 7 if "gzip" not in given.get("HTTP_CONTENT_ENCODING", "") else 50, 1)
    assert refused.value.code is Code.REQUEST_TOO_LARGE


@pytest.mark.parametrize(
    "given",
    [
        environ(b"hell", 5),
        chunked(b"zz\r\nhello\r\n0\r\n\r\n"),
        chunked(b"5\r\nhelloXX0\r\n\r\n"),
        chunked(b"5\r\nhel"),
        environ(b"not gzip", 8, "gzip"),
        environ(gzip.compress(b"hello")[:-4], len(gzip.compress(b"hello")) - 4, "gzip"),
        environ(b"hello", 5, "br"),
    ],
)
def test_what_is_no_body_is_the_clients_error(given):
    with pytest.raises(InvalidRequest):
        read_body(given, 100, 1)
