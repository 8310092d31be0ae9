"""Jobs as server-sent events. The stream of `/v1/jobs` can be taken up again where it was cut."""

import random
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import falcon
import gevent
import msgspec

from schemas.errors import Code
from services.backends.http.private_client import ApiUnavailable
from services.core.access import REVOKED
from services.core.dialects import DIALECTS
from services.core.errors import InvalidRequest, Refusal
from services.edge.authenticated import Authenticated, Caller
from services.edge.jobs.feed import Watcher
from services.edge.jobs.forward import Forwarder, relay, target_of

_PING_S: Final = 15.0
_LOOK_S: Final = 60.0  # without a hint: one may be lost
_AWAY_S: Final = 2.0
_MAX_S: Final = 900.0
_PING: Final = b": ping\n\n"
_TASK_ENDS: Final = ("completed", "failed", "cancelled")


class TaskStreamRoute(Authenticated):
    """GET /v1/tasks/stream/{task_id}: the query's answer at every change of state."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder.worker)
        self._forwarder = forwarder
        self._stall_s = forwarder.worker.config.edge.event_stall_s

    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        def answer(caller: Caller) -> None:
            target = f"/v1/tasks/query?task_id={quote(task_id, safe='')}"
            found = self._forwarder.ask(req, "GET", target, caller, b"")
            if found.status != 200:
                relay(resp, found)
                return
            found.close()
            _begin(req, resp, self._frames(req, caller, target, task_id), self._stall_s)

        self._serve(req, resp, answer)

    def _frames(
        self, req: falcon.Request, caller: Caller, target: str, job_id: str
    ) -> Iterator[bytes]:
        shown = ""
        yield b"retry: 2000\n\n"
        with self._forwarder.watching(caller, job_id) as changed:
            for looks in _turns(self._forwarder, changed):
                if not looks:
                    yield _PING
                    continue
                try:
                    told = self._forwarder.told(req, target, caller)
                except (Refusal, ApiUnavailable):
                    yield _waiting(changed)
                    continue
                status = msgspec.json.decode(told, type=dict[str, Any]).get("status", "")
                if status != shown:
                    shown = status
                    yield b"event: " + status.encode() + b"\ndata: " + told + b"\n\n"
                else:
                    yield _PING
                if status in _TASK_ENDS:
                    return
        yield _revoked(caller) if changed.revoked else b"event: reconnect\ndata: {}\n\n"


class _Event(msgspec.Struct):
    seq: int
    type: str
    data: msgspec.Raw
    created_at: str


class _Events(msgspec.Struct):
    state: str
    terminal: bool
    data: list[_Event]
    has_more: bool = False


class JobEventsRoute(Authenticated):
    """GET /v1/jobs/{id}/events: a stream, resumed with Last-Event-ID or ?after=, or a JSON list
    when JSON is asked for."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder.worker)
        self._forwarder = forwarder
        self._stall_s = forwarder.worker.config.edge.event_stall_s

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        def answer(caller: Caller) -> None:
            if "application/json" in (req.get_header("accept") or ""):
                relay(resp, self._forwarder.ask(req, "GET", target_of(req), caller, b""))
                return
            after = req.get_header("last-event-id") or req.get_param("after") or "0"
            if not after.isdecimal() or len(after) > 9:
                raise InvalidRequest("after: write the number of an event", param="after")
            found = self._forwarder.ask(req, "GET", f"/v1/jobs/{quote(job_id)}", caller, b"")
            if found.status != 200:
                relay(resp, found)
                return
            frames = self._frames(req, caller, job_id, found.body(), int(after))
            _begin(req, resp, frames, self._stall_s)

        self._serve(req, resp, answer)

    def _frames(
        self, req: falcon.Request, caller: Caller, job_id: str, job: bytes, after: int
    ) -> Iterator[bytes]:
        yield b"retry: 2000\n\nevent: snapshot\ndata: " + job + b"\n\n"
        with self._forwarder.watching(caller, job_id) as changed:
            for looks in _turns(self._forwarder, changed):
                if not looks:
                    yield _PING
                    continue
                try:
                    found = self._events(req, caller, job_id, after)
                except (Refusal, ApiUnavailable, msgspec.DecodeError):
                    yield _waiting(changed)
                    continue
                for each in found.data:
                    after = each.seq
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (
                        each.seq,
                        each.type.encode(),
                        bytes(each.data),
                    )
                if found.has_more:
                    changed.wake()
                elif found.terminal:
                    told = self._forwarder.told(req, f"/v1/jobs/{quote(job_id)}", caller)
                    yield b"event: done\ndata: " + told + b"\n\n"
                    return
                elif not found.data:
                    yield _PING
        yield _revoked(caller) if changed.revoked else b"event: reconnect\ndata: {}\n\n"

    def _events(self, req: falcon.Request, caller: Caller, job_id: str, after: int) -> _Events:
        target = f"/v1/jobs/{quote(job_id)}/events?after={after}"
        return msgspec.json.decode(self._forwarder.told(req, target, caller), type=_Events)


def _turns(forwarder: Forwarder, changed: Watcher) -> Iterator[bool]:
    """True: look, at once, at every change and now and then without one. False: nothing has
    happened for a while, which costs nobody a question. For a quarter of an hour or until the key
    is revoked."""
    clock = forwarder.worker.clock
    until_s = clock.monotonic_s() + _MAX_S
    heard, look_s = True, 0.0
    while clock.monotonic_s() < until_s and not (forwarder.worker.stopping or changed.revoked):
        looks = heard or clock.monotonic_s() >= look_s
        if looks:  # not all at the same time
            look_s = clock.monotonic_s() + _LOOK_S * random.uniform(0.75, 1.25)
        yield looks
        heard = changed.wait(_PING_S)
        gevent.sleep(0)


def _waiting(changed: Watcher) -> bytes:
    """The frame of a look that was not answered; there is another one soon."""
    gevent.spawn_later(_AWAY_S, changed.wake)
    return b": waiting\n\n"


def _revoked(caller: Caller) -> bytes:
    """The last frame of a stream whose key was taken away."""
    code = Code.INVALID_API_KEY
    error = DIALECTS["chat"].render_error(code, REVOKED, request_id=caller.request_id)
    return b"event: error\ndata: " + error + b"\n\n"


def _begin(
    req: falcon.Request, resp: falcon.Response, frames: Iterator[bytes], stall_s: float
) -> None:
    resp.content_type = "text/event-stream; charset=utf-8"
    resp.set_header("cache-control", "no-store")
    resp.set_header("x-accel-buffering", "no")
    resp.stream = _bounded(req.env["gunicorn.socket"], frames, stall_s)


def _bounded(client: Any, frames: Iterator[bytes], stall_s: float) -> Iterator[bytes]:
    """The frames, each made when the one before was sent; a client that takes nothing for `stall_s`
    is cut, and goes on where it was."""
    for frame in frames:
        yield frame
        client.settimeout(stall_s)  # the head of the answer has set a longer one
