"""Jobs as server-sent events. The stream of `/v1/jobs` can be taken up again where it was cut."""

import random
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import falcon
import gevent
import msgspec

from schemas.errors import Code
from services.backends.http.private_client import ApiUnavailable
from services.core.access import REVOKED
from services.core.catalog import Key
from services.core.dialects import DIALECTS
from services.core.errors import InvalidRequest, Refusal
from services.core.moments import rfc3339
from services.edge.authenticated import Authenticated, Caller
from services.edge.jobs.feed import Watcher
from services.edge.jobs.forward import Forwarder, bare, relay, target_of
from services.edge.jobs.stream_token import PARAM
from services.edge.snapshot import View

_PING_S: Final = 15.0
_LOOK_S: Final = 60.0  # without a hint: one may be lost
_AWAY_S: Final = 2.0
_MAX_S: Final = 900.0
_PING: Final = b": ping\n\n"
_TASK_ENDS: Final = ("completed", "failed", "cancelled")


class _Stream(Authenticated):
    """A stream of one job, for its key or a stream token."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder.worker)
        self._forwarder = forwarder
        self._stall_s = forwarder.worker.config.edge.event_stall_s

    def _open(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        job_id: str,
        answer: Callable[[Caller], Any],
    ) -> None:
        req.context.job_id = bare(job_id)
        if req.has_param(PARAM):  # it comes from a page, which may be anybody's
            resp.set_header("access-control-allow-origin", "*")
        self._serve(req, resp, answer)

    def identify(self, req: falcon.Request, headers: dict[str, str]) -> tuple[View, Key]:
        token = req.get_param(PARAM)
        if token is None:
            return super().identify(req, headers)
        return self._worker.stream_tokens.caller(token, req.context.job_id)


class TaskStreamRoute(_Stream):
    """GET /v1/tasks/stream/{task_id}: the query's answer at every change of state."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        def answer(caller: Caller) -> None:
            target = f"/v1/tasks/query?task_id={quote(task_id, safe='')}"
            found = self._forwarder.ask(req, "GET", target, caller, b"")
            if found.status != 200:
                relay(resp, found)
                return
            found.close()
            _begin(req, resp, self._frames(req, caller, target, task_id), self._stall_s)

        self._open(req, resp, task_id, answer)

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


class JobEventsRoute(_Stream):
    """GET /v1/jobs/{id}/events: a stream, resumed with Last-Event-ID or ?after=, or a JSON list
    when JSON is asked for."""

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

        self._open(req, resp, job_id, answer)

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


class StreamTokenRoute(Authenticated):
    """POST /v1/jobs/{id}/stream_token: a token that opens this job's streams without its key, and
    the address of one."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder.worker)
        self._forwarder = forwarder

    def on_post(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        def answer(caller: Caller) -> Any:
            found = self._forwarder.ask(req, "GET", f"/v1/jobs/{quote(job_id)}", caller, b"")
            if found.status != 200:
                relay(resp, found)
                return None
            found.close()
            token, until_us = self._worker.stream_tokens.make(bare(job_id), caller.key)
            door = self._worker.config.artifacts.public_url or f"{req.scheme}://{req.netloc}"
            return {
                "object": "stream_token",
                "token": token,
                "expires_at": rfc3339(until_us),
                "url": f"{door.rstrip('/')}/v1/jobs/job_{bare(job_id)}/events?{PARAM}={token}",
            }

        self._serve(req, resp, answer)


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
