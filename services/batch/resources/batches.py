"""`/v1/batches` in OpenAI's shapes: lines of an uploaded file, answers in files."""

from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.sql.batch_records import Batch, TooManyBatches
from services.backends.sql.batches import Batches
from services.backends.sql.uploads import BATCH
from services.batch.batch_engine import BatchEngine
from services.batch.batch_input import keep_lines
from services.batch.batch_wire import PREFIX, batch_view
from services.batch.resources.base import Service, answer, decode, read_body
from services.core.batches import ENDPOINTS, KEEP_S
from services.core.errors import InvalidRequest, Refusal

_LIST: Final = 20
_LIST_MAX: Final = 100
_METADATA_MAX: Final = 16


class _Expires(msgspec.Struct):
    anchor: str
    seconds: int


class _Create(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: _Expires | None = None


class Desk:
    """What the routes of both protocols share."""

    def __init__(self, service: Service, batches: Batches, engine: BatchEngine) -> None:
        self.service = service
        self.batches = batches
        self.engine = engine

    def create(self, req: falcon.Request, endpoint: str, **given: Any) -> Batch:
        """A batch of the caller's key; `given` as `Batches.create`. Raises Refusal."""
        key = self.service.key(req)
        most = self.service.parts.config.batch.open_batches_max
        try:
            made = self.batches.create(key.account_id, key.id, endpoint, open_max=most, **given)
        except TooManyBatches as ex:
            self.service.parts.uploads.delete(key.account_id, given["lines_id"])
            message = f"queue_full: {most} batches of this account run or wait already"
            raise Refusal(Code.QUEUE_FULL, message, retry_after_s=60) from ex
        self.engine.wake()
        return made

    def own(self, req: falcon.Request, named: str, prefix: str, *, messages: bool) -> Batch:
        """The caller's batch of that name. Raises Refusal(NOT_FOUND)."""
        account_id = self.service.caller(req).account_id
        found = None
        if named.startswith(prefix):
            batch_id = named.removeprefix(prefix)
            found = self.batches.get(account_id, batch_id, messages=messages)
        if found is None:
            raise Refusal(Code.NOT_FOUND, f"not_found: this account has no batch {named[:64]!r}")
        return found

    def cancel(self, found: Batch) -> None:
        self.batches.cancel(found.id)
        self.engine.wake()


class BatchesResource:
    """POST and GET /v1/batches."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        asked = decode(read_body(req), _Create)
        _check(asked)
        parts = self._desk.service.parts
        account_id = self._desk.service.key(req).account_id
        upload = parts.uploads.get(account_id, asked.input_file_id)
        if upload is None or upload.purpose != BATCH:
            message = "input_file_id: name a file that was uploaded with the purpose `batch`"
            raise InvalidRequest(message, param="input_file_id")
        expires = asked.output_expires_after
        made = self._desk.create(
            req,
            asked.endpoint,
            input_id=upload.id,
            lines_id=keep_lines(parts, account_id, upload.bytes, upload.sha256),
            headers={},
            extra=asked.metadata or {},
            total=0,
            keep_s=expires.seconds if expires else parts.config.artifacts.retention_s,
        )
        answer(resp, batch_view(made))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        limit = req.get_param_as_int("limit", min_value=1, max_value=_LIST_MAX, default=_LIST)
        after = req.get_param("after")
        page = self._desk.batches.listed(
            self._desk.service.caller(req).account_id,
            limit,
            messages=False,
            after=self._desk.own(req, after, PREFIX, messages=False) if after else None,
        )
        data = [batch_view(each) for each in page.batches]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        answer(resp, {"object": "list", "data": data, "has_more": page.more} | ends)


class BatchResource:
    """GET /v1/batches/{id}, POST /v1/batches/{id}/cancel."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def on_get(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        answer(resp, batch_view(self._desk.own(req, batch_id, PREFIX, messages=False)))

    def on_post_cancel(self, req: falcon.Request, resp: falcon.Response, batch_id: str) -> None:
        self._desk.cancel(self._desk.own(req, batch_id, PREFIX, messages=False))
        answer(resp, batch_view(self._desk.own(req, batch_id, PREFIX, messages=False)))


def _check(asked: _Create) -> None:
    """Raises InvalidRequest."""
    if asked.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint: write one of {', '.join(ENDPOINTS)}", param="endpoint")
    if asked.completion_window != "24h":
        message = "completion_window: only 24h is offered"
        raise InvalidRequest(message, param="completion_window")
    for name, value in (asked.metadata or {}).items():
        if len(name) > 64 or len(value) > 512:
            message = "metadata: names have at most 64 characters, values 512"
            raise InvalidRequest(message, param=f"metadata.{name[:64]}")
    if len(asked.metadata or {}) > _METADATA_MAX:
        raise InvalidRequest(f"metadata: at most {_METADATA_MAX} pairs", param="metadata")
    expires = asked.output_expires_after
    if expires is not None and (expires.anchor != "created_at" or expires.seconds not in KEEP_S):
        message = "output_expires_after: 3600 to 2592000 seconds after created_at"
        raise InvalidRequest(message, param="output_expires_after")
