"""The HTTP side of the analytics process: usage for accounts, SQL for the operator.

Only the edge and the CLI reach it, over a private unix socket (or TCP, for an edge elsewhere), each
call with a signed identity; an account sees its own rows and nothing else. Errors have OpenAI's
envelope. Routes:

    GET  /v1/usage                        rows, newest first
    GET  /api/v1/me/usage, /api/v1/usage  buckets of what was billed; with `limit` or
                                          `request_id`, billed rows
    GET  /v1/receipts/{request_id}        a signed receipt; /v1/receipts/keys the public keys
    POST /internal/sql {"sql"}            one reading statement of the operator
    GET  /internal/health
"""

import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

import falcon
import msgspec

from schemas.errors import SHAPES, Code
from services.backends.clickhouse.client import (
    ClickHouseUnavailable,
    QueryLimits,
    QueryRefused,
)
from services.backends.clickhouse.store import RequestStore
from services.backends.clock import Clock
from services.backends.identity import HEADER, Identity, identities
from services.backends.signed import NotAuthentic
from services.backends.telemetry import get_logger, metric
from services.core.errors import InvalidRequest, Refusal
from services.meter import query_params as params
from services.meter.receipts import ReceiptKeysRoute, ReceiptRoute, Receipts
from services.meter.sql_scope import SqlRefused, reading_statement
from services.meter.usage_queries import (
    Filter,
    TooManyBuckets,
    usage_buckets,
    usage_items,
    usage_rows,
)

FindKey = Callable[[str, str], str | None]
_MAX_BODY_BYTES: Final = 256 * 1024
_SAFE_INT: Final = 1 << 63


class _SqlBody(msgspec.Struct):
    sql: str


def create_app(
    store: RequestStore,
    secret: bytes,
    clock: Clock,
    *,
    find_key: FindKey | None = None,
    limits: QueryLimits = QueryLimits(),
    receipts: Receipts | None = None,
) -> falcon.App:
    """The WSGI application. `find_key(account_id, masked)` gives the id of the account's key that
    is shown so (`sk-toll-...****1234`), or None."""
    callers = _Callers(secret, clock)
    buckets = BucketsResource(store, callers, clock, find_key)
    app = falcon.App(middleware=[_Count()])
    app.add_route("/v1/usage", RowsResource(store, callers))
    app.add_route("/api/v1/me/usage", buckets)
    app.add_route("/api/v1/usage", buckets)
    if receipts is not None:
        app.add_route("/v1/receipts/keys", ReceiptKeysRoute(receipts))
        app.add_route("/v1/receipts/{request_id}", ReceiptRoute(receipts, callers.account))
    app.add_route("/internal/sql", SqlResource(store, callers, limits))
    app.add_route("/internal/health", HealthResource(store, callers))
    app.add_error_handler(Exception, _on_exception)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(ClickHouseUnavailable, _on_unavailable)
    app.add_error_handler(Refusal, _on_refusal)
    return app


class RowsResource:
    """GET /v1/usage."""

    def __init__(self, store: RequestStore, callers: "_Callers") -> None:
        self._store = store
        self._callers = callers

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        asked = req.params
        chosen = Filter(
            self._callers.account(req),
            since_us=params.moment_us(asked, "since"),
            until_us=params.moment_us(asked, "until"),
            model=params.text(asked, "model"),
            api_key_id=params.text(asked, "api_key_id"),
            request_id=params.text(asked, "request_id"),
            session_id=params.text(asked, "session_id"),
            job_id=params.job_id(asked),
            outcome=params.outcome(asked),
        )
        answer = usage_rows(
            self._store, chosen, limit=params.limit(asked), cursor=params.cursor(asked)
        )
        resp.data = msgspec.json.encode(answer)


class BucketsResource:
    """GET /api/v1/me/usage and its alias."""

    def __init__(
        self,
        store: RequestStore,
        callers: "_Callers",
        clock: Clock,
        find_key: FindKey | None,
    ) -> None:
        self._store = store
        self._callers = callers
        self._clock = clock
        self._find_key = find_key

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        asked = req.params
        account_id = self._callers.account(req)
        as_rows = "limit" in asked or "request_id" in asked
        since_us: int | None
        since_us, until_us = params.window_us(asked, self._clock.now_us())
        if as_rows and "since" not in asked and "until" not in asked:
            since_us = None
        chosen = Filter(
            account_id,
            since_us=since_us,
            until_us=until_us,
            model=params.text(asked, "model"),
            api_key_id=self._key_id(account_id, asked),
            request_id=params.text(asked, "request_id"),
            job_id=params.job_id(asked),
        )
        if as_rows:
            answer = usage_items(
                self._store, chosen, limit=params.limit(asked), cursor=params.cursor(asked)
            )
        else:
            answer = self._buckets(chosen, params.group_by(asked))
        resp.data = msgspec.json.encode(answer)

    def _buckets(self, chosen: Filter, group_by: tuple[str, ...]) -> dict[str, Any]:
        try:
            return usage_buckets(self._store, chosen, group_by)
        except TooManyBuckets as ex:
            raise InvalidRequest(str(ex), param="group_by") from ex

    def _key_id(self, account_id: str, asked: dict[str, str]) -> str:
        """`api_key_id`, or `api_key` as an id or in its masked form."""
        named = params.text(asked, "api_key_id") or params.text(asked, "api_key")
        if "*" not in named:
            return named
        found = self._find_key(account_id, named) if self._find_key is not None else None
        if found is None:
            raise InvalidRequest("no key of this account is shown so", param="api_key")
        return found


class SqlResource:
    """POST /internal/sql: one reading statement within limits."""

    def __init__(self, store: RequestStore, callers: "_Callers", limits: QueryLimits) -> None:
        self._store = store
        self._callers = callers
        self._limits = limits

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._callers.operator(req)
        body = req.bounded_stream.read(_MAX_BODY_BYTES + 1)
        if len(body) > _MAX_BODY_BYTES:
            raise InvalidRequest("the body is too large", code=Code.REQUEST_TOO_LARGE)
        try:
            asked = msgspec.json.decode(body, type=_SqlBody)
            found = self._store.ask(reading_statement(asked.sql), self._limits)
        except (msgspec.DecodeError, UnicodeDecodeError) as ex:
            raise InvalidRequest(f"the body is not {{'sql': text}}: {ex}") from ex
        except (SqlRefused, QueryRefused) as ex:
            raise InvalidRequest(str(ex), param="sql") from ex
        rows = [[plain(value) for value in row] for row in found.rows]
        resp.data = msgspec.json.encode(
            {"columns": found.columns, "types": found.types, "rows": rows}
        )


class HealthResource:
    """GET /internal/health: 200 when a statement is answered, 503 otherwise."""

    def __init__(self, store: RequestStore, callers: "_Callers") -> None:
        self._store = store
        self._callers = callers

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._callers.operator(req)
        self._store.clickhouse.select("SELECT 1")
        resp.data = msgspec.json.encode(
            {"status": "ok", "embedded": self._store.clickhouse.embedded}
        )


class _Callers:
    """Reads the signed identity of a call."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._identities = identities(secret)
        self._clock = clock

    def account(self, req: falcon.Request) -> str:
        """The account whose usage may be seen. The operator signs for the account it means."""
        caller = self._caller(req)
        if caller.is_operator:
            raise Refusal(Code.PERMISSION_DENIED, "usage is read for an account")
        return caller.account_id

    def operator(self, req: falcon.Request) -> None:
        if not self._caller(req).is_operator:
            raise Refusal(Code.PERMISSION_DENIED, "this is for the operator")

    def _caller(self, req: falcon.Request) -> Identity:
        try:
            return self._identities.verify(req.get_header(HEADER), self._clock.now_us())
        except NotAuthentic as ex:
            raise Refusal(Code.INVALID_API_KEY, str(ex)) from ex


class _Count:
    """Counts answers by route and status."""

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        route = req.uri_template or "unknown"
        metric("tollgate_queries_total").labels(route, str(resp.status_code)).inc()


def plain(value: Any) -> Any:
    """A ClickHouse value as JSON has it: exact numbers too long for JSON become text, times
    ISO 8601 in UTC, NaN and infinities null."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -_SAFE_INT <= value < _SAFE_INT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat() + "Z" if not value.utcoffset() else str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _error(
    resp: falcon.Response, status: int, code: Code, message: str, param: str | None = None
) -> None:
    error = {"type": SHAPES[code].openai_type, "code": code, "message": message, "param": param}
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode({"error": error})


def _on_refusal(
    req: falcon.Request, resp: falcon.Response, ex: Refusal, args: dict[str, Any]
) -> None:
    _error(resp, ex.status, ex.code, ex.message, ex.param)


def _on_unavailable(
    req: falcon.Request, resp: falcon.Response, ex: ClickHouseUnavailable, args: dict[str, Any]
) -> None:
    get_logger().warning("query_unavailable", path=req.path, error=str(ex))
    message = "usage cannot be read now; billing is not affected"
    _error(resp, SHAPES[Code.UNAVAILABLE].status, Code.UNAVAILABLE, message)


def _on_http_error(
    req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError, args: dict[str, Any]
) -> None:
    codes = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
    code = codes.get(ex.status_code, Code.INVALID_PARAM)
    _error(resp, ex.status_code, code, ex.description or ex.title or "no such route")


def _on_exception(
    req: falcon.Request, resp: falcon.Response, ex: Exception, args: dict[str, Any]
) -> None:
    get_logger().error("query_failed", path=req.path, error=repr(ex), exc_info=ex)
    _error(resp, 500, Code.INTERNAL_ERROR, "the query failed; the log says why")
