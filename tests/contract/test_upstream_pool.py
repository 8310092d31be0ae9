"""The upstream client against raw sockets: reuse, retry, timeouts, aborts, bounds, TLS."""

import ssl
import threading
import time

import gevent
import pytest

from services.edge.upstream import (
    Aborted,
    ConnectFailed,
    FirstByteTimeout,
    IdleTimeout,
    Target,
    UpstreamBroken,
    UpstreamPool,
    header_line,
    tls_context,
)
from tests.parts.raw_upstream import RawUpstream, certificate_authority

LINES = header_line(b"content-type", b"application/json")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


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


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    ca_file, server_context = certificate_authority(tmp_path_factory.mktemp("ca"))
    return tls_context(ca_file), server_context


@pytest.fixture(params=["plain", "tls"])
def anywhere(request, upstream, authority):
    """start(serve) -> (server, target), over plain TCP and over TLS."""

    def start(serve):
        if request.param == "plain":
            server = upstream(serve)
            return server, Target.from_url(server.url)
        server = upstream(serve, tls=authority[1])
        return server, Target.from_url(server.url, authority[0])

    return start


def call(pool, target, *, body=b"{}", connect_s=2.0, first_byte_s=5.0, on_connected=None):
    return pool.request(
        target,
        b"POST",
        b"/v1/messages",
        LINES,
        body,
        connect_timeout_s=connect_s,
        first_byte_timeout_s=first_byte_s,
        on_connected=on_connected,
    )


def whole(answered) -> bytes:
    try:
        return answered.read_all(1_000_000, 5.0)
    finally:
        answered.release()


def always_ok(peer):
    while peer.request() is not None:
        peer.send(OK)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Reuse.


def test_a_connection_is_reused(anywhere):
    server, target = anywhere(always_ok)
    pool = UpstreamPool()
    reused = []
    for _ in range(5):
        answered = call(pool, target)
        reused.append(answered.reused)
        assert whole(answered) == b"ok"
    assert reused == [False, True, True, True, True]
    assert server.connections == pool.open_connections == 1
    pool.close_idle()
    assert pool.open_connections == 0


def test_targets_of_one_origin_share_connections(upstream):
    server = upstream(always_ok)
    pool = UpstreamPool()
    whole(call(pool, Target.from_url(server.url + "/a")))
    assert call(pool, Target.from_url(server.url + "/b")).reused


def test_a_response_not_read_to_its_end_closes_its_connection(anywhere):
    gone = threading.Event()

    def serve(peer):
        peer.request()
        peer.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        if peer.closed_by_client():
            gone.set()

    _, target = anywhere(serve)
    pool = UpstreamPool()
    answered = call(pool, target)
    assert answered.read(5.0) == b"data: 1\n\n"
    answered.release()
    answered.release()
    assert gone.wait(5)
    assert pool.open_connections == 0


def test_a_connection_closed_while_idle_is_not_used(anywhere):
    def serve(peer):
        peer.request()
        peer.send(OK)

    server, target = anywhere(serve)
    pool = UpstreamPool()
    for _ in range(3):
        answered = call(pool, target)
        assert not answered.reused
        assert whole(answered) == b"ok"
        time.sleep(0.05)
    assert server.connections == 3
    assert pool.open_connections == 1


def test_reuse_beyond_descriptor_1024(upstream):
    release = threading.Event()

    def serve(peer):
        peer.request()
        peer.send(SSE_HEAD + chunk(b"x"))
        release.wait(30)
        peer.send(b"0\r\n\r\n")
        always_ok(peer)

    server = upstream(serve)
    target = Target.from_url(server.url)
    pool = UpstreamPool()
    streams = [call(pool, target) for _ in range(600)]
    assert max(s._connection.sock.fileno() for s in streams) > 1024
    release.set()
    for stream in streams:
        assert whole(stream) == b"x"
    again = [call(pool, target) for _ in range(300)]
    assert all(answered.reused for answered in again)
    for answered in again:
        assert whole(answered) == b"ok"
    assert server.connections == 600
    pool.close_idle()


# The one retry.


def closes_second_request(peer):
    """Answers the first request of the first connection, closes at its second without a word."""
    if peer.number == 0:
        peer.request()
        peer.send(OK)
        peer.request()
    else:
        always_ok(peer)


def test_a_reused_connection_that_breaks_at_once_is_retried_on_a_fresh_one(anywhere):
    server, target = anywhere(closes_second_request)
    pool = UpstreamPool()
    told = []
    whole(call(pool, target))
    answered = call(pool, target, on_connected=told.append)
    assert whole(answered) == b"ok"
    assert not answered.reused
    assert told == [answered]
    assert server.connections == 2


def test_a_fresh_connection_that_breaks_is_not_retried(upstream):
    def serve(peer):
        peer.request()

    server = upstream(serve)
    with pytest.raises(UpstreamBroken) as broken:
        call(UpstreamPool(), Target.from_url(server.url))
    assert broken.value.sent_whole
    assert not broken.value.got_bytes
    assert server.connections == 1


def test_a_reused_connection_that_breaks_late_is_not_retried(upstream):
    def serve(peer):
        peer.request()
        peer.send(OK)
        peer.request()
        time.sleep(0.8)  # it may have worked on the request

    server = upstream(serve)
    pool, target = UpstreamPool(), Target.from_url(server.url)
    whole(call(pool, target))
    with pytest.raises(UpstreamBroken):
        call(pool, target)
    assert server.connections == 1


def test_a_reused_connection_that_began_to_answer_is_not_retried(upstream):
    def serve(peer):
        peer.request()
        peer.send(OK)
        peer.request()
        peer.send(b"HTTP/1.1 2")

    server = upstream(serve)
    pool, target = UpstreamPool(), Target.from_url(server.url)
    whole(call(pool, target))
    with pytest.raises(UpstreamBroken) as broken:
        call(pool, target)
    assert broken.value.got_bytes
    assert server.connections == 1


# Timeouts.


def test_no_first_byte_in_time(anywhere):
    _, target = anywhere(lambda peer: (peer.request(), peer.closed_by_client()))
    pool = UpstreamPool()
    started = time.monotonic()
    with pytest.raises(FirstByteTimeout):
        call(pool, target, first_byte_s=0.2)
    assert 0.15 < time.monotonic() - started < 10
    assert pool.open_connections == 0


def test_a_slow_first_byte_within_its_time(anywhere):
    def serve(peer):
        peer.request()
        time.sleep(0.3)
        peer.send(OK)

    _, target = anywhere(serve)
    assert whole(call(UpstreamPool(), target, first_byte_s=5)) == b"ok"


def test_an_idle_timeout_can_be_resumed(anywhere):
    go_on = threading.Event()

    def serve(peer):
        peer.request()
        peer.send(SSE_HEAD + chunk(b"one"))
        go_on.wait(10)
        peer.send(chunk(b"two") + b"0\r\n\r\n")
        always_ok(peer)

    _, target = anywhere(serve)
    pool = UpstreamPool()
    answered = call(pool, target)
    assert answered.read(5.0) == b"one"
    for _ in range(15):
        with pytest.raises(IdleTimeout):
            answered.read(0.02)
    go_on.set()
    assert answered.read(5.0) == b"two"
    assert answered.read(5.0) == b""
    answered.release()
    assert call(pool, target).reused


def test_timeouts_do_not_stay_with_the_connection(upstream):
    def serve(peer):
        while peer.request() is not None:
            time.sleep(0.3)
            peer.send(OK)

    server = upstream(serve)
    pool, target = UpstreamPool(), Target.from_url(server.url)
    first = call(pool, target, first_byte_s=5)
    first.read(0.01)
    assert first.read(0.01) == b""
    first.release()
    assert whole(call(pool, target, first_byte_s=5)) == b"ok"


def test_a_body_nobody_reads(upstream):
    stop = threading.Event()
    server = upstream(lambda peer: stop.wait(10))
    with pytest.raises(FirstByteTimeout):
        call(UpstreamPool(), Target.from_url(server.url), body=b"x" * 50_000_000, first_byte_s=0.3)
    stop.set()


def test_nobody_listens():
    pool = UpstreamPool()
    with pytest.raises(ConnectFailed):
        call(pool, Target.from_url("http://127.0.0.1:1"))
    with pytest.raises(ConnectFailed):
        call(pool, Target.from_url("http://does-not-exist.invalid"))
    assert pool.open_connections == 0


def test_a_full_backlog_meets_the_connect_timeout():
    import socket

    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    waiting = []
    for _ in range(4):  # fill the queue of connections nobody accepts
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        waiting.append(sock)
    time.sleep(0.1)
    pool = UpstreamPool()
    with pytest.raises(ConnectFailed):
        call(pool, Target.from_url(f"http://127.0.0.1:{port}"), connect_s=0.3)
    assert pool.open_connections == 0
    for sock in [*waiting, listener]:
        sock.close()


def test_a_tls_handshake_that_hangs_meets_the_connect_timeout(upstream, authority):
    server = upstream(lambda peer: peer.sock.recv(1) and time.sleep(1))
    target = Target.from_url(server.url.replace("http", "https"), authority[0])
    with pytest.raises(ConnectFailed):
        call(UpstreamPool(), target, connect_s=0.3)


def test_the_first_address_that_answers_serves(upstream):
    server = upstream(always_ok)  # on 127.0.0.1 only; localhost may also be ::1
    target = Target.from_url(f"http://localhost:{server.port}")
    assert whole(call(UpstreamPool(), target)) == b"ok"


# The bound on connections.


def test_the_wait_for_a_free_connection_is_bounded(upstream):
    server = upstream(lambda peer: (peer.request(), peer.send(OK), peer.closed_by_client()))
    pool, target = UpstreamPool(max_connections=1), Target.from_url(server.url)
    first = call(pool, target)
    with pytest.raises(ConnectFailed, match="all 1"):
        call(pool, target, connect_s=0.1)
    waiter = gevent.spawn(call, pool, target)
    gevent.sleep(0.05)
    whole(first)
    assert whole(waiter.get(timeout=5)) == b"ok"
    assert pool.open_connections == 1


def test_an_idle_connection_of_another_origin_makes_room(upstream):
    one, two = upstream(always_ok), upstream(always_ok)
    pool = UpstreamPool(max_connections=1)
    whole(call(pool, Target.from_url(one.url)))
    whole(call(pool, Target.from_url(two.url)))
    assert pool.open_connections == 1


# Aborts.


def test_abort_wakes_a_blocked_read(anywhere):
    seen = threading.Event()

    def serve(peer):
        peer.request()
        peer.send(SSE_HEAD + chunk(b"one"))
        if peer.closed_by_client():
            seen.set()

    _, target = anywhere(serve)
    pool = UpstreamPool()
    answered = call(pool, target)
    assert answered.read(5.0) == b"one"
    gevent.spawn_later(0.05, answered.abort)
    started = time.monotonic()
    with pytest.raises(Aborted):
        answered.read(10.0)
    assert time.monotonic() - started < 8
    assert seen.wait(5)
    answered.release()
    assert pool.open_connections == 0


def test_abort_from_the_hub_while_waiting_for_the_head(anywhere):
    _, target = anywhere(lambda peer: (peer.request(), peer.closed_by_client()))
    pool = UpstreamPool()
    calls = []
    timer = gevent.get_hub().loop.timer(0.05)
    timer.start(lambda: calls[0].abort())
    with pytest.raises(Aborted) as aborted:
        call(pool, target, on_connected=calls.append)
    assert aborted.value.sent_whole
    assert pool.open_connections == 0
    timer.close()


def test_abort_in_on_connected_sends_nothing(anywhere):
    seen = []
    _, target = anywhere(lambda peer: seen.append(peer.request()))
    pool = UpstreamPool()
    with pytest.raises(Aborted):
        call(pool, target, on_connected=lambda answered: answered.abort())
    time.sleep(0.1)
    assert [request for request in seen if request] == []
    assert pool.open_connections == 0


def test_abort_while_connecting(upstream, authority):
    server = upstream(lambda peer: peer.closed_by_client())  # no TLS: the handshake hangs
    target = Target.from_url(server.url.replace("http", "https"), authority[0])
    pool = UpstreamPool()
    started = time.monotonic()
    with pytest.raises(Aborted):
        call(
            pool,
            target,
            connect_s=5,
            on_connected=lambda answered: gevent.spawn_later(0.1, answered.abort),
        )
    assert time.monotonic() - started < 4
    assert pool.open_connections == 0


def test_abort_after_release_does_not_touch_the_next_call(upstream):
    server = upstream(always_ok)
    pool, target = UpstreamPool(), Target.from_url(server.url)
    first = call(pool, target)
    whole(first)
    second = call(pool, target)
    assert second.reused
    first.abort()
    assert whole(second) == b"ok"


def test_an_aborted_connection_is_never_reused(upstream):
    server = upstream(always_ok)
    pool, target = UpstreamPool(), Target.from_url(server.url)
    answered = call(pool, target)
    assert answered.read(1) == b"ok"
    assert answered.read(1) == b""
    answered.abort()
    answered.release()
    assert pool.open_connections == 0


# TLS.


def test_an_unknown_authority_is_refused(upstream, authority):
    server = upstream(always_ok, tls=authority[1])
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        call(UpstreamPool(), Target.from_url(server.url))


def test_a_certificate_of_another_name_is_refused(upstream, tmp_path):
    ca_file, context = certificate_authority(tmp_path, host="other.example")
    server = upstream(always_ok, tls=context)
    with pytest.raises(ConnectFailed, match="certificate"):
        call(UpstreamPool(), Target.from_url(server.url, tls_context(ca_file)))


def test_the_name_is_sent_and_http_11_is_offered(upstream, tmp_path):
    ca_file, context = certificate_authority(tmp_path, host="localhost")
    names = []
    context.sni_callback = lambda sock, name, _: names.append(name)
    context.set_alpn_protocols(["http/1.1"])
    protocols = []

    def serve(peer):
        protocols.append(peer.sock.selected_alpn_protocol())
        always_ok(peer)

    server = upstream(serve, tls=context)
    target = Target.from_url(f"https://localhost:{server.port}", tls_context(ca_file))
    assert whole(call(UpstreamPool(), target)) == b"ok"
    assert names == ["localhost"]
    assert protocols == ["http/1.1"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_old_tls_version_is_refused(upstream, authority, tmp_path):
    ca_file, context = certificate_authority(tmp_path)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = upstream(always_ok, tls=context)
    with pytest.raises(ConnectFailed):
        call(UpstreamPool(), Target.from_url(server.url, tls_context(ca_file)))


def test_thirty_megabytes_over_tls(upstream, authority):
    payload = bytes(range(256)) * (30 * 4096)

    def serve(peer):
        _, body = peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        peer.send(body)

    server = upstream(serve, tls=authority[1])
    answered = call(
        UpstreamPool(), Target.from_url(server.url, authority[0]), body=payload, first_byte_s=30
    )
    assert answered.read_all(len(payload), 30.0) == payload
    answered.release()
