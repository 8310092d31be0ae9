"""Gauges of the role `clickhouse`."""

from schemas.events import TOPIC
from services.backends.clickhouse.client import ClickHouseUnavailable, QueryRefused
from services.backends.clickhouse.store import RequestStore
from services.backends.sql.figures import Figures
from services.backends.telemetry import get_logger, metric


class ClickHouseGauges:
    def __init__(self, store: RequestStore, figures: Figures) -> None:
        self._store = store
        self._figures = figures

    def refresh(self) -> None:
        """Raises DatabaseUnavailable."""
        metric("tollgate_ch_open_plan_age_seconds").set(self._figures.open_plan_age_s(TOPIC))
        try:
            for table, count in self._store.active_parts().items():
                metric("tollgate_ch_parts_active").labels(table).set(count)
        except ClickHouseUnavailable:
            pass  # the sink's log tells; the last value stays
        except QueryRefused as ex:  # no right to read system.parts
            get_logger().warning("parts_not_counted", error=str(ex))
