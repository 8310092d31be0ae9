"""Google: Veo as long-running operations, Imagen at once; the Gemini API's shape and Vertex's.

No client reference. A filtered video is `done` without an error and without a sample; the count
of what was filtered stands at another depth on Vertex.
"""

from base64 import b64encode
from hashlib import sha256
from typing import Any, Final

from services.sim.media import made
from services.sim.media.jobs import CANCELLED, ENDED, FAILED, MODERATED, Ask, Job
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    count_in,
    json_reply,
    object_in,
    seconds_in,
    size_of_ratio,
    text_in,
)
from services.sim.prompt import BadRequest

_WORDS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}
_SHORT_SIDES: Final = {"720p": 720, "1080p": 1080, "4k": 2160}
_TYPE: Final = "type.googleapis.com/google.ai.generativelanguage.v1beta."
_FILTERED: Final = "The video was filtered because it violated our usage guidelines."


def _refuse(status: int, message: str, code: str = "", param: str = "") -> Reply:
    told = {"code": status, "message": message, "status": _WORDS.get(status, "INTERNAL")}
    return json_reply(status, {"error": told})


def _policy() -> Reply:
    return _refuse(400, "The prompt could not be submitted: it violates our policies.")


VEO: Final = Vendor(name="veo", id_form="{}", refuse=_refuse, policy=_policy)
IMAGEN: Final = Vendor(name="imagen", id_form="{}", refuse=_refuse, policy=_policy)


def _instance(call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first instance and the parameters of a prediction. Raises BadRequest."""
    body = body_of(call)
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise BadRequest("instances: Field required", "instances")
    return instances[0], object_in(body, "parameters")


def _film(call: Call) -> Ask:
    instance, asked = _instance(call)
    resolution = str(asked.get("resolution", "720p"))
    if resolution not in _SHORT_SIDES:
        raise BadRequest(f"`resolution` {resolution} is not supported.", "resolution")
    ratio = str(asked.get("aspectRatio", "16:9"))
    width, height = size_of_ratio(ratio, _SHORT_SIDES[resolution])
    seconds, count = seconds_in(asked, "durationSeconds", 8), count_in(asked, "sampleCount")
    given = object_in(instance, "image")
    return Ask(
        operation="video",
        model=call.parts["model"],
        prompt=text_in(instance, "prompt"),
        mime="video/mp4",
        count=count,
        width=width,
        height=height,
        seconds=seconds,
        units={"seconds": round(seconds) * count},
        inputs=sha256(str(given).encode()).digest() if given else b"",
        more={"place": call.request.path.split("/v1/", 1)[-1].partition(":")[0]},
    )


def _name(call: Call, job: Job) -> str:
    if _on_vertex(call):
        return f"{job.ask.more['place']}/operations/{job.id}"
    return f"models/{job.ask.model}/operations/{job.id}"


def _on_vertex(call: Call) -> bool:
    return "/publishers/" in call.request.path


def _taken(call: Call, job: Job) -> Reply:
    return json_reply(200, {"name": _name(call, job)})


def _operation(call: Call, job: Job) -> Reply:
    state = job.state(call.now)
    told: dict[str, Any] = {"name": _name(call, job)}
    if job.polls and job.strikes("job-unknown-state"):
        told["metadata"] = {"state": "REBALANCING"}
        return json_reply(200, told)
    if state not in ENDED:
        return json_reply(200, told)
    told["done"] = True
    if state == FAILED:
        told["error"] = {"code": 13, "message": "Video generation failed: internal error."}
    elif state == CANCELLED:
        told["error"] = {"code": 1, "message": "The operation was cancelled."}
    else:
        told["response"] = _response(call, job, state == MODERATED)
    return json_reply(200, told)


def _response(call: Call, job: Job, filtered: bool) -> dict[str, Any]:
    count = 0 if filtered else job.outputs
    taken: dict[str, Any] = {}
    if filtered:
        taken = {"raiMediaFilteredCount": job.ask.count, "raiMediaFilteredReasons": [_FILTERED]}
    if _on_vertex(call):
        videos = [
            {
                "bytesBase64Encoded": b64encode(made.spoiled(job, index)).decode(),
                "mimeType": "video/mp4",
            }
            for index in range(count)
        ]
        return {"raiMediaFilteredCount": 0, **taken, **({"videos": videos} if videos else {})}
    samples = [
        {"video": {"uri": f"{call.base}/v1beta/files/{job.id}-{index}:download?alt=media"}}
        for index in range(count)
    ]
    inner = {**taken, **({"generatedSamples": samples} if samples else {})}
    return {
        "@type": _TYPE + "PredictLongRunningResponse",
        "generateVideoResponse": inner,
    }


def _cancelled(call: Call, job: Job) -> Reply:
    """Best effort: success says nothing about the end."""
    return json_reply(200, {})


def _images(call: Call) -> Ask:
    instance, asked = _instance(call)
    width, height = size_of_ratio(str(asked.get("aspectRatio", "1:1")), 1024)
    count = count_in(asked, "sampleCount")
    return Ask(
        operation="image",
        model=call.parts["model"],
        prompt=text_in(instance, "prompt"),
        mime="image/png",
        count=count,
        width=width,
        height=height,
        units={"images": count},
        more={"tells": bool(asked.get("includeRaiReason"))},
    )


def _pictures(call: Call, job: Job) -> Reply:
    if job.state(call.now) == MODERATED:
        reason = {"raiFilteredReason": "Your prompt was filtered out: it violates our policies."}
        filtered = [reason] * job.ask.count if job.ask.more["tells"] else []
        return json_reply(200, {"predictions": filtered} if filtered else {})
    predictions = [
        {
            "mimeType": "image/png",
            "bytesBase64Encoded": b64encode(made.spoiled(job, index)).decode(),
        }
        for index in range(job.outputs)
    ]
    return json_reply(200, {"predictions": predictions} if predictions else {})


_GEMINI: Final = "/v1beta/models/(?P<model>[^/:]+)"
_VERTEX: Final = "/v1/projects/[^/]+/locations/[^/]+/publishers/google/models/(?P<model>[^/:]+)"
_ID: Final = "(?P<id>[0-9a-f]{32})"
_NAMED: Final = _GEMINI + "/operations/" + _ID
ROUTES: Final = (
    *(
        Route(
            vendor=VEO,
            method="POST",
            path=place + ":predictLongRunning",
            operation="create",
            read=_film,
            reply=_taken,
        )
        for place in (_GEMINI, _VERTEX)
    ),
    Route(vendor=VEO, method="GET", path=_NAMED, operation="poll", reply=_operation),
    Route(vendor=VEO, method="POST", path=_NAMED + ":cancel", operation="cancel", reply=_cancelled),
    Route(
        vendor=VEO,
        method="POST",
        path=_VERTEX + ":fetchPredictOperation",
        operation="poll",
        reply=_operation,
    ),
    Route(
        vendor=VEO,
        method="GET",
        path=f"/v1beta/files/{_ID}-(?P<index>\\d+):download",
        operation="fetch",
    ),
    *(
        Route(
            vendor=IMAGEN,
            method="POST",
            path=place + ":predict",
            operation="create",
            read=_images,
            reply=_pictures,
            at_once=True,
        )
        for place in (_GEMINI, _VERTEX)
    ),
)
