"""Answers of lines: stored as they come, and put together into the batch's files at its end.

A stored answer is one JSON line that says whose it is, and the body behind it: no two are alike, so
that letting one go never takes another's.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from services.backends.http.client import Reply
from services.backends.sql.batch_claims import BatchClaims
from services.backends.sql.batch_records import Batch, Line
from services.backends.sql.uploads import (
    BATCH_OUTPUT,
    JSONL,
    MESSAGE_RESULTS,
    Upload,
    new_upload,
)
from services.batch.batch_tally import Tally
from services.batch.parts import Parts
from services.core.batches import LINE_ENDS, LineState, Lost, as_one_line

REQUEST_HEADER: Final = "x-tollgate-request-id"
_SIZE_MAX: Final = 1 << 40
_PAGE: Final = 200
_FAILED: Final = tuple(each for each in LINE_ENDS if each is not LineState.SUCCEEDED)
_WHY: Final = {
    LineState.EXPIRED: ("batch_expired", "This line was not sent before its batch expired."),
    LineState.CANCELED: ("batch_cancelled", "This line was not sent before its batch was ended."),
}
_STOPPED: Final = "The gateway was stopped while it served this line"
_LOST: Final = {
    Lost.UNKNOWN: (
        "answer_lost",
        f"{_STOPPED}; its answer is lost. It is not sent again by itself; the usage of its request "
        "tells whether it was charged.",
    ),
    Lost.CHARGED: (
        "answer_lost",
        f"{_STOPPED}; its answer is lost. It was charged, and is not sent again by itself.",
    ),
    Lost.INTERRUPTED: (
        "interrupted",
        f"{_STOPPED}, before it had an answer. It was not charged, and is not sent again by "
        "itself.",
    ),
    Lost.FAILED: (
        "request_failed",
        "The request of this line failed; the gateway was stopped before it told why. It was not "
        "charged, and is not sent again by itself.",
    ),
}


class _Head(msgspec.Struct):
    batch: str
    line: int
    request_id: str


def keep_answer(parts: Parts, line: Line, reply: Reply) -> str:
    """Stores the answer of a line; its hash. Raises StoreUnavailable."""
    head = _Head(line.batch_id, line.no, reply.headers.get(REQUEST_HEADER, ""))
    draft = parts.store.receive((msgspec.json.encode(head), b"\n", reply.body), _SIZE_MAX)
    try:
        parts.store.keep(draft)
    finally:
        parts.store.drop(draft)
    return draft.sha256


def make_files(
    parts: Parts, claims: BatchClaims, held: Batch
) -> tuple[Upload | None, Upload | None, Tally]:
    """The batch's file of answers and, of OpenAI's, that of what failed (None: it would be empty);
    what its answers used. Raises StoreUnavailable."""
    tally = Tally()
    if held.is_messages:
        return _file(parts, claims, held, LINE_ENDS, MESSAGE_RESULTS, "results", tally), None, tally
    good = (LineState.SUCCEEDED,)
    return (
        _file(parts, claims, held, good, BATCH_OUTPUT, "output", tally),
        _file(parts, claims, held, _FAILED, BATCH_OUTPUT, "error", Tally()),
        tally,
    )


def _file(
    parts: Parts,
    claims: BatchClaims,
    held: Batch,
    states: Sequence[LineState],
    purpose: str,
    name: str,
    tally: Tally,
) -> Upload | None:
    draft = parts.store.receive(_lines(parts, claims, held, states, tally), _SIZE_MAX)
    try:
        if not draft.size:
            return None
        parts.store.keep(draft)
    finally:
        parts.store.drop(draft)
    return new_upload(
        held.account_id,
        f"batch_{held.id}_{name}.jsonl",
        purpose,
        JSONL,
        draft.size,
        draft.sha256,
        None,
        claims.now_us(),
        held.keep_s,
    )


def _lines(
    parts: Parts, claims: BatchClaims, held: Batch, states: Sequence[LineState], tally: Tally
) -> Iterator[bytes]:
    shown = _message_result if held.is_messages else _result
    after = 0
    while page := claims.page(held, states, after, _PAGE):
        for line in page:
            answer = _answer(parts, line)
            if answer is not None and line.state is LineState.SUCCEEDED:
                tally.add(bytes(answer[1]))
            yield msgspec.json.encode(shown(line, answer)) + b"\n"
        after = page[-1].no


def _answer(parts: Parts, line: Line) -> tuple[str, msgspec.Raw] | None:
    """Request id and body; None without an answer."""
    if not line.answer:
        return None
    with parts.store.open(line.answer) as file:
        head = msgspec.json.decode(file.readline(), type=_Head)
        return head.request_id, as_one_line(file.read())


def _result(line: Line, answer: tuple[str, msgspec.Raw] | None) -> dict[str, Any]:
    """As OpenAI's files have it."""
    found: dict[str, Any] = {
        "id": f"batch_req_{line.batch_id}_{line.no}",
        "custom_id": line.custom_id,
        "response": None,
        "error": None,
    }
    if answer is None:
        code, message = _why(line)
        return found | {"error": {"code": code, "message": message}}
    request_id, body = answer
    told = {"status_code": line.status, "request_id": request_id, "body": body}
    return found | {"response": told}


def _message_result(line: Line, answer: tuple[str, msgspec.Raw] | None) -> dict[str, Any]:
    """As Anthropic's results have it."""
    result: dict[str, Any] = {"type": line.state.value}
    if line.state is LineState.SUCCEEDED and answer is not None:
        result["message"] = answer[1]
    elif line.state is LineState.ERRORED:
        result["error"] = _message_error(line, answer)
    return {"custom_id": line.custom_id, "result": result}


def _why(line: Line) -> tuple[str, str]:
    """Code and message of a line without an answer."""
    return _LOST[Lost(line.code)] if line.state is LineState.ERRORED else _WHY[line.state]


def _message_error(line: Line, answer: tuple[str, msgspec.Raw] | None) -> Any:
    if answer is not None:
        told = msgspec.json.decode(answer[1])
        if isinstance(told, dict) and told.get("type") == "error":
            return answer[1]
    if answer is not None:
        code, message = "upstream_error", bytes(answer[1])[:2000].decode("utf-8", "replace")
    else:
        code, message = _why(line)
    error = {"type": "api_error", "message": f"{code}: {message}"}
    return {"type": "error", "error": error, "request_id": answer[0] if answer else None}
