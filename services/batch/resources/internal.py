"""What the edge asks for itself: what changed, whether the service is there, stored bytes; what
providers say."""

import re
from typing import Final

import falcon

from schemas.errors import Code
from services.backends.job_wire import PIECE
from services.backends.objects.port import NotStored
from services.batch.changes import ChangeFeed
from services.batch.resources.base import Service, answer, send_stored
from services.core.errors import Refusal

_WAIT_MAX_S: Final = 15.0
_HASH: Final = re.compile("[0-9a-f]{64}")


class ChangesResource:
    """GET /internal/changes?cursor=: answers when a job has changed, at the latest after 15 s."""

    def __init__(self, service: Service, feed: ChangeFeed) -> None:
        self._service = service
        self._feed = feed

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._service.caller(req)
        found = self._feed.wait(req.get_param("cursor") or "", _WAIT_MAX_S)
        answer(resp, found._asdict())


class HealthResource:
    """GET /internal/health: 200 when the database answers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._service.caller(req)
        self._service.parts.jobs.last_change()
        answer(resp, {"status": "ok"})


class StoredResource:
    """GET /internal/stored/{sha256}?first=&size=: a piece of what lies in the store. The edge has
    been told of it in an answer to who may have it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, sha256: str) -> None:
        if not self._service.caller(req).is_operator or not _HASH.fullmatch(sha256):
            raise Refusal(Code.NOT_FOUND, "not_found: nothing of that name is stored")
        first = req.get_param_as_int("first", required=True, min_value=0)
        size = req.get_param_as_int("size", required=True, min_value=1, max_value=PIECE)
        try:
            send_stored(self._service, req, resp, sha256, first, size)
        except NotStored as ex:
            raise Refusal(Code.NOT_FOUND, "not_found: its bytes are not there") from ex
        resp.content_type = "application/octet-stream"


class HookResource:
    """POST /hooks/{provider}?ref=<client reference>: a provider says that it has finished. Nobody
    vouches for who calls, so it is a hint to look there now, whatever the body says."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response, provider: str) -> None:
        job_id = (req.get_param("ref") or "").rpartition("-")[0]
        if job_id.isalnum() and self._service.parts.claims.hint(job_id):
            self._service.engine.wake()
        resp.status = 204
