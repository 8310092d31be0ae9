"""`/v1/messages/batches` in Anthropic's shapes: requests in the body, results as lines of JSON."""

from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.job_wire import ORIGIN_HEADER
from services.backends.sql.batch_records import Batch
from services.backends.sql.uploads import Upload
from services.batch.batch_input import keep_lines, store
from services.batch.batch_wire import MESSAGES_PREFIX
from services.batch.resources.base import answer, decode, read_body
from services.batch.resources.batches import Desk
from services.batch.resources.files import send_file
from services.batch.wire import moment
from services.core.batches import MESSAGES, WrongLine, check_message
from services.core.errors import InvalidRequest, Refusal

_LIST: Final = 20
_LIST_MAX: Final = 1000
_VERSION: Final = "2023-06-01"


class _Create(msgspec.Struct):
    requests: list[msgspec.Raw]


class MessageBatchesResource:
    """POST and GET /v1/messages/batches; GET and DELETE .../{id} (`one`), POST .../{id}/cancel, GET
    .../{id}/results."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        parts = self._desk.service.parts
        asked = decode(read_body(req, parts.config.edge.max_body_bytes), _Create)
        lines = _checked(asked.requests, parts.config.batch.lines_max)
        account_id = self._desk.service.key(req).account_id
        draft = store(parts, lines)
        headers = {"anthropic-version": req.get_header("anthropic-version") or _VERSION}
        if beta := req.get_header("anthropic-beta"):
            headers["anthropic-beta"] = beta
        made = self._desk.create(
            req,
            MESSAGES,
            input_id="",
            lines_id=keep_lines(parts, account_id, draft.size, draft.sha256),
            headers=headers,
            extra={},
            total=len(lines),
            keep_s=parts.config.artifacts.retention_s,
        )
        answer(resp, self._view(req, made))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        limit = req.get_param_as_int("limit", min_value=1, max_value=_LIST_MAX, default=_LIST)
        after, before = req.get_param("after_id"), req.get_param("before_id")
        page = self._desk.batches.listed(
            self._desk.service.caller(req).account_id,
            limit,
            messages=True,
            after=self._own(req, after) if after else None,
            before=self._own(req, before) if before and not after else None,
        )
        data = [self._view(req, each) for each in page.batches]
        answer(
            resp,
            {
                "data": data,
                "has_more": page.more,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            },
        )

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        answer(resp, self._view(req, self._own(req, batch_id)))

    def on_delete_one(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        found = self._own(req, batch_id)
        if found.ended_at is None:
            raise InvalidRequest("a batch that is processed cannot be deleted: cancel it first")
        self._desk.batches.delete(found)
        if found.output_id:
            self._desk.service.parts.uploads.delete(found.account_id, found.output_id)
        answer(resp, {"id": MESSAGES_PREFIX + found.id, "type": "message_batch_deleted"})

    def on_post_cancel(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        self._desk.cancel(self._own(req, batch_id))
        answer(resp, self._view(req, self._own(req, batch_id)))

    def on_get_results(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        found = self._own(req, batch_id)
        if found.ended_at is None:
            raise Refusal(Code.NOT_FOUND, "not_found: results are there once the batch has ended")
        results = self._results(found)
        if results is None:
            raise Refusal(Code.NOT_FOUND, "not_found: the results were kept as long as promised")
        send_file(self._desk.service, req, resp, results)

    def _own(self, req: falcon.Request, named: str) -> Batch:
        """Raises Refusal(NOT_FOUND)."""
        return self._desk.own(req, named, MESSAGES_PREFIX, messages=True)

    def _view(self, req: falcon.Request, batch: Batch) -> dict[str, Any]:
        """The object of Anthropic's API. Lines count as `processing` until the batch has ended."""
        ended = batch.ended_at is not None
        gone = ended and self._results(batch) is None
        status = "canceling" if batch.cancel_at is not None else "in_progress"
        return {
            "id": MESSAGES_PREFIX + batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else status,
            "request_counts": {
                "processing": 0 if ended else batch.total,
                "succeeded": batch.succeeded if ended else 0,
                "errored": batch.errored if ended else 0,
                "canceled": batch.canceled if ended else 0,
                "expired": batch.expired if ended else 0,
            },
            "created_at": moment(batch.created_at),
            "expires_at": moment(batch.expires_at),
            "ended_at": moment(batch.ended_at),
            "archived_at": moment(_archived(batch)) if gone else None,
            "cancel_initiated_at": moment(batch.cancel_at),
            "results_url": self._results_url(req, batch) if ended and not gone else None,
        }

    def _results(self, batch: Batch) -> Upload | None:
        """The results, when they are there."""
        uploads = self._desk.service.parts.uploads
        return uploads.get(batch.account_id, batch.output_id) if batch.output_id else None

    def _results_url(self, req: falcon.Request, batch: Batch) -> str:
        public = self._desk.service.parts.config.artifacts.public_url
        base = (public or req.get_header(ORIGIN_HEADER) or "").rstrip("/")
        return f"{base}/v1/messages/batches/{MESSAGES_PREFIX}{batch.id}/results"


def _checked(requests: list[msgspec.Raw], most: int) -> list[bytes]:
    """The requests as lines. Raises InvalidRequest with the path of the wrong field."""
    if not requests:
        raise InvalidRequest("requests: write at least one", param="requests")
    if len(requests) > most:
        raise InvalidRequest(f"requests: at most {most} in a batch", param="requests")
    names: set[str] = set()
    lines = []
    for place, raw in enumerate(map(bytes, requests)):
        line = msgspec.json.format(raw, indent=-1) if b"\n" in raw else raw
        try:
            name = check_message(line)
            if name in names:
                message = f"custom_id: {name!r} is used twice"
                raise WrongLine("invalid_request", message, "custom_id")
        except WrongLine as ex:
            param = f"requests.{place}.{ex.param}".rstrip(".")
            raise InvalidRequest(f"requests.{place}.{ex.message}", param=param) from ex
        names.add(name)
        lines.append(line)
    return lines


def _archived(batch: Batch) -> int:
    assert batch.ended_at is not None
    return batch.ended_at + batch.keep_s * 1_000_000
