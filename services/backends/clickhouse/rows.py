"""Terminal events as columns of `requests` and `attempts`.

The transform is pure: a row follows from one event and its place in the log alone, so the same
range of the log makes the same rows again. Numbers that a column cannot hold are cut to its bound:
an event that got past the ledger's checks must never stop the sink.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from schemas.errors import BILLED
from schemas.events import Error, Usage

_U16: Final = (1 << 16) - 1
_I64: Final = (1 << 63) - 1
_TIME_MAX_US: Final = 7_258_118_400_000_000 - 1  # the last microsecond of 2199
_CLASSES: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_tokens": "cache_read",
    "cache_write_5m_tokens": "cache_write_5m",
    "cache_write_1h_tokens": "cache_write_1h",
    "reasoning_tokens": "reasoning",
}
_OWN_COLUMN: Final = frozenset(_CLASSES.values())

_TEXT: Final = "String"
_WORD: Final = "LowCardinality(String)"
_TIME: Final = "DateTime64(6, 'UTC')"
_COUNT: Final = "UInt64"

REQUEST_COLUMNS: Final[dict[str, str]] = {
    "event_id": _TEXT,
    "request_id": _TEXT,
    "kind": _WORD,
    "account_id": _WORD,
    "key_id": _WORD,
    "occurred_at": _TIME,
    "source": _WORD,
    "incarnation": _WORD,
    "seq": _COUNT,
    "lease_id": _TEXT,
    "lease_seq": _COUNT,
    "dialect": _WORD,
    "path": _WORD,
    "asked_model": _WORD,
    "model": _WORD,
    "upstream_model": _WORD,
    "channel": _WORD,
    "group": _WORD,
    "price_version": _WORD,
    "multiplier_ppm": _COUNT,
    "tier": _WORD,
    "stream": "Bool",
    "session_id": _TEXT,
    "agent_id": _TEXT,
    "client": _WORD,
    "tags": "Map(LowCardinality(String), String)",
    "status": "UInt16",
    "outcome": _WORD,
    "billed": "Bool",
    "error_code": _WORD,
    "error_stage": _WORD,
    "error_message": _TEXT,
    **dict.fromkeys(_CLASSES, _COUNT),
    "units": "Map(LowCardinality(String), UInt64)",
    "hold_nano": "Int64",
    "cost_nano": "Int64",
    "written_off_nano": "Int64",
    "provider_cost_nano": "Int64",
    "estimated": "Bool",
    "ttfb_ms": _COUNT,
    "total_ms": _COUNT,
    "attempts": "UInt16",
    "upstream_request_id": _TEXT,
    "job_id": _TEXT,
    "job_kind": _WORD,
    "job_state": _WORD,
    "job_error": _WORD,
    "log_topic": _WORD,
    "log_partition": "UInt32",
    "log_offset": _COUNT,
    "log_time": _TIME,
}
ATTEMPT_COLUMNS: Final[dict[str, str]] = {
    "event_id": _TEXT,
    "request_id": _TEXT,
    "attempt": "UInt16",
    "account_id": _WORD,
    "key_id": _WORD,
    "occurred_at": _TIME,
    "dialect": _WORD,
    "model": _WORD,
    "channel": _WORD,
    "status": "UInt16",
    "code": _WORD,
    "upstream_request_id": _TEXT,
    "started_at": _TIME,
    "total_ms": _COUNT,
    "log_topic": _WORD,
    "log_partition": "UInt32",
    "log_offset": _COUNT,
    "log_time": _TIME,
}


class Place(NamedTuple):
    """Where in the log an event stands; `log_time_us` is when the log took it."""

    offset: int
    log_time_us: int


class Stored(NamedTuple):
    """A terminal event at its place: what becomes one row of `requests`."""

    event: Usage | Error
    place: Place


def request_columns(topic: str, partition: int, rows: Sequence[Stored]) -> list[Sequence[Any]]:
    """One sequence per entry of REQUEST_COLUMNS, in its order."""
    events = [row.event for row in rows]
    bills = [_bill(e) for e in events]
    return [
        *_who_and_what(events, bills),
        *_how_it_ended(events, bills),
        *_place_columns(topic, partition, [row.place for row in rows]),
    ]


def _who_and_what(events: list[Usage | Error], bills: list["_Bill"]) -> list[Sequence[Any]]:
    return [
        [e.event_id for e in events],
        [e.request_id for e in events],
        ["usage" if type(e) is Usage else "error" for e in events],
        [e.account_id for e in events],
        [e.key_id for e in events],
        [stored_time_us(e) for e in events],
        [e.source for e in events],
        [e.incarnation for e in events],
        [min(e.seq, _I64) for e in events],
        [e.lease_id for e in events],
        [min(e.lease_seq, _I64) for e in events],
        [e.dialect for e in events],
        [e.path for e in events],
        [e.model for e in events],
        [e.priced_as or e.model for e in events],
        [e.upstream_model for e in events],
        [e.channel for e in events],
        [e.group for e in events],
        [e.price_version for e in events],
        [b.multiplier_ppm for b in bills],
        [b.tier for b in bills],
        [e.stream for e in events],
        [e.session_id for e in events],
        [e.agent_id for e in events],
        [e.client for e in events],
        [e.tags for e in events],
    ]


def _how_it_ended(events: list[Usage | Error], bills: list["_Bill"]) -> list[Sequence[Any]]:
    usages = [e.usage if type(e) is Usage else _NO_USAGE for e in events]
    faults = [_fault(e) for e in events]
    return [
        [min(e.status, _U16) for e in events],
        [e.outcome.value for e in events],
        [type(e) is Usage and e.outcome in BILLED for e in events],
        [f.code for f in faults],
        [f.stage for f in faults],
        [f.message for f in faults],
        *([u.get(name, 0) for u in usages] for name in _CLASSES.values()),
        [_other_units(u) for u in usages],
        [e.hold_nano for e in events],
        [b.charged_nano for b in bills],
        [b.written_off_nano for b in bills],
        [e.provider_cost_nano for e in events],
        [b.estimated for b in bills],
        [min(e.ttfb_ms, _I64) for e in events],
        [min(e.total_ms, _I64) for e in events],
        [min(len(e.attempts), _U16) for e in events],
        [e.upstream_request_id for e in events],
        [e.job_id for e in events],
        [e.job_kind for e in events],
        [e.job_state for e in events],
        [e.job_error for e in events],
    ]


def attempt_columns(topic: str, partition: int, rows: Sequence[Stored]) -> list[Sequence[Any]]:
    """One sequence per entry of ATTEMPT_COLUMNS, in its order; empty ones without attempts."""
    flat = [
        (row.event, number, attempt, row.place)
        for row in rows
        for number, attempt in enumerate(row.event.attempts[:_U16], 1)
    ]
    columns: list[Sequence[Any]] = [
        [e.event_id for e, _, _, _ in flat],
        [e.request_id for e, _, _, _ in flat],
        [number for _, number, _, _ in flat],
        [e.account_id for e, _, _, _ in flat],
        [e.key_id for e, _, _, _ in flat],
        [stored_time_us(e) for e, _, _, _ in flat],
        [e.dialect for e, _, _, _ in flat],
        [e.priced_as or e.model for e, _, _, _ in flat],
        [a.channel for _, _, a, _ in flat],
        [min(a.status, _U16) for _, _, a, _ in flat],
        [a.code for _, _, a, _ in flat],
        [a.upstream_request_id for _, _, a, _ in flat],
        [min(a.started_at, _TIME_MAX_US) for _, _, a, _ in flat],
        [min(a.total_ms, _I64) for _, _, a, _ in flat],
    ]
    return columns + _place_columns(topic, partition, [place for _, _, _, place in flat])


def stored_time_us(event: Usage | Error) -> int:
    """`occurred_at` as the tables hold it."""
    return min(event.occurred_at, _TIME_MAX_US)


class _Bill(NamedTuple):
    """What only a usage event has."""

    multiplier_ppm: int = 0
    tier: str = ""
    charged_nano: int = 0
    written_off_nano: int = 0
    estimated: bool = False


class _Fault(NamedTuple):
    """What only an error event has."""

    code: str = ""
    stage: str = ""
    message: str = ""


_NO_BILL: Final = _Bill()
_NO_FAULT: Final = _Fault()
_NO_USAGE: Final[dict[str, int]] = {}
_NO_UNITS: Final[dict[str, int]] = {}


def _bill(e: Usage | Error) -> _Bill:
    if type(e) is not Usage:
        return _NO_BILL
    return _Bill(
        min(e.multiplier_ppm, _I64), e.tier, e.charged_nano, e.written_off_nano, e.estimated
    )


def _fault(e: Usage | Error) -> _Fault:
    if type(e) is not Error:
        return _NO_FAULT
    return _Fault(e.code.value, e.stage.value, e.message)


def _other_units(usage: dict[str, int]) -> dict[str, int]:
    """The classes without a column of their own."""
    if usage.keys() <= _OWN_COLUMN:
        return _NO_UNITS
    return {name: units for name, units in usage.items() if name not in _OWN_COLUMN}


def _place_columns(topic: str, partition: int, places: list[Place]) -> list[Sequence[Any]]:
    return [
        [topic] * len(places),
        [partition] * len(places),
        [p.offset for p in places],
        [min(p.log_time_us, _TIME_MAX_US) for p in places],
    ]
