"""The edge's routes."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import falcon

from schemas.errors import Code
from services.backends import telemetry
from services.backends.outbox import OutboxFailed, Sealed
from services.core.dialects import DIALECTS
from services.core.dialects.base import Dialect
from services.core.errors import Refusal
from services.core.ids import uuid7_text
from services.edge.forward import ForwardResource
from services.edge.headers import accounting
from services.edge.jobs.routes import add_job_routes
from services.edge.manage.desk import Desk
from services.edge.manage.routes import add_routes
from services.edge.refuse import render, render_google
from services.edge.resources.account import (
    AccountResource,
    BalanceResource,
    PricingResource,
    TransactionsResource,
)
from services.edge.resources.count_tokens import CountTokensResource
from services.edge.resources.health import (
    LiveResource,
    MetricsResource,
    ReadyResource,
    RootResource,
)
from services.edge.resources.models import ModelsResource
from services.edge.resources.receipts import ReceiptKeysResource
from services.edge.resources.text import TextResource
from services.edge.worker import Worker

log = telemetry.get_logger()

_OURS: Final = ("/v1/", "/api/", "/v1beta/", "/healthz", "/readyz", "/metrics")
_OPENAI_SHAPED: Final = (
    *("/v1/chat/", "/v1/tasks/", "/v1/jobs", "/v1/files", "/v1/artifacts/", "/v1/webhooks/"),
    *("/v1/images/", "/v1/audio/", "/v1/videos", "/v1/embeddings", "/v1/rerank", "/api/"),
    "/v1/batches",
)
_GOOGLE_SHAPED: Final = "/v1beta/"
_PREFIXED: Final = re.compile(r"^(/.+?)(/(?:api/)?v1(?:beta)?/.*)$")


class PathPrefix:
    """WSGI: serves every route also below a prefix, so that a base URL such as
    `https://host/anthropic` works. A bare prefix is the root."""

    def __init__(self, app: falcon.App) -> None:
        self._app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith(_OURS):
            match = _PREFIXED.match(path)
            if match is not None:
                environ["SCRIPT_NAME"], environ["PATH_INFO"] = match.groups()
            elif path.strip("/") in ("anthropic", "openai"):
                environ["PATH_INFO"] = "/"
        body: Iterable[bytes] = self._app(environ, start_response)
        return body


def create_routes(worker: Worker, desk: Desk) -> falcon.App:
    """The falcon app over one worker's dependencies; `desk` is the management's."""
    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = True
    for dialect in DIALECTS.values():
        app.add_route(dialect.path, TextResource(worker, dialect))
    app.add_route("/v1/messages/count_tokens", CountTokensResource(worker))
    models = ModelsResource(worker)
    app.add_route("/v1/models", models)
    app.add_route("/v1/models/{model_id}", models)
    app.add_route("/api/v1/me/account", AccountResource(worker))
    app.add_route("/v1/balance", BalanceResource(worker))
    app.add_route("/api/v1/me/billing/transactions", TransactionsResource(worker))
    app.add_route("/api/pricing", PricingResource(worker))
    app.add_route("/v1/receipts/keys", ReceiptKeysResource(worker))
    for path in ("/v1/usage", "/api/v1/usage", "/api/v1/me/usage", "/v1/receipts/{request_id}"):
        app.add_route(path, ForwardResource(worker, path))
    add_routes(app, worker, desk)
    add_job_routes(app, worker)
    app.add_route("/", RootResource())
    app.add_route("/healthz", LiveResource())
    app.add_route("/readyz", ReadyResource(worker))
    app.add_route("/metrics", MetricsResource(worker))
    app.add_sink(_unknown_route, "/")
    app.add_error_handler(Exception, _crashed)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler((Sealed, OutboxFailed), lambda req, resp, ex, params: worker.die(str(ex)))
    return app


def dialect_of(req: falcon.Request) -> Dialect:
    """Whose error shape a caller of this path expects: the path says it, else the headers."""
    if req.path.startswith("/v1/messages"):
        return DIALECTS["anthropic"]
    if req.path.startswith("/v1/responses"):
        return DIALECTS["responses"]
    if req.get_header("anthropic-version") is None or req.path.startswith(_OPENAI_SHAPED):
        return DIALECTS["chat"]
    return DIALECTS["anthropic"]


def _answer(
    req: falcon.Request, resp: falcon.Response, refusal: Refusal, request_id: str = ""
) -> None:
    request_id = request_id or uuid7_text()
    if req.path.startswith(_GOOGLE_SHAPED):
        render_google(resp, refusal)
    else:
        render(resp, dialect_of(req), refusal, request_id)
    resp.set_headers(accounting(remaining_nano=0, estimate_credits=0, request_id=request_id))


def _unknown_route(req: falcon.Request, resp: falcon.Response) -> None:
    _answer(req, resp, Refusal(Code.NOT_FOUND, f"not_found no route {req.method} {req.path}"))


def _http_error(
    req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError, params: dict[str, Any]
) -> None:
    code = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}.get(
        ex.status_code, Code.INVALID_PARAM if ex.status_code < 500 else Code.INTERNAL_ERROR
    )
    _answer(req, resp, Refusal(code, ex.description or ex.title or str(code)))
    resp.set_headers(ex.headers or {})  # `allow`


def _crashed(
    req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]
) -> None:
    request_id = uuid7_text()
    log.error(
        "request_crashed", request_id=request_id, method=req.method, path=req.path, exc_info=ex
    )
    _answer(req, resp, Refusal(Code.INTERNAL_ERROR, "internal error"), request_id)
