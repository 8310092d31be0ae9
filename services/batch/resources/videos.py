"""`/v1/videos`: a video job in OpenAI's shape. The jobs are the account's, `video_<id>` is
`job_<id>`. Beside it the product's older routes: tasks under other paths."""

import math
import re
from collections.abc import Sequence
from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.sql.job_records import Artifact, Job
from services.batch.providers.calls import frame_size
from services.batch.resources import artifacts
from services.batch.resources.base import Service, answer, taken
from services.batch.resources.forms import drop, received
from services.batch.resources.jobs import erase, own
from services.batch.resources.openai import Fields, ask_of
from services.batch.resources.tasks import find_by_id
from services.batch.wire import task_view
from services.core.errors import InvalidRequest, Refusal
from services.core.jobs import Phase, State, state_of

_SIZE: Final = re.compile(r"(\d{3,4})x(\d{3,4})")
_RATIO_MAX: Final = 99
_PAGE_MAX: Final = 100
_STATUS: Final = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.COMPLETED: "completed",
}
_PPM_PER_PERCENT: Final = 10_000


class VideosResource:
    """POST and GET /v1/videos."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        service = self._service
        with received(service, req, "input_reference") as form:
            form.fields.setdefault("model", "sora-2")
            ask = ask_of(service, req, form, "video", video_params(form.fields))
            made = service.admission.submit(service.key(req), ask)
        if made.replayed:
            drop(service, made.job.account_id, form)
        answer(resp, video_view(made.job, service.artifacts(made.job)))
        taken(service, resp, made)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        service = self._service
        order = req.get_param("order") or "desc"
        if order not in ("asc", "desc"):
            raise InvalidRequest("order: write asc or desc", param="order")
        after = req.get_param("after")
        last = _own_video(service, req, after) if after else None
        page = service.parts.jobs.listed(
            service.caller(req).account_id,
            limit=_limit(req),
            after=(last.created_at, last.id) if last else None,
            kind="video",
            erased=False,
            oldest_first=order == "asc",
        )
        made = service.parts.jobs.artifacts([each.id for each in page.jobs])
        data = [
            video_view(job, [each for each in made if each.job_id == job.id]) for job in page.jobs
        ]
        ends = {
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
        answer(resp, {"object": "list", "data": data, "has_more": page.more, **ends})


class VideoResource:
    """GET and DELETE /v1/videos/{id}, GET .../content."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, video_id: str) -> None:
        job = _own_video(self._service, req, video_id)
        answer(resp, video_view(job, self._service.artifacts(job)))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, video_id: str) -> None:
        erase(self._service, _own_video(self._service, req, video_id))
        answer(resp, {"id": video_id, "object": "video.deleted", "deleted": True})

    def on_get_content(self, req: falcon.Request, resp: falcon.Response, video_id: str) -> None:
        job = _own_video(self._service, req, video_id)
        if (req.get_param("variant") or "video") != "video":
            raise InvalidRequest("variant: there is only video", param="variant")
        found = self._service.artifacts(job)
        if job.phase is not Phase.COMPLETED or not found:
            raise InvalidRequest(f"{video_id} is {_status(job)}: it has no content")
        artifacts.send(self._service, req, resp, found[0])


class OldTaskResource:
    """GET /v1/videos/tasks/{id}: the task with the fields that older clients read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        job = find_by_id(self._service, req, task_id)
        told = task_view(job, self._service.artifacts(job), self._service.links(req))
        for each in told.get("output", [])[:1]:
            told["result_url"] = each["url"]
            told["result"] = {
                "video_url": each["url"],
                "duration_seconds": each.get("duration_seconds"),
                "resolution": job.parameters.get("resolution") or None,
                "aspect_ratio": job.parameters.get("aspect_ratio") or None,
            }
        answer(resp, told)


def video_params(fields: Fields) -> Fields:
    """Of POST /v1/videos. Raises InvalidRequest."""
    found: Fields = {"prompt": fields.get("prompt")}
    seconds = str(fields.get("seconds") or "")
    if seconds and not (seconds.isdecimal() and len(seconds) < 5):
        raise InvalidRequest("seconds: write a whole number", param="seconds")
    if seconds:
        found["duration_seconds"] = int(seconds)
    if size := fields.get("size"):
        match = _SIZE.fullmatch(str(size))
        if match is None:
            raise InvalidRequest("size: write WIDTHxHEIGHT", param="size")
        width, height = int(match[1]), int(match[2])
        shared = math.gcd(width, height)
        found["resolution"] = f"{min(width, height)}p"
        found["aspect_ratio"] = f"{width // shared}:{height // shared}"
        if max(width, height) // shared > _RATIO_MAX or frame_size(found) != (width, height):
            raise InvalidRequest(f"size: {size} cannot be made", param="size")
    if reference := _reference(fields):
        found["image_init"] = reference
    return found


def video_view(job: Job, made: Sequence[Artifact]) -> dict[str, Any]:
    """OpenAI's video object."""
    params, film = job.parameters, next(iter(made), None)
    width, height = frame_size(params)
    if film is not None and film.width and film.height:
        width, height = film.width, film.height
    done = job.phase is Phase.COMPLETED
    return {
        "id": f"video_{job.id}",
        "object": "video",
        "model": job.model,
        "status": _status(job),
        "progress": 100 if done else (job.progress_ppm or 0) // _PPM_PER_PERCENT,
        "created_at": job.created_at // 1_000_000,
        "completed_at": job.finished_at // 1_000_000 if done and job.finished_at else None,
        "expires_at": film.expires_at // 1_000_000 if done and film else None,
        "size": f"{width}x{height}",
        "seconds": str(params.get("duration_seconds", 0)),
        "prompt": params.get("prompt"),
        "remixed_from_video_id": None,
        "error": {"code": job.error_code, "message": job.error_message} if job.error_code else None,
    }


def _status(job: Job) -> str:
    return _STATUS.get(state_of(job.phase), "failed")


def _own_video(service: Service, req: falcon.Request, video_id: str) -> Job:
    job = own(service, req, video_id)
    if job.kind != "video" or job.is_erased:
        raise Refusal(Code.JOB_NOT_FOUND, "job_not_found: this account has no such video")
    return job


def _reference(fields: Fields) -> Any:
    """The first frame: an upload that came along, or `{"file_id"}` or `{"image_url"}`, which forms
    write as `input_reference[file_id]`."""
    given = fields.get("input_reference")
    if isinstance(given, str) and given.startswith("{"):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError) as ex:
            message = "input_reference: not JSON"
            raise InvalidRequest(message, param="input_reference") from ex
    for name in ("file_id", "image_url"):
        if isinstance(given, dict) and given.get(name):
            return given[name]
        if found := fields.get(f"input_reference[{name}]"):
            return found
    return given if isinstance(given, str) else None


def _limit(req: falcon.Request) -> int:
    return req.get_param_as_int("limit", min_value=1, max_value=_PAGE_MAX) or 20
