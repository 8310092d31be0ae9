"""The `requests` and `attempts` tables: what the sink stores and what reconciliation reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from schemas.config import Config
from services.backends.clickhouse.client import (
    ClickHouse,
    QueryLimits,
    Rows,
)
from services.backends.clickhouse.rows import (
    ATTEMPT_COLUMNS,
    REQUEST_COLUMNS,
    Stored,
    attempt_columns,
    request_columns,
    stored_time_us,
)
from services.backends.clickhouse.schema import migrate
from services.backends.lifecycle import crash_point

_LOOKUP_ROWS: Final = 2000  # ids per look-up: keeps the statement well below a megabyte

# Every column of the sort key is bound to exact values, so the look-up reads the granules that can
# hold the ids and no more, however old a resent event is.
_LOOKUP: Final = """
SELECT event_id FROM requests
WHERE account_id IN {accounts:Array(String)}
  AND occurred_at IN {times:Array(DateTime64(6, 'UTC'))}
  AND event_id IN {ids:Array(String)}
"""
_TOTALS: Final = """
SELECT count(), max(log_offset), sum(toInt128(cost_nano)), sum(toInt128(written_off_nano)),
       sum(toInt128(provider_cost_nano)), groupBitXor(sipHash64(event_id))
FROM requests FINAL
WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
  AND log_offset < {end:UInt64}
"""
_PARTS: Final = """
SELECT table, count() FROM system.parts WHERE active AND database = {database:String} GROUP BY table
"""
_BETWEEN: Final = """
SELECT log_offset, event_id, account_id, cost_nano, written_off_nano, provider_cost_nano
FROM requests FINAL
WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
  AND log_offset BETWEEN {first:UInt64} AND {last:UInt64}
ORDER BY log_offset
"""


class RangeTotals(NamedTuple):
    """What the tables hold of one partition up to some offset: each request once, money in
    nano-USD, and the XOR of the 64-bit sip hashes of the event ids."""

    rows: int
    last_offset: int
    cost_nano: int
    written_off_nano: int
    provider_cost_nano: int
    ids_hash: int


class StoredRow(NamedTuple):
    """One request as reconciliation compares it; money in nano-USD."""

    log_offset: int
    event_id: str
    account_id: str
    cost_nano: int
    written_off_nano: int
    provider_cost_nano: int


class RequestStore:
    """Raises ClickHouseUnavailable (ask the same again) and QueryRefused from every method.

    `suffix` is put behind the names of both tables: a rebuild fills others."""

    def __init__(self, clickhouse: ClickHouse, suffix: str = "") -> None:
        self.clickhouse = clickhouse
        self._suffix = suffix

    def insert(self, topic: str, partition: int, rows: Sequence[Stored], token: str) -> None:
        """Stores both tables' rows of one range of the log. The same rows under the same token
        any number of times are stored once."""
        if not rows:
            return
        self._insert(
            "attempts", ATTEMPT_COLUMNS, attempt_columns(topic, partition, rows), f"a:{token}"
        )
        crash_point("clickhouse.between_tables")
        self._insert(
            "requests", REQUEST_COLUMNS, request_columns(topic, partition, rows), f"r:{token}"
        )

    def stored_event_ids(self, rows: Sequence[Stored], below: int | None = None) -> set[str]:
        """Which of the events of `rows` the table holds already, whatever their offset, or with
        one below `below`."""
        found: set[str] = set()
        lookup = self._of(_LOOKUP)
        if below is not None:
            lookup += f"AND log_offset < {int(below)}"
        for at in range(0, len(rows), _LOOKUP_ROWS):
            part = rows[at : at + _LOOKUP_ROWS]
            result = self.clickhouse.select(lookup, _lookup_parameters(part))
            found.update(row[0] for row in result.rows)
        return found

    def totals(self, topic: str, partition: int, end_offset: int) -> RangeTotals:
        """Totals of the partition's rows below `end_offset`."""
        result = self.clickhouse.select(
            self._of(_TOTALS), {"topic": topic, "partition": partition, "end": end_offset}
        )
        return RangeTotals(*(int(value) for value in result.rows[0]))

    def rows_between(self, topic: str, partition: int, first: int, last: int) -> list[StoredRow]:
        """The partition's rows with `first` <= offset <= `last`, in offset order."""
        result = self.clickhouse.select(
            self._of(_BETWEEN),
            {"topic": topic, "partition": partition, "first": first, "last": last},
        )
        return [StoredRow(*row) for row in result.rows]

    def active_parts(self) -> dict[str, int]:
        """Parts by table."""
        result = self.clickhouse.select(_PARTS, {"database": self.clickhouse.database})
        return {row[0]: int(row[1]) for row in result.rows}

    def ask(self, sql: str, limits: QueryLimits) -> Rows:
        """A statement of a person; see ClickHouse.ask."""
        return self.clickhouse.ask(sql, limits)

    def close(self) -> None:
        self.clickhouse.close()

    def _of(self, sql: str) -> str:
        return sql.replace("FROM requests", f"FROM requests{self._suffix}")

    def _insert(
        self, table: str, types: dict[str, str], columns: list[Sequence[Any]], token: str
    ) -> None:
        if columns[0]:
            table += self._suffix
            self.clickhouse.insert(table, list(types), list(types.values()), columns, token)


def open_store(config: Config) -> RequestStore:
    """The store of `config`, its schema brought up to date.

    Raises EngineBusy (another process owns the embedded folder: ask it through `QueryClient`),
    ClickHouseUnavailable, QueryRefused, SchemaMismatch or ValueError (a wrong DSN)."""
    clickhouse = ClickHouse(
        config.clickhouse.dsn, config.clickhouse.database, folder=Path(config.data_dir)
    )
    try:
        migrate(clickhouse)
    except BaseException:
        clickhouse.close()
        raise
    return RequestStore(clickhouse)


def _lookup_parameters(rows: Sequence[Stored]) -> dict[str, Any]:
    return {
        "accounts": sorted({row.event.account_id for row in rows}),
        "times": [_seconds_text(stored_time_us(row.event)) for row in rows],
        "ids": [row.event.event_id for row in rows],
    }


def _seconds_text(time_us: int) -> str:
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06d}"
