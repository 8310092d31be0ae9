"""`/v1/jobs`: the full view. Jobs and their names belong to the account."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.job_wire import FLAT_HEADER
from services.backends.sql.job_records import Job
from services.batch.admit import Ask
from services.batch.cursors import decode_cursor, encode_cursor
from services.batch.resources.base import (
    Service,
    answer,
    decode,
    idempotency_key,
    read_body,
    take_of,
    taken,
)
from services.batch.wire import attempt_view, job_view, moment, usd
from services.core import etags
from services.core.errors import InvalidRequest, Refusal
from services.core.jobs import TERMINAL, Phase, State, state_of

_IDS_MAX: Final = 200
_PAGE_MAX: Final = 200
_EVENTS_MAX: Final = 500
_RETENTION_MAX_S: Final = 366 * 86_400
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA: Final = "metadata."  # before the name of an entry, in the query of a list
_Label = Annotated[str, msgspec.Meta(max_length=256)]


class _Webhook(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, msgspec.Meta(max_length=2048)]


class _Submit(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    input: dict[str, Any]
    kind: str = ""
    external_id: _Label = ""
    webhook: _Webhook | None = None
    deadline_seconds: Annotated[int, msgspec.Meta(ge=1)] | None = None
    start_within_seconds: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_cost_nano: Annotated[int, msgspec.Meta(ge=0)] | None = None
    on_late: str = "attach"
    priority: Annotated[int, msgspec.Meta(ge=-10, le=10)] = 0
    retention_seconds: Annotated[int, msgspec.Meta(ge=60, le=_RETENTION_MAX_S)] | None = None
    metadata: dict[
        Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]
    ] = {}


class _Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    ids: Annotated[list[_Label], msgspec.Meta(max_length=_IDS_MAX)] = []
    external_ids: Annotated[list[_Label], msgspec.Meta(max_length=_IDS_MAX)] = []


class JobsResource:
    """POST and GET /v1/jobs."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        raw = read_body(req)
        key = self._service.key(req)
        ask = _ask(decode(raw, _Submit), f"account:{key.account_id}", "/v1/jobs")
        ask = msgspec.structs.replace(
            ask,
            where="" if req.get_header(FLAT_HEADER) else ask.where,
            take=take_of(req),
            idempotency_key=idempotency_key(req),
            body_bytes=len(raw),
        )
        made = self._service.admission.submit(key, ask)
        show(self._service, req, resp, made.job, 200 if made.replayed else 202)
        taken(self._service, resp, made)
        if made.replayed:
            return
        resp.set_header("location", f"/v1/jobs/job_{made.job.id}")
        resp.set_header("retry-after", str(max(1, min(made.job.eta_s // 6, 10))))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        service = self._service
        account_id = service.caller(req).account_id
        limit = req.get_param_as_int("limit", min_value=1, max_value=_PAGE_MAX) or 20
        state = req.get_param("state")
        page = service.parts.jobs.listed(
            account_id,
            limit=limit,
            after=decode_cursor(service.signer, req.get_param("cursor")),
            phases=_phases(state) if state else (),
            model=req.get_param("model") or "",
            kind=req.get_param("kind") or "",
            created_after=_created_after(req),
            labels={
                name.removeprefix(_METADATA): req.get_param(name) or ""
                for name in req.params
                if name.startswith(_METADATA)
            },
        )
        found = _views(service, req, page.jobs)
        last = page.jobs[-1] if page.more else None
        answer(
            resp,
            {
                "object": "list",
                "data": found,
                "has_more": page.more,
                "next_cursor": encode_cursor(service.signer, last.created_at, last.id)
                if last
                else None,
            },
        )


class JobResource:
    """GET /v1/jobs/{id}, with ETag (waiting, `?wait=`, is the edge's part), and DELETE: inputs and
    results are erased, the job and its bill stay."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        show(self._service, req, resp, job)
        if etags.names(req.get_header("if-none-match"), f'"{job.version}"'):
            resp.status, resp.data = 304, b""

    def on_delete(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        erase(self._service, job)
        answer(resp, {"id": f"job_{job.id}", "object": "job", "deleted": True})


class JobsQueryResource:
    """POST /v1/jobs/query: up to 200 at once."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        asked = decode(read_body(req), _Query)
        service = self._service
        account_id = service.caller(req).account_id
        jobs = service.parts.jobs.several(account_id, [_bare(each) for each in asked.ids])
        for name in asked.external_ids:
            job = service.parts.jobs.by_name(f"account:{account_id}", f"ext:{name}")
            if job is not None:
                jobs.append(job)
        answer(resp, {"object": "list", "data": _views(service, req, jobs)})


class JobCancelResource:
    """POST /v1/jobs/{id}/cancel: 200 when it has ended, 202 when its end was asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        ended = self._service.parts.jobs.cancel(job.id) or job
        self._service.engine.wake()
        show(self._service, req, resp, ended, 200 if ended.phase in TERMINAL else 202)


class JobEventsResource:
    """GET /v1/jobs/{id}/events?after= as a JSON list of 500 at most; the edge makes it a stream."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        after = req.get_param_as_int("after", min_value=0) or 0
        found = self._service.parts.jobs.events(job.id, after, _EVENTS_MAX + 1)
        events, more = found[:_EVENTS_MAX], len(found) > _EVENTS_MAX
        answer(
            resp,
            {
                "object": "list",
                "state": state_of(job.phase).value,
                "terminal": job.phase in TERMINAL,
                "has_more": more,
                "data": [
                    {
                        "seq": each.seq,
                        "type": each.type,
                        "data": msgspec.Raw(each.data.encode()),
                        "created_at": moment(each.created_at),
                    }
                    for each in events
                ],
            },
        )


class JobAttemptsResource:
    """GET /v1/jobs/{id}/attempts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        tried = self._service.parts.jobs.attempts(job.id)
        answer(resp, {"object": "list", "data": [attempt_view(each) for each in tried]})


class JobRedriveResource:
    """POST /v1/jobs/{id}/redrive: the same again, as a new job."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        if job.phase not in TERMINAL:
            raise Refusal(Code.NOT_TERMINAL, "not_terminal: the job has not ended yet")
        if job.is_erased:
            raise Refusal(Code.ARTIFACT_EXPIRED, "artifact_expired: its inputs were erased")
        ask = Ask(
            model=job.model,
            params=job.parameters,
            where="input",
            source="/v1/jobs/redrive",
            scope=f"job:{job.id}",
            idempotency_key=idempotency_key(req),
            callback_url=job.callback_url,
            extra=msgspec.json.decode(job.extra, type=dict[str, str]),
            retention_s=job.retention_s,
            on_late=job.on_late,
            priority=job.priority,
            retry_of=job.id,
            take=take_of(req),
        )
        made = self._service.admission.submit(self._service.key(req), ask)
        show(self._service, req, resp, made.job, 200 if made.replayed else 202)
        taken(self._service, resp, made)


class EstimateResource:
    """POST /v1/jobs/estimate: the price of a submission; nothing happens."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        key = self._service.key(req)
        ask = _ask(decode(read_body(req), _Submit), "", "/v1/jobs/estimate")
        offer = self._service.admission.offer(key, ask)
        answer(
            resp,
            {
                "object": "estimate",
                "model": offer.model.model,
                "kind": offer.model.kind,
                "units": offer.units,
                "cost": {"estimated_nano": offer.hold_nano, "estimated_usd": usd(offer.hold_nano)},
                "eta_seconds": offer.eta_s,
                "channel": offer.channel,
                "cancel_cost_nano": 0,
            },
        )


def own(service: Service, req: falcon.Request, job_id: str) -> Job:
    """The job of the caller's account. Raises Refusal(JOB_NOT_FOUND), for others' jobs too."""
    job = service.parts.jobs.get(_bare(job_id))
    if job is None or job.account_id != service.caller(req).account_id:
        raise Refusal(Code.JOB_NOT_FOUND, "job_not_found: this account has no such job")
    return job


def erase(service: Service, job: Job) -> None:
    """Raises Refusal(NOT_TERMINAL)."""
    if job.phase not in TERMINAL:
        raise Refusal(Code.NOT_TERMINAL, "not_terminal: the job has not ended yet; cancel it first")
    service.parts.jobs.erase(job)


def show(
    service: Service, req: falcon.Request, resp: falcon.Response, job: Job, status: int = 200
) -> None:
    """The job with its version as ETag."""
    answer(resp, job_view(job, service.artifacts(job), service.links(req)), status)
    resp.set_header("etag", f'"{job.version}"')


def _ask(body: _Submit, scope: str, source: str) -> Ask:
    if body.on_late not in ("attach", "discard"):
        raise InvalidRequest("on_late: write attach or discard", param="on_late")
    if len(body.metadata) > 16:
        raise InvalidRequest("metadata: at most 16 entries", param="metadata")
    return Ask(
        model=body.model,
        params=body.input,
        where="input",
        source=source,
        scope=scope,
        external_id=body.external_id,
        kind=body.kind,
        callback_url=body.webhook.url if body.webhook else "",
        callback_param="webhook.url",
        extra=dict(body.metadata),
        deadline_s=body.deadline_seconds,
        start_within_s=body.start_within_seconds,
        max_cost_nano=body.max_cost_nano,
        priority=body.priority,
        retention_s=body.retention_seconds,
        on_late=body.on_late,
    )


def _views(service: Service, req: falcon.Request, jobs: list[Job]) -> list[dict[str, Any]]:
    links = service.links(req)
    artifacts = service.parts.jobs.artifacts([each.id for each in jobs])
    return [
        job_view(job, [each for each in artifacts if each.job_id == job.id], links) for job in jobs
    ]


def _phases(state: str) -> list[Phase]:
    try:
        wanted = State(state)
    except ValueError as ex:
        words = ", ".join(each.value for each in State)
        raise InvalidRequest(f"state: write one of {words}", param="state") from ex
    return [phase for phase in Phase if state_of(phase) is wanted]


def _created_after(req: falcon.Request) -> int | None:
    text = req.get_param("created_after")
    if text is None:
        return None
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, TypeError) as ex:  # nonsense; a time without its offset
        message = "created_after: write a time of RFC 3339, as created_at is"
        raise InvalidRequest(message, param="created_after") from ex


def _bare(job_id: str) -> str:
    return job_id.removeprefix("job_").removeprefix("task_").removeprefix("video_")
