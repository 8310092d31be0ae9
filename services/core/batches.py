"""Batches of lines: their states, what a line may look like, and how a line's request is named."""

import hashlib
import re
from enum import StrEnum
from typing import Any, Final

import msgspec

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
MESSAGES: Final = "/v1/messages"
WINDOW_S: Final = 24 * 3600
KEEP_S: Final = range(3600, 2_592_000 + 1)  # how long a client may want a file kept, seconds
ERRORS_MAX: Final = 100  # of an input file are told
_NAME_MAX: Final = 512
_MESSAGE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VARIANT: Final = "89ab"
_AGAIN: Final = frozenset({429, 503, 529})
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_INDEX: Final = re.compile(r"\[(\d+)\]")


class Phase(StrEnum):
    """Of a batch. The last four are its ends."""

    VALIDATING = "validating"
    RUNNING = "running"
    FINISHING = "finishing"  # every line has ended; its files are made
    COMPLETED = "completed"
    FAILED = "failed"  # its input is none; nothing was sent
    EXPIRED = "expired"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.EXPIRED, Phase.CANCELLED})


class LineState(StrEnum):
    """Of a line. The last four are its ends; `sending` is committed before anything is sent."""

    QUEUED = "queued"
    SENDING = "sending"
    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELED = "canceled"
    EXPIRED = "expired"


LINE_ENDS: Final = (
    LineState.SUCCEEDED,
    LineState.ERRORED,
    LineState.CANCELED,
    LineState.EXPIRED,
)


class Lost(StrEnum):
    """Why a line that was sent has no answer: what the books know of its request."""

    UNKNOWN = "answer_lost"
    CHARGED = "answer_charged"
    INTERRUPTED = "interrupted"  # it had ended without an answer, free
    FAILED = "request_failed"  # free


class WrongLine(ValueError):
    """A line that cannot be sent. `param` is the path of the wrong field, empty for the line."""

    def __init__(self, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Message(msgspec.Struct):
    custom_id: str
    params: msgspec.Raw


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None


_line = msgspec.json.Decoder(_Line)
_message = msgspec.json.Decoder(_Message)
_body = msgspec.json.Decoder(_Body)


def check_line(raw: bytes, endpoint: str) -> str:
    """The `custom_id` of one line of an OpenAI input file. Raises WrongLine."""
    found: _Line = _decoded(_line, raw)
    if not 0 < len(found.custom_id) <= _NAME_MAX or "\0" in found.custom_id:
        message = f"custom_id: write 1 to {_NAME_MAX} characters, none of them NUL"
        raise WrongLine("invalid_custom_id", message, "custom_id")
    if found.method != "POST":
        raise WrongLine("invalid_method", "method: only POST can be sent", "method")
    if found.url != endpoint:
        raise WrongLine("mismatched_url", f"url: this batch is for {endpoint}", "url")
    _check_body(found.body, "body")
    return found.custom_id


def check_message(raw: bytes) -> str:
    """The `custom_id` of one of Anthropic's requests. Raises WrongLine."""
    found: _Message = _decoded(_message, raw)
    if _MESSAGE_NAME.fullmatch(found.custom_id) is None:
        message = "custom_id: write 1 to 64 letters, digits, hyphens and underscores"
        raise WrongLine("invalid_request", message, "custom_id")
    _check_body(found.params, "params")
    return found.custom_id


def body_of(raw: bytes, endpoint: str) -> bytes:
    """What a checked line has sent, byte for byte."""
    if endpoint == MESSAGES:
        return bytes(_message.decode(raw).params)
    return bytes(_line.decode(raw).body)


def request_id(batch_id: str, line: int, try_no: int, created_at: int) -> str:
    """The id of one try of a line: a UUIDv7 of the batch's time, always the same for the same
    four."""
    digest = hashlib.sha256(f"{batch_id}/{line}/{try_no}".encode()).hexdigest()
    ms = f"{created_at // 1000:012x}"
    variant = _VARIANT[int(digest[3], 16) & 3]
    return f"{ms[:8]}-{ms[8:]}-7{digest[:3]}-{variant}{digest[4:7]}-{digest[7:19]}"


def is_worth_repeating(endpoint: str, status: int, code: str) -> bool:
    """Whether an answer says that the same line may succeed later. A job that found no channel
    stays what it is under its name."""
    if endpoint == "/v1/embeddings" and code == "no_capacity":
        return False
    return status in _AGAIN


def as_one_line(body: bytes) -> msgspec.Raw:
    """An answer's JSON without line breaks, numbers and texts as they were written; what is no
    JSON, or is nested too deeply, becomes an error that quotes it."""
    try:
        msgspec.json.decode(body)
        return msgspec.Raw(msgspec.json.format(body, indent=-1))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        quoted = {"error": {"message": body[:2000].decode("utf-8", "replace")}}
        return msgspec.Raw(msgspec.json.encode(quoted))


def _check_body(raw: msgspec.Raw, where: str) -> None:
    try:
        found: _Body = _decoded(_body, bytes(raw))
    except WrongLine as ex:
        param = f"{where}.{ex.param}" if ex.param else where
        raise WrongLine(ex.code, f"{where}.{ex.message}", param) from ex
    if found.stream:
        message = f"{where}.stream: answers of a batch are not streamed"
        raise WrongLine("invalid_request", message, f"{where}.stream")


def _decoded(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as ex:
        what, _, path = str(ex).partition(" - at `$")
        path = _INDEX.sub(r".\1", path.rstrip("`")).lstrip(".")
        missing = _MISSING.match(what)
        if missing is None:
            raise WrongLine("invalid_type", f"{path}: {what}" if path else what, path) from ex
        path = f"{path}.{missing[1]}" if path else missing[1]
        raise WrongLine("missing_required_parameter", f"{path}: missing", path) from ex
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise WrongLine("invalid_json_line", f"it is not valid JSON: {ex}") from ex
    except RecursionError:
        raise WrongLine("invalid_json_line", "it is nested too deeply") from None
