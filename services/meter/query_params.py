"""Query parameters of the usage routes, checked. A wrong one is refused by its name."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from schemas.errors import Outcome
from services.core.errors import InvalidRequest
from services.meter.usage_queries import GROUP_KEYS, TIME_KEYS, Cursor

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000
MAX_WINDOW_US: Final = 90 * 86_400 * 1_000_000
DEFAULT_WINDOW_US: Final = 30 * 86_400 * 1_000_000

Params: TypeAlias = Mapping[str, Any]

_MAX_CHARS: Final = 1024
_JOB_NAMES: Final = ("task_", "video_")
_MAX_SECONDS: Final = 7_258_118_400  # the year 2200


def text(params: Params, name: str) -> str:
    """The parameter, empty when absent."""
    value: Any = params.get(name, "")
    if isinstance(value, list):  # falcon's reading of a repeated parameter
        raise InvalidRequest(f"{name} is given more than once", param=name)
    if len(value) > _MAX_CHARS:
        raise InvalidRequest(f"{name} is longer than {_MAX_CHARS} characters", param=name)
    return str(value)


def job_id(params: Params) -> str:
    """`job_id`, under any of the names that a job has."""
    value = text(params, "job_id")
    for name in _JOB_NAMES:
        if value.startswith(name):
            return "job_" + value.removeprefix(name)
    return value


def limit(params: Params) -> int:
    """`limit`, 1..1000, default 50."""
    value = text(params, "limit")
    if not value:
        return DEFAULT_LIMIT
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value) <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_LIMIT}", param="limit")
    return int(value)


def cursor(params: Params) -> Cursor | None:
    """`cursor`: what `next_cursor` of the page before said."""
    value = text(params, "cursor")
    if not value:
        return None
    try:
        return Cursor.parse(value)
    except ValueError as ex:
        raise InvalidRequest("cursor is not one that this API gave", param="cursor") from ex


def outcome(params: Params) -> str:
    """`outcome`: a word of the closed list, or empty."""
    value = text(params, "outcome")
    if value and value not in set(Outcome):
        words = ", ".join(Outcome)
        raise InvalidRequest(f"outcome must be one of {words}", param="outcome")
    return value


def moment_us(params: Params, name: str) -> int | None:
    """A date (`2026-05-25`), an ISO 8601 time (UTC when it names no offset) or Unix seconds, as
    microseconds; None when absent."""
    value = text(params, name).strip()
    if not value:
        return None
    if value.isascii() and value.isdecimal() and int(value) <= _MAX_SECONDS:
        return int(value) * 1_000_000
    try:
        when = datetime.fromisoformat(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0, round(when.timestamp() * 1_000_000))
    except (ValueError, OverflowError) as ex:
        message = f"{name} must be a date, an ISO 8601 time or Unix seconds"
        raise InvalidRequest(message, param=name) from ex


def window_us(params: Params, now_us: int) -> tuple[int, int | None]:
    """`since` (default 30 days before `until`) and `until` (None when absent: what happened up to
    now, by whichever clock), at most 90 days apart."""
    until_us = moment_us(params, "until")
    end_us = now_us if until_us is None else until_us
    since_us = moment_us(params, "since")
    since_us = max(0, end_us - DEFAULT_WINDOW_US) if since_us is None else since_us
    if since_us > end_us:
        raise InvalidRequest("since must not be after until", param="since")
    if end_us - since_us > MAX_WINDOW_US:
        raise InvalidRequest("the window must not be longer than 90 days", param="since")
    return since_us, until_us


def group_by(params: Params) -> tuple[str, ...]:
    """`group_by`: day (default), hour, model, api_key, combined with commas; the time first."""
    asked = [word.strip() for word in (text(params, "group_by") or "day").split(",")]
    for word in asked:
        if word not in GROUP_KEYS:
            words = ", ".join(GROUP_KEYS)
            raise InvalidRequest(f"group_by must be some of {words}", param="group_by")
    if len(set(asked) & set(TIME_KEYS)) > 1:
        raise InvalidRequest("group_by takes day or hour, not both", param="group_by")
    return tuple(key for key in GROUP_KEYS if key in asked)
