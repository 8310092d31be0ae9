"""A JSON job API as many smaller vendors have it: creates are idempotent, jobs are found by client
reference."""

from typing import Any, Final

from services.sim.media import wanted
from services.sim.media.jobs import (
    CANCELLED,
    ENDED,
    FAILED,
    MODERATED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Ask,
    Job,
    JobStore,
)
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    file_url,
    json_reply,
    object_in,
    text_in,
)

_PHASES: Final = {
    QUEUED: "waiting",
    RUNNING: "working",
    SUCCEEDED: "done",
    FAILED: "broken",
    MODERATED: "broken",
    CANCELLED: "stopped",
}
_PROBLEMS: Final = {
    FAILED: {"code": "engine_failure", "text": "The engine broke."},
    MODERATED: {"code": "content_blocked", "text": "The content is not allowed."},
}


def _refuse(status: int, message: str, code: str = "", param: str = "") -> Reply:
    return json_reply(status, {"problem": {"code": code or f"http_{status}", "text": message}})


def _policy() -> Reply:
    return _refuse(422, "The content is not allowed.", "content_blocked")


VENDOR: Final = Vendor(
    name="generic", id_form="g-{}", refuse=_refuse, policy=_policy, idempotent=True
)


def _read(call: Call) -> Ask:
    body = body_of(call)
    ref, kind = str(body.get("client_ref") or ""), str(body.get("kind") or "")
    return wanted.ask(text_in(body, "model"), object_in(body, "input"), kind, ref)


def _job(call: Call, job: Job) -> dict[str, Any]:
    state = job.state(call.now)
    phase = _PHASES[state]
    if job.polls and job.strikes("job-unknown-state"):
        phase = "REBALANCING"
    told: dict[str, Any] = {"id": job.id, "phase": phase, "client_ref": job.ask.client_ref}
    told["percent"] = 100 if state in ENDED else job.progress(call.now)
    if phase == "done":
        kind = {"speech": "audio"}.get(job.ask.operation, job.ask.operation)
        urls = [file_url(call, job, index) for index in range(job.outputs)]
        told["results"] = [{"url": url, "kind": kind} for url in urls]
        told["spent"] = dict(job.units())
    if state in _PROBLEMS and phase == "broken":
        told["problem"] = _PROBLEMS[state]
    return told


def _created(call: Call, job: Job) -> Reply:
    return json_reply(202, {"job": _job(call, job)})


def _reply(call: Call, job: Job) -> Reply:
    return json_reply(200, {"job": _job(call, job)})


def _cancelled(call: Call, job: Job) -> Reply:
    finished = job.settled != CANCELLED and job.state(call.now) in ENDED
    return json_reply(409 if finished else 200, {"job": _job(call, job)})


def _list(call: Call, store: JobStore) -> Reply:
    found = store.referred(call.request.query.get("client_ref", ""))
    return json_reply(200, {"jobs": [_job(call, job) for job in found]})


_ONE: Final = "/generic/v1/jobs/(?P<id>g-[0-9a-f]{32})"
ROUTES: Final = (
    Route(
        vendor=VENDOR,
        method="POST",
        path="/generic/v1/jobs",
        operation="create",
        read=_read,
        reply=_created,
    ),
    Route(vendor=VENDOR, method="GET", path=_ONE, operation="poll", reply=_reply),
    Route(
        vendor=VENDOR, method="POST", path=_ONE + "/cancel", operation="cancel", reply=_cancelled
    ),
    Route(vendor=VENDOR, method="GET", path="/generic/v1/jobs", operation="find", search=_list),
)
