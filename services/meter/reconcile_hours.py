"""Sums per account and hour: where a difference lies, before anybody looks at events."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from schemas.events import Error, Usage
from services.backends.clickhouse.rows import stored_time_us
from services.backends.sql.books_audit import BooksAudit
from services.core.money import exact_usd
from services.meter.booking import settlement_row
from services.meter.reconcile_analytics import Ask, quoted
from services.meter.reconcile_log import Original
from services.meter.reconcile_report import Report, Totals

HOUR_US: Final = 3_600_000_000
_PAGE: Final = 5_000  # account-hours, below what a question of the operator may return

_SPAN: Final = 4_000  # of them in a range, so that one question is nearly always enough

Hours = dict[tuple[str, int], Totals]
"""(account id, hours since the epoch) -> totals."""


class HoursPass:
    """One partition at a time, for an account lies in one: `expect` what the log holds, then
    `compare`. What was set aside counts nowhere."""

    def __init__(self, audit: BooksAudit, ask: Ask, topic: str, report: Report) -> None:
        self._audit = audit
        self._ask = ask
        self._topic = topic
        self._report = report
        self._booked: Hours = {}
        self._stored: Hours = {}

    def expect(self, original: Original) -> None:
        event = original.read.event
        if not isinstance(event, Usage | Error) or original.dead:
            return
        row = settlement_row(event)
        figures = (
            1,
            row.charged_nano,
            row.cost_nano - row.charged_nano,
            row.provider_cost_nano,
        )
        stored = (event.account_id, stored_time_us(event) // HOUR_US)
        self._stored.setdefault(stored, Totals()).add(*figures)
        booked = (event.account_id, event.occurred_at // HOUR_US)
        self._booked.setdefault(booked, Totals()).add(*figures)

    def compare(self, partition: int, first: int, end: int) -> None:
        booked, self._booked = self._booked, {}
        stored, self._stored = self._stored, {}
        ledger = {
            (account_id, hour): Totals(*figures)
            for account_id, hour, *figures in self._audit.account_hours(
                self._topic, partition, first, end
            )
        }
        self._report.account_hours += len({*booked, *stored})
        self._differ("ledger", booked, ledger)
        self._differ("ClickHouse", stored, dict(self._rows(partition, first, end, stored)))

    def _differ(self, place: str, log: Mapping[tuple[str, int], Totals], found: Hours) -> None:
        for account_id, hour in sorted({*log, *found}):
            wanted = log.get((account_id, hour), Totals())
            had = found.get((account_id, hour), Totals())
            if wanted != had:
                when = datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%d %H:00")
                self._report.differ_hour(
                    f"{account_id} {when}: {place} {_text(had)}, log {_text(wanted)}"
                )

    def _rows(
        self, partition: int, first: int, end: int, expected: Iterable[tuple[str, int]]
    ) -> Iterator[tuple[tuple[str, int], Totals]]:
        """In ranges of accounts of about a page, which ClickHouse finds by its sort key: pages of
        all accounts would each read everything."""
        accounts = [account_id for account_id, _ in sorted(expected)]
        lows = list(dict.fromkeys(["", *accounts[_SPAN::_SPAN]]))
        for low, high in zip(lows, [*lows[1:], None], strict=True):
            within = f"account_id >= '{quoted(low)}'"
            if high is not None:
                within += f" AND account_id < '{quoted(high)}'"
            yield from self._range(partition, first, end, within)

    def _range(
        self, partition: int, first: int, end: int, within: str
    ) -> Iterator[tuple[tuple[str, int], Totals]]:
        after = ("", 0)
        while True:
            rows = self._ask(
                "SELECT account_id, intDiv(toUnixTimestamp64Micro(occurred_at), "  # noqa: S608
                f"{HOUR_US}) AS hour, count(), sum(toInt128(cost_nano)), "
                "sum(toInt128(written_off_nano)), sum(toInt128(provider_cost_nano)) "
                f"FROM requests FINAL WHERE {within} AND log_topic = '{self._topic}' "
                f"AND log_partition = {partition} AND log_offset >= {first} "
                f"AND log_offset < {end} GROUP BY account_id, hour "
                f"HAVING (account_id, hour) > ('{quoted(after[0])}', {after[1]}) "
                f"ORDER BY account_id, hour LIMIT {_PAGE}"
            )
            for account_id, hour, *figures in rows:
                after = (str(account_id), int(hour))
                yield after, Totals(*(int(value) for value in figures))
            if len(rows) < _PAGE:
                return


def _text(totals: Totals) -> str:
    return (
        f"{totals.requests} requests ${exact_usd(totals.charged_nano)} (written off "
        f"${exact_usd(totals.written_off_nano)}, provider ${exact_usd(totals.provider_cost_nano)})"
    )
