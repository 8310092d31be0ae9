"""The way of every free route for a live key: authenticate, answer or refuse, account."""

from collections.abc import Callable
from typing import Any, NamedTuple

import falcon
import orjson

from schemas.errors import Code
from services.backends import telemetry
from services.backends.sql.engine import DatabaseUnavailable
from services.core.catalog import Key
from services.core.dialects import DIALECTS
from services.core.errors import Refusal
from services.core.ids import uuid7_text
from services.core.money import credits_up
from services.edge.authenticate import authenticate
from services.edge.headers import accounting, client_headers
from services.edge.refuse import render
from services.edge.snapshot import View
from services.edge.standing import Standing
from services.edge.worker import Worker

log = telemetry.get_logger()


class Caller(NamedTuple):
    """An authenticated request. `headers` by lower-case name."""

    request_id: str
    headers: dict[str, str]
    view: View
    key: Key


class Authenticated:
    """A resource that answers the holders of live keys and costs nothing."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def identify(self, req: falcon.Request, headers: dict[str, str]) -> tuple[View, Key]:
        """Who calls. Raises Refusal."""
        worker = self._worker
        now_us = worker.clock.now_us()
        return authenticate(worker.snapshots, req.env, headers, req.params, now_us)

    def _serve(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        answer: Callable[[Caller], Any],
        dialect: str = "chat",
    ) -> None:
        """Sends what `answer` returns as `fill` does. `req.context.hold_nano`: what it holds."""
        worker = self._worker
        request_id = uuid7_text()
        headers = client_headers(req.env)
        standing = Standing()

        def authenticated() -> Any:
            nonlocal standing
            view, key = self.identify(req, headers)
            standing = worker.standings.of(key, view.account(key.account_id))
            return answer(Caller(request_id, headers, view, key))

        fill(resp, authenticated, request_id, dialect)
        estimate = credits_up(req.context.get("hold_nano", 0))
        resp.set_headers(
            accounting(**standing._asdict(), estimate_credits=estimate, request_id=request_id)
        )


def fill(
    resp: falcon.Response, answer: Callable[[], Any], request_id: str, dialect: str = "chat"
) -> None:
    """What `answer` returns, as JSON; None says that it filled `resp` itself. A Refusal goes out
    in the shape of `dialect`."""
    try:
        body = answer()
        if body is not None:
            resp.data = orjson.dumps(body)
        resp.content_type = resp.content_type or "application/json"
    except Refusal as ex:
        render(resp, DIALECTS[dialect], ex, request_id)
    except DatabaseUnavailable as ex:
        log.warning("database_unavailable", reason=str(ex), request_id=request_id)
        refusal = Refusal(Code.UNAVAILABLE, "the database cannot be asked now; try again shortly")
        render(resp, DIALECTS[dialect], refusal, request_id)
