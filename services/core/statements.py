"""Statements of a wallet: the same bytes for the same postings, whenever they are printed."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from services.core.moments import rfc3339
from services.core.money import exact_usd
from services.core.texts import one_line

FORMATS: Final = ("text", "csv", "json")
_COLUMNS: Final = (
    "time",
    "event_id",
    "kind",
    "key_id",
    "detail",
    "amount_nano",
    "amount_usd",
    "balance_nano",
)


class Line(NamedTuple):
    """One posting on the wallet. `kind`: usage, or what the wallet movement is called."""

    occurred_at: int  # microseconds UTC
    event_id: str
    kind: str
    key_id: str
    detail: str
    amount_nano: int


class Statement(NamedTuple):
    """A period of one wallet: `since` inclusive, `until` exclusive, microseconds UTC. `lines` in
    the order of time and event id; read once."""

    account_id: str
    period: str
    since: int
    until: int
    opening_nano: int
    lines: Iterable[Line]


def month(period: str) -> tuple[int, int]:
    """First microsecond of `YYYY-MM` in UTC and of the month after it. Raises ValueError."""
    try:
        first = datetime.strptime(period, "%Y-%m").replace(tzinfo=UTC)
        if len(period) != 7:
            raise ValueError("without a leading zero")
    except ValueError as ex:
        raise ValueError(f"a period is YYYY-MM, not {period!r}") from ex
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()) * 1_000_000, int(following.timestamp()) * 1_000_000


def render(statement: Statement, form: str) -> Iterator[str]:
    """The statement as text, in pieces that end with a line."""
    if form == "text":
        return _text(statement)
    if form == "csv":
        return _csv(statement)
    return _json(statement)


class _Sums:
    """Runs along with the lines."""

    def __init__(self, opening_nano: int) -> None:
        self.balance_nano = opening_nano
        self.by_kind: dict[str, tuple[int, int]] = {}

    def add(self, line: Line) -> int:
        """The balance after the line."""
        nano, count = self.by_kind.get(line.kind, (0, 0))
        self.by_kind[line.kind] = (nano + line.amount_nano, count + 1)
        self.balance_nano += line.amount_nano
        return self.balance_nano


def _text(statement: Statement) -> Iterator[str]:
    sums = _Sums(statement.opening_nano)
    yield f"statement of {statement.account_id} for {statement.period} (UTC, USD)\n\n"
    yield f"{rfc3339(statement.since, 6)}  opening balance  {exact_usd(statement.opening_nano)}\n"
    for line in statement.lines:
        balance_nano = sums.add(line)
        facts = (line.kind, line.key_id, _one_line(line.detail), line.event_id)
        yield (
            f"{rfc3339(line.occurred_at, 6)}  {exact_usd(line.amount_nano):>16}  "
            f"{exact_usd(balance_nano):>16}  {'  '.join(filter(None, facts))}\n"
        )
    yield f"{rfc3339(statement.until, 6)}  closing balance  {exact_usd(sums.balance_nano)}\n\n"
    for kind, (nano, count) in sorted(sums.by_kind.items()):
        yield f"{kind}: {count} lines, {exact_usd(nano)}\n"


def _csv(statement: Statement) -> Iterator[str]:
    sums = _Sums(statement.opening_nano)
    yield ",".join(_COLUMNS) + "\n"
    yield _csv_row(rfc3339(statement.since, 6), "", "opening", "", "", 0, "0", sums.balance_nano)
    for line in statement.lines:
        balance_nano = sums.add(line)
        yield _csv_row(
            rfc3339(line.occurred_at, 6),
            line.event_id,
            line.kind,
            line.key_id,
            _no_formula(_one_line(line.detail)),
            line.amount_nano,
            exact_usd(line.amount_nano),
            balance_nano,
        )
    yield _csv_row(rfc3339(statement.until, 6), "", "closing", "", "", 0, "0", sums.balance_nano)


def _csv_row(*cells: object) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _no_formula(text: str) -> str:
    """An apostrophe keeps a spreadsheet from reckoning what people wrote."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _one_line(text: str) -> str:
    """Notes may have any characters: none of them ends a line or moves a terminal's cursor."""
    return one_line(" ".join(text.split()))


def _json(statement: Statement) -> Iterator[str]:
    sums = _Sums(statement.opening_nano)
    head = {
        "account_id": statement.account_id,
        "period": statement.period,
        "opening_nano": statement.opening_nano,
    }
    yield _dumps(head)[:-1] + ',"lines":['
    separator = "\n"
    for line in statement.lines:
        balance_nano = sums.add(line)
        row = {**line._asdict(), "time": rfc3339(line.occurred_at, 6), "balance_nano": balance_nano}
        yield separator + _dumps(row)
        separator = ",\n"
    totals = {
        kind: {"lines": count, "nano": nano} for kind, (nano, count) in sorted(sums.by_kind.items())
    }
    yield f'\n],"closing_nano":{sums.balance_nano},"totals":{_dumps(totals)}}}\n'


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
