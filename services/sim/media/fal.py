"""The queue of fal. No failed state: a failure is COMPLETED, and an error on the response. No
client reference."""

from typing import Any, Final

from services.sim.media import wanted
from services.sim.media.jobs import CANCELLED, ENDED, MODERATED, QUEUED, SUCCEEDED, Ask, Job
from services.sim.media.shape import Call, Reply, Route, Vendor, body_of, file_url, json_reply


def _refuse(status: int, message: str, code: str = "", param: str = "") -> Reply:
    return json_reply(status, {"detail": message})


def _flagged(status: int, kind: str, message: str) -> Reply:
    detail = [{"loc": ["body", "prompt"], "msg": message, "type": kind}]
    return json_reply(status, {"detail": detail}, (("x-fal-error-type", kind),))


def _policy() -> Reply:
    return _flagged(422, "content_policy_violation", "The content could not be processed.")


VENDOR: Final = Vendor(name="fal", id_form="{}", refuse=_refuse, policy=_policy)


def _read(call: Call) -> Ask:
    asked = wanted.ask(call.parts["app"], body_of(call), "", "")
    asked.more.update(app=call.parts["app"])
    return asked


def _urls(call: Call, job: Job) -> dict[str, str]:
    app = "/".join(job.ask.more["app"].split("/")[:2])  # without the path inside the app
    one = f"{call.base}/fal/{app}/requests/{job.id}"
    return {
        "request_id": job.id,
        "status_url": one + "/status",
        "response_url": one,
        "cancel_url": one + "/cancel",
    }


def _taken(call: Call, job: Job) -> Reply:
    told = {"status": "IN_QUEUE", "gateway_request_id": job.id, "queue_position": 0}
    return json_reply(200, told | _urls(call, job))


def _status(call: Call, job: Job) -> Reply:
    state, urls = job.state(call.now), _urls(call, job)
    if job.polls and job.strikes("job-unknown-state"):
        return json_reply(202, {"status": "REBALANCING", **urls})
    if state == QUEUED:
        return json_reply(202, {"status": "IN_QUEUE", "queue_position": 0, **urls})
    if state not in ENDED:
        return json_reply(202, {"status": "IN_PROGRESS", "logs": None, **urls})
    took = max(0.0, job.ends - job.starts)
    return json_reply(200, {"status": "COMPLETED", "metrics": {"inference_time": took}, **urls})


def _response(call: Call, job: Job) -> Reply:
    state = job.state(call.now)
    if state not in ENDED:
        return json_reply(400, {"detail": "Request is still in progress"})
    if state == MODERATED:
        return _policy()
    if state == CANCELLED:
        kind = (("x-fal-error-type", "request_cancelled"),)
        return json_reply(400, {"detail": "Request was cancelled"}, kind)
    if state != SUCCEEDED:
        kind = (("x-fal-error-type", "runner_disconnected"),)
        told = {"detail": "Runner disconnected", "error_type": "runner_disconnected"}
        return json_reply(500, told, kind)
    return json_reply(200, _result(call, job))


def _result(call: Call, job: Job) -> dict[str, Any]:
    ask = job.ask
    files = [
        {
            "url": file_url(call, job, index),
            "content_type": ask.mime,
            "width": ask.width,
            "height": ask.height,
        }
        for index in range(job.outputs)
    ]
    if ask.operation == "image":
        return {"images": files, "seed": 1, "prompt": ask.prompt, "has_nsfw_concepts": [False]}
    name = "audio" if ask.operation == "speech" else "video"
    return {name: files[0]} if files else {}


def _cancelled(call: Call, job: Job) -> Reply:
    if job.settled != CANCELLED and job.state(call.now) in ENDED:
        return json_reply(400, {"status": "ALREADY_COMPLETED"})
    return json_reply(202, {"status": "CANCELLATION_REQUESTED"})


_ONE: Final = "/fal/(?P<app>[^/]+/[^/]+)/requests/(?P<id>[0-9a-f]{32})"
ROUTES: Final = (
    Route(vendor=VENDOR, method="GET", path=_ONE + "/status", operation="poll", reply=_status),
    Route(vendor=VENDOR, method="GET", path=_ONE, operation="poll", reply=_response),
    Route(vendor=VENDOR, method="PUT", path=_ONE + "/cancel", operation="cancel", reply=_cancelled),
    Route(
        vendor=VENDOR,
        method="POST",
        path="/fal/(?P<app>[^/]+/[^/]+(?:/[^/]+)*)",
        operation="create",
        read=_read,
        reply=_taken,
    ),
)
