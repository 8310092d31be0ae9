"""Forwards usage queries to the meter's query API with the caller's identity, signed."""

from typing import Final
from urllib.parse import quote

import falcon
import gevent

from schemas.errors import Code
from services.backends.query_client import QueryUnavailable
from services.core.catalog import Key
from services.core.dialects import DIALECTS
from services.core.errors import Refusal
from services.core.ids import uuid7_text
from services.edge.authenticate import authenticate
from services.edge.headers import accounting, client_headers
from services.edge.refuse import render
from services.edge.worker import Worker

PATIENCE_S: Final = 6.0
RETRY_S: Final = 0.2


class ForwardResource:
    """One GET route of the query API, scoped there to the key's account; `path` may have fields
    of the route (`/v1/receipts/{request_id}`)."""

    def __init__(self, worker: Worker, path: str) -> None:
        self._worker = worker
        self._path = path

    def on_get(self, req: falcon.Request, resp: falcon.Response, **fields: str) -> None:
        request_id = uuid7_text()
        headers = client_headers(req.env)
        key = None
        try:
            _, key = authenticate(
                self._worker.snapshots, headers, req.params, self._worker.clock.now_us()
            )
            path = self._path.format(**{k: quote(v, safe="") for k, v in fields.items()})
            resp.status, resp.data = self._ask(path, req.query_string, key)
            resp.content_type = "application/json"
            gevent.sleep(0)
        except Refusal as ex:
            render(resp, DIALECTS["chat"], ex, request_id)
        remaining_nano = self._worker.remaining_nano(key) if key is not None else 0
        resp.set_headers(
            accounting(remaining_nano=remaining_nano, estimate_credits=0, request_id=request_id)
        )

    def _ask(self, path: str, query_string: str, key: Key) -> tuple[int, bytes]:
        """Status and body of the meter's answer; patient while the meter starts, for it is ready
        a moment after the edge. Raises Refusal(UNAVAILABLE)."""
        clock = self._worker.clock
        deadline_s = clock.monotonic_s() + PATIENCE_S
        while True:
            try:
                return self._worker.queries.forward(path, query_string, key.account_id, key.id)
            except QueryUnavailable as ex:
                if clock.monotonic_s() >= deadline_s:
                    raise Refusal(
                        Code.UNAVAILABLE, "usage cannot be read now; billing is not affected"
                    ) from ex
            gevent.sleep(RETRY_S)
