"""The upstream client against raw sockets: framing, truncation, odd heads, large bodies."""

import time

import pytest

from services.edge.upstream import (
    BadHeader,
    FirstByteTimeout,
    IdleTimeout,
    Target,
    Truncated,
    UpstreamBroken,
    UpstreamPool,
    header_line,
)
from tests.parts.raw_upstream import RawUpstream

LINES = header_line(b"content-type", b"application/json")


@pytest.fixture
def upstream():
    servers = []

    def start(serve, **options):
        server = RawUpstream(serve, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def replies(*answers: bytes):
    """Serves the answers in turn on each connection, then closes it."""

    def serve(peer):
        for answer in answers:
            if peer.request() is None:
                return
            peer.send(answer)

    return serve


def call(server, pool=None, *, body=b"{}", path=b"/v1/messages", lines=LINES, first_byte_s=5.0):
    return (pool or UpstreamPool()).request(
        Target.from_url(server.url),
        b"POST",
        path,
        lines,
        body,
        connect_timeout_s=2.0,
        first_byte_timeout_s=first_byte_s,
        on_connected=None,
    )


def whole(answered) -> bytes:
    try:
        return answered.read_all(100_000_000, 10.0)
    finally:
        answered.release()


def test_the_request_on_the_wire(upstream):
    seen = []

    def serve(peer):
        seen.append(peer.request())
        peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    server = upstream(serve)
    target = Target.from_url(server.url + "/base/")
    answered = UpstreamPool().request(
        target,
        b"POST",
        b"/v1/messages?beta=true",
        LINES + header_line(b"x-api-key", b"sk"),
        b'{"a":1}',
        connect_timeout_s=2,
        first_byte_timeout_s=2,
    )
    assert answered.status == 204
    assert whole(answered) == b""
    head, body = seen[0]
    assert head.split(b"\r\n") == [
        b"POST /base/v1/messages?beta=true HTTP/1.1",
        b"host: 127.0.0.1:%d" % server.port,
        b"content-type: application/json",
        b"x-api-key: sk",
        b"content-length: 7",
    ]
    assert body == b'{"a":1}'


def test_content_length(upstream):
    server = upstream(
        replies(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello")
    )
    answered = call(server)
    assert answered.status == 200
    assert answered.headers == [(b"content-length", b"5"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert whole(answered) == b"hello"


def test_chunked_with_extension_and_trailer(upstream):
    server = upstream(
        replies(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n"
        )
    )
    answered = call(server)
    assert whole(answered) == b"hello world"
    assert answered.headers == [(b"transfer-encoding", b"chunked")]


def test_close_delimited(upstream):
    server = upstream(replies(b"HTTP/1.1 200 OK\r\n\r\nhello"))
    pool = UpstreamPool()
    assert whole(call(server, pool)) == b"hello"
    assert pool.open_connections == 0


def test_http_10_is_not_reused(upstream):
    server = upstream(replies(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"))
    pool = UpstreamPool()
    assert whole(call(server, pool)) == b"ok"
    assert pool.open_connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ],
)
def test_a_cut_body_raises_after_its_bytes(upstream, answer):
    answered = call(upstream(replies(answer)))
    assert answered.read(5.0) == b"hello"
    with pytest.raises(Truncated):
        answered.read(5.0)
    answered.release()


@pytest.mark.parametrize(
    ("more", "error"),
    [(b"x: " + b"y" * 65_536, UpstreamBroken), (b"y", IdleTimeout)],
    ids=["endless", "dripping"],
)
def test_framing_without_a_body_is_bounded_in_bytes_and_time(upstream, more, error):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: ")
        until_s = time.monotonic() + 8
        while time.monotonic() < until_s and not peer.closed_by_client(0.05):
            peer.send(more)

    answered = call(upstream(serve))
    assert answered.read(5.0) == b"hello"
    started_s = time.monotonic()
    with pytest.raises(error):
        answered.read(5.0 if error is UpstreamBroken else 0.5)
    assert time.monotonic() - started_s < 5
    answered.release()


def test_a_reset_in_the_body_is_no_end(upstream):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        peer.closed_by_client(0.2)
        peer.reset()

    answered = call(upstream(serve))
    assert answered.read(5.0) == b"hello"
    with pytest.raises(UpstreamBroken) as broken:
        answered.read(5.0)
    assert broken.value.got_bytes
    assert broken.value.sent_whole
    answered.release()


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n"]
)
def test_interim_responses_are_skipped(upstream, interim):
    server = upstream(replies(interim * 3 + b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok"))
    answered = call(server)
    assert answered.status == 201
    assert answered.headers == [(b"content-length", b"2")]
    assert whole(answered) == b"ok"


def test_a_response_split_at_every_byte(upstream):
    answer = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    steps = iter(range(1, len(answer)))

    def serve(peer):
        while peer.request() is not None:
            at = next(steps)
            peer.send(answer[:at])
            # A moment, so that the two parts are two reads for the client.
            peer.sock.settimeout(0.002)
            try:
                peer.sock.recv(1)
            except TimeoutError:
                peer.sock.settimeout(None)
            peer.send(answer[at:])

    server = upstream(serve)
    pool = UpstreamPool()
    for _ in range(1, len(answer)):
        answered = call(server, pool)
        assert answered.status == 200
        assert answered.headers[0] == (b"content-type", b"text/event-stream")
        assert whole(answered) == b"hello world"
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\x00: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nxx",
        b"",
    ],
)
def test_what_is_no_response_breaks_the_call(upstream, answer):
    pool = UpstreamPool()
    with pytest.raises(UpstreamBroken) as broken:
        call(upstream(replies(answer)), pool)
    assert broken.value.sent_whole
    assert broken.value.got_bytes is bool(answer)
    assert pool.open_connections == 0


def test_a_bad_chunk_size_breaks_the_body(upstream):
    server = upstream(
        replies(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n")
    )
    with pytest.raises(UpstreamBroken):
        whole(call(server))


def test_an_endless_head_is_given_up(upstream):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(10_000):
            peer.send(b"x-filler: %b\r\n" % (b"a" * 1000))

    with pytest.raises(UpstreamBroken, match="too large"):
        call(upstream(serve))


def test_a_dribbled_head_meets_the_deadline(upstream):
    def serve(peer):
        peer.request()
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\n" * 100:
            peer.send(bytes([byte]))
            if peer.closed_by_client(0.05):
                return

    with pytest.raises(FirstByteTimeout):
        call(upstream(serve), first_byte_s=0.3)


def test_bytes_after_the_end_are_noise_but_end_the_connection(upstream):
    server = upstream(
        replies(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
        )
    )
    pool = UpstreamPool()
    assert whole(call(server, pool)) == b"ok"
    assert pool.open_connections == 0


def test_thirty_megabytes_each_way(upstream):
    payload = bytes(range(256)) * (30 * 4096)

    def serve(peer):
        _, body = peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        peer.send(body)

    assert whole(call(upstream(serve), body=payload)) == payload


def test_a_reply_over_the_limit(upstream):
    server = upstream(replies(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 100))
    answered = call(server)
    with pytest.raises(UpstreamBroken, match="more than 99"):
        answered.read_all(99, 5.0)
    answered.release()


def test_an_early_refusal_of_a_large_body_is_read(upstream):
    def serve(peer):
        peer.sock.recv(1000)
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        peer.closed_by_client(0.3)

    answered = call(upstream(serve), body=b"x" * 40_000_000)
    assert answered.status == 413
    answered.release()


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\x7f"])
def test_a_header_value_cannot_end_its_line(value):
    with pytest.raises(BadHeader):
        header_line(b"x-a", value)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", b"\xe9"])
def test_a_header_name_is_a_token(name):
    with pytest.raises(BadHeader):
        header_line(name, b"1")


@pytest.mark.parametrize("path", [b"/a b", b"/a\r\nx: y", b"a", b"/\x00", b"/\xff"])
def test_a_path_cannot_end_the_request_line(upstream, path):
    with pytest.raises(BadHeader):
        call(upstream(replies()), path=path)


@pytest.mark.parametrize("lines", [b"a: b", b"a: b\r\n\r\n", b"a: b\r\n\r\nGET / HTTP/1.1\r\n"])
def test_head_lines_cannot_end_the_head(upstream, lines):
    with pytest.raises(BadHeader):
        call(upstream(replies()), lines=lines)


@pytest.mark.parametrize(
    ("url", "host_line", "base"),
    [
        ("https://api.example.com", b"host: api.example.com", b""),
        ("https://api.example.com:8443/x/", b"host: api.example.com:8443", b"/x"),
        ("http://[::1]:80/v1", b"host: [::1]", b"/v1"),
        ("http://localhost:9000", b"host: localhost:9000", b""),
    ],
)
def test_targets(url, host_line, base):
    target = Target.from_url(url)
    assert (target.host_line, target.base_path) == (host_line, base)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "api.example.com",
        "https://",
        "http://u:p@x/",
        "http://x/?a=1",
        "http://x/a b",
        "http://x:99999",
    ],
)
def test_what_is_no_base_url(url):
    with pytest.raises(ValueError, match=r"URL|path|[Pp]ort"):
        Target.from_url(url)
