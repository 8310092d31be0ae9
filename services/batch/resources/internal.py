"""What the edge asks for itself: what changed, whether the service is there; what providers say."""

import falcon

from services.batch.changes import ChangeFeed
from services.batch.resources.base import Service, answer

_WAIT_MAX_S = 15.0


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
