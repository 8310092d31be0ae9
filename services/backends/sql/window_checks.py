"""Spend windows against the settlements: what their buckets hold is what was charged at their
time. A worker's clock may be a second off, so a bucket may hold spend of its neighbour."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, func, select, union_all

from services.backends.sql.engine import database_now_us
from services.backends.sql.tables import api_key, limit_row, settlement
from services.core import windows

_PAIR = "settlements-window"


def window_findings(connection: Connection) -> Iterator[tuple[str, str, str]]:
    """(pair, subject, detail) of every window whose buckets tell otherwise than the settlements,
    as far as these still count."""
    now_us = database_now_us(connection)
    rows = connection.execute(select(limit_row).where(limit_row.c.window_us.is_not(None))).all()
    for window_us in sorted({row.window_us for row in rows}):
        charged = _charged(connection, window_us, now_us)
        for row in rows:
            if row.window_us == window_us:
                yield from _compared(row, charged.get(row.subject, {}), now_us)


def _charged(connection: Connection, window_us: int, now_us: int) -> dict[str, dict[int, int]]:
    """Nano-USD by key and bucket number, a sub-key's for its parent too."""
    length_us = windows.bucket_us(window_us)
    number = (settlement.c.occurred_at // length_us).label("number")
    recent = (
        select(settlement.c.key_id, number, func.sum(settlement.c.charged_nano).label("nano"))
        .where(settlement.c.occurred_at >= now_us - window_us - length_us - 2 * windows.SLACK_US)
        .group_by(settlement.c.key_id, number)
        .subquery()
    )
    own = select(recent.c.key_id, recent.c.number, recent.c.nano)
    parents = (
        select(api_key.c.parent_id, recent.c.number, recent.c.nano)
        .join(api_key, api_key.c.id == recent.c.key_id)
        .where(api_key.c.parent_id.is_not(None))
    )
    found: dict[str, dict[int, int]] = {}
    for key_id, at, nano in connection.execute(union_all(own, parents)):
        of_key = found.setdefault(key_id, {})
        of_key[at] = of_key.get(at, 0) + int(nano)
    return found


def _compared(row: Any, charged: dict[int, int], now_us: int) -> Iterator[tuple[str, str, str]]:
    """From each bucket on, what the window holds must lie between what was charged one bucket
    later and one bucket earlier."""
    length_us = windows.bucket_us(row.window_us)
    off = -(-windows.SLACK_US // length_us)
    held = dict(windows.decode(row.buckets))
    last = now_us // length_us
    first = last
    while windows.counts_until(first - 1, row.window_us) > now_us:
        first -= 1
    begun = row.since_at // length_us + 1
    sums = _from(held, first, last)
    truth = _from(charged, first - off, max(last, *charged, 0) if charged else last)
    for number in range(first, last + 1):
        least = truth.get(max(number, begun) + off, 0)
        most = truth[number - off]
        if not least <= sums[number] <= most:
            detail = f"from bucket {number} on it holds {sums[number]}, charged {least} to {most}"
            yield _PAIR, f"{row.kind}:{row.subject}", detail
            return


def _from(amounts: dict[int, int], first: int, last: int) -> dict[int, int]:
    """number -> the sum of the amounts from there on."""
    numbers = range(last, first - 1, -1)
    return dict(zip(numbers, accumulate(amounts.get(each, 0) for each in numbers), strict=True))
