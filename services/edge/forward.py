"""Forwards usage queries to the meter's query API with the caller's identity, signed."""

from typing import Final
from urllib.parse import quote

import falcon
import gevent

from schemas.errors import Code
from services.backends.query_client import QueryUnavailable
from services.core.catalog import Key
from services.core.errors import Refusal
from services.edge.authenticated import Authenticated, Caller
from services.edge.worker import Worker

PATIENCE_S: Final = 6.0
RETRY_S: Final = 0.2


class ForwardResource(Authenticated):
    """One GET route of the query API, scoped there to the key's account; `path` may have fields
    of the route (`/v1/receipts/{request_id}`)."""

    def __init__(self, worker: Worker, path: str) -> None:
        super().__init__(worker)
        self._path = path

    def on_get(self, req: falcon.Request, resp: falcon.Response, **fields: str) -> None:
        path = self._path.format(**{k: quote(v, safe="") for k, v in fields.items()})

        def answer(caller: Caller) -> None:
            resp.status, resp.data = self._ask(path, req.query_string, caller.key)
            gevent.sleep(0)

        self._serve(req, resp, answer)

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
