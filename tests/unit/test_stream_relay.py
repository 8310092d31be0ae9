"""How the relay of a stream ends it: by a fault of ours free, without a last blank line whole."""

from types import SimpleNamespace

import pytest

from services.backends.clock import FakeClock
from services.core.dialects import DIALECTS
from services.core.dialects.base import BodyShape
from services.core.outcomes import Ending
from services.edge.passthrough import StreamRelay
from tests.parts import streams

MAKE = {
    "anthropic": streams.anthropic_stream,
    "chat": streams.chat_stream,
    "responses": streams.responses_stream,
}


class Call:
    def __init__(self, *reads):
        self.aborted = self.released = 0
        self.reads = list(reads)

    def read(self, timeout_s):
        return self.reads.pop(0) if self.reads else b""

    def abort(self):
        self.aborted += 1

    def release(self):
        self.released += 1


class BrokenScan:
    finish_reason = "stop"
    finished = False

    def feed(self, data):
        raise RuntimeError("a bug")


class Recorder:
    def __init__(self):
        self.endings = []

    def end(self, x, ending, status, message="", code=None):
        if not x.terminated:
            x.terminated = True
            self.endings.append(ending)


def relay_of(scan, call):
    """A relay over it, and the recorder that it tells."""
    exchange = SimpleNamespace(
        channel=SimpleNamespace(idle_timeout_s=60.0), watch=None, terminated=False, cut=""
    )
    recorder = Recorder()
    relay = StreamRelay(
        exchange,
        call,
        scan,
        b"",
        recorder,
        FakeClock(),
        SimpleNamespace(first_room=10_000_000),
        ping_s=1.0,
        on_done=lambda: None,
    )
    return relay, recorder


@pytest.mark.parametrize("missing", [b"\n", b"\n\n"])
@pytest.mark.parametrize(("name", "make"), MAKE.items())
def test_an_end_marker_without_its_blank_line_ends_the_answer(name, make, missing):
    stream = make(["Hello"])
    scan = DIALECTS[name].scan(
        SimpleNamespace(wants_usage=True, n=1, shape=BodyShape(text_bytes=1))
    )
    relay, recorder = relay_of(scan, Call(stream.removesuffix(missing)))
    assert b"".join(relay).rstrip() == stream.rstrip()
    relay.close()
    assert recorder.endings == [Ending.ANSWERED]


@pytest.mark.parametrize(("name", "make"), MAKE.items())
def test_half_an_event_at_the_end_is_none(name, make):
    scan = DIALECTS[name].scan(
        SimpleNamespace(wants_usage=True, n=1, shape=BodyShape(text_bytes=1))
    )
    stream = make(["Hello"])
    relay, recorder = relay_of(scan, Call(stream[: stream.index(b"Hello")]))
    assert b"error" in b"".join(relay)
    assert recorder.endings == [Ending.BROKEN]


def test_our_own_fault_ends_the_request_as_ours():
    call = Call(b"data: x\n\n")
    relay, recorder = relay_of(BrokenScan(), call)
    with pytest.raises(RuntimeError, match="a bug"):
        next(relay)
    relay.close()
    assert recorder.endings == [Ending.GATEWAY]
    assert call.aborted == 1
    assert call.released == 1
