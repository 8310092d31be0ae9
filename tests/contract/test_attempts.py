"""Calls of one request over channels whose upstreams misbehave, on real sockets."""

import time
from types import SimpleNamespace

import falcon
import msgspec
import pytest

from schemas.config import Edge
from schemas.errors import Code
from services.backends.clock import SystemClock
from services.core.catalog import Channel
from services.core.dialects import DIALECTS
from services.core.outcomes import Ending
from services.edge import attempts
from services.edge.attempts import Failure, Upstreams
from services.edge.exchange import Exchange
from services.edge.resources.text import TextResource
from services.edge.upstream import Target, UpstreamPool
from tests.parts.raw_upstream import RawUpstream

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def breaks_off_in_the_body_of(status, end):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 50\r\n\r\nhalf" % status)
        end(peer)

    return serve


def stalls_in_the_body_of(status):
    return breaks_off_in_the_body_of(status, lambda peer: peer.closed_by_client())


def answers(peer):
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    peer.closed_by_client()


class House:
    """Channels of such upstreams, best first, and the calls to them."""

    def __init__(self, *serves):
        self.raws = [RawUpstream(serve) for serve in serves]
        self.channels = [
            Channel(name=f"c{at}", dialect="chat", base_url=raw.url, credential="k",
                    models={"m": "m"}, groups=("default",))
            for at, raw in enumerate(self.raws)
        ]  # fmt: skip
        self.upstreams = Upstreams(UpstreamPool(), SystemClock(), Edge())

    def exchange(self):
        clock, dialect = SystemClock(), DIALECTS["chat"]
        x = Exchange("r", dialect, {"PATH_INFO": dialect.path}, {}, clock.monotonic_s(), 1)
        x.body = BODY
        x.parsed = dialect.parse_request(BODY, {})
        x.key = SimpleNamespace(account_id="acc", group="default")
        x.price = SimpleNamespace(model="m", vendor="v")
        x.view = SimpleNamespace(
            snapshot=SimpleNamespace(channels=self.channels),
            targets={each.name: Target.from_url(each.base_url) for each in self.channels},
            credentials={each.name: b"" for each in self.channels},
        )
        return x

    def call(self, *path):
        """The exchange and the call that answered it."""
        x = self.exchange()
        try:
            found = self.upstreams.call(x, self.channels, *path)
            self.upstreams.done(x.channel)
            found.release()
            return x, found
        finally:
            assert set(self.upstreams._in_flight.values()) == {0}


@pytest.fixture
def house(monkeypatch):
    monkeypatch.setattr(attempts, "ERROR_BODY_S", 0.2)
    made = []

    def make(*serves):
        made.append(House(*serves))
        return made[-1]

    yield make
    for each in made:
        for raw in each.raws:
            raw.stop()


@pytest.fixture
def call(house):
    """call(serve, ...) asks channels of such upstreams, in this order."""
    return lambda *serves: house(*serves).call()


def test_another_channel_takes_over_from_an_error_whose_body_stalls(call):
    x, found = call(stalls_in_the_body_of(500), answers)
    assert found.status == 200
    assert [(each.channel, each.status) for each in x.attempts] == [("c0", 500), ("c1", 200)]


def hangs_up(peer):
    peer.request()


def says_nothing(peer):
    peer.request()
    peer.closed_by_client()


def test_a_call_that_failed_without_an_answer_says_why(house):
    here = house(hangs_up, answers)
    why = [(0, Code.UPSTREAM_ERROR), (200, "")]
    assert [(each.status, each.code) for each in here.call()[0].attempts] == why
    here.raws.pop(0).stop()  # now nobody listens there
    assert [(each.status, each.code) for each in here.call()[0].attempts] == why
    silent = house(says_nothing)
    x = silent.exchange()
    with pytest.raises(Failure):
        silent.upstreams.call(x, silent.channels, "", 0.2)
    assert [(each.status, each.code) for each in x.attempts] == [(0, Code.TIMEOUT)]
    assert silent.upstreams._in_flight == {"c0": 0}


def compresses_a(status):
    def serve(peer):
        peer.request()
        peer.send(
            b"HTTP/1.1 %d X\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08"
            % status
        )
        peer.closed_by_client()

    return serve


def test_a_coding_that_nobody_asked_for_is_no_answer(call):
    """The client was promised nothing of it: another channel answers, else the gateway."""
    x, found = call(compresses_a(200), answers)
    assert found.status == 200
    assert [(each.channel, each.status, each.code) for each in x.attempts] == [
        ("c0", 200, Code.UPSTREAM_ERROR),
        ("c1", 200, ""),
    ]
    with pytest.raises(Failure) as caught:
        call(compresses_a(400))
    assert (caught.value.status, caught.value.native) == (400, False)


@pytest.mark.parametrize("status", [400, 529])
def test_an_error_whose_body_stalls_is_told_by_its_status(call, status):
    with pytest.raises(Failure) as caught:
        call(stalls_in_the_body_of(status))
    failure = caught.value
    assert (failure.code, failure.status, failure.native) == (Code.UPSTREAM_ERROR, status, False)
    assert failure.ending is Ending.ANSWERED


def resets_in_the_body_of(status):
    """As a server does that has read only the head of a large request."""
    return breaks_off_in_the_body_of(status, lambda peer: peer.reset())


def test_an_error_whose_body_is_cut_is_told_by_its_status(house):
    """And is the request's fault, not the channel's."""
    here = house(*[resets_in_the_body_of(413)] * 2)
    for _ in range(4):
        with pytest.raises(Failure) as caught:
            here.call()
        assert (caught.value.status, caught.value.native) == (413, False)
    assert [raw.connections for raw in here.raws] == [4, 0]
    assert here.upstreams.ready(here.channels) == here.channels


def has_no_money(peer):
    peer.request()
    peer.send(b'HTTP/1.1 402 X\r\ncontent-length: 32\r\n\r\n{"error":"Insufficient Balance"}')
    peer.closed_by_client()


def test_an_account_of_ours_without_money_is_not_the_clients(house, call):
    """Another channel answers; what the upstream wrote would read as the client's own bill."""
    x, _ = call(has_no_money, answers)
    assert [(each.channel, each.status) for each in x.attempts] == [("c0", 402), ("c1", 200)]
    here = house(has_no_money)
    with pytest.raises(Failure) as caught:
        here.call()
    assert (caught.value.code, caught.value.native) == (Code.NO_CAPACITY, False)
    assert here.upstreams.ready(here.channels) == []


def test_a_status_that_is_none_of_http_is_a_bad_gateway(call):
    with pytest.raises(Failure) as caught:
        call(stalls_in_the_body_of(999))
    assert (caught.value.code, caught.value.status) == (Code.UPSTREAM_ERROR, 0)


def says_as(head, body):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n" % (head, len(body)) + body)
        peer.closed_by_client()

    return serve


EVENT = b'data: {"id": 1}\n\n'


@pytest.mark.parametrize(
    ("asked", "head", "body", "streams"),
    [
        (False, b"content-type: text/event-stream\r\n", EVENT, True),
        (True, b"content-type: Text/Event-Stream;charset=utf-8\r\n", b"", True),
        (True, b"content-type: text/plain\r\n", EVENT, True),
        (True, b"", b"\xef\xbb\xbf\r\n: hello\n\n" + EVENT, True),
        (True, b"content-type: application/json\r\n", EVENT, False),
        (True, b"content-type: text/plain\r\n", b'{"data": 1}', False),
        (True, b"content-type: text/html\r\n", b"<html>", False),
        (True, b"", b"", False),
        (False, b"content-type: text/plain\r\n", EVENT, False),
    ],
)
def test_a_stream_is_told_by_its_type_or_its_first_bytes(house, asked, head, body, streams):
    here = house(says_as(head, body))
    x = here.exchange()
    x.parsed = msgspec.structs.replace(x.parsed, stream=asked)
    worker = SimpleNamespace(clock=SystemClock())
    call = here.upstreams.call(x, here.channels)
    assert TextResource(worker, x.dialect)._is_stream(x, call) is streams
    assert call.read_all(100, 5.0) == body
    call.release()


JSON = b"content-type: application/json\r\n"
WHOLE = (
    b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"total_tokens":9}}'
)
BUSY = b'{"error":{"type":"overloaded_error","message":"busy"}}'
WRONG = b'{"error":{"type":"invalid_request_error","message":"wrong"}}'


@pytest.mark.parametrize(
    ("told", "statuses", "left"),
    [
        ([BUSY, WHOLE], [200, 200], ""),
        ([BUSY, BUSY, BUSY, WHOLE], [200, 200, 200], "busy"),
        ([WRONG, WHOLE], [200], "wrong"),
    ],
)
def test_an_error_inside_a_200_is_answered_by_another_channel(house, told, statuses, left):
    """At most three calls, and only for errors that another channel may not have."""
    here = house(*[says_as(JSON, body) for body in told])
    x, resp = here.exchange(), falcon.Response()
    x.channels, x.requested = here.channels, True
    judged = []

    def end(x, ending, status, *more):
        judged.append(x.answer.error)
        return SimpleNamespace(billed=True)

    worker = SimpleNamespace(
        clock=SystemClock(), upstreams=here.upstreams, recorder=SimpleNamespace(end=end)
    )
    resource = TextResource(worker, x.dialect)
    if left:
        with pytest.raises(Failure, match=left):
            resource._answer(x, resp)
    else:
        resource._answer(x, resp)
        assert (resp.data, judged) == (WHOLE, [None])
    assert [each.status for each in x.attempts] == statuses
    assert set(here.upstreams._in_flight.values()) == {0}


def fails_beside_inference(peer):
    head, _ = peer.request()
    status = 500 if b"/count " in head else 200
    peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)
    peer.closed_by_client()


def test_a_route_beside_inference_has_a_health_of_its_own(house):
    """Its failures make only itself rest: the answers that people pay for go on."""
    here = house(fails_beside_inference)
    for _ in range(4):
        with pytest.raises(Failure):
            here.call("/count")
    assert here.upstreams.ready(here.channels, "/count") == []
    assert here.upstreams.ready(here.channels) == here.channels
    assert here.call()[1].status == 200
    assert here.upstreams.ready(here.channels, "/count") == []


def test_a_silent_upstream_is_waited_for_as_long_as_the_caller_says(house):
    here = house(lambda peer: peer.request() and peer.closed_by_client(20))
    began = time.monotonic()
    with pytest.raises(Failure) as caught:
        here.call("/count", 0.2)
    assert caught.value.code is Code.TIMEOUT
    assert time.monotonic() - began < 10
