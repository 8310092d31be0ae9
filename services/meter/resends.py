"""Which events of a partition may be in the analytics tables already, and so must be looked up.

A worker numbers its events densely, the relay sends them in that order, and what is sent again
begins at an earlier number and repeats everything from there. So before any place of a partition
the log holds a worker's events up to some number, without a hole: one with a higher number is
new. What an owner does not know yet - every worker, after a claim - it looks up.
"""

from collections.abc import Collection, Sequence
from typing import Final

from services.backends.clickhouse.rows import Stored

_KEPT: Final = 10_000  # workers remembered per partition; a forgotten one is looked up again


class Resends:
    """Of one partition, for as long as one owner has it."""

    def __init__(self) -> None:
        self._last_seq: dict[str, int] = {}  # by incarnation: every row up to it is planned

    def possible(self, rows: Sequence[Stored]) -> list[Stored]:
        """The rows that may have been stored before."""
        last_seq = self._last_seq
        return [
            row
            for row in rows
            if row.event.incarnation not in last_seq
            or row.event.seq <= last_seq[row.event.incarnation]
        ]

    def planned(self, rows: Sequence[Stored], stored: Collection[str]) -> None:
        """`rows` are planned; the events of `stored` were found in the tables. A worker is known
        from its first event on that was not there: none behind it can be."""
        last_seq = self._last_seq
        for row in rows:
            name, seq = row.event.incarnation, row.event.seq
            if not name or not seq or (name not in last_seq and row.event.event_id in stored):
                continue
            last_seq[name] = max(last_seq.pop(name, 0), seq)  # the latest seen is last
        while len(last_seq) > _KEPT:
            del last_seq[next(iter(last_seq))]
