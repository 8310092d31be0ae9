"""Holds ClickHouse against the log: by ranges of offsets, then by event where a range differs."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from schemas.events import Error, Usage
from services.backends.clickhouse.rows import stored_time_us
from services.meter.reconcile_log import Original
from services.meter.reconcile_report import Report

Ask = Callable[[str], list[Any]]
"""The rows of one reading statement; long integers may come as text."""

_RANGE: Final = 20_000  # offsets
_PAGE: Final = 5_000  # rows, below what a question of the operator may return
_PAIR: Final = "log-clickhouse"
_NAMES: Final = (
    "account_id",
    "occurred_at",
    "outcome",
    "cost_nano",
    "written_off_nano",
    "provider_cost_nano",
    "job_id",
    "job_state",
)
_FACTS: Final = (
    "event_id, account_id, toUnixTimestamp64Micro(occurred_at), outcome, cost_nano, "
    "written_off_nano, provider_cost_nano, job_id, job_state"
)
_HASH: Final = (
    "groupBitXor(reinterpretAsUInt64(substring(MD5(concat(event_id, '|', account_id, '|', "
    "toString(toUnixTimestamp64Micro(occurred_at)), '|', outcome, '|', toString(cost_nano), '|', "
    "toString(written_off_nano), '|', toString(provider_cost_nano), '|', job_id, '|', job_state)), "
    "1, 8)))"
)


class _Sums(msgspec.Struct):
    """Of a range: number, money, and the XOR of a hash of every row's facts."""

    rows: int = 0
    cost_nano: int = 0
    written_off_nano: int = 0
    provider_cost_nano: int = 0
    hash: int = 0


class AnalyticsPass:
    """One partition at a time: `expect` what the log holds, then `compare`."""

    def __init__(self, ask: Ask, topic: str, report: Report) -> None:
        self._ask = ask
        self._topic = topic
        self._report = report
        self._expected: dict[int, _Sums] = {}

    def expect(self, original: Original) -> None:
        """A terminal that the ledger booked is one row; everything else is none."""
        event = original.read.event
        if not isinstance(event, Usage | Error):
            return
        facts = _facts(event)
        cost_nano, written_off_nano, provider_cost_nano = facts[4:7]
        if original.dead:
            self._report.set_aside.add(1, cost_nano, written_off_nano, provider_cost_nano)
            return
        sums = self._expected.setdefault(original.read.message.offset // _RANGE, _Sums())
        sums.rows += 1
        sums.cost_nano += cost_nano
        sums.written_off_nano += written_off_nano
        sums.provider_cost_nano += provider_cost_nano
        sums.hash ^= _hash(facts)

    def compare(
        self,
        partition: int,
        first: int,
        end: int,
        originals: Callable[[int, int, int], Iterable[Original]],
    ) -> None:
        """Reports every row of the partition that one side lacks or tells otherwise. `originals`
        reads a range of the log again."""
        expected, self._expected = self._expected, {}
        found = self._sums(partition, first, end)
        for sums in found.values():
            self._report.clickhouse.add(
                sums.rows, sums.cost_nano, sums.written_off_nano, sums.provider_cost_nano
            )
        for number in sorted({*expected, *found}):
            if expected.get(number, _Sums()) != found.get(number, _Sums()):
                low, high = max(first, number * _RANGE), min(end, (number + 1) * _RANGE)
                self._compare_rows(partition, low, high, originals(partition, low, high))

    def strays(self, bounds: dict[int, tuple[int, int]]) -> dict[str, tuple[str, int, int]]:
        """event_id -> topic, partition, offset of rows that stand nowhere in the log up to
        `bounds` (at most 5000)."""
        within = " OR ".join(
            f"(log_partition = {partition} AND log_offset < {end})"
            for partition, (_, end) in bounds.items()
        )
        rows = self._ask(
            "SELECT event_id, log_topic, log_partition, log_offset FROM requests FINAL "  # noqa: S608
            f"WHERE log_topic != '{self._topic}' OR NOT ({within}) LIMIT {_PAGE}"
        )
        return {row[0]: (row[1], int(row[2]), int(row[3])) for row in rows}

    def _sums(self, partition: int, first: int, end: int) -> dict[int, _Sums]:
        rows = self._ask(
            f"SELECT intDiv(log_offset, {_RANGE}), count(), sum(toInt128(cost_nano)), "  # noqa: S608
            "sum(toInt128(written_off_nano)), sum(toInt128(provider_cost_nano)), "
            f"{_HASH} FROM requests FINAL WHERE {self._within(partition, first, end)} GROUP BY 1"
        )
        return {int(row[0]): _Sums(*(int(value) for value in row[1:])) for row in rows}

    def _within(self, partition: int, first: int, end: int) -> str:
        return (
            f"log_topic = '{self._topic}' AND log_partition = {partition} "
            f"AND log_offset >= {first} AND log_offset < {end}"
        )

    def _compare_rows(
        self, partition: int, first: int, end: int, originals: Iterable[Original]
    ) -> None:
        log = {}
        for original in originals:
            if isinstance(original.read.event, Usage | Error) and not original.dead:
                log[original.read.event_id] = _facts(original.read.event)[1:]
        for row in self._rows(partition, first, end):
            wanted = log.pop(row[0], None)
            if wanted is None:
                self._report.differ(_PAIR, row[0], "only in ClickHouse")
                continue
            had = (row[1], int(row[2]), row[3], *(int(nano) for nano in row[4:7]), row[7], row[8])
            if had != wanted:
                wrong = ", ".join(
                    f"{name} {value} in ClickHouse, {want} in the log"
                    for name, value, want in zip(_NAMES, had, wanted, strict=True)
                    if value != want
                )
                self._report.differ(_PAIR, row[0], wrong)
        for event_id in log:
            self._report.differ(_PAIR, event_id, "missing in ClickHouse")

    def _rows(self, partition: int, first: int, end: int) -> Iterator[Any]:
        """In pages, in the order of offset and event id."""
        after = ""
        while True:
            rows = self._ask(
                f"SELECT {_FACTS}, log_offset FROM requests FINAL "  # noqa: S608
                f"WHERE {self._within(partition, first, end)} {after}"
                f"ORDER BY log_offset, event_id LIMIT {_PAGE}"
            )
            yield from rows
            if len(rows) < _PAGE:
                return
            after = f"AND (log_offset, event_id) > ({int(rows[-1][9])}, '{quoted(rows[-1][0])}') "


def _facts(event: Usage | Error) -> tuple[str, str, int, str, int, int, int, str, str]:
    charged_nano = event.charged_nano if isinstance(event, Usage) else 0
    written_off_nano = event.written_off_nano if isinstance(event, Usage) else 0
    return (
        event.event_id,
        event.account_id,
        stored_time_us(event),
        event.outcome.value,
        charged_nano,
        written_off_nano,
        event.provider_cost_nano,
        event.job_id,
        event.job_state,
    )


def _hash(facts: tuple[Any, ...]) -> int:
    text = "|".join(str(each) for each in facts)
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8], "little")


def quoted(text: str) -> str:
    """Inside the quotes of a text of SQL."""
    return text.replace("\\", "\\\\").replace("'", "\\'")
