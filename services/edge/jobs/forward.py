"""Forwards the routes of jobs to the batch service with the caller's identity, signed."""

import string
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import quote

import falcon
import gevent
import msgspec
from gevent.event import AsyncResult

from schemas.errors import Code
from services.backends.http.private_client import Answer, ApiUnavailable, NotReached
from services.backends.job_wire import (
    FLAT_HEADER,
    HOLD_HEADER,
    ORIGIN_HEADER,
    STORED_HEADER,
    TAKE_HEADER,
    take_text,
)
from services.core import etags
from services.core.access import REVOKED
from services.core.errors import Refusal
from services.core.ids import ulid
from services.edge.authenticated import Authenticated, Caller
from services.edge.body import read_body
from services.edge.jobs.feed import JobFeed, Watcher
from services.edge.jobs.stored import StoredAnswer
from services.edge.rates import RETURN_WAIT_S
from services.edge.watch import ClientWatch
from services.edge.worker import Worker

BODY_MAX: Final = 1024 * 1024
WAIT_MAX_S: Final = 60.0
_PATIENCE_S: Final = 6.0
_RETRY_S: Final = 0.2
_SENT: Final = (
    "content-type",
    "accept",
    "idempotency-key",
    "if-none-match",
    "if-range",
    "range",
    "anthropic-version",
    "anthropic-beta",
)
_ASKED: Final = tuple(each for each in _SENT if each != "if-none-match")  # of what is looked at
_TOLD: Final = (
    "accept-ranges",
    "cache-control",
    "content-disposition",
    "content-length",
    "content-range",
    "content-security-policy",
    "content-type",
    "etag",
    "idempotent-replayed",
    "location",
    "retry-after",
    "x-content-type-options",
)


class Forwarder:
    """What the routes share, one per worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._feed = JobFeed(worker.batch, worker.clock)
        self._wanted: dict[tuple[str | None, ...], AsyncResult] = {}
        worker.on_look.append(self._feed.end_revoked)

    def watching(self, caller: Caller, job_id: str) -> AbstractContextManager[Watcher]:
        """While the caller waits for changes of a job; `job_id` with or without its prefix."""
        return self._feed.watching(bare(job_id), caller.key, self.worker.snapshots.current)

    def ask(
        self,
        req: falcon.Request,
        method: str,
        target: str,
        caller: Caller | None,
        body: bytes,
        sent: tuple[str, ...] = _SENT,
        *,
        submits: bool = False,
        flat: bool = False,
    ) -> Answer:
        """The service's answer; patient while it starts; notes what a submission holds; `sent`:
        which headers of the client it gets; `submits`: it makes a job, under an id of ours, so that
        it may be asked once more; `flat`: its parameters stood beside the model. Raises
        Refusal(UNAVAILABLE)."""
        headers = {name: value for name in sent if (value := req.get_header(name)) is not None}
        headers[ORIGIN_HEADER] = f"{req.scheme}://{req.netloc}"
        if flat:
            headers[FLAT_HEADER] = "1"
        job_id = ulid() if submits else ""
        if job_id:
            headers[TAKE_HEADER] = take_text(job_id, again=False)
        clock = self.worker.clock
        deadline_s = clock.monotonic_s() + _PATIENCE_S
        while True:
            try:
                found = self.worker.batch.call(
                    method,
                    target,
                    account_id=caller.key.account_id if caller else "-",
                    key_id=caller.key.id if caller else "",
                    headers=headers,
                    body=body or None,
                )
                if HOLD_HEADER in found.headers:
                    req.context.hold_nano = int(found.headers[HOLD_HEADER])
                stored = STORED_HEADER in found.headers
                return StoredAnswer(self.worker.batch, found) if stored else found
            except ApiUnavailable as ex:
                # What was sent may have been taken: only what changes nothing more is asked again.
                may = isinstance(ex, NotReached) or submits or method in ("GET", "HEAD")
                if not may or clock.monotonic_s() >= deadline_s:
                    raise Refusal(Code.UNAVAILABLE, "jobs cannot be reached now") from ex
                if job_id and not isinstance(ex, NotReached):
                    headers[TAKE_HEADER] = take_text(job_id, again=True)
            gevent.sleep(_RETRY_S)

    def told(self, req: falcon.Request, target: str, caller: Caller) -> bytes:
        """The body of GET `target`. Those of one key who want the same at one moment, as watchers
        of a job do when it changes, share an answer that was asked for after all of them came.
        Raises Refusal(UNAVAILABLE), ApiUnavailable."""
        sent = [req.get_header(name) for name in _ASKED]
        wanted = (target, caller.key.id, req.scheme, req.netloc, *sent)
        while (others := self._wanted.get(wanted)) is not None:
            try:
                return bytes(others.get())
            except _AskerGone:
                continue
        shared = self._wanted[wanted] = AsyncResult()
        problem: Exception = _AskerGone()
        try:
            gevent.sleep(0)  # whoever was woken with us joins
            del self._wanted[wanted]  # from here on it is too late for that
            body = self.ask(req, "GET", target, caller, b"", _ASKED).body()
            shared.set(body)
            return body
        except Exception as ex:
            problem = ex
            raise
        finally:
            if not shared.ready():
                if self._wanted.get(wanted) is shared:
                    del self._wanted[wanted]
                shared.set_exception(problem)

    def seen(self, req: falcon.Request, target: str, caller: Caller) -> bytes | None:
        """As `told`; None while nobody answers: who waits for what was taken goes on waiting."""
        try:
            return self.told(req, target, caller)
        except (Refusal, ApiUnavailable):
            return None


class _AskerGone(Exception):
    """The client on whose behalf all were asking hung up."""


class JobRoute(Authenticated):
    """One path of the batch service. `counted`: a submission, within the key's rates; `submits`:
    of a job. `waits`: methods whose answer may be asked to wait, GET for a change of the job, POST
    for its end. `dialect`: of the edge's own refusals."""

    def __init__(
        self,
        forwarder: Forwarder,
        *methods: str,
        counted: bool = False,
        submits: bool = False,
        waits: tuple[str, ...] = (),
        body_max: int = BODY_MAX,
        dialect: str = "chat",
    ) -> None:
        super().__init__(forwarder.worker)
        self._dialect = dialect
        self._body_max = body_max
        self._forwarder = forwarder
        self._counted = counted
        self._submits = submits
        self._waits = waits
        for method in methods:
            setattr(self, f"on_{method}", self._on)

    def _on(self, req: falcon.Request, resp: falcon.Response, **fields: str) -> None:
        def answer(caller: Caller) -> None:
            body = b""
            if req.method in ("POST", "PATCH"):
                edge = self._worker.config.edge
                body = read_body(req.env, self._body_max, edge.body_timeout_s)
            if not self._counted or req.method != "POST":
                self._send(req, resp, caller, body)
                return
            permit = self._worker.rates.admit(caller.view.rules(caller.key).rates, 0)
            try:
                self._send(req, resp, caller, body)
            finally:
                permit.end(wait_s=RETURN_WAIT_S)

        self._serve(req, resp, answer, self._dialect)

    def _send(
        self, req: falcon.Request, resp: falcon.Response, caller: Caller, body: bytes
    ) -> None:
        target = target_of(req)
        wait_s = _wait_s(req) if req.method in self._waits else 0.0
        sent = _ASKED if wait_s else _SENT
        submits = self._submits and req.method == "POST"
        found = self._forwarder.ask(req, req.method, target, caller, body, sent, submits=submits)
        if not wait_s or found.status not in (200, 202):
            relay(resp, found)
            return
        headers, status, told = found.headers, found.status, found.body()
        told = self._wait(req, caller, told, wait_s)
        etag = f'"{_peek(told).version}"'
        if req.method == "GET" and etags.names(req.get_header("if-none-match"), etag):
            status, told = 304, b""
        resp.status, resp.data = status, told
        _copy(resp, {**headers, "content-length": str(len(told))})
        resp.set_header("etag", etag)

    def _wait(self, req: falcon.Request, caller: Caller, told: bytes, wait_s: float) -> bytes:
        """The job's answer once it has changed (a submission: ended), at the latest in `wait_s`.
        Raises Refusal(INVALID_API_KEY) once the caller's key is revoked, Refusal(CLIENT_GONE) when
        nobody waits any more: its job lives on."""
        before = _peek(told)
        known = req.get_header("if-none-match") or f'"{before.version}"'
        until_s = self._worker.clock.monotonic_s() + wait_s
        with self._forwarder.watching(caller, before.id) as changed:
            client = ClientWatch(req.env["gunicorn.socket"], changed.wake)
            try:
                while True:
                    told = self._forwarder.seen(req, f"/v1/jobs/{before.id}", caller) or told
                    now = _peek(told)
                    news = req.method == "GET" and not etags.names(known, f'"{now.version}"')
                    left_s = until_s - self._worker.clock.monotonic_s()
                    if now.completed_at or news or left_s <= 0:
                        return told
                    changed.wait(min(left_s, 5.0))
                    if changed.revoked:
                        raise Refusal(Code.INVALID_API_KEY, REVOKED)
                    if client.gone:
                        raise Refusal(Code.CLIENT_GONE, "the client hung up")
            finally:
                client.close()


class LinkRoute:
    """GET and HEAD /a/{artifact}: signed links, no key."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def on_get(self, req: falcon.Request, resp: falcon.Response, artifact_id: str) -> None:
        target = target_of(req)
        relay(resp, self._forwarder.ask(req, req.method, target, None, b""))

    on_head = on_get


class HookRoute:
    """POST /hooks/{provider}: a provider tells of a task of ours; no key, its body is not read."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def on_post(self, req: falcon.Request, resp: falcon.Response, provider: str) -> None:
        target = target_of(req)
        relay(resp, self._forwarder.ask(req, "POST", target, None, b""))


def target_of(req: falcon.Request) -> str:
    """Path and query as they came, with nothing in them that a request line cannot carry."""
    path = quote(req.path)
    if not req.query_string:
        return path
    return f"{path}?{quote(req.query_string, safe=string.punctuation)}"


def bare(job_id: str) -> str:
    """The id without the prefix of its view."""
    return job_id.removeprefix("task_").removeprefix("job_")


def relay(resp: falcon.Response, found: Answer) -> None:
    """The service's answer as it is, its body piece by piece."""
    resp.status = found.status
    _copy(resp, found.headers)
    resp.stream = found.pieces()


def _copy(resp: falcon.Response, headers: dict[str, str]) -> None:
    for name in _TOLD:
        if name in headers:
            resp.set_header(name, headers[name])


class _Job(msgspec.Struct):
    id: str
    version: int = 0
    completed_at: str | None = None


def _peek(body: bytes) -> _Job:
    return msgspec.json.decode(body, type=_Job)


def _wait_s(req: falcon.Request) -> float:
    asked: Any = req.get_param("wait")
    if asked is None:
        asked = _preferred(req.get_header("prefer") or "")
    if asked is None or not asked.isdecimal():
        return 0.0
    return min(float(asked), WAIT_MAX_S)


def _preferred(header: str) -> str | None:
    parts: Iterable[str] = (part.strip() for part in header.split(","))
    return next((part[5:] for part in parts if part.startswith("wait=")), None)
