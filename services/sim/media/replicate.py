"""Replicate predictions. The webhook's URL is told back in every prediction: the only place for a
client reference (`?ref=`)."""

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from services.sim.media import wanted
from services.sim.media.jobs import (
    CANCELLED,
    ENDED,
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
)
from services.sim.prompt import BadRequest

_PAGE: Final = 100
_STATUS: Final = {QUEUED: "starting", RUNNING: "processing", CANCELLED: "canceled"}


def _refuse(status: int, message: str, code: str = "", param: str = "") -> Reply:
    return json_reply(status, {"title": "Problem", "detail": message, "status": status})


def _policy() -> Reply:
    return _refuse(422, "The input was flagged as sensitive. (E005)")


VENDOR: Final = Vendor(name="replicate", id_form="{}", refuse=_refuse, policy=_policy)


def _read(call: Call) -> Ask:
    body = body_of(call)
    model = call.parts.get("model") or str(body.get("version") or body.get("model") or "")
    if not model:
        raise BadRequest("version is required", "version")
    webhook = str(body.get("webhook") or "")
    ref = parse_qs(urlsplit(webhook).query).get("ref", [""])[0]
    given = object_in(body, "input")
    asked = wanted.ask(model, given, "", ref)
    asked.more.update(input=given, webhook=webhook)
    return asked


def _prediction(call: Call, job: Job) -> dict[str, Any]:
    state = job.state(call.now)
    status = _STATUS.get(state, "failed" if state != SUCCEEDED else "succeeded")
    if job.polls and job.strikes("job-unknown-state"):
        status = "REBALANCING"
    one = f"{call.base}/v1/predictions/{job.id}"
    told: dict[str, Any] = {
        "id": job.id,
        "model": job.ask.model,
        "version": "hidden",
        "input": job.ask.more["input"],
        "logs": "",
        "output": _output(call, job) if status == "succeeded" else None,
        "error": None,
        "status": status,
        "created_at": _time(job.created),
        "started_at": _time(job.starts) if call.now >= job.starts else None,
        "completed_at": _time(job.ends) if state in ENDED else None,
        "urls": {"get": one, "cancel": one + "/cancel"},
        "metrics": {"predict_time": job.ends - job.starts} if state in ENDED else {},
    }
    if job.ask.more["webhook"]:
        told["webhook"] = job.ask.more["webhook"]
    if state == MODERATED:
        told["error"] = "NSFW content detected. Try running it again, or try a different prompt."
    elif status == "failed":
        told["error"] = "Prediction failed: CUDA out of memory."
    return told


def _output(call: Call, job: Job) -> Any:
    urls = [file_url(call, job, index) for index in range(job.outputs)]
    if job.ask.operation == "image":
        return urls
    return urls[0] if urls else None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _created(call: Call, job: Job) -> Reply:
    return json_reply(201, _prediction(call, job))


def _reply(call: Call, job: Job) -> Reply:
    return json_reply(200, _prediction(call, job))


def _list(call: Call, store: JobStore) -> Reply:
    after, more = call.request.query.get("cursor"), False
    page: list[dict[str, Any]] = []
    for job in store.newest(VENDOR.name):
        if after:
            after = None if job.id == after else after
        elif len(page) == _PAGE:
            more = True
            break
        else:
            page.append(_prediction(call, job))
    following = f"{call.base}/v1/predictions?cursor={page[-1]['id']}" if more else None
    return json_reply(200, {"previous": None, "next": following, "results": page})


_ONE: Final = "/v1/predictions/(?P<id>[0-9a-f]{32})"
ROUTES: Final = (
    *(
        Route(
            vendor=VENDOR,
            method="POST",
            path=path,
            operation="create",
            read=_read,
            reply=_created,
        )
        for path in ("/v1/predictions", "/v1/models/(?P<model>[^/]+/[^/]+)/predictions")
    ),
    Route(vendor=VENDOR, method="GET", path=_ONE, operation="poll", reply=_reply),
    Route(vendor=VENDOR, method="POST", path=_ONE + "/cancel", operation="cancel", reply=_reply),
    Route(vendor=VENDOR, method="GET", path="/v1/predictions", operation="find", search=_list),
)
