"""Serves media calls: finds the route, does or refuses the work, meets the faults on the way."""

import re
import time
from typing import Any, Final

from services.sim import prices
from services.sim.http import Connection, HungUp, Request
from services.sim.media import (
    fal,
    generic,
    google,
    knobs,
    openai_audio,
    openai_images,
    openai_videos,
    oracle,
    replicate,
    vectors,
)
from services.sim.media.files import send_file
from services.sim.media.jobs import CANCELLED, ENDED, FAILED, MODERATED, SUCCEEDED, Job, JobStore
from services.sim.media.made import HTML
from services.sim.media.shape import Call, Reply, Route, Vendor, body_of
from services.sim.prompt import BadRequest

ROUTES: Final = (
    *openai_images.ROUTES,
    *openai_audio.ROUTES,
    *openai_videos.ROUTES,
    *vectors.ROUTES,
    *google.ROUTES,
    *replicate.ROUTES,
    *fal.ROUTES,
    *generic.ROUTES,
)
_FILE: Final = re.compile(r"/media/files/(?P<id>[\w-]+)/(?P<index>\d+)\.\w+$")
_PREFIX: Final = re.compile(r"^/fault/(?P<fault>[^/]+)")
_REFUSALS: Final = {
    "create-400": (400, "Invalid request: simulated."),
    "create-401": (401, "Incorrect API key provided."),
    "create-402": (402, "Your credit balance is too low."),
    "create-403": (403, "The credential may not use this model."),
    "create-404": (404, "The model does not exist."),
    "create-422": (422, "The input is not valid for this model."),
}
_FIRST_REFUSALS: Final = {
    "create-500": (500, "Internal server error"),
    "create-503": (503, "The model is overloaded."),
    "create-429": (429, "Rate limit reached. Please try again in 1s."),
}
_POLL_TROUBLE: Final = {"poll-500": 500, "poll-429": 429, "poll-404": 404, "poll-401": 401}
_CREDENTIALS: Final = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_RETRY: Final = (("retry-after", "1"),)


class Media:
    """The media APIs of one provider process."""

    def __init__(self, table: prices.Table, *, seed: int, queue_s: float, run_s: float) -> None:
        self._prices = table
        self._store = JobStore(seed, queue_s, run_s)

    def reset(self) -> None:
        self._store.reset()

    def control(self, what: str, request: Request) -> Any:
        return oracle.answer(self._store, self._prices, what, request)

    def serve(self, request: Request, connection: Connection, entry: dict[str, Any]) -> bool:
        """Answers a media call; False when the path is none of the media APIs."""
        prefix = _PREFIX.match(request.path)
        path = request.path[prefix.end() :] if prefix else request.path
        host = request.headers.get("host", "127.0.0.1")
        base = f"http://{host}{prefix.group() if prefix else ''}"
        if file := _FILE.search(path):
            self._file(connection, entry, request, file.groupdict())
            return True
        for route in ROUTES:
            parts = route.match(request.method, path)
            if parts is not None:
                break
        else:
            return False
        entry["dialect"], entry["operation"] = route.vendor.name, route.operation
        call = Call(request, parts, base, time.time())
        try:
            self._routed(route, call, connection, entry, prefix["fault"] if prefix else "")
        except BadRequest as problem:
            told = problem.message, problem.code or "", problem.param or ""
            _send(connection, route.vendor.refuse(400, *told))
        return True

    def _routed(
        self, route: Route, call: Call, connection: Connection, entry: dict[str, Any], fault: str
    ) -> None:
        headers = call.request.headers
        if not any(name in headers for name in _CREDENTIALS) and "key" not in call.request.query:
            return _send(connection, route.vendor.refuse(401, "No credential was given."))
        if route.operation == "create":
            return self._create(route, call, connection, entry, fault)
        if route.search:
            return _send(connection, route.search(call, self._store))
        job = self._store.get(self._job_id(call))
        if job is None or "job-gone" in job.knobs.faults:
            return _send(connection, route.vendor.refuse(404, "Not found.", "not_found"))
        entry["job"], entry["model"] = job.id, job.ask.model
        entry["fault"] = "+".join(job.knobs.faults) or None
        if route.operation == "fetch":
            return self._content(route, call, connection, job)
        if route.operation == "poll":
            return self._poll(route, call, connection, job)
        if route.operation == "cancel":
            return self._cancel(route, call, connection, job)
        assert route.reply
        reply = route.reply(call, job)
        self._store.delete(job.id)
        return _send(connection, reply)

    def _job_id(self, call: Call) -> str:
        if "id" in call.parts:
            return call.parts["id"]
        return str(body_of(call).get("operationName", "")).rpartition("/")[2]

    def _create(
        self, route: Route, call: Call, connection: Connection, entry: dict[str, Any], fault: str
    ) -> None:
        assert route.read is not None
        vendor, store = route.vendor, self._store
        ask = route.read(call)
        headers = call.request.headers
        asked = knobs.read(ask.model, headers.get("x-sim-fault", ""), fault, ask.prompt)
        entry["model"], entry["fault"] = ask.model, "+".join(asked.faults) or None
        key = headers.get("idempotency-key", "") if vendor.idempotent else ""
        job = store.keyed(key) if key else None
        if job is None:
            refusal = self._refusal(vendor, asked, store.tried(vendor.name, ask))
            if refusal:
                store.totals["refused"] += 1
                return _send(connection, refusal)
            job = store.add(vendor.name, ask, asked, vendor.id_form, route.at_once)
            if key:
                store.key(key, job)
        entry["job"] = job.id
        if route.at_once and asked.run_ms:
            connection.pause(asked.run_ms / 1000)
        return self._reply_to_create(route, call, connection, job)

    def _refusal(self, vendor: Vendor, asked: knobs.Knobs, before: int) -> Reply | None:
        for name, (status, message) in _REFUSALS.items():
            if name in asked.faults:
                return vendor.refuse(status, message)
        for name, (status, message) in _FIRST_REFUSALS.items():
            if name in asked.faults and (before < asked.faults[name] or not asked.faults[name]):
                reply = vendor.refuse(status, message)
                return reply._replace(headers=reply.headers + _RETRY) if status == 429 else reply
        return vendor.policy() if "create-moderated" in asked.faults else None

    def _reply_to_create(self, route: Route, call: Call, connection: Connection, job: Job) -> None:
        assert route.reply
        faults, vendor = job.knobs.faults, route.vendor
        if "create-timeout" in faults:
            connection.pause(faults["create-timeout"])
            raise HungUp
        if "create-cut" in faults:
            raise HungUp
        if "create-500-done" in faults:
            return _send(connection, vendor.refuse(500, "Internal server error"))
        if "create-no-id" in faults:
            return _send(connection, Reply(200, b"{}"))
        if "create-garbage" in faults:
            return _send(connection, Reply(200, HTML))
        now = time.time()
        if route.at_once and job.state(now) == FAILED:
            return _send(connection, vendor.refuse(500, "The generation failed."))
        if route.at_once and job.state(now) == MODERATED and vendor is not google.IMAGEN:
            return _send(connection, vendor.policy())
        if route.at_once and job.state(now) == SUCCEEDED:
            job.served_count += job.outputs
        return _send(connection, route.reply(call._replace(now=now), job))

    def _poll(self, route: Route, call: Call, connection: Connection, job: Job) -> None:
        assert route.reply
        job.polls += 1
        self._store.totals["polls"] += 1
        faults = job.knobs.faults
        if "poll-slow" in faults:
            connection.pause(faults["poll-slow"] / 1000)
        for name, status in _POLL_TROUBLE.items():
            if job.strikes(name):
                reply = route.vendor.refuse(status, "Simulated trouble.")
                extra = _RETRY if status == 429 else ()
                return _send(connection, reply._replace(headers=reply.headers + extra))
        if job.strikes("poll-garbage"):
            return _send(connection, Reply(200, HTML))
        if job.strikes("poll-cut"):
            raise HungUp
        return _send(connection, route.reply(call._replace(now=time.time()), job))

    def _cancel(self, route: Route, call: Call, connection: Connection, job: Job) -> None:
        assert route.reply
        job.cancels += 1
        self._store.totals["cancels"] += 1
        faults = job.knobs.faults
        if job.strikes("cancel-500"):
            return _send(connection, route.vendor.refuse(500, "Internal server error"))
        if "cancel-unsupported" in faults:
            return _send(connection, route.vendor.refuse(501, "Not implemented."))
        if "cancel-too-late" in faults and job.state(call.now) not in ENDED:
            job.finish(SUCCEEDED, call.now)
        elif "late-success" not in faults and job.state(call.now) not in ENDED:
            job.finish(CANCELLED, call.now)
        return _send(connection, route.reply(call, job))

    def _content(self, route: Route, call: Call, connection: Connection, job: Job) -> None:
        variant = call.request.query.get("variant", "video")
        if job.state(call.now) != SUCCEEDED or variant not in ("video", "thumbnail", "spritesheet"):
            return _send(connection, route.vendor.refuse(404, "The video is not ready."))
        index = int(call.parts.get("index", "0"))
        return send_file(self._store, connection, call.request, job, index, variant)

    def _file(
        self, connection: Connection, entry: dict[str, Any], request: Request, parts: dict[str, str]
    ) -> None:
        job = self._store.get(parts["id"])
        entry["operation"] = "fetch"
        if job is None or job.state(time.time()) != SUCCEEDED:
            return _send(connection, Reply(404, b'{"error":"no such file"}'))
        entry["dialect"], entry["job"], entry["model"] = job.provider, job.id, job.ask.model
        return send_file(self._store, connection, request, job, int(parts["index"]), "video")


def _send(connection: Connection, reply: Reply) -> None:
    headers = [("content-type", reply.content_type), *reply.headers]
    connection.reply(reply.status, headers, reply.body)
