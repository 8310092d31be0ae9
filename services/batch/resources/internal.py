"""What the edge asks for itself: what changed, and whether the service is there."""

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
