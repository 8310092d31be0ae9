"""Renders what the client gets instead of an answer: the vendor's shape, Codex's special cases."""

from typing import Any, Final

import falcon
import orjson

from schemas.errors import SHAPES, Code
from services.core.dialects.base import Dialect
from services.core.errors import Refusal
from services.core.shortfalls import WindowFull
from services.edge.exchange import Exchange

_MONEY: Final = frozenset({Code.INSUFFICIENT_BALANCE, Code.QUOTA_EXCEEDED})
_USAGE_LIMIT: Final = {"type": "usage_limit_reached", "plan_type": "tollgate"}

_GOOGLE_STATUS: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}


def render(
    resp: falcon.Response,
    dialect: Dialect,
    refusal: Refusal,
    request_id: str,
    x: Exchange | None = None,
    status: int | None = None,
) -> int:
    """Fills `resp` with the refusal and returns the status that went out: `status`, else the
    usual one of its code.

    Codex repeats 402 five times, so toward it a refusal for money is a 400 with the same body. It
    waits out any retry-after, so a full spend window gets the form that it shows and stops at."""
    status = status or SHAPES[refusal.code].status
    extra: dict[str, Any] | None = None
    retry_after_s = refusal.retry_after_s
    if x is not None and x.is_codex and dialect.name == "responses":
        if refusal.code in _MONEY:
            status = 400
        elif isinstance(refusal, WindowFull):
            extra = _USAGE_LIMIT | {"resets_at": refusal.window.resets_at_s}
            retry_after_s = None
    resp.data = dialect.render_error(
        refusal.code,
        refusal.message,
        request_id=request_id,
        param=refusal.param,
        status=status,
        extra=extra,
    )
    resp.status = status
    resp.content_type = "application/json"
    resp.set_header("request-id" if dialect.name == "anthropic" else "x-request-id", request_id)
    if retry_after_s is not None:
        resp.set_header("retry-after", str(retry_after_s))
    if dialect.name == "anthropic" and (refusal.code in _MONEY or isinstance(refusal, WindowFull)):
        resp.set_header("x-should-retry", "false")
    return status


def render_google(resp: falcon.Response, refusal: Refusal) -> None:
    """The refusal in Google's envelope, for callers of a Gemini path."""
    status = SHAPES[refusal.code].status
    name = _GOOGLE_STATUS.get(status, "INTERNAL")
    error = {"code": status, "message": refusal.message, "status": name}
    resp.data = orjson.dumps({"error": error})
    resp.status = status
    resp.content_type = "application/json"
