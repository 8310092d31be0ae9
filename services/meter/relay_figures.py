"""What `/metrics` tells of the relay and of the outboxes that it reads."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from services.backends.clock import Clock
from services.backends.outbox_files import IncarnationFiles, Row
from services.backends.telemetry import metric
from services.meter.relay_send import facts_of
from services.meter.relay_source import Source


class RelayFigures:
    """Told by the relay what it does; for its thread."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._oldest_us: dict[str, int] = {}  # of the rows read last, by incarnation
        self._tried: dict[str, int] = {}  # the last seq that was sent and not acknowledged
        self._unsure_since_s: float | None = None
        self._sent_s = 0.0
        self._dead: set[str] = set()

    def read(self, name: str, rows: Sequence[Row]) -> None:
        """These are the next rows of an incarnation."""
        if not rows:
            self._oldest_us.pop(name, None)
        elif rows[0].intact:
            self._oldest_us[name] = facts_of(rows[0].body).occurred_at

    def sending(self, name: str, rows: Sequence[Row]) -> None:
        tried = self._tried.get(name, 0)
        again = sum(row.seq <= tried for row in rows)
        if again:
            metric("tollgate_ship_resent_total").inc(again)
        self._tried[name] = max(tried, rows[-1].seq)
        self._sent_s = self._clock.monotonic_s()
        if self._unsure_since_s is None:
            self._unsure_since_s = self._sent_s
        _set_inflight(len(rows), sum(len(row.body) for row in rows))

    def acknowledged(self, name: str, count: int) -> None:
        metric("tollgate_ship_ack_seconds").observe(self._clock.monotonic_s() - self._sent_s)
        metric("tollgate_ship_records_total").inc(count)
        self._tried.pop(name, None)
        self._unsure_since_s = None
        _set_inflight(0, 0)

    def turn(self) -> None:
        """After every round, whether it sent, found nothing or failed."""
        oldest_us = min(self._oldest_us.values(), default=None)
        age_s = 0.0 if oldest_us is None else (self._clock.now_us() - oldest_us) / 1e6
        metric("tollgate_outbox_oldest_unshipped_age_seconds").set(age_s)
        since_s = self._unsure_since_s
        unsure_s = 0.0 if since_s is None else self._clock.monotonic_s() - since_s
        metric("tollgate_ship_oldest_inflight_age_seconds").set(unsure_s)

    def look(
        self,
        sources: Mapping[str, Source],
        unreadable: Iterable[str],
        dead: Mapping[str, int],
    ) -> None:
        """Once a second or so: sizes and counts. `dead`: events set aside by the relay, by
        reason."""
        for known in (self._oldest_us, self._tried):
            for name in known.keys() - sources.keys():
                del known[name]
        unshipped = sum(source.unshipped() for source in sources.values())
        metric("tollgate_outbox_records_unshipped").set(unshipped)
        bytes_used, aside = _sizes(self._folder)
        metric("tollgate_outbox_bytes").set(bytes_used)
        damaged = sum(len(IncarnationFiles(self._folder, name).numbers()) for name in unreadable)
        metric("tollgate_outbox_orphan_files").set(aside + damaged)
        self._dead.update(dead)
        for reason in self._dead:
            metric("tollgate_dead_events").labels(reason).set(dead.get(reason, 0))


def _set_inflight(records: int, size_bytes: int) -> None:
    metric("tollgate_ship_inflight_records").set(records)
    metric("tollgate_ship_inflight_bytes").set(size_bytes)


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the files in use, and how many were set aside for a person."""
    used = aside = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            aside += entry.name.endswith(".quarantined")
            if entry.name.endswith(".ballast"):
                continue
            try:
                used += entry.stat().st_size
            except FileNotFoundError:
                continue
    return used, aside
