"""What the two OpenAI dialects share: the error envelope, headers, and lifetimes of caches."""

from typing import Any, Final

import msgspec

from schemas.errors import SHAPES, Code

_TYPE_BY_STATUS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_exceeded",
}
_HEADERS: Final = frozenset(
    {
        "accept",
        "content-type",
        "conversation_id",  # session_id and this one: older Codex builds
        "idempotency-key",
        "openai-beta",
        "originator",
        "session-id",
        "session_id",
        "thread-id",
        "x-client-request-id",
    }
)
_PREFIXES: Final = ("x-codex-", "x-openai-internal-")


def error_object(
    code: Code, message: str, *, param: str | None = None, status: int | None = None
) -> dict[str, Any]:
    """The `error` object of OpenAI's envelope."""
    kind = SHAPES[code].openai_type
    if code is Code.UPSTREAM_ERROR and status is not None:
        kind = _TYPE_BY_STATUS.get(status, kind)
    return {"message": message, "type": kind, "param": param, "code": code.value}


class OpenAI:
    """What both dialects answer alike."""

    def render_error(
        self,
        code: Code,
        message: str,
        *,
        request_id: str,
        param: str | None = None,
        status: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        error = error_object(code, message, param=param, status=status)
        return msgspec.json.encode({"error": error | (extra or {})})

    def is_upstream_header(self, name: str) -> bool:
        return name in _HEADERS or name.startswith(_PREFIXES)


def keeps_cache_long(*options: msgspec.Raw) -> bool:
    """Whether a cache option asks for more than the 30 minutes of the short lifetime."""
    return any(b"12h" in bytes(raw) or b"24h" in bytes(raw) for raw in options)
