"""`POST /v1/messages/count_tokens`: the upstream's answer, else an estimate. Free, no hold."""

import math

import falcon
import gevent
import orjson

from services.core.access import check_model
from services.core.dialects.anthropic import Anthropic
from services.core.errors import Refusal
from services.edge.attempts import Failure
from services.edge.authenticated import Authenticated, Caller
from services.edge.body import read_body
from services.edge.exchange import Exchange
from services.edge.headers import downstream
from services.edge.upstream import UpstreamError

ANSWER_MAX_BYTES = 1024 * 1024
ANSWER_S = 10.0
PATH = "/v1/messages/count_tokens"
_DIALECT = Anthropic()


class CountTokensResource(Authenticated):
    """Asks the first channel that has the route; without one, or when it fails, the estimate is
    the body's text bytes by the model's bytes per token, and says so in a header."""

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._serve(req, resp, lambda caller: self._count(req, resp, caller), _DIALECT.name)

    def _count(self, req: falcon.Request, resp: falcon.Response, caller: Caller) -> None:
        clock, edge = self._worker.clock, self._worker.config.edge
        x = Exchange(
            caller.request_id,
            _DIALECT,
            req.env,
            caller.headers,
            clock.monotonic_s(),
            clock.now_us(),
        )
        x.view, x.key = caller.view, caller.key
        x.body = read_body(req.env, edge.max_body_bytes, edge.body_timeout_s)
        x.parsed = _DIALECT.parse_count_request(x.body)
        x.price = check_model(x.view.snapshot, x.view.index, x.key, x.parsed.model)
        if not self._upstream(x, resp):
            self._estimate(x, resp)

    def _upstream(self, x: Exchange, resp: falcon.Response) -> bool:
        upstreams = self._worker.upstreams
        try:
            ready = upstreams.ready(upstreams.candidates(x), PATH)
            channels = [channel for channel in ready if channel.count_tokens]
            if not channels:
                return False
            call = upstreams.call(x, channels[:1], PATH, ANSWER_S)
        except (Refusal, Failure) as ex:
            if isinstance(ex, Failure) and ex.native and ex.status == 400:
                resp.status = ex.status
                resp.data = ex.body
                resp.content_type = "application/json"
                return True
            return False
        try:
            body = call.read_all(ANSWER_MAX_BYTES, ANSWER_S)
            counted = orjson.loads(body)["input_tokens"]
            if type(counted) is not int or counted <= 0:
                return False
        except (UpstreamError, ValueError, KeyError, TypeError):
            return False
        finally:
            call.release()
            upstreams.done(channels[0])
        resp.data = body
        for name, value in downstream(call.headers):
            if name == "content-type":
                resp.content_type = value
            else:
                resp.append_header(name, value)
        return True

    def _estimate(self, x: Exchange, resp: falcon.Response) -> None:
        assert x.parsed is not None
        assert x.price is not None
        gevent.sleep(0)  # a handler that never waits would starve the streams
        tokens = max(1, math.ceil(x.parsed.shape.text_bytes / x.price.bytes_per_token))
        resp.data = orjson.dumps({"input_tokens": tokens})
        resp.set_header("x-tollgate-estimated", "true")
