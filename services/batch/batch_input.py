"""Reads the lines of a batch's input, wherever they came from: one JSON object a line."""

from typing import Any, BinaryIO, NamedTuple

from schemas.errors import Code
from services.backends.objects.port import Draft
from services.backends.sql.batch_records import Batch, Line, NewLine
from services.backends.sql.uploads import JOB_INPUT, JSONL
from services.batch.parts import Parts
from services.core.batches import (
    ERRORS_MAX,
    WINDOW_S,
    WrongLine,
    body_of,
    check_line,
    check_message,
)
from services.core.errors import Refusal

_KEEP_S = 2 * WINDOW_S  # longer than any batch: it is let go when its batch has ended


class Read(NamedTuple):
    """The lines, or what is wrong with them, each as OpenAI tells it."""

    lines: list[NewLine]
    errors: list[dict[str, Any]]


def keep_lines(parts: Parts, account_id: str, size: int, sha256: str) -> str:
    """Keeps stored bytes for as long as their batch runs, whatever becomes of the file that they
    came from; returns the upload's id."""
    made = parts.uploads.add(account_id, "lines", JOB_INPUT, JSONL, size, sha256, None, _KEEP_S)
    return made.id


def store(parts: Parts, lines: list[bytes]) -> Draft:
    """Stores lines that came in a body. Raises StoreUnavailable."""
    draft = parts.store.receive((line + b"\n" for line in lines), 1 << 40)
    try:
        parts.store.keep(draft)
    finally:
        parts.store.drop(draft)
    return draft


def read_lines(parts: Parts, held: Batch) -> Read:
    """All lines, checked. Raises StoreUnavailable."""
    with _opened(parts, held) as file:
        return _read(parts, held, file)


def _read(parts: Parts, held: Batch, file: BinaryIO) -> Read:
    limit = parts.config.edge.max_body_bytes
    found = Read([], [])
    names: set[str] = set()
    place = number = 0
    while len(found.errors) < ERRORS_MAX and (raw := file.readline(limit + 1)):
        number += 1
        start, place = place, place + len(raw)
        if not raw.strip():
            continue
        if len(found.lines) == parts.config.batch.lines_max:
            most = f"a batch has at most {parts.config.batch.lines_max} lines"
            found.errors.append(_told(WrongLine("too_many_tasks", most), None))
            break
        try:
            found.lines.append(NewLine(_name(held, raw, limit, names), start, len(raw)))
        except WrongLine as ex:
            found.errors.append(_told(ex, number))
    if number == 0 or not (found.lines or found.errors):
        found.errors.append(_told(WrongLine("empty_file", "the input has no lines"), None))
    return found


def _name(held: Batch, raw: bytes, limit: int, names: set[str]) -> str:
    if len(raw) > limit:
        raise WrongLine("line_too_large", f"the line is larger than {limit} bytes")
    name = check_message(raw) if held.is_messages else check_line(raw, held.endpoint)
    if name in names:
        raise WrongLine("duplicate_custom_id", f"custom_id: {name!r} is used twice", "custom_id")
    names.add(name)
    return name


def body_at(parts: Parts, held: Batch, line: Line) -> bytes:
    """What a line has sent. Raises StoreUnavailable."""
    with _opened(parts, held, line.place, line.place + line.bytes - 1) as file:
        return body_of(file.read(line.bytes), held.endpoint)


def _opened(parts: Parts, held: Batch, first: int = 0, last: int | None = None) -> BinaryIO:
    found = parts.uploads.get(held.account_id, held.lines_id)
    if found is None:
        raise Refusal(Code.NOT_FOUND, f"the lines of batch {held.id} are gone")
    return parts.store.open(found.sha256, first, last)


def _told(ex: WrongLine, line: int | None) -> dict[str, Any]:
    return {"code": ex.code, "message": ex.message, "param": ex.param or None, "line": line}
