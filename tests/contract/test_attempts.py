"""Calls of one request over channels whose upstreams misbehave, on real sockets."""

from types import SimpleNamespace

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
from services.edge.upstream import Target, UpstreamPool
from tests.parts.raw_upstream import RawUpstream

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def stalls_in_the_body_of(status):
    def serve(peer):
        peer.request()
        peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 50\r\n\r\nhalf" % status)
        peer.closed_by_client()

    return serve


def answers(peer):
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    peer.closed_by_client()


@pytest.fixture
def call(monkeypatch):
    """call(serve, ...) asks channels of such upstreams, in this order."""
    monkeypatch.setattr(attempts, "ERROR_BODY_S", 0.2)
    raws = []

    def ask(*serves):
        raws.extend(map(RawUpstream, serves))
        clock, dialect = SystemClock(), DIALECTS["chat"]
        channels = [
            Channel(name=f"c{at}", dialect="chat", base_url=raw.url, credential="k",
                    models={"m": "m"}, groups=("default",))
            for at, raw in enumerate(raws)
        ]  # fmt: skip
        x = Exchange("r", dialect, {"PATH_INFO": dialect.path}, {}, clock.monotonic_s(), 1)
        x.body = BODY
        x.parsed = dialect.parse_request(BODY, {})
        x.price = SimpleNamespace(model="m")
        x.view = SimpleNamespace(
            targets={each.name: Target.from_url(each.base_url) for each in channels},
            credentials={each.name: b"" for each in channels},
        )
        upstreams = Upstreams(UpstreamPool(), clock, Edge())
        try:
            found = upstreams.call(x, channels)
            upstreams.done(x.channel)
            found.release()
            return x, found
        finally:
            assert set(upstreams._in_flight.values()) == {0}

    yield ask
    for raw in raws:
        raw.stop()


def test_another_channel_takes_over_from_an_error_whose_body_stalls(call):
    x, found = call(stalls_in_the_body_of(500), answers)
    assert found.status == 200
    assert [(each.channel, each.status) for each in x.attempts] == [("c0", 500), ("c1", 200)]


@pytest.mark.parametrize("status", [400, 529])
def test_an_error_whose_body_stalls_is_told_by_its_status(call, status):
    with pytest.raises(Failure) as caught:
        call(stalls_in_the_body_of(status))
    failure = caught.value
    assert (failure.code, failure.status, failure.native) == (Code.UPSTREAM_ERROR, status, False)
    assert failure.ending is Ending.ANSWERED
