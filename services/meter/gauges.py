"""Gauges that need a query: refreshed every ten seconds by the role that owns them, in a thread of
its own, never by who asks for `/metrics`."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from schemas.config import Config
from schemas.events import TOPIC
from services.backends.bus.port import Bus, BusUnavailable
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.figures import Figures
from services.backends.telemetry import get_logger, metric
from services.meter.dead import Reason
from services.meter.reconcile_trace import watermark_age_s

EVERY_S: Final = 10.0


class Gauge(Protocol):
    def refresh(self) -> None:
        """May raise BusUnavailable and DatabaseUnavailable: the last values stay."""


class Refresh:
    """Runs `gauges`. One that fails keeps its last values: it must not stop the role."""

    def __init__(self, *gauges: Gauge) -> None:
        self._gauges = gauges

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY_S):
            for gauge in self._gauges:
                try:
                    gauge.refresh()
                except (BusUnavailable, DatabaseUnavailable):
                    continue  # the log of the role tells why
                except Exception:
                    get_logger().exception("gauge_failed", gauge=type(gauge).__name__)


class ConsumerGauges:
    """How far a consumer group is behind. `positions` gives the next offset of each partition that
    has one; the consumer calls `turned` at every turn of its loop."""

    def __init__(self, bus: Bus, group: str, positions: Callable[[], Mapping[int, int]]) -> None:
        self._bus = bus
        self._group = group
        self._positions = positions
        self._turned_s = time.monotonic()

    def turned(self) -> None:
        self._turned_s = time.monotonic()

    def refresh(self) -> None:
        gap_s = time.monotonic() - self._turned_s
        metric("tollgate_poll_gap_seconds").labels(self._group).set(gap_s)
        for partition, count in self.lag_records().items():
            lag = metric("tollgate_consumer_lag_records")
            lag.labels(self._group, str(partition)).set(count)

    def lag_records(self) -> dict[int, int]:
        """Events on the bus that are not stored yet, by partition."""
        at = self._positions()
        return {
            partition: max(0, end - max(first, at.get(partition, 0)))
            for partition, (first, end) in self._bus.bounds(TOPIC).items()
        }


class BooksGauges:
    """Of the role `ledger`."""

    def __init__(self, config: Config, figures: Figures) -> None:
        self._config = config
        self._figures = figures

    def refresh(self) -> None:
        age_s = watermark_age_s(self._config)
        if age_s is not None:
            metric("tollgate_recon_watermark_age_seconds").set(age_s)
        metric("tollgate_trial_balance_nano").set(self._figures.trial_balance_nano())
        leases = self._figures.leases()
        metric("tollgate_quota_leased_nano").set(leases.leased_nano)
        metric("tollgate_quota_stranded_nano").set(leases.stranded_nano)
        metric("tollgate_lease_expired_unresolved").set(leases.unresolved)
        metric("tollgate_lease_expired_age_seconds").set(leases.oldest_s)
        counts, suspense_nano = self._figures.dead()
        for reason in Reason:
            metric("tollgate_dead_events").labels(reason.value).set(counts.get(reason.value, 0))
        metric("tollgate_suspense_nano").set(suspense_nano)
