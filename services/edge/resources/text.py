"""`POST /v1/messages`, `/v1/chat/completions`, `/v1/responses`: admit, call, relay, account."""

import re
from typing import Final
from urllib.parse import parse_qsl

import falcon

from schemas.errors import SHAPES, Code
from services.backends import telemetry
from services.backends.outbox import DiskFull, OutboxFailed, Sealed
from services.core.access import check_model
from services.core.catalog import Channel, Key
from services.core.dialects.base import Dialect
from services.core.errors import Refusal
from services.core.holds import hold_bound
from services.core.ids import uuid7_text
from services.core.outcomes import BYTES_PER_TOKEN, Ending
from services.core.shortfalls import WindowFull
from services.edge.attempts import ClientGone, Failure, ToldInAnswer, cut_short
from services.edge.authenticate import authenticate
from services.edge.body import read_body
from services.edge.elastic import ElasticHold
from services.edge.exchange import Exchange
from services.edge.headers import accounting, client_headers, downstream
from services.edge.lines import ENVIRON
from services.edge.passthrough import StreamRelay
from services.edge.record import upstream_error_note
from services.edge.refuse import render
from services.edge.snapshot import View
from services.edge.standing import Standing
from services.edge.upstream import Aborted, Call, FirstByteTimeout, IdleTimeout, UpstreamBroken
from services.edge.watch import ClientWatch
from services.edge.worker import Worker

log = telemetry.get_logger()

ANSWER_MAX_BYTES: Final = 256 * 1024 * 1024
SSE: Final = "text/event-stream"
_EVENTS: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:event|data|id|retry)?:")

# Error types that vendors put into bodies and first events, as the status they stand for.
_STATUS_OF_ERROR: Final = {
    "invalid_request_error": 400,
    "request_too_large": 413,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "server_is_overloaded": 503,
    "timeout_error": 504,
}


class TextResource:
    """One dialect's inference route."""

    def __init__(self, worker: Worker, dialect: Dialect) -> None:
        self._worker = worker
        self._dialect = dialect

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Codex tries a websocket here first; 426 makes it fall back to HTTP after one try."""
        if self._dialect.name != "responses":
            raise falcon.HTTPMethodNotAllowed(["POST"])
        request_id = uuid7_text()
        refusal = Refusal(Code.UPGRADE_REQUIRED, "websockets are not served here; use POST")
        render(resp, self._dialect, refusal, request_id)
        resp.set_header("connection", "close")
        resp.set_headers(accounting(remaining_nano=0, estimate_credits=0, request_id=request_id))

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        clock = self._worker.clock
        x = Exchange(
            uuid7_text(),
            self._dialect,
            req.env,
            client_headers(req.env),
            clock.monotonic_s(),
            clock.now_us(),
        )
        self._worker.active.add(x)
        try:
            self._admit(x)
            self._answer(x, resp)
        except Refusal as ex:
            self._refuse(x, resp, ex)
        except Failure as ex:
            self._fail(x, resp, ex)
        except ClientGone:
            self._worker.recorder.end(x, Ending.CLIENT_GONE, 499)
            render(resp, x.dialect, Refusal(Code.CLIENT_GONE, "the client hung up"), x.request_id)
        except Exception as ex:
            if not x.requested or isinstance(ex, Sealed | OutboxFailed):
                raise
            log.exception("request_failed", request_id=x.request_id)
            self._worker.recorder.end(x, Ending.GATEWAY, 500, "internal error")
            render(resp, x.dialect, Refusal(Code.INTERNAL_ERROR, "internal error"), x.request_id)
        finally:
            if resp.stream is None:
                self._worker.active.discard(x)
                if x.watch is not None:
                    x.watch.close()
                if x.permit is not None:
                    x.permit.end()
            if x.reservation is not None and not x.requested:
                self._worker.leases.settle(x.reservation, 0)
        resp.set_headers(self._accounting(x))
        if x.rates:
            resp.set_headers(self._worker.rates.headers(x.rates))
        if x.refused is Code.CONCURRENCY_LIMIT:  # whose end nobody knows
            resp.delete_header("x-ratelimit-reset")

    # -- admission ------------------------------------------------------------------------------

    def _admit(self, x: Exchange) -> None:
        """Key, body, model, hold, durable `request`. Raises Refusal; then nothing is held."""
        worker = self._worker
        if ENVIRON in x.environ:
            x.view, x.key = self._of_batch(x)
        else:
            query = dict(parse_qsl(x.query)) if "key=" in x.query else {}
            x.view, x.key = authenticate(
                worker.snapshots, x.environ, x.headers, query, x.started_us
            )
            x.body = self._body(x)
        x.parsed = x.dialect.parse_request(x.body, x.headers)
        x.price = check_model(x.view.snapshot, x.view.index, x.key, x.parsed.model)
        channels = worker.upstreams.candidates(x)
        x.channels = worker.upstreams.ready(channels)
        x.bound = hold_bound(
            x.view.prices.book,
            channels=[channel.name for channel in x.channels or channels],
            priced_as=x.price.model,
            multiplier_ppm=x.view.prices.book.multipliers_ppm[x.key.group],
            shape=worker.holds.shape(x),
            max_output_tokens=x.parsed.max_output_tokens,
            n=x.parsed.n,
            tier=x.parsed.tier,
        )
        x.reservation = worker.leases.reserve(
            x.key, *worker.holds.first_nano(x, x.bound), x.price.model
        )
        x.rates = x.view.rules(x.key).rates
        if x.rates:
            tokens = x.parsed.shape.text_bytes // BYTES_PER_TOKEN
            x.permit = worker.rates.admit(x.rates, tokens)
        if not x.channels:  # only now: what the key itself lacks is told first
            raise worker.upstreams.resting(channels)
        if x.line is not None:
            worker.lines.take(x.line)
        if x.cut:  # while its body came, or it waited for money or a place
            raise Refusal(Code.INVALID_API_KEY, x.cut)
        try:
            worker.recorder.request(x, x.reservation)
        except DiskFull as ex:
            raise Refusal(Code.UNAVAILABLE, "the gateway cannot record requests now") from ex

    def _body(self, x: Exchange) -> bytes:
        edge = self._worker.config.edge
        return read_body(x.environ, edge.max_body_bytes, edge.body_timeout_s)

    def _of_batch(self, x: Exchange) -> tuple[View, Key]:
        """For whom a line is; its body and its request id are set."""
        lines = self._worker.lines
        x.line = lines.ticket(x.environ)
        x.body = self._body(x)
        lines.require_body(x.line, x.body)
        x.request_id = x.line.request_id
        x.tags = {"batch": x.line.batch_id, "line": str(x.line.line)}
        return lines.caller(x.line)

    # -- answer ---------------------------------------------------------------------------------

    def _answer(self, x: Exchange, resp: falcon.Response) -> None:
        sock = x.environ.get("gunicorn.socket")
        if sock is not None:
            x.watch = ClientWatch(sock, x.on_gone)
        channels = x.channels
        while True:
            try:
                self._ask(x, resp, channels)
                return
            except ToldInAnswer as ex:
                channels = self._worker.upstreams.after(x, ex)
                if not channels:
                    raise
                x.answer = None

    def _ask(self, x: Exchange, resp: falcon.Response, channels: list[Channel]) -> None:
        call = self._worker.upstreams.call(x, channels)
        assert x.channel is not None
        channel = x.channel
        streaming = False
        try:
            if self._is_stream(x, call):
                streaming = self._stream(x, resp, call)
            else:
                self._whole(x, resp, call)
        except (IdleTimeout, FirstByteTimeout) as ex:
            raise Failure(Code.TIMEOUT, "the upstream did not answer in time") from ex
        except Aborted as ex:
            raise cut_short(x) from ex
        except UpstreamBroken as ex:
            if x.watch is not None and x.watch.gone:
                raise ClientGone from ex
            self._worker.upstreams.failed_late(channel, 502)
            raise Failure(Code.UPSTREAM_TRUNCATED, "the upstream ended its answer early") from ex
        finally:
            if not streaming:
                call.release()
                self._worker.upstreams.done(channel)

    def _is_stream(self, x: Exchange, call: Call) -> bool:
        """Clients read events whatever the type says that they asked for: its first bytes tell."""
        assert x.parsed is not None
        kind = _header(call, b"content-type").lower()
        if kind.startswith(SSE):
            return True
        if not x.parsed.stream or "json" in kind:
            return False
        return _EVENTS.match(call.peek(self._first_byte_s(x))) is not None

    def _first_byte_s(self, x: Exchange) -> float:
        """How long its first byte may still take."""
        assert x.channel is not None
        passed_s = self._worker.clock.monotonic_s() - x.started_s
        return max(x.channel.first_byte_timeout_s - passed_s, 1.0)

    def _whole(self, x: Exchange, resp: falcon.Response, call: Call) -> None:
        """A JSON answer: read whole, judged, recorded, then sent."""
        assert x.channel is not None
        left_s = x.channel.total_timeout_s - (self._worker.clock.monotonic_s() - x.started_s)
        body = call.read_all(ANSWER_MAX_BYTES, max(left_s, 1.0))
        x.ttfb_s = self._worker.clock.monotonic_s() - x.started_s
        x.answer = x.dialect.parse_response(body)
        if x.answer.error:
            raise _error_in_answer(x.answer.error)
        verdict = self._worker.recorder.end(x, Ending.ANSWERED, call.status)
        if verdict is None or not verdict.billed:
            raise Failure(Code.UPSTREAM_EMPTY, "the upstream sent no usable answer")
        resp.status = call.status
        resp.data = body
        self._relay_headers(resp, call.headers)

    def _stream(self, x: Exchange, resp: falcon.Response, call: Call) -> bool:
        """Starts a stream; True when `resp` now owns the call. An error that comes as the
        stream's first event is answered with a status instead."""
        worker = self._worker
        assert x.parsed is not None
        first = call.read(self._first_byte_s(x))
        x.ttfb_s = worker.clock.monotonic_s() - x.started_s
        if b"error" in first or b"failed" in first:  # else no need to read it twice
            probe = x.dialect.scan(x.parsed)
            probe.feed(first)
            if probe.error and not probe.has_content:
                x.answer = probe
                raise _error_in_answer(probe.error)
        if not first:
            raise Failure(Code.UPSTREAM_EMPTY, "the upstream sent an empty stream")
        scan = x.dialect.scan(x.parsed)
        resp.stream = StreamRelay(
            x,
            call,
            scan,
            first,
            worker.recorder,
            worker.clock,
            ElasticHold(x, scan, worker.leases),
            ping_s=worker.config.edge.ping_s,
            on_done=lambda: worker.finished(x),
        )
        resp.status = call.status
        resp.content_type = SSE  # unless the upstream says
        self._relay_headers(resp, call.headers)
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")
        return True

    @staticmethod
    def _relay_headers(resp: falcon.Response, headers: list[tuple[bytes, bytes]]) -> None:
        for name, value in downstream(headers):
            if name == "content-type":
                resp.content_type = value
            else:
                resp.append_header(name, value)

    # -- endings --------------------------------------------------------------------------------

    def _refuse(self, x: Exchange, resp: falcon.Response, refusal: Refusal) -> None:
        x.refused = refusal.code
        if isinstance(refusal, WindowFull):
            x.window = refusal.window
        status = render(resp, x.dialect, refusal, x.request_id, x)
        try:
            self._worker.recorder.refused(x, refusal, status)
        except DiskFull:
            log.warning("refusal_not_recorded", request_id=x.request_id, reason="disk full")

    def _fail(self, x: Exchange, resp: falcon.Response, failure: Failure) -> None:
        """Every channel failed, or the one that answered sent no usable answer: free."""
        gone = x.watch is not None and x.watch.gone
        ending = Ending.CLIENT_GONE if gone else failure.ending
        status = failure.status or SHAPES[failure.code].status
        code = None if gone or failure.native else failure.code
        self._worker.recorder.end(x, ending, status, failure.note, code)
        if failure.native:
            resp.status = failure.status
            resp.data = failure.body
            self._relay_headers(resp, failure.headers)
            return
        refusal = Refusal(failure.code, failure.message, retry_after_s=failure.retry_after_s)
        render(resp, x.dialect, refusal, x.request_id, x, failure.status or None)

    def _accounting(self, x: Exchange) -> list[tuple[str, str]]:
        standing = Standing()
        if x.key is not None and x.view is not None:
            standing = self._worker.standings.of(x.key, x.view.account(x.key.account_id))
        return accounting(
            remaining_nano=standing.remaining_nano,
            estimate_credits=x.estimate_credits,
            request_id=x.request_id,
            org_nano=standing.org_nano,
            window=x.window or standing.window,
        )


def _error_in_answer(error: tuple[str, str]) -> ToldInAnswer:
    """A 2xx answer that holds an error object: the status that it should have had."""
    kind, message = error
    status = _STATUS_OF_ERROR.get(kind, 502)
    note = upstream_error_note(kind)
    return ToldInAnswer(Code.UPSTREAM_ERROR, message, status=status, note=note)


def _header(call: Call, name: bytes) -> str:
    for key, value in call.headers:
        if key == name:
            return value.decode("latin-1")
    return ""
