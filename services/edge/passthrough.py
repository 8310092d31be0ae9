"""Relays an upstream's answer to the client, and ends the request's money at the right moment.

A stream's bytes go out as they come in; the bytes that hold the end marker wait until the terminal
event is durable. The iterator is an object, not a generator: gunicorn calls `close` on it even
when it was never started."""

from collections.abc import Callable
from typing import Final

from gevent import get_hub

from schemas.errors import Code
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.core.dialects.base import StreamScan
from services.core.outcomes import Ending
from services.edge.elastic import ElasticHold
from services.edge.exchange import Exchange
from services.edge.record import Recorder, upstream_error_note
from services.edge.upstream import Call, IdleTimeout, UpstreamError

DRAIN_S: Final = 0.5  # after the end marker, to give the connection back
USAGE_WAIT_S: Final = 0.5  # after a hang-up, when only the usage is still to come


class StreamRelay:
    """The body of a streamed answer. `first` is what was read before the head was decided."""

    def __init__(
        self,
        x: Exchange,
        call: Call,
        scan: StreamScan,
        first: bytes,
        recorder: Recorder,
        clock: Clock,
        hold: ElasticHold,
        *,
        ping_s: float,
        on_done: Callable[[], None],
    ) -> None:
        self._x = x
        self._call = call
        self._scan = scan
        self._first = first
        self._recorder = recorder
        self._clock = clock
        self._hold = hold
        self._room = hold.first_room
        assert x.channel is not None
        self._ping_s = min(ping_s, x.channel.idle_timeout_s)
        self._on_done = on_done
        self._heard_s = clock.monotonic_s()
        self._over = False
        self._released = False
        x.answer = scan
        x.hung_up = self._hung_up

    def _hung_up(self) -> None:
        """The client is gone: the call is cancelled, unless only its usage is still to come."""
        if self._scan.finish_reason and not self._over:
            get_hub().loop.timer(USAGE_WAIT_S).start(self._call.abort)
        else:
            self._call.abort()

    def __iter__(self) -> "StreamRelay":
        return self

    def __next__(self) -> bytes:
        try:
            return self._advance()
        except StopIteration:
            raise
        except Exception:
            # Whatever came is ours to bear: `close` would bill it as a client that went away.
            self._over = True
            self._call.abort()
            self._recorder.end(self._x, Ending.GATEWAY, 200, "internal error")
            raise

    def _advance(self) -> bytes:
        if self._over:
            self._drain()
            raise StopIteration
        if self._first:
            data, self._first = self._first, b""
            out = self._relay(data)
            if out:
                return out
        while True:
            try:
                data = self._call.read(self._ping_s)
            except IdleTimeout:
                out = self._silent()
                if out:
                    return out
                continue
            except UpstreamError:
                return self._ended(cut=True)
            if not data:
                return self._ended(cut=False)
            out = self._relay(data)
            if out:
                return out

    def _relay(self, data: bytes) -> bytes:
        scan = self._scan
        self._heard_s = self._clock.monotonic_s()
        crash_point("edge.mid_stream")
        out = scan.feed(data)
        self._x.relayed = True
        if scan.finished or scan.error:
            self._over = True
            self._end()
            if scan.error and not scan.finished:
                out += scan.close() + scan.render_error(Code.UPSTREAM_STREAM_ERROR, scan.error[1])
            return out
        self._room -= len(data)
        if self._room < 0:
            out += self._look()
        return out

    def _look(self) -> bytes:
        """So many bytes passed that the hold may be used up: grows it, or ends the stream."""
        hold = self._hold
        if not hold.used_up:
            self._room = hold.room()
        gone = self._x.watch is not None and self._x.watch.gone
        if not hold.used_up or gone or not self._scan.at_boundary:
            return b""
        self._over = True
        self._call.abort()
        message = "the budget is used up"
        verdict = self._recorder.end(self._x, Ending.BUDGET_CUT, 200, message)
        if verdict is None or not verdict.billed:
            return self._scan.render_error(Code.INSUFFICIENT_BALANCE, message)
        return self._scan.render_cut(verdict.usage)

    def _silent(self) -> bytes:
        """Nothing came for a ping interval: keep the client, or give the upstream up."""
        assert self._x.channel is not None
        if self._clock.monotonic_s() - self._heard_s >= self._x.channel.idle_timeout_s:
            return self._failed(Code.TIMEOUT, "the upstream fell silent", Ending.TIMEOUT)
        return self._scan.ping() if self._scan.at_boundary else b""

    def _ended(self, *, cut: bool) -> bytes:
        """The upstream's bytes are over without an end marker."""
        if self._x.watch is not None and self._x.watch.gone:
            self.close()
            raise StopIteration
        if not cut and self._scan.lacks_end:
            return self._relay(b"\n\n")
        out = self._scan.close()
        if self._x.cut:
            return out + self._failed(Code.INVALID_API_KEY, self._x.cut, Ending.REVOKED)
        if not cut and self._scan.complete_at_eof:
            self._over = True
            self._end()
            if not out:
                raise StopIteration
            return out
        return out + self._failed(Code.UPSTREAM_TRUNCATED, "the upstream ended its answer early")

    def _failed(self, code: Code, message: str, ending: Ending = Ending.BROKEN) -> bytes:
        """Ends the request with an error frame in the dialect: free, but for a revoked key that
        was sent content."""
        self._over = True
        self._call.abort()
        self._recorder.end(self._x, ending, 200, message, code)
        return self._scan.render_error(code, message)

    def _end(self) -> None:
        message = upstream_error_note(self._scan.error[0]) if self._scan.error else ""
        self._recorder.end(self._x, Ending.ANSWERED, 200, message)

    def _drain(self) -> None:
        """Reads to the end of the message, so that the connection can be used again."""
        if self._released:
            return
        try:
            while self._call.read(DRAIN_S):
                pass
        except UpstreamError:
            self._call.abort()
        self._release()

    def close(self) -> None:
        """Called once the answer is over, or the client is gone, or a write failed."""
        try:
            if not self._x.terminated:
                self._over = True
                self._client_gone()
        finally:
            self._release()

    def _client_gone(self) -> None:
        self._call.abort()
        self._recorder.end(self._x, Ending.CLIENT_GONE, 499)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        if self._x.watch is not None:
            self._x.watch.close()
        self._call.release()
        self._x.hung_up = None  # it refers back to this object
        self._on_done()
