"""Usage as an account sees it: rows of requests, and buckets of what was billed.

Every statement is bound to one account by a parameter. Sums of rows, of buckets and of the ledger
are equal because each request is one row and money is added as integers.
"""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from services.backends.clickhouse.store import RequestStore
from services.core.money import NANO_PER_CREDIT, exact_usd

MAX_BUCKETS: Final = 20_000
TIME_KEYS: Final = ("day", "hour")
GROUP_KEYS: Final = (*TIME_KEYS, "model", "api_key")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Filter(NamedTuple):
    """Which requests: `since_us` inclusive, `until_us` exclusive; None and "" mean any."""

    account_id: str
    since_us: int | None = None
    until_us: int | None = None
    model: str = ""
    api_key_id: str = ""
    request_id: str = ""
    session_id: str = ""
    job_id: str = ""
    outcome: str = ""
    billed_only: bool = False


class Cursor(NamedTuple):
    """The last row of a page; the next page begins below it."""

    occurred_at_us: int
    event_id: str

    def text(self) -> str:
        raw = f"{self.occurred_at_us}.{self.event_id}".encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises ValueError."""
        try:
            raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)).decode()
        except (binascii.Error, UnicodeError) as ex:
            raise ValueError("no cursor of ours") from ex
        time_us, _, event_id = raw.partition(".")
        if not time_us.isdecimal() or len(time_us) > 18 or not event_id:
            raise ValueError("no cursor of ours")
        return cls(int(time_us), event_id)


class TooManyBuckets(Exception):
    """The answer has more than MAX_BUCKETS buckets."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_BUCKETS} buckets; narrow the window or group by less")


def usage_rows(
    store: RequestStore, chosen: Filter, *, limit: int, cursor: Cursor | None = None
) -> dict[str, Any]:
    """`{"data": [...], "next_cursor": text | null}`, newest first, failures with cost 0.

    A page is found by where the last one ended, so rows that arrive meanwhile move nothing."""
    found, following = _page(store, chosen, limit, cursor)
    return {"data": [_usage_row(row) for row in found], "next_cursor": following}


def usage_items(
    store: RequestStore, chosen: Filter, *, limit: int, cursor: Cursor | None = None
) -> dict[str, Any]:
    """`{"items": [...], "next_cursor": text | null}` of billed requests, newest first."""
    found, following = _page(store, chosen._replace(billed_only=True), limit, cursor)
    return {"items": [_item(row) for row in found], "next_cursor": following}


def usage_buckets(store: RequestStore, chosen: Filter, group_by: tuple[str, ...]) -> dict[str, Any]:
    """`{"buckets": [...], "totals": {...}}` of billed requests, in the order of the keys.

    `group_by` is one or more of GROUP_KEYS, at most one of TIME_KEYS. Raises TooManyBuckets."""
    where, parameters = _where(chosen._replace(billed_only=True))
    names = [_BUCKET_NAME[key] for key in group_by]
    keys = ", ".join(f"{_BUCKET_SQL[key]} AS {_BUCKET_NAME[key]}" for key in group_by)
    sql = (
        f"SELECT {keys}, sum(toInt128(cost_nano)), sum(input_tokens), sum(output_tokens), "  # noqa: S608
        f"count() FROM requests FINAL WHERE {where} "
        f"GROUP BY {', '.join(names)} ORDER BY {', '.join(names)} LIMIT {MAX_BUCKETS + 1}"
    )
    buckets = store.clickhouse.select(sql, parameters).rows
    if len(buckets) > MAX_BUCKETS:
        raise TooManyBuckets
    return {
        "buckets": [
            {**dict(zip(names, row, strict=False)), **_sums(*row[len(names) :])} for row in buckets
        ],
        "totals": _sums(*(sum(row[at] for row in buckets) for at in range(-4, 0))),
    }


_BUCKET_SQL: Final = {
    "day": "toString(toDate(occurred_at, 'UTC'))",
    "hour": "formatDateTime(toStartOfHour(occurred_at), '%Y-%m-%dT%H:00:00Z', 'UTC')",
    "model": "requests.model",
    "api_key": "key_id",
}
_BUCKET_NAME: Final = {"day": "bucket", "hour": "bucket", "model": "model", "api_key": "api_key"}

_ROW_SQL: Final = (
    "request_id",
    "toUnixTimestamp64Micro(occurred_at)",
    "event_id",
    "key_id",
    "source",
    "dialect",
    "model",
    "upstream_model",
    "channel",
    "session_id",
    "stream",
    "status",
    "outcome",
    "error_code",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "units",
    "cost_nano",
    "price_version",
    "estimated",
    "ttfb_ms",
    "total_ms",
    "attempts",
    "job_id",
    "job_kind",
    "job_state",
    "job_error",
)


class _Row(NamedTuple):
    """One request, in the order of _ROW_SQL."""

    request_id: str
    occurred_at_us: int
    event_id: str
    key_id: str
    source: str
    dialect: str
    model: str
    upstream_model: str
    channel: str
    session_id: str
    stream: bool
    status: int
    outcome: str
    error_code: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    units: dict[str, int]
    cost_nano: int
    price_version: str
    estimated: bool
    ttfb_ms: int
    total_ms: int
    attempts: int
    job_id: str
    job_kind: str
    job_state: str
    job_error: str


def _page(
    store: RequestStore, chosen: Filter, limit: int, cursor: Cursor | None
) -> tuple[list[_Row], str | None]:
    where, parameters = _where(chosen)
    if cursor is not None:
        where += (
            " AND occurred_at <= fromUnixTimestamp64Micro({cursor_us:Int64}, 'UTC')"
            " AND (occurred_at, event_id) < "
            "(fromUnixTimestamp64Micro({cursor_us:Int64}, 'UTC'), {cursor_id:String})"
        )
        parameters |= {"cursor_us": cursor.occurred_at_us, "cursor_id": cursor.event_id}
    # LIMIT 1 BY drops copies of an event as FINAL would, but stops reading at the page's end.
    sql = (
        f"SELECT {', '.join(_ROW_SQL)} FROM requests WHERE {where} "  # noqa: S608
        "ORDER BY occurred_at DESC, event_id DESC LIMIT 1 BY event_id LIMIT {row_limit:UInt32}"
    )
    parameters["row_limit"] = limit + 1
    rows = [_Row(*row) for row in store.clickhouse.select(sql, parameters).rows]
    if len(rows) <= limit:
        return rows, None
    rows = rows[:limit]
    return rows, Cursor(rows[-1].occurred_at_us, rows[-1].event_id).text()


def _where(chosen: Filter) -> tuple[str, dict[str, Any]]:
    parts = ["account_id = {account_id:String}"]
    parameters: dict[str, Any] = {"account_id": chosen.account_id}
    for sql, name, value in (
        ("occurred_at >= fromUnixTimestamp64Micro({since_us:Int64}, 'UTC')", "since_us",
         chosen.since_us),
        ("occurred_at < fromUnixTimestamp64Micro({until_us:Int64}, 'UTC')", "until_us",
         chosen.until_us),
        ("(model = {model:String} OR asked_model = {model:String})", "model", chosen.model),
        ("key_id = {api_key_id:String}", "api_key_id", chosen.api_key_id),
        ("request_id = {request_id:String}", "request_id", chosen.request_id),
        ("session_id = {session_id:String}", "session_id", chosen.session_id),
        ("job_id = {job_id:String}", "job_id", chosen.job_id),
        ("outcome = {outcome:String}", "outcome", chosen.outcome),
    ):  # fmt: skip
        if value not in (None, ""):
            parts.append(sql)
            parameters[name] = value
    if chosen.billed_only:
        parts.append("billed")
    return " AND ".join(parts), parameters


def _usage_row(row: _Row) -> dict[str, Any]:
    found = {
        "request_id": row.request_id,
        "created_at": iso(row.occurred_at_us),
        "api_key_id": row.key_id,
        "source": row.source,
        "dialect": row.dialect,
        "model": row.model,
        "upstream_model": row.upstream_model,
        "channel": row.channel,
        "session_id": row.session_id,
        "stream": row.stream,
        "status": row.status,
        "outcome": row.outcome,
        "error_code": row.error_code or None,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cache_read_tokens": row.cache_read_tokens,
        "cache_write_5m_tokens": row.cache_write_5m_tokens,
        "cache_write_1h_tokens": row.cache_write_1h_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "units": row.units,
        "cost_nano": row.cost_nano,
        "cost_usd": exact_usd(row.cost_nano),
        "price_version": row.price_version,
        "estimated": row.estimated,
        "ttfb_ms": row.ttfb_ms,
        "total_ms": row.total_ms,
        "attempts": row.attempts,
    }
    if row.job_id:
        found["job"] = {
            "id": row.job_id,
            "kind": row.job_kind,
            "state": row.job_state,
            "error": row.job_error or None,
        }
    return found


def _item(row: _Row) -> dict[str, Any]:
    return {
        "request_id": row.request_id,
        "api_key_id": row.key_id,
        "model": row.model,
        "prompt_tokens": row.input_tokens
        + row.cache_read_tokens
        + row.cache_write_5m_tokens
        + row.cache_write_1h_tokens,
        "completion_tokens": row.output_tokens,
        "credits": _credits(row.cost_nano),
        "created_at": iso(row.occurred_at_us),
    }


def _sums(nano: int, input_tokens: int, output_tokens: int, calls: int) -> dict[str, Any]:
    return {
        "total_usd": exact_usd(nano),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "call_count": calls,
    }


def _credits(nano: int) -> int | float:
    """Micro-USD as charged: whole, or with the thousandths that a charge has."""
    whole, rest = divmod(nano, NANO_PER_CREDIT)
    return whole if not rest else nano / NANO_PER_CREDIT


def iso(time_us: int) -> str:
    """`2026-05-25T14:00:00.123456Z`."""
    when = _EPOCH + timedelta(microseconds=time_us)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
