"""Poison: what an event must be before the books take it, and the limits on what they refuse.

A refused event is kept whole in `dead_event`, in the transaction that moves the position past it,
so that its neighbours flow. Too many of them mean a bad producer or a bad build of ours, and then
the sink stops instead of filling the table.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from schemas.events import VERSION, AnyEvent, decode

_DAY_US: Final = 86_400 * 1_000_000
_BODY_MAX_BYTES: Final = 1024 * 1024
_RECENT: Final = 2000
_RECENT_MIN: Final = 200
_NO_ID: Final = "sha256:"
UNREADABLE: Final = "unreadable: "  # how the detail of what could not be read begins
_NUL: Final = b"\\u0000"


class Reason(StrEnum):
    """Why an event was refused: a closed list, and the values of `dead_event.reason`."""

    BAD_JSON = "bad_json"
    BAD_SCHEMA = "bad_schema"
    UNKNOWN_VERSION = "unknown_version"
    HASH_CONFLICT = "hash_conflict"  # the event_id or the request was booked with other content
    OUT_OF_RANGE = "out_of_range"
    FUTURE_CLOCK = "future_clock"
    TOO_OLD = "too_old"
    UNKNOWN_ACCOUNT = "unknown_account"
    PRICE_MISMATCH = "price_mismatch"
    UNKNOWN_PRICE_VERSION = "unknown_price_version"
    LEASE_OVERDRAWN = "lease_overdrawn"
    UNKNOWN_LEASE = "unknown_lease"
    LATE = "late"  # of an incarnation that was declared lost


class Poison(Exception):
    """The event cannot be booked; put it into `dead_event`. `event` when it could be read."""

    def __init__(self, reason: Reason, detail: str, event: AnyEvent | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.event = event


class _Head(msgspec.Struct):
    event_id: str = ""
    v: int = VERSION


_head = msgspec.json.Decoder(_Head)


def body_hash(body: bytes) -> str:
    """SHA-256 of the event's bytes, hex."""
    return hashlib.sha256(body).hexdigest()


def event_id_of(body: bytes) -> str:
    """The event_id, or `sha256:` and the hash of bytes that hold none."""
    try:
        found = _head.decode(body).event_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = ""
    if found and len(found) <= 128 and "\0" not in found:
        return found
    return _NO_ID + hashlib.sha256(body).hexdigest()


def read_event(body: bytes) -> AnyEvent:
    """The event in `body`. Raises Poison."""
    if len(body) > _BODY_MAX_BYTES:
        raise Poison(Reason.OUT_OF_RANGE, f"{len(body)} bytes")
    try:
        event = decode(body)
    except msgspec.ValidationError as ex:
        raise Poison(_reason_of(body, str(ex)), str(ex)) from ex
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise Poison(Reason.BAD_JSON, str(ex)) from ex
    if event.v != VERSION:
        raise Poison(Reason.UNKNOWN_VERSION, f"v = {event.v}")
    if _NUL in body and _holds_nul(msgspec.to_builtins(event)):
        raise Poison(Reason.BAD_SCHEMA, "a text holds NUL, which PostgreSQL cannot store")
    return event


def _holds_nul(value: Any) -> bool:
    """The six bytes of the escape alone prove nothing: a text may hold a backslash before u0000."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_holds_nul(item) for item in value)


class TimeLimits(msgspec.Struct, frozen=True):
    """How far an event's own time may be from the moment when the log took it."""

    future_max_us: int = 300 * 1_000_000
    age_max_us: int = 400 * _DAY_US

    def check(self, event: AnyEvent, logged_at_us: int) -> None:
        """Raises Poison."""
        ahead_us = event.occurred_at - logged_at_us
        if ahead_us > self.future_max_us:
            raise Poison(Reason.FUTURE_CLOCK, f"{ahead_us // 1_000_000} s ahead of the log", event)
        if -ahead_us > self.age_max_us:
            raise Poison(Reason.TOO_OLD, f"{-ahead_us // _DAY_US} days before the log", event)


def _reason_of(body: bytes, message: str) -> Reason:
    try:
        if _head.decode(body).v != VERSION:
            return Reason.UNKNOWN_VERSION
    except msgspec.DecodeError:
        return Reason.BAD_SCHEMA
    if (
        "Expected `int` >=" in message
        or "Expected `int` <=" in message
        or "out of range" in message
    ):
        return Reason.OUT_OF_RANGE
    return Reason.BAD_SCHEMA


class Limits:
    """Refuses a flood: more than `ratio_max` of the last 2000 events (once there are 200), or more
    than `consecutive_max` in a row."""

    def __init__(self, ratio_max: float, consecutive_max: int) -> None:
        self._ratio_max = ratio_max
        self._consecutive_max = consecutive_max
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._in_a_row = 0

    def passed(self, fates: Sequence[bool]) -> str:
        """Why to stop rather than store these fates (True: dead; in the order of the log); empty
        when it is fine to go on. Changes nothing."""
        if not any(fates):
            return ""
        in_a_row = self._in_a_row
        for dead in fates:
            in_a_row = in_a_row + 1 if dead else 0
            if in_a_row > self._consecutive_max:
                return f"{in_a_row} dead events in a row"
        recent = (list(self._recent) + list(fates))[-_RECENT:]
        if len(recent) >= _RECENT_MIN and sum(recent) > self._ratio_max * len(recent):
            return f"{sum(recent)} of the last {len(recent)} events are dead"
        return ""

    def add(self, fates: Sequence[bool]) -> None:
        """Counts what was stored."""
        self._recent.extend(fates)
        for dead in fates:
            self._in_a_row = self._in_a_row + 1 if dead else 0
