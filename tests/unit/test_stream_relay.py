"""A stream that breaks by a fault of ours is free, whatever the upstream had sent by then."""

from types import SimpleNamespace

import pytest

from services.backends.clock import FakeClock
from services.core.outcomes import Ending
from services.edge.passthrough import StreamRelay


class Call:
    def __init__(self):
        self.aborted = self.released = 0

    def read(self, timeout_s):
        return b"data: x\n\n"

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


def test_our_own_fault_ends_the_request_as_ours():
    exchange = SimpleNamespace(
        channel=SimpleNamespace(idle_timeout_s=60.0), watch=None, terminated=False, cut=""
    )
    call, recorder = Call(), Recorder()
    relay = StreamRelay(
        exchange,
        call,
        BrokenScan(),
        b"",
        recorder,
        FakeClock(),
        SimpleNamespace(first_room=10_000),
        ping_s=1.0,
        on_done=lambda: None,
    )
    with pytest.raises(RuntimeError, match="a bug"):
        next(relay)
    relay.close()
    assert recorder.endings == [Ending.GATEWAY]
    assert call.aborted == 1
    assert call.released == 1
