"""`/v1/tasks/*`: the product's view. Tasks and their names belong to the API key."""

from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.sql.job_records import Job
from services.batch.admit import Ask
from services.batch.resources.base import (
    Service,
    answer,
    decode,
    idempotency_key,
    read_body,
    take_of,
    taken,
)
from services.batch.wire import submitted_view, task_view
from services.core.errors import InvalidRequest, Refusal

_NAME_MAX: Final = 256
_OURS: Final = ("model", "params", "out_task_id", "callback_url", "stream")


class _Named(msgspec.Struct, kw_only=True):
    task_id: str | None = None
    out_task_id: str | None = None


class SubmitResource:
    """POST /v1/tasks/submit."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        raw = read_body(req)
        body = decode(raw, dict[str, Any])
        key = self._service.key(req)
        nested = "params" in body
        # Older clients write the parameters beside the model.
        params = body["params"] if nested else {k: v for k, v in body.items() if k not in _OURS}
        if not isinstance(params, dict):
            raise InvalidRequest("params: expected an object", param="params")
        ask = Ask(
            model=_text(body, "model", required=True),
            params=params,
            where="params" if nested else "body",
            source="/v1/tasks/submit",
            clash=Code.DUPLICATE_OUT_TASK_ID,
            scope=f"key:{key.id}",
            external_id=_text(body, "out_task_id"),
            idempotency_key=idempotency_key(req),
            callback_url=_text(body, "callback_url", most=2048),
            body_bytes=len(raw),
            take=take_of(req),
        )
        made = self._service.admission.submit(key, ask)
        if made.replayed:
            shown = task_view(made.job, self._service.artifacts(made.job), self._service.links(req))
            answer(resp, submitted_view(made.job) | shown)
        else:
            answer(resp, submitted_view(made.job))
        taken(self._service, resp, made)


class QueryResource:
    """POST or GET /v1/tasks/query."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._show(req, resp, decode(read_body(req), _Named))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        named = _Named(task_id=req.get_param("task_id"), out_task_id=req.get_param("out_task_id"))
        self._show(req, resp, named)

    def _show(self, req: falcon.Request, resp: falcon.Response, named: _Named) -> None:
        job = find(self._service, req, named)
        answer(resp, task_view(job, self._service.artifacts(job), self._service.links(req)))


class CancelResource:
    """POST /v1/tasks/cancel and /v1/tasks/cancel/{task_id}: the id of the path wins."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(
        self, req: falcon.Request, resp: falcon.Response, task_id: str | None = None
    ) -> None:
        named = _Named(task_id=task_id) if task_id else decode(read_body(req), _Named)
        job = find(self._service, req, named)
        ended = self._service.parts.jobs.cancel(job.id) or job
        self._service.engine.wake()
        answer(resp, task_view(ended, self._service.artifacts(ended), self._service.links(req)))


def find(service: Service, req: falcon.Request, named: _Named) -> Job:
    """The caller's task. Raises InvalidRequest unless exactly one id is given, and
    Refusal(TASK_NOT_FOUND), also for the task of another key."""
    if (named.task_id is None) == (named.out_task_id is None):
        raise InvalidRequest("give exactly one of task_id and out_task_id", param="task_id")
    if named.task_id is not None:
        return find_by_id(service, req, named.task_id)
    key_id = service.caller(req).key_id
    return _own(service.parts.jobs.by_name(f"key:{key_id}", f"ext:{named.out_task_id}"), key_id)


def find_by_id(service: Service, req: falcon.Request, task_id: str) -> Job:
    """The caller's task. Raises Refusal(TASK_NOT_FOUND), also for the task of another key."""
    found = service.parts.jobs.get(task_id.removeprefix("task_").removeprefix("job_"))
    return _own(found, service.caller(req).key_id)


def _own(job: Job | None, key_id: str) -> Job:
    if job is None or job.key_id != key_id:
        raise Refusal(Code.TASK_NOT_FOUND, "task_not_found: this key has no such task")
    return job


def _text(body: dict[str, Any], name: str, *, required: bool = False, most: int = _NAME_MAX) -> str:
    value = body.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or len(value) > most or (required and not value):
        raise InvalidRequest(f"{name}: expected text of 1 to {most} characters", param=name)
    return value
