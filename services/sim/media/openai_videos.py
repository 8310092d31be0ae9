"""OpenAI videos: asynchronous, no cancel, no client reference; the bytes need the key."""

from hashlib import sha256
from typing import Any, Final

from services.sim.media import multipart
from services.sim.media.jobs import ENDED, FAILED, MODERATED, QUEUED, SUCCEEDED, Ask, Job, JobStore
from services.sim.media.openai_images import policy, refuse
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    json_reply,
    seconds_in,
    size_in,
    text_in,
)
from services.sim.prompt import BadRequest

_KEPT_S: Final = 24 * 3600
_PAGE_MAX: Final = 100
VENDOR: Final = Vendor(name="openai-videos", id_form="video_{}", refuse=refuse, policy=policy)
_PROBLEMS: Final = {
    FAILED: {"code": "video_generation_failed", "message": "The video could not be generated."},
    MODERATED: {
        "code": "moderation_blocked",
        "message": "Your request was blocked by our moderation system.",
    },
}


def _read(call: Call) -> Ask:
    form = multipart.parse(call.request.headers.get("content-type", ""), call.request.body)
    body: dict[str, Any] = dict(form.fields) if form else body_of(call)
    given = form.files.get("input_reference", []) if form else []
    seconds = seconds_in(body, "seconds", 4)
    width, height = size_in(body, "size", "720x1280")
    return Ask(
        operation="video",
        model=text_in(body, "model") if "model" in body else "sora-2",
        prompt=text_in(body, "prompt"),
        mime="video/mp4",
        width=width,
        height=height,
        seconds=seconds,
        units={"seconds": round(seconds)},
        inputs=b"".join(sha256(data).digest() for data in given),
    )


def _video(call: Call, job: Job) -> dict[str, Any]:
    state = job.state(call.now)
    status = "in_progress"
    if job.polls and job.strikes("job-unknown-state"):
        status = "REBALANCING"
    elif state == QUEUED:
        status = "queued"
    elif state in ENDED:
        status = "completed" if state == SUCCEEDED else "failed"
    ended = int(job.ends) if state in ENDED else None
    return {
        "id": job.id,
        "object": "video",
        "model": job.ask.model,
        "status": status,
        "progress": 100 if state == SUCCEEDED else job.progress(call.now),
        "created_at": int(job.created),
        "completed_at": ended if state == SUCCEEDED else None,
        "expires_at": ended + _KEPT_S if ended and state == SUCCEEDED else None,
        "size": f"{job.ask.width}x{job.ask.height}",
        "seconds": f"{job.ask.seconds:g}",
        "prompt": job.ask.prompt,
        "remixed_from_video_id": None,
        "error": _PROBLEMS.get(state),
    }


def _reply(call: Call, job: Job) -> Reply:
    return json_reply(200, _video(call, job))


def _delete(call: Call, job: Job) -> Reply:
    if job.state(call.now) not in ENDED:
        raise BadRequest("The video is still being generated.", None, "video_not_finished")
    return json_reply(200, {"id": job.id, "object": "video.deleted", "deleted": True})


def _list(call: Call, store: JobStore) -> Reply:
    limit = min(_PAGE_MAX, int(call.request.query.get("limit", "20")))
    after, more = call.request.query.get("after"), False
    page: list[dict[str, Any]] = []
    for job in store.newest(VENDOR.name):
        if after is not None:
            after = None if job.id == after else after
        elif len(page) == limit:
            more = True
            break
        elif not job.id.startswith("deleted:"):
            page.append(_video(call, job))
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return json_reply(200, {"object": "list", "data": page, "has_more": more, **ends})


_ONE: Final = "/v1/videos/(?P<id>video_[0-9a-f]+)"
ROUTES: Final = (
    Route(
        vendor=VENDOR,
        method="POST",
        path="/v1/videos",
        operation="create",
        read=_read,
        reply=_reply,
    ),
    Route(vendor=VENDOR, method="GET", path=_ONE, operation="poll", reply=_reply),
    Route(vendor=VENDOR, method="GET", path=_ONE + "/content", operation="fetch"),
    Route(vendor=VENDOR, method="DELETE", path=_ONE, operation="delete", reply=_delete),
    Route(vendor=VENDOR, method="GET", path="/v1/videos", operation="find", search=_list),
)
