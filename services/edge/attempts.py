"""Upstream calls of one request: channel after channel until one answers or none is left.

Failover happens only before the client's first byte, on a connect error, a broken connection and
the statuses of `FAILOVER`; at most `max_attempts` calls within `failover_s`. A timeout does not
fail over: the provider may be working, and the client has waited long enough."""

import math
from typing import Final

from schemas.config import Edge
from schemas.errors import Code
from schemas.events import Attempt
from services.backends.clock import Clock
from services.core.catalog import Channel
from services.core.errors import Refusal
from services.core.outcomes import Ending
from services.core.prices import ModelPrice
from services.core.routing import Cooldowns, candidates, dashed
from services.edge.exchange import Exchange
from services.edge.headers import upstream_lines
from services.edge.upstream import (
    Aborted,
    Call,
    ConnectFailed,
    FirstByteTimeout,
    IdleTimeout,
    UpstreamBroken,
    UpstreamPool,
)

OURS_4XX: Final = frozenset({401, 402, 403})  # our credential, our balance
FAILOVER_4XX: Final = OURS_4XX | {404, 408, 429}
ERROR_BODY_MAX_BYTES: Final = 1024 * 1024
ERROR_BODY_S: Final = 10.0


class Failure(Exception):
    """No channel answered usably. `status` and `body` are the last upstream's own when `native`;
    otherwise the gateway renders an error of `code`, with `status` when it is given. `note` is
    what the event says when `message` holds an upstream's own words: they may quote the prompt."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        status: int = 0,
        body: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        retry_after_s: int | None = None,
        note: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.note = note or message
        self.status = status
        self.body = body
        self.headers = headers or []
        self.retry_after_s = retry_after_s

    @property
    def ending(self) -> Ending:
        """For the judgement: an answer was had, or why none was."""
        if self.status:
            return Ending.ANSWERED
        return Ending.TIMEOUT if self.code is Code.TIMEOUT else Ending.BROKEN

    @property
    def native(self) -> bool:
        return bool(self.body) and self.status > 0


class ToldInAnswer(Failure):
    """A 2xx answer that holds an error: `status` is what it should have had."""


class ClientGone(Exception):
    """The client hung up before its first byte."""


class Upstreams:
    """One per worker: the connection pool and what is known of the channels' health.

    A `path` is a route beside inference (`/v1/messages/count_tokens`). It has a health of its own:
    that a channel cannot do it says nothing of the answers that people pay for."""

    def __init__(self, pool: UpstreamPool, clock: Clock, settings: Edge) -> None:
        self._pool = pool
        self._clock = clock
        self._settings = settings
        self._cooldowns = Cooldowns(clock.monotonic_s)
        self._in_flight: dict[str, int] = {}

    def candidates(self, x: Exchange) -> list[Channel]:
        """The channels that serve the model in this dialect, best first. Raises Refusal(400) when
        there is none: the key's group has the model in another protocol only."""
        assert x.view is not None
        assert x.key is not None
        assert x.price is not None
        assert x.parsed is not None
        channels = candidates(
            x.view.snapshot, x.key.group, x.dialect.name, x.price.model, x.parsed.session_id
        )
        if not channels:
            raise Refusal(
                Code.UNSUPPORTED_MODEL,
                f"unsupported_model: no channel serves {x.price.model!r} at {x.dialect.path}",
                param="model",
            )
        return channels

    def ready(self, channels: list[Channel], path: str = "") -> list[Channel]:
        """Those that may be called now."""
        return [channel for channel in channels if self._ready(channel, path)]

    def resting(self, channels: list[Channel]) -> Refusal:
        """For `channels` of which none is ready: 429 when all of them cool down until a known time,
        else 503."""
        end_s = self._cooldowns.known_end_s([channel.name for channel in channels])
        if end_s is None:
            return Refusal(Code.NO_CAPACITY, "no available accounts")
        return Refusal(
            Code.RATE_LIMIT_EXCEEDED,
            "every upstream that serves this model is cooling down",
            retry_after_s=max(1, math.ceil(end_s)),
        )

    def _ready(self, channel: Channel, path: str) -> bool:
        if not self._cooldowns.ready(channel.name + path):
            return False
        if not channel.max_concurrency:
            return True
        share = math.ceil(channel.max_concurrency / self._settings.workers)
        return self._in_flight.get(channel.name, 0) < share

    def call(
        self,
        x: Exchange,
        channels: list[Channel],
        path: str = "",
        first_byte_timeout_s: float | None = None,
    ) -> Call:
        """The first 2xx answer's call, its head read and its body not; `first_byte_timeout_s`
        instead of the channel's own.

        Raises Failure when all failed, ClientGone. The caller releases or aborts the call and
        then calls `done`."""
        deadline_s = self._clock.monotonic_s() + self._settings.failover_s
        failure = None
        for channel in channels[: self._settings.max_attempts]:
            if x.attempts and self._clock.monotonic_s() >= deadline_s:
                break
            try:
                return self._attempt(x, channel, path, first_byte_timeout_s)
            except Failure as ex:
                failure = ex
                if not self._fails_over(ex):
                    break
        raise failure or Failure(Code.NO_CAPACITY, "no available accounts")

    def after(self, x: Exchange, ex: ToldInAnswer) -> list[Channel]:
        """The channels that may still be tried after the last attempt told of an error."""
        assert x.channel is not None
        x.attempts[-1].code = ex.code
        late = self._clock.monotonic_s() - x.started_s >= self._settings.failover_s
        if late or not self._fails_over(ex):
            return []
        rest = x.channels[x.channels.index(x.channel) + 1 :]
        return rest[: max(self._settings.max_attempts - len(x.attempts), 0)]

    @staticmethod
    def _fails_over(ex: Failure) -> bool:
        if ex.code in (Code.TIMEOUT, Code.UNAVAILABLE, Code.INVALID_API_KEY):
            return False
        return ex.status == 0 or ex.status >= 500 or ex.status in FAILOVER_4XX

    def done(self, channel: Channel) -> None:
        """The call on `channel` is over."""
        self._in_flight[channel.name] -= 1

    def failed_late(self, channel: Channel, status: int) -> None:
        """The call broke after its 2xx head."""
        self._cooldowns.failed(channel.name, status, None)

    def _attempt(
        self, x: Exchange, channel: Channel, path: str, first_byte_timeout_s: float | None
    ) -> Call:
        assert x.view is not None
        assert x.parsed is not None
        assert x.price is not None
        x.channel = channel
        x.upstream_model = upstream_name(channel, x.price, x.parsed.model)
        x.upstream_status = 0
        attempt = Attempt(channel=channel.name, started_at=self._clock.now_us())
        x.attempts.append(attempt)
        started_s = self._clock.monotonic_s()
        self._in_flight[channel.name] = self._in_flight.get(channel.name, 0) + 1
        call: Call | None = None
        try:
            call = self._answered(x, attempt, channel, path, first_byte_timeout_s)
            return call
        except (Failure, ClientGone) as ex:
            attempt.code = ex.code if isinstance(ex, Failure) else Code.CLIENT_GONE
            raise
        finally:
            attempt.total_ms = round((self._clock.monotonic_s() - started_s) * 1000)
            if call is None:
                self.done(channel)

    def _answered(
        self,
        x: Exchange,
        attempt: Attempt,
        channel: Channel,
        path: str,
        first_byte_timeout_s: float | None,
    ) -> Call:
        """The call with the head of its 2xx answer. Raises Failure, ClientGone; then the call is
        released."""
        health = channel.name + path
        call: Call | None = None
        answered = False
        try:
            call = self._send(x, channel, path, first_byte_timeout_s)
            attempt.status = x.upstream_status = call.status
            x.upstream_request_id = attempt.upstream_request_id = request_id_of(call)
            if not 200 <= call.status < 300:
                raise self._refused(health, call)
            if _is_encoded(call):
                self._cooldowns.failed(health, 502, None)
                raise Failure(Code.UPSTREAM_ERROR, "the upstream sent a coding nobody asked for")
            self._cooldowns.ok(health)
            answered = True
            return call
        except Aborted as ex:
            raise cut_short(x) from ex
        except ConnectFailed as ex:
            self._gone(x)
            self._cooldowns.failed(health, 0, None)
            raise Failure(Code.UPSTREAM_ERROR, "the upstream cannot be reached") from ex
        except FirstByteTimeout as ex:
            self._cooldowns.failed(health, 504, None)
            raise Failure(Code.TIMEOUT, "the upstream did not answer in time") from ex
        except UpstreamBroken as ex:
            self._gone(x)
            self._cooldowns.failed(health, 502, None)
            raise Failure(Code.UPSTREAM_ERROR, "the upstream closed the connection") from ex
        finally:
            if call is not None and not answered:
                call.release()

    @staticmethod
    def _gone(x: Exchange) -> None:
        if x.watch is not None and x.watch.gone:
            raise ClientGone

    def _send(
        self, x: Exchange, channel: Channel, path: str, first_byte_timeout_s: float | None
    ) -> Call:
        assert x.view is not None
        assert x.key is not None
        assert x.parsed is not None
        path = path or x.dialect.upstream_path
        query = without_key(x.query)
        if query:
            path = f"{path}?{query}"
        if first_byte_timeout_s is None:
            first_byte_timeout_s = (
                channel.first_byte_timeout_s if x.parsed.stream else channel.total_timeout_s
            )
        return self._pool.request(
            x.view.targets[channel.name],
            b"POST",
            path.encode("latin-1"),
            upstream_lines(
                x.dialect, x.headers, x.view.credentials[channel.name], x.key.account_id
            ),
            x.dialect.upstream_body(x.body, x.parsed, x.upstream_model),
            connect_timeout_s=channel.connect_timeout_s,
            first_byte_timeout_s=first_byte_timeout_s,
            on_connected=x.connected,
        )

    def _refused(self, health: str, call: Call) -> Failure:
        """What a non-2xx answer becomes. The upstream's 401, 402 and 403 concern our account there
        and never reach the client; a redirect is not followed."""
        try:
            body = call.read_all(ERROR_BODY_MAX_BYTES, ERROR_BODY_S)
        except Aborted:
            raise
        except (IdleTimeout, UpstreamBroken):
            body = b""  # the status says enough
        if _is_encoded(call):
            body = b""
        retry_after_s = _seconds(call, b"retry-after")
        status = call.status
        if status in OURS_4XX:
            self._cooldowns.park(health)
            return Failure(Code.NO_CAPACITY, "no available accounts")
        if not 400 <= status < 600:
            return Failure(Code.UPSTREAM_ERROR, f"the upstream answered {status}")
        if status >= 500 or status == 429:
            self._cooldowns.failed(health, status, retry_after_s)
        code = Code.RATE_LIMIT_EXCEEDED if status == 429 else Code.UPSTREAM_ERROR
        return Failure(
            code,
            f"the upstream answered {status}",
            status=status,
            body=body,
            headers=call.headers,
            retry_after_s=retry_after_s,
        )


def cut_short(x: Exchange) -> Exception:
    """Why an upstream call was aborted: the client hung up, its key was revoked, else this worker
    is stopping."""
    if x.watch is not None and x.watch.gone:
        return ClientGone()
    if x.cut:
        return Failure(Code.INVALID_API_KEY, x.cut)
    return Failure(Code.UNAVAILABLE, "the gateway is stopping; try again")


def upstream_name(channel: Channel, model: ModelPrice, asked: str) -> str:
    """What the upstream calls the model: the operator's name for it when that differs from ours,
    else what the client wrote (a dated form stays as it is), but for the dots that some write into
    Claude's names and Anthropic knows nothing of."""
    mapped = channel.models[model.model]
    if mapped != model.model:
        return mapped
    return dashed(asked) if model.vendor == "anthropic" else asked


def without_key(query: str) -> str:
    """The query string without `key=...`, which may hold the gateway's own credential."""
    if "key=" not in query:
        return query
    return "&".join(part for part in query.split("&") if part.partition("=")[0] != "key")


def request_id_of(call: Call) -> str:
    for name, value in call.headers:
        if name in (b"request-id", b"x-request-id"):
            return value.decode("latin-1")[:128]
    return ""


def _is_encoded(call: Call) -> bool:
    """Whether the body is compressed although that was not asked for: neither the meter nor the
    client could read it."""
    return any(
        name == b"content-encoding" and value.strip().lower() not in (b"", b"identity")
        for name, value in call.headers
    )


def _seconds(call: Call, header: bytes) -> int | None:
    for name, value in call.headers:
        if name == header and value.strip().isdigit() and len(value.strip()) < 10:
            return int(value)
    return None
