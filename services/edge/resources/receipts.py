"""The public keys of receipts, for everybody. (The receipts themselves are forwarded.)"""

from typing import Final

import falcon
import gevent

from schemas.errors import Code
from services.backends.identity import OPERATOR
from services.backends.query_client import QueryUnavailable
from services.core.dialects import DIALECTS
from services.core.errors import Refusal
from services.core.ids import uuid7_text
from services.edge.headers import accounting
from services.edge.refuse import render
from services.edge.worker import Worker

_PATH: Final = "/v1/receipts/keys"
_KEPT_S: Final = 10.0


class ReceiptKeysResource:
    """`GET /v1/receipts/keys`: asked of the meter at most each 10 s, so that nobody loads it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._body = b""
        self._until_s = 0.0

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        request_id = uuid7_text()
        try:
            resp.data = self._keys()
            resp.content_type = "application/json"
            resp.set_header("cache-control", "public, max-age=60")
        except Refusal as ex:
            render(resp, DIALECTS["chat"], ex, request_id)
        resp.set_headers(accounting(remaining_nano=0, estimate_credits=0, request_id=request_id))
        gevent.sleep(0)

    def _keys(self) -> bytes:
        now_s = self._worker.clock.monotonic_s()
        if not self._body or now_s >= self._until_s:
            try:
                status, body = self._worker.queries.forward(_PATH, "", OPERATOR, "")
            except QueryUnavailable as ex:
                raise Refusal(Code.UNAVAILABLE, "the keys cannot be read now") from ex
            if status != 200:
                raise Refusal(Code.UNAVAILABLE, "the keys cannot be read now")
            self._body, self._until_s = body, now_s + _KEPT_S
        return self._body
