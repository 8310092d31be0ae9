"""The four closed lists: `status` (HTTP), `stage` (where), `code` (why), `outcome` (who pays)."""

from enum import StrEnum
from typing import Final, NamedTuple


class Stage(StrEnum):
    """Where a request ended."""

    ADMISSION = "admission"  # before any money was held
    ROUTING = "routing"  # no channel could take it
    UPSTREAM = "upstream"  # before the first byte to the client
    STREAM = "stream"  # after the first byte to the client
    GATEWAY = "gateway"  # our own fault: crash, disk, bug


class Outcome(StrEnum):
    """Who pays."""

    COMPLETED = "completed"  # billed whole
    CLIENT_ABORTED = "client_aborted"  # billed for the part sent
    BUDGET_CUT = "budget_cut"  # billed for the part sent; also when the key was revoked
    REFUSED = "refused"  # free: never admitted
    FAILED = "failed"  # free
    CLIENT_GONE = "client_gone"  # free: hung up before the first content
    ABANDONED = "abandoned"  # free: the worker died


BILLED: Final = frozenset({Outcome.COMPLETED, Outcome.CLIENT_ABORTED, Outcome.BUDGET_CUT})


class Code(StrEnum):
    """Why. The same word stands in OpenAI-shaped bodies, events, columns and the docs."""

    INVALID_PARAM = "invalid_param"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    UNSUPPORTED_MODEL = "unsupported_model"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    INVALID_API_KEY = "invalid_api_key"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    QUOTA_EXCEEDED = "quota_exceeded"
    PERMISSION_DENIED = "permission_denied"
    MODEL_NOT_IN_GROUP = "model_not_in_group"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_WITHOUT_PRICE = "model_without_price"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    TASK_NOT_FOUND = "task_not_found"
    JOB_NOT_FOUND = "job_not_found"
    DUPLICATE_OUT_TASK_ID = "duplicate_out_task_id"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    NOT_TERMINAL = "not_terminal"
    QUEUE_FULL = "queue_full"
    MAX_COST_EXCEEDED = "max_cost_exceeded"
    ARTIFACT_EXPIRED = "artifact_expired"
    CONTENT_POLICY_VIOLATION = "content_policy_violation"
    REQUEST_TOO_LARGE = "request_entity_too_large"
    UPGRADE_REQUIRED = "upgrade_required"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    CONCURRENCY_LIMIT = "concurrency_limit"
    NO_CAPACITY = "no_capacity"
    UNAVAILABLE = "unavailable"  # the gateway cannot bill now: outbox, disk or catalog
    INTERNAL_ERROR = "internal_error"
    UPSTREAM_ERROR = "upstream_error"  # non-2xx, error body or malformed reply
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_EMPTY = "upstream_empty"
    UPSTREAM_STREAM_ERROR = "upstream_stream_error"
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    ABANDONED = "abandoned"


class Shape(NamedTuple):
    """How a refusal of ours looks: HTTP status, OpenAI `type`, Anthropic `type`."""

    status: int
    openai_type: str
    anthropic_type: str


_BAD: Final = ("invalid_request_error", "invalid_request_error")
_API: Final = ("api_error", "api_error")
_MONEY: Final = ("permission_error", "permission_error")

SHAPES: Final[dict[Code, Shape]] = {
    Code.INVALID_PARAM: Shape(400, *_BAD),
    Code.CONTEXT_LENGTH_EXCEEDED: Shape(400, *_BAD),
    Code.UNSUPPORTED_MODEL: Shape(400, *_BAD),
    Code.UNSUPPORTED_FEATURE: Shape(400, *_BAD),
    Code.INVALID_API_KEY: Shape(401, "invalid_request_error", "authentication_error"),
    Code.INSUFFICIENT_BALANCE: Shape(402, *_MONEY),
    Code.QUOTA_EXCEEDED: Shape(402, *_MONEY),
    Code.PERMISSION_DENIED: Shape(403, *_MONEY),
    Code.MODEL_NOT_IN_GROUP: Shape(403, *_MONEY),
    Code.MODEL_NOT_FOUND: Shape(404, "invalid_request_error", "not_found_error"),
    Code.MODEL_WITHOUT_PRICE: Shape(404, "invalid_request_error", "not_found_error"),
    Code.NOT_FOUND: Shape(404, "invalid_request_error", "not_found_error"),
    Code.METHOD_NOT_ALLOWED: Shape(405, *_BAD),
    Code.CONFLICT: Shape(409, "conflict_error", "invalid_request_error"),
    Code.TASK_NOT_FOUND: Shape(404, "invalid_request_error", "not_found_error"),
    Code.JOB_NOT_FOUND: Shape(404, "invalid_request_error", "not_found_error"),
    Code.DUPLICATE_OUT_TASK_ID: Shape(409, *_BAD),
    Code.IDEMPOTENCY_MISMATCH: Shape(422, *_BAD),
    Code.NOT_TERMINAL: Shape(409, *_BAD),
    Code.QUEUE_FULL: Shape(429, "rate_limit_exceeded", "rate_limit_error"),
    Code.MAX_COST_EXCEEDED: Shape(402, *_MONEY),
    Code.ARTIFACT_EXPIRED: Shape(410, *_BAD),
    Code.CONTENT_POLICY_VIOLATION: Shape(451, *_BAD),
    Code.REQUEST_TOO_LARGE: Shape(413, "invalid_request_error", "request_too_large"),
    Code.UPGRADE_REQUIRED: Shape(426, *_BAD),
    Code.RATE_LIMIT_EXCEEDED: Shape(429, "rate_limit_exceeded", "rate_limit_error"),
    Code.CONCURRENCY_LIMIT: Shape(429, "rate_limit_exceeded", "rate_limit_error"),
    Code.NO_CAPACITY: Shape(503, *_API),
    Code.UNAVAILABLE: Shape(503, *_API),
    Code.INTERNAL_ERROR: Shape(500, *_API),
    Code.UPSTREAM_ERROR: Shape(502, *_API),
    Code.UPSTREAM_TRUNCATED: Shape(502, *_API),
    Code.UPSTREAM_EMPTY: Shape(502, *_API),
    Code.UPSTREAM_STREAM_ERROR: Shape(502, *_API),
    Code.TIMEOUT: Shape(504, *_API),
    Code.CLIENT_GONE: Shape(499, *_API),
    Code.ABANDONED: Shape(500, *_API),
}
